"""`DurableObjectHandler`: crashes at each step, each copy damaged."""

from __future__ import annotations

from random import Random

from msgspec import Struct
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.durable import BLOCK_BYTES, OBJECT_HEADER, DurableObjectHandler, encode_copy
from twisted_paxos.testing.storage import SimulatedDisk


class Thing(Struct, frozen=True):
    """An object to keep."""

    number: int
    text: str = ""


def handler(disk: SimulatedDisk) -> DurableObjectHandler[Thing]:
    """A new handler, as after a restart."""
    return DurableObjectHandler(disk, "thing", Thing)


class DurableObjectHandlerTests(SynchronousTestCase):
    """What `load` finds after everything that can happen to two files."""

    def setUp(self) -> None:
        """A disk with the first save."""
        self.disk = SimulatedDisk()
        self.disk.format(handler(self.disk).initial_files(Thing(0)))

    def saved(self, *numbers: int) -> DurableObjectHandler[Thing]:
        """Load, then save these."""
        thing = handler(self.disk)
        thing.load()
        for number in numbers:
            thing.save(Thing(number))
        return thing

    def test_round_trip(self) -> None:
        """The last save is loaded."""
        self.assertEqual(handler(self.disk).load(), Thing(0))
        self.saved(1, 2, 3)
        self.assertEqual(handler(self.disk).load(), Thing(3))

    def test_grows_and_shrinks(self) -> None:
        """An object larger than a block is kept, and a small one after it."""
        thing = self.saved()
        thing.save(Thing(1, "x" * 3 * BLOCK_BYTES))
        self.assertEqual(handler(self.disk).load().text, "x" * 3 * BLOCK_BYTES)
        thing.save(Thing(2))
        self.assertEqual(handler(self.disk).load(), Thing(2))

    def test_each_save_syncs_both(self) -> None:
        """Once `save` has returned, a crash takes nothing back, whichever copy is lost after it."""
        for lost in ("thing.0", "thing.1"):
            for seed in range(10):
                self.setUp()
                self.saved(1, 2)
                self.disk.crash(Random(seed))
                self.disk.lose(lost)
                self.assertEqual(handler(self.disk).load(), Thing(2))

    def test_crash_at_each_step(self) -> None:
        """A crash in a save leaves the old or the new object, which the next crash does not change."""
        outcomes = set()
        for steps in range(5):
            for seed in range(40):
                self.setUp()
                thing = self.saved(1)
                self.disk.stop_after = self.disk.operations + steps
                completed = True
                try:
                    thing.save(Thing(2))
                except OSError:
                    completed = False
                self.disk.crash(Random(seed))
                found = handler(self.disk).load()
                self.assertIn(found, [Thing(2)] if completed else [Thing(1), Thing(2)])
                outcomes.add(found.number)
                self.disk.crash(Random(seed))
                self.assertEqual(handler(self.disk).load(), found)
        self.assertEqual(outcomes, {1, 2})

    def test_crash_while_a_copy_is_repaired(self) -> None:
        """A crash in the repair of a damaged copy, at each step, loses nothing."""
        for damaged in ("thing.0", "thing.1"):
            for steps in range(5):
                for seed in range(10):
                    self.setUp()
                    self.saved(1, 2)
                    self.disk.flip_bit(damaged, 30, 1)
                    self.disk.stop_after = self.disk.operations + steps
                    try:
                        handler(self.disk).load()
                    except OSError:
                        self.disk.crash(Random(seed))
                    self.disk.stop_after = None
                    self.assertEqual(handler(self.disk).load(), Thing(2))

    def test_one_damaged_copy(self) -> None:
        """Any flipped bit in one copy forgets nothing; the copy is repaired, so the other may go next."""
        for damaged, other in (("thing.0", "thing.1"), ("thing.1", "thing.0")):
            self.setUp()
            self.saved(1, 2)
            used_bytes = len(self.disk.read(damaged).rstrip(b"\0"))
            for offset in range(used_bytes):
                self.disk.flip_bit(damaged, offset, offset % 8)
                self.assertEqual(handler(self.disk).load(), Thing(2), offset)
                self.assertEqual(self.disk.read(damaged), self.disk.read(other))

    def test_cut_or_lost_copy(self) -> None:
        """A copy that is missing, empty or cut is made again from the other."""
        for size_bytes in (None, 0, 3, OBJECT_HEADER.size, OBJECT_HEADER.size + 7):
            self.setUp()
            self.saved(1)
            if size_bytes is None:
                self.disk.lose("thing.0")
            else:
                self.disk.cut("thing.0", size_bytes)
            self.assertEqual(handler(self.disk).load(), Thing(1))
            self.disk.crash(Random(1))
            self.disk.lose("thing.1")
            self.assertEqual(handler(self.disk).load(), Thing(1))

    def test_both_unusable(self) -> None:
        """Both damaged or missing, in any combination, is damage: never an older object, never a new node."""
        for first in ("flip", "lose"):
            for second in ("flip", "lose"):
                self.setUp()
                self.saved(1, 2)
                for name, what in (("thing.0", first), ("thing.1", second)):
                    if what == "flip":
                        self.disk.flip_bit(name, 20, 2)
                    else:
                        self.disk.lose(name)
                error = self.assertRaises(StorageDamaged, handler(self.disk).load)
                self.assertNotIn("\n", str(error))

    def test_lost_saves(self) -> None:
        """A copy that is more than one save behind means that confirmed writes were lost."""
        self.disk.overwrite("thing.0", 0, encode_copy("thing", 5, b'{"number":5}'))
        error = self.assertRaises(StorageDamaged, handler(self.disk).load)
        self.assertIn("4 saves behind", str(error))

    def test_two_contents_of_one_save(self) -> None:
        """Two good copies of one save with different contents are damage."""
        self.disk.overwrite("thing.0", 0, encode_copy("thing", 1, b'{"number":7}'))
        self.assertRaises(StorageDamaged, handler(self.disk).load)

    def test_file_of_another_object(self) -> None:
        """A copy under another object's name is no copy of this one."""
        self.disk.overwrite("thing.1", 0, encode_copy("other", 2, b'{"number":7}'))
        self.assertEqual(handler(self.disk).load(), Thing(0))

    def test_valid_checksum_wrong_content(self) -> None:
        """Content of another type under a right checksum is one clear error."""
        for name in ("thing.0", "thing.1"):
            self.disk.overwrite(name, 0, encode_copy("thing", 2, b'{"number":"x"}'))
        self.assertRaises(StorageDamaged, handler(self.disk).load)

    def test_newer_version(self) -> None:
        """A later format version is refused, and not called damage."""
        self.patch(__import__("twisted_paxos.storage.durable", fromlist=["x"]), "OBJECT_VERSION", 2)
        data = encode_copy("thing", 2, b'{"number":7}')
        self.patch(__import__("twisted_paxos.storage.durable", fromlist=["x"]), "OBJECT_VERSION", 1)
        self.disk.overwrite("thing.1", 0, data)
        error = self.assertRaises(StorageError, handler(self.disk).load)
        self.assertNotIsInstance(error, StorageDamaged)

    def test_crash_while_an_interrupted_save_is_completed(self) -> None:
        """Before the older copy is touched, the newer one is on the disk and not only in memory."""
        for seed in range(40):
            self.setUp()
            thing = self.saved(1)
            self.disk.stop_after = self.disk.operations + 1
            self.assertRaises(OSError, thing.save, Thing(2))
            self.disk.kill()
            self.disk.stop_after = self.disk.operations + 2
            self.assertRaises(OSError, handler(self.disk).load)
            self.disk.crash(Random(seed))
            self.assertEqual(handler(self.disk).load(), Thing(2))

    def test_unsynced_newer_copy_is_synced_before_use(self) -> None:
        """A save that reached one copy's memory only is made durable before anyone learns of it."""
        thing = self.saved(1)
        self.disk.stop_after = self.disk.operations + 1
        self.assertRaises(OSError, thing.save, Thing(2))
        self.disk.kill()
        self.assertEqual(handler(self.disk).load(), Thing(2))
        for seed in range(20):
            self.disk.crash(Random(seed))
            self.assertEqual(handler(self.disk).load(), Thing(2))
