"""Snapshots of a node: made now and then, fetched by a node that is too far behind, and installed.

A snapshot is made while slots go on being applied: its view is frozen, its pieces are made one by
one, each is synced before the next, with a pause in between, so that it never looks like a
stalled disk. Then the log below it goes. A node whose next slot was let go everywhere fetches the
newest snapshot piece by piece over the peer link; after a cut it goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.core import limits
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.messages import FetchPiece, Piece, Sender
from twisted_paxos.errors import StorageDamaged, StorageError, StorageFull
from twisted_paxos.interfaces import (
    IMessenger,
    INodeStorage,
    ISnapshotReader,
    ISnapshotStorage,
    ISnapshotWriter,
)
from twisted_paxos.pacing import Growth, Pace
from twisted_paxos.statemachine.replicated import Header, ReplicatedState, Sets

log = Logger()

KEEP_SLOTS = 1_000
"""Slots left in the log below a snapshot, so that a node that is a little behind need not fetch it."""

KEEP_BYTES = 8 << 20
"""The same as a size: with large values, fewer slots stay."""

GROUP_BYTES = 1 << 18
"""Pieces of the state are joined to pieces of storage of about this size: each costs one sync.

    storage-piece = 1*( length piece )     ; length: 4 bytes, big-endian
"""

LARGE_GROUP_BYTES = 7 << 16
"""The same while the log grows fast: fewer syncs, each still one step of storage."""

TURN_S = 0.002
"""Pieces of the state are made for so long in one turn of the reactor, while the log grows fast."""

HURRY_SHARE = 0.5
"""When so much of what the log may grow by is used, the snapshot makes no pauses."""

READER_IDLE_S = 30.0
"""An open snapshot that no peer asked for is closed after this long."""

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 2.0
"""How long to wait for a piece before asking again, another node after two tries."""


class Policy(NamedTuple):
    """When snapshots are made.

    Attributes:
        slots: after so many applied slots.
        log_bytes: or when the log has grown by this much more than the state since the last one.
        pause_s: between two pieces, at least; and at least as long as the piece took.
    """

    slots: int = 10_000
    log_bytes: int = 40 << 20
    pause_s: float = 0.001

    @property
    def room_bytes(self) -> int:
        """The log may grow by this much more while a snapshot is written: beyond it the leader
        proposes no faster than the snapshot gets on, or the disk would fill up."""
        return self.log_bytes * 4 // 5


DEFAULT_POLICY = Policy()


class SnapshotMaker:
    """Makes a snapshot when it is time.

    Args:
        clock: the reactor.
        storage: where it goes.
        state: what of.
        sets: gives the voting incarnations as of a slot.
        compacted: told the lowest slot that will still be stored.
        served_from: gives the slot of the oldest snapshot that a peer is fetching.
        hold: told whether proposing has to wait for the snapshot, when that changes.
        policy: when.

    Attributes:
        running: while one is made.
        made, failed: how many were complete, and how many were given up for a full disk.
        durations: how long they took, in seconds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        storage: INodeStorage,
        state: ReplicatedState,
        sets: Callable[[int], Sets],
        compacted: Callable[[int], None],
        served_from: Callable[[], int],
        hold: Callable[[bool], None],
        policy: Policy,
    ) -> None:
        self.running: Deferred[None] | None = None
        self.made = 0
        self.failed = 0
        self.durations = Histogram()
        self._clock = clock
        self._storage = storage
        self._state = state
        self._sets = sets
        self._compacted = compacted
        self._served_from = served_from
        self._hold = hold
        self._holds = False
        self._pace: Pace | None = None
        self._policy = policy
        self._growth: Growth | None = None
        self._data_share = 1.0
        self._log_start = 1
        self._stopped = False

    def applied(self) -> None:
        """Slots were applied: perhaps it is time."""
        if self.running is not None:
            self._watch_pace()
        elif not self._stopped and self._is_due():
            self.make()

    def _watch_pace(self) -> None:
        late = self._pace is not None and self._pace.used() >= 1
        if late != self._holds:
            self._holds = late
            self._hold(late)

    def _is_due(self) -> bool:
        if not ISnapshotStorage.providedBy(self._storage):
            return False
        since = self._state.applied_upto - self._storage.snapshot_slot
        if since >= self._policy.slots:
            return True
        # Before the first one, all of the log counts.
        excess_bytes = self._growth.excess_bytes() if self._growth else self._storage.log_bytes
        return since > 0 and excess_bytes > self._policy.log_bytes

    def _from_now(self) -> Growth:
        return Growth(self._storage, self._state, self._data_share)

    def make(self) -> Deferred[None]:
        """Make one now, of what is applied; fires when it is complete or was given up."""
        assert self.running is None, "one at a time"
        slot = self._state.applied_upto
        pieces = self._state.snapshot(self._sets(slot))
        writer = self._storage.begin_snapshot(slot)
        # What is new came by the log: the snapshot is hardly larger than the last one and that.
        expected_bytes = self._storage.snapshot_bytes + self._storage.log_bytes
        self._pace = Pace(self._from_now(), expected_bytes, self._policy.room_bytes)
        self.running = Deferred.fromCoroutine(self._write(writer, pieces))
        self.running.addErrback(self._failed, writer)
        self.running.addBoth(self._ended)
        return self.running or Deferred()

    async def _write(self, writer: ISnapshotWriter, pieces: Iterator[bytes]) -> None:
        started_s = turn_s = self._clock.seconds()
        state_bytes = self._state.size_bytes
        size_bytes = 0
        try:
            group = bytearray()
            for piece in pieces:
                group += len(piece).to_bytes(4, "big") + piece
                if len(group) >= (LARGE_GROUP_BYTES if self._hurries else GROUP_BYTES):
                    size_bytes += len(group)
                    await self._write_group(writer, group)
                if not self._hurries or self._clock.seconds() - turn_s >= TURN_S:
                    # Making a piece is work for the reactor's thread: other work goes on in between.
                    await deferLater(self._clock, 0)
                    turn_s = self._clock.seconds()
                if self._stopped:
                    writer.abort()
                    return
            size_bytes += len(group)
            await self._write_group(writer, group)
        finally:
            pieces.close()  # type: ignore[attr-defined]
        self._data_share = min(1.0, size_bytes / max(1, state_bytes))
        await writer.finish()
        # A peer that fetches an older snapshot will want the log from there on.
        keep_from = max(1, min(writer.slot - self._keep_slots(writer.slot), self._served_from() + 1))
        # Told first: nobody may be promised a slot that is about to go.
        self._compacted(keep_from)
        self._log_start = log_start = await self._storage.compact(keep_from - 1)
        self._growth = self._from_now()
        took_s = self._clock.seconds() - started_s
        self.made += 1
        self.durations.observe(took_s)
        log.info(
            "snapshot of slot {slot}: {size} bytes in {seconds} s; the log starts at {start}",
            slot=writer.slot,
            size=size_bytes,
            seconds=round(took_s, 3),
            start=log_start,
        )

    @property
    def _hurries(self) -> bool:
        """Whether the log grows so fast that the snapshot must take all the time that it can get."""
        return self._pace is not None and self._pace.used() >= HURRY_SHARE

    async def _write_group(self, writer: ISnapshotWriter, group: bytearray) -> None:
        """Write what was gathered, and pause: as long as it took, so that the log has its turn.

        While the log grows fast there is no pause: the log must not outgrow the snapshot.
        """
        if not group:
            return
        assert self._pace is not None
        before_s = self._clock.seconds()
        await writer.write(bytes(group))
        self._pace.written_bytes += len(group)
        group.clear()
        self._watch_pace()
        if not self._hurries:
            took_s = self._clock.seconds() - before_s
            await deferLater(self._clock, max(self._policy.pause_s, took_s))

    def _keep_slots(self, slot: int) -> int:
        """How much of the log stays below the snapshot of ``slot``."""
        slots = max(1, slot - self._log_start + 1)
        return min(KEEP_SLOTS, KEEP_BYTES * slots // max(1, self._storage.log_bytes))

    def _failed(self, failure: Failure, writer: ISnapshotWriter) -> None:
        """A full disk is waited out; what else is wrong with it, the next write of the log finds."""
        if self._stopped or failure.check(CancelledError):
            return
        failure.trap(StorageError)
        self.failed += 1
        writer.abort()
        log.error("no snapshot of slot {slot}: {error}", slot=writer.slot, error=failure.getErrorMessage())
        self._growth = self._from_now()

    def _ended(self, outcome: object) -> object:
        self.running = self._pace = None
        self._watch_pace()
        return outcome

    def stop(self) -> None:
        """Give up what is under way."""
        self._stopped = True


class SnapshotServer:
    """Gives pieces of the newest snapshot to peers that ask for them."""

    def __init__(self, clock: IReactorTime, storage: ISnapshotStorage, messenger: IMessenger) -> None:
        self._clock = clock
        self._storage = storage
        self._messenger = messenger
        self._readers: dict[int, tuple[ISnapshotReader, Any]] = {}
        self._stopped = False

    def on_fetch_piece(self, sender: Sender, message: FetchPiece) -> None:
        """Answer with a piece, or with the slot of the newest snapshot when that one is not here."""
        reader = self._reader(message.slot)
        if reader is None or message.number >= reader.pieces:
            newest = self._storage.snapshot_slot
            self._messenger.send((sender.uid,), Piece(message.request_id, newest, 0, 0, b""))
            return
        reading = reader.read(message.number)
        reading.addCallback(self._send, sender, message, reader)
        reading.addErrback(self._failed, reader)

    def oldest(self) -> int:
        """The slot of the oldest snapshot that was asked for lately; far above all when there is none."""
        return min(self._readers, default=limits.NUMBER_MAX - 1)

    def _reader(self, slot: int) -> ISnapshotReader | None:
        slot = slot or self._storage.snapshot_slot
        if slot in self._readers:
            reader, idle = self._readers[slot]
            idle.reset(READER_IDLE_S)
            return reader
        opened = self._storage.open_snapshot() if slot == self._storage.snapshot_slot else None
        if opened is not None:
            self._readers[slot] = (opened, self._clock.callLater(READER_IDLE_S, self._close, slot))
        return opened

    def _close(self, slot: int) -> None:
        reader, idle = self._readers.pop(slot)
        if idle.active():
            idle.cancel()
        reader.close()

    def _send(self, data: bytes, sender: Sender, message: FetchPiece, reader: ISnapshotReader) -> None:
        if not self._stopped:
            piece = Piece(message.request_id, reader.slot, message.number, reader.pieces, data)
            self._messenger.send((sender.uid,), piece)

    def _failed(self, failure: Failure, reader: ISnapshotReader) -> None:
        log.error("cannot read the snapshot of slot {slot}: {error}", slot=reader.slot, error=failure.value)
        if reader.slot in self._readers:
            self._close(reader.slot)

    def stop(self) -> None:
        """Close what is open."""
        self._stopped = True
        for slot in list(self._readers):
            self._close(slot)


class SnapshotReceiver:
    """Fetches a snapshot from a peer into storage.

    Args:
        clock: the reactor.
        storage: where it goes.
        messenger: asks peers.
        stored: told the slot when it is complete and durable.
        random: gives numbers in [0, 1), for jitter.

    Attributes:
        fetched: how many were complete.
    """

    def __init__(
        self,
        clock: IReactorTime,
        storage: ISnapshotStorage,
        messenger: IMessenger,
        stored: Callable[[int], None],
        random: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._storage = storage
        self._messenger = messenger
        self._stored = stored
        self._random = random
        self.fetched = 0
        self._sources: deque[str] = deque()
        self._writer: ISnapshotWriter | None = None
        self._next = 0
        self._pieces = 0
        self._request_id = 0
        self._tries = 0
        self._timer: Any = None
        self._busy = False
        self._stopped = False

    @property
    def active(self) -> bool:
        """Whether one is being fetched."""
        return bool(self._sources)

    def start(self, source: str) -> None:
        """``source`` has let go of the slot that this node needs next."""
        if self._stopped or source in self._sources:
            return
        self._sources.append(source)
        if len(self._sources) == 1:
            log.info("too far behind for the log: fetching a snapshot from {source}", source=source)
            self._tries = 0
            self._ask()

    def _ask(self) -> None:
        """Ask for the next piece; the same again, or of another node, when no answer comes."""
        self._stop_timer()
        self._tries += 1
        if self._tries % 3 == 0 and len(self._sources) > 1:
            self._sources.rotate(-1)
        self._request_id += 1
        slot = self._writer.slot if self._writer is not None else 0
        self._messenger.send((self._sources[0],), FetchPiece(self._request_id, slot, self._next))
        wait_s = min(RETRY_FIRST_S * 2 ** min(self._tries - 1, 8), RETRY_MAX_S)
        self._timer = self._clock.callLater(wait_s * (1 + self._random() / 4), self._ask)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def on_piece(self, sender: Sender, message: Piece) -> None:
        """Take the piece that was asked for last; anything else is old."""
        if not self._sources or self._busy or message.request_id != self._request_id:
            return
        self._stop_timer()
        if message.pieces == 0:
            self._start_over(sender.uid, message.slot)
            return
        if self._writer is None:
            self._writer, self._pieces = self._storage.begin_snapshot(message.slot), message.pieces
        if message.slot != self._writer.slot or message.number != self._next:
            self._ask()
            return
        self._busy = True
        self._tries = 0
        writing = Deferred.fromCoroutine(self._take(self._writer, message.data))
        writing.addErrback(self._failed)

    async def _take(self, writer: ISnapshotWriter, data: bytes) -> None:
        await writer.write(data)
        self._busy = False
        if self._stopped:
            return
        self._next += 1
        if self._next < self._pieces:
            self._ask()
            return
        self._busy = True
        await writer.finish()
        self.fetched += 1
        self._end()
        if not self._stopped:
            self._stored(writer.slot)

    def _start_over(self, source: str, newest: int) -> None:
        """The snapshot was replaced there (or there is none): begin with the newest of whoever has one."""
        self._abort()
        if newest == 0 and source in self._sources:
            self._sources.remove(source)
        if self._sources:
            self._ask()

    def _abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
        self._writer, self._next, self._pieces = None, 0, 0

    def _end(self) -> None:
        self._stop_timer()
        self._busy = False
        self._writer, self._next, self._pieces = None, 0, 0
        self._sources.clear()

    def _failed(self, failure: Failure) -> None:
        if self._stopped:
            return
        failure.trap(StorageError)
        self._abort()
        self._end()
        level = log.warn if failure.check(StorageFull) else log.error
        level("the fetched snapshot cannot be stored: {error}", error=failure.getErrorMessage())

    def stop(self) -> None:
        """Give up what is under way."""
        self._stopped = True
        self._stop_timer()
        if not self._busy:
            self._abort()
        self._sources.clear()


async def restore(clock: IReactorTime, storage: ISnapshotStorage, state: ReplicatedState) -> Header | None:
    """Take the state from the newest snapshot in storage, a piece at a time.

    Returns:
        its header; None when there is no snapshot.

    Raises:
        StorageDamaged: it cannot be read, or it is none.
    """
    reader = storage.open_snapshot()
    if reader is None:
        return None
    pieces: deque[bytes] = deque()
    header: Header | None = None
    try:
        steps = state.restore(_drain(pieces))
        for number in range(reader.pieces):
            pieces.extend(_ungrouped(await reader.read(number)))
            while pieces:
                header = next(steps, None) or header
                await deferLater(clock, 0)
        for step in steps:
            header = step or header
            await deferLater(clock, 0)
    except (ValueError, RuntimeError) as error:
        raise StorageDamaged(f"the snapshot of slot {reader.slot}: {error}") from None
    finally:
        reader.close()
    if header is None or header.slot != reader.slot:
        raise StorageDamaged(f"the snapshot of slot {reader.slot} is incomplete")
    return header


def _ungrouped(group: bytes) -> Iterator[bytes]:
    """The pieces in one piece of storage.

    Raises:
        ValueError: it is not made of whole pieces.
    """
    offset = 0
    while offset < len(group):
        size = int.from_bytes(group[offset : offset + 4], "big")
        piece = group[offset + 4 : offset + 4 + size]
        if len(piece) != size:
            raise ValueError("a piece of the snapshot is cut")
        yield piece
        offset += 4 + size


def _drain(pieces: deque[bytes]) -> Iterator[bytes]:
    while pieces:
        yield pieces.popleft()
