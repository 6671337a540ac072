"""`applier`: chosen slots, in order, once each; owners told their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Raw
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, command
from tests.protocols.fakes import HeldStorage
from twisted_paxos import applier as applier_module
from twisted_paxos.applier import RETRY_S, Applier
from twisted_paxos.core.messages import Command, OfRun, SlotEntry, encode_value, sequences_of
from twisted_paxos.errors import StorageDamaged
from twisted_paxos.statemachine.commands import OPEN_SESSION, Result
from twisted_paxos.statemachine.opaque import OpaqueLog
from twisted_paxos.statemachine.replicated import ReplicatedState


def slot(number: int, *commands: Command, time_ms: int = 0) -> SlotEntry:
    """A chosen slot; one command of its own number unless told."""
    return SlotEntry(number, ballot("1.A"), encode_value(time_ms, commands or (command(number),)))


OPENING = slot(1, Command("c", 0, 0, OPEN_SESSION))


class Owner:
    """Somebody who waits for results."""

    def __init__(self) -> None:
        self.told: list[list[tuple[int, int, str]]] = []

    def applied(self, results: list[Result]) -> None:
        """Results."""
        self.told.append([(one.sequence, one.slot, one.error) for one in results])


def named(runs: Sequence[OfRun]) -> list[tuple[OfRun, int]]:
    """The number of each command, with its run."""
    return [(run, number) for run in runs for number in sequences_of(run)]


class ApplierTests(SynchronousTestCase):
    """An applier over storage that the test holds."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.storage = HeldStorage()
        self.owners: dict[tuple[str, int], Any] = {}
        self.applied: list[list[int]] = []
        self.failed: list[str] = []
        self.stored_upto = 0
        self.listened: list[tuple[int, int]] = []
        self.applier = self.make()

    def make(self) -> Applier:
        """An applier with an empty state."""
        applier = Applier(
            self.clock,
            self.storage,
            ReplicatedState(OpaqueLog()),
            lambda runs: [self.owners.pop((run.client, number), None) for run, number in named(runs)],
            lambda entry, applied: self.applied.append([number for _, number in named(applied.runs)]),
            self.fail_with,
            lambda: self.stored_upto,
        )
        applier.listeners.append(lambda entry, applied: self.listened.append((entry.slot, applied.count)))
        return applier

    def fail_with(self, reason: str | Failure) -> None:
        """The node ends."""
        self.failed.append(reason.getErrorMessage() if isinstance(reason, Failure) else reason)

    def store(self, *entries: SlotEntry) -> None:
        """Chosen before the start, and stored."""
        self.storage.log.update({entry.slot: entry for entry in entries})
        self.stored_upto = max(entry.slot for entry in entries)

    def test_appliesWhatIsChosenAtOnce(self) -> None:
        """The next slots apply as they come, and listeners hear of each."""
        self.applier.resume(0)
        self.applier.chosen([OPENING, slot(2)])
        self.assertEqual((self.applier.applied_upto, self.applied), (2, [[0], [2]]))
        self.assertEqual(self.listened, [(1, 0), (2, 1)])

    def test_readsBackWhatWasChosenBeforeTheStart(self) -> None:
        """At a start the stored slots apply first, and what is chosen meanwhile comes behind them."""
        self.store(OPENING, slot(2), slot(3))
        self.storage.hold_reads = True
        self.applier.resume(3)
        self.applier.chosen([slot(4)])
        self.assertEqual(self.applier.applied_upto, 0)
        self.storage.release_read()
        self.clock.advance(0)
        self.assertEqual(self.applied, [[0], [2], [3], [4]])

    def test_resultsComeFirst(self) -> None:
        """Whoever waits hears before anything else follows, though another one fails to hear."""
        order: list[str] = []

        class Telling(Owner):
            def applied(self, results: list[Result]) -> None:
                order.append(f"result {results[0].sequence}")
                if results[0].sequence == 2:
                    raise ValueError("gone")

        self.owners = {("c", 2): Telling(), ("c", 3): Telling()}
        self.patch(self.applier, "_applied", lambda entry, applied: order.append(f"slot {entry.slot}"))
        self.applier.resume(0)
        self.applier.chosen([OPENING, slot(2), slot(3)])
        self.assertEqual(order, ["result 2", "result 3", "slot 1", "slot 2", "slot 3"])
        self.assertFalse(self.applier.is_applying)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_muchIsToldInParts(self) -> None:
        """What many slots did is not all kept until the last one is applied."""
        self.patch(applier_module, "PART_BYTES", 2 * len(slot(2).value))
        told: list[int] = []
        self.patch(self.applier, "_applied", lambda entry, applied: told.append(self.applier.applied_upto))
        self.applier.resume(0)
        self.applier.chosen([OPENING, *(slot(number) for number in range(2, 7))])
        self.assertEqual(told, [2, 2, 4, 4, 6, 6])

    def test_stoppedByWhoeverWaits(self) -> None:
        """Who hears a result may stop the node: then nothing more is applied."""
        self.patch(applier_module, "PART_BYTES", 1)
        self.patch(self.applier, "_applied", lambda entry, applied: self.applier.stop())
        self.applier.resume(0)
        self.applier.chosen([OPENING, slot(2)])
        self.assertEqual(self.applier.applied_upto, 1)

    def test_nothingThatIsNotStoredIsRead(self) -> None:
        """Slots whose chosen value storage does not have yet are not read: an old one may stand there."""
        self.store(OPENING, slot(2, command(99)))
        self.stored_upto = 1
        self.applier.resume(2)
        self.clock.pump([0, RETRY_S, RETRY_S])
        self.assertEqual(self.applied, [[0]])
        self.store(slot(2))
        self.clock.pump([RETRY_S, RETRY_S])
        self.assertEqual(self.applied, [[0], [2]])

    def test_backlogIsBounded(self) -> None:
        """What comes in while it reads is kept up to a limit; beyond it, it is read from storage too."""
        self.patch(applier_module, "BACKLOG_MAX_BYTES", 10)
        self.storage.hold_reads = True
        self.store(OPENING, slot(2))
        self.applier.resume(2)
        self.applier.chosen([slot(3)])
        self.applier.chosen([slot(4)])
        self.store(slot(3), slot(4))
        self.storage.hold_reads = False
        self.storage.release_read()
        self.clock.pump([0, 0, RETRY_S])
        self.assertEqual(self.applied, [[0], [2], [3], [4]])

    def test_ownersAreToldTogether(self) -> None:
        """Results of one turn go to each owner in one call, in the order in which they applied."""
        one, other = Owner(), Owner()
        self.owners = {("c", 2): one, ("c", 3): other, ("c", 4): one}
        self.applier.resume(0)
        self.applier.chosen([OPENING, slot(2), slot(3), slot(4)])
        self.assertEqual(one.told, [[(2, 2, ""), (4, 4, "")]])
        self.assertEqual(other.told, [[(3, 3, "")]])

    def test_rule9SecondSlotOfACommandAppliesNothing(self) -> None:
        """Rule 9: a command chosen in two slots applies in the first; both times it is one result."""
        owner = Owner()
        self.applier.resume(0)
        self.applier.chosen([OPENING, slot(2)])
        self.owners = {("c", 2): owner}
        self.applier.chosen([slot(3, command(2))])
        self.assertEqual(owner.told, [[(2, 2, "")]])
        self.assertEqual(self.listened, [(1, 0), (2, 1), (3, 0)])

    def test_whenApplied(self) -> None:
        """Fires once that slot was applied; at once when it was."""
        self.applier.resume(0)
        second = self.applier.when_applied(2)
        self.applier.chosen([OPENING])
        self.assertNoResult(second)
        self.applier.chosen([slot(2)])
        self.successResultOf(second)
        self.successResultOf(self.applier.when_applied(1))

    def test_pausedAppliesNothing(self) -> None:
        """While a snapshot replaces the state nothing applies; afterwards all that came does."""
        self.applier.resume(0)
        self.applier.chosen([OPENING])
        self.applier.pause()
        waiting = self.applier.when_applied(2)
        self.applier.chosen([slot(2)])
        self.assertEqual(self.applier.applied_upto, 1)
        self.assertNoResult(waiting)
        self.applier.resume(2)
        self.successResultOf(waiting)

    def test_stoppedAppliesNothing(self) -> None:
        """After a stop, what was being read is not applied."""
        self.store(OPENING)
        self.storage.hold_reads = True
        self.applier.resume(1)
        self.applier.stop()
        self.storage.release_read()
        self.clock.advance(RETRY_S)
        self.assertEqual(self.applied, [])

    def test_damageIsToldOnce(self) -> None:
        """A stored slot that cannot be read back ends the node with its reason."""
        self.store(OPENING)
        self.storage.hold_reads = True
        self.applier.resume(1)
        self.storage.reads[0][0].errback(StorageDamaged("slot 1 is gone"))
        self.assertEqual(self.failed, ["slot 1 is gone"])

    def test_errorInACallOfItsOwnIsTold(self) -> None:
        """What fails in a later turn of the reactor, above which nobody stands, ends the node as well."""
        self.store(OPENING)
        self.storage.hold_reads = True
        self.applier.resume(1)
        self.applier.chosen([SlotEntry(2, ballot("1.A"), Raw(b"[1]"))])
        self.storage.release_read()
        self.assertEqual(self.failed, [])
        self.clock.advance(0)
        self.assertIn("slot 2 is no value", self.failed[0])

    def test_aValueThatIsNoneIsDamage(self) -> None:
        """A chosen value that cannot be decoded is damage, with its slot in the line."""
        self.store(SlotEntry(1, ballot("1.A"), Raw(b"[1]")))
        self.applier.resume(1)
        self.assertIn("slot 1 is no value", self.failed[0])
