"""The contract of `IAcceptorStorage` over every provider."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import DurableContract, StorageContract
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.memory import MemoryStorage
from twisted_paxos.storage.sqlite import SqliteStorage
from twisted_paxos.storage.wal import FileStorage
from twisted_paxos.testing.storage import ImmediateExecutor, SimulatedDisk


class MemoryTests(StorageContract, SynchronousTestCase):
    """``memory:``."""

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return MemoryStorage(uid, self.clock)

    def test_each_start_is_fresh(self) -> None:
        """Nothing survives: each start is a new incarnation."""
        self.settle(self.started().close())
        found = self.make().recover("two", "abc")
        self.assertEqual((found.identity.incarnation, found.identity.boot, found.fresh), ("two", 1, True))


class SimulatedFileTests(DurableContract, SynchronousTestCase):
    """``file:`` on a simulated disk, with segments so small that there are many."""

    def setUp(self) -> None:
        """One disk for all."""
        super().setUp()
        self.disk = SimulatedDisk()

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return FileStorage(self.disk, uid, ImmediateExecutor(self.clock), segment_bytes=4096)


class OsFileTests(DurableContract, SynchronousTestCase):
    """``file:`` on a real directory."""

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        self.path = getattr(self, "path", None) or os.path.join(self.mktemp(), "A")
        executor = ImmediateExecutor(self.clock)
        return FileStorage(OsDisk(self.path), uid, executor, segment_bytes=1 << 16)


class SqliteTests(DurableContract, SynchronousTestCase):
    """``sqlite:``."""

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        self.path = getattr(self, "path", None) or os.path.join(self.mktemp(), "A.db")
        return SqliteStorage(self.path, uid, ImmediateExecutor(self.clock))
