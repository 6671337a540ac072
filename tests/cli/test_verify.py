"""`verify_directory` over healthy, running and damaged storage; and the command."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.cli.test_main import paxosctl
from tests.storage.contract import CLUSTER, FIRST, SECOND, accepted
from twisted_paxos.cli import verify
from twisted_paxos.cli.inspect import inspect_directory
from twisted_paxos.cli.verify import NEW_INCARNATION, NORMAL, OTHER_COPY, Verification, verify_directory
from twisted_paxos.core.records import SavePromise
from twisted_paxos.errors import StorageError
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.format import HEADER_BYTES, segment_id, segment_name
from twisted_paxos.storage.snapshotfile import snapshot_name
from twisted_paxos.storage.sqlite import SqliteBackend
from twisted_paxos.storage.wal import FileBackend

PIECES = (b"first" * 50, b"second" * 50)


def run(steps: Any) -> None:
    """All steps of a backend's work."""
    for _ in steps:
        pass


def fill(backend: Any, compact_upto: int) -> None:
    """Promise, 40 slots, a snapshot of slot 30, and compaction."""
    backend.recover("one", CLUSTER)
    backend.commit([[SavePromise(FIRST)]], 0)
    for slot in range(1, 41):
        backend.commit([[accepted(slot, size_bytes=300)]], slot - 1)
    sink = backend.draft(30)
    for piece in PIECES:
        run(sink.put(piece))
    run(sink.seal())
    backend.adopt(sink, 39)
    run(backend.compact(compact_upto))


class FileTests(SynchronousTestCase):
    """``file:``, beside a node that has it open."""

    def setUp(self) -> None:
        """A directory with several segments and a snapshot."""
        self.path = os.path.join(self.mktemp(), "A")
        self.backend = FileBackend(OsDisk(self.path), "A", 4096)
        self.addCleanup(self.backend.close)
        fill(self.backend, 30)
        self.segments = sorted(name for name in os.listdir(self.path) if segment_id(name))

    def change(self, name: str, offset: int, data: bytes = b"\xff\xff") -> None:
        """Damage."""
        with open(os.path.join(self.path, name), "rb+") as file:
            file.seek(offset)
            file.write(data)

    def damaged(self) -> Verification:
        """A report that must say damage, in lines that people can read."""
        report = verify_directory(self.path)
        self.assertEqual(report.verdict, "damaged")
        for found in report.findings:
            self.assertNotIn("\n", found.what)
            self.assertNotIn(self.path, found.what)
        return report

    def test_fine(self) -> None:
        """A running node's directory: all is read, nothing is found, nothing is changed."""
        before = {name: Path(self.path, name).read_bytes() for name in os.listdir(self.path)}
        report = verify_directory(Path(self.path))
        self.assertEqual((report.verdict, report.findings), ("fine", []))
        self.assertEqual((report.kind, report.uid, report.incarnation), ("file", "A", "one"))
        self.assertEqual((report.pid, report.chosen_upto), (os.getpid(), 39))
        self.assertEqual((report.snapshot_slot, report.snapshot_pieces), (30, 2))
        self.assertEqual(report.snapshot_bytes, sum(map(len, PIECES)))
        self.assertTrue(20 < report.log_start <= 31)
        seen = inspect_directory(self.path)
        self.assertEqual((seen.log_start, seen.chosen_upto), (report.log_start, 39))
        self.assertEqual(
            (seen.snapshot_slot, seen.snapshot_pieces, seen.snapshot_bytes), (30, 2, report.snapshot_bytes)
        )
        self.assertGreater(report.records, 10)
        self.assertGreater(report.checked_bytes, 4096 * len(self.segments))
        self.assertEqual(before, {name: Path(self.path, name).read_bytes() for name in os.listdir(self.path)})

    def test_torn_tail(self) -> None:
        """A write that is under way is normal."""
        end = self.backend._log.last.used_bytes
        self.change(self.segments[-1], end, b"half a record")
        report = verify_directory(self.path)
        self.assertEqual(report.verdict, "fine")
        [found] = report.findings
        self.assertEqual((found.where, found.offset, found.damage), (self.segments[-1], end, False))
        self.assertEqual(found.outcome, NORMAL)

    def test_each_damaged_segment(self) -> None:
        """Damage in several segments is found in each, with its place and where the file goes on."""
        for name in self.segments[:2]:
            self.change(name, HEADER_BYTES + 30)
        report = self.damaged()
        places = [(found.where, found.offset) for found in report.findings if found.damage]
        for name in self.segments[:2]:
            self.assertIn((name, HEADER_BYTES), places)
        whole = [found for found in report.findings if "next whole record" in found.what]
        self.assertEqual(len(whole), 2)
        self.assertTrue(all(found.slot and found.offset for found in whole))

    def test_lost_segment(self) -> None:
        """A lost segment is named."""
        os.remove(os.path.join(self.path, self.segments[1]))
        found = self.damaged().findings[0]
        self.assertEqual((found.where, found.what), (self.segments[1], "is missing"))
        self.assertEqual(found.outcome, NEW_INCARNATION)

    def test_damaged_header(self) -> None:
        """A bad segment header is found at byte 0."""
        self.change(self.segments[0], 8)
        found = self.damaged().findings[0]
        self.assertEqual((found.where, found.offset), (self.segments[0], 0))

    def test_one_copy(self) -> None:
        """One bad copy is mended by the next start; two are damage, each named."""
        for name in ("identity", "promise", "base"):
            self.change(f"{name}.1", 10)
            report = verify_directory(self.path)
            self.assertEqual((report.verdict, len(report.findings)), ("fine", 1), name)
            self.assertEqual(report.findings[0].outcome, OTHER_COPY)
            self.assertEqual(report.findings[0].where, f"{name}.1")
            self.change(f"{name}.0", 10)
            report = self.damaged()
            named = {found.where for found in report.findings}
            self.assertTrue({f"{name}.0", f"{name}.1"} <= named)
            self.doCleanups()
            self.setUp()

    def test_vote_above_the_promise(self) -> None:
        """Parts that do not fit together are damage, although each is whole."""
        old = {name: Path(self.path, name).read_bytes() for name in ("promise.0", "promise.1")}
        self.backend.commit([[SavePromise(SECOND), accepted(41, SECOND)]], 40)
        for name, data in old.items():
            Path(self.path, name).write_bytes(data)
        [found] = self.damaged().findings
        self.assertIn("above the saved promise", found.what)
        self.assertEqual(found.where, self.segments[-1])

    def test_damaged_pieces(self) -> None:
        """Each damaged piece of a snapshot is found, with its place."""
        name = snapshot_name(30)
        self.change(name, 32 + 40)
        self.change(name, 32 + 32 + len(PIECES[0]) + 40)
        report = self.damaged()
        self.assertEqual([found.offset for found in report.findings], [32, 64 + len(PIECES[0])])
        self.assertEqual({found.where for found in report.findings}, {name})
        self.assertIn("piece 1", report.findings[1].what)

    def test_lost_snapshot(self) -> None:
        """A snapshot that stands for a part of the log must be there; else the log does."""
        os.remove(os.path.join(self.path, snapshot_name(30)))
        found = self.damaged().findings[0]
        self.assertEqual((found.where, found.what), (snapshot_name(30), "is missing"))
        path = os.path.join(self.mktemp(), "B")
        backend = FileBackend(OsDisk(path), "B", 1 << 16)
        self.addCleanup(backend.close)
        fill(backend, 0)
        os.remove(os.path.join(path, snapshot_name(30)))
        report = verify_directory(path)
        self.assertEqual((report.verdict, len(report.findings)), ("fine", 1))
        self.assertIn("dropped", report.findings[0].outcome)

    def test_leftovers(self) -> None:
        """What a crash left is named, and is no damage."""
        Path(self.path, f"{snapshot_name(35)}.tmp").write_bytes(b"half")
        Path(self.path, segment_name(1)).write_bytes(b"old")
        report = verify_directory(self.path)
        self.assertEqual(report.verdict, "fine")
        wheres = {found.where for found in report.findings}
        self.assertEqual(wheres, {f"{snapshot_name(35)}.tmp", segment_name(1)})

    def test_every_byte_that_counts(self) -> None:
        """What a start refuses, `verify` calls damaged, and the other way round; whatever byte is changed."""
        self.backend.close()
        files = {name: Path(self.path, name).read_bytes() for name in os.listdir(self.path)}
        for name, data in files.items():
            for offset in range(0, len(data.rstrip(b"\0")), 97):
                if name == "lock":
                    continue
                self.change(name, offset, bytes([data[offset] ^ 4]))
                report = verify_directory(self.path)
                backend = FileBackend(OsDisk(self.path), "A", 4096)
                try:
                    backend.recover("two", CLUSTER)
                    pieces = [backend.read_piece(30, number) for number in (0, 1)]
                    good = pieces == list(PIECES)
                except StorageError:
                    good = False
                backend.close()
                self.assertEqual(report.verdict == "fine", good, (name, offset))
                for restored, content in files.items():
                    Path(self.path, restored).write_bytes(content)

    def test_read_again(self) -> None:
        """What is wrong only at the first look is not reported."""
        looks = [Verification("x", "file", "damaged"), Verification("x", "file")]
        self.patch(verify, "_verify_once", lambda path: looks.pop(0))
        self.assertEqual((verify_directory("x").verdict, looks), ("fine", []))

    def test_nothing_of_a_node(self) -> None:
        """Another directory, or none, is one clear line."""
        other = self.mktemp()
        os.makedirs(other)
        Path(other, "letter.txt").write_text("Dear ...")
        self.assertIn("nothing of a node", str(self.assertRaises(StorageError, verify_directory, other)))
        self.assertIn("does not exist", str(self.assertRaises(StorageError, verify_directory, self.mktemp())))

    def test_findings_are_bounded(self) -> None:
        """However much is wrong, the report stays readable."""
        report = Verification("x", "file")
        for number in range(1000):
            report.add("log", "bad", offset=number)
        self.assertEqual((len(report.findings), report.verdict), (verify.FINDINGS_MAX, "damaged"))


class DatabaseTests(SynchronousTestCase):
    """``sqlite:``."""

    def setUp(self) -> None:
        """A database with a snapshot, that a node has open."""
        self.path = os.path.join(self.mktemp(), "A.db")
        self.backend = SqliteBackend(self.path, "A")
        self.addCleanup(self.backend.close)
        fill(self.backend, 30)

    def change(self, *statements: str) -> None:
        """Change the stopped database behind the program's back."""
        self.backend.close()
        connection = sqlite3.connect(self.path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    def test_fine(self) -> None:
        """A running node's database; the node goes on."""
        report = verify_directory(self.path)
        self.assertEqual((report.verdict, report.findings), ("fine", []))
        self.assertEqual((report.kind, report.uid, report.records), ("sqlite", "A", 10))
        self.assertEqual((report.log_start, report.chosen_upto), (31, 39))
        self.assertEqual((report.snapshot_slot, report.snapshot_pieces), (30, 2))
        self.backend.commit([[accepted(41)]], 40)
        self.assertEqual(verify_directory(self.path).records, 11)

    def test_damage(self) -> None:
        """Each kind of damage is found, and says where."""
        for statement, where, slot in (
            ("UPDATE entry SET value = x'00' WHERE slot = 35", "entry", 35),
            ("DELETE FROM entry WHERE slot = 36", "entry", 36),
            ("UPDATE snapshot SET data = x'00' WHERE number = 1", "A.db", 30),
            ("DELETE FROM snapshot WHERE number = 0", "A.db", 30),
            ("DROP TABLE entry", "A.db", None),
        ):
            self.setUp()
            self.change(statement)
            report = verify_directory(self.path)
            self.assertEqual(report.verdict, "damaged", statement)
            places = [(found.where, found.slot) for found in report.findings]
            self.assertIn((where, slot), places, statement)

    def test_one_copy(self) -> None:
        """One bad copy is mended by the next start; two are damage."""
        self.change("UPDATE object_0 SET payload = x'00' WHERE name = 'promise'")
        report = verify_directory(self.path)
        self.assertEqual((report.verdict, len(report.findings)), ("fine", 1))
        self.assertEqual(report.findings[0].where, "object_0 promise")
        self.change("UPDATE object_1 SET payload = x'00' WHERE name = 'promise'")
        self.assertEqual(verify_directory(self.path).verdict, "damaged")

    def test_rubbish(self) -> None:
        """Rubbish in the place of a database is damage, not a traceback."""
        self.backend.close()
        Path(self.path).write_bytes(b"rubbish" * 1000)
        self.assertEqual(verify_directory(self.path).verdict, "damaged")


class CommandTests(SynchronousTestCase):
    """``paxosctl verify``."""

    def test_status(self) -> None:
        """0 when all is well, 1 when something is damaged or nothing is there; as text and as JSON."""
        path = os.path.join(self.mktemp(), "A")
        backend = FileBackend(OsDisk(path), "A", 1 << 16)
        fill(backend, 30)
        backend.close()
        status, out, err = paxosctl("verify", path, "--json")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(json.loads(out)["verdict"], "fine")
        msgspec.json.decode(out, type=Verification)
        Path(path, "promise.0").write_bytes(b"")
        Path(path, "promise.1").write_bytes(b"")
        status, out, err = paxosctl("verify", path)
        self.assertEqual((status, err), (1, ""))
        self.assertIn("promise.1", out)
        self.assertIn("comes back as a new", out)
        status, out, err = paxosctl("verify", self.mktemp())
        self.assertEqual((status, out, err.count("\n")), (1, "", 1))
