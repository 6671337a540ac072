"""`core.learner`: votes in, chosen slots out; and catch-up."""

from __future__ import annotations

from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, entries, entry, lines, sender, steady, value
from twisted_paxos.core import limits
from twisted_paxos.core.effects import Effects
from twisted_paxos.core.learner import FETCH_GRACE_S, Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accepted, Chosen, Commit, Fetch, SlotEntry
from twisted_paxos.core.quorum import Membership

A, B, C = sender("A"), sender("B"), sender("C")


def accepted(at: str, *slots: int) -> Accepted:
    """Phase 2b."""
    return Accepted(ballot(at), slots)


class LearnerCase(SynchronousTestCase):
    """A learner of a cluster of three."""

    def learner(self, chosen_upto: int = 0, **slots: tuple) -> Learner:
        """With these entries above chosen_upto."""
        return Learner(Log(chosen_upto, 1, entries(**slots)), Membership("ABC", MEMBERS), steady)


class VoteTests(LearnerCase):
    """Rule 5."""

    def test_rule5OneAcceptedIsNeverEnough(self) -> None:
        """Rule 5: one vote chooses nothing, however often it comes."""
        learner = self.learner(s1=("1.A", 7))
        for _ in range(3):
            self.assertEqual(lines(learner.on_accepted(A, accepted("1.A", 1), 0.0)), [])
        self.assertFalse(learner.log.is_chosen(1))

    def test_rule5MajorityForOneBallotChooses(self) -> None:
        """Rule 5: two of three for one ballot choose its value."""
        learner = self.learner(s1=("1.A", 7))
        learner.on_accepted(A, accepted("1.A", 1), 0.0)
        self.assertEqual(lines(learner.on_accepted(B, accepted("1.A", 1), 0.0)), ["chosen 1=1.A:v7"])

    def test_rule5DifferentBallotsAreNeverAddedUp(self) -> None:
        """Rule 5: one vote each for three ballots chooses nothing."""
        learner = self.learner(s1=("3.C", 7))
        for who, at in ((A, "1.A"), (B, "2.B"), (C, "3.C")):
            self.assertEqual(lines(learner.on_accepted(who, accepted(at, 1), 0.0)), [])

    def test_rule5OtherIncarnationsDoNotVote(self) -> None:
        """Rule 5: a vote of another life of a member, or of a stranger, does not count."""
        learner = self.learner(s1=("1.A", 7))
        learner.on_accepted(A, accepted("1.A", 1), 0.0)
        for who in (sender("B", "b2"), sender("D")):
            self.assertEqual(lines(learner.on_accepted(who, accepted("1.A", 1), 0.0)), [])

    def test_rule5ExactSlotsOnly(self) -> None:
        """Rule 5: votes for slots 1 and 3 say nothing of slot 2."""
        learner = self.learner(s1=("1.A", 1), s2=("1.A", 2), s3=("1.A", 3))
        learner.on_accepted(A, accepted("1.A", 1, 3), 0.0)
        effects = learner.on_accepted(B, accepted("1.A", 1, 3), 0.0)
        self.assertEqual(lines(effects), ["chosen 1=1.A:v1"])
        self.assertTrue(learner.log.is_chosen(3))
        self.assertFalse(learner.log.is_chosen(2))

    def test_slotsComeOutInOrder(self) -> None:
        """What is chosen above a gap waits, and comes out with the gap."""
        learner = self.learner(s1=("1.A", 1), s2=("1.A", 2))
        for who in (A, B):
            learner.on_accepted(who, accepted("1.A", 2), 0.0)
        learner.on_accepted(A, accepted("1.A", 1), 0.0)
        effects = learner.on_accepted(B, accepted("1.A", 1), 0.0)
        self.assertEqual(lines(effects), ["chosen 1=1.A:v1", "chosen 2=1.A:v2"])

    def test_rule5ValueOfALowerBallotIsNotIt(self) -> None:
        """Rule 5: a node that holds an older ballot's value fetches the one that was chosen."""
        learner = self.learner(s1=("1.A", 7))
        learner.on_accepted(B, accepted("2.B", 1), 0.0)
        self.assertEqual(lines(learner.on_accepted(C, accepted("2.B", 1), 0.0)), [])
        self.assertEqual(lines(learner.tick(FETCH_GRACE_S)), ["to A: Fetch #1 1-1"])

    def test_ballotsPerSlotAreBounded(self) -> None:
        """Only the highest ballots are counted, and those still choose."""
        learner = self.learner(s1=("1.A", 7))
        for number in range(1, 3 * limits.BALLOTS_PER_SLOT):
            learner.on_accepted(A, accepted(f"{number}.A", 1), 0.0)
        self.assertEqual(learner.voters(1, ballot("1.A")), set())
        highest = f"{3 * limits.BALLOTS_PER_SLOT - 1}.A"
        learner.on_accepted(B, accepted(highest, 1), 0.0)
        self.assertTrue(learner.log.is_chosen(1))

    def test_votesFarAheadOnlyTellThatItIsBehind(self) -> None:
        """A vote beyond the window is not kept; it says how far others certainly are."""
        learner = self.learner()
        learner.on_accepted(A, accepted("1.A", 1000), 0.0)
        self.assertEqual(learner.voters(1000, ballot("1.A")), set())
        self.assertGreater(learner.wanted_upto, 0)
        self.assertLess(learner.wanted_upto, 1000)

    def test_valueThatWasOnlyHeardIsSaved(self) -> None:
        """A node without a vote saves what it heard once that is chosen."""
        learner = self.learner()
        learner.log.put(1, ballot("1.A"), value(7), saved=False)
        learner.on_accepted(A, accepted("1.A", 1), 0.0)
        effects = learner.on_accepted(B, accepted("1.A", 1), 0.0)
        self.assertEqual(lines(effects), ["save chosen 1=1.A:v7", "chosen 1=1.A:v7"])


class WordOfTheLeaderTests(LearnerCase):
    """Rule 6."""

    def test_rule6MarksOwnEntriesOfThatBallot(self) -> None:
        """Rule 6: the leader of 2.B says 1-2: entries accepted at 2.B or above are the chosen ones."""
        learner = self.learner(s1=("2.B", 1), s2=("3.C", 2))
        effects = learner.on_chosen_upto("B", 2, ballot("2.B"), 0.0)
        self.assertEqual(lines(effects), ["chosen 1=2.B:v1", "chosen 2=3.C:v2"])

    def test_rule6OlderEntryIsFetched(self) -> None:
        """Rule 6: an entry accepted below the leader's ballot may be another value: it is fetched."""
        learner = self.learner(s1=("1.A", 9))
        self.assertEqual(lines(learner.on_chosen_upto("B", 1, ballot("2.B"), 0.0)), [])
        self.assertEqual(lines(learner.tick(FETCH_GRACE_S)), ["to B: Fetch #1 1-1"])

    def test_rule6FromOthersItIsAHint(self) -> None:
        """Rule 6: the chosen_upto of a node that does not lead marks nothing; it starts a catch-up."""
        learner = self.learner(s1=("9.C", 1))
        self.assertEqual(lines(learner.on_chosen_upto("B", 1, None, 0.0)), [])
        self.assertFalse(learner.log.is_chosen(1))
        self.assertEqual(lines(learner.tick(FETCH_GRACE_S)), ["to B: Fetch #1 1-1"])

    def test_rule6NothingBeyondWhatItSays(self) -> None:
        """Rule 6: entries above the leader's chosen_upto stay open."""
        learner = self.learner(s1=("2.B", 1), s2=("2.B", 2))
        self.assertEqual(lines(learner.on_chosen_upto("B", 1, ballot("2.B"), 0.0)), ["chosen 1=2.B:v1"])


class SharedTests(LearnerCase):
    """Rule 6: values that come with the leader's word."""

    def commit(self, learner: Learner, upto: int, *shared: SlotEntry) -> list[str]:
        """B leads with ballot 2.B and shares these."""
        return lines(learner.on_commit(B, Commit(ballot("2.B"), upto, shared), 0.0))

    def test_rule7SharedIsSavedWithoutAVote(self) -> None:
        """What others chose is saved as chosen, in order; what was accepted here needs no second record."""
        learner = self.learner(s2=("2.B", 2))
        self.assertEqual(
            self.commit(learner, 3, entry(1, "2.B", 1), entry(3, "2.B", 3)),
            [
                "save chosen 1=2.B:v1",
                "save chosen 3=2.B:v3",
                "chosen 1=2.B:v1",
                "chosen 2=2.B:v2",
                "chosen 3=2.B:v3",
            ],
        )

    def test_rule6SharedReplacesWhatLost(self) -> None:
        """An older vote of this node gives way to the value that was chosen."""
        learner = self.learner(s1=("1.A", 9))
        self.assertEqual(
            self.commit(learner, 1, entry(1, "2.B", 1)), ["save chosen 1=2.B:v1", "chosen 1=2.B:v1"]
        )

    def test_rule8SharedOverAGapWaits(self) -> None:
        """When an earlier message is lost, the later one's values are kept until the gap is fetched."""
        learner = self.learner()
        self.assertEqual(self.commit(learner, 2, entry(2, "2.B", 2)), [])
        self.assertEqual(lines(learner.tick(FETCH_GRACE_S)), ["to B: Fetch #1 1-2"])
        self.assertEqual(
            lines(learner.on_chosen(B, Chosen(1, (entry(1, "2.B", 1),), 2, 1), 0.1)),
            ["save chosen 1=2.B:v1", "save chosen 2=2.B:v2", "chosen 1=2.B:v1", "chosen 2=2.B:v2"],
        )

    def test_rule6NothingBeyondWhatIsChosen(self) -> None:
        """A value above what the message says is chosen is not kept."""
        learner = self.learner()
        self.assertEqual(self.commit(learner, 1, entry(2, "2.B", 2)), [])
        self.assertEqual(learner.log.entries, {})

    def test_sharedIsBounded(self) -> None:
        """Over a gap only so much is kept, and not beyond the window; the next slot always is."""
        learner = self.learner()
        far = limits.ALPHA + 1
        with patch.object(limits, "WINDOW_MAX_BYTES", 1):
            self.commit(learner, far, entry(2, "2.B", 2))
            self.assertEqual(learner.log.entries, {})
            self.assertEqual(len(self.commit(learner, far, entry(1, "2.B", 1))), 2)
        self.commit(learner, far + 1, entry(far + 1, "2.B", 2), entry(far, "2.B", 1))
        self.assertEqual(list(learner.log.entries), [far])

    def test_rule7OldWordsChangeNothing(self) -> None:
        """What is known is not saved again."""
        learner = self.learner(chosen_upto=5)
        self.assertEqual(self.commit(learner, 5, entry(4, "2.B", 4), entry(5, "2.B", 5)), [])


class CatchUpTests(LearnerCase):
    """Rule 7."""

    def behind(self) -> Learner:
        """A learner that has asked B for slots 1 to 5."""
        learner = self.learner(s2=("1.A", 9))
        learner.on_chosen_upto("B", 5, None, 0.0)
        self.assertEqual(lines(learner.tick(1.0)), ["to B: Fetch #1 1-5"])
        return learner

    def answer(self, learner: Learner, *found: object, request_id: int = 1, upto: int = 5) -> Effects:
        """B's answer."""
        return learner.on_chosen(B, Chosen(request_id, found, upto, 1), 1.1)  # type: ignore[arg-type]

    def test_waitsAMomentFirst(self) -> None:
        """What is only late comes by itself: nothing is fetched within the grace time."""
        learner = self.learner()
        learner.on_chosen_upto("B", 5, None, 0.0)
        self.assertEqual(lines(learner.tick(FETCH_GRACE_S / 2)), [])

    def test_rule7SavesAndAppliesWithoutAVote(self) -> None:
        """Rule 7: fetched slots are saved and applied; no Accepted, no promise; the rest is asked for."""
        effects = self.answer(self.behind(), entry(1, "2.B", 1), entry(2, "2.B", 2))
        self.assertEqual(
            lines(effects),
            [
                "save chosen 1=2.B:v1",
                "save chosen 2=2.B:v2",
                "to B: Fetch #2 3-5",
                "chosen 1=2.B:v1",
                "chosen 2=2.B:v2",
            ],
        )

    def test_rule7KeepsEntriesAbove(self) -> None:
        """Rule 7: what was accepted above the fetched slots stays."""
        learner = self.behind()
        self.answer(learner, entry(1, "2.B", 1))
        self.assertEqual(learner.log.entries[2].ballot, ballot("1.A"))

    def test_ownEqualEntryIsNotSavedAgain(self) -> None:
        """What storage holds already is not written a second time."""
        learner = self.behind()
        effects = self.answer(learner, entry(1, "2.B", 1), entry(2, "1.A", 9))
        self.assertEqual([line for line in lines(effects) if "save" in line], ["save chosen 1=2.B:v1"])

    def test_anotherNodeAfterATimeOut(self) -> None:
        """Whoever does not answer is not asked again while another knows as much."""
        learner = self.learner()
        learner.on_chosen_upto("B", 5, None, 0.0)
        learner.on_chosen_upto("C", 5, None, 0.0)
        first = lines(learner.tick(1.0))
        second = lines(learner.tick(3.0))
        self.assertEqual((first, second), (["to B: Fetch #1 1-5"], ["to C: Fetch #2 1-5"]))

    def test_rule8LateAnswerIsUsed(self) -> None:
        """Rule 8: an answer to an older request still holds; entries that do not fit are ignored."""
        learner = self.behind()
        learner.tick(3.0)
        effects = self.answer(learner, entry(4, "2.B", 4), entry(1, "2.B", 1), request_id=1)
        self.assertEqual(lines(effects), ["save chosen 1=2.B:v1", "chosen 1=2.B:v1"])

    def test_rule8AnswersDoNotGoBack(self) -> None:
        """Rule 8: the same answer twice changes nothing the second time."""
        learner = self.behind()
        self.answer(learner, entry(1, "2.B", 1))
        self.assertEqual(lines(self.answer(learner, entry(1, "2.B", 1))), [])
        self.assertEqual(learner.log.chosen_upto, 1)

    def test_answersOnlyWhatIsChosenHere(self) -> None:
        """A Fetch is answered up to this node's own chosen_upto, or with nothing."""
        learner = self.learner(chosen_upto=3, s4=("1.A", 4))
        self.assertEqual(lines(learner.on_fetch(C, Fetch(8, 2, 9))), ["read 2-3 for C #8"])
        self.assertEqual(lines(learner.on_fetch(C, Fetch(9, 4, 9))), ["to C: Chosen #9 [] upto 3"])

    def test_belowTheLogNothingIsHandedOut(self) -> None:
        """Slots below the log's start are not there any more, and it says so."""
        learner = Learner(Log(10, 5), Membership("ABC", MEMBERS), steady)
        self.assertEqual(lines(learner.on_fetch(C, Fetch(8, 4, 9))), ["to C: Chosen #8 [] upto 10"])

    def test_asksAtOnceWhenTold(self) -> None:
        """A new leader's base is fetched without the grace time."""
        learner = self.learner()
        learner.fetch_soon("C", 4, 1.0)
        self.assertEqual(lines(learner.tick(1.0)), ["to C: Fetch #1 1-4"])

    def test_nothingIsDueOnceCaughtUp(self) -> None:
        """With everything here, no timer is left."""
        learner = self.behind()
        found = [entry(slot, "2.B", slot) for slot in range(1, 6)]
        self.answer(learner, *found)
        self.assertIsNone(learner.deadline_s)


class LimitTests(LearnerCase):
    """The window's edges."""

    def test_windowMovesWithChosenUpto(self) -> None:
        """A vote just inside the window counts, one just outside does not."""
        with patch.object(limits, "WINDOW_SLOTS", 4), patch.object(limits, "ALPHA", 4):
            learner = self.learner(chosen_upto=10)
            learner.on_accepted(A, accepted("1.A", 14, 15), 0.0)
        self.assertEqual(learner.voters(14, ballot("1.A")), {"A"})
        self.assertEqual(learner.voters(15, ballot("1.A")), set())
