"""A whole cluster of the real node code in one process, on a simulated network and simulated disks.

Node, protocols, messenger, links, storage and client port are the ones that run in production;
only the reactor, the disk and the thread are replaced. Everything that happens follows from the
`random.Random` that it is given. Simulators, and tests of programs that embed a node, build on it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from twisted_paxos.addresses import Address
from twisted_paxos.client import connect
from twisted_paxos.config import NodeConfig
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.errors import PaxosError
from twisted_paxos.interfaces import INodeStorage
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.service import NodeService
from twisted_paxos.storage.wal import FileStorage
from twisted_paxos.testing.clock import SimulatedClock
from twisted_paxos.testing.network import SimulatedNetwork, SimulatedReactor
from twisted_paxos.testing.storage import ImmediateExecutor, SimulatedDisk

PEER_PORT = 5000
CLIENT_PORT = 5100
SEGMENT_BYTES = 64 << 10
"""Small, so that segments change often."""


class SimulatedNode:
    """One node: a host, a disk, and at most one process at a time.

    Attributes:
        node: the running node, or None.
        stopped_with: why the node stopped by itself; empty while it did not.
        sync_s: how long a sync takes.
    """

    def __init__(self, cluster: SimulatedCluster, uid: str, host: str, observer: bool = False) -> None:
        self.cluster = cluster
        self.uid = uid
        self.host = host
        self.observer = observer
        self.disk = SimulatedDisk(f"/{uid}")
        self.service: NodeService | None = None
        self.reactor: SimulatedReactor | None = None
        self.executor: ImmediateExecutor | None = None
        self.stopped_with = ""
        self.sync_s = 0.000_5
        self.clock_offset_s = 0.0
        self.clock_rate = 1.0

    def config(self) -> NodeConfig:
        """What the command line would give it."""
        members = {uid: Address(node.host, PEER_PORT) for uid, node in self.cluster.nodes.items()}
        return NodeConfig(
            uid=self.uid,
            members={uid: members[uid] for uid in self.cluster.voters},
            observer=self.observer,
            address=Address(self.host, PEER_PORT),
            bind=Address(self.host, PEER_PORT),
            storage=f"file:/{self.uid}",
            client=f"tcp:{CLIENT_PORT}:interface={self.host}",
            client_told=f"{self.host}:{CLIENT_PORT}",
            cluster_key=self.cluster.key,
            print_chosen=False,
            datagram_max_bytes=self.cluster.datagram_max_bytes,
            snapshot_slots=self.cluster.snapshot_slots,
        )

    def start(self) -> None:
        """Start the process.

        Raises:
            StorageError: its storage cannot be used; it is then not running.
        """
        assert self.service is None, f"{self.uid} runs already"
        cluster = self.cluster
        self.stopped_with = ""
        self.reactor = cluster.network.reactor(self.host, self.clock_offset_s, self.clock_rate)
        self.service = NodeService(
            self.reactor,
            self.config(),
            self._open_storage,
            True,
            lambda: f"{cluster.random.getrandbits(64):016x}",
            cluster.random.random,
        )
        service = self.service
        service.failed.addErrback(lambda failure: self._stopped(service, failure.getErrorMessage()))
        try:
            started = service.startService()
        except PaxosError as error:
            self._stopped(service, str(error))
            raise
        started.addErrback(lambda failure: self._stopped(service, failure.getErrorMessage()))
        for watch in cluster.on_start:
            watch(self)

    def _open_storage(self) -> INodeStorage:
        assert self.reactor is not None
        # One executor per storage object: closing the storage closes it.
        self.executor = ImmediateExecutor(self.reactor, self.sync_s)
        storage = FileStorage(self.disk, self.uid, self.executor, self.cluster.segment_bytes)
        for watch in self.cluster.on_storage:
            watch(self, storage)
        return storage

    @property
    def node(self) -> PersistentPaxosNode | None:
        """The running node."""
        return self.service.node if self.service is not None else None

    def _stopped(self, service: NodeService, reason: str) -> None:
        """The node gave up: its process ends, unless it was killed before it could say so."""
        if self.service is not service:
            return
        self.stopped_with = reason
        self._end()
        self.disk.kill()
        for watch in self.cluster.on_stop:
            watch(self)

    def _end(self) -> None:
        if self.executor is not None:
            self.executor.abandon()
        if self.reactor is not None:
            self.reactor.crash()
        self.service = self.reactor = self.executor = None

    def crash(self, power_loss: bool = False) -> None:
        """SIGKILL, or loss of power: then what was not synced is lost or torn."""
        if self.service is None:
            return
        executor, reactor = self.executor, self.reactor
        assert executor is not None and reactor is not None
        executor.abandon()
        reactor.crash(power_loss)
        self.service = self.reactor = self.executor = None
        if power_loss:
            self.disk.crash(self.cluster.random)
        else:
            self.disk.kill()

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.service is not None


class SimulatedCluster:
    """Nodes, their network, and clients.

    Args:
        random: the chance of everything.
        size: number of voters, named A, B, C, ...
        key: the cluster key, if any.
        observers: number of nodes without a vote, named after the voters.
        segment_bytes, datagram_max_bytes, snapshot_slots: limits of all nodes.

    Attributes:
        nodes: by id.
        clock, network: see there.
        on_start: called with each `SimulatedNode` that has just started.
        on_storage: called with each `SimulatedNode` and its new storage object, before it is recovered.
        on_stop: called with each `SimulatedNode` that gave up by itself.
    """

    def __init__(
        self,
        random: Random,
        size: int = 3,
        key: bytes | None = None,
        observers: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        datagram_max_bytes: int = 60_000,
        snapshot_slots: int = 10_000,
    ) -> None:
        self.random = random
        self.key = key
        self.segment_bytes = segment_bytes
        self.datagram_max_bytes = datagram_max_bytes
        self.snapshot_slots = snapshot_slots
        self.clock = SimulatedClock()
        self.network = SimulatedNetwork(self.clock, random)
        self.on_start: list[Callable[[SimulatedNode], None]] = []
        self.on_storage: list[Callable[[SimulatedNode, Any], None]] = []
        self.on_stop: list[Callable[[SimulatedNode], None]] = []
        names = [chr(ord("A") + place) for place in range(size + observers)]
        self.voters = tuple(names[:size])
        self.nodes = {
            uid: SimulatedNode(self, uid, f"10.0.0.{place + 1}", place >= size)
            for place, uid in enumerate(names)
        }
        self._clients = 0

    def start(self) -> None:
        """Start all nodes that do not run."""
        for node in self.nodes.values():
            if not node.running:
                node.start()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def run_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Let time pass until ``condition()`` holds; False if it does not in time."""
        return self.clock.run_until(condition, timeout_s)

    def leaders(self) -> list[str]:
        """Ids of the nodes that lead at present, as they believe."""
        return [
            uid
            for uid, node in self.nodes.items()
            if node.node is not None and node.node.replica.proposer.leading
        ]

    def hosts(self, uids: str) -> list[str]:
        """The hosts of the nodes with these one-letter ids."""
        return [self.nodes[uid].host for uid in uids]

    def client(self, *uids: str) -> Any:
        """A native client on a host of its own, connected to these nodes (all, unless named)."""
        self._clients += 1
        reactor = self.network.reactor(f"10.0.1.{self._clients}")
        endpoints = [f"{self.nodes[uid].host}:{CLIENT_PORT}" for uid in uids or self.voters]
        return self.result(connect(reactor, endpoints, rng=Random(self.random.getrandbits(32))), 30)

    def result(self, deferred: Any, timeout_s: float) -> Any:
        """What ``deferred`` gives, after as much simulated time as it takes.

        Raises:
            AssertionError: it did not fire in time.
            Exception: what it failed with.
        """
        outcome: list[Any] = []
        deferred.addBoth(outcome.append)
        assert self.run_until(lambda: bool(outcome), timeout_s), f"no result within {timeout_s} s"
        if hasattr(outcome[0], "raiseException"):
            outcome[0].raiseException()
        return outcome[0]

    def log_of(self, uid: str) -> list[SlotEntry]:
        """The chosen log of a running node, from its storage."""
        node = self.nodes[uid].node
        assert node is not None
        entries: list[SlotEntry] = []
        while True:
            more = self.result(node.read_log(len(entries) + 1, 1 << 20), 10)
            if not more:
                return entries
            entries += more
