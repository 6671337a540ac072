"""Snapshots over every provider."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import CLUSTER, accepted
from tests.storage.snapshot_contract import PIECES, DurableSnapshotContract, SnapshotContract, tell
from twisted_paxos.errors import StorageDamaged, StorageFull
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.memory import MemoryStorage
from twisted_paxos.storage.sqlite import SqliteBackend, SqliteStorage
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
        return FileStorage(self.disk, uid, ImmediateExecutor(self.clock), segment_bytes=4096)


class OsFileSnapshotTests(DurableSnapshotContract, SynchronousTestCase):
    """``file:`` on a real directory."""

    def setUp(self) -> None:
        """A fresh directory."""
        super().setUp()
        self.path = os.path.join(self.mktemp(), "A")

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        executor = ImmediateExecutor(self.clock)
        return FileStorage(OsDisk(self.path), uid, executor, segment_bytes=1 << 14)


class SqliteSnapshotTests(DurableSnapshotContract, SynchronousTestCase):
    """``sqlite:``."""

    def setUp(self) -> None:
        """A fresh database."""
        super().setUp()
        self.path = os.path.join(self.mktemp(), "A.db")

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        return SqliteStorage(self.path, uid, ImmediateExecutor(self.clock))

    def change(self, *statements: str) -> None:
        """Change the stopped database behind the program's back."""
        with closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def backend(self) -> SqliteBackend:
        """The blocking half alone, open."""
        backend = SqliteBackend(self.path, "A")
        backend.recover("one", CLUSTER)
        self.addCleanup(backend.close)
        return backend

    def test_killed_while_removing(self) -> None:
        """Rows that a killed compaction or replacement left are void at once, and go at the next start."""
        storage = self.filled(200)
        self.write_snapshot(storage, 150, tell(150, 70))
        self.settle(storage.close())
        backend = self.backend()
        sink = backend.draft(160)
        for _ in (*sink.put(b"newer"), *sink.seal()):
            pass
        backend.adopt(sink, 200)
        next(backend.drop_snapshot(150))
        next(backend.compact(160))
        self.assertEqual((backend.read(100, 200, 1000), backend.log_start), ([], 161))
        self.assertEqual(len(backend.read(161, 200, 1 << 20)), 40)
        backend.close()
        storage = self.make()
        found = storage.recover("x", CLUSTER)
        self.assertEqual((found.log_start, found.snapshot_slot, found.chosen_upto), (161, 160, 200))
        self.assertEqual(self.newest(storage), [b"newer"])
        self.settle(storage.close())
        with closing(sqlite3.connect(self.path)) as connection:
            rows = [
                connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
                for table in ("entry", "snapshot")
            ]
        self.assertEqual(rows, [40, 1])

    def test_full(self) -> None:
        """Without room the snapshot is refused, its rows go, and the log and the older one are as before."""
        storage = self.filled(9)
        self.write_snapshot(storage, 5)
        connection: Any = storage._backend._connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 50}")
        writer = storage.begin_snapshot(9)
        self.settle_failure(writer.write(b"x" * (1 << 20)), StorageFull)
        writer.abort()
        self.settle(storage.write([accepted(10)]))
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (5, tell(5)))
        self.assertEqual(connection.execute("SELECT COUNT(*) FROM snapshot WHERE slot = 9").fetchone()[0], 0)
        connection.execute(f"PRAGMA max_page_count = {pages + 10_000}")
        self.write_snapshot(storage, 9, PIECES)
        self.assertEqual(self.newest(storage), PIECES)

    def test_damage(self) -> None:
        """Lost rows are noticed at a start, if the log needs the snapshot; changed ones when read."""
        for compacted in (False, True):
            self.setUp()
            storage = self.filled(9)
            self.write_snapshot(storage, 5)
            if compacted:
                self.settle(storage.compact(5))
            self.settle(storage.close())
            self.change("UPDATE snapshot SET crc = crc + 1 WHERE number = 1")
            storage = self.make()
            storage.recover("x", CLUSTER)
            reader = storage.open_snapshot()
            self.settle_failure(reader.read(1), StorageDamaged)
            self.assertEqual(self.settle(reader.read(2)), tell(5)[2])
            self.settle(storage.close())
            self.change("DELETE FROM snapshot WHERE number = 2")
            if compacted:
                self.assertRaises(StorageDamaged, self.make().recover, "x", CLUSTER)
            else:
                found = self.make().recover("x", CLUSTER)
                self.assertEqual((found.snapshot_slot, found.log_start, found.chosen_upto), (0, 1, 9))

    def test_file_does_not_grow(self) -> None:
        """Under endless writes with snapshots the room of what went is used again."""
        storage = self.filled(1)
        sizes = []
        for slot in range(2, 200):
            storage.write([accepted(slot, size_bytes=2000)])
            storage.note_chosen(slot)
            if slot % 10 == 0:
                self.write_snapshot(storage, slot, [bytes(50_000)])
                self.settle(storage.compact(slot))
                sizes.append(os.path.getsize(self.path))
        self.assertLessEqual(max(sizes), max(sizes[:3]) + 20_000)
