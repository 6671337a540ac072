"""``file:`` with snapshots and compaction: crashes, damage, full and failing disks, room taken."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import FIRST, accepted, value
from tests.storage.node import Node
from twisted_paxos.core.records import Recovered, SaveChosen, SavePromise
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.format import segment_id, segment_name
from twisted_paxos.storage.snapshotfile import snapshot_name, snapshot_slot
from twisted_paxos.testing.storage import SimulatedDisk

INSTALLED = 40
"""The slot of the snapshot that comes from a peer."""


class SnapshotNode(Node):
    """A `Node` with snapshots; every call returns ``"done"`` or the name of the error."""

    def outcome(self, deferred: Any) -> Any:
        """What came of it; ``"waits"`` is never expected."""
        outcome: list[Any] = ["waits"]
        deferred.addCallbacks(
            lambda result: outcome.__setitem__(0, "done" if result is None else result),
            lambda failure: outcome.__setitem__(0, failure.type.__name__),
        )
        self.clock.advance(0)
        return outcome[0]

    def snapshot(self, slot: int, size_bytes: int = 100) -> str:
        """Write one that tells its slot; the first error, or ``"done"``."""
        writer = self.storage.begin_snapshot(slot)
        for piece in pieces_of(slot, size_bytes):
            outcome = self.outcome(writer.write(piece))
            if outcome != "done":
                writer.abort()
                self.clock.advance(0)
                return outcome
        return self.outcome(writer.finish())

    def close(self) -> None:
        """Close, whatever state the disk is in."""
        self.outcome(self.storage.close())

    def compact(self, upto_slot: int) -> Any:
        """The new start, or the name of the error."""
        return self.outcome(self.storage.compact(upto_slot))

    def read_snapshot(self) -> list[bytes]:
        """The newest one's pieces; the name of the error in the place of one that cannot be read."""
        reader = self.storage.open_snapshot()
        if reader is None:
            return []
        pieces = [self.outcome(reader.read(number)) for number in range(reader.pieces)]
        reader.close()
        return pieces

    def read_from(self, start: int, upto_slot: int) -> dict[int, bytes]:
        """The values from ``start`` on."""
        found: list[Any] = []
        self.storage.read_chosen(start, upto_slot, 1 << 30).addCallback(found.extend)
        self.clock.advance(0)
        return {entry.slot: bytes(entry.value) for entry in found}

    def snapshot_names(self) -> list[str]:
        """The snapshot files there are, complete or not."""
        return [name for name in self.disk.names() if snapshot_slot(name) is not None]


def pieces_of(slot: int, size_bytes: int = 100) -> list[bytes]:
    """Three pieces that tell their slot."""
    return [b"%d/%d " % (slot, number) + b"s" * size_bytes for number in range(3)]


def stopped_node(installed: bool = False) -> SimulatedDisk:
    """A node that has written, made a snapshot at 15 of 20 slots, compacted, and stopped."""
    disk = SimulatedDisk()
    node = SnapshotNode(disk)
    node.start()
    node.write(SavePromise(FIRST), *(accepted(slot, size_bytes=500) for slot in range(1, 21)))
    node.storage.note_chosen(20)
    node.snapshot(INSTALLED if installed else 15)
    node.compact(INSTALLED if installed else 15)
    if installed:
        node.write(accepted(INSTALLED + 1))
    node.close()
    return disk


class CrashTests(SynchronousTestCase):
    """Power goes before each single operation of writing, snapshot, compaction and installation."""

    def script(self, disk: SimulatedDisk) -> dict[str, Any]:
        """A life with everything in it; what it was told."""
        told: dict[str, Any] = {"slots": 0, "snapshot": 0, "tried": 0, "installed": False, "above": False}
        node = SnapshotNode(disk)
        try:
            node.start()
        except StorageError:
            return told
        node.write(SavePromise(FIRST))
        for upto_slot in (10, 20):
            records = [accepted(slot, size_bytes=500) for slot in range(upto_slot - 9, upto_slot + 1)]
            if node.write(*records) == "done":
                told["slots"] = upto_slot
                node.storage.note_chosen(upto_slot)
            told["tried"] = upto_slot - 5
            if node.snapshot(upto_slot - 5) == "done":
                told["snapshot"] = upto_slot - 5
                node.compact(upto_slot - 5)
        told["above"] = node.write(accepted(INSTALLED + 2)) == "done"
        told["tried"] = INSTALLED
        if node.snapshot(INSTALLED) == "done":
            told["snapshot"], told["installed"] = INSTALLED, True
            node.storage.note_chosen(INSTALLED)
            node.compact(INSTALLED)
        node.close()
        return told

    def check(self, disk: SimulatedDisk, told: dict[str, Any], context: object) -> Recovered:
        """Start again: the snapshot and the log together hold all that was acknowledged."""
        node = SnapshotNode(disk)
        found = node.start()
        self.assertIn(found.snapshot_slot, range(told["snapshot"], told["tried"] + 1), context)
        self.assertEqual(node.storage.snapshot_slot, found.snapshot_slot, context)
        expected = pieces_of(found.snapshot_slot) if found.snapshot_slot else []
        self.assertEqual(node.read_snapshot(), expected, context)
        self.assertTrue(found.log_start <= found.snapshot_slot + 1, context)
        self.assertTrue(found.chosen_upto >= found.snapshot_slot, context)
        if told["above"]:
            self.assertIn(INSTALLED + 2, found.entries, context)
        if not told["installed"] and found.snapshot_slot != INSTALLED:
            stored = node.read_from(found.log_start, 20)
            self.assertEqual(
                sorted(stored), list(range(found.log_start, max(stored, default=0) + 1)), context
            )
            self.assertTrue(max(stored, default=0) >= told["slots"], context)
            for slot, data in stored.items():
                self.assertEqual(data, bytes(value(slot, 500)), context)
        else:
            self.assertEqual(found.log_start, INSTALLED + 1, context)
        self.assertLessEqual(len(node.snapshot_names()), 1, context)
        return found

    def goes_on(self, disk: SimulatedDisk, context: object) -> None:
        """The storage takes a promise, entries, a snapshot and a compaction as if nothing had been."""
        node = SnapshotNode(disk)
        node.start()
        entries = [SaveChosen(slot, FIRST, value(slot, 500)) for slot in range(1, 61)]
        self.assertEqual(node.write(SavePromise(FIRST), *entries), "done", context)
        node.storage.note_chosen(60)
        self.assertEqual(node.snapshot(60), "done", context)
        start = node.compact(60)
        self.assertGreater(start, 50, context)
        disk.crash(Random(7))
        again = SnapshotNode(disk)
        found = again.start()
        self.assertEqual((found.log_start, found.chosen_upto, found.snapshot_slot), (start, 60, 60), context)
        self.assertEqual(sorted(again.read_from(start, 70)), list(range(start, 61)), context)

    def count(self) -> int:
        """How many operations the script takes."""
        disk = SimulatedDisk()
        told = self.script(disk)
        self.assertEqual((told["slots"], told["snapshot"], told["above"]), (20, INSTALLED, True))
        return disk.operations

    def test_power_loss_at_every_operation(self) -> None:
        """Whatever becomes of what was not synced, the next start finds a consistent state, and goes on."""
        for stop_after in range(self.count() + 1):
            for seed in range(8):
                disk = SimulatedDisk()
                disk.stop_after = stop_after
                told = self.script(disk)
                disk.crash(Random(seed))
                self.check(disk, told, (stop_after, seed))
                disk.crash(Random(seed))
                self.goes_on(disk, (stop_after, seed))

    def test_kill_then_power_loss(self) -> None:
        """The process dies at each operation, starts again, and power goes: what it found is durable."""
        for stop_after in range(1, self.count() + 1, 2):
            for seed in range(4):
                disk = SimulatedDisk()
                disk.stop_after = stop_after
                told = self.script(disk)
                disk.kill()
                found = self.check(disk, told, stop_after)
                disk.crash(Random(seed))
                again = self.check(disk, told, (stop_after, seed))
                self.assertEqual(again._replace(identity=found.identity, fresh=found.fresh), found)

    def test_crash_during_recovery(self) -> None:
        """Power goes at each operation of a start that has leftovers to remove; the next one is as good."""
        total = self.count()
        for first_stop in range(total - 90, total, 9):
            for stop_after in range(0, 30, 3):
                disk = SimulatedDisk()
                disk.stop_after = first_stop
                told = self.script(disk)
                disk.crash(Random(first_stop))
                disk.stop_after = disk.operations + stop_after
                try:
                    SnapshotNode(disk).start()
                except StorageError:
                    disk.crash(Random(stop_after))
                else:
                    disk.kill()
                self.check(disk, told, (first_stop, stop_after))


class StaleEntriesTests(SynchronousTestCase):
    """What an installed snapshot makes void never comes back."""

    def test_stale_votes_below_an_install(self) -> None:
        """Votes that were never chosen are not handed out as chosen, before and after a restart."""
        disk = SimulatedDisk()
        node = SnapshotNode(disk)
        node.start()
        node.write(SavePromise(FIRST), *(accepted(slot) for slot in range(1, 11)))
        self.assertEqual(node.snapshot(8), "done")
        node.storage.note_chosen(8)
        for _ in range(2):
            self.assertEqual((node.read_from(1, 10), sorted(node.read_from(9, 10))), ({}, [9, 10]))
            node.close()
            node = SnapshotNode(disk)
            found = node.start()
            self.assertEqual((found.chosen_upto, found.log_start), (8, 9))
            self.assertEqual(sorted(found.entries), [9, 10])

    def test_catching_up_above_the_promise(self) -> None:
        """Killed while it catches up, before anything was noted, a node finds what it learnt."""
        disk = SimulatedDisk()
        node = SnapshotNode(disk)
        node.start()
        high = FIRST._replace(number=99)
        node.write(SavePromise(FIRST), accepted(1))
        node.write(*(SaveChosen(slot, high, value(slot)) for slot in range(2, 6)))
        disk.kill()
        found = SnapshotNode(disk).start()
        self.assertEqual((found.chosen_upto, found.entries, found.promised), (5, {}, FIRST))


class DamageTests(SynchronousTestCase):
    """A damaged or lost snapshot, or log, is noticed."""

    def started(self, disk: SimulatedDisk) -> tuple[SnapshotNode, Recovered] | None:
        """A start; None when it says `StorageDamaged`."""
        node = SnapshotNode(disk)
        try:
            return node, node.start()
        except StorageDamaged as error:
            self.assertNotIn("\n", str(error))
            self.assertIn("/simulated", str(error))
            return None

    def test_undamaged(self) -> None:
        """What the others damage is whole, and the log below the snapshot is gone."""
        node, found = self.started(stopped_node())  # type: ignore[misc]
        self.assertEqual((found.snapshot_slot, found.chosen_upto), (15, 20))
        self.assertGreater(found.log_start, 7)
        self.assertEqual(node.read_snapshot(), pieces_of(15))

    def test_every_byte_flipped(self) -> None:
        """A flipped bit in any byte of a snapshot: the start, or the read of that piece, says so."""
        disk = stopped_node()
        files = disk.snapshot()
        name = snapshot_name(15)
        seen = {"start": 0, "read": 0}
        for offset in range(len(files[name])):
            disk.restore(files)
            disk.flip_bit(name, offset, offset % 8)
            started = self.started(disk)
            if started is None:
                seen["start"] += 1
                continue
            pieces = started[0].read_snapshot()
            self.assertEqual(pieces.count("StorageDamaged"), 1, offset)  # type: ignore[arg-type]
            self.assertTrue(set(pieces) <= {"StorageDamaged", *pieces_of(15)}, offset)
            seen["read"] += 1
        self.assertTrue(all(seen.values()), seen)

    def test_every_length(self) -> None:
        """A snapshot cut short anywhere is none, and neither is one with something behind it."""
        disk = stopped_node()
        files = disk.snapshot()
        name = snapshot_name(15)
        for size_bytes in range(len(files[name])):
            disk.restore(files)
            disk.cut(name, size_bytes)
            self.assertIsNone(self.started(disk), size_bytes)
        disk.restore(files | {name: files[name] + bytes(512)})
        self.assertIsNone(self.started(disk))

    def test_damage_while_it_runs(self) -> None:
        """A piece that rots, or cannot be read, is an error of that read only."""
        disk = stopped_node()
        node, _ = self.started(disk)  # type: ignore[misc]
        disk.flip_bit(snapshot_name(15), 40, 0)
        self.assertEqual(node.read_snapshot(), ["StorageDamaged", *pieces_of(15)[1:]])
        disk.fail_read = True
        self.assertEqual(node.read_snapshot(), ["StorageUnreadable"] * 3)
        disk.fail_read = False
        self.assertEqual(node.write(accepted(21)), "done")

    def test_lost_snapshot(self) -> None:
        """A lost snapshot cannot pass for a short log, nor an old one for the newest."""
        for installed in (False, True):
            disk = stopped_node(installed)
            name = snapshot_name(INSTALLED if installed else 15)
            files = disk.snapshot()
            disk.lose(name)
            self.assertIsNone(self.started(disk))
            disk.restore(files)
            disk.lose(name)
            disk.restore(disk.snapshot() | {snapshot_name(3): files[name]})
            self.assertIsNone(self.started(disk))

    def test_wrong_slot(self) -> None:
        """A snapshot under the name of another one is none."""
        disk = stopped_node()
        files = disk.snapshot()
        other = stopped_node(installed=True).snapshot()[snapshot_name(INSTALLED)]
        disk.restore(files | {snapshot_name(15): other})
        self.assertIsNone(self.started(disk))

    def test_lost_snapshot_with_a_whole_log(self) -> None:
        """As long as the log has everything, a damaged or lost snapshot is dropped, and made again."""
        for damage in ("lose", "flip"):
            disk = SimulatedDisk()
            node = SnapshotNode(disk)
            node.start()
            node.write(SavePromise(FIRST), *(accepted(slot) for slot in range(1, 10)))
            node.storage.note_chosen(5)
            node.snapshot(5)
            node.close()
            if damage == "lose":
                disk.lose(snapshot_name(5))
            else:
                disk.flip_bit(snapshot_name(5), 3, 1)
            node, found = self.started(disk)  # type: ignore[misc]
            self.assertEqual((found.snapshot_slot, found.chosen_upto, found.log_start), (0, 5, 1))
            self.assertEqual((node.storage.open_snapshot(), node.snapshot_names()), (None, []))
            self.assertEqual(node.snapshot(5), "done")
            node.close()
            self.assertEqual(SnapshotNode(disk).start().snapshot_slot, 5)

    def test_lost_segment(self) -> None:
        """After compaction, each lost segment is damage, the first ones too."""
        disk = stopped_node()
        files = disk.snapshot()
        segments = [name for name in files if segment_id(name)]
        self.assertGreater(segment_id(segments[0]), 1)
        for name in segments:
            disk.restore(files)
            disk.lose(name)
            self.assertIsNone(self.started(disk), name)

    def test_base(self) -> None:
        """One damaged copy of the base changes nothing; without both, the log cannot be trusted."""
        disk = stopped_node()
        files = disk.snapshot()
        for name in ("base.0", "base.1"):
            for offset in range(len(files[name].rstrip(b"\0"))):
                disk.restore(files)
                disk.flip_bit(name, offset, offset % 8)
                node, found = self.started(disk)  # type: ignore[misc]
                self.assertEqual((found.snapshot_slot, node.read_snapshot()), (15, pieces_of(15)))
        disk.restore(files)
        disk.lose("base.0")
        disk.lose("base.1")
        self.assertIsNone(self.started(disk))

    def test_old_base(self) -> None:
        """The base of an earlier time asks for segments that are gone: damage, not a short log."""
        disk = SimulatedDisk()
        node = SnapshotNode(disk)
        node.start()
        node.close()
        old = {name: data for name, data in disk.snapshot().items() if name.startswith("base")}
        disk = stopped_node()
        disk.restore(disk.snapshot() | old)
        self.assertIsNone(self.started(disk))

    def test_log_wiped_but_snapshot_there(self) -> None:
        """A new log beside an old snapshot and base is damage."""
        disk = stopped_node()
        files = disk.snapshot()
        fresh = SimulatedDisk()
        SnapshotNode(fresh).start()
        for name in [name for name in files if segment_id(name)]:
            del files[name]
        disk.restore(files | {segment_name(1): fresh.snapshot()[segment_name(1)]})
        self.assertIsNone(self.started(disk))

    def test_newer_version_is_not_damage(self) -> None:
        """A snapshot of a later format is refused without being called damaged."""
        from twisted_paxos.storage.snapshotfile import HEAD, encode_frame

        disk = stopped_node()
        disk.overwrite(snapshot_name(15), 0, encode_frame(HEAD, 15, 99))
        error = self.assertRaises(StorageError, SnapshotNode(disk).start)
        self.assertNotIsInstance(error, StorageDamaged)
        self.assertIn("version 99", str(error))


class FaultTests(SynchronousTestCase):
    """Full and failing disks."""

    def setUp(self) -> None:
        """A node with a snapshot at 5 of 10 slots."""
        self.disk = SimulatedDisk()
        self.node = SnapshotNode(self.disk, 1 << 14)
        self.node.start()
        self.node.write(SavePromise(FIRST), *(accepted(slot) for slot in range(1, 11)))
        self.node.storage.note_chosen(10)
        self.node.snapshot(5)

    def test_full_disk(self) -> None:
        """Without room the snapshot is refused and its file goes; the log and the older one are as before."""
        used_bytes = self.disk.used_bytes
        for room_bytes in (0, 10, 40, 200, 700, 5000, 40_000):
            self.disk.capacity_bytes = used_bytes + room_bytes
            self.assertEqual(self.node.snapshot(9, 20_000), "StorageFull", room_bytes)
            self.assertEqual(self.node.snapshot_names(), [snapshot_name(5)])
            self.assertEqual(self.disk.used_bytes, used_bytes)
            self.assertEqual(self.node.write(accepted(10)), "done")
        self.assertEqual(self.node.read_snapshot(), pieces_of(5))
        self.disk.capacity_bytes = None
        self.assertEqual(self.node.snapshot(9, 20_000), "done")

    def test_full_disk_at_the_end(self) -> None:
        """No room for the last bytes is the same."""
        writer = self.node.storage.begin_snapshot(9)
        self.assertEqual(self.node.outcome(writer.write(b"x")), "done")
        self.disk.capacity_bytes = self.disk.used_bytes
        self.assertEqual(self.node.outcome(writer.finish()), "StorageFull")
        writer.abort()
        self.node.clock.advance(0)
        self.assertEqual(
            (self.node.snapshot_names(), self.node.storage.snapshot_slot), ([snapshot_name(5)], 5)
        )

    def test_failing_sync(self) -> None:
        """A sync that fails while a snapshot is written ends the node, as any other does."""
        self.disk.fail_sync = True
        self.assertEqual(self.node.snapshot(9), "StorageFailed")
        self.disk.fail_sync = False
        self.assertEqual(self.node.write(accepted(11)), "StorageFailed")
        self.node.close()
        found = SnapshotNode(self.disk).start()
        self.assertEqual((found.snapshot_slot, sorted(found.entries)), (5, [6, 7, 8, 9, 10]))

    def test_leftovers_are_removed(self) -> None:
        """What nothing names goes at a start: drafts, snapshots that do not count, old segments."""
        self.node.close()
        files = self.disk.snapshot()
        leftovers = {f"{snapshot_name(9)}.tmp": b"half", snapshot_name(7): b"x", snapshot_name(2): b"old"}
        self.disk.restore(files | leftovers)
        node = SnapshotNode(self.disk)
        self.assertEqual(node.start().snapshot_slot, 5)
        self.assertEqual(node.snapshot_names(), [snapshot_name(5)])

    def test_large_files_go_in_steps(self) -> None:
        """A large file is cut down piece by piece before it is removed, so no sync waits long."""
        writer = self.node.storage.begin_snapshot(9)
        for _ in range(40):
            self.node.outcome(writer.write(bytes(1 << 20)))
        sizes: list[int] = []
        truncate = self.disk.truncate
        self.patch(self.disk, "truncate", lambda name, size: (sizes.append(size), truncate(name, size)))
        writer.abort()
        self.node.clock.advance(0)
        self.assertEqual([size >> 20 for size in sizes], [24, 8])
        self.assertEqual(self.node.snapshot_names(), [snapshot_name(5)])


class RoomTests(SynchronousTestCase):
    """How much room is taken."""

    def test_disk_use_is_bounded(self) -> None:
        """Under endless writes with snapshots, disk use stays under twice the state and a few segments."""
        disk = SimulatedDisk()
        node = SnapshotNode(disk, 1 << 14)
        node.start()
        node.write(SavePromise(FIRST))
        state_bytes, log_limit_bytes, highest = 60_000, 5 << 14, 0
        for slot in range(1, 3001):
            node.write(accepted(slot, size_bytes=400))
            node.storage.note_chosen(slot)
            if node.storage.log_bytes > log_limit_bytes:
                self.assertEqual(node.snapshot(slot, state_bytes // 3), "done")
                node.compact(slot)
            highest = max(highest, disk.used_bytes)
        self.assertGreater(node.storage.snapshot_slot, 2500)
        self.assertLess(highest, 2 * state_bytes + log_limit_bytes + (4 << 14))
        self.assertLess(len(node.storage._backend._log.index), 400)  # type: ignore[attr-defined]
        disk.kill()
        found = SnapshotNode(disk, 1 << 14).start()
        self.assertEqual((found.chosen_upto, found.entries), (2999, {3000: found.entries[3000]}))

    def test_slow_reader_keeps_its_snapshot_only(self) -> None:
        """A snapshot in use is kept until its reader closes; those in between are not."""
        disk = SimulatedDisk()
        node = SnapshotNode(disk)
        node.start()
        node.write(SavePromise(FIRST), *(accepted(slot) for slot in range(1, 10)))
        node.storage.note_chosen(9)
        node.snapshot(3)
        reader = node.storage.open_snapshot()
        for slot in (5, 7, 9):
            node.snapshot(slot)
        self.assertEqual(node.snapshot_names(), [snapshot_name(3), snapshot_name(9)])
        reader.close()  # type: ignore[union-attr]
        node.clock.advance(0)
        self.assertEqual(node.snapshot_names(), [snapshot_name(9)])
