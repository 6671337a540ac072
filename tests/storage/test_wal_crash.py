"""``file:``: crashes at every point."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import CLUSTER, FIRST, accepted, value
from tests.storage.node import LOG, Node, values
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.records import (
    Identity,
    Record,
    SaveAccepted,
    SaveIdentity,
    SavePromise,
)
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.testing.storage import SimulatedDisk


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
            for seed in range(6):
                disk = SimulatedDisk()
                disk.stop_after = stop_after
                outcome = self.script(disk)
                disk.kill()
                found = Node(disk).start()._replace(fresh=False)
                disk.crash(Random(seed))
                again = Node(disk).start()
                self.assertEqual(again._replace(identity=found.identity), found)
                disk.crash(Random(seed))
                self.check(disk, outcome, (stop_after, seed))

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
                records: list[Record] = [SavePromise(FIRST)]
                records += [SaveAccepted(slot, FIRST, Raw(written[slot][-1])) for slot, _ in group]
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
