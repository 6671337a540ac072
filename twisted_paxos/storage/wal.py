"""``file:DIR``: a directory with a segmented write-ahead log, identity and promise.

The directory holds ``lock``; two copies each of identity, promise and base (`durable`: ``identity.0``,
``identity.1``, ...); at most one complete snapshot, ``snapshot-<16 hex digits>`` (`snapshotfile`); and the
log's segments ``log-<16 hex digits>.wal`` (`log`, `recovery`, `format`).

One group commit does this, in this order:

1. plan: room for every record, in new segments if need be; a write for which there is none is
   refused whole, before anything of it is stored;
2. the last promise of the group, in both copies, each synced; then its last identity, likewise. So no
   record is on disk before a promise that was saved before it;
3. the records, and how far slots are chosen; one fdatasync.

Promises come before records that were given earlier in the same group. That is safe: nothing of the
group was reported yet, and a promise alone forbids, it permits nothing.

A snapshot counts from the moment at which ``base`` names it: its file is complete and has its name by
then, and nothing that it stands for is removed before. Compaction saves in ``base`` where the log will
begin, then removes segments. Whatever ``base`` does not name is a leftover, and goes at the next start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace
from twisted.logger import Logger
from zope.interface import implementer

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Entry, SlotEntry
from twisted_paxos.core.records import Identity, Record, Recovered, SaveAccepted, SaveChosen
from twisted_paxos.errors import StorageDamaged, StorageError, StorageForeign, StorageFull
from twisted_paxos.interfaces import IDiskExecutor
from twisted_paxos.storage.disk import LARGE_WRITE_BYTES, LOCK_NAME, IDisk, is_full, reason
from twisted_paxos.storage.durable import DurableObjectHandler, choose_copy, read_copies
from twisted_paxos.storage.format import segment_id
from twisted_paxos.storage.log import SEGMENT_BYTES, Append, Plan, SegmentedLog, create_files, open_log
from twisted_paxos.storage.queued import (
    IStorageBackend,
    PromiseRule,
    QueuedStorage,
    Write,
    check_identity,
    last_identity,
    log_records,
)
from twisted_paxos.storage.recovery import Floor, LogBase
from twisted_paxos.storage.snapshot import SnapshotInfo
from twisted_paxos.storage.snapshotfile import SnapshotFile, SnapshotFiles

log = Logger()

_OURS = re.compile(
    r"(identity|promise|base)\.[01]|(log|next)-[0-9a-f]{16}\.wal|snapshot-[0-9a-f]{16}(\.tmp)?"
)


class StoredIdentity(Struct, frozen=True):
    """What ``identity.*`` hold: the identity, and how far the log was synced when it was saved."""

    identity: Identity
    log: Floor


class StoredPromise(Struct, frozen=True):
    """What ``promise.*`` hold: the promise, and how far the log was synced when it was saved."""

    ballot: ProposalID
    log: Floor


def identity_object(disk: IDisk) -> DurableObjectHandler[StoredIdentity]:
    """The identity in a directory."""
    return DurableObjectHandler(disk, "identity", StoredIdentity)


def promise_object(disk: IDisk) -> DurableObjectHandler[StoredPromise]:
    """The promise in a directory."""
    return DurableObjectHandler(disk, "promise", StoredPromise)


def base_object(disk: IDisk) -> DurableObjectHandler[LogBase]:
    """Where the log begins, in a directory."""
    return DurableObjectHandler(disk, "base", LogBase)


def read_base(disk: IDisk) -> LogBase:
    """Where the log begins, read without changing anything.

    Raises:
        StorageDamaged: neither copy says it for certain.
    """
    handler = base_object(disk)
    return handler.decode(choose_copy(disk.path, read_copies(disk, handler.name)))


@implementer(IStorageBackend)
class FileBackend:
    """The blocking half of `FileStorage`.

    Args:
        disk: the directory.
        uid: the node that it must belong to.
        segment_bytes: size of new segments.
    """

    def __init__(self, disk: IDisk, uid: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.log_bytes = 0
        self.wants_upkeep = False
        self.snapshot: SnapshotInfo | None = None
        self._disk = disk
        self._uid = uid
        self._segment_bytes = segment_bytes
        self._identity = identity_object(disk)
        self._promise = promise_object(disk)
        self._base_object = base_object(disk)
        self._base = LogBase()
        self._snapshots = SnapshotFiles(disk)
        self._promised = NO_BALLOT
        self._rule = PromiseRule(NO_BALLOT)
        self._log: SegmentedLog
        self._foreign = ""

    def recover(self, word: str, cluster: str, lost: bool = False) -> Recovered:
        """See `IAcceptorStorage`."""
        try:
            self._disk.open()
            fresh = not self._disk.exists() and self._format(word, cluster, lost)
            self._check_ours()
            self._disk.lock()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return self._load(word, cluster, fresh)
        except OSError as error:
            self._disk.close()
            raise self._unusable(error) from error
        except BaseException:
            self._disk.close()
            raise

    def _format(self, word: str, cluster: str, lost: bool) -> bool:
        """Make the directory; False when another process was faster.

        What was set aside proves that storage was lost here, also when the process that moved it
        died before it could say so.
        """
        lost = lost or bool(self._disk.aside())
        identity = Identity(self._uid, word, cluster, lost=lost)
        files = {LOCK_NAME: b""}
        files |= self._identity.initial_files(StoredIdentity(identity, Floor()))
        files |= self._promise.initial_files(StoredPromise(NO_BALLOT, Floor()))
        files |= self._base_object.initial_files(LogBase())
        files |= create_files(self._segment_bytes)
        try:
            self._disk.format(files)
        except FileExistsError:
            return False
        log.info("{path}: made, for node {uid}", path=self._disk.path, uid=self._uid)
        return True

    def _check_ours(self) -> None:
        """A directory of something else is left as it is, without even a lock file; it is no damage."""
        if not any(name == LOCK_NAME or _OURS.fullmatch(name) for name in self._disk.names()):
            raise StorageError(f"{self._disk.path} is not empty, and nothing in it is a node's: give another")

    def _load(self, word: str, cluster: str, fresh: bool) -> Recovered:
        stored = self._identity.load()
        try:
            check_identity(stored.identity, self._uid, cluster, self._disk.path)
        except StorageForeign as error:
            self._foreign = str(error)
            raise
        promise = self._promise.load()
        promised = promise.ballot
        floor = max(stored.log, promise.log)
        base = self._base_object.load()
        self._log, dropped_bytes = open_log(self._disk, promised, floor, base, self._segment_bytes)
        self._base = self._open_snapshot(base)
        if dropped_bytes:
            log.info(
                "{path}: dropped {dropped} bytes of a write that a crash cut short; nobody was told of it",
                path=self._disk.path,
                dropped=dropped_bytes,
            )
        # Written again, not only read: what a failed sync left can look fine and not be on the disk.
        self._promise.save(StoredPromise(promised, self._log.floor))
        self._promised, self._rule = promised, PromiseRule(promised)
        self.log_bytes = self._log.used_bytes
        identity = stored.identity.started(word)
        self._identity.save(StoredIdentity(identity, self._log.floor))
        self._base_object.save(self._base)
        self._remove_leftovers()
        return Recovered(
            identity=identity,
            promised=promised,
            chosen_upto=self._log.chosen_upto,
            log_start=self.log_start,
            entries=self._entries(),
            fresh=fresh,
            snapshot_slot=self._base.snapshot,
        )

    def _open_snapshot(self, base: LogBase) -> LogBase:
        """The snapshot that counts must be good, unless the log still has all that it stands for."""
        self.snapshot = None
        if not base.snapshot:
            return base
        try:
            self.snapshot = self._snapshots.open(base.snapshot)
        except StorageDamaged as error:
            if base.start > 1:
                raise
            log.warn("{error}; it is dropped: the log still has everything", error=str(error))
            return replace(base, snapshot=0)
        return base

    def _remove_leftovers(self) -> None:
        """What a crash left, and nothing names."""
        removed = self._snapshots.remove_leftovers(self._base.snapshot)
        for name in self._disk.names():
            if 0 < segment_id(name) < self._base.segment:
                self._disk.remove(name)
                removed = True
        if removed:
            self._disk.sync_dir()

    def _entries(self) -> dict[int, Entry]:
        slots = self._log.index.above(self._log.chosen_upto)
        return {found.slot: Entry(found.ballot, found.value) for found in self._log.read(slots)}

    def set_aside(self) -> str:
        """See `IAcceptorStorage`."""
        try:
            self._disk.open()
            if not self._disk.exists():
                return self._disk.aside() or self._disk.path
            self._check_ours()
            self._disk.lock()
            try:
                self._check_movable()
                return self._disk.set_aside()
            finally:
                self._disk.close()
        except OSError as error:
            raise self._unusable(error) from error

    def _check_movable(self) -> None:
        """A wrong option must not cost another node, or another cluster, its files."""
        if self._foreign:
            raise StorageError(self._foreign)
        with contextlib.suppress(StorageDamaged):
            copy = choose_copy(self._disk.path, read_copies(self._disk, self._identity.name))
            identity = self._identity.decode(copy).identity
            if identity.uid != self._uid:
                raise StorageError(f"{self._disk.path} belongs to node {identity.uid!r}: it is not moved")

    def commit(self, writes: Sequence[Write], chosen_upto: int) -> list[StorageFull | None]:
        """See `IStorageBackend`."""
        plan = self._log.plan()
        promised, identity = self._promised, None
        outcomes: list[StorageFull | None] = []
        for write in writes:
            refusal, after = self._take(plan, write, promised)
            outcomes.append(refusal)
            if refusal is None and not isinstance(write, StorageFull):
                promised, identity = after, last_identity(write, identity)
        self._save(promised, identity)
        self._log.execute(plan, chosen_upto)
        self.log_bytes = self._log.used_bytes
        self.wants_upkeep = self._log.wants_upkeep
        return outcomes

    def append(self, records: Sequence[Record], chosen_upto: int) -> Append | None:
        """See `IStorageBackend`: votes under the saved promise, in the current segment, no large ones."""
        values_bytes = 0
        votes: list[SaveAccepted | SaveChosen] = []
        for record in records:
            if isinstance(record, SaveAccepted):
                if record.ballot > self._promised:
                    return None
            elif not isinstance(record, SaveChosen):
                return None
            votes.append(record)
            values_bytes += len(record.value)
        if values_bytes >= LARGE_WRITE_BYTES:
            return None
        plan = self._log.plan()
        if not plan.take_here(votes) or not plan.placed:
            return None
        append = self._log.append(plan, chosen_upto)
        self.log_bytes = self._log.used_bytes
        self.wants_upkeep = self._log.wants_upkeep
        return append

    def _take(self, plan: Plan, write: Write, promised: ProposalID) -> tuple[StorageFull | None, ProposalID]:
        """Plan one write; why it is refused, if so, and the promise behind it."""
        if isinstance(write, StorageFull):
            return write, promised
        after = self._rule.after(write, promised)
        if isinstance(after, StorageFull):
            return after, promised
        refusal = plan.take(log_records(write))
        if refusal is not None:
            self._rule.refuse(after)
        return refusal, after

    def _save(self, promised: ProposalID, identity: Identity | None) -> None:
        if promised != self._promised:
            self._promise.save(StoredPromise(promised, self._log.floor))
            self._promised = promised
        if identity is not None:
            self._identity.save(StoredIdentity(identity, self._log.floor))

    def read(self, from_slot: int, upto_slot: int, limit_bytes: int) -> list[SlotEntry]:
        """See `IStorageBackend`."""
        return self._log.read(range(from_slot, upto_slot + 1), limit_bytes)

    @property
    def log_start(self) -> int:
        """See `ISnapshotBackend`."""
        return self._log.index.first_slot

    def draft(self, slot: int) -> SnapshotFile:
        """See `ISnapshotBackend`."""
        return SnapshotFile(self._disk, slot)

    def adopt(self, sink: SnapshotFile, chosen_upto: int) -> SnapshotInfo:
        """See `ISnapshotBackend`."""
        sink.publish()
        stored_upto = min(chosen_upto, self._log.index.contiguous_upto)
        start = self.log_start if sink.slot <= stored_upto else sink.slot + 1
        self._save_base(replace(self._base, start=start, snapshot=sink.slot))
        self._log.begin_at(start)
        self.snapshot = self._snapshots.adopt(sink)
        return self.snapshot

    def _save_base(self, base: LogBase) -> None:
        self._base_object.save(base)
        self._base = base

    def read_piece(self, slot: int, number: int) -> bytes:
        """See `ISnapshotBackend`."""
        return self._snapshots.read(slot, number)

    def drop_snapshot(self, slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`."""
        return self._snapshots.drop(slot)

    def compact(self, upto_slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`: whole segments."""
        assert upto_slot <= self._base.snapshot, "no slot is let go that no snapshot stands for"
        count, start = self._log.passed(upto_slot)
        if not count:
            return
        first = self._log.segment(count)
        self._save_base(replace(self._base, segment=first.id, sequence=first.first_sequence, start=start))
        for name in self._log.drop(count, start):
            yield
            self._disk.remove(name)
        self.log_bytes = self._log.used_bytes
        self._disk.sync_dir()

    def upkeep(self) -> str:
        """Make the next segment ahead, step by step; see `IStorageBackend`."""
        has_room = self._log.upkeep()
        self.wants_upkeep = self._log.wants_upkeep
        return (
            "" if has_room else "the disk is full: make room before the current log segment is full as well"
        )

    def close(self) -> None:
        """See `IStorageBackend`."""
        self._disk.close()

    def _unusable(self, error: OSError) -> StorageError:
        kind = StorageFull if is_full(error) else StorageError
        return kind(f"{self._disk.path} cannot be used: {reason(error)}")


class FileStorage(QueuedStorage):
    """``file:DIR`` as `IAcceptorStorage` and `ISnapshotStorage`.

    Args:
        disk: the directory, real or simulated.
        uid: the node that it must belong to.
        executor: where blocking work runs; closed with the storage.
        segment_bytes: size of new segments.
        description: for status tables; ``file:`` and the disk's path unless given.
    """

    def __init__(
        self,
        disk: IDisk,
        uid: str,
        executor: IDiskExecutor,
        segment_bytes: int = SEGMENT_BYTES,
        description: str = "",
    ) -> None:
        backend = FileBackend(disk, uid, segment_bytes)
        super().__init__(backend, executor, description or f"file:{disk.path}")
