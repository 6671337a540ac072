"""`protocols.effects`: persist, then send, then apply; each reply tied to its own write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.core.transcript import ballot, entry, value
from tests.protocols.fakes import HeldStorage, RememberingMessenger
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects, Readable, ReadChosen, Send, merge_accepted
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accepted, Chosen, Fetch, Nack, SlotEntry
from twisted_paxos.core.records import Record, SaveAccepted, SaveChosen, SavePromise
from twisted_paxos.errors import StorageDamaged, StorageFailed, StorageFull
from twisted_paxos.interfaces import IAcceptorStorage, IMessenger
from twisted_paxos.protocols import effects as effects_module
from twisted_paxos.protocols.effects import FULL_RETRY_S, NOTE_IDLE_S, READS_MAX, EffectPerformer
from twisted_paxos.protocols.turn import Turn
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.queued import IStorageBackend
from twisted_paxos.storage.sqlite import SqliteBackend
from twisted_paxos.storage.wal import FileBackend


def record(slot: int, at: str = "1.A", number: int = 0) -> SaveAccepted:
    """An accepted value."""
    return SaveAccepted(slot, ballot(at), value(number or slot))


def accepted(slot: int, at: str = "1.A") -> Send:
    """The reply that reports it."""
    return Send(EVERYONE, Accepted(ballot(at), (slot,)))


def accept(slot: int, at: str = "1.A", number: int = 0) -> Effects:
    """What an acceptor asks for: save, then reply."""
    return Effects([record(slot, at, number)], replies=[accepted(slot, at)])


def chosen(*entries: SlotEntry) -> Effects:
    """What a learner asks for."""
    effects = Effects()
    effects.chosen = list(entries)
    return effects


def reading(from_slot: int, upto_slot: int, request_id: int = 1) -> Effects:
    """What a Fetch of C asks for."""
    effects = Effects()
    effects.reads = [ReadChosen("C", request_id, from_slot, upto_slot)]
    return effects


class PerformerCase(SynchronousTestCase):
    """Node A's performer between fakes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.storage = HeldStorage()
        self.messenger = RememberingMessenger()
        self.own: list[Any] = []
        self.answers: list[Effects] = []
        self.applied: list[int] = []
        self.order: list[str] = []
        self.stopped: list[str] = []
        self.lost: list[str] = []
        self.readable: list[Readable] = []
        self.turn = Turn(self.clock, lambda: self.performer.write_now(), lambda: self.performer.apply_now())
        self.performer = EffectPerformer(
            "A",
            self.clock,
            self.storage,
            self.messenger,
            self.deliver,
            lambda entries: self.applied.extend(one.slot for one in entries),
            self.readable.append,
            lambda uid: self.order.append(f"behind {uid}"),
            lambda: (9, 1),
            self.stop,
            self.lost.append,
            0,
            self.turn,
        )

    def vote(self, slot: int, at: str = "1.B") -> Effects:
        """What this node's acceptor asks for while B leads."""
        return Effects([record(slot, at)], replies=[Send(("B",), Accepted(ballot(at), (slot,)))])

    def deliver(self, message: Any) -> Effects:
        """A message of the node to itself."""
        self.own.append(message)
        return self.answers.pop(0) if self.answers else Effects()

    def stop(self, reason: str | Failure) -> None:
        """The node ends."""
        self.stopped.append(reason.getErrorMessage() if isinstance(reason, Failure) else reason)
        self.performer.stop()

    def perform(self, *effects: Effects) -> None:
        """All of them in one turn of the reactor, and then its end."""
        for one in effects:
            self.performer.perform(one)
        self.clock.advance(0)

    @property
    def left(self) -> list[Any]:
        """The messages that left, in order."""
        return [message for _, message in self.messenger.left]


class OrderTests(PerformerCase):
    """Rule 1."""

    def test_fakesKeepTheirInterfaces(self) -> None:
        """The fakes stand for the real things."""
        verifyObject(IAcceptorStorage, self.storage)
        verifyObject(IMessenger, self.messenger)

    def test_rule1NothingLeavesBeforeItsOwnWrite(self) -> None:
        """Rule 1: a reply leaves when its write has ended, and not before."""
        self.perform(accept(1))
        self.assertEqual((self.left, self.own), ([], []))
        self.storage.finish()
        self.assertEqual(self.left, [Accepted(ballot("1.A"), (1,))])
        self.assertEqual(self.own, [Accepted(ballot("1.A"), (1,))])

    def test_rule1VoteForALeaderLeavesWithItsSync(self) -> None:
        """Rule 1: a follower's vote leaves once, where its sync ended, before the reactor is told."""
        self.perform(self.vote(1), self.vote(2))
        self.assertEqual(self.left, [])
        self.storage.finish()
        self.assertEqual(self.messenger.left, [(("B",), Accepted(ballot("1.B"), (1, 2)))])
        self.assertEqual((self.performer.voted, self.performer.voted_upto), (ballot("1.B"), 2))

    def test_rule1VoteOfARefusedWriteWaits(self) -> None:
        """Rule 1: with a full disk no vote leaves; with the write that succeeds it does."""
        self.perform(self.vote(1))
        self.storage.finish(StorageFull("no room"))
        self.assertEqual((self.left, self.performer.voted_upto), ([], 0))
        self.clock.advance(FULL_RETRY_S)
        self.storage.finish()
        self.assertEqual(self.left, [Accepted(ballot("1.B"), (1,))])

    def test_rule1StoppedNodeDoesNotVote(self) -> None:
        """A node that may not speak any more says nothing, also from the disk's thread."""
        self.perform(self.vote(1))
        self.performer.stop()
        self.storage.finish()
        self.assertEqual(self.left, [])

    def test_rule1EndOfAnEarlierWriteReleasesOnlyItsOwn(self) -> None:
        """Rule 1: what was asked for during a write belongs to the next one, and waits for that."""
        self.perform(accept(1))
        self.perform(accept(2))
        self.storage.finish()
        self.assertEqual(self.left, [Accepted(ballot("1.A"), (1,))])
        self.storage.finish()
        self.assertEqual(self.left[1:], [Accepted(ballot("1.A"), (2,))])

    def test_rule1ReplyWithoutARecordWaitsForWhatItReports(self) -> None:
        """Rule 1: a repeated Promise, with nothing new to save, waits for the write that covers it."""
        self.perform(Effects([SavePromise(ballot("2.B"))]))
        repeated = Send(("B",), Nack(ballot("1.A"), ballot("2.B")))
        self.perform(Effects(replies=[repeated]))
        self.assertEqual(self.left, [])
        self.storage.finish()
        self.assertEqual(self.left, [repeated.message])

    def test_replyWithNothingToWaitForLeavesAtOnce(self) -> None:
        """When all is durable, there is nothing to wait for."""
        self.perform(Effects(replies=[accepted(1)]))
        self.assertEqual(len(self.left), 1)
        self.assertEqual(self.storage.writes, [])

    def test_sendsDoNotWait(self) -> None:
        """What needs no write leaves at once, also while one is under way."""
        self.perform(accept(1))
        self.perform(Effects(sends=[Send(("B",), Fetch(1, 1, 1))]))
        self.assertEqual(self.messenger.left, [(("B",), Fetch(1, 1, 1))])

    def test_oneWriteForATurn(self) -> None:
        """All that arrives in one turn shares one write, in order, and one Accepted answers it."""
        self.perform(accept(1), accept(2), accept(3))
        self.assertEqual(self.storage.writes[0][0], [record(1), record(2), record(3)])
        self.storage.finish()
        self.assertEqual(self.left, [Accepted(ballot("1.A"), (1, 2, 3))])

    def test_whatWaitsGoesTogether(self) -> None:
        """While a write is under way there is no second one; all that waits shares the next."""
        self.perform(accept(1))
        self.perform(accept(2))
        self.perform(accept(3))
        self.assertEqual(self.storage.held, 1)
        self.storage.finish()
        self.assertEqual([len(records) for records, _ in self.storage.writes], [1, 2])

    def test_destinations(self) -> None:
        """Everyone is all others and the node itself; a list may hold the node as well."""
        note = Fetch(1, 1, 1)
        sends = [Send(EVERYONE, note), Send(OTHERS, note), Send(("A", "B"), note), Send(("A",), note)]
        self.perform(Effects(sends=sends))
        self.assertEqual([to for to, _ in self.messenger.left], [("*",), ("*",), ("B",)])
        self.assertEqual(len(self.own), 3)

    def test_whatANodeTellsItselfIsPerformedToo(self) -> None:
        """The effects of its own message follow in the same turn, after what it was doing."""
        self.answers = [chosen(entry(1, "1.A", 1))]
        self.perform(Effects(sends=[Send(("A",), Fetch(1, 1, 1))]))
        self.assertEqual(self.applied, [1])

    def test_waitingSince(self) -> None:
        """The time of the oldest unfinished write shows, for the election; none when all is done."""
        self.clock.advance(5)
        self.perform(accept(1))
        self.clock.advance(3)
        self.assertEqual(self.performer.waiting_since_s, 5)
        self.perform(accept(2))
        self.storage.finish()
        self.assertEqual(self.performer.waiting_since_s, 8)
        self.storage.finish()
        self.assertIsNone(self.performer.waiting_since_s)

    def test_readableAndBehindArePassedOn(self) -> None:
        """Confirmed reads, and the id of a node with a snapshot, go where they belong."""
        effects = Effects()
        effects.readable = [Readable(4, 9)]
        effects.behind = "B"
        self.perform(effects)
        self.assertEqual((self.readable, self.order), ([Readable(4, 9)], ["behind B"]))


class FailureTests(PerformerCase):
    """Storage that does not store."""

    def test_fullDiskRetriesInOrder(self) -> None:
        """No room: the same records again after a while, then what came behind them; replies only then."""
        self.perform(accept(1))
        self.perform(accept(2))
        self.storage.finish(StorageFull("no room"))
        self.assertTrue(self.performer.full)
        self.assertEqual((self.left, self.storage.held), ([], 0))
        self.clock.advance(FULL_RETRY_S)
        self.assertEqual(self.storage.writes[1][0], [record(1)])
        self.storage.finish(StorageFull("no room"))
        self.clock.advance(FULL_RETRY_S)
        self.storage.finish()
        self.storage.finish()
        self.assertFalse(self.performer.full)
        self.assertEqual(
            [record_.slot for records, _ in self.storage.writes for record_ in records], [1, 1, 1, 2]
        )  # type: ignore[union-attr]
        self.assertEqual(self.left, [Accepted(ballot("1.A"), (1,)), Accepted(ballot("1.A"), (2,))])

    def test_failedWriteStopsTheNode(self) -> None:
        """What is durable is unknown: the node stops, and nothing that waited leaves."""
        self.perform(accept(1))
        self.perform(accept(2))
        self.storage.finish(StorageFailed("the disk is gone"))
        self.assertEqual(self.stopped, ["the disk is gone"])
        self.clock.advance(10)
        self.assertEqual((self.left, self.storage.held), ([], 0))

    def test_stoppedPerformsNothing(self) -> None:
        """After a stop neither the end of a write nor new effects lead to anything."""
        self.perform(accept(1))
        self.performer.stop()
        self.storage.finish()
        self.perform(accept(2), Effects(sends=[Send(OTHERS, Fetch(1, 1, 1))]))
        self.assertEqual((self.left, len(self.storage.writes)), ([], 1))

    def test_damageFoundByAReadStopsTheNode(self) -> None:
        """A stored value that cannot be read back is the end."""
        self.storage.hold_reads = True
        self.perform(chosen(entry(1, "1.A", 1)), reading(1, 1))
        self.storage.reads[0][0].errback(StorageDamaged("slot 1"))
        self.assertEqual(self.stopped, ["slot 1"])

    def test_lostIncarnationSaysNothingMore(self) -> None:
        """Effects that end the incarnation are not performed otherwise."""
        effects = accept(1)
        effects.lost = "an old copy"
        self.perform(effects)
        self.assertEqual((self.lost, self.left, self.storage.writes), (["an old copy"], [], []))

    def test_failureInsideADecisionStopsTheNode(self) -> None:
        """An error while replies are performed is not swallowed."""
        self.answers = []
        self.performer._deliver = self.explode
        self.perform(accept(1))
        self.storage.finish()
        self.assertEqual(self.stopped, ["a rule was broken"])

    def test_failureToSendStopsTheNode(self) -> None:
        """A message that cannot be encoded: what was to follow is not done, and what is held stays held."""
        self.perform(self.vote(1))
        self.patch(self.messenger, "send", self.explode)
        effects = Effects([record(2)], sends=[Send(OTHERS, Fetch(1, 1, 1))])
        effects.readable = [Readable(4, 9)]
        self.perform(effects, accept(3))
        self.storage.finish()
        self.assertEqual(self.stopped, ["a rule was broken"])
        self.assertEqual((self.left, self.readable, len(self.storage.writes)), ([], [], 1))

    def test_failureAfterAWriteComesBeforeTheTurnsEnd(self) -> None:
        """What fails while a write's replies are released has stopped the node when its turn is settled."""
        settled: list[list[str]] = []
        self.performer._turn = Turn(self.clock, lambda: settled.append([*self.stopped]), lambda: None)
        self.performer.perform(accept(1))
        self.performer.write_now()
        self.performer.perform(chosen(entry(1, "1.A", 1)))
        self.performer.perform(accept(2))
        self.performer._apply = self.explode
        self.storage.finish()
        self.assertEqual(settled, [["a rule was broken"]])
        self.assertEqual(self.stopped, ["a rule was broken"])

    def test_storageThatTakesNothingStopsTheNode(self) -> None:
        """Storage that raises, at once or when a write is tried again, is as broken as one that fails."""
        self.perform(accept(1))
        self.storage.finish(StorageFull("no room"))
        self.patch(self.storage, "write", self.explode)
        self.clock.advance(FULL_RETRY_S)
        self.assertEqual(self.stopped, ["a rule was broken"])

    def explode(self, *_: Any) -> Any:
        """As a failed assertion in the core."""
        raise AssertionError("a rule was broken")

    def test_nothingStaysCounted(self) -> None:
        """Votes that were joined, or left from the disk's thread, take no room for ever."""
        vote = Effects([record(1, "1.B")], replies=[Send(("B",), Accepted(ballot("1.B"), (1,)))])
        self.patch(effects_module, "UNWRITTEN_MAX_BYTES", 5_000)
        for _ in range(50):
            self.perform(vote, vote, accept(2), accept(3), Effects(replies=[accepted(4)]))
            self.performer.perform(Effects(replies=[accepted(4)]))
            self.storage.finish()
            self.assertFalse(self.performer.overfull)
        self.assertEqual(self.performer._unwritten_bytes, 0)

    def test_overfull(self) -> None:
        """When too much waits for the disk, it says so until that is written; small records count too."""
        self.patch(effects_module, "UNWRITTEN_MAX_BYTES", 2_000)
        self.assertFalse(self.performer.overfull)
        many: list[Record] = [SavePromise(ballot(f"{number}.B")) for number in range(1, 10)]
        self.perform(Effects(many))
        self.assertTrue(self.performer.overfull)
        self.storage.finish()
        self.assertFalse(self.performer.overfull)


class StoredTests(PerformerCase):
    """Only what is stored as chosen is read, or noted as chosen."""

    def outdated(self) -> None:
        """Slot 1 holds v8 of an old ballot; v9 is chosen by the others' votes while its write is held."""
        self.perform(accept(1, "1.A", 8))
        self.storage.finish()
        self.perform(accept(5, "2.B"))
        self.perform(accept(1, "2.B", 9))
        self.perform(chosen(entry(1, "2.B", 9)))
        self.assertEqual(self.applied, [1])
        self.messenger.left.clear()

    def test_rule7OldValueIsNeverHandedOut(self) -> None:
        """Rule 7: while the chosen value waits for its write, a Fetch does not get the one it replaces."""
        self.outdated()
        self.perform(reading(1, 1))
        self.assertEqual([one for one in self.left if isinstance(one, Chosen) and one.entries], [])

    def test_rule7HandedOutOnceItIsStored(self) -> None:
        """Rule 7: after the write the same Fetch gets the chosen value."""
        self.outdated()
        self.storage.finish()
        self.storage.finish()
        self.perform(reading(1, 1, 2))
        self.assertIn(Chosen(2, (entry(1, "2.B", 9),), 9, 1), self.left)

    def test_noteDoesNotRunAheadOfTheWrite(self) -> None:
        """chosen_upto is noted in storage only when the chosen values are there."""
        self.outdated()
        self.assertEqual(self.storage.noted, 0)
        self.storage.finish()
        self.assertEqual(self.storage.noted, 0)
        self.storage.finish()
        self.assertEqual(self.storage.noted, 1)

    def test_noteIsWrittenOnceNothingElseIs(self) -> None:
        """A write under way puts it off, and does not make it be forgotten."""
        self.perform(accept(1))
        self.perform(chosen(entry(1, "1.A", 1)))
        self.storage.finish()
        self.perform(accept(2))
        self.clock.advance(NOTE_IDLE_S)
        self.storage.finish()
        self.assertEqual(self.storage.held, 0)
        self.clock.pump([NOTE_IDLE_S, 0])
        self.assertEqual([records for records, _ in self.storage.writes[2:]], [[]])
        self.storage.finish()
        self.clock.advance(5 * NOTE_IDLE_S)
        self.assertEqual(self.storage.held, 0)

    def test_noteOfAStoppedNode(self) -> None:
        """A node that stops while a write never ends leaves no timer behind."""
        self.perform(accept(1))
        self.perform(chosen(entry(1, "1.A", 1)))
        self.storage.finish()
        self.perform(accept(2))
        self.performer.stop()
        self.clock.advance(NOTE_IDLE_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fullDiskHoldsTheNoteBack(self) -> None:
        """A refused write's slots are not noted either."""
        self.outdated()
        self.storage.finish()
        self.storage.finish(StorageFull("no room"))
        self.assertEqual(self.storage.noted, 0)

    def test_lastSlotOfAnIdleCluster(self) -> None:
        """A slot chosen while its own write is under way is stored once that ends, without another."""
        self.perform(accept(1))
        self.perform(chosen(entry(1, "1.A", 1)))
        self.storage.finish()
        self.assertEqual((self.performer.stored_upto, self.storage.noted), (1, 1))
        self.perform(reading(1, 1))
        self.assertIn(Chosen(1, (entry(1, "1.A", 1),), 9, 1), self.left)

    def test_readsAreBounded(self) -> None:
        """Beyond so many answers under way, Fetches are dropped; the room comes back."""
        self.perform(accept(1))
        self.storage.finish()
        self.perform(chosen(entry(1, "1.A", 1)))
        self.storage.hold_reads = True
        self.perform(*(reading(1, 1) for _ in range(READS_MAX + 5)))
        self.assertEqual(len(self.storage.reads), READS_MAX)
        self.storage.release_read()
        self.perform(reading(1, 1))
        self.assertEqual(len(self.storage.reads), READS_MAX)


class RestartTests(SynchronousTestCase):
    """What a node learnt without a vote, found again by the real providers."""

    def check(self, make: Callable[[], IStorageBackend]) -> None:
        """Catch up at a ballot above the own promise, with nothing noted; then start again."""
        first = make()
        first.recover("a1", "cluster")
        records: list[Record] = [
            SavePromise(ballot("1.A")),
            record(1),
            SaveChosen(2, ballot("5.C"), value(2)),
        ]
        first.commit([records], 0)
        first.close()
        recovered = make().recover("a1", "cluster")
        self.assertEqual((recovered.chosen_upto, dict(recovered.entries)), (2, {}))
        Acceptor(Log(recovered.chosen_upto, 1, recovered.entries), recovered.promised)

    def test_fileStartsWithWhatItLearntAboveItsPromise(self) -> None:
        """``file:``: what was learnt counts as chosen, so it is no vote above the promise."""
        path = self.mktemp()
        self.check(lambda: FileBackend(OsDisk(path), "A"))

    def test_sqliteStartsWithWhatItLearntAboveItsPromise(self) -> None:
        """``sqlite:`` likewise."""
        path = self.mktemp()
        self.check(lambda: SqliteBackend(path, "A"))


class MergeTests(SynchronousTestCase):
    """`merge_accepted`."""

    def test_rule5OneBallotPerMessage(self) -> None:
        """Rule 5: slots of one ballot join; other ballots, receivers and messages stay apart."""
        nack = Send(("B",), Nack(ballot("1.A"), ballot("2.B")))
        merged = merge_accepted([accepted(1), nack, accepted(2, "2.B"), accepted(3)])
        self.assertEqual(
            merged,
            [
                Send(EVERYONE, Accepted(ballot("1.A"), (1, 3))),
                nack,
                Send(EVERYONE, Accepted(ballot("2.B"), (2,))),
            ],
        )
