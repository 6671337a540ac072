"""What a review of `core.spreading`, and of values that come with a Commit, found."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, entry, lines, sender, steady, value
from twisted_paxos.core import limits
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.learner import FETCH_GRACE_S, Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accept, Chosen, Commit, Prepare, Promise, SlotEntry
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.spreading import Spreading
from twisted_paxos.wire.peer import DATAGRAM_MAX_BYTES, PeerCodec

A, B, C = sender("A"), sender("B"), sender("C")


class SharedToAVoterTests(SynchronousTestCase):
    """Node B, which votes, gets what A shares; an earlier message of A was lost."""

    def setUp(self) -> None:
        self.log = Log()
        self.acceptor = Acceptor(self.log, uid="B")
        self.learner = Learner(self.log, Membership("ABC", MEMBERS), steady)

    def accept(self, at: str, slot: int, number: int) -> list[str]:
        """B is asked for its vote."""
        return lines(self.acceptor.on_accept(A, Accept(ballot(at), slot, value(number), 0)))

    def commit(self, at: str, upto: int, *shared: SlotEntry) -> list[str]:
        """A shares."""
        return lines(self.learner.on_commit(A, Commit(ballot(at), upto, shared), 0.0))

    def promise(self, at: str = "9.C") -> tuple[SlotEntry, ...]:
        """What B reports to a candidate."""
        (reply,) = self.acceptor.on_prepare(C, Prepare(ballot(at), 1)).replies
        return reply.message.accepted

    def test_rule2SharedOverAGapTakesNoVoteBack(self) -> None:
        """Rule 2: B's vote of an earlier ballot stays in its Promises, whatever is shared above a gap."""
        self.accept("1.A", 2, 2)
        self.assertEqual(self.commit("3.A", 2, entry(2, "3.A", 2)), [])
        self.assertEqual(self.promise(), (entry(2, "1.A", 2),))

    def test_rule2AnOldLeadersWordTakesNoVoteBack(self) -> None:
        """Rule 2: the same for a vote above the ballot of whoever shares."""
        self.accept("4.A", 2, 2)
        self.assertEqual(self.commit("3.A", 2, entry(2, "3.A", 2)), [])
        self.assertEqual(self.promise(), (entry(2, "4.A", 2),))

    def test_aChosenValueIsNotLost(self) -> None:
        """Slot 2, chosen at 1.A by A and B, is what C proposes again when A is gone.

        A proposed it once more at 3.A, to itself and C; B's first vote came late, and before C had the
        value A knew it as chosen, and shared it at 3.A. The share of slot 1 was lost.
        """
        self.accept("1.A", 2, 2)
        self.commit("3.A", 2, entry(2, "3.A", 2))
        log, members = Log(), Membership("ABC", MEMBERS)
        candidate = Proposer("C", log, members, Learner(log, members, steady), steady)
        candidate.take_over(ballot("3.A"), 1.0)
        candidate.on_promise(C, Promise(ballot("4.C"), 1, 0, 1, 0), 1.0)
        promised = Promise(ballot("4.C"), 1, 0, 1, 0, self.promise("4.C"))
        self.assertIn("to everyone: Accept 4.C 2=v2 upto 0", lines(candidate.on_promise(B, promised, 1.0)))

    def test_theGapIsFilled(self) -> None:
        """With the gap, B fetches what its own vote stood in the way of; nothing is due afterwards."""
        self.accept("1.A", 2, 9)
        self.commit("3.A", 2, entry(2, "3.A", 2))
        self.assertEqual(lines(self.learner.tick(FETCH_GRACE_S)), ["to A: Fetch #1 1-2"])
        answer = Chosen(1, (entry(1, "3.A", 1), entry(2, "3.A", 2)), 2, 1)
        told = lines(self.learner.on_chosen(A, answer, 0.1))
        self.assertEqual(told[-2:], ["chosen 1=3.A:v1", "chosen 2=3.A:v2"])
        self.assertIsNone(self.learner.deadline_s)

    def test_aVoteAboveTheSharedBallotIsTheValue(self) -> None:
        """What was accepted above the ballot that shares it has the chosen value: no fetch for it."""
        self.accept("4.A", 2, 2)
        self.commit("3.A", 2, entry(2, "3.A", 2))
        told = self.commit("3.A", 2, entry(1, "3.A", 1))
        self.assertEqual(told, ["save chosen 1=3.A:v1", "chosen 1=3.A:v1", "chosen 2=4.A:v2"])

    def test_aLongMessageIsLearntWhole(self) -> None:
        """The window begins anew behind each slot that fits: a message has more slots than ALPHA."""
        count = 2 * limits.ALPHA
        self.commit("1.A", count, *(entry(slot, "1.A", slot) for slot in range(1, count + 1)))
        self.assertEqual((self.log.chosen_upto, self.learner.deadline_s), (count, None))


class OtherNearestTests(SynchronousTestCase):
    """Node A leads; C has become nearer than B."""

    def test_whoWasTheNearestIsToldAtOnce(self) -> None:
        """B, which did not hear of a slot while it was the nearest, is told when it waits for it."""
        spreading = Spreading("A")
        spreading.start(0)
        spreading.answered({"A", "B"})
        spreading.accept_to(1, value(1), 0, 0.0, False)
        self.assertEqual(spreading.accept_to(2, value(2), 0, 0.0, False), ("A", "B"))
        spreading.tell(ballot("1.A"), 1, 0.0, True)
        spreading.accept_to(3, value(3), 1, 0.0085, False)
        told = lines(spreading.tell(ballot("1.A"), 3, 0.009, True))
        self.assertEqual(told, ["to others but B: Commit 1.A upto 3 [2=1.A:v2 3=1.A:v3]"])
        spreading.answered({"A", "C"})
        self.assertEqual(spreading.accept_to(4, value(4), 3, 0.0095, False), ("A", "C"))
        spreading.awaited(3)
        told = lines(spreading.tell(ballot("1.A"), 3, 0.0095, True))
        self.assertEqual(told, ["to others but C: Commit 1.A upto 3"])


class SizeTests(SynchronousTestCase):
    """What is shared fits datagrams."""

    def test_manySmallSlotsFitADatagram(self) -> None:
        """Many short values take more for their slots than for themselves."""
        spreading, at, count = Spreading("A"), ballot("1234.A"), 4 * limits.BATCH_TARGET_BYTES // 100
        spreading.start(10**9)
        spreading.answered({"A", "B"})
        for slot in range(10**9 + 1, 10**9 + count + 2):
            spreading.accept_to(slot, value(), 10**9, 0.0, False)
        spreading.awaited(10**9 + count + 1)
        sends = spreading.tell(at, 10**9 + count + 1, 9.0, False).sends
        shared = [send.message for send in sends if send.message.entries]
        codec = PeerCodec("f" * 16)
        self.assertEqual(sum(len(commit.entries) for commit in shared), count)
        self.assertEqual([c for c in shared if len(codec.encode(A, c)) > DATAGRAM_MAX_BYTES], [])
