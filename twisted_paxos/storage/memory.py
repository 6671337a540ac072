"""``memory:``: keeps everything until the process ends; a new incarnation at each start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.messages import Entry, SlotEntry
from twisted_paxos.core.records import Identity, Record, Recovered
from twisted_paxos.errors import StorageFull
from twisted_paxos.storage.executor import TurnExecutor
from twisted_paxos.storage.queued import IStorageBackend, PromiseRule, QueuedStorage, Write, log_records
from twisted_paxos.storage.snapshot import ISnapshotSink, SnapshotInfo


@implementer(ISnapshotSink)
class MemorySnapshot:
    """A snapshot in memory, complete or not.

    Args:
        slot: of which slot it is.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.pieces: list[bytes] = []

    def put(self, piece: bytes) -> Iterator[None]:
        """See `ISnapshotSink`."""
        self.pieces.append(piece)
        yield

    def seal(self) -> Iterator[None]:
        """See `ISnapshotSink`."""
        yield

    def discard(self) -> Iterator[None]:
        """See `ISnapshotSink`."""
        self.pieces.clear()
        yield


@implementer(IStorageBackend)
class MemoryBackend:
    """The half of `MemoryStorage` that keeps the records.

    Args:
        uid: the node's id.
    """

    wants_upkeep = False

    def __init__(self, uid: str) -> None:
        self.log_bytes = 0
        self.log_start = 1
        self.snapshot: SnapshotInfo | None = None
        self._snapshots: dict[int, list[bytes]] = {}
        self._uid = uid
        self._entries: dict[int, Entry] = {}
        self._promised = NO_BALLOT
        self._rule = PromiseRule(NO_BALLOT)

    def recover(self, word: str, cluster: str, lost: bool = False) -> Recovered:
        """See `IAcceptorStorage`: always fresh."""
        identity = Identity(self._uid, word, cluster, lost=lost).started(word)
        return Recovered(identity=identity, fresh=True)

    def append(self, records: Sequence[Record], chosen_upto: int) -> None:
        """See `IStorageBackend`: there is no such short way."""

    def commit(self, writes: Sequence[Write], chosen_upto: int) -> list[StorageFull | None]:
        """See `IStorageBackend`."""
        return [self._take(write) for write in writes]

    def _take(self, write: Write) -> StorageFull | None:
        if isinstance(write, StorageFull):
            return write
        after = self._rule.after(write, self._promised)
        if isinstance(after, StorageFull):
            return after
        self._promised = after
        for record in log_records(write):
            if record.slot < self.log_start:
                continue  # a snapshot stands for it
            replaced = self._entries.get(record.slot)
            self._entries[record.slot] = Entry(record.ballot, record.value)
            self.log_bytes += memoryview(record.value).nbytes
            self.log_bytes -= memoryview(replaced.value).nbytes if replaced else 0
        return None

    def read(self, from_slot: int, upto_slot: int, limit_bytes: int) -> list[SlotEntry]:
        """See `IStorageBackend`."""
        found: list[SlotEntry] = []
        for slot in range(from_slot, upto_slot + 1):
            entry = self._entries.get(slot)
            if entry is None:
                break
            limit_bytes -= memoryview(entry.value).nbytes
            if found and limit_bytes < 0:
                break
            found.append(SlotEntry(slot, entry.ballot, entry.value))
        return found

    def draft(self, slot: int) -> MemorySnapshot:
        """See `ISnapshotBackend`."""
        return MemorySnapshot(slot)

    def adopt(self, sink: MemorySnapshot, chosen_upto: int) -> SnapshotInfo:
        """See `ISnapshotBackend`."""
        info = SnapshotInfo(sink.slot, len(sink.pieces), sum(map(len, sink.pieces)))
        self._snapshots[sink.slot] = sink.pieces
        if sink.slot > chosen_upto:
            self._begin_at(sink.slot + 1)
        self.snapshot = info
        return info

    def read_piece(self, slot: int, number: int) -> bytes:
        """See `ISnapshotBackend`."""
        return self._snapshots[slot][number]

    def drop_snapshot(self, slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`."""
        del self._snapshots[slot]
        yield

    def compact(self, upto_slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`."""
        self._begin_at(upto_slot + 1)
        yield

    def _begin_at(self, slot: int) -> None:
        for passed in [passed for passed in self._entries if passed < slot]:
            self.log_bytes -= memoryview(self._entries.pop(passed).value).nbytes
        self.log_start = max(self.log_start, slot)

    def upkeep(self) -> str:
        """See `IStorageBackend`: never anything to do."""
        return ""

    def set_aside(self) -> str:
        """See `IAcceptorStorage`: there is nothing to move."""
        return "memory:"

    def close(self) -> None:
        """See `IStorageBackend`: what was kept goes with the process."""


class MemoryStorage(QueuedStorage):
    """``memory:`` as `IAcceptorStorage` and `ISnapshotStorage`.

    Args:
        uid: the node's id.
        reactor: in whose later turns writes complete.
    """

    def __init__(self, uid: str, reactor: IReactorTime) -> None:
        super().__init__(MemoryBackend(uid), TurnExecutor(reactor), "memory:")
