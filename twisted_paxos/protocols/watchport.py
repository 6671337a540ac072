"""Watches of clients: what the hub has to tell goes out as fast as each client takes it.

The hub is pull-based, so nothing waits here but one batch per watch that is larger than a frame.
What must always hold:

* Nothing is polled while the client does not read; the hub bounds what a watch has waiting.
* Watches take turns, and a turn of the reactor takes `TURN_S` at most: ten thousand watches that
  have something to tell at once delay nothing else.
* A connection with watches hears something every second. A node that cannot make progress itself ends
  its watches and says so: no client waits on it in silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_paxos.errors import PaxosError
from twisted_paxos.protocols.refusals import Channel, failure_for
from twisted_paxos.statemachine.kvcommands import Event
from twisted_paxos.statemachine.watches import WatchBatch, WatchHub
from twisted_paxos.wire.client import Failure, Watch, WatchEvents, WatchProgress, WatchStarted

WATCHES_MAX: Final = 20_000
"""Watches of one connection; beyond, ``overloaded``."""

PROGRESS_S: Final = 1.0
"""How often a connection with watches is told how far they are."""

UNSERVED_MAX_S: Final = 2.0
"""A node without a leader that works for so long ends its watches."""

TURN_S: Final = 0.005
"""How long one turn of the reactor sends events to one client."""

FRAGMENT_BYTES: Final = 512 << 10
"""Keys and values in one frame, unless one event alone has more."""

EVENT_OVERHEAD_BYTES: Final = 64
"""What surrounds keys and values in a frame, about."""


class _Watch:
    """One watch.

    Attributes:
        request_id: the client's number for it.
        watch_id: the hub's.
        ready: it waits for its turn.
        rest: the frames that are left of a large batch.
    """

    __slots__ = ("ready", "request_id", "rest", "watch_id")

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.watch_id = 0
        self.ready = False
        self.rest: Iterator[WatchEvents] | None = None


class WatchPort:
    """The watches of one connection.

    Args:
        hub: of the node.
        reactor: for turns and for progress.
        channel: to the client.
        unserved_s: tells for how many seconds the node has had no leader that works.
    """

    def __init__(
        self, hub: WatchHub, reactor: IReactorTime, channel: Channel, unserved_s: Callable[[], float]
    ) -> None:
        self._hub = hub
        self._reactor = reactor
        self._channel = channel
        self._unserved_s = unserved_s
        self._watches: dict[int, _Watch] = {}
        self._ready: deque[_Watch] = deque()
        self._turn: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._watches)

    def start(self, request: Watch) -> None:
        """Start a watch, or say why not."""
        request_id = request.request_id
        if len(self._watches) >= WATCHES_MAX:
            self._channel.count("watches_max")
            message = f"this connection has {WATCHES_MAX:,} watches already"
            self._channel.reply(Failure(request_id, "overloaded", message))
            return
        if request_id in self._watches:
            message = f"request number {request_id} is in use"
            self._channel.reply(Failure(request_id, "bad_request", message))
            return
        watch = _Watch(request_id)
        try:
            watch.watch_id = self._hub.create(request.request, partial(self._woken, watch))
        except PaxosError as error:
            self._channel.reply(failure_for(request_id, error))
            return
        self._watches[request_id] = watch
        self._channel.reply(WatchStarted(request_id, self._hub.revision))
        if self._timer is None:
            self._timer = self._reactor.callLater(PROGRESS_S, self._tick)

    def stop(self, request_id: int) -> None:
        """End a watch; one that has ended already is none."""
        watch = self._watches.pop(request_id, None)
        if watch is not None:
            self._hub.cancel(watch.watch_id)

    def go_on(self) -> None:
        """The client reads again."""
        self._plan()

    def close(self) -> None:
        """End all watches without a word."""
        for watch in self._watches.values():
            self._hub.cancel(watch.watch_id)
        self._watches.clear()
        self._ready.clear()
        for call in (self._turn, self._timer):
            if call is not None and call.active():
                call.cancel()
        self._turn = self._timer = None

    # -- events --------------------------------------------------------------------------------

    def _woken(self, watch: _Watch) -> None:
        """The hub has something for ``watch``; called from within its `apply`, so only noted."""
        if not watch.ready:
            watch.ready = True
            self._ready.append(watch)
            self._plan()

    def _plan(self) -> None:
        if self._turn is None and self._ready and not self._channel.paused:
            self._turn = self._reactor.callLater(0, self._take_turns)

    def _take_turns(self) -> None:
        self._turn = None
        end_s = self._reactor.seconds() + TURN_S
        while self._ready and not self._channel.paused:
            watch = self._ready.popleft()
            watch.ready = False
            if self._watches.get(watch.request_id) is watch and self._send_next(watch):
                self._woken(watch)
            if self._reactor.seconds() >= end_s:
                break
        self._plan()

    def _send_next(self, watch: _Watch) -> bool:
        """Send one frame of ``watch``; tells whether it is to have another turn."""
        if watch.rest is None:
            batch = self._hub.poll(watch.watch_id)
            if batch is None:
                return False
            if batch.canceled:
                del self._watches[watch.request_id]
                self._channel.reply(WatchEvents(watch.request_id, batch))
                return False
            watch.rest = _frames(watch.request_id, batch)
        frame = next(watch.rest)
        if not frame.more:
            watch.rest = None
        self._channel.reply(frame)
        return True

    # -- progress ------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        if not self._watches:
            return
        if self._unserved_s() > UNSERVED_MAX_S:
            self._end_all("unavailable: this node has no leader that works; watch at another node")
            return
        self._timer = self._reactor.callLater(PROGRESS_S, self._tick)
        if not self._channel.paused:
            # What is not ready has been polled until it had nothing more to tell.
            behind = tuple(watch.request_id for watch in self._ready)
            self._channel.reply(WatchProgress(self._hub.revision, behind))

    def _end_all(self, reason: str) -> None:
        self._channel.count("watches_unserved")
        watches = list(self._watches.values())
        self.close()
        for watch in watches:
            batch = WatchBatch(watch.watch_id, 0, (), True, reason)
            self._channel.reply(WatchEvents(watch.request_id, batch))


def _frames(request_id: int, batch: WatchBatch) -> Iterator[WatchEvents]:
    """``batch`` in frames of about `FRAGMENT_BYTES`; all but the last say that there is more."""
    start = 0
    for end in _cuts(batch.events):
        part = WatchBatch(batch.watch_id, batch.revision, batch.events[start:end])
        yield WatchEvents(request_id, part, more=True)
        start = end
    if start:
        batch = WatchBatch(batch.watch_id, batch.revision, batch.events[start:])
    yield WatchEvents(request_id, batch)


def _cuts(events: tuple[Event, ...]) -> Iterator[int]:
    """Where a new frame begins."""
    size_bytes = 0
    for position, event in enumerate(events):
        event_bytes = _size_bytes(event)
        if size_bytes and size_bytes + event_bytes > FRAGMENT_BYTES:
            yield position
            size_bytes = 0
        size_bytes += event_bytes


def _size_bytes(event: Event) -> int:
    kv, prev_kv = event.kv, event.prev_kv
    size_bytes = EVENT_OVERHEAD_BYTES + len(kv.key) + len(kv.value)
    return size_bytes + (len(prev_kv.key) + len(prev_kv.value) if prev_kv is not None else 0)
