"""Snapshots over every provider."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.snapshot_contract import DurableSnapshotContract, SnapshotContract
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.memory import MemoryStorage
from twisted_paxos.storage.sqlite import SqliteStorage
from twisted_paxos.storage.wal import FileStorage
from twisted_paxos.testing.storage import ImmediateExecutor, SimulatedDisk


class MemorySnapshotTests(SnapshotContract, SynchronousTestCase):
    """``memory:``."""

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return MemoryStorage(uid, self.clock)


class SimulatedFileSnapshotTests(DurableSnapshotContract, SynchronousTestCase):
    """``file:`` on a simulated disk, with small segments."""

    def setUp(self) -> None:
        """One disk for all."""
        super().setUp()
        self.disk = SimulatedDisk()

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return FileStorage(self.disk, uid, ImmediateExecutor(self.clock), self.clock, segment_bytes=4096)


class OsFileSnapshotTests(DurableSnapshotContract, SynchronousTestCase):
    """``file:`` on a real directory."""

    def setUp(self) -> None:
        """A fresh directory."""
        super().setUp()
        self.path = os.path.join(self.mktemp(), "A")

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        executor = ImmediateExecutor(self.clock)
        return FileStorage(OsDisk(self.path), uid, executor, self.clock, segment_bytes=1 << 14)


class SqliteSnapshotTests(DurableSnapshotContract, SynchronousTestCase):
    """``sqlite:``."""

    def setUp(self) -> None:
        """A fresh database."""
        super().setUp()
        self.path = os.path.join(self.mktemp(), "A.db")

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return SqliteStorage(self.path, uid, ImmediateExecutor(self.clock), self.clock)
