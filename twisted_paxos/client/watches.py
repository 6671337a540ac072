"""Watches that survive their connections: every event once, in order, whole revisions.

All watches of a client share one connection, which is not that of its commands: events never delay
results. A watch knows the next revision that it wants; whenever the connection is lost, says
nothing for `SILENCE_S`, or its node tells that it serves nobody, all of them go on from there at the
next node.

A consumer that is slow does not hold up the others: when too much waits for it, its watch is stopped at the
node and started again, from the next revision, once it has caught up.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import structs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.client.connection import ClientConnection, backoff_s, open_connection
from twisted_paxos.errors import Overloaded, PaxosError, Unavailable, WatchCanceled
from twisted_paxos.statemachine.kvcommands import Event
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest
from twisted_paxos.wire.client import (
    Failure,
    Response,
    StopWatch,
    WatchEvents,
    WatchProgress,
    WatchStarted,
)
from twisted_paxos.wire.client import Watch as StartWatch

log = Logger()

SILENCE_S: Final = 3.0
"""A node tells how far watches are every second; after so long without a word the next one is tried."""

CHECK_S: Final = 0.5
LATE_S: Final = 1.0
"""How often silence is looked for; a check that is so late shows that this process slept."""

IDLE_S: Final = 10.0
"""How long the connection is kept when there are no watches."""

CONNECT_S: Final = 1.0
"""What one attempt to reach a node may take."""

ALARM_S: Final = 10.0
"""So long without any node is worth a line in the log."""

BUFFER_MAX_BYTES: Final = 4 << 20
BUFFER_MAX_BATCHES: Final = 4_096
"""What waits for a consumer; beyond, its watch rests until it has taken half of that."""

UNAVAILABLE: Final = "unavailable"
"""A cancellation for this reason means this node only."""


class Watch:
    """An async iterator over `WatchBatch`, each with all events of its revisions. One user, one iteration.

    It goes on over reconnects and fail-overs. `close` it when it is not wanted any more, or use it in
    ``async with``.

    Attributes:
        request: what it watches.
        next_revision: everything before it has been given, or will be by the iteration; 0: not known yet.

    Iteration raises:
        WatchCanceled: it cannot go on; ``compact_revision`` says where history begins now.
        Overloaded: the node has as many watches as it may.
    """

    def __init__(self, watches: Watches, request: WatchRequest, seen_revision: int) -> None:
        self.request = request
        self.next_revision = request.start_revision
        self.request_id = 0
        self.live = False
        self.resting = False
        self._seen_revision = seen_revision
        self._watches = watches
        self._parts: list[Event] = []
        self._batches: deque[WatchBatch] = deque()
        self._buffered_bytes = 0
        self._error: PaxosError | None = None
        self._ended = False
        self._waiter: Deferred[None] | None = None

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._batches:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = Deferred()
            await self._waiter
        batch = self._batches.popleft()
        self._buffered_bytes -= _size_bytes(batch)
        if self.resting and not self._is_over(BUFFER_MAX_BATCHES // 2, BUFFER_MAX_BYTES // 2):
            self._watches.go_on(self)
        return batch

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; a pending wait ends the iteration."""
        if not self._ended:
            self._ended = True
            self._batches.clear()
            self._watches.remove(self)
            self._wake()

    @property
    def full(self) -> bool:
        """Too much waits for the consumer."""
        return self._is_over(BUFFER_MAX_BATCHES, BUFFER_MAX_BYTES)

    def _is_over(self, batches: int, size_bytes: int) -> bool:
        return len(self._batches) > batches or self._buffered_bytes > size_bytes

    # -- called by `Watches` -----------------------------------------------------------------

    def start_request(self, request_id: int) -> StartWatch:
        """What starts it at a node, from where it is."""
        self.request_id = request_id
        self.resting = False
        return StartWatch(request_id, structs.replace(self.request, start_revision=self.next_revision))

    def started(self, revision: int) -> None:
        """The node has it; its store is at ``revision``, which may be older than what the client has seen."""
        self.live = True
        if not self.next_revision:
            self.next_revision = max(revision, self._seen_revision) + 1

    def detached(self) -> None:
        """It is at no node any more; what came of an unfinished batch comes again, whole."""
        self.live = False
        self._parts.clear()

    def deliver(self, batch: WatchBatch, more: bool) -> None:
        """Take a batch, or a part of it."""
        self._parts.extend(batch.events)
        if more:
            return
        # A revision comes whole; what is before the next one has been given already.
        events = tuple(event for event in self._parts if event.kv.mod_revision >= self.next_revision)
        self._parts.clear()
        if events or (self.request.progress_notify and batch.revision >= self.next_revision):
            self._give(WatchBatch(0, batch.revision, events))
        self.next_revision = max(self.next_revision, batch.revision + 1)

    def progress(self, revision: int) -> None:
        """Everything up to ``revision`` has been delivered."""
        if not self.live or self._parts:
            return
        if self.request.progress_notify and revision + 1 >= self.next_revision:
            self._give(WatchBatch(0, revision))
        self.next_revision = max(self.next_revision, revision + 1)

    def end(self, error: PaxosError | None) -> None:
        """It ends: with ``error`` once what waits has been taken."""
        self._ended = True
        self._error = error
        self._wake()

    def _give(self, batch: WatchBatch) -> None:
        self._batches.append(batch)
        self._buffered_bytes += _size_bytes(batch)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)


class Watches:
    """The watches of one client, and the connection that they share.

    Args:
        reactor: for connections and time.
        endpoints: gives the nodes' addresses, the best one first.
        rng: for jitter.
    """

    def __init__(self, reactor: Any, endpoints: Callable[[], Sequence[str]], rng: random.Random) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._rng = rng
        self._watches: dict[Watch, None] = {}
        self._at_node: dict[int, Watch] = {}
        self._numbers = 0
        self._connection: ClientConnection | None = None
        self._connecting: Deferred[None] | None = None
        self._to_try: deque[str] = deque()
        self._endpoint = ""
        self._rounds = 0
        self._timer: Any = None
        self._due_s = 0.0
        self._retry: Any = None
        self._heard_s = 0.0
        self._since_s = 0.0
        self._alarmed = False
        self._closed = False
        self._why = ""

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, request: WatchRequest, seen_revision: int) -> Watch:
        """Start a watch; one from the present on begins no earlier than behind ``seen_revision``."""
        watch = Watch(self, request, seen_revision)
        if self._closed:
            watch.end(Unavailable("the client is closed"))
            return watch
        if not self._watches and self._connection is None:
            self._since_s = self._reactor.seconds()
        self._watches[watch] = None
        if self._connection is not None:
            self._start(watch)
        else:
            self._reconnect()
        self._watch_silence()
        return watch

    def remove(self, watch: Watch) -> None:
        """Stop a watch."""
        if self._watches.pop(watch, self) is not self:
            self._stop_at_node(watch)
        if not self._watches:
            self._heard_s = self._reactor.seconds()

    def go_on(self, watch: Watch) -> None:
        """The consumer of a watch that rests has caught up."""
        if watch in self._watches:
            # Without a connection, the next one starts it.
            watch.resting = False
            if self._connection is not None:
                self._start(watch)

    def close(self) -> None:
        """End everything: iterations end."""
        self._closed = True
        for call in (self._timer, self._retry):
            if call is not None and call.active():
                call.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        watches = list(self._watches)
        self._watches.clear()
        for watch in watches:
            watch.end(None)

    # -- the connection ----------------------------------------------------------------------

    def _reconnect(self) -> None:
        retrying = self._retry is not None and self._retry.active()
        if self._closed or retrying or self._connecting is not None or not self._watches:
            return
        connecting = self._connecting = Deferred.fromCoroutine(self._try_next())
        connecting.addBoth(self._tried)

    async def _try_next(self) -> None:
        if not self._to_try:
            # The one that was just lost comes last.
            self._to_try.extend(sorted(self._endpoints(), key=lambda name: name == self._endpoint))
        endpoint = self._endpoint = self._to_try.popleft()
        try:
            connection = await open_connection(
                self._reactor, endpoint, self._got, self._lost, timeout_s=CONNECT_S
            )
        except Unavailable as error:
            self._why = str(error)
            return
        if self._closed:
            connection.close()
            return
        self._connection = connection
        self._heard_s = self._reactor.seconds()

    def _tried(self, outcome: object) -> None:
        self._connecting = None
        if self._closed:
            return
        if isinstance(outcome, TwistedFailure):
            log.failure("Connecting for a watch failed; the next node is tried", outcome)
        if self._connection is None:
            self._retry_soon()
            return
        for watch in list(self._watches):
            if not watch.resting:
                self._start(watch)

    def _retry_soon(self) -> None:
        """The next node at once; after a whole round without one that serves, a pause first."""
        delay_s = 0.0
        if not self._to_try:
            self._rounds += 1
            delay_s = backoff_s(self._rounds, self._rng)
        self._alarm()
        self._retry = self._reactor.callLater(delay_s, self._reconnect)

    def _alarm(self) -> None:
        away_s = self._reactor.seconds() - self._since_s
        if away_s > ALARM_S and not self._alarmed:
            self._alarmed = True
            log.warn(
                "{count} watches have had no node for {away_s:.0f} s ({why}); they go on when one answers",
                count=len(self._watches),
                away_s=away_s,
                why=self._why,
            )

    def _lost(self, why: str) -> None:
        """`ClientConnection` tells that it is gone."""
        self._connection = None
        self._why = why
        for watch in self._at_node.values():
            watch.detached()
        self._at_node.clear()
        if not self._closed and self._watches:
            self._since_s = self._reactor.seconds()
            self._retry_soon()

    def _leave(self, why: str) -> None:
        if self._connection is not None:
            log.debug("Watches leave their node: {why}", why=why)
            self._connection.drop(why)

    def _watch_silence(self) -> None:
        if self._timer is None or not self._timer.active():
            self._due_s = self._reactor.seconds() + CHECK_S
            self._timer = self._reactor.callLater(CHECK_S, self._check)

    def _check(self) -> None:
        now_s = self._reactor.seconds()
        if now_s - self._due_s > LATE_S:
            self._heard_s = now_s
        if self._connection is not None:
            quiet_s = now_s - self._heard_s
            if self._watches and quiet_s > SILENCE_S:
                self._leave(f"nothing heard for {quiet_s:.1f} s")
            elif not self._watches and quiet_s > IDLE_S:
                self._connection.close()
                self._connection = None
        if self._watches or self._connection is not None:
            self._watch_silence()

    # -- at the node ---------------------------------------------------------------------------

    def _start(self, watch: Watch) -> None:
        assert self._connection is not None
        self._numbers += 1
        self._at_node[self._numbers] = watch
        self._connection.send(watch.start_request(self._numbers))

    def _stop_at_node(self, watch: Watch) -> None:
        if self._at_node.pop(watch.request_id, None) is not None:
            watch.detached()
            if self._connection is not None:
                self._connection.send(StopWatch(watch.request_id))

    def _got(self, response: Response) -> None:
        self._heard_s = self._reactor.seconds()
        if isinstance(response, WatchProgress):
            self._progress(response)
            return
        if not isinstance(response, (WatchStarted, WatchEvents, Failure)):
            return
        watch = self._at_node.get(response.request_id)
        if watch is None:
            return
        if isinstance(response, WatchStarted):
            watch.started(response.revision)
        elif isinstance(response, WatchEvents):
            self._events(watch, response)
        else:
            self._refused(watch, response)

    def _progress(self, progress: WatchProgress) -> None:
        self._serves()
        behind = set(progress.behind)
        for request_id, watch in list(self._at_node.items()):
            if request_id not in behind:
                watch.progress(progress.revision)
                self._rest_if_full(watch)

    def _serves(self) -> None:
        """The node does its work: the next round of attempts begins without a pause."""
        self._rounds = 0
        self._alarmed = False
        self._to_try.clear()

    def _events(self, watch: Watch, response: WatchEvents) -> None:
        batch = response.batch
        if not batch.canceled:
            watch.deliver(batch, response.more)
            self._rest_if_full(watch)
        elif batch.cancel_reason.startswith(UNAVAILABLE):
            self._leave(batch.cancel_reason)
        elif 0 < batch.compact_revision <= watch.next_revision:
            # The node was behind this client: what it misses is not wanted, and the rest is there.
            self._at_node.pop(watch.request_id, None)
            watch.detached()
            self._start(watch)
        else:
            self._end(watch, WatchCanceled(batch.cancel_reason, batch.compact_revision))

    def _rest_if_full(self, watch: Watch) -> None:
        if watch.full:
            watch.resting = True
            self._stop_at_node(watch)

    def _refused(self, watch: Watch, failure: Failure) -> None:
        if failure.code == "overloaded":
            self._end(watch, Overloaded(failure.message))
        elif failure.code == "bad_request":
            self._end(watch, WatchCanceled(failure.message))
        else:
            self._leave(failure.message)

    def _end(self, watch: Watch, error: PaxosError) -> None:
        self._at_node.pop(watch.request_id, None)
        self._watches.pop(watch, None)
        watch.detached()
        watch.end(error)


def _size_bytes(batch: WatchBatch) -> int:
    return sum(
        len(event.kv.key) + len(event.kv.value) + (len(event.prev_kv.value) if event.prev_kv else 0)
        for event in batch.events
    )
