"""``file:``: group commit, full and failing disks, segments."""

from __future__ import annotations

import errno
import gc
import os
import sys
from itertools import pairwise
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import FIRST, SECOND, accepted, value
from tests.storage.node import LOG, Node
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.records import (
    SaveAccepted,
    SavePromise,
)
from twisted_paxos.errors import StorageDamaged, StorageError, StorageFailed, StorageFull
from twisted_paxos.storage.format import draft_name
from twisted_paxos.storage.log import FILL_STEP_BYTES, SegmentedLog
from twisted_paxos.testing.storage import SimulatedDisk


def started(segment_bytes: int) -> tuple[Node, list[tuple[str, int, int]]]:
    """A node that has promised, and where zeros are written: name, offset, size in bytes."""
    disk = SimulatedDisk()
    fills: list[tuple[str, int, int]] = []
    fill = disk.fill

    def noted(name: str, offset: int, size_bytes: int) -> None:
        fills.append((name, offset, size_bytes))
        fill(name, offset, size_bytes)

    disk.fill = noted  # type: ignore[method-assign]
    node = Node(disk, segment_bytes)
    node.start()
    node.write(SavePromise(FIRST))
    return node, fills


def run_all(node: Node) -> None:
    """Let the executor run until nothing is left for it."""
    while node.clock.getDelayedCalls():
        node.clock.advance(node.executor.delay_s)


def log_of(node: Node) -> SegmentedLog:
    """The log behind a node's storage."""
    return node.storage._backend._log  # type: ignore[attr-defined, no-any-return]


class GroupCommitTests(SynchronousTestCase):
    """Who shares a sync with whom."""

    def setUp(self) -> None:
        """A started node that has promised."""
        self.disk = SimulatedDisk()
        self.node = Node(self.disk, 1 << 20)
        self.node.start()
        self.node.write(SavePromise(FIRST))

    def test_one_turn_shares_one_sync(self) -> None:
        """A hundred writes of one turn: the first goes at once, the others share one sync behind it."""
        self.node.executor.delay_s = 1.0
        before = self.disk.operations
        outcomes = [self.node.begin(accepted(slot)) for slot in range(1, 101)]
        self.node.clock.advance(1.0)
        self.assertEqual(self.disk.operations - before, 2)
        self.assertEqual([outcome[0] for outcome in outcomes[:2]], ["done", "waits"])
        self.node.clock.advance(1.0)
        self.assertEqual(self.disk.operations - before, 4)
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

    def test_unsynced_promise_that_looks_clean(self) -> None:
        """A copy whose sync failed, and that looks fine, is written again before it is relied upon."""
        for seed in range(20):
            self.setUp()
            sync = self.disk.sync

            def fail(name: str, sync: Any = sync) -> None:
                if name == "promise.1":
                    raise OSError(5, "Input/output error")
                sync(name)

            self.disk.sync = fail  # type: ignore[method-assign]
            self.assertEqual(self.node.write(SavePromise(SECOND)), "StorageFailed")
            self.disk.sync = sync  # type: ignore[method-assign]
            self.disk.kill()
            for file in self.disk._files.values():
                file.unsynced.clear()
            node = Node(self.disk)
            self.assertEqual(node.start().promised, SECOND)
            self.disk.stop_after = self.disk.operations + 1
            node.write(SavePromise(ProposalID(3, "C")))
            self.disk.crash(Random(seed))
            self.assertGreaterEqual(Node(self.disk).start().promised, SECOND)

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

    def test_a_close_that_nobody_waits_for_ends_quietly(self) -> None:
        """A process that is over before its storage is closed leaves no complaint of a dropped coroutine."""
        complaints: list[Any] = []
        self.patch(sys, "unraisablehook", complaints.append)
        node = Node(SimulatedDisk())
        node.start()
        self.patch(node.executor, "run", lambda work: Deferred())
        closing = node.storage.close()
        self.assertNoResult(closing)
        del node, closing
        gc.collect()
        self.assertEqual(complaints, [])

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

    def test_zeros_only_for_small_records(self) -> None:
        """The next segment is filled with zeros after small records, and only reserved after large ones."""
        node, filled = started(1 << 20)
        for slot in range(1, 10):
            node.write(accepted(slot, size_bytes=60_000))
        run_all(node)
        step = FILL_STEP_BYTES
        self.assertEqual(filled, [(draft_name(2), 0, step), (draft_name(2), step, step)])
        for slot in range(10, 20):
            node.write(accepted(slot, size_bytes=300_000))
            run_all(node)
        filled.clear()
        for slot in range(20, 30):
            node.write(accepted(slot, size_bytes=300_000))
            run_all(node)
        self.assertEqual(filled, [])
        for slot in range(30, 90):
            node.write(accepted(slot, size_bytes=60_000))
        run_all(node)
        self.assertEqual(filled[-1][0], draft_name(log_of(node).last.id + 1))

    def half_filled(self) -> tuple[Node, list[tuple[str, int, int]]]:
        """A node with 36 slots in its first segment, which writes zeros for the second: two steps so far."""
        node, filled = started(4 << 20)
        for slot in range(1, 35):
            node.write(accepted(slot, size_bytes=60_000))
        self.assertEqual(filled, [])
        node.executor.delay_s = 1.0
        node.begin(*(accepted(slot, size_bytes=60_000) for slot in (35, 36)))
        while len(filled) < 2:
            node.clock.advance(1.0)
        return node, filled

    def test_filled_step_by_step(self) -> None:
        """Records go in between; a segment that is needed early gets the rest of its zeros at once."""
        node, filled = self.half_filled()
        between = node.begin(accepted(37, size_bytes=60_000))
        while between == ["waits"]:
            node.clock.advance(1.0)
        self.assertLess(len(filled), 5)
        writing = [node.begin(accepted(slot, size_bytes=60_000)) for slot in range(38, 77)]
        run_all(node)
        self.assertEqual(writing, [["done"]] * 39)
        self.assertEqual(log_of(node).last.id, 2)
        step = FILL_STEP_BYTES
        self.assertEqual(filled, [(draft_name(2), place * step, step) for place in range(8)])
        self.assertFalse(log_of(node).wants_upkeep)
        node.disk.kill()
        self.assertEqual(sorted(Node(node.disk).start().entries), list(range(1, 77)))

    def test_larger_than_what_was_filled(self) -> None:
        """A record that needs a larger segment than the one being filled gets one."""
        node, _ = self.half_filled()
        node.begin(accepted(37, size_bytes=5 << 20))
        run_all(node)
        self.assertGreater(log_of(node).last.size_bytes, 5 << 20)
        self.assertFalse(log_of(node).wants_upkeep)
        node.disk.kill()
        self.assertEqual(sorted(Node(node.disk).start().entries), list(range(1, 38)))

    def test_no_room_for_zeros(self) -> None:
        """Room that was reserved and is not there: the operator is warned, and writing goes on."""
        node, _ = self.half_filled()
        fill = node.disk.fill

        def full(name: str, offset: int, size_bytes: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        node.disk.fill = full  # type: ignore[method-assign]
        writing = [node.begin(accepted(slot, size_bytes=60_000)) for slot in range(37, 50)]
        run_all(node)
        self.assertEqual(writing, [["done"]] * 13)
        self.assertNotIn(draft_name(2), node.disk.names())
        refused = [node.begin(accepted(slot, size_bytes=60_000)) for slot in range(50, 90)]
        run_all(node)
        self.assertEqual(refused[-1], ["StorageFull"])
        self.assertNotIn(draft_name(2), node.disk.names())
        node.disk.fill = fill  # type: ignore[method-assign]
        after = node.begin(accepted(90, size_bytes=60_000))
        run_all(node)
        self.assertEqual((after, log_of(node).last.id), (["done"], 2))
        node.disk.kill()
        self.assertEqual(max(Node(node.disk).start().entries), 90)

    def test_no_room_for_the_last_of_several(self) -> None:
        """A write over three segments, of which the last has no room for its zeros, leaves nothing half."""
        node, filled = started(1 << 20)
        fill = node.disk.fill

        def full(name: str, offset: int, size_bytes: int) -> None:
            if name == draft_name(3):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fill(name, offset, size_bytes)

        node.disk.fill = full  # type: ignore[method-assign]
        slots = [accepted(slot, size_bytes=60_000) for slot in range(1, 41)]
        self.assertEqual(node.write(*slots), "StorageFull")
        run_all(node)
        self.assertIn(draft_name(2), node.disk.names())
        self.assertNotIn(draft_name(3), node.disk.names())
        self.assertEqual(len(filled), 2)
        self.assertEqual([node.write(slot) for slot in slots[:20]], ["done"] * 20)
        node.disk.kill()
        self.assertEqual(sorted(Node(node.disk).start().entries), list(range(1, 21)))

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
