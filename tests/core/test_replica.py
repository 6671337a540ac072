"""`core.replica`: where one role's news is another's business."""

from __future__ import annotations

from typing import Any, get_args

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.core.runs import command
from tests.core.transcript import lines, sender, value
from twisted_paxos.core import limits
from twisted_paxos.core import replica as replica_module
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.effects import OTHERS, Effects
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Admit,
    Chosen,
    Command,
    Commit,
    Forward,
    Heartbeat,
    HeartbeatReply,
    Message,
    Nack,
    Prepare,
    Promise,
    Replace,
    Sender,
    SlotEntry,
    Status,
    decode_value,
    encode_change,
    is_change,
)
from twisted_paxos.core.proposer import Phase
from twisted_paxos.core.records import SaveChosen, SaveIdentity
from twisted_paxos.core.replica import Replica
from twisted_paxos.testing.replicas import PureCluster


class ReplicaCase(SynchronousTestCase):
    """Three nodes on the bench, with a leader; messages can be given by hand."""

    def setUp(self) -> None:
        self.cluster = PureCluster(1)
        self.cluster.start()
        self.assertTrue(self.cluster.run(5, lambda: bool(self.cluster.leaders())))
        self.cluster.run(1)
        (self.leader,) = self.cluster.leaders()
        self.follower, self.third = (uid for uid in self.cluster.voters if uid != self.leader)

    def replica(self, uid: str) -> Replica:
        """A node's replica."""
        replica = self.cluster.nodes[uid].replica
        assert replica is not None
        return replica

    def give(self, source: str | Sender, to: str, message: Any) -> Effects:
        """Deliver one message; returns what it leads to, unperformed."""
        who = source if isinstance(source, Sender) else self.replica(source).me
        return self.replica(to).receive(who, message, self.cluster.now_s)

    def higher(self, uid: str) -> ProposalID:
        """A ballot of ``uid`` above all."""
        return ProposalID(1_000, uid)


class GivingWayTests(ReplicaCase):
    """Rule 4: on any evidence of a higher ballot a leader sends nothing more under its own."""

    def assert_gives_way_to(self, message: Any) -> None:
        """After ``message`` of the follower, nothing leaves under the leader's ballot."""
        replica = self.replica(self.leader)
        replica.submit([command(1)], None)
        replica.flush(self.cluster.now_s)
        own = replica.proposer.ballot
        self.give(self.follower, self.leader, message)
        self.assertIs(replica.proposer.phase, Phase.IDLE)
        later = replica.tick(self.cluster.now_s + 0.06)
        under_own = [
            one for one in later.sends + later.replies if getattr(one.message, "ballot", None) == own
        ]
        self.assertEqual(under_own, [])

    def test_rule4Nack(self) -> None:
        """Rule 4: a Nack of its ballot."""
        own = self.replica(self.leader).proposer.ballot
        self.assert_gives_way_to(Nack(own, self.higher(self.follower)))

    def test_rule4Prepare(self) -> None:
        """Rule 4: a promise to a higher ballot, its own acceptor's."""
        self.assert_gives_way_to(Prepare(self.higher(self.follower), 1))

    def test_rule4Accept(self) -> None:
        """Rule 4: an Accept of a higher ballot."""
        self.assert_gives_way_to(Accept(self.higher(self.follower), 1, value(1), 0))

    def test_rule4Accepted(self) -> None:
        """Rule 4: somebody accepted a higher ballot, whoever proposed it."""
        self.assert_gives_way_to(Accepted(self.higher(self.third), (1,)))

    def test_rule4Commit(self) -> None:
        """Rule 4: another leader says what is chosen under a higher ballot."""
        self.assert_gives_way_to(Commit(self.higher(self.follower), 0))

    def test_rule4CatchUp(self) -> None:
        """Rule 4: a chosen slot of a higher ballot."""
        entry = SlotEntry(1, self.higher(self.third), value(1))
        self.assert_gives_way_to(Chosen(1, (entry,), 1, 1))

    def test_rule4Heartbeat(self) -> None:
        """Rule 4: another leader with a higher ballot shows itself."""
        status = Status(ballot=self.higher(self.follower), leading=True, leader_works=True, voter=True)
        self.assert_gives_way_to(Heartbeat(1, status))

    def test_rule8OldBallotsMoveNobody(self) -> None:
        """Rule 8: messages of ballots below the leader's change nothing, however late they come."""
        own = self.replica(self.leader).proposer.ballot
        old = ProposalID(0, self.follower)
        for message in (
            Nack(old, own),
            Prepare(old, 1),
            Accept(old, 1, value(1), 0),
            Accepted(old, (1,)),
            Commit(old, 1),
            Promise(old, 1, 0, 1, 0),
        ):
            self.give(self.follower, self.leader, message)
        self.assertTrue(self.replica(self.leader).proposer.leading)


class CommitTests(ReplicaCase):
    """Rule 6, by the message that says nothing else."""

    def test_rule6CommitOfTheLeaderChooses(self) -> None:
        """Rule 6: a follower that accepted at the leader's ballot learns; from another node it is nothing."""
        own = self.replica(self.leader).proposer.ballot
        follower = self.replica(self.follower)
        slot = follower.log.chosen_upto + 1
        self.give(self.leader, self.follower, Accept(own, slot, value(1), slot - 1))
        self.assertFalse(self.give(self.third, self.follower, Commit(own, slot)))
        effects = self.give(self.leader, self.follower, Commit(own, slot))
        self.assertEqual([entry.slot for entry in effects.chosen], [slot])

    def test_whatAcceptsTellIsLearntAfterTheVote(self) -> None:
        """The vote does not wait for it; where nobody waits, it is learnt when it is due, or much."""
        follower, now_s = self.replica(self.follower), self.cluster.now_s
        first = follower.log.chosen_upto + 1

        def told(slot: int, chosen_upto: int) -> Effects:
            accept = Accept(self.replica(self.leader).proposer.ballot, slot, value(slot), chosen_upto)
            effects = self.give(self.leader, self.follower, accept)
            self.assertEqual(([one.slot for one in effects.records], effects.chosen), ([slot], []))
            return follower.flush(now_s, lambda: False)

        self.assertFalse(told(first, first - 1))
        self.assertFalse(told(first + 1, first))
        self.assertLessEqual(follower.deadline_s(now_s), now_s + replica_module.LEARN_LATE_S)
        hurried = follower.flush(now_s, lambda: True)
        self.assertEqual([entry.slot for entry in hurried.chosen], [first])
        self.assertFalse(told(first + 2, first + 1))
        now_s += replica_module.LEARN_S
        self.assertEqual([entry.slot for entry in told(first + 3, first + 1).chosen], [first + 1])
        now_s, slot = self.cluster.now_s, first + 3
        while not (effects := told(slot := slot + 1, slot - 1)):
            self.assertLess(slot, first + 2 + replica_module.LEARN_SLOTS)
        self.assertEqual(len(effects.chosen), replica_module.LEARN_SLOTS)
        self.patch(replica_module, "LEARN_BYTES", 1)
        self.assertEqual([entry.slot for entry in told(slot + 1, slot).chosen], [slot])

    def test_whatIsToldNeverGoesBack(self) -> None:
        """An Accept that comes late, or of an earlier leader, does not take back what a later one told."""
        follower, own = self.replica(self.follower), self.replica(self.leader).proposer.ballot
        first = follower.log.chosen_upto + 1
        for slot, upto in (
            (first, first - 1),
            (first + 1, first - 1),
            (first + 2, first + 1),
            (first + 3, first),
        ):
            self.give(self.leader, self.follower, Accept(own, slot, value(slot), upto))
        self.give(self.third, self.follower, Accept(ProposalID(0, self.third), first, value(0), first + 9))
        self.assertEqual([one.slot for one in follower.flush(self.cluster.now_s).chosen], [first, first + 1])

    def test_commandsHurry(self) -> None:
        """A node whose own clients wait learns what is told at once."""
        follower, own = self.replica(self.follower), self.replica(self.leader).proposer.ballot
        first = follower.log.chosen_upto + 1
        follower.submit([command(1)], self)
        for slot in (first, first + 1):
            self.give(self.leader, self.follower, Accept(own, slot, value(slot), slot - 1))
        self.assertEqual(
            [one.slot for one in follower.flush(self.cluster.now_s, lambda: False).chosen], [first]
        )

    def test_heartbeatsTellHowFarANodeVoted(self) -> None:
        """Who hears no Accepted knows by heartbeats what a node's storage must hold for ever."""
        leader, third = self.replica(self.leader), self.replica(self.third)
        status = Status(voter=True, voted=ProposalID(7, self.leader), voted_upto=9)
        self.give(self.follower, self.third, Heartbeat(1, status))
        reported = third.formation._reported[self.replica(self.follower).me.incarnation]
        self.assertEqual((reported.promised, reported.upto), (ProposalID(7, self.leader), 9))
        leader.voted, leader.voted_upto = ProposalID(7, self.leader), 8
        self.assertEqual(leader.status(0.0).voted_upto, 8)


class StrangersTests(ReplicaCase):
    """Only members, in their present start, move anything."""

    def test_ballotsBelongToTheirSender(self) -> None:
        """A Prepare or Accept under another's ballot is ignored."""
        for message in (Prepare(self.higher(self.third), 1), Accept(self.higher(self.third), 1, value(1), 0)):
            self.assertFalse(self.give(self.follower, self.leader, message))
        self.assertTrue(self.replica(self.leader).proposer.leading)

    def test_strangersPrepareNothing(self) -> None:
        """A node outside the configuration, or another life of a member, gets no promise."""
        for who in (sender("X"), sender(self.follower, "another life")):
            self.assertFalse(self.give(who, self.leader, Prepare(self.higher(who.uid), 1)))

    def test_rule8OnlyTheRecordedStartIsHeard(self) -> None:
        """Rule 8: a restarted member counts once that start is recorded; an earlier one never again."""
        node = self.cluster.nodes[self.follower]
        before = self.replica(self.follower).me
        prepare = Prepare(self.higher(self.follower), 1)
        node.crash()
        node.start()
        self.assertEqual(lines(self.give(self.follower, self.leader, prepare)), [])
        self.cluster.run(1)
        self.assertEqual(
            lines(self.give(before, self.leader, prepare)), [f"to {before.uid}: Refused start 1"]
        )
        self.assertIn(f"save promise {prepare.ballot}", lines(self.give(self.follower, self.leader, prepare)))

    def test_strangersDoNotRaiseBallots(self) -> None:
        """A ballot that a stranger tells is no reason to go above it: numbers would run out."""
        status = Status(promised=ProposalID(limits.NUMBER_MAX, "Z"))
        self.give(sender("X"), self.leader, Heartbeat(1, status))
        self.assertLess(self.replica(self.leader).election.highest_seen.number, 1_000)

    def test_everyMessageHasARoute(self) -> None:
        """Whatever can be decoded can be given to a replica."""
        self.assertLessEqual(set(get_args(Message)) - set(self.replica("A")._routes), PIECES)


PIECES = {kind for kind in get_args(Message) if kind.__name__ in ("FetchPiece", "Piece")}
"""Snapshots go by another way: the node takes them from the learner's protocol."""


class CommandsTests(ReplicaCase):
    """Commands on their way to the leader."""

    def test_rule8ForwardMakesOneHop(self) -> None:
        """Rule 8: a node that does not lead takes no Forward, and passes none on."""
        effects = self.give(self.third, self.follower, Forward(1, (command(1),)))
        self.assertEqual(lines(effects), [f"to {self.third}: ForwardReply #1 not taken"])

    def test_leaderTakesAForward(self) -> None:
        """The leader takes all of it, and proposes it with what else came in the same turn."""
        effects = self.give(self.third, self.leader, Forward(1, (command(1), command(2))))
        self.assertEqual(lines(effects), [f"to {self.third}: ForwardReply #1 taken"])
        flushed = lines(self.replica(self.leader).flush(self.cluster.now_s))
        self.assertEqual(len(flushed), 1)
        self.assertIn("=v1+v2 upto", flushed[0])

    def test_tooLargeAForwardIsNotTaken(self) -> None:
        """A payload over the limit would make an Accept that no frame holds: it is refused."""
        large = Command("c", 1, 1, Raw(b'"' + b"x" * limits.PAYLOAD_MAX_BYTES + b'"'))
        effects = self.give(self.third, self.leader, Forward(1, (large,)))
        self.assertEqual(lines(effects), [f"to {self.third}: ForwardReply #1 not taken"])

    def test_rule9OneSlotForARepeatedForward(self) -> None:
        """Rule 9: a Forward that comes twice puts its command into one slot."""
        for forward_id in (1, 2):
            self.give(self.third, self.leader, Forward(forward_id, (command(1),)))
        replica = self.replica(self.leader)
        sent = [one for one in replica.flush(self.cluster.now_s).sends if isinstance(one.message, Accept)]
        self.assertEqual([len(decode_value(one.message.value).commands) for one in sent], [1])


class LeadershipTests(ReplicaCase):
    """What a leader says and does."""

    def test_heartbeatsAreAnsweredWithTheOwnBallot(self) -> None:
        """A reply carries the node's own ballot, never the highest that it has seen."""
        effects = self.give(self.leader, self.follower, Heartbeat(7, self.replica(self.leader).status(0.0)))
        reply = next(one.message for one in effects.sends if isinstance(one.message, HeartbeatReply))
        self.assertEqual((reply.round, reply.status.ballot), (7, self.replica(self.follower).proposer.ballot))
        self.assertNotEqual(reply.status.ballot, self.replica(self.leader).proposer.ballot)
        self.assertEqual(reply.status.leader, self.replica(self.leader).proposer.ballot)

    def test_rule1OwnBallotIsUnsetAfterARestart(self) -> None:
        """Rule 1: a leader that restarts leads nothing, and its next ballot is above the one it had."""
        before = self.replica(self.leader).proposer.ballot
        self.cluster.nodes[self.leader].crash()
        self.cluster.nodes[self.leader].start()
        self.assertEqual(self.replica(self.leader).proposer.ballot.number, 0)
        self.assertGreaterEqual(self.replica(self.leader).acceptor.promised, before)

    def test_latePromisesAreNoNews(self) -> None:
        """Promises that come after phase 1, once or again and again, make no messages."""
        replica = self.replica(self.leader)
        late = Promise(replica.proposer.ballot, 9, 0, 1, 0)
        self.assertEqual([lines(self.give(self.third, self.leader, late)) for _ in range(3)], [[]] * 3)

    def test_roles(self) -> None:
        """The words for people."""
        self.assertEqual(self.replica(self.leader).role(), "leader")
        self.assertEqual(self.replica(self.follower).role(), "follower")

    def test_aReplacedSetNeedsNewPromises(self) -> None:
        """Once a change of members is chosen, its leader takes over again: new voters promised nothing."""
        lost = self.cluster.nodes[self.third]
        lost.crash()
        lost.wipe()
        lost.start()
        ballots: list[ProposalID] = []
        changed: list[int] = []

        def readmitted() -> bool:
            for uid in self.cluster.leaders():
                ballots.append(self.replica(uid).proposer.ballot)
            changed.extend(slot for slot, value in self.cluster.witness.chosen.items() if is_change(value))
            return lost.replica is not None and lost.replica.acceptor.votes

        self.assertTrue(self.cluster.run(10, readmitted))
        self.cluster.run(2)
        self.assertEqual(len(set(changed)), 1)
        leader = self.replica(self.cluster.leaders()[0])
        self.assertGreater(leader.proposer.ballot, ballots[0])
        self.assertEqual(leader.membership.latest[self.third], self.replica(self.third).me.incarnation)

    def test_rule1TheSetsAreSavedBeforeTheSlotThatChangesThem(self) -> None:
        """Rule 1: a crash between the two must not leave a node that is past a change without knowing it."""
        replica = self.replica(self.follower)
        change = Replace(self.third, self.replica(self.third).me.incarnation, "new")
        learnt = SlotEntry(1, replica.election.leader, encode_change(0, change))
        effects = self.give(self.leader, self.follower, Chosen(1, (learnt,), 1, 1))
        self.assertEqual([type(one) for one in effects.records], [SaveIdentity, SaveChosen])

    def test_aLivingMemberIsNotReplaced(self) -> None:
        """While the voting incarnation is heard, nobody takes its place."""
        old = self.replica(self.third).me
        stranger = old._replace(incarnation="usurper", boot=1, boot_id="u")
        admit = Admit(old.incarnation, self.replica(self.leader).log.chosen_upto)
        self.assertEqual(lines(self.give(stranger, self.leader, admit)), [])


class FullWindowTests(ReplicaCase):
    """A leader whose own acceptor is full holds nobody up: what votes choose, it alone knows."""

    def test_recoveredSlots(self) -> None:
        """Slots that it holds at an earlier ballot are chosen at its own, and it goes on."""
        replica, node = self.replica(self.leader), self.cluster.nodes[self.leader]
        first = replica.log.chosen_upto + 1
        earlier = ProposalID(1_000, self.third)
        large = Raw(bytes(value(1)) + b" " * 500)
        for slot in (first, first + 1):
            node.receive(self.replica(self.third).me, Accept(earlier, slot, large, first - 1))
        self.cluster.run(0.05)
        self.patch(limits, "WINDOW_MAX_BYTES", 2 * len(large))
        node.perform(replica._take_over(self.cluster.now_s))
        self.assertTrue(self.cluster.run(1, lambda: replica.log.chosen_upto > first), replica.log._chosen_at)
        self.assertTrue(replica.proposer.leading)


class RoundsTests(ReplicaCase):
    """Heartbeats of several nodes cost fewer turns when they come together."""

    def test_roundsAlign(self) -> None:
        """In the second half of its round a node begins the next one with another's; in the first not."""
        replica, me = self.replica(self.follower), self.replica(self.third).me
        now_s = self.cluster.now_s
        for after_s, due in ((0.04, False), (0.06, True)):
            replica.election.start_round(now_s)
            replica.receive(me, Heartbeat(1, Status()), now_s + after_s)
            self.assertEqual(replica.election.is_round_due(now_s + after_s), due)

    def test_oneMessageAsksAndAnswers(self) -> None:
        """A node whose own round begins with another's answers by its own heartbeat, and is heard so."""
        follower, third = self.replica(self.follower), self.replica(self.third)
        now_s = self.cluster.now_s
        for replica in (follower, third):
            replica.election.start_round(now_s)
        asked = Heartbeat(third.election.round, third.status(now_s))
        now_s += 0.06
        self.assertFalse(follower.receive(third.me, asked, now_s).sends)
        (to, heartbeat) = next(
            one for one in follower.tick(now_s).sends if isinstance(one.message, Heartbeat)
        )
        self.assertEqual((to, heartbeat.answers), (OTHERS, {self.third: asked.round}))
        self.assertIn(self.follower, third.election.silent())
        third.receive(follower.me, heartbeat, now_s)
        self.assertNotIn(self.follower, third.election.silent())
        follower.election.start_round(now_s)
        self.assertEqual(follower._heartbeat(follower.election.take_owed(), now_s).answers, {})
