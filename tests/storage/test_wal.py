"""``file:`` under crashes, damage, full and failing disks."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import CLUSTER, FIRST, SECOND, accepted, value
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.records import (
    Identity,
    Record,
    Recovered,
    SaveAccepted,
    SaveChosen,
    SaveIdentity,
    SavePromise,
)
from twisted_paxos.errors import StorageDamaged, StorageError, StorageFailed, StorageFull
from twisted_paxos.storage.format import ACCEPTED, HEADER_BYTES, draft_name, encode_record, segment_name
from twisted_paxos.storage.wal import FileStorage
from twisted_paxos.testing.storage import ImmediateExecutor, SimulatedDisk

LOG = segment_name(1)


class Node:
    """Storage on a simulated disk, and what its caller was told."""

    def __init__(self, disk: SimulatedDisk, segment_bytes: int = 4096) -> None:
        self.disk = disk
        self.clock = Clock()
        self.executor = ImmediateExecutor(self.clock)
        self.storage = FileStorage(disk, "A", self.executor, self.clock, segment_bytes)

    def start(self) -> Recovered:
        """Recover."""
        return self.storage.recover("one", CLUSTER)

    def write(self, *records: Record) -> Any:
        """Write; ``"done"``, or the name of the error."""
        outcome = self.begin(*records)
        self.clock.advance(0)
        self.clock.advance(0)
        return outcome[0]

    def begin(self, *records: Record) -> list[str]:
        """Write without turning the clock; the outcome comes into the list."""
        outcome = ["waits"]
        self.storage.write(list(records)).addCallbacks(
            lambda _: outcome.__setitem__(0, "done"),
            lambda failure: outcome.__setitem__(0, failure.type.__name__),
        )
        return outcome

    def close(self) -> None:
        """Close."""
        self.storage.close()
        for _ in range(5):
            self.clock.advance(0)

    def read_all(self, upto_slot: int) -> dict[int, tuple[ProposalID, bytes]]:
        """What `read_chosen` finds from slot 1 on."""
        found: list[Any] = []
        self.storage.read_chosen(1, upto_slot, 1 << 30).addCallback(found.extend)
        self.clock.advance(0)
        return {entry.slot: (entry.ballot, bytes(entry.value)) for entry in found}

    def contents(self, found: Recovered) -> dict[int, tuple[ProposalID, bytes]]:
        """Everything stored, whether above chosen_upto or not."""
        above = {slot: (entry.ballot, bytes(entry.value)) for slot, entry in found.entries.items()}
        return self.read_all(found.chosen_upto) | above


def small_log() -> tuple[SimulatedDisk, list[dict[int, bytes]]]:
    """A stopped node with three groups of records over two segments; the contents after each group."""
    disk = SimulatedDisk()
    node = Node(disk)
    node.start()
    node.write(SavePromise(FIRST), accepted(1, size_bytes=1500), accepted(2, size_bytes=1500))
    node.storage.note_chosen(2)
    node.write(accepted(3, size_bytes=700), accepted(4))
    node.write(accepted(5), accepted(6))
    node.disk.kill()
    sizes = {1: 1500, 2: 1500, 3: 700}
    full = {slot: bytes(value(slot, sizes.get(slot, 10))) for slot in range(1, 7)}
    return disk, [{slot: full[slot] for slot in range(1, upto + 1)} for upto in (0, 2, 4, 6)]


def values(contents: dict[int, tuple[ProposalID, bytes]]) -> dict[int, bytes]:
    """Without the ballots."""
    return {slot: data for slot, (_, data) in contents.items()}


class GroupCommitTests(SynchronousTestCase):
    """Who shares a sync with whom."""

    def setUp(self) -> None:
        """A started node that has promised."""
        self.disk = SimulatedDisk()
        self.node = Node(self.disk, 1 << 20)
        self.node.start()
        self.node.write(SavePromise(FIRST))

    def test_one_turn_shares_one_sync(self) -> None:
        """A hundred writes of one turn are one write and one sync."""
        before = self.disk.operations
        outcomes = [self.node.begin(accepted(slot)) for slot in range(1, 101)]
        self.node.clock.advance(0)
        self.node.clock.advance(0)
        self.assertEqual(self.disk.operations - before, 2)
        self.assertEqual({outcome[0] for outcome in outcomes}, {"done"})

    def test_what_arrives_meanwhile_goes_together(self) -> None:
        """While a group is written everything waits, and goes in one more group."""
        self.node.executor.delay_s = 1.0
        self.node.begin(accepted(1))
        self.node.clock.advance(0)
        before = self.disk.operations
        later = [self.node.begin(accepted(slot)) for slot in range(2, 50)]
        self.node.clock.advance(0.5)
        self.assertEqual(self.disk.operations, before)
        self.node.clock.advance(0.5)
        self.assertEqual(later[0], ["waits"])
        self.node.clock.advance(1.0)
        self.assertEqual(self.disk.operations - before, 4)
        self.assertEqual({outcome[0] for outcome in later}, {"done"})

    def test_a_write_waits_for_its_own_group(self) -> None:
        """A write that arrives during a sync is not reported by that sync (TRAPS 11)."""
        self.node.executor.stall()
        first = self.node.begin(accepted(1))
        self.node.clock.advance(0)
        second = self.node.begin(accepted(2))
        self.node.executor.delay_s = 1.0
        self.node.executor.resume()
        self.node.clock.advance(1.0)
        self.assertEqual((first, second), (["done"], ["waits"]))
        self.node.clock.advance(1.0)
        self.assertEqual(second, ["done"])

    def test_promise_first(self) -> None:
        """In one group, both copies of the promise are synced before the log is touched."""
        steps: list[tuple[str, str]] = []
        disk = self.disk
        write_at, sync = disk.write_at, disk.sync
        self.patch(
            disk, "write_at", lambda name, *rest: (steps.append(("write", name)), write_at(name, *rest))
        )
        self.patch(disk, "sync", lambda name: (steps.append(("sync", name)), sync(name)))
        self.node.write(accepted(1), SavePromise(SECOND), accepted(2, SECOND))
        self.assertEqual(
            steps,
            [
                ("write", "promise.0"),
                ("sync", "promise.0"),
                ("write", "promise.1"),
                ("sync", "promise.1"),
                ("write", LOG),
                ("sync", LOG),
            ],
        )

    def test_queue_is_bounded(self) -> None:
        """Values beyond the queue's bound are refused as if the disk were full; a promise never is."""
        self.patch(self.node.storage, "_queue_max_bytes", 1000)
        outcomes = [self.node.begin(accepted(slot, size_bytes=400)) for slot in (1, 2, 3)]
        promise = self.node.begin(SavePromise(SECOND))
        self.node.clock.advance(0)
        self.node.clock.advance(0)
        self.assertEqual([outcome[0] for outcome in outcomes], ["done", "done", "StorageFull"])
        self.assertEqual((promise, self.node.write(accepted(3, size_bytes=400))), (["done"], "done"))


class CrashTests(SynchronousTestCase):
    """Crashes at every point: what was acknowledged is there, and nothing that was never written."""

    def script(
        self, disk: SimulatedDisk
    ) -> tuple[dict[int, int], ProposalID, dict[int, list[bytes]], ProposalID]:
        """Start, write over several segments, stop; what was acknowledged, and what was asked for."""
        node = Node(disk)
        asked: dict[int, list[bytes]] = {}
        acknowledged: dict[int, int] = {}
        promised = asked_promise = NO_BALLOT
        try:
            node.start()
        except StorageError:
            return acknowledged, promised, asked, asked_promise
        for round_number in range(1, 5):
            asked_promise = ProposalID(round_number, "A")
            records: list[Record] = [SavePromise(asked_promise)]
            slots = [round_number, round_number + 1, round_number + 2]
            for slot in slots:
                record = accepted(slot, asked_promise, 300 * round_number)
                records.append(record)
                asked.setdefault(slot, []).append(bytes(record.value))
            records.append(SaveIdentity(Identity("A", "one", CLUSTER, boot=1, formed=True)))
            node.storage.note_chosen(round_number)
            if node.write(*records) == "done":
                promised = asked_promise
                acknowledged.update({slot: len(asked[slot]) - 1 for slot in slots})
        node.close()
        return acknowledged, promised, asked, asked_promise

    def check(self, disk: SimulatedDisk, outcome: Any, context: object) -> None:
        """Start again, twice, and compare with what was acknowledged."""
        acknowledged, promised, asked, asked_promise = outcome
        node = Node(disk)
        found = node.start()
        self.assertTrue(promised <= found.promised <= asked_promise, context)
        contents = values(node.contents(found))
        for slot, newest in acknowledged.items():
            self.assertIn(contents.get(slot), asked[slot][newest:], (context, slot))
        for slot, data in contents.items():
            self.assertIn(data, asked[slot], (context, slot))
        node.write(SavePromise(ProposalID(9, "A")), accepted(found.chosen_upto + 1, ProposalID(9, "A")))
        disk.crash(Random(1))
        again = Node(disk).start()
        self.assertEqual(again.promised, ProposalID(9, "A"), context)
        self.assertEqual(again.entries[found.chosen_upto + 1].ballot, ProposalID(9, "A"), context)

    def count(self) -> int:
        """How many operations the script takes."""
        disk = SimulatedDisk()
        self.script(disk)
        return disk.operations

    def test_power_loss_at_every_operation(self) -> None:
        """Power goes before each single operation, with several fates of what was not synced."""
        for stop_after in range(self.count() + 1):
            for seed in range(12):
                disk = SimulatedDisk()
                disk.stop_after = stop_after
                outcome = self.script(disk)
                disk.crash(Random(seed))
                self.check(disk, outcome, (stop_after, seed))

    def test_kill_then_power_loss(self) -> None:
        """The process dies at each operation, starts again, and power goes: what it found is durable."""
        for stop_after in range(1, self.count() + 1):
            disk = SimulatedDisk()
            disk.stop_after = stop_after
            outcome = self.script(disk)
            disk.kill()
            found = Node(disk).start()
            disk.crash(Random(stop_after))
            again = Node(disk).start()
            self.assertEqual(
                again._replace(identity=found.identity, fresh=False), found._replace(fresh=False)
            )
            disk.crash(Random(stop_after))
            self.check(disk, outcome, stop_after)

    def test_crash_during_recovery(self) -> None:
        """Power goes at each operation of the start that repairs a torn log; the next start is as good."""
        for seed in range(8):
            for stop_after in range(40):
                disk = SimulatedDisk()
                disk.stop_after = self.count() - 6
                outcome = self.script(disk)
                disk.crash(Random(seed))
                disk.stop_after = disk.operations + stop_after
                try:
                    Node(disk).start()
                except StorageError:
                    disk.crash(Random(seed + 1))
                else:
                    disk.kill()
                self.check(disk, outcome, (seed, stop_after))

    @settings(max_examples=150, deadline=None)
    @given(
        groups=st.lists(
            st.lists(st.tuples(st.integers(1, 12), st.integers(0, 1500)), min_size=1, max_size=4),
            min_size=1,
            max_size=8,
        ),
        stops=st.lists(st.integers(0, 60), min_size=1, max_size=4),
        seed=st.integers(0, 1 << 32),
    )
    def test_random_groups_and_crashes(
        self, groups: list[list[tuple[int, int]]], stops: list[int], seed: int
    ) -> None:
        """Random groups, several lives, each ended by a crash at some operation."""
        random = Random(seed)
        disk = SimulatedDisk()
        written: dict[int, list[bytes]] = {}
        surely: dict[int, int] = {}
        for stop_after in stops:
            disk.stop_after = disk.operations + stop_after
            node = Node(disk)
            try:
                node.start()
            except StorageDamaged:
                raise
            except StorageError:
                disk.crash(random)
                continue
            for group in groups:
                for slot, size_bytes in group:
                    data = bytes(value(slot, size_bytes)) + b" " * len(written.setdefault(slot, []))
                    written[slot].append(data)
                records = [SaveChosen(slot, FIRST, value_of(written[slot][-1])) for slot, _ in group]
                if node.write(*records) == "done":
                    surely.update({slot: len(written[slot]) - 1 for slot, _ in group})
            disk.crash(random)
        node = Node(disk)
        contents = values(node.contents(node.start()))
        for slot, newest in surely.items():
            self.assertIn(contents.get(slot), written[slot][newest:])
        for slot, data in contents.items():
            self.assertIn(data, written[slot])

    def test_stale_tail_is_never_taken(self) -> None:
        """A whole record behind a torn one does not come back behind a new one of the torn one's size."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1))
        disk.kill()
        before = disk.snapshot()[LOG]
        node = Node(disk)
        node.start()
        node.write(accepted(2, size_bytes=520), accepted(3, size_bytes=520))
        disk.kill()
        torn_at = len(before.rstrip(b"\0")) // 8 * 8 + 8
        disk.overwrite(LOG, torn_at + 100, b"\xff")
        node = Node(disk)
        self.assertEqual(sorted(node.start().entries), [1])
        node.write(accepted(2, size_bytes=520))
        disk.crash(Random(0))
        self.assertEqual(sorted(Node(disk).start().entries), [1, 2])


def value_of(data: bytes) -> Any:
    """Bytes as a value."""
    return SaveChosen(1, FIRST, data).value  # type: ignore[arg-type]


class DamageTests(SynchronousTestCase):
    """Damage is noticed, or it is in the last, unacknowledged-looking group; never a wrong value."""

    def outcome(self, disk: SimulatedDisk) -> dict[int, bytes] | None:
        """What a start finds, None for `StorageDamaged`."""
        node = Node(disk)
        try:
            found = node.start()
        except StorageDamaged as error:
            self.assertNotIn("\n", str(error))
            return None
        self.assertEqual(found.promised, FIRST)
        return values(node.contents(found))

    def test_undamaged(self) -> None:
        """The log that the others damage is found whole, and has two segments."""
        disk, expected = small_log()
        self.assertEqual(self.outcome(disk), expected[-1])
        self.assertIn(segment_name(2), disk.names())

    def test_every_byte_flipped(self) -> None:
        """One flipped bit in any byte: damage is reported, or all is there, or the last group is dropped."""
        disk, expected = small_log()
        files = disk.snapshot()
        seen = {"damaged": 0, "whole": 0, "dropped": 0}
        for name, data in files.items():
            for offset in range(len(data)):
                if data[offset : offset + 64].count(0) == 64 and offset % 97:
                    continue  # the middle of nothing: a sample is enough
                disk.restore(files)
                disk.flip_bit(name, offset, offset % 8)
                found = self.outcome(disk)
                self.assertIn(found, (None, expected[3], expected[2], last_cut(expected)), (name, offset))
                seen["damaged" if found is None else "whole" if found == expected[3] else "dropped"] += 1
        self.assertTrue(all(seen.values()), seen)

    def test_flip_below_the_last_group_is_damage(self) -> None:
        """Each byte of a record that a later one reports as synced is damage when it is flipped."""
        disk, _ = small_log()
        files = disk.snapshot()
        end = len(files[LOG].rstrip(b"\0")) - HEADER_BYTES
        for offset in range(0, end, 7):
            disk.restore(files)
            disk.flip_bit(LOG, offset, 3)
            self.assertIsNone(self.outcome(disk), offset)

    def test_small_objects_survive_any_flip(self) -> None:
        """A flipped bit in one copy of identity or promise changes nothing that is found."""
        disk, expected = small_log()
        files = disk.snapshot()
        for name in ("identity.0", "identity.1", "promise.0", "promise.1"):
            for offset in range(len(files[name].rstrip(b"\0"))):
                disk.restore(files)
                disk.flip_bit(name, offset, offset % 8)
                self.assertEqual(self.outcome(disk), expected[-1], (name, offset))

    def test_lost_files(self) -> None:
        """A lost segment is damage; one lost copy of a small object is not; the lock file is made again."""
        disk, expected = small_log()
        files = disk.snapshot()
        for name in files:
            disk.restore(files)
            disk.lose(name)
            found = self.outcome(disk)
            self.assertEqual(found, None if name.startswith("log-") else expected[-1], name)

    def test_both_copies_lost(self) -> None:
        """Without both copies of the promise, or of the identity, it is damage, and not a new node."""
        for name in ("identity", "promise"):
            disk, _ = small_log()
            disk.lose(f"{name}.0")
            disk.lose(f"{name}.1")
            self.assertIsNone(self.outcome(disk))

    def test_cut_files(self) -> None:
        """A log segment that was cut anywhere is damage."""
        disk, _ = small_log()
        files = disk.snapshot()
        for name in (LOG, segment_name(2)):
            for size_bytes in range(0, len(files[name]), 333):
                disk.restore(files)
                disk.cut(name, size_bytes)
                self.assertIsNone(self.outcome(disk), (name, size_bytes))

    def test_old_copy_of_a_segment(self) -> None:
        """A segment put back from before the last start is noticed: identity says how far the log went."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1))
        old = disk.snapshot()
        node.write(accepted(2))
        node.close()
        node = Node(disk)
        node.start()
        node.close()
        disk.restore(disk.snapshot() | {LOG: old[LOG]})
        self.assertIsNone(self.outcome(disk))

    def test_zeroed_hole(self) -> None:
        """Zeros in the place of a synced record, with later ones behind, are damage and not the end."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1))
        start = len(disk.snapshot()[LOG].rstrip(b"\0"))
        node.write(accepted(2))
        end = len(disk.snapshot()[LOG].rstrip(b"\0"))
        node.write(accepted(3))
        disk.kill()
        disk.overwrite(LOG, start, bytes(end - start))
        self.assertIsNone(self.outcome(disk))

    def test_vote_above_the_promise(self) -> None:
        """A vote above the saved promise is damage: a promise was forgotten."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        old = disk.snapshot()
        node.write(SavePromise(FIRST), accepted(1))
        node.close()
        lost = {name: data for name, data in old.items() if name.startswith("promise")}
        disk.restore(disk.snapshot() | lost)
        error = self.assertRaises(StorageDamaged, Node(disk).start)
        self.assertIn("above the saved promise", str(error))

    def test_newer_version_is_not_damage(self) -> None:
        """A log of a later version is refused without being called damaged: nothing must repair it."""
        disk, _ = small_log()
        header = encode_record(1, 1, 1, 0, len(disk.snapshot()[LOG]), 99)
        disk.overwrite(LOG, 0, header)
        error = self.assertRaises(StorageError, Node(disk).start)
        self.assertNotIsInstance(error, StorageDamaged)
        self.assertIn("version 99", str(error))

    def test_foreign_directory(self) -> None:
        """A directory of something else is refused and left as it is."""
        disk = SimulatedDisk()
        disk.restore({"letter.txt": b"Dear ..."})
        error = self.assertRaises(StorageError, Node(disk).start)
        self.assertNotIsInstance(error, StorageDamaged)
        self.assertRaises(StorageError, Node(disk).storage.set_aside)
        self.assertEqual(disk.names(), ["letter.txt"])

    def test_wiped_is_fresh(self) -> None:
        """An empty directory is a new node: the rule of first formation deals with it."""
        disk, _ = small_log()
        disk.wipe()
        self.assertTrue(Node(disk).start().fresh)

    def test_read_back_damage(self) -> None:
        """An entry that rots while the node runs is `StorageDamaged` when it is read, and writing goes on."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1), accepted(2))
        disk.flip_bit(LOG, HEADER_BYTES + 20, 1)
        reading = node.storage.read_chosen(1, 2, 1000)
        node.clock.advance(0)
        self.failureResultOf(reading, StorageDamaged)
        self.assertEqual(node.write(accepted(3)), "done")

    def test_misplaced_record(self) -> None:
        """A whole record of another slot in the place of one is noticed when it is read."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1))
        disk.overwrite(LOG, HEADER_BYTES, encode_record(ACCEPTED, 1, 1, 0, 7, 1, b"A", bytes(value(1))))
        reading = node.storage.read_chosen(1, 1, 1000)
        node.clock.advance(0)
        self.failureResultOf(reading, StorageDamaged)


def last_cut(expected: list[dict[int, bytes]]) -> dict[int, bytes]:
    """The last group without its last record: the flip was in that one."""
    return {slot: data for slot, data in expected[-1].items() if slot != 6}


class FullDiskTests(SynchronousTestCase):
    """A full disk refuses writes, keeps what is stored, and writing goes on when there is room."""

    def setUp(self) -> None:
        """A node whose disk has no room for another segment."""
        self.disk = SimulatedDisk()
        self.node = Node(self.disk)
        self.node.start()
        self.node.write(SavePromise(FIRST))
        self.disk.capacity_bytes = self.disk.used_bytes

    def test_refused_then_goes_on(self) -> None:
        """What fits is written, what does not is refused whole, and with room it is written."""
        self.assertEqual(self.node.write(accepted(1, size_bytes=1000)), "done")
        self.assertEqual(self.node.write(accepted(2), accepted(3, size_bytes=5000)), "StorageFull")
        self.assertEqual(self.node.write(accepted(4)), "done")
        self.disk.capacity_bytes = None
        self.assertEqual(self.node.write(accepted(5, size_bytes=5000)), "done")
        self.node.close()
        self.assertEqual(sorted(Node(self.disk).start().entries), [1, 4, 5])

    def test_refused_in_the_middle_of_a_group(self) -> None:
        """Of one group, only the writes without room are refused, in order."""
        outcomes = [
            self.node.begin(accepted(slot, size_bytes=size))
            for slot, size in ((1, 10), (2, 5000), (3, 10), (4, 6000))
        ]
        self.node.clock.advance(0)
        self.node.clock.advance(0)
        self.assertEqual([outcome[0] for outcome in outcomes], ["done", "StorageFull", "done", "StorageFull"])
        self.node.close()
        self.assertEqual(sorted(Node(self.disk).start().entries), [1, 3])

    def test_refused_promise_takes_its_votes_along(self) -> None:
        """When a promise is refused with its write, a later vote under it is refused too."""
        refused = self.node.write(SavePromise(SECOND), accepted(1, SECOND, 5000))
        self.assertEqual((refused, self.node.write(accepted(2, SECOND))), ("StorageFull", "StorageFull"))
        self.assertEqual(self.node.write(SavePromise(SECOND), accepted(2, SECOND)), "done")
        self.node.close()
        found = Node(self.disk).start()
        self.assertEqual((found.promised, sorted(found.entries)), (SECOND, [2]))

    def test_chosen_upto_stops_at_what_was_refused(self) -> None:
        """How far slots are chosen is never recorded beyond a refused slot."""
        self.node.write(accepted(1))
        self.node.begin(accepted(2, size_bytes=5000))
        self.node.begin(accepted(3))
        self.node.storage.note_chosen(3)
        self.node.clock.advance(0)
        self.node.close()
        found = Node(self.disk).start()
        self.assertEqual((found.chosen_upto, sorted(found.entries)), (1, [3]))

    def test_promise_needs_no_room(self) -> None:
        """A promise is saved on a disk without a byte of room."""
        self.assertEqual(self.node.write(SavePromise(SECOND)), "done")

    def test_no_room_at_the_start(self) -> None:
        """A new node without room says so, and makes nothing."""
        disk = SimulatedDisk()
        disk.capacity_bytes = 100
        self.assertRaises(StorageFull, Node(disk).start)
        self.assertEqual(disk.names(), [])

    def test_segment_is_reserved_ahead(self) -> None:
        """Once a segment is half full, the next is reserved without any write waiting for it."""
        self.disk.capacity_bytes = None
        self.node.write(accepted(1, size_bytes=2500))
        self.node.clock.advance(0)
        self.assertIn(draft_name(2), self.disk.names())
        self.disk.capacity_bytes = 0
        self.assertEqual(self.node.write(accepted(2, size_bytes=2500)), "done")


class FailureTests(SynchronousTestCase):
    """A failed write or sync ends writing for good."""

    def setUp(self) -> None:
        """A started node."""
        self.disk = SimulatedDisk()
        self.node = Node(self.disk)
        self.node.start()
        self.node.write(SavePromise(FIRST), accepted(1))

    def test_sync_is_never_retried(self) -> None:
        """After one failed sync everything fails, also once the disk works again; a restart goes on."""
        self.disk.fail_sync = True
        waiting = [self.node.begin(accepted(2)), self.node.begin(SavePromise(SECOND))]
        self.node.clock.advance(0)
        self.node.clock.advance(0)
        self.assertEqual(waiting, [["StorageFailed"], ["StorageFailed"]])
        self.disk.fail_sync = False
        self.assertEqual(self.node.write(accepted(3)), "StorageFailed")
        self.node.close()
        self.disk.crash(Random(4))
        self.assertIn(1, Node(self.disk).start().entries)

    def test_message(self) -> None:
        """The error is one line that names the place and says what to do."""
        self.disk.fail_sync = True
        writing = self.node.storage.write([accepted(2)])
        self.node.clock.advance(0)
        self.node.clock.advance(0)
        error = str(self.failureResultOf(writing, StorageFailed).value)
        self.assertIn("/simulated", error)
        self.assertIn("Input/output error", error)
        self.assertNotIn("\n", error)

    def test_unsynced_pages_that_look_clean(self) -> None:
        """What a failed sync left in memory is written again at the next start, not only synced."""
        self.disk.fail_sync = True
        self.node.write(accepted(2))
        self.disk.kill()
        self.disk.fail_sync = False
        for file in self.disk._files.values():
            file.unsynced.clear()  # the system believes that these pages are written; they are not
        found = Node(self.disk).start()
        self.disk.crash(Random(0))
        self.assertEqual(sorted(Node(self.disk).start().entries), sorted(found.entries))
        self.assertEqual(sorted(found.entries), [1, 2])

    def test_read_only_disk(self) -> None:
        """A disk that became read-only fails writes; a start on it is one line, and no damage."""
        self.disk.read_only = True
        self.assertEqual(self.node.write(accepted(2)), "StorageFailed")
        self.node.close()
        error = self.assertRaises(StorageError, Node(self.disk).start)
        self.assertNotIsInstance(error, StorageDamaged)
        self.assertIn("Read-only", str(error))

    def test_unreadable_disk(self) -> None:
        """A disk that cannot be read gives `StorageDamaged` or `StorageError`, and releases the lock."""
        self.node.close()
        self.disk.fail_read = True
        self.assertRaises(StorageError, Node(self.disk).start)
        self.disk.fail_read = False
        self.assertEqual(Node(self.disk).start().promised, FIRST)

    def test_failed_node_can_close(self) -> None:
        """Closing after a failure releases the lock and reports nothing twice."""
        self.disk.fail_sync = True
        self.node.write(accepted(2))
        self.disk.fail_sync = False
        closing = self.node.storage.close()
        for _ in range(3):
            self.node.clock.advance(0)
        self.successResultOf(closing)
        self.assertEqual(Node(self.disk).start().promised, FIRST)


class SegmentTests(SynchronousTestCase):
    """Many segments, large records, slot ranges."""

    def test_record_larger_than_a_segment(self) -> None:
        """A record larger than a segment gets a segment of its size."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        outcome = node.write(SavePromise(FIRST), accepted(1), accepted(2, size_bytes=1 << 20), accepted(3))
        self.assertEqual(outcome, "done")
        self.assertEqual(len(node.read_all(3)[2][1]), len(bytes(value(2, 1 << 20))))
        node.close()
        self.assertEqual(sorted(Node(disk).start().entries), [1, 2, 3])

    def test_one_group_over_many_segments(self) -> None:
        """A group that needs many segments is whole after a restart; each segment knows its slots."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), *(accepted(slot, size_bytes=1000) for slot in range(1, 41)))
        node.close()
        node = Node(disk)
        self.assertEqual(sorted(node.start().entries), list(range(1, 41)))
        segments = node.storage._backend._log._segments  # type: ignore[attr-defined]
        self.assertGreater(len(segments), 10)
        ranges = [(segment.lowest_slot, segment.highest_slot) for segment in segments]
        self.assertEqual((ranges[0][0], ranges[-1][1]), (1, 40))
        self.assertTrue(all(later[0] == earlier[1] + 1 for earlier, later in pairwise(ranges)))

    def test_leftover_reservation_is_removed(self) -> None:
        """A reserved segment that was never used is not taken for a part of the log."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1, size_bytes=2500))
        node.clock.advance(0)
        self.assertIn(draft_name(2), disk.names())
        disk.kill()
        self.assertEqual(sorted(Node(disk).start().entries), [1])
        self.assertNotIn(draft_name(2), disk.names())

    def test_saved_votes_keep_kind_and_ballot(self) -> None:
        """Ballots with long, non-ASCII ids come back as they were."""
        ballot = ProposalID((1 << 61) + 5, "ä" * 32)
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(ballot), SaveAccepted((1 << 40), ballot, value(1)))
        node.close()
        found = Node(disk).start()
        self.assertEqual(found.entries[1 << 40].ballot, ballot)
