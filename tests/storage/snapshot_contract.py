"""What every `ISnapshotStorage` must do; each provider's tests mix these in."""

from __future__ import annotations

from typing import Any

from zope.interface.verify import verifyClass, verifyObject

from tests.storage.contract import CLUSTER, FIRST, SECOND, StorageCase, accepted, value
from twisted_paxos.core.records import SaveChosen, SavePromise
from twisted_paxos.errors import StorageError, StorageFailed
from twisted_paxos.interfaces import INodeStorage, ISnapshotReader, ISnapshotStorage, ISnapshotWriter

PIECES = [b"first", b"", b"x" * 300_000, b"\x00\xff" * 70_000, b"y" * (1 << 20), b"last"]
"""Empty, small, larger than one step, the largest."""


def tell(slot: int, pieces: int = 3) -> list[bytes]:
    """Pieces that tell which snapshot they are of."""
    return [b"%d of %d " % (number, slot) * 20 for number in range(pieces)]


class SnapshotContract(StorageCase):
    """Over `StorageCase.make`."""

    def write_snapshot(self, storage: Any, slot: int, pieces: list[bytes] | None = None) -> None:
        """Write and finish one."""
        writer = storage.begin_snapshot(slot)
        for piece in tell(slot) if pieces is None else pieces:
            self.settle(writer.write(piece))
        self.settle(writer.finish())

    def read_snapshot(self, reader: Any) -> list[bytes]:
        """All pieces."""
        return [self.settle(reader.read(number)) for number in range(reader.pieces)]

    def newest(self, storage: Any) -> list[bytes]:
        """The pieces of the newest snapshot."""
        reader = storage.open_snapshot()
        try:
            return self.read_snapshot(reader)
        finally:
            reader.close()

    def filled(self, upto_slot: int, size_bytes: int = 10) -> Any:
        """Storage with slots 1 to ``upto_slot``, all noted as chosen."""
        storage = self.started()
        storage.write([SavePromise(FIRST)])
        for slot in range(1, upto_slot + 1):
            last = storage.write([accepted(slot, size_bytes=size_bytes)])
            if slot % 10 == 0:
                self.settle(last)
        self.settle(last)
        storage.note_chosen(upto_slot)
        return storage

    def slots(self, storage: Any, from_slot: int, upto_slot: int) -> list[int]:
        """Which slots can be read."""
        found = self.settle(storage.read_chosen(from_slot, upto_slot, 1 << 20))
        return [entry.slot for entry in found]

    def slow(self, storage: Any) -> None:
        """From now on each job takes a turn of a millisecond."""
        storage._executor.delay_s = 0.001

    def test_snapshot_interfaces(self) -> None:
        """Storage, writer and reader provide what they say."""
        storage = self.started()
        assert verifyObject(ISnapshotStorage, storage)
        assert verifyObject(INodeStorage, storage)
        assert verifyClass(ISnapshotStorage, type(storage))
        assert verifyObject(ISnapshotWriter, storage.begin_snapshot(5))
        self.write_snapshot(storage, 5)
        assert verifyObject(ISnapshotReader, storage.open_snapshot())

    def test_no_snapshot(self) -> None:
        """At first there is none."""
        storage = self.started()
        self.assertEqual((storage.snapshot_slot, storage.snapshot_bytes), (0, 0))
        self.assertIsNone(storage.open_snapshot())

    def test_snapshot_round_trip(self) -> None:
        """Pieces come back as they were written, in any order, each as often as wanted."""
        storage = self.filled(3)
        self.write_snapshot(storage, 3, PIECES)
        self.assertEqual((storage.snapshot_slot, storage.snapshot_bytes), (3, sum(map(len, PIECES))))
        reader = storage.open_snapshot()
        self.assertEqual((reader.slot, reader.pieces), (3, len(PIECES)))
        self.assertEqual(reader.size_bytes, storage.snapshot_bytes)
        self.assertEqual(self.read_snapshot(reader), PIECES)
        for number in (5, 2, 2, 0):
            self.assertEqual(self.settle(reader.read(number)), PIECES[number])

    def test_empty_snapshot(self) -> None:
        """A snapshot without pieces is one."""
        storage = self.filled(1)
        self.write_snapshot(storage, 1, [])
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (1, []))

    def test_nothing_before_finish(self) -> None:
        """What is being written does not show, and the older one stays the newest."""
        storage = self.filled(9)
        self.write_snapshot(storage, 4)
        writer = storage.begin_snapshot(9)
        self.settle(writer.write(b"half"))
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (4, tell(4)))
        self.settle(writer.finish())
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (9, [b"half"]))

    def test_never_fires_inside_snapshot_calls(self) -> None:
        """What touches the disk fires in a later turn."""
        storage = self.filled(2)
        writer = storage.begin_snapshot(2)
        for call in (lambda: writer.write(b"x"), writer.finish, lambda: storage.open_snapshot().read(0)):
            deferred = call()
            self.assertFalse(deferred.called)
            self.settle(deferred)
        self.assertFalse((deferred := storage.compact(1)).called)
        self.settle(deferred)

    def test_reader_keeps_what_it_opened(self) -> None:
        """A reader goes on reading its snapshot although newer ones replace it."""
        storage = self.filled(9)
        self.write_snapshot(storage, 3)
        early, twice = storage.open_snapshot(), storage.open_snapshot()
        self.write_snapshot(storage, 6)
        middle = storage.open_snapshot()
        self.write_snapshot(storage, 9)
        self.assertEqual(self.read_snapshot(early), tell(3))
        early.close()
        early.close()
        self.assertEqual(self.read_snapshot(middle), tell(6))
        self.assertEqual(self.read_snapshot(twice), tell(3))
        self.assertEqual(self.newest(storage), tell(9))

    def test_reader_errors(self) -> None:
        """A piece that is not there, and a closed reader, are the caller's mistakes."""
        storage = self.filled(3)
        self.write_snapshot(storage, 3)
        reader = storage.open_snapshot()
        for number in (-1, 3):
            self.failureResultOf(reader.read(number), ValueError)  # type: ignore[attr-defined]
        reader.close()
        self.failureResultOf(reader.read(0), ValueError)  # type: ignore[attr-defined]

    def test_abort(self) -> None:
        """After `abort` the writer is of no use, and the next one of the same slot is whole."""
        storage = self.filled(5)
        writer = storage.begin_snapshot(5)
        self.settle(writer.write(b"given up"))
        writer.abort()
        self.settle_failure(writer.write(b"more"), StorageError)
        self.settle_failure(writer.finish(), StorageError)
        self.write_snapshot(storage, 5)
        writer.abort()
        self.assertEqual(self.newest(storage), tell(5))

    def test_abort_while_writing(self) -> None:
        """A write that is under way fails, and nothing of it is in the next one."""
        storage = self.filled(5)
        writer = storage.begin_snapshot(5)
        self.slow(storage)
        writing = writer.write(b"x" * (1 << 20))
        self.clock.advance(0.001)
        writer.abort()
        self.settle_failure(writing, StorageError)
        self.write_snapshot(storage, 5)
        self.assertEqual(self.newest(storage), tell(5))

    def test_begin_aborts(self) -> None:
        """A new snapshot ends the one that was under way."""
        storage = self.filled(5)
        first = storage.begin_snapshot(4)
        self.settle(first.write(b"first"))
        second = storage.begin_snapshot(5)
        self.settle_failure(first.write(b"more"), StorageError)
        self.settle(second.write(b"second"))
        first.abort()
        self.settle(second.finish())
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (5, [b"second"]))

    def test_not_above_the_newest(self) -> None:
        """Of a slot that is in a snapshot already there is nothing to write; one under way goes on."""
        storage = self.filled(9)
        self.write_snapshot(storage, 5)
        going = storage.begin_snapshot(9)
        for slot in (4, 5):
            writer = storage.begin_snapshot(slot)
            self.settle_failure(writer.write(b"x"), StorageError)
            self.settle_failure(writer.finish(), StorageError)
            writer.abort()
        self.settle(going.write(b"goes on"))
        self.settle(going.finish())
        self.assertEqual(self.newest(storage), [b"goes on"])

    def test_overtaken_while_finishing(self) -> None:
        """One that was begun while a newer one became complete is refused, and leaves nothing."""
        storage = self.filled(9)
        older: list[Any] = []
        adopt = storage._backend.adopt

        def while_adopting(sink: Any, chosen_upto: int) -> Any:
            self.patch(storage._backend, "adopt", adopt)  # type: ignore[attr-defined]
            older.append(storage.begin_snapshot(5))
            return adopt(sink, chosen_upto)

        self.patch(storage._backend, "adopt", while_adopting)  # type: ignore[attr-defined]
        self.write_snapshot(storage, 9)
        self.settle(older[0].write(b"older"))
        self.settle_failure(older[0].finish(), StorageError)
        self.assertEqual((storage.snapshot_slot, self.newest(storage)), (9, tell(9)))

    def test_piece_too_large(self) -> None:
        """A piece over 1 MiB is refused, and the snapshot goes on."""
        storage = self.filled(1)
        writer = storage.begin_snapshot(1)
        self.settle_failure(writer.write(bytes((1 << 20) + 1)), ValueError)
        self.settle(writer.write(b"x"))
        self.settle(writer.finish())
        self.assertEqual(self.newest(storage), [b"x"])

    def test_one_piece_at_a_time(self) -> None:
        """A second write before the first is done is the caller's mistake, and does no harm."""
        storage = self.filled(1)
        writer = storage.begin_snapshot(1)
        first = writer.write(b"x" * 300_000)
        self.settle_failure(writer.write(b"y"), ValueError)
        self.settle(first)
        self.settle(writer.finish())
        self.assertEqual(self.newest(storage), [b"x" * 300_000])

    def test_log_goes_on_meanwhile(self) -> None:
        """Between the steps of one large piece, log writes are synced."""
        storage = self.filled(2)
        writer = storage.begin_snapshot(2)
        self.slow(storage)
        writing = writer.write(b"x" * (1 << 20))
        record = storage.write([accepted(3)])
        self.settle(record)
        self.assertFalse(writing.called)
        self.settle(writing)

    def test_compact_needs_a_snapshot(self) -> None:
        """Nothing is let go above the newest snapshot: it would be lost."""
        storage = self.filled(9)
        self.settle_failure(storage.compact(1), ValueError)
        self.write_snapshot(storage, 5)
        writer = storage.begin_snapshot(9)
        self.settle(writer.write(b"x"))
        self.settle_failure(storage.compact(6), ValueError)
        self.assertEqual(self.slots(storage, 1, 9), list(range(1, 10)))

    def test_compact(self) -> None:
        """Slots up to the snapshot go, as far as is practical; the rest can be read, and writing goes on."""
        storage = self.filled(60, 400)
        before_bytes = storage.log_bytes
        self.write_snapshot(storage, 50)
        self.assertEqual(self.slots(storage, 1, 60), list(range(1, 61)))
        start = self.settle(storage.compact(50))
        self.assertTrue(1 <= start <= 51)
        self.assertEqual(self.slots(storage, start, 60), list(range(start, 61)))
        if start > 1:
            self.assertLess(storage.log_bytes, before_bytes)
            self.assertEqual(self.slots(storage, start - 1, 60), [])
        self.assertEqual(self.settle(storage.compact(50)), start)
        self.settle(storage.write([accepted(slot) for slot in (61, 63)]))
        self.assertEqual(self.slots(storage, 51, 70), list(range(51, 62)))

    def test_install(self) -> None:
        """A snapshot from a peer stands for what is not stored; accepted entries above it stay."""
        storage = self.filled(5)
        self.settle(storage.write([accepted(slot) for slot in (6, 7, 99, 100, 101, 105)]))
        self.write_snapshot(storage, 100)
        storage.note_chosen(100)
        self.assertEqual(self.slots(storage, 101, 105), [101])
        for from_slot in (1, 5, 6, 99, 100):
            self.assertEqual(self.slots(storage, from_slot, 105), [], from_slot)
        self.settle(storage.write([SaveChosen(slot, SECOND, value(slot)) for slot in (102, 103, 104)]))
        self.assertEqual(self.slots(storage, 101, 105), [101, 102, 103, 104, 105])
        self.assertEqual(self.settle(storage.compact(100)), 101)

    def test_late_writes_below_an_install(self) -> None:
        """What is still written below an installed snapshot is void, and no error."""
        storage = self.filled(5)
        self.write_snapshot(storage, 100)
        self.settle(storage.write([accepted(50), accepted(6), SaveChosen(7, FIRST, value(7)), accepted(102)]))
        self.settle(storage.write([accepted(101)]))
        self.assertEqual(self.slots(storage, 101, 110), [101, 102])
        self.assertEqual(self.slots(storage, 6, 6), [])

    def test_snapshot_after_close(self) -> None:
        """After `close` every call fails instead of waiting for ever."""
        storage = self.filled(5)
        self.write_snapshot(storage, 4)
        writer, reader = storage.begin_snapshot(5), storage.open_snapshot()
        self.settle(writer.write(b"x"))
        self.settle(storage.close())
        self.settle_failure(writer.write(b"y"), StorageError)
        self.settle_failure(reader.read(0), StorageFailed)
        self.settle_failure(storage.compact(4), StorageFailed)
        reader.close()


class DurableSnapshotContract(SnapshotContract):
    """For providers that survive a restart."""

    def test_snapshot_survives(self) -> None:
        """After a restart the newest snapshot is there, and how far slots are chosen is never below it."""
        storage = self.filled(9)
        self.write_snapshot(storage, 4)
        self.write_snapshot(storage, 7, PIECES)
        storage, found = self.restarted(storage)
        self.assertEqual((found.snapshot_slot, found.chosen_upto, found.log_start), (7, 9, 1))
        self.assertEqual((storage.snapshot_slot, storage.snapshot_bytes), (7, sum(map(len, PIECES))))
        self.assertEqual(self.newest(storage), PIECES)
        self.write_snapshot(storage, 9)
        self.assertEqual(self.newest(storage), tell(9))

    def test_unfinished_is_gone(self) -> None:
        """What was being written at a restart is no snapshot, and the same slot can be written again."""
        storage = self.filled(5)
        writer = storage.begin_snapshot(5)
        self.settle(writer.write(b"half"))
        storage, found = self.restarted(storage)
        self.assertEqual((found.snapshot_slot, storage.open_snapshot()), (0, None))
        self.write_snapshot(storage, 5)
        storage, _ = self.restarted(storage)
        self.assertEqual(self.newest(storage), tell(5))

    def test_compaction_survives(self) -> None:
        """After a restart the log begins where compaction left it, and goes on."""
        storage = self.filled(60, 400)
        self.write_snapshot(storage, 50)
        start = self.settle(storage.compact(50))
        storage, found = self.restarted(storage)
        self.assertEqual((found.log_start, found.chosen_upto, found.snapshot_slot), (start, 60, 50))
        self.assertEqual(self.slots(storage, start, 60), list(range(start, 61)))
        self.settle(storage.write([accepted(61)]))
        self.write_snapshot(storage, 60)
        later = self.settle(storage.compact(60))
        self.assertTrue(start <= later <= 61)
        storage, found = self.restarted(storage)
        self.assertEqual((found.log_start, found.snapshot_slot), (later, 60))
        self.assertEqual(sorted(found.entries), [61])

    def test_install_survives(self) -> None:
        """After a restart an installed snapshot still stands for what is not stored, noted or not."""
        for noted in (False, True):
            self.setUp()
            storage = self.filled(5)
            self.settle(storage.write([accepted(slot) for slot in (6, 99, 100, 101, 105)]))
            self.write_snapshot(storage, 100)
            if noted:
                storage.note_chosen(100)
            storage, found = self.restarted(storage)
            self.assertEqual((found.snapshot_slot, found.chosen_upto, found.log_start), (100, 100, 101))
            self.assertEqual(sorted(found.entries), [101, 105])
            self.assertEqual(self.slots(storage, 99, 101), [])
            self.settle(storage.write([accepted(slot) for slot in (102, 103, 104)]))
            storage.note_chosen(104)
            _, found = self.restarted(storage)
            self.assertEqual((found.chosen_upto, sorted(found.entries)), (104, [105]))

    def test_noted_late(self) -> None:
        """A snapshot of slots that are stored, but not recorded as chosen, proves them chosen."""
        storage = self.filled(5)
        self.settle(storage.write([accepted(6), accepted(7)]))
        storage.note_chosen(6)
        self.write_snapshot(storage, 6)
        storage, found = self.restarted(storage)
        self.assertEqual((found.chosen_upto, found.log_start, sorted(found.entries)), (6, 1, [7]))
        self.assertEqual(self.slots(storage, 1, 6), [1, 2, 3, 4, 5, 6])

    def test_set_aside_takes_the_snapshot_along(self) -> None:
        """New storage in the place of what was set aside has no snapshot."""
        storage = self.filled(5)
        self.write_snapshot(storage, 5)
        self.settle(storage.close())
        storage.set_aside()
        found = self.make().recover("two", CLUSTER, lost=True)
        self.assertEqual((found.snapshot_slot, found.chosen_upto, found.log_start), (0, 0, 1))
