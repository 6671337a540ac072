"""A simulated cluster of real nodes, real clients, and coroutines that run on it."""

from __future__ import annotations

from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.client import Client
from twisted_paxos.client.watches import Watch
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode

_T = TypeVar("_T")


class ClusterCase(SynchronousTestCase):
    """One cluster for each test; all chance comes from ``SEED``."""

    SEED = 20_260_704
    SIZE = 3

    def setUp(self) -> None:
        """Start it and let it elect a leader."""
        self.random = Random(self.SEED)
        self.cluster = SimulatedCluster(self.random, size=self.SIZE, **self.options())
        self.cluster.start()
        self.assertTrue(self.cluster.run_until(lambda: bool(self.cluster.leaders()), 10))
        self.jobs: list[Deferred[Any]] = []
        self.clients: list[Client] = []
        self.addCleanup(self.end)

    def options(self) -> dict[str, Any]:
        """More arguments of the cluster."""
        return {}

    def end(self) -> None:
        """End what runs in the background, so that nothing of it runs into the next test."""
        for job in self.jobs:
            job.addErrback(lambda failure: failure.trap(CancelledError, Exception) and None)
            job.cancel()
        for client in self.clients:
            client.close()

    def client(self, *uids: str) -> Client:
        """A connected client on a host of its own."""
        client: Client = self.cluster.client(*uids)
        self.clients.append(client)
        return client

    def do(self, work: Coroutine[Any, Any, _T] | Deferred[_T], timeout_s: float = 60.0) -> _T:
        """What ``work`` gives."""
        deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
        result: _T = self.cluster.result(deferred, timeout_s)
        return result

    def begin(self, work: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        """Run ``work`` in the background."""
        job = Deferred.fromCoroutine(work)
        self.jobs.append(job)
        return job

    def pause(self, client: Client, seconds: float) -> Deferred[None]:
        """Wait, as ``client``."""
        return deferLater(client.reactor, seconds)

    @property
    def leader(self) -> SimulatedNode:
        """The node that leads, as it believes."""
        self.assertTrue(self.cluster.run_until(lambda: bool(self.cluster.leaders()), 10))
        return self.cluster.nodes[self.cluster.leaders()[0]]

    def crash_leader(self, down_s: float = 0.7, power_loss: bool = False) -> None:
        """Kill it, and start it again after ``down_s`` seconds."""
        node = self.leader
        node.crash(power_loss)
        self.cluster.run(down_s)
        node.start()

    def machine(self, uid: str) -> Any:
        """The key-value store of a running node."""
        node = self.cluster.nodes[uid].node
        assert node is not None
        return node.machine

    def assertMembersEqual(self) -> None:
        """After some quiet time, all members have applied the same and have the same store."""
        self.cluster.run(3)
        states = {uid: self.machine(uid).hash() for uid in self.cluster.nodes}
        self.assertEqual(1, len(set(states.values())), states)


class Follower:
    """Takes what a watch gives.

    Attributes:
        events: (revision, kind, key, value) of each event.
        batches: the revisions of each batch's events.
        progress: (revision of a batch without events, last revision of an event before it).
    """

    def __init__(self) -> None:
        self.events: list[tuple[int, str, bytes, bytes]] = []
        self.batches: list[list[int]] = []
        self.progress: list[tuple[int, int]] = []

    async def follow(self, watch: Watch) -> None:
        """Until the watch ends."""
        async for batch in watch:
            if not batch.events:
                self.progress.append((batch.revision, self.events[-1][0] if self.events else 0))
                continue
            self.batches.append([event.kv.mod_revision for event in batch.events])
            self.events += [(e.kv.mod_revision, e.type, e.kv.key, e.kv.value) for e in batch.events]
