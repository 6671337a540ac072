"""The figures and the journal of whole nodes on the simulated network."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_paxos.core import limits
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import ValueTooLarge
from twisted_paxos.figures import NOTES_MAX, Journal, NodeFigures
from twisted_paxos.interfaces import IResultSink
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.testing.cluster import SimulatedCluster


class HistogramTests(SynchronousTestCase):
    """`Histogram`."""

    def test_bounds(self) -> None:
        """A duration equal to a bound belongs to its bucket; what is above all goes into the last."""
        histogram = Histogram((0.1, 1.0))
        for duration_s in (0.05, 0.1, 0.5, 2.0):
            histogram.observe(duration_s)
        read = histogram.read()
        self.assertEqual(((2, 1, 1), 4), (read.counts, read.total))
        self.assertAlmostEqual(2.65, read.sum_s)


class JournalTests(SynchronousTestCase):
    """`Journal`."""

    def test_bounded(self) -> None:
        """Only the newest are kept; numbers go on."""
        journal = Journal()
        for number in range(NOTES_MAX + 10):
            journal.add(number, "lost", f"event {number}")
        notes = journal.read()
        self.assertEqual(NOTES_MAX, len(notes))
        self.assertEqual((11, NOTES_MAX + 10), (notes[0].number, notes[-1].number))


@implementer(IResultSink)
class Sink:
    """Wants no results."""

    def applied(self, results: Sequence[Result]) -> None:
        """See `IResultSink`."""


class NodeFiguresTests(SynchronousTestCase):
    """What a node says of itself while things happen."""

    def setUp(self) -> None:
        """A cluster that has a leader."""
        self.cluster = SimulatedCluster(Random(1))
        self.cluster.start()
        self.assertTrue(self.cluster.run_until(lambda: bool(self.cluster.leaders()), 10))
        self.cluster.clock.advance(1)
        self.leader = self.cluster.leaders()[0]
        self.followers = [uid for uid in "ABC" if uid != self.leader]

    def figures(self, uid: str) -> NodeFigures:
        """Of one node."""
        return self.node(uid).figures()

    def kinds(self, uid: str) -> list[str]:
        """What its journal has, by kind."""
        return [note.kind for note in self.figures(uid).notes]

    def test_counts(self) -> None:
        """Commands, slots, syncs, commits, messages and round trips are counted."""
        client = self.cluster.client(self.leader)
        for number in range(5):
            self.cluster.result(client.propose(f"v{number}"), 5)
        found = self.figures(self.leader)
        self.assertEqual(5, found.commands)
        self.assertGreaterEqual(found.commits.total, 5)
        self.assertGreater(found.syncs.total, 0)
        self.assertEqual(found.status.applied, found.status.chosen_upto)
        self.assertGreater(found.applies.total, 0)
        self.assertGreater(found.sent["Accept"], 0)
        self.assertGreater(found.received["HeartbeatReply"], 0)
        self.assertGreater(min(found.sent_bytes, found.received_bytes), 1_000)
        self.assertEqual((0, 0, 0), (found.pending, found.refused, found.failed))
        self.assertEqual(1, found.sessions)
        for peer in found.peers:
            self.assertTrue(peer.reached and peer.heard and peer.voter)
            self.assertGreater(peer.round_trips.total, 3)

    def node(self, uid: str) -> PersistentPaxosNode:
        """One that runs."""
        node = self.cluster.nodes[uid].node
        assert node is not None
        return node

    def test_refused_and_failed(self) -> None:
        """A command that is too large counts as refused, one of an unknown session as failed."""
        node = self.node(self.leader)
        large = Raw(b'"' + b"x" * limits.PAYLOAD_MAX_BYTES + b'"')
        self.assertRaises(ValueTooLarge, node.submit, [Command("nobody", 1, 1, large)], Sink())
        node.submit([Command("nobody", 2, 1, Raw(b'"small"'))], Sink())
        self.cluster.clock.advance(2)
        self.assertEqual((1, 1), (self.figures(self.leader).refused, self.figures(self.leader).failed))
        self.assertEqual(
            (0, 1), (self.figures(self.followers[0]).refused, self.figures(self.followers[0]).failed)
        )

    def test_snapshot(self) -> None:
        """A snapshot counts, has its duration, slot and size, and is noted."""
        self.cluster.result(self.cluster.client(self.leader).propose("v"), 5)
        self.node(self.leader).snapshot_maker.make()
        self.assertTrue(self.figures(self.leader).snapshots.running)
        self.cluster.clock.advance(2)
        found = self.figures(self.leader).snapshots
        self.assertEqual((1, 1, False), (found.made, found.durations.total, found.running))
        self.assertGreater(min(found.slot, found.size_bytes), 0)
        self.assertEqual("snapshot", self.kinds(self.leader)[-1])

    def test_full_disk(self) -> None:
        """A disk that is full, and has room again, is noted once each."""
        performer = self.node(self.followers[0]).performer
        for full, kind in ((True, "disk_full"), (False, "disk_room")):
            performer.full = full
            self.cluster.clock.advance(0.3)
            self.assertEqual(1, self.kinds(self.followers[0]).count(kind))

    def test_connectivity(self) -> None:
        """A node that is cut off is neither heard nor reached, and the journal says so; and back."""
        lost = self.followers[0]
        self.cluster.nodes[lost].crash(power_loss=True)
        self.cluster.clock.advance(1)
        peers = {peer.uid: peer for peer in self.figures(self.leader).peers}
        self.assertEqual((False, False), (peers[lost].heard, peers[lost].reached))
        self.assertTrue(peers[self.followers[1]].reached)
        self.assertEqual("lost", self.kinds(self.leader)[-1])
        self.cluster.nodes[lost].start()
        self.cluster.clock.advance(2)
        self.assertEqual("reached", self.kinds(self.leader)[-1])

    def test_change_of_leader(self) -> None:
        """With the leader gone the others count a change, and note who leads now."""
        before = self.figures(self.followers[0]).leader_changes
        self.cluster.nodes[self.leader].crash(power_loss=True)
        self.assertTrue(self.cluster.run_until(lambda: self.cluster.leaders() != [], 10))
        self.cluster.clock.advance(1)
        new = self.cluster.leaders()[0]
        for uid in self.followers:
            found = self.figures(uid)
            self.assertEqual(before + 1, found.leader_changes)
            self.assertIn(f"{new} leads", [note for note in found.notes if note.kind == "leader"][-1].text)
        self.assertGreater(self.figures(new).take_overs, 0)

    def test_nothing_of_clients(self) -> None:
        """No value of a client is in the figures."""
        client = self.cluster.client(self.leader)
        self.cluster.result(client.propose("a-secret-value"), 5)
        self.assertNotIn("a-secret", repr(self.figures(self.leader)))
