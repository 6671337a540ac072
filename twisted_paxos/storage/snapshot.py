"""Snapshots as all providers have them: the half that runs on the reactor's thread.

What touches the disk is a series of small steps, each a job of its own on the executor, so the syncs
of the log go in between: a snapshot never looks like a stalled disk (DESIGN.md, section 3). A snapshot
that is being read stays until its last reader is closed, also when a newer one has replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface, implementer

from twisted_paxos.errors import StorageError, StorageFailed
from twisted_paxos.interfaces import ISnapshotReader, ISnapshotWriter

log = Logger()

PIECE_MAX_BYTES: Final = 1 << 20
"""The largest piece of a snapshot."""

STEP_BYTES: Final = 512 << 10
"""What one step writes and syncs at most."""

Steps: TypeAlias = Iterator[None]
"""Work in small parts: each `next` is one job, on the executor's thread."""

_END = object()


class SnapshotInfo(NamedTuple):
    """A complete snapshot: its slot, the number of its pieces, and their size in bytes."""

    slot: int
    pieces: int
    size_bytes: int


class ISnapshotSink(Interface):
    """Where one snapshot is written; steps run on the executor's thread."""

    slot: int = Attribute("Of which slot it is.")

    def put(piece: bytes) -> Steps:
        """Append a piece and sync it. Raises `StorageFull` when there is no room."""

    def seal() -> Steps:
        """All pieces are there: make that durable. Raises `StorageFull` when there is no room."""

    def discard() -> Steps:
        """Remove what was written; it was not adopted."""


class ISnapshotBackend(Interface):
    """What a provider does for snapshots; after its `recover`, on the executor's thread."""

    snapshot: SnapshotInfo | None = Attribute(
        "The snapshot that counts, as of the last `recover` or `adopt`."
    )
    log_start: int = Attribute("The lowest slot that is stored, or would be next.")

    def draft(slot: int) -> ISnapshotSink:
        """Where a snapshot of ``slot`` is to be written; touches nothing yet, on any thread."""

    def adopt(sink: Any, chosen_upto: int) -> SnapshotInfo:
        """Make a sealed snapshot the one that counts, in one atomic, durable step; the older one stays.

        Where slots are not stored up to it as chosen (``chosen_upto``), it was fetched from a peer: then
        the log answers only for what lies above it.
        """

    def read_piece(slot: int, number: int) -> bytes:
        """See `ISnapshotReader.read`."""

    def drop_snapshot(slot: int) -> Steps:
        """Remove a snapshot that no longer counts."""

    def compact(upto_slot: int) -> Steps:
        """See `ISnapshotStorage.compact`; ``upto_slot`` is not above the snapshot that counts."""


def cut(data: bytes, extra_bytes: int = 0) -> Iterator[bytes]:
    """``data`` in parts of at most `STEP_BYTES` and ``extra_bytes``; at least one."""
    step = STEP_BYTES + extra_bytes
    for start in range(0, max(len(data), 1), step):
        yield data[start : start + step]


@implementer(ISnapshotWriter)
class SnapshotWriter:
    """One snapshot on its way to disk; made by `Snapshots.begin`.

    Attributes:
        slot: of which slot it is.
    """

    def __init__(self, owner: Snapshots, sink: ISnapshotSink, problem: str = "") -> None:
        self.slot = sink.slot
        self._owner = owner
        self._sink = sink
        self._problem = problem
        self._busy = False

    def write(self, piece: bytes) -> Deferred[None]:
        """See `ISnapshotWriter`. Fails with `ValueError` for a piece that is too large."""
        if len(piece) > PIECE_MAX_BYTES:
            return fail(ValueError(f"a piece of {len(piece):,} bytes; the limit is {PIECE_MAX_BYTES:,}"))
        return Deferred.fromCoroutine(self._exclusively(self._sink.put(bytes(piece))))

    def finish(self) -> Deferred[None]:
        """See `ISnapshotWriter`."""
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        await self._exclusively(self._sink.seal())
        self._problem = f"the snapshot of slot {self.slot} is complete"
        await self._owner.adopt(self._sink)

    async def _exclusively(self, steps: Steps) -> None:
        self._check()
        if self._busy:
            raise ValueError(f"the snapshot of slot {self.slot}: the write before has not ended")
        self._busy = True
        try:
            await self._owner.change(steps, self._check)
            self._check()
        except StorageError as error:
            self._problem = self._problem or str(error)
            raise
        finally:
            self._busy = False

    def _check(self) -> None:
        if self._problem:
            raise StorageError(self._problem)

    def abort(self) -> None:
        """See `ISnapshotWriter`; nothing happens once it is complete."""
        self._owner.discard(self)

    def give_up(self) -> ISnapshotSink:
        """From now on every call fails; what is to be discarded."""
        self._problem = self._problem or f"the snapshot of slot {self.slot} was given up"
        return self._sink


@implementer(ISnapshotReader)
class SnapshotReader:
    """A complete snapshot, piece by piece; made by `Snapshots.open`.

    Attributes:
        slot, pieces, size_bytes: see `ISnapshotReader`.
    """

    def __init__(self, owner: Snapshots, info: SnapshotInfo) -> None:
        self.slot, self.pieces, self.size_bytes = info
        self._owner = owner
        self._open = True

    def read(self, number: int) -> Deferred[bytes]:
        """See `ISnapshotReader`. Fails with `ValueError` when there is no such piece, or after `close`."""
        if not self._open or not 0 <= number < self.pieces:
            return fail(ValueError(f"no piece {number} of the snapshot of slot {self.slot} to read"))
        return self._owner.read(self.slot, number)

    def close(self) -> None:
        """See `ISnapshotReader`."""
        if self._open:
            self._open = False
            self._owner.release(self.slot)


class Snapshots:
    """The snapshots of one storage: at most one being written, one that counts, older ones being read.

    Args:
        backend: the blocking half.
        run: runs work on the executor's thread after all that was given before; fails with
            `StorageFailed` once storage is closed or broken.
        chosen_upto: gives how far slots are known as chosen and stored.
    """

    def __init__(
        self,
        backend: ISnapshotBackend,
        run: Callable[[Callable[[], Any]], Deferred[Any]],
        chosen_upto: Callable[[], int],
    ) -> None:
        self.newest: SnapshotInfo | None = None
        self._backend = backend
        self._run = run
        self._chosen_upto = chosen_upto
        self._writer: SnapshotWriter | None = None
        self._readers: dict[int, int] = {}
        # What is given up may be of the same slot as what comes next: it must be gone before.
        self._drafts = DeferredLock()

    def begin(self, slot: int) -> SnapshotWriter:
        """See `ISnapshotStorage.begin_snapshot`.

        Of a slot that is not above the newest snapshot's there is nothing to write: every call of the
        writer fails with `StorageError`, and one that is under way goes on.
        """
        sink = self._backend.draft(slot)
        newest = self.newest.slot if self.newest else 0
        if slot <= newest:
            return SnapshotWriter(self, sink, f"slot {slot} is in the snapshot of slot {newest} already")
        if self._writer is not None:
            self._writer.abort()
        self._writer = SnapshotWriter(self, sink)
        return self._writer

    def open(self) -> SnapshotReader | None:
        """See `ISnapshotStorage.open_snapshot`."""
        if self.newest is None:
            return None
        self._readers[self.newest.slot] = self._readers.get(self.newest.slot, 0) + 1
        return SnapshotReader(self, self.newest)

    async def compact(self, upto_slot: int) -> int:
        """See `ISnapshotStorage.compact`.

        Raises:
            ValueError: ``upto_slot`` is above the newest snapshot: what it lets go of would be lost.
        """
        newest = self.newest.slot if self.newest else 0
        if upto_slot > newest:
            raise ValueError(f"no compaction up to slot {upto_slot}: the newest snapshot is of slot {newest}")
        await self._run_steps(self._backend.compact(upto_slot))
        return self._backend.log_start

    def stop(self) -> None:
        """Storage is about to close: give up what is under way."""
        if self._writer is not None:
            self._writer.abort()

    async def _run_steps(self, steps: Steps, check: Callable[[], None] = lambda: None) -> None:
        """Run steps one by one, each a job of its own; ``check`` may end it between two."""
        while await self._run(partial(next, steps, _END)) is not _END:
            check()

    # What writers and readers call.

    async def change(self, steps: Steps, check: Callable[[], None] = lambda: None) -> None:
        """Run steps on what is being written, after all such that were given before."""
        await self._drafts.acquire()
        try:
            check()
            await self._run_steps(steps, check)
        finally:
            self._drafts.release()

    async def adopt(self, sink: ISnapshotSink) -> None:
        """A sealed snapshot becomes the newest; the older one goes, unless somebody reads it."""
        self._writer = None
        if self.newest is not None and sink.slot <= self.newest.slot:
            self._later(self.change(sink.discard()))
            raise StorageError(f"slot {sink.slot} is in the snapshot of slot {self.newest.slot} already")
        adopted = await self._run(partial(self._backend.adopt, sink, self._chosen_upto()))
        older, self.newest = self.newest, adopted
        if older is not None and older.slot not in self._readers:
            await self._run_steps(self._backend.drop_snapshot(older.slot))

    def discard(self, writer: SnapshotWriter) -> None:
        """Give up a snapshot that is under way."""
        if writer is self._writer:
            self._writer = None
            self._later(self.change(writer.give_up().discard()))

    def read(self, slot: int, number: int) -> Deferred[bytes]:
        """A piece of a snapshot that has a reader."""
        return self._run(partial(self._backend.read_piece, slot, number))

    def release(self, slot: int) -> None:
        """A reader is closed; with the last one, a snapshot that was replaced goes."""
        self._readers[slot] -= 1
        if not self._readers[slot]:
            del self._readers[slot]
            if self.newest is not None and slot != self.newest.slot:
                self._later(self._run_steps(self._backend.drop_snapshot(slot)))

    def _later(self, removal: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(removal).addErrback(_not_removed)


def _not_removed(failure: Failure) -> None:
    """What could not be removed goes at the next start; if the disk fails, the next write says so."""
    if not failure.check(StorageFailed):
        log.failure("a snapshot cannot be removed", failure)
