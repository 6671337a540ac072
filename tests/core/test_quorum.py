"""`core.quorum`: majorities of the configured ids, and of the incarnations that vote."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, sender
from twisted_paxos.core.quorum import Membership


class MembershipTests(SynchronousTestCase):
    """Who votes on what."""

    def test_majorities(self) -> None:
        """More than half of the configured ids, for each size."""
        sizes = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4}
        found = {size: Membership("ABCDEFG"[:size], {}).majority for size in sizes}
        self.assertEqual(found, sizes)

    def test_strangersDoNotCount(self) -> None:
        """Ids that are not configured make no majority."""
        self.assertFalse(Membership("ABC", MEMBERS).is_majority({"A", "X", "Y"}))
        self.assertTrue(Membership("ABC", MEMBERS).is_majority({"A", "C"}))

    def test_beforeTheFormationNobodyVotes(self) -> None:
        """Without members there is no vote and no quorum."""
        membership = Membership("ABC", {})
        self.assertFalse(membership.votes_on(1, sender("A")))
        self.assertFalse(membership.is_phase_1_quorum(MEMBERS, 0))

    def test_votesAreOfIncarnations(self) -> None:
        """Another life of a member has no vote."""
        membership = Membership("ABC", MEMBERS)
        self.assertTrue(membership.votes_on(1, sender("A")))
        self.assertFalse(membership.votes_on(1, sender("A", "a2")))

    def test_replacementHoldsFromItsSlotOn(self) -> None:
        """Before that slot the old incarnation votes, from it on the new one."""
        membership = Membership("ABC", MEMBERS)
        membership.replace("C", "c2", 100)
        votes = [
            [membership.votes_on(slot, sender("C", life)) for life in ("c1", "c2")] for slot in (99, 100)
        ]
        self.assertEqual(votes, [[True, False], [False, True]])

    def test_phase1NeedsAMajorityOfEachSet(self) -> None:
        """With an old and a new set above base, a majority of only one of them is not enough."""
        membership = Membership("ABC", MEMBERS)
        membership.replace("B", "b2", 50)
        membership.replace("C", "c2", 100)
        promises = {"B": "b1", "C": "c1"}
        self.assertFalse(membership.is_phase_1_quorum(promises, 0))
        self.assertFalse(membership.is_phase_1_quorum({"B": "b2", "C": "c2"}, 0))
        self.assertTrue(membership.is_phase_1_quorum({"A": "a1", "B": "b2", "C": "c1"}, 49))

    def test_setsBelowBaseDoNotMatter(self) -> None:
        """A set that governs no slot above base is not asked."""
        membership = Membership("ABC", MEMBERS)
        membership.replace("C", "c2", 100)
        promises = {"A": "a1", "C": "c2"}
        self.assertFalse(membership.is_phase_1_quorum(promises, 98))
        self.assertTrue(membership.is_phase_1_quorum(promises, 99))

    def test_forgetsWhatGovernsNothing(self) -> None:
        """Old sets go once no slot from there on is theirs."""
        membership = Membership("ABC", MEMBERS)
        membership.replace("C", "c2", 100)
        membership.forget_below(99)
        self.assertTrue(membership.is_member(sender("C")))
        membership.forget_below(100)
        self.assertFalse(membership.is_member(sender("C")))
        self.assertTrue(membership.is_member(sender("C", "c2")))
