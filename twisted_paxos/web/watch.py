"""``watch``: each stream carries the watches that its body asks for.

The hub is pull-based: what a client does not take waits there, within its bounds, or is read from history
later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from operator import is_
from typing import Final

from msgspec import structs
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.kvcommands import FROM_KEY, Event
from twisted_paxos.statemachine.watches import EMPTY_RANGE, WatchBatch, WatchRequest
from twisted_paxos.web.errors import TOO_MANY_REQUESTS
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.replies import Chunk, WatchReply, encode, event_of, int64
from twisted_paxos.web.requests import WatchCreate, WatchMessage
from twisted_paxos.web.streams import Stream

WATCHES_PER_STREAM_MAX: Final = 1_000
"""Watches of one stream."""

PROGRESS_S: Final = 600.0
"""How often watches that ask for it are told how far they are, as with etcd."""

NO_ID: Final = -1
"""etcd's number for a watch that was not made, and for progress of all."""

DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"


class _Watch:
    """One watch of a stream: ``watch_id`` is the stream's number for it, ``hub_id`` the hub's."""

    __slots__ = ("hub_id", "ready", "watch_id")

    def __init__(self, watch_id: int) -> None:
        self.watch_id = watch_id
        self.hub_id = 0
        self.ready = False


class WatchStream:
    """The watches of one request."""

    __slots__ = (
        "_chunks",
        "_gateway",
        "_next_id",
        "_progress",
        "_progress_call",
        "_ready",
        "_stream",
        "_waits",
        "_watches",
    )

    def __init__(self, gateway: Gateway, chunks: WatchChunks, stream: Stream) -> None:
        self._gateway = gateway
        self._chunks = chunks
        self._stream = stream
        self._watches: dict[int, _Watch] = {}
        self._next_id = 0
        self._ready: deque[_Watch] = deque()
        self._waits = False
        self._progress = 0  # how many times the client has asked for it
        self._progress_call: IDelayedCall | None = None
        stream.on_resume = self._plan
        stream.on_lost = self._lost
        gateway.follow(self)

    def do(self, message: WatchMessage) -> None:
        """What the client asks for."""
        if message.create_request is not None:
            self._create(message.create_request)
        elif message.cancel_request is not None:
            self._cancel(message.cancel_request.watch_id)
        elif message.progress_request is not None:
            self._progress += 1
            if not self._ready:
                self._send_progress()
            self._plan()

    def end(self, error: Exception) -> None:
        """See `gateway.Follower`."""
        self._stream.fail(Failure(error))

    # -- the client's requests

    def _create(self, request: WatchCreate) -> None:
        wanted = _wanted(request)
        if wanted.range_end not in (b"", FROM_KEY) and wanted.range_end <= wanted.key:
            self._refuse(EMPTY_RANGE)
        elif len(self._watches) >= WATCHES_PER_STREAM_MAX:
            self._refuse(TOO_MANY_REQUESTS)
        elif request.watch_id in self._watches and request.watch_id:
            self._refuse(DUPLICATE_ID)
        else:
            self._start(_Watch(request.watch_id or self._pick_id()), wanted)

    def _pick_id(self) -> int:
        while self._next_id in self._watches:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _start(self, watch: _Watch, wanted: WatchRequest) -> None:
        gateway = self._gateway
        revision = gateway.store.revision
        self._watches[watch.watch_id] = watch
        # Before anything else of this watch: the hub only notes that there is something.
        self._stream.send(WatchReply(gateway.header(revision), int64(watch.watch_id), created=True))
        try:
            watch.hub_id = gateway.store.watches.create(wanted, partial(self._woken, watch))
        except PaxosError:
            del self._watches[watch.watch_id]
            header = gateway.header(revision)
            watch_id = int64(watch.watch_id)
            self._stream.send(WatchReply(header, watch_id, canceled=True, cancel_reason=TOO_MANY_REQUESTS))
            return
        if wanted.progress_notify and self._progress_call is None:
            self._progress_call = gateway.reactor.callLater(PROGRESS_S, self._ask_progress)

    def _refuse(self, reason: str) -> None:
        header = self._gateway.header(self._gateway.store.revision)
        self._stream.send(WatchReply(header, int64(NO_ID), created=True, canceled=True, cancel_reason=reason))

    def _cancel(self, watch_id: int) -> None:
        watch = self._watches.pop(watch_id, None)
        if watch is not None:
            self._gateway.store.watches.cancel(watch.hub_id)
            header = self._gateway.header(self._gateway.store.revision)
            self._stream.send(WatchReply(header, int64(watch_id), canceled=True))

    # -- events

    def _woken(self, watch: _Watch) -> None:
        """The hub has something for ``watch``; called from within its `apply`, so only noted."""
        if not watch.ready:
            watch.ready = True
            self._ready.append(watch)
            self._plan()

    def _plan(self) -> None:
        if not self._waits and (self._ready or self._progress) and not self._stream.paused:
            self._waits = True
            self._gateway.turns.add(self)

    def take_turn(self) -> None:
        """See `turns.Sender`."""
        self._waits = False
        if not self._stream.open or self._stream.paused:
            return
        if self._ready:
            watch = self._ready.popleft()
            watch.ready = False
            if self._watches.get(watch.watch_id) is watch and self._send_next(watch):
                self._woken(watch)
        elif self._progress:
            self._send_progress()
        self._plan()

    def _send_progress(self) -> None:
        """Nothing is left to send, so this is true of every watch of the stream."""
        self._progress -= 1
        header = self._gateway.header(self._gateway.store.revision)
        self._stream.send(WatchReply(header, int64(NO_ID)))

    def _send_next(self, watch: _Watch) -> bool:
        """Send a batch of ``watch``; tells whether there may be more."""
        hub = self._gateway.store.watches
        watcher = hub.watchers.get(watch.hub_id)
        was_behind = watcher is not None and not watcher.synced
        batch = hub.poll(watch.hub_id)
        if batch is None:
            return False
        if batch.canceled:
            del self._watches[watch.watch_id]
        elif was_behind and watcher is not None and watcher.synced and not watcher.queue:
            # It has caught up: it has seen everything there is.
            batch = structs.replace(batch, revision=hub.revision)
        self._stream.send_encoded(self._chunks.of(self._gateway, watch.watch_id, batch))
        return not batch.canceled

    # -- the end

    def _ask_progress(self) -> None:
        hub = self._gateway.store.watches
        for watch in self._watches.values():
            watching = hub.watchers.get(watch.hub_id)
            if watching is not None and watching.request.progress_notify:
                hub.request_progress(watch.hub_id)
        self._progress_call = self._gateway.reactor.callLater(PROGRESS_S, self._ask_progress)

    def _lost(self) -> None:
        """The stream is over."""
        self._gateway.leave(self)
        for watch in self._watches.values():
            self._gateway.store.watches.cancel(watch.hub_id)
        self._watches.clear()
        self._ready.clear()
        if self._progress_call is not None:
            self._progress_call.cancel()
            self._progress_call = None


def _wanted(request: WatchCreate) -> WatchRequest:
    """The hub's form; an empty key is the first one, as with etcd."""
    return WatchRequest(
        request.key or b"\0",
        request.range_end,
        request.start_revision if request.start_revision >= 0 else 1,
        "NOPUT" in request.filters,
        "NODELETE" in request.filters,
        request.prev_kv,
        request.progress_notify,
    )


class WatchChunks:
    """Encodes batches; the same event for thousands of watches is encoded once."""

    def __init__(self) -> None:
        self._events: tuple[Event, ...] = ()
        self._about: tuple[int, int, int] = (0, 0, 0)
        self._chunk = b""

    def of(self, gateway: Gateway, watch_id: int, batch: WatchBatch) -> bytes:
        """The chunk with ``batch``, for the watch with this number on its stream."""
        about = (watch_id, batch.revision, gateway.term())
        if batch.events and about == self._about and _identical(batch.events, self._events):
            return self._chunk
        chunk = encode(Chunk(_reply(gateway, watch_id, batch))) + b"\n"
        if batch.events:
            self._about, self._events, self._chunk = about, batch.events, chunk
        return chunk


def _reply(gateway: Gateway, watch_id: int, batch: WatchBatch) -> WatchReply:
    compact = batch.compact_revision
    return WatchReply(
        # As etcd: where history is gone there is no revision, and the number says why.
        gateway.header(0 if compact else batch.revision),
        int64(watch_id),
        canceled=batch.canceled,
        compact_revision=int64(compact),
        cancel_reason="" if compact else batch.cancel_reason,
        events=tuple(map(event_of, batch.events)),
    )


def _identical(some: tuple[Event, ...], others: tuple[Event, ...]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


class Watches:
    """All watch streams of a gateway."""

    def __init__(self) -> None:
        self._chunks = WatchChunks()

    def serve(self, gateway: Gateway, stream: Stream, messages: Iterator[WatchMessage]) -> None:
        """``watch``."""
        watches = WatchStream(gateway, self._chunks, stream)
        for message in messages:
            watches.do(message)
