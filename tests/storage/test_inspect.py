"""`inspect_directory` over healthy, running and damaged storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import CLUSTER, FIRST, accepted, value
from twisted_paxos.cli.inspect import Inspection, inspect_directory, shorten
from twisted_paxos.core.records import SaveChosen, SavePromise
from twisted_paxos.errors import StorageError
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.format import segment_name
from twisted_paxos.storage.sqlite import SqliteBackend
from twisted_paxos.storage.wal import FileBackend

LOG = segment_name(1)


class InspectTests(SynchronousTestCase):
    """Read-only, beside a node that has the storage open."""

    def fill(self, backend: Any) -> None:
        """Promise, two groups, one chosen value."""
        backend.recover("one", CLUSTER)
        backend.commit([[SavePromise(FIRST), accepted(1), accepted(2)]], 0)
        backend.commit([[SaveChosen(3, FIRST, value(3, 500)), accepted(5)]], 2)

    def running_files(self) -> tuple[str, FileBackend]:
        """A directory that a node has open."""
        path = os.path.join(self.mktemp(), "A")
        backend = FileBackend(OsDisk(path), "A", 1 << 16)
        self.fill(backend)
        self.addCleanup(backend.close)
        return path, backend

    def check_common(self, found: Inspection) -> None:
        """What both kinds show."""
        self.assertEqual((found.problems, found.notes), ([], []))
        self.assertEqual((found.identity.uid, found.identity.boot, found.promised), ("A", 1, FIRST))
        self.assertEqual((found.pid, found.chosen_upto, found.highest_slot), (os.getpid(), 3, 5))
        self.assertEqual((found.records["accepted"], found.records["chosen"]), (3, 1))
        self.assertEqual([entry.slot for entry in found.last_entries], [3, 5])
        self.assertEqual(found.last_entries[0].kind, "chosen")
        self.assertTrue(found.last_entries[0].value.endswith("..."))
        self.assertEqual([copy.problem for copy in found.identity_copies + found.promise_copies], [""] * 4)
        msgspec.json.encode(found)

    def test_files(self) -> None:
        """A running node's directory: everything is shown, nothing is changed."""
        path, _ = self.running_files()
        before = {name: Path(path, name).read_bytes() for name in os.listdir(path)}
        found = inspect_directory(Path(path), last_entries=2)
        self.check_common(found)
        self.assertEqual(found.records["chosen_upto"], 1)
        segment = found.segments[0]
        self.assertEqual((segment.name, segment.accepted, segment.chosen), (LOG, 3, 1))
        self.assertEqual((segment.lowest_slot, segment.highest_slot, segment.torn_bytes), (1, 5, 0))
        self.assertEqual((segment.first_sequence, segment.last_sequence), (1, 5))
        self.assertEqual(before, {name: Path(path, name).read_bytes() for name in os.listdir(path)})

    def test_database(self) -> None:
        """A running node's database likewise; the node goes on."""
        path = os.path.join(self.mktemp(), "A.db")
        backend = SqliteBackend(path, "A")
        self.fill(backend)
        self.addCleanup(backend.close)
        self.check_common(inspect_directory(path, last_entries=2))
        backend.commit([[accepted(6)]], 3)
        self.assertEqual(inspect_directory(path).highest_slot, 6)

    def test_torn_tail_is_normal(self) -> None:
        """Bytes behind the last good record are a note, not a problem."""
        path, backend = self.running_files()
        with open(os.path.join(path, LOG), "rb+") as file:
            file.seek(backend.log_bytes)
            file.write(b"half a record")
        found = inspect_directory(path)
        self.assertEqual(found.problems, [])
        self.assertEqual(len(found.notes), 1)
        self.assertEqual(found.segments[0].torn_bytes, len(b"half a record"))

    def test_one_copy_is_a_note(self) -> None:
        """One bad copy of a small object harms nothing; two do."""
        path, _ = self.running_files()
        for number, expected in ((0, (0, 1)), (1, (1, 0))):
            Path(path, f"promise.{number}").write_bytes(b"rubbish")
            found = inspect_directory(path)
            self.assertEqual((len(found.problems), len(found.notes)), expected)
        self.assertIsNone(found.promised)

    def test_damage(self) -> None:
        """Damage in the log is a problem that says where; the rest is still shown."""
        path, _ = self.running_files()
        with open(os.path.join(path, LOG), "rb+") as file:
            file.seek(70)
            file.write(b"\xff")
        found = inspect_directory(path)
        self.assertEqual(len(found.problems), 1)
        self.assertIn(f"{LOG} at byte 56", found.problems[0])
        self.assertEqual(found.identity.uid, "A")

    def test_damaged_database(self) -> None:
        """Rubbish in the place of a database is a problem, not a traceback."""
        path = self.mktemp()
        Path(path).write_bytes(b"rubbish" * 1000)
        self.assertEqual(len(inspect_directory(path).problems), 1)

    def test_empty_segment(self) -> None:
        """A segment cut to nothing is a problem, not a traceback."""
        path, _ = self.running_files()
        Path(path, LOG).write_bytes(b"")
        self.assertEqual(len(inspect_directory(path).problems), 1)

    def test_nothing_there(self) -> None:
        """A path that does not exist is one clear line."""
        error = self.assertRaises(StorageError, inspect_directory, self.mktemp())
        self.assertIn("does not exist", str(error))

    def test_shorten(self) -> None:
        """Values are shown on one line, cut when they are long."""
        self.assertEqual(shorten(b'"short"'), '"short"')
        self.assertEqual(shorten(b"a\nb\x00\xff"), "a?b?\ufffd")
        self.assertEqual(shorten(b"x" * 100), "x" * 60 + "...")


class RunningInspectTests(SynchronousTestCase):
    """What changes while it is read."""

    def test_read_again(self) -> None:
        """What is wrong only at the first look is no problem."""
        from twisted_paxos.cli import inspect

        looks = [Inspection("x", "file", problems=["half written"]), Inspection("x", "file")]
        self.patch(inspect, "_inspect_once", lambda path, last_entries: looks.pop(0))
        self.assertEqual(inspect_directory("x").problems, [])
        self.assertEqual(looks, [])
        self.assertEqual(Clock().seconds(), 0)
