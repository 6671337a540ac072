"""Random runs of a `PureCluster`: everything that can go wrong, and then none of it any more."""

from __future__ import annotations

from typing import NamedTuple

from twisted_paxos.core.messages import Command, decode_value
from twisted_paxos.statemachine.commands import encode_opaque
from twisted_paxos.testing.replicas import PureCluster, PureNode, Violation


class Weather(NamedTuple):
    """What goes wrong, and how often.

    Attributes:
        seconds: how long, in simulated time.
        loss: share of messages lost.
        replay: chance per message that an old one arrives again.
        stall: chance per write that the disk takes seconds.
        writes_per_s: commands and faults per second.
        commands: share of those that are commands; the rest are faults.
        wipes: share of the faults that take a node's whole disk, while all others are well.
    """

    seconds: float = 12.0
    loss: float = 0.1
    replay: float = 0.02
    stall: float = 0.001
    writes_per_s: float = 30.0
    commands: float = 0.9
    wipes: float = 0.0


def command(sequence: int, client: str = "c") -> Command:
    """An opaque command that tells its own number."""
    return Command(client, sequence, 1, encode_opaque(f"v{sequence}"))


class RandomRun:
    """One run; everything follows from the seed.

    Args:
        seed: prints in every failure.
        size: number of voters.
        weather: what goes wrong.

    Attributes:
        cluster: the bench.
        submitted: how many commands were submitted.
        wiped: how many disks were lost.
    """

    def __init__(self, seed: int, size: int = 3, weather: Weather | None = None) -> None:
        self.cluster = PureCluster(seed, size)
        self.weather = weather or Weather()
        self.submitted = 0
        self.wiped = 0
        self._random = self.cluster.random

    def run(self) -> None:
        """All of it.

        Raises:
            Violation: or any AssertionError of the core: a rule was broken, or nothing moves.
        """
        cluster = self.cluster
        cluster.start()
        if not cluster.run(5, lambda: bool(cluster.leaders())):
            raise Violation("no leader in a healthy cluster")
        cluster.loss, cluster.replay, cluster.stall = (
            self.weather.loss,
            self.weather.replay,
            self.weather.stall,
        )
        while cluster.now_s < self.weather.seconds:
            cluster.run(self._random.expovariate(self.weather.writes_per_s))
            if self._random.random() < self.weather.commands:
                self._submit()
            else:
                self._fault()
        self._heal()
        self._check_progress()
        self._check_acknowledged()

    def _up(self) -> list[PureNode]:
        return [node for node in self.cluster.nodes.values() if node.replica is not None]

    def _submit(self) -> None:
        up = self._up()
        if up:
            self.submitted += 1
            self._random.choice(up).submit([command(self.submitted)])
            if self.submitted % 5 == 0:
                self._random.choice(up).read()

    def _fault(self) -> None:
        cluster, random = self.cluster, self._random
        node = random.choice(list(cluster.nodes.values()))
        if self.weather.wipes and random.random() < self.weather.wipes:
            self._wipe(node)
            return
        kind = random.random()
        if kind < 0.4:
            if node.replica is None:
                node.start()
            else:
                node.crash()
        elif len(cluster.voters) == 1:
            node.pause(random.uniform(0.1, 2.0))
        elif kind < 0.6:
            side = random.sample(cluster.voters, random.randrange(1, len(cluster.voters)))
            cluster.cut = {
                (a, b) for a in cluster.voters for b in cluster.voters if (a in side) != (b in side)
            }
        elif kind < 0.7:
            one, other = random.sample(cluster.voters, 2)
            cluster.cut.add((one, other))
        elif kind < 0.75:
            node.pause(random.uniform(0.1, 2.0))
        elif kind < 0.95:
            cluster.cut = set()
        else:
            for each in self._up():
                each.crash()

    def _wipe(self, node: PureNode) -> None:
        """Take a node's disk away, once everybody who was replaced before is a full member again.

        One loss at a time is what a majority can bear. Until every other disk has it that all slots
        before a Replace's first one are chosen, the replaced node still counts as lost: those slots
        are the old set's.
        """
        truth = self.cluster.witness.membership
        well = all(
            each.replica is not None
            and each.replica.acceptor.votes
            and each.replica.membership.latest == truth.latest
            and (each is node or each.disk.chosen_upto + 1 >= truth.latest_from)
            for each in self.cluster.nodes.values()
        )
        if well:
            node.crash()
            node.wipe()
            node.start()
            self.wiped += 1

    def _heal(self) -> None:
        cluster = self.cluster
        cluster.cut = set()
        cluster.loss = cluster.replay = cluster.stall = 0.0
        for node in cluster.nodes.values():
            if node.replica is None:
                node.start()

    def _check_progress(self) -> None:
        """Healed, the cluster chooses a new command, every node comes to know all of it, and all vote."""
        cluster = self.cluster
        self.submitted += 1
        last = command(self.submitted, "last")
        cluster.nodes["A"].submit([last])

        def done() -> bool:
            nodes = cluster.nodes.values()
            voters = all(node.replica is not None and node.replica.acceptor.votes for node in nodes)
            equal = len({len(node.applied) for node in nodes}) == 1
            return (last.client, last.sequence) in cluster.acknowledged and equal and voters

        if not cluster.run(15, done):
            states = [(u, n.replica and n.replica.role(), len(n.applied)) for u, n in cluster.nodes.items()]
            raise Violation(f"no progress after healing: {states}")

    def _check_acknowledged(self) -> None:
        """What a client was told is in the log."""
        chosen = {
            (one.client, one.sequence)
            for value in self.cluster.witness.chosen.values()
            for one in decode_value(value).commands
        }
        lost = self.cluster.acknowledged - chosen
        if lost:
            raise Violation(f"acknowledged, and not chosen: {sorted(lost)[:5]}")
