"""`core.formation`: incarnations, starts, and the first formation of a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, lines, sender
from twisted_paxos.core.effects import Effects
from twisted_paxos.core.formation import Formation
from twisted_paxos.core.messages import (
    Accept,
    AskDescent,
    Descent,
    Heartbeat,
    Join,
    Joined,
    Refused,
    Sender,
    Status,
)
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import STARTS_KEPT, Identity, Recovered, SaveIdentity


def formation(uid: str, life: str = "", identity: Identity | None = None, boot: int = 1) -> Formation:
    """A fresh node of the cluster A, B, C, or one with this identity."""
    identity = identity or Identity(uid, life or f"{uid.lower()}1", "cluster", boot - 1)
    return Formation(Recovered(identity.started(f"boot{boot}")), Membership("ABC", {}), 1.0)


def formed(uid: str) -> Formation:
    """A node that is a founding member of ``MEMBERS``."""
    identity = Identity(uid, MEMBERS[uid], "cluster", formed=True, members=MEMBERS, sets=((1, MEMBERS),))
    return formation(uid, identity=identity)


class Wire:
    """Nodes whose messages arrive when the test says so; what is saved is durable when its reply leaves."""

    def __init__(self, *nodes: Formation) -> None:
        self.nodes: dict[str, Formation] = {node.me.uid: node for node in nodes}
        self.flying: list[tuple[Sender, str, Any]] = []

    def put(self, source: Formation, effects: Effects) -> None:
        """Put what a node sends on its way."""
        for send in effects.sends + effects.replies:
            self.flying += [(source.me, uid, send.message) for uid in send.to]

    def ask(self, uid: str, now_s: float = 1e9) -> None:
        """Node ``uid`` asks whom it waits for."""
        node = self.nodes[uid]
        node._next_join_s = 0.0
        self.put(node, node.tick(now_s))

    def take(self, source: str, to: str, kind: type) -> tuple[Sender, str, Any]:
        """Take the first such message from the wire, to deliver it later."""
        found = next(f for f in self.flying if f[0].uid == source and f[1] == to and isinstance(f[2], kind))
        self.flying.remove(found)
        return found

    def deliver(self, flying: tuple[Sender, str, Any]) -> None:
        """Let it arrive."""
        who, to, message = flying
        if to in self.nodes and to != who.uid:
            node = self.nodes[to]
            self.put(node, node.receive(who, message, 0.0))

    def flush(self, between: Iterable[str]) -> None:
        """Deliver everything between these nodes, until nothing flies among them; the rest stays."""
        pairs = set(itertools.permutations(between, 2))
        while moving := [f for f in self.flying if (f[0].uid, f[1]) in pairs]:
            self.flying.remove(moving[0])
            self.deliver(moving[0])


class FirstFormationTests(SynchronousTestCase):
    """Fresh directories."""

    def test_needsEveryMember(self) -> None:
        """Two of three fresh nodes do not vote, and say for whom they wait; the third completes it."""
        wire = Wire(formation("A"), formation("B"))
        for _ in range(3):
            wire.ask("A")
            wire.ask("B")
            wire.flush("AB")
        self.assertEqual(wire.nodes["A"].waiting_for, ("C",))
        self.assertFalse(wire.nodes["A"].is_voter)
        wire.flying.clear()
        wire.nodes["C"] = formation("C")
        for uid in "CABCAB":
            wire.ask(uid)
            wire.flush("ABC")
        self.assertEqual([node.is_voter for node in wire.nodes.values()], [True] * 3)
        self.assertEqual([node.membership.latest for node in wire.nodes.values()], [MEMBERS] * 3)

    def test_aClusterOfOneForms(self) -> None:
        """A single member waits for nobody."""
        alone = Formation(
            Recovered(Identity("A", "a1", "cluster").started("boot1")), Membership("A", {}), 1.0
        )
        self.assertEqual(lines(alone.tick(0.0)), ["save identity formed A=a1"])
        self.assertTrue(alone.is_voter)

    def test_answerLeavesAfterTheRecord(self) -> None:
        """Rule 1 for formation: who asks is recorded durably before it is told so."""
        effects = formation("A").on_join(sender("B"), Join(7))
        self.assertEqual(
            lines(effects),
            ["save identity not formed A=a1 B=b1", "then to B: Joined not formed A=a1 B=b1"],
        )
        self.assertEqual(effects.sends, [])

    def test_rule8OnlyAnswersToTheNewestQuestionCount(self) -> None:
        """Rule 8: after another life of a member was recorded, answers to earlier questions are void."""
        node = formation("A")
        node.on_join(sender("B"), Join(1))
        node.on_join(sender("C"), Join(1))
        nonce = node.tick(0.0).sends[0].message.nonce
        node.on_join(sender("B", "b2"), Join(1))
        for who in ("B", "C"):
            node.on_joined(sender(who), Joined(nonce, False, MEMBERS))
        self.assertFalse(node.is_voter)

    def test_aNewLifeOfAFormedMemberDoesNotVote(self) -> None:
        """A member that lost its storage hears "formed": it joins without a vote and needs a Replace."""
        wire = Wire(formed("A"), formed("B"), formation("C", "c2"))
        wire.ask("C")
        wire.flush("ABC")
        self.assertFalse(wire.nodes["C"].is_voter)
        self.assertTrue(wire.nodes["C"].needs_replace)
        self.assertEqual(wire.nodes["C"].membership.latest, MEMBERS)

    def test_aLostNodeNeverSaysThatNothingWasFormed(self) -> None:
        """Storage that replaced lost storage answers no Join: its earlier life may have been a founder."""
        lost = formation("A", identity=Identity("A", "a2", "cluster", lost=True))
        self.assertFalse(lost.on_join(sender("B"), Join(1)))

    def test_formedNodesAgreeThoughAMemberWasWipedMeanwhile(self) -> None:
        """Y is wiped between X's and Z's formation: two formed nodes never name different incarnations.

        X knows y1 and has its answer; Z's answer to X is still on its way when Y comes back as y2,
        which reaches Z only. Z must not form with y2 and X, by the late answer, with y1.
        """
        wire = Wire(formation("A"), formation("B"), formation("C"))
        x, z = wire.nodes["A"], wire.nodes["C"]
        wire.ask("B")
        wire.flush("AB")
        wire.ask("C")
        wire.flush("AC")
        wire.flying.clear()
        wire.ask("A")
        wire.deliver(wire.take("A", "B", Join))
        wire.deliver(wire.take("B", "A", Joined))
        wire.deliver(wire.take("A", "C", Join))
        late = wire.take("C", "A", Joined)
        wire.nodes["B"] = formation("B", "b2")
        wire.ask("B")
        wire.flush("BC")
        for _ in range(3):
            wire.ask("C")
            wire.flush("BC")
            if z.identity.formed:
                break
            wire.deliver(wire.take("C", "A", Join))
            wire.deliver(wire.take("A", "C", Joined))
            wire.flush("BC")
        wire.deliver(late)
        names = [node.membership.latest["B"] for node in (x, z) if node.membership.formed]
        self.assertLessEqual(len(set(names)), 1, f"X and Z are formed with {names}")

    def test_randomWipesNeverSplitTheFounders(self) -> None:
        """Messages late, lost and replayed, members wiped again and again: formed nodes agree.

        Unless all that were formed are gone, no later formation names other founders.
        """
        founded = 0
        for seed in range(300):
            founded += self.wipe_at_random(Random(seed), f"seed {seed}")
        self.assertGreater(founded, 100)

    def wipe_at_random(self, random: Random, name: str) -> bool:
        """One run; returns whether anybody was formed."""
        wire = Wire(formation("A"), formation("B"), formation("C"))
        sent: list[tuple[Sender, str, Any]] = []
        founded = False
        for step in range(120):
            kind = random.random()
            uid = random.choice("ABC")
            if kind < 0.03:
                wire.nodes[uid] = formation(uid, f"{uid.lower()}{step + 2}")
            elif kind < 0.3:
                wire.ask(uid)
            elif wire.flying:
                flying = wire.flying.pop(random.randrange(len(wire.flying)))
                sent.append(flying)
                if random.random() < 0.9:
                    wire.deliver(flying)
                if random.random() < 0.1:
                    wire.deliver(random.choice(sent))
            founders = {
                tuple(sorted(node.identity.members.items()))
                for node in wire.nodes.values()
                if node.identity.formed
            }
            self.assertLessEqual(len(founders), 1, name)
            founded = founded or bool(founders)
        return founded


HEARTBEAT = Heartbeat(1, Status())


class StartTests(SynchronousTestCase):
    """Boots: restored copies do not speak."""

    def descent(
        self, known: str = "", promised: str = "-", upto: int = 0, descends: bool = True, kept: int = 9
    ) -> Descent:
        """What a start says that its storage comes from and held."""
        return Descent(known, descends, kept, ballot(promised), upto)

    def record(self, node: Formation, who: Sender, known: str = "") -> None:
        """A start becomes known, and durable."""
        admitted, effects = node.admit(who, self.descent(known))
        self.assertFalse(admitted)
        for send in effects.replies:
            node.receive(node.me, send.message, 0.0)

    def test_aStartCountsOnceItIsRecorded(self) -> None:
        """A start is asked for its descent, then recorded; what comes after the sync is listened to."""
        node = formed("A")
        self.assertEqual(lines(node.admit(sender("B"), HEARTBEAT)[1]), ["to B: AskDescent -"])
        admitted, effects = node.admit(sender("B"), self.descent())
        self.assertFalse(admitted)
        saved = effects.records[0]
        assert isinstance(saved, SaveIdentity)
        self.assertEqual(saved.identity.boots, {"b1": (1, "boot1")})
        self.assertEqual(node.admit(sender("B"), HEARTBEAT)[0], False)
        node.receive(node.me, effects.replies[0].message, 0.0)
        self.assertEqual(node.admit(sender("B"), HEARTBEAT)[0], True)

    def test_rule8AnEarlierStartIsRefused(self) -> None:
        """Rule 8: messages of a start before the highest seen one are not listened to."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        admitted, effects = node.admit(sender("B", boot=2), Accept(ballot("1.B"), 1, b"{}", 0))  # type: ignore[arg-type]
        self.assertFalse(admitted)
        self.assertEqual(lines(effects), ["to B: Refused start 2"])

    def test_aCopyWithTheSameCountIsRefused(self) -> None:
        """Two starts with the same count differ in their boot_id; only the first one seen is listened to."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        copy = sender("B", boot=3)._replace(boot_id="other")
        self.assertEqual(lines(node.admit(copy, HEARTBEAT)[1]), ["to B: Refused start 3"])

    def test_aCopyThatWasStartedOftenIsRefused(self) -> None:
        """An older copy that counted past the recorded start, unheard, does not come from that start."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        real = Identity("B", "b1", "cluster", 2).started("boot3")
        copy = Identity("B", "b1", "cluster", 2).started("other3")
        for identity, expected in ((real, "save identity"), (copy, "to B: Refused start 4")):
            start = Formation(Recovered(identity.started("boot4")), Membership("ABC", {}), 1.0)
            (asked,) = node.admit(start.me, HEARTBEAT)[1].sends
            self.assertEqual(asked.message, AskDescent("boot3"))
            heard, told = start.admit(node.me, asked.message)
            self.assertFalse(heard)
            effects = node.admit(start.me, told.sends[0].message)[1]
            self.assertTrue(lines(effects)[0].startswith(expected), lines(effects))
            node = formed("A")
            self.record(node, sender("B", boot=3))

    def test_anAnswerToAnEarlierQuestionDoesNotCount(self) -> None:
        """The start that was recorded meanwhile is the one to come from."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        admitted, effects = node.admit(sender("B", boot=4), self.descent("boot2"))
        self.assertEqual((admitted, lines(effects)), (False, []))

    def test_startsAreKeptUpToALimit(self) -> None:
        """Who was started unheard more often than is kept can no longer show what it comes from."""
        identity = Identity("B", "b1", "cluster")
        for number in range(STARTS_KEPT + 1):
            identity = identity.started(f"boot{number + 1}")
        self.assertEqual((identity.boot, len(identity.starts)), (STARTS_KEPT + 1, STARTS_KEPT))
        start = Formation(Recovered(identity), Membership("ABC", {}), 1.0)
        for known, descends in (("boot1", False), ("boot2", True), (f"boot{STARTS_KEPT + 1}", True)):
            _, effects = start.admit(sender("A"), AskDescent(known))
            expected = f"to A: Descent {known} {descends} of {STARTS_KEPT} - 0"
            self.assertEqual(lines(effects), [expected])

    def test_unheardStartsBeyondTheLimitCostNothing(self) -> None:
        """A healthy node whose starts nobody heard, more than it can name, is believed by its number."""
        for count, admitted in ((STARTS_KEPT, False), (STARTS_KEPT + 1, True)):
            node = formed("A")
            self.record(node, sender("B", boot=3))
            start = sender("B", boot=3 + count - 1)
            effects = node.admit(start, self.descent("boot3", descends=False, kept=STARTS_KEPT))[1]
            self.assertEqual(bool(effects.records), admitted, lines(effects))

    def test_aStorageThatKeptNoStartsIsBelieved(self) -> None:
        """Storage made before starts were kept names only its present one: that is no sign of a copy."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        effects = node.admit(sender("B", boot=4), self.descent("boot3", descends=False, kept=1))[1]
        self.assertEqual(len(effects.records), 1)

    def test_aStartComesFromTheOneThatIsBeingRecorded(self) -> None:
        """While a start waits for its sync, a copy of an earlier one is not recorded beside it."""
        node = formed("A")
        self.record(node, sender("B", boot=3))
        real, copy = sender("B", boot=4), sender("B", boot=5)._replace(boot_id="other5")
        waiting = node.admit(real, self.descent("boot3"))[1]
        self.assertEqual(lines(node.admit(copy, self.descent("boot3"))[1]), [])
        self.assertEqual(lines(node.admit(copy, HEARTBEAT)[1]), ["to B: AskDescent boot4"])
        node.receive(node.me, waiting.replies[0].message, 0.0)
        self.assertTrue(node.admit(real, HEARTBEAT)[0])
        told = self.descent("boot4", descends=False, kept=5)
        self.assertEqual(lines(node.admit(copy, told)[1]), ["to B: Refused start 5"])

    def test_aStartThatForgotItsPromiseIsRefused(self) -> None:
        """A storage that holds less than its incarnation once reported is an old copy."""
        node = formed("A")
        self.record(node, sender("B"))
        node.reported(sender("B"), ballot("5.B"), 9)
        for held in (self.descent("boot1", "4.B", 9), self.descent("boot1", "5.B", 8)):
            self.assertEqual(lines(node.admit(sender("B", boot=2), held)[1]), ["to B: Refused start 2"])
        admitted, effects = node.admit(sender("B", boot=2), self.descent("boot1", "5.B", 9))
        self.assertEqual((admitted, len(effects.records)), (False, 1))

    def test_refusedStartEndsItsIncarnation(self) -> None:
        """Whoever is refused for its very start may not go on; older refusals mean nothing."""
        node = formed("A")
        self.assertFalse(node.on_refused(Refused("a1", 1, "earlier", "old")))
        self.assertIn("old copy", node.on_refused(Refused("a1", 1, "boot1", "it forgot")).lost)

    def test_ownMessagesOfAnEarlierStartAreDropped(self) -> None:
        """A datagram of this node's own earlier start, come late, is not its own voice."""
        node = formation("A", boot=2)
        self.assertEqual(node.admit(sender("A", boot=1), HEARTBEAT)[0], False)
        self.assertEqual(node.admit(node.me, HEARTBEAT)[0], True)

    def test_noncesAreNotUsedAgainAfterARestart(self) -> None:
        """Each start asks with numbers of its own: answers to an earlier start do not count."""
        first, second = formation("A", boot=1), formation("A", boot=2)
        nonces = {node.tick(0.0).sends[0].message.nonce for node in (first, second)}
        self.assertEqual(len(nonces), 2)
