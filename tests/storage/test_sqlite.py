"""``sqlite:`` under damage, a full disk and half-made databases."""

from __future__ import annotations

import os
import sqlite3
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import CLUSTER, FIRST, SECOND, accepted
from twisted_paxos.core.records import Record, Recovered, SavePromise
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.sqlite import SqliteBackend, SqliteStorage
from twisted_paxos.testing.storage import ImmediateExecutor


class SqliteTests(SynchronousTestCase):
    """What the contract does not cover."""

    def setUp(self) -> None:
        """A path, and a clock."""
        self.clock = Clock()
        self.path = os.path.join(self.mktemp(), "A.db")

    def start(self) -> tuple[SqliteStorage, Recovered]:
        """Open it."""
        storage = SqliteStorage(self.path, "A", ImmediateExecutor(self.clock))
        return storage, storage.recover("one", CLUSTER)

    def write(self, storage: SqliteStorage, *records: Record) -> str:
        """Write; ``"done"`` or the name of the error."""
        outcome: list[str] = []
        storage.write(list(records)).addCallbacks(
            lambda _: outcome.append("done"), lambda failure: outcome.append(failure.type.__name__)
        )
        self.clock.advance(0)
        self.clock.advance(0)
        return outcome[0]

    def stopped(self) -> None:
        """A database with a promise and three slots."""
        storage, _ = self.start()
        self.write(storage, SavePromise(FIRST), accepted(1), accepted(2), accepted(3))
        storage.note_chosen(2)
        self.close(storage)

    def close(self, storage: SqliteStorage) -> None:
        """Close it."""
        storage.close()
        for _ in range(4):
            self.clock.advance(0)

    def change(self, *statements: str) -> None:
        """Change the stopped database behind the program's back."""
        connection = sqlite3.connect(self.path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    def assert_damaged(self) -> str:
        """A start says that it is damaged, in one line, and leaves it unlocked."""
        error = self.assertRaises(StorageDamaged, self.start)
        self.assertNotIn("\n", str(error))
        self.assertIn(os.path.basename(self.path), str(error))
        return str(error)

    def test_damaged_rows(self) -> None:
        """Any changed column of any entry is damage."""
        for column, changed in (
            ("kind", "3"),
            ("number", "7"),
            ("uid", "'B'"),
            ("value", "x'00'"),
            ("value", "NULL"),
            ("crc", "1"),
            ("slot", "9"),
        ):
            self.setUp()
            self.stopped()
            self.change(f"UPDATE entry SET {column} = {changed} WHERE slot = 2")
            self.assert_damaged()

    def test_lost_row(self) -> None:
        """A lost row is noticed, below and above what is chosen."""
        for slot in (1, 3):
            self.setUp()
            self.stopped()
            self.change(f"DELETE FROM entry WHERE slot = {slot}")
            self.assert_damaged()

    def test_one_copy(self) -> None:
        """One damaged or lost copy of the small objects forgets nothing and is repaired."""
        for table, other in (("object_0", "object_1"), ("object_1", "object_0")):
            for damage in (f"UPDATE {table} SET payload = x'00'", f"DELETE FROM {table}"):
                self.setUp()
                self.stopped()
                self.change(damage)
                storage, found = self.start()
                self.close(storage)
                self.change(f"DELETE FROM {other}")
                storage, again = self.start()
                self.close(storage)
                self.assertEqual((found.promised, again.promised), (FIRST, FIRST))
                self.assertEqual(again.identity.boot, found.identity.boot + 1)

    def test_both_copies(self) -> None:
        """Both copies damaged, or different ones, are damage."""
        for damage in (
            ["UPDATE object_0 SET payload = x'00'", "UPDATE object_1 SET crc = 0"],
            ["DELETE FROM object_0 WHERE name = 'promise'", "DELETE FROM object_1 WHERE name = 'promise'"],
        ):
            self.setUp()
            self.stopped()
            self.change(*damage)
            self.assert_damaged()

    def test_missing_table(self) -> None:
        """A missing table is damage, and never a new node."""
        for table in ("object_0", "object_1", "entry"):
            self.setUp()
            self.stopped()
            self.change(f"DROP TABLE {table}")
            self.assert_damaged()

    def test_not_ours(self) -> None:
        """An empty file, a text, and another program's database are refused."""
        os.makedirs(os.path.dirname(self.path))
        for content in (b"", b"Dear diary" * 100):
            with open(self.path, "wb") as file:
                file.write(content)
            self.assert_damaged()
        os.remove(self.path)
        self.change("CREATE TABLE other (x)")
        self.assert_damaged()
        storage = SqliteStorage(self.path, "A", ImmediateExecutor(self.clock))
        self.assertRaises(StorageError, storage.set_aside)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), [os.path.basename(self.path)])

    def test_directory(self) -> None:
        """A directory in the place of the file is one clear line."""
        os.makedirs(self.path)
        error = self.assertRaises(StorageError, self.start)
        self.assertNotIsInstance(error, StorageDamaged)

    def test_half_made(self) -> None:
        """What a crash left of making the database is replaced."""
        os.makedirs(os.path.dirname(self.path))
        with open(f"{self.path}.new", "wb") as file:
            file.write(b"half a database")
        storage, found = self.start()
        self.assertTrue(found.fresh)
        self.assertEqual(found.identity.boot, 1)
        self.close(storage)

    def test_lost_database(self) -> None:
        """A journal without its database is damage."""
        os.makedirs(os.path.dirname(self.path))
        with open(f"{self.path}-journal", "wb") as file:
            file.write(b"x")
        self.assertIn("journal", self.assert_damaged())

    def test_newer_version(self) -> None:
        """A later format version is refused, and not called damage."""
        self.stopped()
        self.change("PRAGMA user_version = 3")
        error = self.assertRaises(StorageError, self.start)
        self.assertNotIsInstance(error, StorageDamaged)

    def test_full(self) -> None:
        """A full disk refuses the group, keeps what is stored, and writing goes on when there is room."""
        storage, _ = self.start()
        self.write(storage, SavePromise(FIRST), accepted(1))
        connection: Any = storage._backend._connection  # type: ignore[attr-defined]
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        refused = self.write(storage, SavePromise(SECOND), accepted(2, SECOND, 100_000))
        self.assertEqual(refused, "StorageFull")
        self.assertEqual(self.write(storage, accepted(3, SECOND)), "StorageFull")
        self.assertEqual(self.write(storage, accepted(3)), "done")
        connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
        self.assertEqual(self.write(storage, SavePromise(SECOND), accepted(2, SECOND, 100_000)), "done")
        self.close(storage)
        _, found = self.start()
        self.assertEqual((found.promised, sorted(found.entries)), (SECOND, [1, 2, 3]))

    def test_failure_is_final(self) -> None:
        """An error of the database ends all writing."""
        storage, _ = self.start()
        connection: Any = storage._backend._connection  # type: ignore[attr-defined]
        connection.execute("DROP TABLE entry")
        self.assertEqual(self.write(storage, SavePromise(FIRST), accepted(1)), "StorageFailed")
        self.assertEqual(self.write(storage, SavePromise(FIRST)), "StorageFailed")

    def test_synchronous(self) -> None:
        """The database syncs fully, and keeps a journal that a flipped bit cannot end early."""
        backend = SqliteBackend(self.path, "A")
        backend.recover("one", CLUSTER)
        connection: Any = backend._connection
        self.assertEqual(connection.execute("PRAGMA synchronous").fetchone()[0], 2)
        self.assertEqual(connection.execute("PRAGMA journal_mode").fetchone()[0], "truncate")
        backend.close()

    def test_killed_in_a_transaction(self) -> None:
        """A transaction that was never committed leaves nothing behind."""
        self.stopped()
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM entry")
        connection.close()
        _, found = self.start()
        self.assertEqual((found.chosen_upto, sorted(found.entries)), (2, [3]))
