"""What all endpoints of the JSON API share: the node, its identity, deadlines, and whether it is served.

Writes go through one session of the gateway, so a proposal that is tried again applies once. Every
request that needs the cluster has a deadline; a node that has had no working leader for `UNSERVED_MAX_S`
ends what waits without a deadline (watches, locks, elections), so that no client waits in silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol, TypeVar

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twisted_paxos.errors import KeyValueError, NodeStopped, Overloaded, Unavailable
from twisted_paxos.interfaces import INode
from twisted_paxos.own_session import OwnSession
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import (
    RESOURCE_EXHAUSTED,
    KvCommand,
    KvError,
    KvQuery,
    Range,
    RangeResult,
    decode_result,
    encode,
)
from twisted_paxos.web.replies import Header, int64
from twisted_paxos.web.turns import Turns

Answer = TypeVar("Answer")

REQUEST_TIMEOUT_S: Final = 5.0
"""etcd's is 5 s and two election timeouts; ours, a tenth of a second each, add nothing to speak of."""

STATUS_FRESH_S: Final = 0.1
"""For so long one status of the node does for the headers of all replies."""

UNSERVED_MAX_S: Final = 2.0
"""A node without a leader that works for so long ends its streams."""

ANSWER_MAX_BYTES: Final = 64 << 20
"""The largest answer of the store, as JSON: what is larger is asked for in parts."""

SCANS_MAX: Final = 2
"""Snapshots and hashes of the whole store that are made at the same time."""

TICK_S: Final = 1.0
"""How often that is looked at, while there are streams."""


class MemberInfo(NamedTuple):
    """One node, as ``cluster/member/list`` tells it.

    Attributes:
        uid: the node's id.
        peer_url: where other nodes reach it.
        client_url: where clients of the JSON API reach it.
    """

    uid: str
    peer_url: str
    client_url: str


class Identity:
    """The ids of the cluster and of its members: uint64, never 0, the same at every node and for good.

    Args:
        cluster: the cluster's fingerprint, 16 hex digits.
        members: all nodes that are known, this one among them.
    """

    def __init__(self, cluster: str, members: Sequence[MemberInfo]) -> None:
        self.cluster_id = int(cluster, 16) or 1
        self.members = tuple(members)
        self.ids = {member.uid: self._id(cluster, member.uid) for member in members}

    @staticmethod
    def _id(cluster: str, uid: str) -> int:
        digest = blake2b(f"{cluster}/{uid}".encode("ascii"), digest_size=8).digest()
        return int.from_bytes(digest, "big") or 1


class Deadlines:
    """Cancels Deferreds that take longer than ``timeout_s``: all wait equally long, so one queue does."""

    def __init__(self, reactor: IReactorTime, timeout_s: float) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[float, Deferred]] = deque()
        self._timer: IDelayedCall | None = None

    def limit(self, waiting: Deferred) -> None:
        """Cancel ``waiting`` when its time is over."""
        if waiting.called:
            return
        queue = self._waiting
        while queue and queue[0][1].called:
            queue.popleft()
        queue.append((self._reactor.seconds() + self._timeout_s, waiting))
        if self._timer is None:
            self._timer = self._reactor.callLater(self._timeout_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        queue, now_s = self._waiting, self._reactor.seconds()
        while queue and (queue[0][1].called or queue[0][0] <= now_s):
            queue.popleft()[1].cancel()
        if queue:
            self._timer = self._reactor.callLater(queue[0][0] - now_s, self._expire)

    def stop(self) -> None:
        """Watch over nothing any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Follower(Protocol):
    """What lasts until its client leaves: a watch, a wait for a lock, ..."""

    def end(self, error: Exception) -> None:
        """Nothing more will come: tell the client ``error``."""


class Gateway:
    """The JSON API's view of one node.

    Args:
        node: does the work.
        reactor: for time.
        identity: the ids in every header.
        session: a word that no session of the cluster had before.

    Attributes:
        node, reactor, identity: as given.
        store: the node's key-value store, to be looked at and never changed; its ``watches`` may be used.
        turns: of what streams have to send.
    """

    def __init__(self, node: INode, reactor: IReactorTime, identity: Identity, session: str) -> None:
        assert isinstance(node.machine, KeyValueStore)
        self.node = node
        self.store: KeyValueStore = node.machine
        self.reactor = reactor
        self.identity = identity
        self._session = OwnSession(node, session, reactor.seconds)
        self._deadlines = Deadlines(reactor, REQUEST_TIMEOUT_S)
        self._ids = (int64(identity.cluster_id), int64(identity.ids[node.uid]))
        self._term = 0
        self._status_s = float("-inf")
        self._header = Header()
        self._header_of = (-1, -1)
        self.turns = Turns(reactor)
        self._followers: set[Follower] = set()
        self._ticking: IDelayedCall | None = None
        self._unserved_since_s: float | None = None
        self._scans = 0

    # -- what replies say of this node

    def header(self, revision: int) -> Header:
        """Of a reply; ``revision`` is the store's as that reply knows it, 0 leaves it out."""
        about = (revision, self.term())
        if about != self._header_of:
            self._header_of = about
            self._header = Header(*self._ids, int64(revision), int64(about[1]))
        return self._header

    def term(self) -> int:
        """The round of the ballot that this node has promised; never goes back, over restarts neither."""
        now_s = self.reactor.seconds()
        if now_s - self._status_s >= STATUS_FRESH_S:
            self._status_s = now_s
            status = self.status()
            self._term = max(self._term, status.promised.number)
            if status.role in ("observer", "joining") or not status.promised.number:
                # A voter's promise is durable. These have none, or none yet, and only hear of ballots.
                self._term = max(self._term, status.ballot.number)
        return self._term

    def status(self) -> NodeStatus:
        """The node's, of this moment."""
        status = self.node.status()
        assert isinstance(status, NodeStatus)
        return status

    # -- requests of the cluster

    def propose(self, command: KvCommand, expected: type[Answer]) -> Deferred[Answer]:
        """Have ``command`` applied once.

        Args:
            expected: the kind of its result.

        Returns:
            fires with its result when this node has applied it. Fails with `KeyValueError` when the
            store refused it, with ``CancelledError`` when the time is over (it may still be
            applied), with `NodeStopped` or `SessionExpired` when nobody knows.

        Raises:
            Overloaded, ValueTooLarge, NodeStopped, StorageFull: it was not taken.
        """
        proposing = self._session.propose(Raw(encode(command)))
        self._deadlines.limit(proposing)
        return proposing.addCallback(lambda result: _checked(result.data, expected))

    def query(self, question: KvQuery, serializable: bool = False) -> Deferred[Raw]:
        """Ask the store, linearizably unless it may be ``serializable``.

        Returns:
            fires with the answer as JSON; fails with ``CancelledError`` when the time is over.

        Raises:
            Overloaded, NodeStopped: it was not taken.
        """
        asking = self.node.query(Raw(encode(question)), serializable)
        self._deadlines.limit(asking)
        return asking

    def read(self, question: Range, serializable: bool = False) -> Deferred[RangeResult]:
        """Read a range; fails with `KeyValueError` when it cannot be read. See `query`."""
        return self.query(question, serializable).addCallback(_checked, RangeResult)

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """While the whole store is read: as long as that lasts no memory of old versions is set free.

        Raises:
            Overloaded: that is done `SCANS_MAX` times already.
        """
        if self._scans >= SCANS_MAX:
            raise Overloaded(f"the store is read as a whole {SCANS_MAX} times already; try again later")
        self._scans += 1
        try:
            yield
        finally:
            self._scans -= 1

    # -- what lasts

    def follow(self, follower: Follower) -> None:
        """End ``follower`` when this node cannot serve any more."""
        self._followers.add(follower)
        if self._ticking is None:
            self._ticking = self.reactor.callLater(TICK_S, self._tick)

    def leave(self, follower: Follower) -> None:
        """It has ended by itself."""
        self._followers.discard(follower)

    def _tick(self) -> None:
        self._ticking = None
        now_s = self.reactor.seconds()
        if not self._followers or self.status().leader_works:
            self._unserved_since_s = None
        elif self._unserved_since_s is None:
            self._unserved_since_s = now_s
        elif now_s - self._unserved_since_s >= UNSERVED_MAX_S:
            self._end_all(Unavailable("this node has no leader that works"))
        if self._followers:
            self._ticking = self.reactor.callLater(TICK_S, self._tick)

    def _end_all(self, error: Exception) -> None:
        self._unserved_since_s = None
        followers, self._followers = self._followers, set()
        for follower in followers:
            follower.end(error)

    def stop(self) -> None:
        """End everything: the node stops."""
        self._end_all(NodeStopped("the node stops"))
        self._session.stop()
        self._deadlines.stop()
        self.turns.stop()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None


def _checked(answer: Raw, expected: type[Answer]) -> Answer:
    if len(answer) > ANSWER_MAX_BYTES:
        message = f"the answer has {len(answer)} bytes, the limit is {ANSWER_MAX_BYTES}: set a limit"
        raise KeyValueError(RESOURCE_EXHAUSTED, message)
    result = decode_result(answer)
    if isinstance(result, KvError):
        raise KeyValueError(result.code, result.message)
    assert isinstance(result, expected)
    return result
