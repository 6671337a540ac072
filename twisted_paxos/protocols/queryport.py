"""Queries of clients: each is asked of the node's state machine and answered, within a time limit."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.core import limits
from twisted_paxos.interfaces import INode
from twisted_paxos.protocols.refusals import Channel, failure_for
from twisted_paxos.wire.client import Answer, Failure, Query

QUERIES_MAX: Final = 10_000
"""Queries in progress on one connection; beyond, ``overloaded``."""

QUERY_TIMEOUT_S: Final = 5.0
"""A query that no leader has confirmed by then fails as ``unavailable``."""

ANSWER_MAX_BYTES: Final = limits.FRAME_MAX_BYTES - 1_024
"""The largest answer, or result of a command: what fits a frame with what surrounds it."""


class QueryPort:
    """The queries of one connection.

    Args:
        node: answers them.
        reactor: for the time limit.
        channel: to the client.
    """

    def __init__(self, node: INode, reactor: IReactorTime, channel: Channel) -> None:
        self._node = node
        self._reactor = reactor
        self._channel = channel
        self._asked: dict[int, Deferred[Raw]] = {}
        # All wait equally long, so one timer and one queue do; answered ones are passed over.
        self._deadlines: deque[tuple[float, Deferred[Raw], int]] = deque()
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._asked)

    def ask(self, query: Query) -> None:
        """Answer ``query``, or say why not."""
        request_id = query.request_id
        if len(self._asked) >= QUERIES_MAX:
            self._channel.count("queries_max")
            message = f"{QUERIES_MAX} queries of this connection are in progress already"
            self._channel.reply(Failure(request_id, "overloaded", message))
            return
        if request_id in self._asked:
            message = f"request number {request_id} is in use"
            self._channel.reply(Failure(request_id, "bad_request", message))
            return
        try:
            asking: Deferred[Raw] = self._node.query(query.payload, query.serializable)
        except Exception as error:
            self._channel.reply(failure_for(request_id, error))
            return
        if not asking.called:
            self._limit(request_id, asking)
        self._asked[request_id] = asking
        asking.addCallbacks(self._answered, self._failed, (request_id,), {}, (request_id,), {})

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._deadlines.clear()
        asked, self._asked = self._asked, {}
        for asking in asked.values():
            asking.cancel()

    def _answered(self, data: Raw, request_id: int) -> None:
        del self._asked[request_id]
        if len(data) > ANSWER_MAX_BYTES:
            self._channel.count("answer_too_large")
            self._channel.reply(Failure(request_id, "value_too_large", too_large(len(data))))
            return
        self._channel.reply(Answer(request_id, data))

    def _failed(self, failure: TwistedFailure, request_id: int) -> None:
        if self._asked.pop(request_id, None) is None:
            return  # The connection is closed.
        if failure.check(CancelledError):
            self._channel.count("query_timeout")
            message = f"no leader confirmed the read within {QUERY_TIMEOUT_S:g} s; try another node"
            self._channel.reply(Failure(request_id, "unavailable", message))
            return
        self._channel.reply(failure_for(request_id, failure.value))

    def _limit(self, request_id: int, asking: Deferred[Any]) -> None:
        self._deadlines.append((self._reactor.seconds() + QUERY_TIMEOUT_S, asking, request_id))
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(QUERY_TIMEOUT_S, self._expire)
        while self._deadlines and self._deadlines[0][1].called:
            self._deadlines.popleft()

    def _expire(self) -> None:
        now_s = self._reactor.seconds()
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][1].called):
            self._deadlines.popleft()[1].cancel()
        if self._deadlines:
            self._timer = self._reactor.callLater(self._deadlines[0][0] - now_s, self._expire)


def too_large(size_bytes: int) -> str:
    """What a client is told of an answer of ``size_bytes`` that does not fit a frame."""
    return (
        f"the answer has {size_bytes:,} bytes, {ANSWER_MAX_BYTES:,} is the limit:"
        " ask for less at a time, with a limit or keys only"
    )
