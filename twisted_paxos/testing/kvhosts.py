"""Hosts of clients in a simulated run: each a process with the real client, which notes what it did.

A host suffers too: it is stopped, cut off, and killed. `KvHost` is what the actors of
`twisted_paxos.testing.kvactors` run on.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twisted_paxos.client import Client, connect
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.recipes.place import Place
from twisted_paxos.client.watches import Watch
from twisted_paxos.errors import (
    Overloaded,
    PaxosError,
    SessionExpired,
    Unavailable,
    ValueTooLarge,
    WatchCanceled,
)
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.watches import WatchRequest
from twisted_paxos.testing.cluster import CLIENT_PORT, SimulatedCluster
from twisted_paxos.testing.kvhistory import KvHistory, Request, Watching

TIMEOUT_S: Final = 3.0
"""How long a client waits for an answer."""

RECONNECT_S: Final = 0.3

RATES: Final = (1.0, 1.0, 0.995, 1.005, 1.01)
"""How fast clients' clocks run. Those of nodes run at most 1.01 times as fast as they should: two differ by
less than the 2 % that a holder of a lease takes off."""

REFUSED = (Overloaded, Unavailable, ValueTooLarge, CancelledError)
"""A request that fails with one of these was not done, and never will be."""


class KvHost:
    """One host; after a kill, the next process runs on it.

    Args:
        cluster: whose clients.
        random: the chance of it.
        history: takes what it does.
        number: of the host.
        report: told (check, what) of what must not be.

    Attributes:
        name: of the process: the host's number, and how many processes ran before.
        reactor: of the present process.
        client: of the present process; None while it connects.
        leases, places: what its actors hold, or want to.
        resumed_s: when it last went on after a pause.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        random: Random,
        history: KvHistory,
        number: int,
        report: Callable[[str, str], None],
    ) -> None:
        self.client: Client | None = None
        self.leases: list[Lease] = []
        self.places: list[Place] = []
        self.resumed_s = 0.0
        self.reactor: Any = None
        self.name = ""
        self.lives = 0
        self._cluster = cluster
        self._random = random
        self._history = history
        self._number = number
        self._report = report
        self._closed = False
        self._actors: list[Callable[[KvHost], Coroutine[Any, Any, None]]] = []
        self._jobs: list[Deferred[None]] = []
        self._clients: list[Client] = []
        self._watches: list[tuple[Watching, Watch]] = []

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._cluster.clock.now_s

    @property
    def running(self) -> bool:
        """Whether its process does anything at present."""
        return not (self.reactor.is_paused or self.reactor.is_dead)

    # -- the process

    def start(self, actors: list[Callable[[KvHost], Coroutine[Any, Any, None]]]) -> None:
        """Begin a process, with these actors once it is connected."""
        self._actors = actors
        self.lives += 1
        self.name = f"{self._number}.{self.lives}"
        self.leases, self.places, self.client = [], [], None
        rate = self._random.choice(RATES)
        self.reactor = self._cluster.network.reactor(self.host, self._random.uniform(0, 1e4), rate)
        self._connect()

    @property
    def host(self) -> str:
        """Its address."""
        return f"10.0.2.{self._number + 1}"

    def _connect(self) -> None:
        endpoints = [f"{node.host}:{CLIENT_PORT}" for node in self._cluster.nodes.values()]
        self._random.shuffle(endpoints)
        rng = Random(self._random.getrandbits(64))
        connecting = connect(self.reactor, endpoints, rng=rng, timeout_s=TIMEOUT_S)
        connecting.addCallbacks(self._connected, self._not_connected)
        connecting.addErrback(self._failed)

    def _connected(self, client: Client) -> None:
        self.client = client
        self._clients.append(client)
        self._listen(client)
        for actor in self._actors:
            self.begin(actor(self))

    def _not_connected(self, failure: Failure) -> None:
        failure.trap(PaxosError)
        self.reactor.callLater(RECONNECT_S, self._connect)

    def begin(self, job: Coroutine[Any, Any, None]) -> None:
        """Run ``job`` in this process; an error of it is one of the program."""
        self._jobs.append(Deferred.fromCoroutine(job).addErrback(self._failed))

    def _failed(self, failure: Failure) -> None:
        if not (self._closed or failure.check(CancelledError)):
            self._report("exception", failure.getTraceback())

    def sleep(self, seconds: float) -> Deferred[None]:
        """Wait, by the host's clock."""
        return deferLater(self.reactor, seconds)

    def kill(self) -> None:
        """SIGKILL: what it did not get an answer to remains unknown."""
        for request in self._history.requests:
            if request.host == self.name and request.outcome == "open":
                request.outcome = "unknown"
        for watching, _ in self._watches:
            if not watching.ended:
                watching.ended, watching.ended_s = "died", self.now_s
        self.reactor.crash(self._random.random() < 0.3)
        self.client = None

    def pause(self) -> None:
        """SIGSTOP."""
        self.reactor.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.resumed_s = self.now_s
        self.reactor.resume()

    def close(self) -> None:
        """The run is over: end what is left, so that nothing of it runs later."""
        self._closed = True
        for job in self._jobs:
            job.cancel()
        for client in self._clients:
            client.close()

    # -- what is noted

    def _listen(self, client: Client) -> None:
        """Note every command and question, whoever makes it: the attributes shadow the methods."""
        command, query = client.command, client.query

        def command_and_note(payload: Raw, timeout_s: float | None = None) -> Deferred[Result]:
            request = self._note(payload, "command")
            return command(payload, timeout_s).addCallbacks(
                self._done, self._not_done, (request,), {}, (request,), {}
            )

        def query_and_note(
            payload: Raw, serializable: bool = False, timeout_s: float | None = None
        ) -> Deferred[Raw]:
            request = self._note(payload, "serializable" if serializable else "read")
            return query(payload, serializable, timeout_s).addCallbacks(
                self._answered, self._not_done, (request,), {}, (request,), {}
            )

        changed: Any = client
        changed.command, changed.query = command_and_note, query_and_note

    def _note(self, payload: Raw, kind: str) -> Request:
        request = Request(self.name, bytes(payload), kind, self.now_s)
        self._history.requests.append(request)
        if kind == "command":
            self._history.sent[request.payload] += 1
        return request

    def _done(self, result: Result, request: Request) -> Result:
        request.slot, request.index, request.data = result.slot, result.index, bytes(result.data)
        request.end_s, request.outcome = self.now_s, "done"
        return result

    def _answered(self, answer: Raw, request: Request) -> Raw:
        request.data, request.end_s, request.outcome = bytes(answer), self.now_s, "done"
        return answer

    def _not_done(self, failure: Failure, request: Request) -> Failure:
        refused = failure.check(*REFUSED) and not failure.check(SessionExpired)
        request.outcome, request.end_s = "refused" if refused else "unknown", self.now_s
        return failure

    # -- watches

    def watch(self, request: WatchRequest) -> tuple[Watching, Watch]:
        """Begin a watch; `follow` takes what it gives."""
        assert self.client is not None
        seen = self.client.kv.revision
        watch = self.client.start_watch(request, seen)
        watching = Watching(self.name, request, self.now_s, seen)
        watching.first_revision = request.start_revision
        started: Any = watch.started

        def started_and_note(revision: int) -> None:
            started(revision)
            watching.first_revision = watching.first_revision or watch.next_revision
            watching.started_s = min(watching.started_s, self.now_s)

        changed: Any = watch
        changed.started = started_and_note
        self._history.watchings.append(watching)
        self._watches.append((watching, watch))
        return watching, watch

    async def follow(self, watching: Watching, watch: Watch, between_s: Callable[[], float]) -> None:
        """Take what a watch gives, until it ends; ``between_s`` gives how long to rest after each batch."""
        try:
            async for batch in watch:
                if watching.ended:
                    return
                watching.batches.append((self.now_s, batch))
                rest_s = between_s()
                if rest_s:
                    await self.sleep(rest_s)
            self._ended(watching, "closed")
        except WatchCanceled as error:
            watching.compact_revision = error.compact_revision
            self._ended(watching, str(error) or "cancelled")
        except Overloaded as error:
            self._ended(watching, str(error))

    def _ended(self, watching: Watching, how: str) -> None:
        if not watching.ended:
            watching.ended, watching.ended_s = how, self.now_s

    def behind(self, revision: int) -> list[Watching]:
        """Watches that go on and have not given everything up to ``revision``."""
        found = []
        for watching, watch in self._watches:
            watching.next_revision = watch.next_revision if not watch._batches else 0
            if not watching.ended and watching.next_revision <= revision:
                found.append(watching)
        return found
