"""`core.election`: who should take over, and when. Heartbeat rounds last one second here."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, steady
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.election import (
    LEADER_SILENT_HEARTBEATS,
    MAJORITY_SILENT_HEARTBEATS,
    Election,
    TakeOver,
)
from twisted_paxos.core.messages import Status
from twisted_paxos.core.quorum import Membership

LOST = Status(voter=True)
"""What a voter says that follows nobody."""


def follows(leader: str, works: bool = True) -> Status:
    """What a voter says that follows ``leader``."""
    return Status(voter=True, leader=ballot(leader), leader_works=works)


def leads(at: str, works: bool = True) -> Status:
    """What a leader says."""
    return Status(ballot=ballot(at), leading=True, leader=ballot(at), leader_works=works, voter=True)


class ElectionTests(SynchronousTestCase):
    """Node A of three."""

    def setUp(self) -> None:
        self.election = Election("A", Membership("ABC", MEMBERS), 1.0, steady, 0.0)

    def probe(self, now_s: float, **answers: Status) -> None:
        """A round at ``now_s``, and the answers to it."""
        self.election.start_round(now_s)
        for uid, status in answers.items():
            self.election.heard(uid, status, status.voter, self.election.round, now_s)

    def wants(self, now_s: float) -> bool:
        """Whether A should take over."""
        return self.election.take_over(NO_BALLOT, now_s) is not TakeOver.NO

    def test_listensFirst(self) -> None:
        """A node that has just started takes nothing over."""
        self.probe(0.5, B=LOST, C=LOST)
        self.assertFalse(self.wants(0.5))
        self.assertTrue(self.wants(1.0))

    def test_needsAMajority(self) -> None:
        """Alone it never takes over."""
        self.probe(2.0)
        self.assertFalse(self.wants(2.0))

    def test_hearingIsNotReaching(self) -> None:
        """A peer that is heard but answers no probe does not count: the other direction may be cut."""
        self.election.heard("B", LOST, True, None, 2.0)
        self.assertFalse(self.wants(2.0))

    def test_othersThanVotersDoNotCount(self) -> None:
        """An observer, or a member that may not vote, is no part of a majority."""
        self.probe(2.0, B=Status(voter=False), X=Status(voter=False))
        self.assertFalse(self.wants(2.0))

    def test_answerToAnOldProbeIsOld(self) -> None:
        """A reply counts from when its probe was sent, not from when it came."""
        self.election.start_round(1.0)
        old = self.election.round
        self.election.start_round(9.0)
        self.election.heard("B", LOST, True, old, 9.0)
        self.assertFalse(self.wants(9.0))

    def test_followsALeaderThatWorks(self) -> None:
        """While the leader is heard, nobody takes over; once it is silent for long, somebody does."""
        self.probe(2.0, B=leads("1.B"), C=LOST)
        self.assertEqual(self.election.leader, ballot("1.B"))
        self.probe(3.0, C=LOST)
        self.assertFalse(self.wants(3.0))
        late_s = 2.01 + LEADER_SILENT_HEARTBEATS
        self.probe(late_s, C=LOST)
        self.assertTrue(self.wants(late_s))

    def test_leaderThatDoesNotWorkIsNone(self) -> None:
        """A leader that says of itself that it cannot work is not followed."""
        self.probe(2.0, B=leads("1.B", works=False), C=LOST)
        self.assertTrue(self.wants(2.0))

    def test_chainedAskOthersFirst(self) -> None:
        """A hears no leader, but B has one that works: A does not move it (the chained case)."""
        self.probe(2.0, B=follows("1.C"))
        self.assertFalse(self.wants(2.0))
        self.probe(3.0, B=follows("1.C", works=False))
        self.assertTrue(self.wants(3.0))

    def test_higherPromiseMakesTheLeaderUseless(self) -> None:
        """A leader below the own promise cannot work for this node: its Accepts would be refused."""
        self.probe(2.0, B=leads("1.B"))
        self.assertTrue(self.election.leader_works(ballot("1.B"), 2.0))
        self.assertFalse(self.election.leader_works(ballot("2.C"), 2.0))

    def test_ballotsSeenAreRemembered(self) -> None:
        """Every ballot that a voter tells counts for the next take-over."""
        self.probe(2.0, B=Status(promised=ballot("7.C"), voter=True), C=follows("5.B"))
        self.election.saw(ballot("6.B"))
        self.assertEqual(self.election.highest_seen, ballot("7.C"))

    def test_olderLeaderIsNotFollowedAgain(self) -> None:
        """A delayed heartbeat of an earlier leader changes nothing."""
        self.probe(2.0, B=leads("2.B"))
        self.election.heard("C", leads("1.C"), True, None, 2.1)
        self.assertEqual(self.election.leader, ballot("2.B"))

    def test_holdsWhileAnotherTries(self) -> None:
        """After a promise it leaves the other its time, and one that failed waits longer than that."""
        self.probe(2.0, B=LOST)
        self.election.hold(2.0)
        self.probe(6.0, B=LOST)
        self.assertFalse(self.wants(5.9))
        self.assertTrue(self.wants(6.1))

    def test_asksAgainBeforeItTakesOver(self) -> None:
        """A node that was just cut off still has old answers: it takes over on new ones only."""
        self.probe(2.9, B=LOST)
        self.assertIs(self.election.take_over(NO_BALLOT, 3.0), TakeOver.ASK)
        self.assertIs(self.election.take_over(NO_BALLOT, 3.5), TakeOver.NO)
        self.probe(3.6, B=LOST)
        self.assertIs(self.election.take_over(NO_BALLOT, 3.6), TakeOver.GO)

    def test_newAnswersMayTellOfALeader(self) -> None:
        """If one of those it asks has a leader that works, it leaves that one alone."""
        self.probe(3.0, B=LOST)
        self.assertIs(self.election.take_over(NO_BALLOT, 3.0), TakeOver.ASK)
        self.probe(3.1, B=follows("1.C"))
        self.assertIs(self.election.take_over(NO_BALLOT, 3.1), TakeOver.NO)

    def test_jitterComesFirst(self) -> None:
        """With chance at its worst, a candidate waits half a round before it takes over."""
        self.election = Election("A", Membership("ABC", MEMBERS), 1.0, lambda: 1.0, 0.0)
        for now_s, expected in ((3.0, TakeOver.ASK), (3.4, TakeOver.NO), (3.6, TakeOver.GO)):
            self.probe(now_s, B=LOST)
            self.assertIs(self.election.take_over(NO_BALLOT, now_s), expected)

    def test_majorityIsLostWithTime(self) -> None:
        """Peers that answer no more are not reached after a while: a leader steps down by that."""
        self.probe(2.0, B=LOST)
        self.assertTrue(self.election.reaches_majority(True, 2.0 + MAJORITY_SILENT_HEARTBEATS))
        self.assertFalse(self.election.reaches_majority(True, 2.1 + MAJORITY_SILENT_HEARTBEATS))

    def test_withoutAVoteItCountsOnlyOthers(self) -> None:
        """A node without a vote is no part of the majority that it reaches."""
        self.probe(2.0, B=LOST)
        self.assertFalse(self.election.reaches_majority(False, 2.0))

    def test_silentPeersAreProbedAgainWithinTheRound(self) -> None:
        """A lost datagram is no lost peer: whoever has not answered is asked a second time."""
        self.assertTrue(self.election.probes(0.0))
        self.election.heard("B", LOST, True, self.election.round, 0.1)
        self.assertIsNone(self.election.probes(0.2))
        self.assertIs(self.election.probes(0.5), False)
        self.assertEqual(self.election.silent(), ("C",))
        self.assertTrue(self.election.probes(1.0))

    def test_deadlineIsNeverPast(self) -> None:
        """Something is always due: the next round at the latest."""
        self.election.probes(0.0)
        self.assertEqual(self.election.deadline_s(NO_BALLOT, 0.0), 0.5)
