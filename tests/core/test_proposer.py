"""`core.proposer`: phase 1, recovery, and pipelined phase 2."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, command, entry, lines, sender, steady
from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.effects import Effects
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Chosen,
    Command,
    Nack,
    Promise,
    Sender,
    SlotEntry,
    decode_value,
)
from twisted_paxos.core.proposer import COMMAND_OVERHEAD_BYTES, LogClock, Phase, Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.spreading import TELL_S

A, B, C = sender("A"), sender("B"), sender("C")


def promise(
    *accepted: SlotEntry, at: str = "1.A", upto: int = 0, number: int = 1, part: int = 0, parts: int = 1
) -> Promise:
    """Phase 1b for A's first ballot."""
    return Promise(ballot(at), number, part, parts, upto, accepted)


class ProposerCase(SynchronousTestCase):
    """Node A's proposer in a cluster of three."""

    def setUp(self) -> None:
        self.log = Log()
        self.membership = Membership("ABC", MEMBERS)
        self.learner = Learner(self.log, self.membership, steady)
        self.proposer = Proposer("A", self.log, self.membership, self.learner, steady)

    def lead(self, *accepted: SlotEntry, upto: int = 0) -> Effects:
        """Take over with B's promise as given, and C's empty one."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(B, promise(*accepted, upto=upto), 0.0)
        return self.own_vote(self.proposer.on_promise(C, promise(), 0.0))

    def own_vote(self, effects: Effects) -> Effects:
        """A's own acceptor takes what is proposed."""
        for accept in (send.message for send in effects.sends if isinstance(send.message, Accept)):
            self.log.put(accept.slot, accept.ballot, accept.value, saved=True)
        return effects

    def propose(self, *numbers: int) -> list[str]:
        """Take these commands and propose what can be."""
        self.assertTrue(self.proposer.enqueue([command(number) for number in numbers]))
        return lines(self.own_vote(self.proposer.advance(0.0)))

    def choose(self, *slots: int, at: str = "1.A") -> list[str]:
        """B and C accept; returns what the proposer does then."""
        for who in (B, C):
            self.learner.on_accepted(who, Accepted(ballot(at), slots), 0.0)
        return lines(self.own_vote(self.proposer.advance(0.0)))


class Phase1Tests(ProposerCase):
    """Rules 1, 2 and 3."""

    def test_rule1BallotIsDurableBeforePrepareLeaves(self) -> None:
        """Rule 1: the ballot is saved, and the Prepare waits for that."""
        effects = self.proposer.take_over(ballot("4.C"), 0.0)
        self.assertEqual(lines(effects), ["save promise 5.A", "then to everyone: Prepare 5.A from 1"])
        self.assertEqual(effects.sends, [])

    def test_rule1BallotIsAboveAllSeen(self) -> None:
        """Rule 1: each take-over has a ballot above the promise, all seen and its own earlier ones."""
        self.proposer.take_over(ballot("4.C"), 0.0)
        effects = self.proposer.take_over(NO_BALLOT, 1.0)
        self.assertIn("save promise 6.A", lines(effects))

    def test_onePromiseIsNotEnough(self) -> None:
        """Nothing is proposed, and nothing is taken, before a majority promised."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.assertEqual(lines(self.proposer.on_promise(B, promise(), 0.0)), [])
        self.assertEqual(self.proposer.promises_received, {"B"})
        self.assertFalse(self.proposer.enqueue([command(1)]))

    def test_majorityOfPromisesLeads(self) -> None:
        """Two of three promises complete phase 1."""
        self.lead()
        self.assertIs(self.proposer.phase, Phase.LEADING)
        self.assertEqual(self.proposer.promises_received, {"B", "C"})

    def test_samePromiseTwiceIsOne(self) -> None:
        """The same acceptor's promise, come twice, is no majority."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        for number in (1, 1, 2):
            self.proposer.on_promise(B, promise(number=number), 0.0)
        self.assertIs(self.proposer.phase, Phase.PREPARING)

    def test_promisesOfOthersDoNotCount(self) -> None:
        """Other incarnations, strangers and other ballots promise nothing."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(B, promise(), 0.0)
        for who, at in ((sender("C", "c2"), "1.A"), (sender("D"), "1.A"), (C, "1.C"), (C, "2.A")):
            self.proposer.on_promise(who, promise(at=at), 0.0)
        self.assertEqual(self.proposer.promises_received, {"B"})

    def test_rule2OnlyCompletePromisesCount(self) -> None:
        """Rule 2: parts in any order; only with the last one does the acceptor count."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(B, promise(entry(2, "0.B", 2), part=1, parts=2), 0.0)
        self.proposer.on_promise(C, promise(), 0.0)
        self.assertEqual(self.proposer.promises_received, {"C"})
        effects = self.proposer.on_promise(B, promise(entry(1, "0.B", 1), part=0, parts=2), 0.0)
        self.assertEqual(
            lines(effects),
            ["to everyone: Accept 1.A 1=v1 upto 0", "to everyone: Accept 1.A 2=v2 upto 0"],
        )

    def test_rule2PartsOfDifferentPromisesDoNotMix(self) -> None:
        """Rule 2: part 1 of an old answer and part 2 of a new one are no promise."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(C, promise(), 0.0)
        self.proposer.on_promise(B, promise(part=0, parts=2, number=1), 0.0)
        self.proposer.on_promise(B, promise(part=1, parts=2, number=2), 0.0)
        self.proposer.on_promise(B, promise(part=0, parts=2, number=1), 0.0)
        self.assertIs(self.proposer.phase, Phase.PREPARING)

    def test_rule2ARestartedAcceptorCountsAgain(self) -> None:
        """Rule 2: promise_id starts again after a restart; the boot tells which answer is newer."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(C, promise(), 0.0)
        self.proposer.on_promise(B, promise(part=0, parts=2, number=7), 0.0)
        self.proposer.on_promise(sender("B", boot=2), promise(number=1), 0.0)
        self.assertIs(self.proposer.phase, Phase.LEADING)

    def test_silentAcceptorsAreAskedAgain(self) -> None:
        """After the time-out, Prepare goes again to those that have not promised, still as a reply."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(B, promise(), 0.0)
        self.assertEqual(lines(self.proposer.tick(0.01)), [])
        again = self.proposer.tick(0.06)
        self.assertEqual(lines(again), ["then to A,C: Prepare 1.A from 1"])
        self.assertEqual(again.sends, [])


class RecoveryTests(ProposerCase):
    """Rule 3."""

    def test_rule3HighestBallotOfEachSlot(self) -> None:
        """Rule 3: per slot, the value of the highest ballot reported is proposed again."""
        self.proposer.take_over(ballot("4.C"), 0.0)
        self.proposer.on_promise(B, promise(entry(1, "2.B", 12), entry(2, "3.C", 23), at="5.A"), 0.0)
        effects = self.proposer.on_promise(
            C, promise(entry(1, "4.C", 14), entry(2, "1.B", 21), at="5.A"), 0.0
        )
        self.assertEqual(
            lines(effects),
            ["to everyone: Accept 5.A 1=v14 upto 0", "to everyone: Accept 5.A 2=v23 upto 0"],
        )

    def test_rule3NoOpsForGaps(self) -> None:
        """Rule 3: a slot that nobody reports gets a no-op, so that those above it can apply."""
        effects = self.lead(entry(3, "0.B", 3))
        self.assertEqual(
            lines(effects),
            [
                "to everyone: Accept 1.A 1=noop upto 0",
                "to everyone: Accept 1.A 2=noop upto 0",
                "to everyone: Accept 1.A 3=v3 upto 0",
            ],
        )

    def test_rule3NewValuesComeAboveWhatWasRecovered(self) -> None:
        """Rule 3: the first new value takes the slot after the highest one reported."""
        self.lead(entry(2, "0.B", 2))
        self.assertEqual(self.propose(9), ["to everyone: Accept 1.A 3=v9 upto 0"])

    def test_rule3BelowBaseNothingIsProposed(self) -> None:
        """Rule 3: B knows slots up to 4 as chosen: absence there means nothing; they are fetched first."""
        self.assertEqual(lines(self.lead(entry(5, "0.B", 5), upto=4)), [])
        self.assertIs(self.proposer.phase, Phase.PREPARING)
        self.assertEqual(lines(self.learner.tick(0.0)), ["to B: Fetch #1 1-4"])
        self.assertFalse(self.proposer.enqueue([command(9)]))

    def test_rule3GoesOnOnceBaseIsHere(self) -> None:
        """Rule 3: with everything up to base chosen here, the slots above it are proposed."""
        self.lead(entry(5, "0.B", 5), upto=4)
        self.learner.tick(0.0)
        found = tuple(entry(slot, "0.B", slot) for slot in range(1, 5))
        self.learner.on_chosen(B, Chosen(1, found, 4, 1), 0.0)
        self.assertEqual(lines(self.proposer.advance(0.0)), ["to everyone: Accept 1.A 5=v5 upto 4"])

    def test_rule3BaseIsTheHighestReported(self) -> None:
        """Rule 3: of two promises the higher chosen_upto is the base; entries below it are not proposed."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.on_promise(C, promise(entry(1, "0.C", 11), entry(2, "0.C", 12)), 0.0)
        self.proposer.on_promise(B, promise(entry(3, "0.B", 3), upto=2), 0.0)
        self.learner.tick(0.0)
        self.learner.on_chosen(B, Chosen(1, (entry(1, "0.B", 1), entry(2, "0.B", 2)), 2, 1), 0.0)
        self.assertEqual(lines(self.proposer.advance(0.0)), ["to everyone: Accept 1.A 3=v3 upto 2"])

    def test_recoveredSlotsKeepTheWindow(self) -> None:
        """Rule 4 holds for recovered slots as well: no more than the pipeline at once."""
        effects = self.lead(*(entry(slot, "0.B", slot) for slot in range(1, 10)))
        self.assertEqual(len(effects.sends), limits.PIPELINE_SLOTS)
        self.assertEqual(self.choose(1), ["to everyone: Accept 1.A 5=v5 upto 1"])


class Phase2Tests(ProposerCase):
    """Rule 4."""

    def test_oneValueForAllThatWaits(self) -> None:
        """All commands of one turn go in one value."""
        self.lead()
        self.assertEqual(self.propose(1, 2, 3), ["to everyone: Accept 1.A 1=v1+v2+v3 upto 0"])

    def test_rule1AcceptNeedsNoSync(self) -> None:
        """Rule 1: an Accept leaves at once, before the leader's own vote is synced."""
        self.lead()
        self.proposer.enqueue([command(1)])
        effects = self.proposer.advance(0.0)
        self.assertEqual((effects.records, effects.replies, len(effects.sends)), ([], [], 1))

    def test_pipelineIsBounded(self) -> None:
        """Only so many values are in flight; what comes then waits, and goes in one value."""
        self.lead()
        for number in range(limits.PIPELINE_SLOTS):
            self.propose(number)
        self.assertEqual(self.propose(8), [])
        self.assertEqual(self.propose(9), [])
        self.assertEqual(self.choose(1), ["to everyone: Accept 1.A 5=v8+v9 upto 1"])

    def test_rule4NeverBeyondAlpha(self) -> None:
        """Rule 4: while slot 1 is open, nothing is proposed beyond chosen_upto + ALPHA."""
        with patch.object(limits, "ALPHA", 3):
            self.lead()
            for number in range(1, 4):
                self.propose(number)
            self.choose(2, 3)
            self.assertEqual(self.propose(4), [])
            self.assertEqual(self.choose(1), ["to everyone: Accept 1.A 4=v4 upto 3"])

    def test_silentAcceptorsAreAskedAgain(self) -> None:
        """After the time-out, the same value goes to those that have not voted, and only to them."""
        self.lead()
        self.propose(7)
        self.learner.on_accepted(B, Accepted(ballot("1.A"), (1,)), 0.0)
        self.assertEqual(lines(self.proposer.tick(0.02)), [])
        self.assertEqual(lines(self.proposer.tick(0.06)), ["to A,C: Accept 1.A 1=v7 upto 0"])

    def test_rule4NackEndsTheLeadership(self) -> None:
        """Rule 4: after a Nack with a higher promise, nothing more leaves, not even a repetition."""
        self.lead()
        self.propose(7)
        self.proposer.on_nack(Nack(ballot("1.A"), ballot("2.B")))
        self.assertIs(self.proposer.phase, Phase.IDLE)
        self.assertEqual(lines(self.proposer.tick(9.0)), [])
        self.assertFalse(self.proposer.enqueue([command(8)]))

    def test_rule8OldNackIsIgnored(self) -> None:
        """Rule 8: a Nack for an earlier ballot of this node says nothing of the present one."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.take_over(ballot("2.B"), 0.0)
        self.proposer.on_nack(Nack(ballot("1.A"), ballot("2.B")))
        self.assertIs(self.proposer.phase, Phase.PREPARING)

    def test_rule4NackOfAnEarlierBallotTellsAsMuch(self) -> None:
        """Rule 4: a promise above the present ballot ends it, whatever the Nack answers (PAXOS_SEED=46)."""
        self.proposer.take_over(NO_BALLOT, 0.0)
        self.proposer.take_over(ballot("2.B"), 0.0)
        self.proposer.on_nack(Nack(ballot("1.A"), ballot("4.B")))
        self.assertIs(self.proposer.phase, Phase.IDLE)

    def test_logTimeWaitsWithWhatWaits(self) -> None:
        """While commands are held, no time passes in the log: their leases must not end meanwhile."""
        self.lead()
        self.proposer.held = True
        self.proposer.wanted_time_ms = 1
        self.assertTrue(self.proposer.enqueue([command(7)]))
        before_ms = self.proposer.clock.time_ms
        for tenths in range(50):
            self.assertEqual(lines(self.proposer.advance(tenths / 10)), [])
        self.assertEqual(self.proposer.clock.time_ms, before_ms)
        self.proposer.held = False
        self.assertEqual(len(self.proposer.advance(5.0).sends), 1)
        self.assertLessEqual(self.proposer.clock.time_ms, before_ms + 200)

    def test_rule9CommandIsTakenOnce(self) -> None:
        """Rule 9: a command that waits or is in flight is not put into a second slot."""
        self.lead()
        self.propose(7)
        self.assertEqual(self.propose(7), [])

    def test_rule9CommandKeepsItsNumber(self) -> None:
        """Rule 9: in whichever slot it goes out, a command carries its (client, sequence)."""
        self.lead()
        self.proposer.enqueue([command(7)])
        accept: Any = self.proposer.advance(0.0).sends[0].message
        sent = decode_value(accept.value).commands[0]
        self.assertEqual((sent.client, sent.sequence), ("c", 7))

    def test_fullQueueTakesAllOrNothing(self) -> None:
        """Over the limit nothing of a submission is taken."""
        self.lead()
        with patch.object(limits, "QUEUE_MAX_COMMANDS", 2):
            self.assertFalse(self.proposer.enqueue([command(n) for n in (1, 2, 3)]))
            self.assertTrue(self.proposer.enqueue([command(n) for n in (1, 2)]))
        with patch.object(limits, "QUEUE_MAX_BYTES", 10):
            self.assertFalse(self.proposer.enqueue([command(4)]))

    def test_largeCommandGoesAlone(self) -> None:
        """Batches stop at the target size; one still larger command makes a value of its own."""
        self.lead()
        with patch.multiple(limits, BATCH_TARGET_BYTES=60, LARGE_BATCH_BYTES=80):
            self.assertEqual(
                self.propose(1, 2),
                ["to everyone: Accept 1.A 1=v1 upto 0", "to everyone: Accept 1.A 2=v2 upto 0"],
            )

    def test_largeCommandsShareAValue(self) -> None:
        """Where the first command fits no datagram, others join it, up to a larger size."""
        self.lead()
        cost = len(command(1).payload) + COMMAND_OVERHEAD_BYTES
        with patch.multiple(limits, BATCH_TARGET_BYTES=cost - 1, LARGE_BATCH_BYTES=2 * cost):
            self.proposer.enqueue([command(n) for n in (1, 2, 3)])
            sends = self.proposer.advance(0.0).sends
        values: list[Any] = [send.message.value for send in sends]
        self.assertEqual([len(decode_value(value).commands) for value in values], [2, 1])

    def test_smallCommandsDoNotWaitForALargeOne(self) -> None:
        """A large command behind small ones does not join them: they leave as a datagram."""
        self.lead()
        large = Command("c", 3, 1, Raw(b'"%s"' % (b"x" * 300)))
        with patch.object(limits, "BATCH_TARGET_BYTES", 200):
            self.proposer.enqueue([command(1), command(2), large])
            sends = self.proposer.advance(0.0).sends
        values: list[Any] = [send.message.value for send in sends]
        self.assertEqual([len(decode_value(value).commands) for value in values], [2, 1])

    def test_highestProposedCoversRecoveredSlots(self) -> None:
        """A read must wait for what was recovered, though it is not chosen yet."""
        self.lead(entry(2, "0.B", 2))
        self.assertEqual(self.proposer.highest_proposed, 2)


class TellingTests(ProposerCase):
    """Rule 6: followers hear what is chosen from the leader."""

    def test_nextAcceptTells(self) -> None:
        """What is chosen travels with the next Accept; nothing else is sent for it."""
        self.lead()
        self.propose(1)
        self.assertEqual(self.choose(1), [])
        self.proposer.enqueue([command(2)])
        (send,) = self.own_vote(self.proposer.advance(0.0)).sends
        self.assertEqual((send.message.slot, send.message.chosen_upto), (2, 1))
        self.assertEqual(lines(self.proposer.tick(TELL_S)), [])

    def test_withoutAnAcceptItIsToldSoon(self) -> None:
        """With nothing to propose a Commit leaves, once."""
        self.lead()
        self.propose(1)
        self.choose(1)
        self.assertEqual(self.proposer.deadline_s, TELL_S)
        self.assertEqual(lines(self.proposer.tick(TELL_S / 2)), [])
        self.assertEqual(lines(self.proposer.tick(TELL_S)), ["to others: Commit 1.A upto 1"])
        self.assertEqual(self.proposer.deadline_s, None)
        self.assertEqual(lines(self.proposer.tick(1.0)), [])

    def test_whoForwardedItIsToldAtOnce(self) -> None:
        """When another node's client waits, the Commit does not; the next command has no haste again."""
        self.lead()
        self.proposer.enqueue([command(1)], forwarded=True)
        self.own_vote(self.proposer.advance(0.0))
        self.assertEqual(self.choose(1), ["to others: Commit 1.A upto 1"])
        self.propose(2)
        self.assertEqual(self.choose(2), [])

    def test_readElsewhereIsToldAtOnce(self) -> None:
        """A node that waits for a slot hears of it when it is chosen, or at once if it is already."""
        self.lead()
        self.propose(1)
        self.assertEqual(lines(self.proposer.awaited(1, 0.0)), [])
        self.assertEqual(self.choose(1), ["to others: Commit 1.A upto 1"])
        self.assertEqual(lines(self.proposer.awaited(1, 0.0)), [])

    def test_whoGaveWayTellsNothing(self) -> None:
        """Rule 4: no Commit leaves after a higher ballot was seen."""
        self.lead()
        self.propose(1)
        self.choose(1)
        self.proposer.give_way()
        self.assertEqual(lines(self.proposer.tick(1.0)), [])
        self.assertEqual(lines(self.proposer.awaited(1, 1.0)), [])


class NearestTests(ProposerCase):
    """A value goes to the nearest majority first."""

    def setUp(self) -> None:
        super().setUp()
        self.lead()
        self.propose(1)
        self.answer(1, A, B)

    def answer(self, slot: int, *voters: Sender, at_s: float = 0.0) -> list[str]:
        """These accept; returns what the proposer does then."""
        for who in voters:
            self.learner.on_accepted(who, Accepted(ballot("1.A"), (slot,)), at_s)
        return lines(self.own_vote(self.proposer.advance(at_s)))

    def test_whoAnsweredFirst(self) -> None:
        """Slot 1 went to all, and B was faster than C: slot 2 goes to B; the survey's second slot to all."""
        self.assertEqual(self.propose(2), ["to everyone: Accept 1.A 2=v2 upto 1"])
        self.answer(2, A, B)
        self.assertEqual(self.propose(3), ["to A,B: Accept 1.A 3=v3 upto 2"])

    def test_silenceIsAskedAround(self) -> None:
        """When B does not answer in time C is asked as well, and what follows goes to all."""
        self.propose(2)
        self.answer(2, A, B)
        self.propose(3)
        self.answer(3, A)
        assert self.proposer.deadline_s is not None
        again = lines(self.proposer.tick(0.06))
        self.assertIn("to B,C: Accept 1.A 3=v3 upto 2", again)
        self.assertEqual(self.answer(3, C, at_s=0.06), [])
        self.proposer.enqueue([command(4)])
        sent = lines(self.own_vote(self.proposer.advance(0.06)))
        self.assertEqual(sent, ["to everyone: Accept 1.A 4=v4 upto 3"])

    def test_aNewLeadershipAsksAll(self) -> None:
        """What was known of distances, and what was not shared, ends with the leadership."""
        self.propose(2)
        self.answer(2, A, B)
        self.propose(3)
        self.proposer.give_way()
        self.assertEqual(lines(self.proposer.tick(1.0)), [])
        self.proposer.take_over(NO_BALLOT, 1.0)
        for who in (B, C):
            self.own_vote(self.proposer.on_promise(who, promise(at="2.A", upto=2), 1.0))
        self.assertEqual(self.propose(4), ["to everyone: Accept 2.A 3=v4 upto 2"])


class LogClockTests(SynchronousTestCase):
    """Log time."""

    def test_movesWithLocalTime(self) -> None:
        """It goes on from the log's time by what passed here."""
        clock = LogClock()
        clock.start(5_000, 10.0)
        self.assertEqual([clock.read_ms(10.0), clock.read_ms(10.1)], [5_000, 5_100])

    def test_aStoppedProcessLosesNoLease(self) -> None:
        """After a pause of an hour it moves one step, not an hour."""
        clock = LogClock()
        clock.start(0, 10.0)
        self.assertLess(clock.read_ms(3_610.0), 5_000)

    def test_earlierLeadershipIsForgotten(self) -> None:
        """Time that a leader counted alone, and nobody has in the log, does not count when it leads again."""
        clock = LogClock()
        clock.start(5_000, 10.0)
        for tenths in range(100, 120):
            clock.read_ms(tenths / 10)
        clock.logged(5_300)
        clock.start(5_400, 12.0)
        self.assertEqual([clock.read_ms(12.0), clock.read_ms(12.1)], [5_400, 5_500])
        clock.logged(6_000)
        clock.start(5_400, 12.2)
        self.assertEqual(clock.read_ms(12.2), 6_000)

    def test_neverBack(self) -> None:
        """Neither a lower log time nor an earlier local time turns it back."""
        clock = LogClock()
        clock.start(5_000, 10.0)
        clock.start(1_000, 9.0)
        self.assertEqual(clock.read_ms(8.0), 5_000)
