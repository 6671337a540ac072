"""Partial connectivity (Omni-Paxos, EuroSys 2023, section 2.2): writes go on, leaders stay where they may.

Each case runs with several seeds. "Within 2 seconds" is simulated time, from the cut to the
first command that is submitted after it and applied.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.core.runs import command
from twisted_paxos.testing.replicas import PureCluster

SEEDS = 10
WRITES_AGAIN_S = 2.0


class Case:
    """A cluster with a leader, and writes that are timed."""

    def __init__(self, seed: int, size: int, loss: float = 0.0) -> None:
        self.cluster = PureCluster(seed, size, loss)
        self.cluster.start()
        assert self.cluster.run(10, lambda: bool(self.cluster.leaders())), "no leader at the start"
        self.cluster.run(1)
        self._sequence = 0

    @property
    def leader(self) -> str:
        """The one that leads."""
        (leader,) = self.cluster.leaders()
        return leader

    def others(self) -> list[str]:
        """The rest, in order."""
        return [uid for uid in self.cluster.voters if uid != self.leader]

    def write(self, through: str, within_s: float) -> bool:
        """Whether a command submitted at a node is applied there in time."""
        self._sequence += 1
        key = ("c", self._sequence)
        self.cluster.nodes[through].submit([command(self._sequence)])
        return self.cluster.run(within_s, lambda: key in self.cluster.acknowledged)

    def changes(self, seconds: float) -> int:
        """How often somebody comes to lead while time passes."""
        before = len(self.cluster.elected)
        self.cluster.run(seconds)
        return len(self.cluster.elected) - before


class PartitionCase(SynchronousTestCase):
    """Helpers."""

    def each(self, size: int, check: Callable[[Case], None], loss: float = 0.0) -> None:
        """The same with every seed."""
        for seed in range(SEEDS):
            case = Case(seed, size, loss)
            try:
                check(case)
            except AssertionError as error:
                raise self.failureException(f"seed {seed}, {size} nodes: {error}") from error

    def assert_writes(self, case: Case, *through: str, within_s: float = WRITES_AGAIN_S) -> None:
        """A command through each of these nodes is applied in time."""
        for uid in through:
            self.assertTrue(case.write(uid, within_s), f"no write through {uid} within {within_s} s")


class OmniPaxosTests(PartitionCase):
    """The paper's three cases, and no second gap on healing."""

    def test_quorumLoss(self) -> None:
        """Five nodes, all linked to one hub only: the leader lost its quorum, but is alive and heard."""

        def check(case: Case) -> None:
            hub = case.others()[0]
            case.cluster.connect_only(*(hub + uid for uid in case.cluster.voters if uid != hub))
            self.assert_writes(case, hub)
            self.assertEqual(case.leader, hub)
            self.assertEqual(case.changes(3), 0)

        self.each(5, check)

    def test_constrainedElection(self) -> None:
        """Five nodes, the leader is cut off, and the only one that reaches a majority lags behind."""

        def check(case: Case) -> None:
            old, hub = case.leader, case.others()[0]
            rest = [uid for uid in case.others() if uid != hub]
            case.cluster.isolate(hub)
            for _ in range(3):
                self.assert_writes(case, rest[0])
            case.cluster.connect_only(*(hub + uid for uid in rest))
            self.assertNotIn((old, hub), set(zip(old, hub, strict=True)) - case.cluster.cut)
            self.assert_writes(case, hub)
            self.assertIn(hub, case.cluster.leaders())

        self.each(5, check)

    def test_chained(self) -> None:
        """Three nodes in a row, the leader at one end: the other end hears no leader and moves nobody."""

        def check(case: Case) -> None:
            end, (middle, other_end) = case.leader, case.others()
            case.cluster.cut |= {(end, other_end), (other_end, end)}
            self.assert_writes(case, end, middle)
            self.assertEqual(case.changes(5), 0)
            self.assertEqual(case.leader, end)

        self.each(3, check)

    def test_chainedOtherEndLearns(self) -> None:
        """In the chain, the far end still comes to know what is chosen, by way of the middle."""

        def check(case: Case) -> None:
            end, (_, other_end) = case.leader, case.others()
            case.cluster.cut |= {(end, other_end), (other_end, end)}
            self.assert_writes(case, end)
            chosen = case.cluster.witness.chosen_upto
            node = case.cluster.nodes[other_end]
            self.assertTrue(case.cluster.run(2, lambda: len(node.applied) >= chosen))

        self.each(3, check)

    def test_noSecondGapOnHealing(self) -> None:
        """When the links come back after each of the cases, whoever leads goes on leading."""

        def check(case: Case) -> None:
            hub = case.others()[0]
            case.cluster.connect_only(*(hub + uid for uid in case.cluster.voters if uid != hub))
            self.assert_writes(case, hub)
            case.cluster.cut = set()
            self.assertEqual(case.changes(3), 0)
            self.assert_writes(case, *case.cluster.voters, within_s=0.5)

        self.each(5, check)


class OneWayTests(PartitionCase):
    """Links that work in one direction."""

    def test_leaderThatOnlySends(self) -> None:
        """The leader's messages arrive, none reaches it: it steps down, and another takes over."""

        def check(case: Case) -> None:
            old, others = case.leader, case.others()
            case.cluster.cut = {(uid, old) for uid in others}
            self.assert_writes(case, *others)
            self.assertNotIn(old, case.cluster.leaders())

        self.each(3, check)
        self.each(5, check)

    def test_leaderThatOnlyHears(self) -> None:
        """Nothing of the leader arrives anywhere: it is replaced, and gives way to what it hears."""

        def check(case: Case) -> None:
            old, others = case.leader, case.others()
            case.cluster.cut = {(old, uid) for uid in others}
            self.assert_writes(case, *others)
            self.assertNotIn(old, case.cluster.leaders())

        self.each(3, check)

    def test_followerThatOnlySends(self) -> None:
        """A follower that hears nobody moves nobody."""

        def check(case: Case) -> None:
            deaf = case.others()[0]
            case.cluster.cut = {(uid, deaf) for uid in case.cluster.voters if uid != deaf}
            self.assertEqual(case.changes(5), 0)
            self.assert_writes(case, case.leader)

        self.each(3, check)

    def test_followerThatOnlyHears(self) -> None:
        """A follower that nobody hears moves nobody."""

        def check(case: Case) -> None:
            mute = case.others()[0]
            case.cluster.cut = {(mute, uid) for uid in case.cluster.voters if uid != mute}
            self.assertEqual(case.changes(5), 0)
            self.assert_writes(case, case.leader)

        self.each(3, check)


class StabilityTests(PartitionCase):
    """No change of leader where there must be none; a quick one where there must be."""

    def test_followerThatComesAndGoes(self) -> None:
        """A follower that is cut off and comes back, again and again, does not move the leader."""

        def check(case: Case) -> None:
            leader, flaky = case.leader, case.others()[0]
            for _ in range(5):
                case.cluster.isolate(flaky)
                self.assertEqual(case.changes(1.5), 0)
                case.cluster.cut = set()
                self.assertEqual(case.changes(0.7), 0)
                self.assert_writes(case, leader, within_s=0.2)
            self.assertEqual(case.leader, leader)

        self.each(3, check)

    def test_followerThatRestarts(self) -> None:
        """A follower that crashes and comes back does not move the leader, and catches up."""

        def check(case: Case) -> None:
            flaky = case.cluster.nodes[case.others()[0]]
            for _ in range(3):
                flaky.crash()
                self.assert_writes(case, case.leader, within_s=0.2)
                flaky.start()
                self.assertEqual(case.changes(1.5), 0)
            self.assertEqual(len(flaky.applied), case.cluster.witness.chosen_upto)

        self.each(3, check)

    def test_pausedLeader(self) -> None:
        """A leader that is stopped is replaced; when it goes on, it gives way and moves nobody."""

        def check(case: Case) -> None:
            old, others = case.leader, case.others()
            case.cluster.nodes[old].pause(3.0)
            self.assert_writes(case, *others)
            case.cluster.run(1.5)
            self.assertEqual(case.changes(3), 0)
            self.assertNotEqual(case.leader, old)
            self.assert_writes(case, old)

        self.each(3, check)

    def test_pausedFollower(self) -> None:
        """A follower that was stopped for long moves nobody when it goes on."""

        def check(case: Case) -> None:
            case.cluster.nodes[case.others()[0]].pause(3.0)
            self.assertEqual(case.changes(6), 0)

        self.each(3, check)

    def test_stalledDisk(self) -> None:
        """A leader whose disk hangs steps down, though its heartbeats are healthy."""

        def check(case: Case) -> None:
            old, others = case.leader, case.others()
            node = case.cluster.nodes[old]
            node.writing = []
            node.writing_since_s = case.cluster.now_s
            self.assert_writes(case, *others)
            case.cluster.run(2.5)
            self.assertNotIn(old, case.cluster.leaders())
            self.assert_writes(case, *others)

        self.each(3, check)

    def test_killedLeader(self) -> None:
        """A killed leader is replaced within half a second in the median, one second at worst."""
        gaps_s = []
        for seed in range(3 * SEEDS):
            case = Case(seed, 3)
            others = case.others()
            case.cluster.nodes[case.leader].crash()
            start_s = case.cluster.now_s
            self.assertTrue(case.write(others[0], 2.0), f"seed {seed}")
            gaps_s.append(case.cluster.now_s - start_s)
        self.assertLess(sorted(gaps_s)[len(gaps_s) // 2], 0.5)
        self.assertLess(max(gaps_s), 1.0)

    def test_duellingCandidates(self) -> None:
        """All start at once, and all of a cluster's restarts end with one leader soon."""

        def check(case: Case) -> None:
            for node in case.cluster.nodes.values():
                node.crash()
            for node in case.cluster.nodes.values():
                node.start()
            self.assertTrue(case.cluster.run(2.0, lambda: len(case.cluster.leaders()) == 1))
            case.cluster.run(0.5)
            self.assertEqual(case.changes(3), 0)

        self.each(3, check)
        self.each(5, check)

    def test_thirtyPercentLoss(self) -> None:
        """With 30 % of all messages lost, the leader stays for minutes and writes go on."""

        def check(case: Case) -> None:
            self.assertLessEqual(case.changes(20), 1)
            self.assert_writes(case, *case.cluster.voters)

        self.each(3, check, loss=0.3)

    def test_farBehindCandidateDoesNotHoldTheOthersOff(self) -> None:
        """A node that is thousands of slots behind is no reason for a gap when the leader dies."""

        def check(case: Case) -> None:
            leader, behind, current = case.leader, *case.others()
            case.cluster.isolate(behind)
            for number in range(10_000, 10_600):
                case.cluster.nodes[leader].submit([command(number)])
                case.cluster.run(0.002)
            self.assertGreater(case.cluster.witness.chosen_upto, 300)
            case.cluster.cut = set()
            case.cluster.delay_max_s = 0.03
            case.cluster.run(0.05)
            case.cluster.nodes[leader].crash()
            self.assert_writes(case, current)

        self.each(3, check)
