"""`Client`: what programs use; how it is done is in `twisted_paxos.client.session`."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from msgspec import Raw
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, fail

from twisted_paxos.client.connection import ask_status
from twisted_paxos.client.kv import KeyValues
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.logreader import LogReader
from twisted_paxos.client.payloads import encode_value
from twisted_paxos.client.pending import WINDOW_COMMANDS, Outcome, Proposal
from twisted_paxos.client.session import TIMEOUT_S, Session, nobody
from twisted_paxos.client.stream import ProposalStream
from twisted_paxos.client.watches import Watch
from twisted_paxos.errors import OutcomeUnknown, PaxosError, Unavailable, ValueTooLarge
from twisted_paxos.statemachine.commands import NodeStatus, Result
from twisted_paxos.statemachine.watches import WatchRequest


def connect(
    reactor: Any,
    endpoints: Sequence[str],
    *,
    rng: random.Random | None = None,
    window: int = WINDOW_COMMANDS,
    timeout_s: float = TIMEOUT_S,
) -> Deferred[Client]:
    """A `Client`, once one of ``endpoints`` has answered; each is tried once, in their order.

    Args:
        reactor: for connections and time.
        endpoints: ``host:port``, ``[v6]:port`` or Twisted client endpoint strings.
        rng: for the session's id and jitter.
        window: commands in flight at once.
        timeout_s: how long a propose waits for its result by default.

    Fails with:
        Unavailable: none answered.
        ConfigError: an endpoint cannot be understood.
    """
    client = Client(reactor, endpoints, rng=rng, window=window, timeout_s=timeout_s)
    return Deferred.fromCoroutine(client._first_connection())


class Client(Session):
    """A session with the cluster; made by `connect`, whose arguments it takes.

    Attributes:
        reactor: as given.
        endpoint: where it is connected to, or was last.
        kv: the key-value store.
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
        super().__init__(reactor, endpoints, rng=rng, window=window, timeout_s=timeout_s)
        self.kv = KeyValues(self)

    def propose(self, value: str | bytes, timeout_s: float | None = None) -> Deferred[Result]:
        """Have ``value`` chosen and applied; fires with where it is in the log.

        Cancelling it before it was sent fails with `CancelledError`; after that with
        `OutcomeUnknown`, because it may be chosen all the same.

        Fails with:
            ValueTooLarge: it is larger than ``limits.VALUE_MAX_BYTES``.
            Overloaded: too much waits here already, or the nodes refused it until the timeout.
            OutcomeUnknown: it was sent, and no result came within ``timeout_s`` seconds.
            Unavailable: within that time it could not even be sent.
            SessionExpired: the cluster forgot this session while the command was under way.
        """
        try:
            return self.command(encode_value(value), timeout_s)
        except ValueTooLarge as error:
            return fail(error)

    def command(self, payload: Raw, timeout_s: float | None = None) -> Deferred[Result]:
        """`propose` for the JSON of any command; the result's ``data`` is what the state machine returned."""
        try:
            proposal = self._add(payload, timeout_s)
        except PaxosError:
            return fail()
        done: Deferred[Result] = Deferred(partial(self._cancelled, proposal))
        proposal.finish = partial(_fire, done)
        return done

    def _cancelled(self, proposal: Proposal, done: Deferred[Result]) -> None:
        if self._pending.abandon(proposal):
            proposal.end(OutcomeUnknown("cancelled after it was sent; it may be chosen all the same"))

    def begin(self, payload: Raw, finish: Callable[[Outcome], None], timeout_s: float | None = None) -> None:
        """`command` for programs that have very many of them under way: a call instead of a `Deferred`.

        Args:
            payload: the JSON of a command.
            finish: called once, later, with the `Result`, or with the error that `command` would have
                failed with. It must not raise.
            timeout_s: as for `command`.

        Raises:
            ValueTooLarge, Overloaded, Unavailable: as `command` fails with them; ``finish`` is not called.
        """
        self._add(payload, timeout_s).finish = finish

    def query(
        self, payload: Raw, serializable: bool = False, timeout_s: float | None = None
    ) -> Deferred[Raw]:
        """Ask the state machine a question; fires with its answer.

        Args:
            payload: the question, as the state machine takes it.
            serializable: from what the connected node has applied, which may be old; else the answer has
                everything that was acknowledged to anybody before this call.

        Fails with:
            Unavailable: no answer within ``timeout_s`` seconds.
            Overloaded: too many questions wait here already.
            ValueTooLarge: the answer is; ask for less at a time.
        """
        if self._closed:
            return fail(Unavailable("the client is closed"))
        return self._queries.ask(payload, serializable, self._timeout_s if timeout_s is None else timeout_s)

    def start_watch(self, request: WatchRequest, seen_revision: int = 0) -> Watch:
        """Watch; `KeyValues.watch` is the comfortable way.

        Args:
            request: what to watch.
            seen_revision: one from the present on begins behind this, also at a node that is not as far.
        """
        return self._watches.add(request, seen_revision)

    def lease(self, ttl_s: int, timeout_s: float | None = None) -> Deferred[Lease]:
        """Open a lease of ``ttl_s`` seconds that keeps itself alive; see `Lease.grant`."""
        return Deferred.fromCoroutine(Lease.grant(self, ttl_s, timeout_s))

    def monotonic_s(self) -> float:
        """Seconds on a clock that no one sets: a reactor's own may be the wall clock."""
        wall = isinstance(self.reactor, ReactorBase) and "seconds" not in vars(self.reactor)
        return time.monotonic() if wall else self.reactor.seconds()

    def unique_id(self) -> str:
        """16 hexadecimal digits that nobody else has."""
        return self._random_id()

    def propose_many(
        self,
        values: Iterable[str | bytes] | AsyncIterable[str | bytes],
        on_outcome: Callable[[int, Outcome], None],
        timeout_s: float | None = None,
    ) -> Deferred[int]:
        """Propose every value, as many in flight as the window takes; memory stays bounded.

        ``values`` is asked for the next one only when there is room, so it may be endless.

        Args:
            values: what to propose; an error that it raises ends the run.
            on_outcome: called with the value's number, from 0, and its `Result` or the error
                that `propose` would have failed with; in the order of results.
            timeout_s: for each value, from when it was taken.

        Fires with the number of values, once each has its outcome. Cancelling it, or an error in
        ``on_outcome``, ends it at once; what was sent may be chosen all the same.
        """

        def add(value: str | bytes, finish: Callable[[Outcome], None]) -> None:
            self._add(encode_value(value), timeout_s).finish = finish

        return Deferred.fromCoroutine(ProposalStream(add, self._wait_for_room, on_outcome).run(values))

    def status(self) -> Deferred[NodeStatus]:
        """The status of the node that this client uses or, when it does not answer, of the next that does.

        Fails with:
            Unavailable: none answered.
        """
        return Deferred.fromCoroutine(self._status())

    def read_log(self, from_slot: int = 1, follow: bool = False) -> LogReader:
        """An async iterator over the chosen entries from ``from_slot`` on, none left out.

        Ends at the last entry of the moment; with ``follow`` it waits for more instead. It has its
        own connection, goes on with another node when one fails, and is ended by its ``close()``.
        """
        return LogReader(self.reactor, self._in_turn(), from_slot, follow, self._rng)

    async def _status(self) -> NodeStatus:
        problems = []
        for endpoint in self._in_turn():
            try:
                return await ask_status(self.reactor, endpoint)
            except Unavailable as error:
                problems.append(str(error))
        raise Unavailable(nobody("; ".join(problems)))


def _fire(done: Deferred[Result], outcome: Outcome) -> None:
    if isinstance(outcome, Result):
        done.callback(outcome)
    else:
        done.errback(outcome)
