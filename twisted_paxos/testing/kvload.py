"""The key-value layer in a simulated run: clients on hosts of their own, and when they are done.

Chosen by the seed: which limits, which actors on which host, and what happens to the hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from msgspec import Raw

from twisted_paxos.client.lease import Lease
from twisted_paxos.client.recipes.place import Place
from twisted_paxos.core.messages import Command
from twisted_paxos.testing.checks import Check
from twisted_paxos.testing.cluster import SimulatedCluster
from twisted_paxos.testing.kvactors import Actors
from twisted_paxos.testing.kvchecks import (
    AppliedOnce,
    Cells,
    FinalState,
    KvRun,
    LeaseTimes,
    Reads,
    Results,
)
from twisted_paxos.testing.kvhistory import KvHistory, Request
from twisted_paxos.testing.kvhosts import KvHost
from twisted_paxos.testing.kvmachine import SimulatedStore, draw_kv_sizes
from twisted_paxos.testing.kvreplay import Replay
from twisted_paxos.testing.kvwatchchecks import Exclusion, Watched

HOSTS: Final = 3
KV_CLOCK_RATES: Final = (0.5, 0.9, 0.99, 1.0, 1.01)
"""How fast clocks of nodes run: not more than 2 % faster than those of leases' holders (docs/recipes.md)."""

LOOK_S: Final = 0.02
"""How often holders are asked whether they are sure."""

LOST_MAX_S: Final = 0.1
"""Whoever is not sure any more, and runs, is told by its ``lost`` within so long."""

UNATTENDED_MAX_S: Final = 9.0
"""Leases that nobody keeps alive are gone after so long: the longest time to live, at the slowest clock,
and a change of leader."""

DRAINED_MAX_S: Final = 8.0
"""So long may a watch take, once all is well, to give what is left: silent nodes are left after 3 s."""


class KvLoad:
    """Clients of the key-value store.

    Args:
        cluster: whose.
        seed: of the run.
        report: told (check, what) of what must not be.

    Attributes:
        history: what they did and saw.
        sizes: limits of this run.
    """

    def __init__(self, cluster: SimulatedCluster, seed: int, report: Any) -> None:
        self._cluster = cluster
        self._random = Random(f"key-value load {seed}")
        self.history = KvHistory()
        self.sizes = draw_kv_sizes(self._random)
        self._report = report
        self._actors = Actors(self._random, self.history, self._places)
        self.hosts = [KvHost(cluster, self._random, self.history, number, report) for number in range(HOSTS)]
        self._suffering = self._random.random() < 0.8
        self._unsure: dict[Place | Lease, float] = {}

    def machine(self) -> SimulatedStore:
        """An empty state machine for a node."""
        return SimulatedStore(self.sizes)

    def checks(self, chosen: Callable[[], Mapping[int, Raw]]) -> list[Check]:
        """What is checked, once ``chosen`` gives the whole log."""
        run = KvRun(self.history, lambda: Replay(chosen(), self.sizes), lambda: self._cluster.clock.now_s)
        return [
            AppliedOnce(run),
            Results(run),
            FinalState(run, self._states),
            Reads(run),
            Cells(run),
            LeaseTimes(run),
            Watched(run),
            Exclusion(run),
        ]

    def start(self) -> None:
        """Begin."""
        for host in self.hosts:
            host.start(self._actors.draw())
            if self._suffering:
                self._plan_suffering(host)
        self._look()

    def stop(self) -> None:
        """Nothing new begins; what is held is given back or left."""
        self._actors.running = False
        for host in self.hosts:
            for lease in host.leases:
                lease.abandon()

    def sent(self, command: Command) -> bool:
        """Whether one of these clients sent this."""
        return bytes(command.payload) in self.history.sent

    def open_requests(self) -> list[Request]:
        """What has no outcome yet."""
        return [request for request in self.history.requests if request.outcome == "open"]

    def close(self) -> None:
        """The run is over."""
        self._actors.running = False
        for host in self.hosts:
            host.close()

    # -- the ends that a run waits for

    def written(self, since_s: float) -> bool:
        """Whether a command that began after ``since_s`` was acknowledged."""
        for request in reversed(self.history.requests):
            if request.start_s <= since_s:
                return False
            if request.outcome == "done" and not request.is_read:
                return True
        return False

    def leases_left(self) -> list[int]:
        """Leases that a running node still has."""
        return sorted({lease.id for store in self._stores() for lease in store._leases.records()})

    def watches_left(self) -> list[Any]:
        """Watches that have not given everything."""
        revision = max((store.revision for store in self._stores()), default=0)
        return [watching for host in self.hosts for watching in host.behind(revision)]

    def _stores(self) -> list[SimulatedStore]:
        return [state.machine for _, state in self._states()]

    def _states(self) -> list[tuple[str, Any]]:
        """What running nodes have applied, by id."""
        return [
            (uid, node.node.state)
            for uid, node in self._cluster.nodes.items()
            if node.node is not None and node.node.running
        ]

    # -- what happens to hosts

    def heal(self) -> None:
        """Nothing more happens to them."""
        self._suffering = False
        for host in self.hosts:
            if host.reactor.is_paused:
                host.resume()

    def _plan_suffering(self, host: KvHost) -> None:
        clock = self._cluster.clock
        clock.push(clock.now_s + self._random.expovariate(1 / 3.0), self._suffer, (host,))

    def _suffer(self, host: KvHost) -> None:
        if not self._suffering:
            return
        self._plan_suffering(host)
        clock, random = self._cluster.clock, self._random
        holders = [its_host for its_host, place in self._places() if place.held]
        if holders and random.random() < 0.5:
            host = random.choice(holders)
        if host.reactor.is_paused:
            return
        kind, seconds = random.random(), random.expovariate(1 / random.choice((0.2, 1.0, 3.0)))
        if kind < 0.45:
            host.pause()
            clock.push(clock.now_s + seconds, self._resume, (host, host.reactor))
        elif kind < 0.9:
            self._set_cut(host, True)
            clock.push(clock.now_s + seconds, self._set_cut, (host, False))
        else:
            host.kill()
            host.start(self._actors.draw())

    def _resume(self, host: KvHost, reactor: Any) -> None:
        if host.reactor is reactor and reactor.is_paused:
            host.resume()

    def _set_cut(self, host: KvHost, is_cut: bool) -> None:
        network = self._cluster.network
        for node in self._cluster.nodes.values():
            (network.cut if is_cut and self._suffering else network.heal)(host.host, node.host)

    # -- what holders believe

    def _places(self) -> list[tuple[KvHost, Place]]:
        return [(host, place) for host in self.hosts for place in host.places]

    def _look(self) -> None:
        """Note which leases their holders are sure of, and whether who is not sure is told."""
        clock = self._cluster.clock
        clock.push(clock.now_s + LOOK_S, self._look)
        for host in self.hosts:
            if host.running:
                for lease in [*host.leases, *(p._lease for p in host.places if p._lease is not None)]:
                    if lease.sure:
                        self.history.sure_s[lease.id] = clock.now_s
                    else:
                        self._check_told(host, lease)

    def _check_told(self, host: KvHost, lease: Lease) -> None:
        if lease._ended:
            self._unsure.pop(lease, None)
            return
        since_s = max(self._unsure.setdefault(lease, self._cluster.clock.now_s), host.resumed_s)
        if self._cluster.clock.now_s - since_s > LOST_MAX_S:
            self._report("kv lease", f"the holder of {lease.id:x} is not told that it is lost")
