"""Lost storage: the one repair path of DESIGN.md section 6, with real nodes on simulated disks."""

from __future__ import annotations

from tests.test_node import ClusterCase
from twisted_paxos.core.effects import Effects, ReadChosen
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode


class RepairTests(ClusterCase):
    """However storage is lost, the node comes back as a new incarnation and votes again."""

    def setUp(self) -> None:
        self.cluster: SimulatedCluster = self.make(seed=3)
        self.client = self.cluster.client()
        self.write(50)
        leader = self.cluster.leaders()[0]
        self.victim = self.cluster.nodes[next(uid for uid in "ABC" if uid != leader)]

    def write(self, count: int) -> None:
        """Propose some values."""
        for number in range(count):
            self.cluster.result(self.client.propose(f"v{number}"), 10)

    def incarnation(self) -> str:
        """The victim's."""
        assert self.victim.node is not None
        return self.victim.node.replica.me.incarnation

    def check_repaired(self, old: str) -> None:
        """It is a new incarnation, all agree on it, and its vote counts."""
        cluster, victim = self.cluster, self.victim

        def votes() -> bool:
            node = victim.node
            return (
                node is not None
                and self.incarnation() != old
                and node.status().role in ("follower", "leader")
            )

        self.assertTrue(cluster.run_until(votes, 15), "it does not vote again, as a new incarnation")
        logs = self.logs(cluster, "ABC")
        self.assertEqual(logs[0], logs[1])
        self.assertEqual(logs[0], logs[2])
        other = next(uid for uid in "ABC" if uid != victim.uid)
        cluster.nodes[other].crash()
        self.write(5)

    def test_wiped(self) -> None:
        """An empty directory."""
        old = self.incarnation()
        self.victim.crash()
        self.victim.disk.wipe()
        self.victim.start()
        self.check_repaired(old)

    def test_flippedBit(self) -> None:
        """One bit of the log, found at the start; the damaged files are kept beside."""
        old = self.incarnation()
        self.victim.crash()
        name = next(name for name in self.victim.disk.names() if name.startswith("log-"))
        self.victim.disk.flip_bit(name, 900, 3)
        self.victim.start()
        self.check_repaired(old)

    def test_bothPromisesDamaged(self) -> None:
        """Both copies of the promise; one alone is mended without a new incarnation."""
        old = self.incarnation()
        self.victim.crash()
        self.victim.disk.flip_bit("promise.0", 40, 1)
        self.victim.start()
        self.cluster.run(1)
        self.assertEqual(old, self.incarnation())
        self.victim.crash()
        self.victim.disk.flip_bit("promise.0", 40, 1)
        self.victim.disk.flip_bit("promise.1", 40, 1)
        self.victim.start()
        self.check_repaired(old)

    def test_oldCopy(self) -> None:
        """A directory from before a later start: peers have seen that start."""
        old = self.incarnation()
        self.victim.crash()
        copy = self.victim.disk.snapshot()
        self.victim.start()
        self.cluster.run(1)
        self.write(20)
        self.victim.crash()
        self.victim.disk.restore(copy)
        self.victim.start()
        self.check_repaired(old)

    def test_copyOfARunningNode(self) -> None:
        """A directory copied while the node ran: no start tells, but peers remember its votes."""
        old = self.incarnation()
        copy = self.victim.disk.snapshot()
        self.write(20)
        self.victim.crash()
        self.victim.disk.restore(copy)
        self.victim.start()
        self.check_repaired(old)

    def test_copyOfARunningNodeWithoutTheLeader(self) -> None:
        """Votes go to the leader only; when it is down, the third node knows of them by heartbeats."""
        leader = self.cluster.leaders()[0]
        followers = [node for node in self.cluster.nodes.values() if node.uid != leader]
        # The leader asks the nearest majority: the other follower may not vote at all.
        self.victim = max(followers, key=self.voted_upto)
        old, voted_upto = self.incarnation(), self.voted_upto(self.victim)
        copy = self.victim.disk.snapshot()
        self.write(20)
        self.assertGreaterEqual(self.voted_upto(self.victim), voted_upto + 20)
        self.cluster.run(0.5)
        self.cluster.nodes[leader].crash()
        self.victim.crash()
        self.victim.disk.restore(copy)
        self.victim.start()
        renewed = lambda: self.victim.node is not None and self.incarnation() != old  # noqa: E731
        self.assertTrue(self.cluster.run_until(renewed, 5), "the third node takes the copy for the node")
        self.assertEqual([], self.cluster.leaders())
        self.cluster.nodes[leader].start()
        self.check_repaired(old)

    def voted_upto(self, its: SimulatedNode) -> int:
        """The highest slot that a running node has voted for in this start."""
        assert its.node is not None
        return its.node.performer.voted_upto

    def test_readError(self) -> None:
        """A disk that cannot be read for a moment, for a peer's question, costs neither vote nor node."""
        old = self.incarnation()
        assert self.victim.node is not None
        self.victim.disk.fail_read = True
        effects = Effects()
        effects.reads.append(ReadChosen("A", 1, 1, 10))
        self.victim.node.performer.perform(effects)
        self.cluster.run(0.1)
        self.victim.disk.fail_read = False
        self.assertTrue(self.victim.running)
        self.cluster.run(2)
        self.assertEqual((old, {}), (self.incarnation(), self.victim.disk.set_aside_files))

    def test_ownReadError(self) -> None:
        """What it needs itself it must be able to read: it stops with one line, and comes back as it was."""
        old = self.incarnation()
        self.victim.crash()
        self.victim.start()
        self.victim.disk.fail_read = True
        self.cluster.run(0.5)
        self.assertIn("Input/output error", self.victim.stopped_with)
        self.victim.disk.fail_read = False
        self.victim.start()
        self.cluster.run(2)
        self.assertEqual((old, {}), (self.incarnation(), self.victim.disk.set_aside_files))

    def test_twice(self) -> None:
        """One node after the other, again and again."""
        for uid in "ABCAB":
            self.victim = self.cluster.nodes[uid]
            old = self.incarnation()
            self.victim.crash(power_loss=True)
            self.victim.disk.wipe()
            self.victim.start()
            self.check_repaired(old)
            self.cluster.start()
            settled = lambda: all(  # noqa: E731
                node.node is not None and node.node.status().role in ("follower", "leader")
                for node in self.cluster.nodes.values()
            )
            self.assertTrue(self.cluster.run_until(settled, 15))

    def test_allLostFormNothing(self) -> None:
        """Nodes whose storage was set aside never found a new cluster: that would lose all."""
        for node in self.cluster.nodes.values():
            node.crash()
            name = next(name for name in node.disk.names() if name.startswith("log-"))
            node.disk.flip_bit(name, 900, 3)
            node.start()
        self.cluster.run(20)
        self.assertEqual([], self.cluster.leaders())
        for node in self.cluster.nodes.values():
            assert node.node is not None
            self.assertEqual("joining", node.node.status().role)


class FirstFormationTests(ClusterCase):
    """The first start of a cluster."""

    def test_needsAllOnce(self) -> None:
        """Two of three fresh nodes form nothing; with the third they do, and then two are enough."""
        from random import Random

        cluster = SimulatedCluster(Random(5))
        cluster.nodes["A"].start()
        cluster.nodes["B"].start()
        cluster.run(10)
        self.assertEqual([], cluster.leaders())
        node = cluster.nodes["A"].node
        assert node is not None
        self.assertEqual(("C",), node.status().waiting_for)
        cluster.nodes["C"].start()
        self.assertTrue(cluster.run_until(lambda: bool(cluster.leaders()), 5))
        cluster.run(1)
        for name in "ABC":
            cluster.nodes[name].crash()
        cluster.nodes["A"].start()
        cluster.nodes["B"].start()
        self.assertTrue(cluster.run_until(lambda: bool(cluster.leaders()), 5))
