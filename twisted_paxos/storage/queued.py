"""What all providers share: one write queue with group commit, and the rules on promises.

While one group is being written, everything that arrives waits and goes together in the next; when
nothing runs, a group starts at once: the node gathers what a turn of the reactor brings in one call.
Each Deferred belongs to the group that wrote its records, and to no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute, implementer

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.core.records import (
    Identity,
    Record,
    Recovered,
    SaveAccepted,
    SaveChosen,
    SaveIdentity,
    SavePromise,
)
from twisted_paxos.errors import (
    StorageDamaged,
    StorageError,
    StorageFailed,
    StorageForeign,
    StorageFull,
    StorageUnreadable,
)
from twisted_paxos.interfaces import IDiskExecutor, INodeStorage
from twisted_paxos.storage.disk import reason
from twisted_paxos.storage.log import Append
from twisted_paxos.storage.snapshot import ISnapshotBackend, SnapshotReader, Snapshots, SnapshotWriter

log = Logger()

QUEUE_MAX_BYTES = 256 << 20
"""Values that may wait for the disk; a write beyond it is refused as if the disk were full."""

T = TypeVar("T")
LogRecord: TypeAlias = SaveAccepted | SaveChosen
Write: TypeAlias = Sequence[Record] | StorageFull


class IStorageBackend(ISnapshotBackend):
    """The blocking half of a provider. After `recover`, all but `append` runs on the executor's thread."""

    log_bytes: int = Attribute("See `IAcceptorStorage`.")
    wants_upkeep: bool = Attribute("Whether `upkeep` has something to do; read from the reactor's thread.")

    def recover(word: str, cluster: str, lost: bool) -> Recovered:
        """See `IAcceptorStorage`; holds nothing open when it raises."""

    def commit(writes: Sequence[Write], chosen_upto: int) -> list[StorageFull | None]:
        """Write and sync; per write None, or why nothing of it is stored. Anything raised is final.

        A write that is a `StorageFull` was refused before; it stays so.
        """

    def append(records: Sequence[Record], chosen_upto: int) -> Append | None:
        """What `commit` of one write would do, where that is a single write and sync at the end of a file.

        Called on the reactor's thread while nothing runs on the executor's; blocks nobody. What is returned
        counts as done: it must be done before anything else, and if it fails nothing more is asked for.
        None: use `commit`.
        """

    def read(from_slot: int, upto_slot: int, limit_bytes: int) -> list[SlotEntry]:
        """See `IAcceptorStorage.read_chosen`."""

    def upkeep() -> str:
        """A step of work that needs no haste; returns a warning for the operator, or nothing."""

    def set_aside() -> str:
        """See `IAcceptorStorage`."""

    def close() -> None:
        """Close files and release the lock; does nothing when nothing is open."""


def check_identity(identity: Identity, uid: str, cluster: str, where: str) -> None:
    """Raises `StorageForeign` when the storage belongs to another node or another cluster."""
    if identity.uid != uid:
        raise StorageForeign(
            f"{where} belongs to node {identity.uid!r}, not to {uid!r}: give each node its own"
        )
    if identity.cluster != cluster:
        raise StorageForeign(
            f"{where} was made for cluster {identity.cluster!r}, not for {cluster!r}: its members differ"
        )


class PromiseRule:
    """What no provider stores: a promise that goes back, and a vote above the promise.

    Args:
        promised: the promise that is durable.
    """

    def __init__(self, promised: ProposalID) -> None:
        self._refused = promised

    def after(self, records: Sequence[Record], promised: ProposalID) -> ProposalID | StorageFull:
        """The promise once ``records`` are stored behind ``promised``.

        `StorageFull` when they vote at a ballot whose promise was refused for want of room: without
        that promise the vote would be damage.

        Raises:
            ValueError: no refusal explains it, so the caller is wrong.
        """
        for record in records:
            if isinstance(record, SavePromise):
                if record.ballot < promised:
                    raise ValueError(f"the promise must not go back from {promised} to {record.ballot}")
                promised = record.ballot
            elif isinstance(record, SaveAccepted) and record.ballot > promised:
                if record.ballot <= self._refused:
                    return StorageFull(f"the promise of {record.ballot} was refused for want of room")
                raise ValueError(f"no vote at {record.ballot} above the promise of {promised}")
        return promised

    def refuse(self, promised: ProposalID) -> None:
        """A write that would have led to ``promised`` is not stored."""
        self._refused = max(self._refused, promised)


def last_identity(records: Sequence[Record], identity: Identity | None) -> Identity | None:
    """The identity that ``records`` save last, or ``identity``."""
    for record in records:
        if isinstance(record, SaveIdentity):
            identity = record.identity
    return identity


def log_records(records: Sequence[Record]) -> list[LogRecord]:
    """Those that go into the log."""
    return [record for record in records if isinstance(record, (SaveAccepted, SaveChosen))]


def _values_bytes(records: Sequence[Record]) -> int:
    return sum([len(record.value) for record in records if isinstance(record, (SaveAccepted, SaveChosen))])


class _Write(NamedTuple):
    records: Write
    size_bytes: int
    done: Deferred[None]
    then: Callable[[], None] | None


@implementer(INodeStorage)
class QueuedStorage:
    """`IAcceptorStorage` and `ISnapshotStorage` over a blocking backend and an executor.

    Args:
        backend: what stores; owned from now on.
        executor: where it runs; closed with the storage.
        description: see `IAcceptorStorage`.
        queue_max_bytes: values that may wait.
    """

    def __init__(
        self,
        backend: IStorageBackend,
        executor: IDiskExecutor,
        description: str,
        queue_max_bytes: int = QUEUE_MAX_BYTES,
    ) -> None:
        self.description = description
        self._backend = backend
        self._executor = executor
        self._queue_max_bytes = queue_max_bytes
        self._waiting: list[_Write] = []
        self._queued_bytes = 0
        self._running = 0
        self._jobs = 0
        self._chosen_upto = 0
        self._upkeep_runs = False
        self._broken = ""
        self._open = False
        self._snapshots = Snapshots(backend, self._run, lambda: self._chosen_upto)

    @property
    def log_bytes(self) -> int:
        """See `IAcceptorStorage`."""
        return self._backend.log_bytes

    def recover(self, word: str, cluster: str, lost: bool = False) -> Recovered:
        """See `IAcceptorStorage`."""
        recovered = self._backend.recover(word, cluster, lost)
        self._chosen_upto = recovered.chosen_upto
        self._snapshots.newest = self._backend.snapshot
        self._open = True
        return recovered

    def set_aside(self) -> str:
        """See `IAcceptorStorage`. Never moves what belongs to another node or cluster."""
        if self._open:
            raise StorageError(f"{self.description} is open: close it before it is set aside")
        return self._backend.set_aside()

    def write(self, records: Sequence[Record], then: Callable[[], None] | None = None) -> Deferred[None]:
        """See `IAcceptorStorage`."""
        if not self._open:
            return fail(StorageFailed(f"{self.description} is not open"))
        write = self._admit(records, then)
        self._waiting.append(write)
        self._queued_bytes += write.size_bytes
        if not self._running:
            self._flush()
        return write.done

    def note_chosen(self, chosen_upto: int) -> None:
        """See `IAcceptorStorage`."""
        self._chosen_upto = max(self._chosen_upto, chosen_upto)

    def read_chosen(self, from_slot: int, upto_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """See `IAcceptorStorage`."""
        self._flush()  # the executor works in order, so the read sees what was written before it
        reading = partial(self._backend.read, from_slot, upto_slot, limit_bytes)
        return self._execute(partial(self._guarded, reading, (StorageDamaged, StorageUnreadable)))

    @property
    def snapshot_slot(self) -> int:
        """See `ISnapshotStorage`."""
        return self._snapshots.newest.slot if self._snapshots.newest else 0

    @property
    def snapshot_bytes(self) -> int:
        """See `ISnapshotStorage`."""
        return self._snapshots.newest.size_bytes if self._snapshots.newest else 0

    def begin_snapshot(self, slot: int) -> SnapshotWriter:
        """See `ISnapshotStorage`, and `Snapshots.begin` for a slot that is in a snapshot already."""
        return self._snapshots.begin(slot)

    def open_snapshot(self) -> SnapshotReader | None:
        """See `ISnapshotStorage`."""
        return self._snapshots.open()

    def compact(self, upto_slot: int) -> Deferred[int]:
        """See `ISnapshotStorage`. Fails with `ValueError` above the newest snapshot."""
        return Deferred.fromCoroutine(self._snapshots.compact(upto_slot))

    def _run(self, work: Callable[[], T]) -> Deferred[T]:
        """Run work of the backend on the executor; what it says of room and damage ends nothing."""
        if not self._open:
            return fail(StorageFailed(f"{self.description} is not open"))
        harmless = (StorageFull, StorageDamaged, StorageUnreadable)
        return self._execute(partial(self._guarded, work, harmless))

    def _execute(self, work: Callable[[], T]) -> Deferred[T]:
        """Run work on the executor; while any is there, the backend is not touched elsewhere."""
        running = self._executor.run(work)
        self._jobs += 1
        told: Deferred[T] = Deferred()  # of its own: who cancels it does not end the work
        running.addBoth(self._executed).addCallbacks(told.callback, told.errback)
        return told

    def _executed(self, outcome: Any) -> Any:
        self._jobs -= 1
        return outcome

    def close(self) -> Deferred[None]:
        """See `IAcceptorStorage`."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._flush()
        self._snapshots.stop()
        was_open, self._open = self._open, False
        failure: BaseException | None = None
        if was_open:
            try:
                await self._execute(self._finish)
            except Exception as error:  # raised below: a dropped coroutine may not await in `finally`
                failure = error
        await self._executor.close()
        if failure is not None:
            raise failure

    def _finish(self) -> None:
        try:
            if not self._broken:
                self._commit([], self._chosen_upto)
        finally:
            self._backend.close()

    def _flush(self) -> None:
        """Hand everything that waits to the executor, as one group."""
        if not self._waiting:
            return
        group, self._waiting = self._waiting, []
        self._running += 1
        if len(group) > 1 or self._jobs or self._broken or not self._append(group[0]):
            writing = self._execute(partial(self._commit, group, self._chosen_upto))
            writing.addCallbacks(self._written, self._failed, callbackArgs=(group,), errbackArgs=(group,))

    def _append(self, write: _Write) -> bool:
        """Write what needs no thought of the backend's thread; False when it does."""
        if isinstance(write.records, StorageFull):
            return False
        try:
            append = self._backend.append(write.records, self._chosen_upto)
            if append is None:
                return False
            writing = self._executor.append(*append, write.then, self._append_failed)
        except Exception as error:
            # It counts as done, and the disk was never given it: `commit` refuses this and all that follows.
            self._append_failed(error)
            return False
        self._jobs += 1
        writing.addCallbacks(self._appended, self._not_appended, callbackArgs=(write,), errbackArgs=(write,))
        return True

    def _appended(self, _: None, write: _Write) -> None:
        self._jobs -= 1
        self._written([None], [write])

    def _not_appended(self, failure: Failure, write: _Write) -> None:
        self._jobs -= 1
        self._failed(failure, [write])

    def _append_failed(self, error: Exception) -> StorageFailed:
        """What `_guarded` does; on the executor's thread, too, when it failed there."""
        self._broken = self._broken or self._broken_by(error)
        return StorageFailed(self._broken)

    def _admit(self, records: Sequence[Record], then: Callable[[], None] | None) -> _Write:
        """Refuse values beyond the queue's bound; a promise is small and always taken."""
        size_bytes = _values_bytes(records)
        over = size_bytes and self._queued_bytes + size_bytes > self._queue_max_bytes
        if over and not any(isinstance(record, SavePromise) for record in records):
            return _Write(
                StorageFull(f"{self.description}: too much waits for the disk"), 0, Deferred(), None
            )
        return _Write(records, size_bytes, Deferred(), then)

    def _commit(self, group: Sequence[_Write], chosen_upto: int) -> list[StorageFull | None]:
        writes = [write.records for write in group]
        outcomes = self._guarded(partial(self._backend.commit, writes, chosen_upto))
        for write, refusal in zip(group, outcomes, strict=True):
            if write.then is not None and refusal is None:
                write.then()
        return outcomes

    def _guarded(
        self, work: Callable[[], T], harmless: type[Exception] | tuple[type[Exception], ...] = ()
    ) -> T:
        """Run on the executor's thread; whatever goes wrong, other than ``harmless``, ends all writing.

        A failed write or sync is never tried again: the system may have dropped what it could not
        write, and would then report the next sync as done.
        """
        if self._broken:
            raise StorageFailed(self._broken)
        try:
            return work()
        except harmless:
            raise
        except Exception as error:
            self._broken = self._broken_by(error)
            raise StorageFailed(self._broken) from error

    def _broken_by(self, error: Exception) -> str:
        return (
            f"{self.description}: cannot be written ({reason(error)}); what is durable is unknown, "
            "so the node stops: check the disk, then start it again"
        )

    def _written(self, outcomes: list[StorageFull | None], group: list[_Write]) -> None:
        self._group_ended(group)
        for write, refusal in zip(group, outcomes, strict=True):
            if refusal is None:
                write.done.callback(None)
            else:
                write.done.errback(refusal)
        self._go_on()

    def _failed(self, failure: Failure, group: list[_Write]) -> None:
        self._group_ended(group)
        for write in group:
            write.done.errback(StorageFailed(failure.getErrorMessage()))
        self._go_on()

    def _group_ended(self, group: list[_Write]) -> None:
        self._running -= 1
        self._queued_bytes -= sum([write.size_bytes for write in group])

    def _go_on(self) -> None:
        if self._waiting and not self._running:
            self._flush()
        if self._backend.wants_upkeep and self._open and not self._upkeep_runs and not self._broken:
            self._upkeep_runs = True
            upkeep = partial(self._guarded, self._backend.upkeep)
            self._execute(upkeep).addCallbacks(self._upkeep_done, self._upkeep_failed)

    def _upkeep_done(self, warning: str) -> None:
        self._upkeep_runs = False
        if warning:
            # Not as ``warning=``: Twisted gives that key a meaning of its own.
            log.warn("{storage}: {advice}", storage=self.description, advice=warning)
        self._go_on()

    def _upkeep_failed(self, failure: Failure) -> None:
        # The next write fails with the same error, and it has a caller who stops the node.
        log.error("{error}", error=failure.getErrorMessage())
