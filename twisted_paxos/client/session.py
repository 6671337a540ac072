"""`Session`: commands and questions through whichever node answers; each command is applied once.

A client has one session, registered through the log, and numbers its commands from 1
(`twisted_paxos.client.pending`). Here is what moves them: the connection, which changes to the
next node by itself, and the timers. What is unanswered is sent again on every new connection.

Speed comes from doing things per turn of the reactor and not per command: the commands of
one turn share frames, the results of a frame are handled in one loop.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Self

from msgspec import Raw
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.client.connection import (
    CONNECT_TIMEOUT_S,
    ClientConnection,
    backoff_s,
    open_connection,
)
from twisted_paxos.client.liveness import Liveness
from twisted_paxos.client.pending import WINDOW_COMMANDS, Pending, Proposal
from twisted_paxos.client.queries import Queries
from twisted_paxos.client.watches import Watches
from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import (
    ConfigError,
    Unavailable,
    ValueTooLarge,
)
from twisted_paxos.statemachine.commands import (
    OPEN_SESSION,
    Result,
)
from twisted_paxos.wire.client import Answer, Failure, GetStatus, Response, Results, StatusReply, Submit

log = Logger()

TIMEOUT_S: Final = 30.0
"""How long a propose waits for its result unless the caller says otherwise."""

CONNECT_FIRST_S: Final = 0.5
"""How long the first attempts to connect may take."""

SESSION_FRESH_S: Final = 600.0
"""A session unused for so long is given up for a new one: the cluster may forget it (after an hour)."""

TIMER_MIN_S = 0.001
"""Shorter waits are rounded up: a time that rounding puts just ahead of now must not loop."""

LATE_S: Final = 1.0
"""A timer that runs so much too late shows that this process slept: answers may wait unread."""

OPEN_SESSION_SEQUENCE: Final = 0
"""The sequence number of the command that registers a session."""


class Session:
    """The moving parts of a `Client`, which has the methods that users call.

    Attributes:
        reactor: as given.
        endpoint: where it is connected to, or was last.
    """

    def __init__(
        self,
        reactor: Any,
        endpoints: Sequence[str],
        *,
        rng: random.Random | None = None,
        window: int = WINDOW_COMMANDS,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if not endpoints:
            raise ConfigError("no endpoint given: name at least one node's client port")
        self.reactor = reactor
        self._endpoints = list(endpoints)
        self._rng = rng or random.SystemRandom()
        self._timeout_s = timeout_s
        self.endpoint = self._endpoints[0]
        self._next_endpoint = 0
        self._attempts = 0
        self._why = "no node answered yet"
        self._closed = False
        self._connection: ClientConnection | None = None
        self._connecting: Deferred[None] | None = None
        self._pending = Pending(self._random_id(), window)
        self._session_open = False
        self._opening: Command | None = None
        self._submits: deque[tuple[int, tuple[Command, ...]]] = deque()
        self._to_resend: list[int] = []
        self._request_id = 0
        self._holds = 0
        self._used_s = 0.0
        self._liveness = Liveness(reactor, self._ping, self._leave)
        self._queries = Queries(reactor, self._next_request_id, self._flush_soon, lambda: self._why)
        self._watches = Watches(reactor, self._in_turn, self._rng)
        self._room_waiters: list[Deferred[None]] = []
        self._timers: dict[str, IDelayedCall] = {}
        self._flush_wanted = False
        self._answering = False

    @property
    def session_id(self) -> str:
        """The id of the present session: 16 hexadecimal digits."""
        return self._pending.session_id

    @property
    def in_flight(self) -> int:
        """Commands sent whose result has not come back."""
        return self._pending.in_flight

    def close(self) -> Deferred[None]:
        """Disconnect; what has no result yet fails at once (`OutcomeUnknown` if it was sent)."""
        self._closed = True
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._liveness.idle()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._pending.end_all("the client was closed before it was sent")
        self._queries.end_all("the client was closed")
        self._watches.close()
        self._give_room()
        return succeed(None)

    def _add(self, payload: Raw, timeout_s: float | None) -> Proposal:
        if self._closed:
            raise Unavailable("the client is closed")
        if len(payload) > limits.PAYLOAD_MAX_BYTES:
            raise ValueTooLarge(f"a command of {len(payload):,} bytes is over {limits.PAYLOAD_MAX_BYTES:,}")
        proposal = self._pending.add(payload, self._deadline_s(timeout_s))
        self._flush_soon()
        return proposal

    def _in_turn(self) -> list[str]:
        """The endpoints, from the one in use on."""
        at = self._endpoints.index(self.endpoint)
        return self._endpoints[at:] + self._endpoints[:at]

    # -- timers: one per purpose -------------------------------------------------------------

    def _start_timer(self, purpose: str, delay_s: float, call: Callable[[], None]) -> None:
        """Call ``call`` in ``delay_s`` seconds, unless this timer runs already."""
        timer = self._timers.get(purpose)
        if not self._closed and (timer is None or not timer.active()):
            self._timers[purpose] = self.reactor.callLater(delay_s, call)

    def _stop_timer(self, purpose: str) -> None:
        timer = self._timers.pop(purpose, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _runs(self, purpose: str) -> bool:
        timer = self._timers.get(purpose)
        return timer is not None and timer.active()

    def _deadline_s(self, timeout_s: float | None) -> float:
        now_s: float = self.reactor.seconds()
        deadline_s = now_s + (self._timeout_s if timeout_s is None else timeout_s)
        if deadline_s < self._pending.next_deadline_s:
            self._stop_timer("deadline")
            self._start_timer("deadline", deadline_s - now_s, partial(self._check_deadlines, deadline_s))
        return deadline_s

    def _check_deadlines(self, due_s: float, grace: bool = False) -> None:
        now_s: float = self.reactor.seconds()
        if now_s - due_s > LATE_S and not grace:
            # This process was stopped, or its output blocked: read what has arrived before judging.
            self._start_timer("deadline", LATE_S, partial(self._check_deadlines, now_s, True))
            return
        self._pending.expire(now_s, self._why)
        next_s = self._pending.next_deadline_s
        if self._pending.in_flight or self._pending.waiting:
            delay_s = max(TIMER_MIN_S, next_s - now_s)
            self._start_timer("deadline", delay_s, partial(self._check_deadlines, next_s))
        self._flush_soon()

    # -- the connection ------------------------------------------------------------------------

    async def _first_connection(self) -> Self:
        problems = []
        for _ in self._endpoints:
            await self._try_next()
            if self._connection is not None:
                return self
            problems.append(self._why)
        self.close()
        raise Unavailable(nobody("; ".join(problems)))

    async def _try_next(self) -> None:
        """Try the next endpoint; afterwards there is a connection, or ``_why`` says why not."""
        endpoint = self._endpoints[self._next_endpoint % len(self._endpoints)]
        self._next_endpoint += 1
        try:
            connection = await open_connection(
                self.reactor, endpoint, self._got, self._lost, self._connect_timeout_s()
            )
        except Unavailable as error:
            self._attempts += 1
            self._why = str(error)
            return
        self._connected(endpoint, connection)

    def _connect_timeout_s(self) -> float:
        """Short at first, so that a node that is stopped or cut off costs little; longer in each round."""
        rounds = self._attempts // len(self._endpoints)
        return min(CONNECT_TIMEOUT_S, CONNECT_FIRST_S * 2.0 ** min(rounds, 8))

    def _reconnect(self) -> None:
        self._connecting = Deferred.fromCoroutine(self._try_next())
        self._connecting.addBoth(self._reconnected)

    def _reconnected(self, outcome: object) -> None:
        self._connecting = None
        if isinstance(outcome, TwistedFailure) and not self._closed:
            self._attempts += 1
            log.failure("Connecting failed; the next node is tried", outcome)
        if self._connection is None:
            self._retry_connection()

    def _retry_connection(self) -> None:
        """The next node at once; after a whole round without one, a pause first."""
        rounds, within_round = divmod(self._attempts, len(self._endpoints))
        delay_s = 0.0 if within_round else backoff_s(rounds, self._rng)
        self._start_timer("reconnect", delay_s, self._reconnect)

    def _connected(self, endpoint: str, connection: ClientConnection) -> None:
        if self._closed:
            connection.close()
            return
        self.endpoint = endpoint
        self._connection = connection
        self._why = f"{endpoint} takes no commands; has the cluster a majority? See: paxosctl status"
        self._submits.clear()
        self._to_resend.clear()
        self._stop_timer("hold")
        self._liveness.connected()
        self._opening = None
        for batch in self._pending.batches_to_resend():
            self._send(batch)
        self._queries.connected()
        self._flush_soon()

    def _lost(self, why: str) -> None:
        """`ClientConnection` tells that it is gone."""
        self._connection = None
        self._liveness.idle()
        if self._closed:
            return
        self._attempts += 1
        self._why = f"{self.endpoint}: {why}"
        log.debug("Lost {endpoint}: {why}; going to the next node", endpoint=self.endpoint, why=why)
        self._retry_connection()

    # -- sending ---------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Send what may be sent at the end of this turn, together."""
        if not self._flush_wanted:
            self._flush_wanted = True
            if not self._answering:
                self._start_timer("flush", 0, self._flush)

    def _flush(self) -> None:
        self._flush_wanted = False
        if self._connection is not None and not self._runs("hold"):
            if self._queries.send_to(self._connection.send):
                self._liveness.sent()
            if self._session_open:
                self._send_all()
            else:
                self._open_session()
        self._give_room()

    def _send_all(self) -> None:
        if not self._pending.in_flight:
            now_s: float = self.reactor.seconds()
            idle_s, self._used_s = now_s - self._used_s, now_s
            if idle_s > SESSION_FRESH_S:
                self._new_session()
                self._open_session()
                return
        if self._to_resend:
            sequences, self._to_resend = self._to_resend, []
            for batch in self._pending.batches_to_resend(sequences):
                self._send(batch)
        while self._pending.waiting and (batch := self._pending.next_batch()):
            self._send(batch)

    def _open_session(self) -> None:
        if self._opening is None and self._pending.waiting:
            self._opening = Command(self.session_id, OPEN_SESSION_SEQUENCE, 0, OPEN_SESSION)
            self._send((self._opening,))

    def _send(self, commands: tuple[Command, ...]) -> None:
        if self._connection is None:
            return
        self._liveness.sent()
        request_id = self._next_request_id()
        self._submits.append((request_id, commands))
        self._connection.send(Submit(request_id, commands))

    def _next_request_id(self) -> int:
        self._request_id += 1
        return self._request_id

    def _give_room(self) -> None:
        if self._room_waiters and (self._closed or self._pending.has_room):
            waiters, self._room_waiters = self._room_waiters, []
            for waiter in waiters:
                if not waiter.called:
                    waiter.callback(None)

    async def _wait_for_room(self) -> None:
        while not (self._closed or self._pending.has_room):
            waiter: Deferred[None] = Deferred()
            self._room_waiters.append(waiter)
            await waiter
        if self._closed:
            raise Unavailable("the client was closed")

    # -- answers ---------------------------------------------------------------------------------

    def _got(self, response: Response) -> None:
        """An answer; what its receivers ask for in return leaves with its end."""
        self._answering = True
        try:
            self._take(response)
        finally:
            self._answering = False
            if self._flush_wanted and not self._runs("flush"):
                self._flush()

    def _take(self, response: Response) -> None:
        if isinstance(response, Results):
            self._results(response.results)
        elif isinstance(response, Answer):
            self._queries.answered(response)
            self._attempts = 0
            self._liveness.heard(self._awaits)
            self._flush_soon()
        elif isinstance(response, StatusReply):
            self._liveness.answered(response.status)
        elif isinstance(response, Failure):
            self._refused(response)

    @property
    def _awaits(self) -> bool:
        """Whether the node owes anything."""
        return bool(self._pending.in_flight or self._opening or self._queries.in_flight)

    def _ping(self) -> None:
        if not self._awaits:
            self._liveness.idle()
        elif self._connection is not None:
            self._connection.send(GetStatus(0))

    def _leave(self, why: str) -> None:
        if self._connection is not None:
            self._connection.drop(why)

    def _results(self, results: Sequence[Result]) -> None:
        self._used_s = self.reactor.seconds()
        self._attempts = 0
        if self._opening is not None:
            self._look_for_opening(results)
        if self._pending.settle(results):
            log.info("Session {session} has expired; a new one is opened", session=self.session_id)
            self._new_session()
        if self._session_open:
            self._holds = 0
        self._liveness.heard(self._awaits)
        floor = self._pending.floor
        while self._submits and self._submits[0][1][-1].sequence < floor:
            self._submits.popleft()
        self._flush_soon()

    def _look_for_opening(self, results: Sequence[Result]) -> None:
        for result in results:
            if result.sequence == OPEN_SESSION_SEQUENCE and result.client == self.session_id:
                self._opening = None
                self._session_open = not result.error
                if result.error:
                    self._why = f"the cluster opens no session: {result.error}"
                    self._hold()

    def _new_session(self) -> None:
        self._session_open = False
        self._opening = None
        self._submits.clear()
        self._to_resend.clear()
        self._pending.new_session(self._random_id())

    def _refused(self, failure: Failure) -> None:
        asked = self._queries.has(failure.request_id)
        commands = () if asked else self._commands_of(failure.request_id)
        if not (asked or commands):
            return
        if failure.code not in ("overloaded", "value_too_large", "bad_request"):
            # It could not say whether it took them, or will take nothing: another node may.
            if self._connection is not None:
                self._connection.drop(failure.message)
            return
        if asked:
            self._queries.refused(failure)
            if failure.code == "overloaded":
                self._hold()
            return
        if self._opening in commands:
            self._opening = None
            self._why = failure.message
            self._hold()
            return
        sequences = self._pending.refused(commands)
        if failure.code == "overloaded":
            self._to_resend.extend(sequences)
            self._hold()
        elif failure.code == "value_too_large" and len(sequences) > 1:
            for sequence in sequences:
                for batch in self._pending.batches_to_resend([sequence]):
                    self._send(batch)
        else:
            too_large = failure.code == "value_too_large"
            error = ValueTooLarge(failure.message) if too_large else Unavailable(failure.message)
            self._pending.fail(sequences, error)

    def _commands_of(self, request_id: int) -> tuple[Command, ...]:
        for position, (number, commands) in enumerate(self._submits):
            if number == request_id:
                del self._submits[position]
                return commands
        return ()

    def _hold(self) -> None:
        """Send nothing for a while: the node, or the cluster, is full."""
        self._holds += 1
        self._stop_timer("hold")
        self._start_timer("hold", backoff_s(self._holds, self._rng), self._flush_soon)

    def _random_id(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"


def nobody(problems: str) -> str:
    """What is told when no node answers."""
    return f"no node answers ({problems}); start them with: twistd -n paxos --id A"
