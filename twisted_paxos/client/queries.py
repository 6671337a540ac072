"""`Queries`: questions to the state machine from the call to the answer, over any number of connections.

A question changes nothing, so it is asked again of the next node without a thought; only its
time limit ends it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from msgspec import Raw, Struct
from twisted.internet.defer import Deferred

from twisted_paxos.core import limits
from twisted_paxos.errors import Overloaded, PaxosError, Unavailable, ValueTooLarge
from twisted_paxos.wire.client import Answer, Failure, Query

QUERIES_MAX: Final = 100_000
"""Questions without an answer; beyond, `Overloaded`."""

WINDOW_QUERIES: Final = 4_096
"""Questions at the node at once."""

LATE_S: Final = 1.0
"""A timer that runs so much too late shows that this process slept: answers may wait unread."""


class _Question(Struct, eq=False):
    """One question; ``query`` has its number, the same on every connection."""

    query: Query
    deadline_s: float
    done: Deferred[Raw]


class Queries:
    """The questions of one client.

    Args:
        reactor: time.
        next_id: gives numbers for requests.
        wake: called when there is something to send.
        why: tells why there is no answer, in one line.
    """

    def __init__(
        self, reactor: Any, next_id: Callable[[], int], wake: Callable[[], None], why: Callable[[], str]
    ) -> None:
        self._reactor = reactor
        self._next_id = next_id
        self._wake = wake
        self._why = why
        self._open: dict[int, _Question] = {}
        self._unsent: deque[int] = deque()
        self._sent: set[int] = set()
        self._timer: Any = None
        self._due_s = math.inf

    @property
    def in_flight(self) -> int:
        """Questions that a node has been asked."""
        return len(self._sent)

    def ask(self, payload: Raw, serializable: bool, timeout_s: float) -> Deferred[Raw]:
        """Ask; fires with the answer.

        Fails with:
            Overloaded: too many questions have no answer yet.
            ValueTooLarge: the question is, or the answer would be.
            Unavailable: no answer within ``timeout_s`` seconds.
        """
        number = self._next_id()
        done: Deferred[Raw] = Deferred(lambda _: self._cancelled(number))
        if len(self._open) >= QUERIES_MAX:
            done.errback(Overloaded(f"{len(self._open):,} queries wait in this client already"))
            return done
        if len(payload) > limits.PAYLOAD_MAX_BYTES:
            done.errback(ValueTooLarge(f"a query of {len(payload):,} bytes is over the limit"))
            return done
        deadline_s = self._reactor.seconds() + timeout_s
        self._open[number] = _Question(Query(number, payload, serializable), deadline_s, done)
        self._unsent.append(number)
        self._arm(deadline_s)
        self._wake()
        return done

    def connected(self) -> None:
        """A new connection: everything is to be asked again."""
        self._unsent = deque(self._open)
        self._sent.clear()

    def send_to(self, send: Callable[[Query], None]) -> bool:
        """Ask what may be asked now; tells whether that was anything."""
        asked = False
        while self._unsent and len(self._sent) < WINDOW_QUERIES:
            number = self._unsent.popleft()
            question = self._open.get(number)
            if question is not None:
                self._sent.add(number)
                send(question.query)
                asked = True
        return asked

    def answered(self, answer: Answer) -> None:
        """A node has answered; twice is once."""
        question = self._drop(answer.request_id)
        if question is not None:
            question.done.callback(answer.data)

    def has(self, request_id: int) -> bool:
        """Whether this is the number of an open question."""
        return request_id in self._open

    def refused(self, failure: Failure) -> None:
        """A node did not answer for good (``bad_request``, ``value_too_large``), or is to be asked again."""
        if failure.code in ("bad_request", "value_too_large"):
            question = self._drop(failure.request_id)
            if question is not None:
                too_large = failure.code == "value_too_large"
                question.done.errback((ValueTooLarge if too_large else Unavailable)(failure.message))
        elif failure.request_id in self._sent:
            self._sent.discard(failure.request_id)
            self._unsent.append(failure.request_id)

    def end_all(self, why: str) -> None:
        """The client closes."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        questions = list(self._open.values())
        self._open.clear()
        self._unsent.clear()
        self._sent.clear()
        for question in questions:
            question.done.errback(Unavailable(why))

    def _cancelled(self, number: int) -> None:
        self._drop(number)

    def _drop(self, number: int) -> _Question | None:
        self._sent.discard(number)
        return self._open.pop(number, None)

    def _arm(self, deadline_s: float) -> None:
        running = self._timer is not None and self._timer.active()
        if running and self._due_s <= deadline_s:
            return
        if running:
            self._timer.cancel()
        self._due_s = deadline_s
        delay_s = max(0.001, deadline_s - self._reactor.seconds())
        self._timer = self._reactor.callLater(delay_s, self._expire)

    def _expire(self, grace: bool = False) -> None:
        now_s: float = self._reactor.seconds()
        if now_s - self._due_s > LATE_S and not grace:
            self._timer = self._reactor.callLater(LATE_S, self._expire, True)
            return
        overdue = [number for number, question in self._open.items() if question.deadline_s <= now_s]
        for number in overdue:
            question = self._drop(number)
            if question is not None:
                question.done.errback(self._late())
        if self._open:
            self._arm(min(question.deadline_s for question in self._open.values()))
        self._wake()

    def _late(self) -> PaxosError:
        return Unavailable(f"no answer in time: {self._why()}")
