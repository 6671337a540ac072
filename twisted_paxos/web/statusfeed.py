"""``/events``: a node's figures as server-sent events, for the status page.

An event is made only while somebody listens, at most `EVENTS_PER_S` times a second, and encoded once for
all. A listener that does not read is not written to, and dropped after `SLOW_S`; there are at
most `LISTENERS_MAX`. Three kinds (the format is that of the WHATWG's HTML standard, section 9.2):

    nodes    once: {id: URL of its HTTP port} of all nodes whose port is known
    status   whenever something has changed, and once a second: a `NodeEvent`
    notes    at first, and whenever something happened: a list of `figures.Note`, the newest last

Counts only grow: the page takes differences. There are no keys and no values in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.http import SERVICE_UNAVAILABLE, Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_paxos.core.histogram import Distribution
from twisted_paxos.figures import NodeFigures, Note, PeerFigures
from twisted_paxos.statemachine.kvcommands import StoreStatus

EVENTS_PER_S: Final = 5
LISTENERS_MAX: Final = 64
"""More are told to come back later."""

IDLE_S: Final = 1.0
"""After so long without a change the same is sent again: the page sees that the node lives."""

SLOW_S: Final = 10.0
"""A listener that took nothing for so long is dropped."""

RETRY_MS: Final = 1_000
"""After this time a browser that lost its connection tries again."""

_encode = msgspec.json.Encoder().encode


class Timings(Struct, frozen=True):
    """A `Distribution` as the page takes it: counts per bucket, and all durations added up, in seconds."""

    counts: tuple[int, ...]
    sum_s: float


class PeerEvent(Struct, frozen=True):
    """One other node as this one sees it; see `PeerFigures`."""

    uid: str
    heard: bool
    reached: bool
    voter: bool
    leading: bool
    leader: str
    chosen: int
    round_trip_ms: float | None


class NodeEvent(Struct, frozen=True, kw_only=True):
    """One moment of this node; see `NodeFigures` and `NodeStatus` for what the fields are."""

    uid: str
    role: str
    leader: str
    leader_works: bool
    ballot: str
    ballot_number: int
    promised: str
    chosen: int
    applied: int
    log_start: int
    log_bytes: int
    uptime_s: float
    boot: int
    version: str
    votes: bool
    voters: tuple[str, ...]
    waiting_for: tuple[str, ...]
    peers: tuple[PeerEvent, ...]
    leader_changes: int
    commands: int
    pending: int
    missing: int
    messages: int
    dropped: int
    bounds_s: tuple[float, ...]
    commits: Timings
    syncs: Timings
    disk_full: bool
    snapshot_slot: int
    store: StoreStatus | None
    sessions: int
    clients: int


def node_event(figures: NodeFigures) -> NodeEvent:
    """What the page is told of ``figures``."""
    status = figures.status
    return NodeEvent(
        uid=status.uid,
        role=status.role,
        leader=status.leader,
        leader_works=status.leader_works,
        ballot=str(status.ballot),
        ballot_number=status.ballot.number,
        promised=str(status.promised),
        chosen=status.chosen_upto,
        applied=status.applied,
        log_start=status.log_start,
        log_bytes=status.log_bytes,
        uptime_s=status.uptime_s,
        boot=status.boot,
        version=status.version,
        votes=figures.votes,
        voters=figures.voters,
        waiting_for=status.waiting_for,
        peers=tuple(map(_peer_event, figures.peers)),
        leader_changes=figures.leader_changes,
        commands=figures.commands,
        pending=figures.pending,
        missing=figures.missing_slots,
        messages=sum(figures.sent.values()) + sum(figures.received.values()),
        dropped=sum(status.dropped.values()),
        bounds_s=figures.commits.bounds_s,
        commits=_timings(figures.commits),
        syncs=_timings(figures.syncs),
        disk_full=figures.disk_full,
        snapshot_slot=figures.snapshots.slot,
        store=figures.store,
        sessions=figures.sessions,
        clients=figures.clients,
    )


def _peer_event(peer: PeerFigures) -> PeerEvent:
    round_trip_ms = None if peer.round_trip_s is None else round(1000 * peer.round_trip_s, 2)
    return PeerEvent(
        peer.uid,
        peer.heard,
        peer.reached,
        peer.voter,
        peer.leading,
        peer.leader.uid if peer.leader_works else "",
        peer.chosen_upto,
        round_trip_ms,
    )


def _timings(distribution: Distribution) -> Timings:
    return Timings(distribution.counts, round(distribution.sum_s, 6))


def _unmoving(event: NodeEvent) -> tuple[object, ...]:
    """What is worth an event out of turn: not that time passes, nor that heartbeats come and go."""
    peers = tuple((peer.uid, peer.heard, peer.reached, peer.leading, peer.leader) for peer in event.peers)
    return (event.role, event.leader, event.leader_works, event.ballot, event.chosen, event.applied, peers)


class Listener(Protocol):
    """Takes events."""

    def write(self, data: bytes) -> None:
        """Take one or more whole events."""

    def end(self) -> None:
        """There will be no more."""


class StatusFeed:
    """Makes the events of one node.

    Args:
        clock: the reactor.
        figures: gives those of now.
        nodes: URLs of the nodes' HTTP ports, by id.
        listeners_max: how many there may be.
    """

    def __init__(
        self,
        clock: IReactorTime,
        figures: Callable[[], NodeFigures],
        nodes: Mapping[str, str],
        listeners_max: int = LISTENERS_MAX,
    ) -> None:
        self._clock = clock
        self._figures = figures
        self._hello = b"retry: %d\n" % RETRY_MS + _event("nodes", dict(nodes))
        self._listeners_max = listeners_max
        self._listeners: dict[Listener, None] = {}
        self._timer: Any = None
        self._told: tuple[object, ...] = ()
        self._told_s = float("-inf")
        self._noted = -1

    def __len__(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def add(self, listener: Listener) -> bool:
        """Tell ``listener`` how things are, and from now on what changes; False when there are too many."""
        if len(self._listeners) >= self._listeners_max:
            return False
        figures = self._figures()
        status = _event("status", node_event(figures))
        listener.write(self._hello + status + _event("notes", figures.notes))
        self._listeners[listener] = None
        if self._timer is None:
            self._noted = _last(figures.notes)
            self._plan()
        return True

    def remove(self, listener: Listener) -> None:
        """Tell it nothing more."""
        self._listeners.pop(listener, None)

    def stop(self) -> None:
        """End all streams."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        listeners, self._listeners = list(self._listeners), {}
        for listener in listeners:
            listener.end()

    def _plan(self) -> None:
        self._timer = self._clock.callLater(1 / EVENTS_PER_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if not self._listeners:
            return
        data = self._news()
        if data:
            for listener in list(self._listeners):
                listener.write(data)
        self._plan()

    def _news(self) -> bytes:
        figures = self._figures()
        now_s = self._clock.seconds()
        data = b""
        noted = _last(figures.notes)
        if noted != self._noted:
            self._noted = noted
            data = _event("notes", figures.notes)
        event = node_event(figures)
        told = _unmoving(event)
        if data or told != self._told or now_s - self._told_s >= IDLE_S:
            self._told, self._told_s = told, now_s
            data = _event("status", event) + data
        return data


def _last(notes: tuple[Note, ...]) -> int:
    return notes[-1].number if notes else 0


def _event(kind: str, content: object) -> bytes:
    """One event; JSON has no line ends."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode("ascii"), _encode(content))


def _abort(request: Any) -> None:
    """Cut the connection: what waits in it would never be taken."""
    request.channel.transport.abortConnection()


@implementer(IPushProducer)
class _Stream:
    """A listener behind an HTTP request.

    Args:
        request: what asked.
        feed: where it listens.
        clock: the reactor.
    """

    def __init__(self, request: Request, feed: StatusFeed, clock: IReactorTime) -> None:
        self._request = request
        self._feed = feed
        self._clock = clock
        self._paused_s: float | None = None

    def write(self, data: bytes) -> None:
        """Pass events on, unless earlier ones still wait: the next ones will say more than these."""
        if self._paused_s is None:
            self._request.write(data)
        elif self._clock.seconds() - self._paused_s > SLOW_S:
            self._feed.remove(self)
            _abort(self._request)

    def end(self) -> None:
        """Finish the answer."""
        self._request.unregisterProducer()
        self._request.finish()

    def pauseProducing(self) -> None:
        """What was written is not read."""
        if self._paused_s is None:
            self._paused_s = self._clock.seconds()

    def resumeProducing(self) -> None:
        """It was read."""
        self._paused_s = None

    def stopProducing(self) -> None:
        """Nobody reads any more."""
        self._feed.remove(self)


class EventsResource(Resource):
    """``/events``.

    Args:
        feed: of the node.
        clock: the reactor.
        origins: pages of these origins may listen too: those of the other nodes.
    """

    isLeaf = True

    def __init__(self, feed: StatusFeed, clock: IReactorTime, origins: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._feed = feed
        self._clock = clock
        self._origins = origins

    def _head(self, request: Request) -> None:
        request.setHeader("content-type", "text/event-stream; charset=utf-8")
        request.setHeader("cache-control", "no-store")
        request.setHeader("x-content-type-options", "nosniff")
        request.setHeader("x-accel-buffering", "no")
        request.setHeader("vary", "origin")
        origin = request.getHeader("origin")
        if origin is not None and origin in self._origins:
            request.setHeader("access-control-allow-origin", origin)

    def render_HEAD(self, request: Request) -> bytes:
        """The headers alone; nobody begins to listen."""
        self._head(request)
        return b""

    def render_GET(self, request: Request) -> bytes | int:
        """Begin to listen."""
        self._head(request)
        stream = _Stream(request, self._feed, self._clock)
        if not self._feed.add(stream):
            request.setResponseCode(SERVICE_UNAVAILABLE)
            request.setHeader("content-type", "text/plain; charset=utf-8")
            request.setHeader("retry-after", "10")
            return b"too many pages listen already; try again later\n"
        request.registerProducer(stream, True)
        request.notifyFinish().addBoth(lambda _: self._feed.remove(stream))
        return NOT_DONE_YET
