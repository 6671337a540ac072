"""`core.acceptor`: messages in, effects out."""

from __future__ import annotations

from unittest.mock import patch

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, entries, lines, sender, value
from twisted_paxos.core import limits
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accept, Prepare

A, B = sender("A"), sender("B")


def prepare(at: str) -> Prepare:
    """Phase 1a of a ballot."""
    return Prepare(ballot(at), 1)


def accept(at: str, slot: int, *numbers: int) -> Accept:
    """Phase 2a."""
    return Accept(ballot(at), slot, value(*numbers), 0)


class PrepareTests(SynchronousTestCase):
    """Phase 1b."""

    def test_rule1PromiseLeavesAfterItsSync(self) -> None:
        """Rule 1: a Promise is a reply, tied to the record of the promise; nothing leaves at once."""
        effects = Acceptor(Log()).on_prepare(A, prepare("1.A"))
        self.assertEqual(lines(effects), ["save promise 1.A", "then to A: Promise 1.A #1 1/1 upto 0 []"])
        self.assertEqual(effects.sends, [])

    def test_rule2SameBallotIsAnsweredAgain(self) -> None:
        """Rule 2: a repeated Prepare gets a new, complete answer, and nothing new to save."""
        acceptor = Acceptor(Log())
        acceptor.on_prepare(A, prepare("1.A"))
        again = acceptor.on_prepare(A, prepare("1.A"))
        self.assertEqual(lines(again), ["then to A: Promise 1.A #2 1/1 upto 0 []"])

    def test_lowerBallotGetsNack(self) -> None:
        """A Prepare below the promise is told which ballot is higher, and changes nothing."""
        acceptor = Acceptor(Log(), ballot("2.B"))
        self.assertEqual(lines(acceptor.on_prepare(A, prepare("2.A"))), ["to A: Nack 2.A promised 2.B"])
        self.assertEqual(acceptor.promised, ballot("2.B"))

    def test_rule2ReportsAcceptsThatAreNotSyncedYet(self) -> None:
        """Rule 2: what was accepted a moment before, its sync still under way, is in the Promise."""
        acceptor = Acceptor(Log())
        acceptor.on_accept(A, accept("1.A", 1, 7))
        promise = acceptor.on_prepare(B, prepare("2.B"))
        self.assertEqual(
            lines(promise), ["save promise 2.B", "then to B: Promise 2.B #1 1/1 upto 0 [1=1.A:v7]"]
        )

    def test_rule3ReportsAboveItsOwnChosenUpto(self) -> None:
        """Rule 3: the report starts above the acceptor's own chosen_upto, whatever the asker knows."""
        log = Log(chosen_upto=4, entries=entries(s5=("1.A", 5), s7=("1.A", 7)))
        promise = Acceptor(log, ballot("1.A")).on_prepare(B, Prepare(ballot("2.B"), 1))
        self.assertIn("then to B: Promise 2.B #1 1/1 upto 4 [5=1.A:v5 7=1.A:v7]", lines(promise))

    def test_rule2PartsOfOnePromise(self) -> None:
        """Rule 2: what does not fit a frame comes in parts of one promise_id, none left out."""
        log = Log(entries=entries(s1=("1.A", 1), s2=("1.A", 2), s3=("1.A", 3)))
        with patch.object(limits, "FETCH_BYTES", 2 * len(value(1))):
            promise = Acceptor(log, ballot("1.A")).on_prepare(B, prepare("2.B"))
        self.assertEqual(
            lines(promise),
            [
                "save promise 2.B",
                "then to B: Promise 2.B #1 1/2 upto 0 [1=1.A:v1 2=1.A:v2]",
                "then to B: Promise 2.B #1 2/2 upto 0 [3=1.A:v3]",
            ],
        )

    def test_withoutAVoteNothingIsAnswered(self) -> None:
        """A node without a vote neither promises nor refuses."""
        acceptor = Acceptor(Log(), votes=False)
        self.assertFalse(acceptor.on_prepare(A, prepare("1.A")))


class AcceptTests(SynchronousTestCase):
    """Phase 2b."""

    def test_rule1AcceptedLeavesAfterItsSync(self) -> None:
        """Rule 1: promise and value are saved, in this order, before Accepted goes to the leader."""
        effects = Acceptor(Log()).on_accept(A, accept("1.A", 1, 7))
        self.assertEqual(
            lines(effects),
            ["save promise 1.A", "save accepted 1=1.A:v7", "then to A: Accepted 1.A 1"],
        )

    def test_rule4LowerBallotGetsNack(self) -> None:
        """Rule 4: an Accept below the promise is refused, and nothing of it is kept."""
        acceptor = Acceptor(Log(), ballot("2.B"))
        self.assertEqual(lines(acceptor.on_accept(A, accept("1.A", 1, 7))), ["to A: Nack 1.A promised 2.B"])
        self.assertEqual(acceptor.log.entries, {})

    def test_rule4AnyOrderInTheWindow(self) -> None:
        """Rule 4: slots are accepted in any order."""
        acceptor = Acceptor(Log())
        for slot in (3, 1, 2):
            self.assertIn(
                f"then to A: Accepted 1.A {slot}", lines(acceptor.on_accept(A, accept("1.A", slot, 1)))
            )

    def test_rule4OutsideTheWindowIsDropped(self) -> None:
        """Rule 4: a slot too far ahead is not accepted, and its ballot raises no promise."""
        acceptor = Acceptor(Log(chosen_upto=10))
        self.assertFalse(acceptor.on_accept(A, accept("1.A", 11 + limits.WINDOW_SLOTS, 1)))
        self.assertEqual(acceptor.promised, ballot("-"))

    def test_fullWindowStillTakesTheNextSlot(self) -> None:
        """A window full of bytes drops what is far ahead, but never the slot that lets it drain."""
        acceptor = Acceptor(Log(chosen_upto=4))
        with patch.object(limits, "WINDOW_MAX_BYTES", 10):
            self.assertFalse(acceptor.on_accept(A, accept("1.A", 6, 6)))
            self.assertTrue(acceptor.on_accept(A, accept("1.A", 5, 5)))

    def test_repeatedAcceptIsAnsweredAgain(self) -> None:
        """The answer may have been lost: it is given again, and nothing is written again."""
        acceptor = Acceptor(Log())
        acceptor.on_accept(A, accept("1.A", 1, 7))
        again = acceptor.on_accept(A, accept("1.A", 1, 7))
        self.assertEqual(lines(again), ["then to A: Accepted 1.A 1"])

    def test_higherBallotReplacesTheValue(self) -> None:
        """A later ballot's value takes the place of an earlier one's."""
        acceptor = Acceptor(Log())
        acceptor.on_accept(A, accept("1.A", 1, 7))
        effects = acceptor.on_accept(B, accept("2.B", 1, 8))
        self.assertEqual(
            lines(effects),
            ["save promise 2.B", "save accepted 1=2.B:v8", "then to B: Accepted 2.B 1"],
        )

    def test_chosenSlotStaysAsItIs(self) -> None:
        """For a slot that is known as chosen only the answer is repeated: the leader may lack it."""
        acceptor = Acceptor(Log(chosen_upto=5), ballot("1.A"))
        effects = acceptor.on_accept(A, accept("1.A", 5, 7))
        self.assertEqual(lines(effects), ["then to A: Accepted 1.A 5"])

    def test_rule4TwoValuesAtOneBallotStopTheNode(self) -> None:
        """Rule 4: one ballot proposes one value per slot; anything else is a fault of the program."""
        acceptor = Acceptor(Log())
        acceptor.on_accept(A, accept("1.A", 1, 7))
        self.assertRaises(AssertionError, acceptor.on_accept, A, accept("1.A", 1, 8))

    def test_withoutAVoteItOnlyListens(self) -> None:
        """A node without a vote keeps what it hears for its learner; it saves and answers nothing."""
        acceptor = Acceptor(Log(), votes=False)
        self.assertFalse(acceptor.on_accept(A, accept("1.A", 1, 7)))
        self.assertEqual(acceptor.log.unsaved, {1})

    def test_rule1WhatWasOnlyOverheardIsNoVote(self) -> None:
        """Rule 1: values heard without a vote are not reported later as accepted."""
        acceptor = Acceptor(Log(), votes=False)
        acceptor.on_accept(A, accept("1.A", 1, 7))
        acceptor.votes = True
        promise = acceptor.on_prepare(B, prepare("2.B"))
        self.assertIn("then to B: Promise 2.B #1 1/1 upto 0 []", lines(promise))


class RestartTests(SynchronousTestCase):
    """What was stored is taken up again."""

    def test_reportsWhatWasStored(self) -> None:
        """After a restart the promise holds, and accepted values are reported."""
        log = Log(chosen_upto=1, entries=entries(s2=("1.A", 2)))
        acceptor = Acceptor(log, ballot("3.A"))
        self.assertEqual(lines(acceptor.on_prepare(B, prepare("2.B"))), ["to B: Nack 2.B promised 3.A"])
        self.assertIn(
            "then to B: Promise 4.B #1 1/1 upto 1 [2=1.A:v2]", lines(acceptor.on_prepare(B, prepare("4.B")))
        )

    def test_rule1VoteAboveThePromiseIsDamage(self) -> None:
        """Rule 1: no stored vote has a ballot above the stored promise; storage that says so is wrong."""
        log = Log(chosen_upto=1, entries=entries(s2=("5.C", 2)))
        self.assertRaises(AssertionError, Acceptor, log, ballot("1.A"))

    def test_bytesOfTheWindowFollow(self) -> None:
        """The size of the window counts each slot's newest value once."""
        log = Log()
        acceptor = Acceptor(log)
        acceptor.on_accept(A, accept("1.A", 1, 1))
        acceptor.on_accept(A, Accept(ballot("2.A"), 1, Raw(b'{"time_ms":0}'), 0))
        self.assertEqual(log.bytes, len(b'{"time_ms":0}'))
