"""Bugs that the simulator found, each in its smallest form; `docs/testing.md` lists them with their seeds."""

from __future__ import annotations

from collections import deque
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.core.test_replica import ReplicaCase
from tests.core.transcript import entry, sender, steady, value
from tests.protocols.test_messenger import HOSTS, PORT, MessengerCase, large
from tests.storage.node import Node
from tests.test_node import ClusterCase
from twisted_paxos.core import limits
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.effects import EVERYONE, Effects
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Chosen,
    Commit,
    Entry,
    Promise,
    Sender,
    SlotEntry,
)
from twisted_paxos.core.records import Identity, Recovered
from twisted_paxos.core.replica import Replica, ReplicaSettings
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.testing.storage import SimulatedDisk


class FullPipelineTests(ClusterCase):
    """Seed 0: a busy loop."""

    def test_no_other_turn(self) -> None:
        """A leader with more commands than its pipeline takes asks for no turn: a vote gives it one."""
        cluster = self.make()
        node = cluster.nodes[cluster.leaders()[0]].node
        assert node is not None
        first = node.propose(b"first")
        self.assertTrue(cluster.run_until(lambda: bool(first.called), 5))
        for number in range(limits.PIPELINE_SLOTS + 2):
            node.propose(str(number).encode()).addErrback(lambda _: None)
            with node.turn:
                node.turn.plan()
        self.assertEqual(node.replica.proposer.in_flight, limits.PIPELINE_SLOTS)
        with mock.patch.object(node._reactor, "callLater") as call_later, node.turn:
            node.turn.plan()
        self.assertNotIn(0, [call.args[0] for call in call_later.call_args_list])


class FullWindowTests(ReplicaCase):
    """Seed 154: a leader that could not fetch what it had proposed itself."""

    def test_own_values_are_kept(self) -> None:
        """A leader whose own acceptor is full stores what it proposes, and moves on with the others."""
        leader = self.replica(self.leader)
        first, second = (leader.log.chosen_upto + number for number in (1, 2))
        own = leader.proposer.ballot
        with mock.patch.object(limits, "WINDOW_MAX_BYTES", 1):
            accepts = [Accept(own, slot, value(slot), first - 1) for slot in (first, second)]
            taken = [self.give(self.leader, self.leader, accept).records for accept in accepts]
        self.assertEqual([record.slot for records in taken for record in records], [first, second])
        for uid in (self.follower, self.third):
            effects = self.give(uid, self.leader, Accepted(own, (first, second)))
        self.assertEqual([entry.slot for entry in effects.chosen], [first, second])
        self.assertEqual(effects.records, [])


class ChosenWithAnOlderVoteTests(SynchronousTestCase):
    """Found by review: a slot known as chosen, with an older vote, that a leader's own Accept completes."""

    def written(self, node: Replica, effects: Effects) -> None:
        """What a node says to itself arrives, and nothing else."""
        todo = deque([effects])
        while todo:
            asked = todo.popleft()
            for send in (*asked.replies, *asked.sends):
                if send.to == EVERYONE or node.settings.uid in send.to:
                    todo.append(node.receive(node.me, send.message, 0.0))

    def test_one_lost_datagram(self) -> None:
        """The leader moves over the slot with its own vote: nobody else's must come for that."""
        members = {uid: uid.lower() for uid in "ABC"}
        boots = {"a": (1, "a1"), "b": (1, "b1")}
        identity = Identity("C", "c", "x", members=members, formed=True, sets=((1, members),), boots=boots)
        old = {2: Entry(ProposalID(1, "B"), value(2))}
        recovered = Recovered(identity.started("c1"), promised=ProposalID(1, "B"), entries=old)
        node = Replica(ReplicaSettings("C", ("A", "B", "C")), recovered, lambda: 0.5, 0.0)
        leader, third = Sender("A", "a", 1, "a1"), Sender("B", "b", 1, "b1")
        at = ProposalID(2, "A")
        for slot in (2, 1):  # Slot 2 is marked over a gap, and the vote stays; then the gap closes.
            node.receive(leader, Commit(at, slot, (SlotEntry(slot, at, value(slot)),)), 0.0)
            node.flush(0.0)
        self.assertEqual((node.log.chosen_upto, node.log.is_chosen(2)), (1, True))
        node.election.saw(at)
        self.written(node, node._take_over(0.0))
        promise = Promise(node.proposer.ballot, 1, 0, 1, 1, (SlotEntry(2, at, value(2)),))
        self.written(node, node.receive(third, promise, 0.0))
        self.assertTrue(node.proposer.leading)
        self.assertEqual((node.log.chosen_upto, node.proposer.highest_proposed), (2, 2))


class FreshNodeTests(SynchronousTestCase):
    """Seed 26: a change of members that a node missed."""

    def test_learns_nothing_before_it_knows_the_founders(self) -> None:
        """What is chosen may change the members: a node that cannot tell learns nothing yet."""
        recovered = Recovered(identity=Identity("A", "a1", "x").started("word"))
        replica = Replica(ReplicaSettings("A", tuple("ABC")), recovered, steady, 0.0)
        message = Chosen(1, (entry(1, "1.B", 1),), 1, 1)
        self.assertFalse(replica.receive(sender("B"), message, 1.0))
        self.assertEqual((0, {}), (replica.log.chosen_upto, replica.log.entries))


class UnreadableTests(SynchronousTestCase):
    """Seed 4: a read error that cost a directory."""

    def test_no_damage(self) -> None:
        """Neither copy of the identity can be read at the start: the node stops, and nothing is lost."""
        disk = SimulatedDisk()
        first = Node(disk)
        incarnation = first.start().identity.incarnation
        first.close()
        disk.fail_read = True
        error = self.assertRaises(StorageError, Node(disk).start)
        self.assertNotIsInstance(error, StorageDamaged)
        disk.fail_read = False
        self.assertEqual(incarnation, Node(disk).start().identity.incarnation)


class DeadLinkTests(MessengerCase):
    """Seed 39: a link to a peer that had lost power."""

    def test_new_start_new_link(self) -> None:
        """A peer that speaks as another start than before gets a new link: the old one may be dead."""
        address = (HOSTS["B"], PORT)
        self.a.messenger.heard(sender("B"), address)
        self.send(("B",), large(5_000))
        old = self.a.messenger._peers["B"].link
        self.network.process(HOSTS["B"]).crash(power_loss=True)  # type: ignore[union-attr]
        self.a.messenger.heard(sender("B", boot=2), address)
        self.a.messenger.send(("B",), large(6_000))
        self.assertIsNot(old, self.a.messenger._peers["B"].link)


class SnapshotNotNeededTests(ClusterCase):
    """Seed 17: a fetched snapshot that was not needed any more."""

    def test_log_start_follows_storage(self) -> None:
        """Storage begins above the snapshot: the node does not answer for slots that it let go."""
        cluster = self.make()
        client = cluster.client()
        for number in range(5):
            cluster.result(client.propose(f"v{number}"), 5)
        node = cluster.nodes["A"].node
        assert node is not None
        cluster.run(1)
        writer = node.storage.begin_snapshot(3)
        cluster.result(writer.finish(), 5)
        node.storage._backend._log.begin_at(4)  # type: ignore[attr-defined]
        node._snapshot_stored(3)
        cluster.run(0.1)
        self.assertEqual(4, node.replica.log.log_start)
