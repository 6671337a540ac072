"""`core.requests`: this node's clients' commands, until they are applied."""

from __future__ import annotations

from unittest.mock import patch

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, command, lines, steady
from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Command, ForwardReply, runs_of
from twisted_paxos.core.requests import APPLY_WAIT_S, REFUSED_WAIT_S, Requests
from twisted_paxos.errors import Overloaded, ValueTooLarge


class RequestsTests(SynchronousTestCase):
    """Node A's requests."""

    def setUp(self) -> None:
        self.requests = Requests(steady)
        self.enqueued: list[list[int]] = []
        self.full = False

    def enqueue(self, commands: object) -> bool:
        """As a leading proposer."""
        self.enqueued.append([c.sequence for c in commands])  # type: ignore[attr-defined]
        return not self.full

    def pump(self, leader: str, now_s: float = 0.0) -> list[str]:
        """Pass on what waits."""
        to: ProposalID = ballot(leader)
        return lines(self.requests.pump(to, "A", self.enqueue, now_s))

    def submit(self, *numbers: int, owner: object = "me") -> None:
        """Commands of one client."""
        self.requests.submit([command(number) for number in numbers], owner)

    def test_forwardsToTheLeader(self) -> None:
        """What waits goes to the leader in one message; nothing is sent twice."""
        self.submit(1, 2)
        self.assertEqual(self.pump("1.B"), ["to B: Forward #1 v1+v2"])
        self.assertEqual(self.pump("1.B"), [])

    def test_ownProposerWhenItLeads(self) -> None:
        """A leader's own clients need no network."""
        self.submit(1)
        self.assertEqual(self.pump("1.A"), [])
        self.assertEqual(self.enqueued, [[1]])

    def test_withoutALeaderItWaits(self) -> None:
        """With nobody to turn to, commands stay; with a leader they go."""
        self.submit(1)
        self.assertEqual(lines(self.requests.pump(NO_BALLOT, "A", self.enqueue, 0.0)), [])
        self.assertEqual(self.pump("1.B"), ["to B: Forward #1 v1"])

    def test_rule9NewLeaderGetsEverythingAgain(self) -> None:
        """Rule 9: after a change of leader all that is not applied is sent again, with the same numbers."""
        self.submit(1, 2)
        self.pump("1.B")
        self.requests.applied(("c", 1))
        self.assertEqual(self.pump("2.C"), ["to C: Forward #2 v2"])

    def test_lostForwardIsSentAgain(self) -> None:
        """An unanswered Forward is repeated, without what was applied meanwhile."""
        self.submit(1, 2)
        self.pump("1.B")
        self.requests.applied(("c", 2))
        self.assertEqual(lines(self.requests.tick(0.01)), [])
        self.assertEqual(lines(self.requests.tick(0.06)), ["to B: Forward #2 v1"])

    def test_refusedForwardWaitsAMoment(self) -> None:
        """A leader that took nothing is asked again a little later, in the same order."""
        self.submit(1)
        self.pump("1.B")
        self.requests.on_reply("B", ForwardReply(1, False), 0.0)
        self.submit(2)
        self.assertEqual(self.pump("1.B", REFUSED_WAIT_S / 2), [])
        self.assertEqual(self.pump("1.B", REFUSED_WAIT_S), ["to B: Forward #2 v1+v2"])

    def test_takenAndNotApplied(self) -> None:
        """What a leader took, and lost, is sent again after a while."""
        self.submit(1)
        self.pump("1.B")
        self.requests.on_reply("B", ForwardReply(1, True), 0.0)
        self.assertEqual(lines(self.requests.tick(APPLY_WAIT_S / 2)), [])
        self.requests.tick(APPLY_WAIT_S)
        self.assertEqual(self.pump("1.B", APPLY_WAIT_S), ["to B: Forward #2 v1"])

    def test_answersOfOthersAreIgnored(self) -> None:
        """A reply of a node that does not lead, or to an unknown Forward, changes nothing."""
        self.submit(1)
        self.pump("1.B")
        self.requests.on_reply("C", ForwardReply(1, True), 0.0)
        self.requests.on_reply("B", ForwardReply(99, True), 0.0)
        self.assertEqual(lines(self.requests.tick(0.06)), ["to B: Forward #2 v1"])

    def test_ownFullProposer(self) -> None:
        """A full leader takes nothing; its own clients' commands wait as well."""
        self.full = True
        self.submit(1)
        self.pump("1.A")
        self.full = False
        self.pump("1.A", REFUSED_WAIT_S)
        self.assertEqual(self.enqueued, [[1], [1]])

    def test_ownerGetsItOnce(self) -> None:
        """The owner is told once; a repetition only changes who that is."""
        self.submit(1, owner="first")
        self.submit(1, owner="second")
        self.assertEqual(self.requests.applied(("c", 1)), "second")
        self.assertIsNone(self.requests.applied(("c", 1)))
        self.assertEqual(len(self.requests), 0)

    def test_ownersOfASlot(self) -> None:
        """Of a slot's commands those that somebody waits for here; nothing at all when nobody waits."""
        self.submit(1, owner="first")
        self.submit(3, owner="third")
        runs = runs_of([Command("c", sequence, 1, Raw(b"1")) for sequence in (1, 2, 3)])
        self.assertEqual(self.requests.owners_of(runs), ["first", None, "third"])
        self.assertEqual(self.requests.owners_of(runs), [])

    def test_forgottenOwnerIsNotTriedFor(self) -> None:
        """A client that went away leaves nothing behind."""
        self.submit(1, owner="gone")
        self.submit(2, owner="here")
        self.requests.forget("gone")
        self.assertEqual(self.pump("1.B"), ["to B: Forward #1 v2"])

    def test_overloadTakesNothing(self) -> None:
        """Over the limits of count and bytes nothing is taken, and the room comes back."""
        with patch.object(limits, "QUEUE_MAX_COMMANDS", 2):
            self.submit(1, 2)
            self.assertRaises(Overloaded, self.submit, 3)
            self.requests.applied(("c", 1))
            self.submit(3)
        with patch.object(limits, "QUEUE_MAX_BYTES", 10):
            self.assertRaises(Overloaded, self.submit, 4)

    def test_tooLargeTakesNothing(self) -> None:
        """One command over the limit refuses the whole submission."""
        large = Command("c", 9, 1, Raw(b'"' + b"x" * limits.PAYLOAD_MAX_BYTES + b'"'))
        self.assertRaises(ValueTooLarge, self.requests.submit, [command(1), large], "me")
        self.assertEqual(len(self.requests), 0)

    def test_largestValueFits(self) -> None:
        """1 MiB of bytes is taken, as text with its quotes and as base64."""
        text = Command("c", 1, 1, Raw(b'"' + b"x" * limits.VALUE_MAX_BYTES + b'"'))
        base64 = Command(
            "c", 2, 1, Raw(b'{"type":"binary","data":"' + b"A" * (limits.VALUE_MAX_BYTES * 4 // 3) + b'"}')
        )
        self.requests.submit([text, base64], "me")
        self.assertEqual(len(self.requests), 2)

    def test_nothingIsDueWhenNothingWaits(self) -> None:
        """Without commands there is no timer."""
        self.submit(1)
        self.pump("1.B")
        self.requests.applied(("c", 1))
        self.assertIsNone(self.requests.deadline_s)


class NestingTests(SynchronousTestCase):
    """What no node may be given to decode."""

    def test_deepPayloads(self) -> None:
        """A payload that the stack of another node might have no room for is refused; a long one is not."""
        requests = Requests(steady)
        for levels in (limits.PAYLOAD_SPARE_LEVELS, 900):
            deep = Raw(b'{"type":"put","x":' + b"[" * levels + b"]" * levels + b"}")
            if levels == 900:
                with self.assertRaises(ValueTooLarge):
                    requests.submit([Command("c", 1, 1, Raw(b'"small"')), Command("c", 2, 1, deep)], None)
            else:
                requests.submit([Command("c", 3, 1, deep)], None)
        requests.submit([Command("c", 4, 1, Raw(b'"' + b"[" * 5_000 + b'"'))], None)
        self.assertEqual(len(requests), 2)
