"""``file:``: damaged, lost and foreign files."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.storage.contract import FIRST, accepted, value
from tests.storage.node import LOG, Node, small_log, values
from twisted_paxos.core.records import (
    SavePromise,
)
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.format import (
    ACCEPTED,
    CHOSEN_UPTO,
    HEADER_BYTES,
    encode_record,
    segment_name,
)
from twisted_paxos.testing.storage import SimulatedDisk


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

    def test_gap_below_chosen_upto(self) -> None:
        """A slot that is missing though it is recorded as chosen is damage."""
        disk = SimulatedDisk()
        node = Node(disk)
        node.start()
        node.write(SavePromise(FIRST), accepted(1))
        end = len(disk.snapshot()[LOG].rstrip(b"\0"))
        node.close()
        disk.overwrite(LOG, (end + 7) // 8 * 8, encode_record(CHOSEN_UPTO, 1, 2, 1, 2))
        error = self.assertRaises(StorageDamaged, Node(disk).start)
        self.assertIn("slot 2 is missing", str(error))

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
