"""An error that nobody foresaw, wherever in a node it comes up: the node stops, and says nothing more."""

from __future__ import annotations

from typing import Any

from tests.test_node import ClusterCase
from twisted_paxos.testing.cluster import SimulatedNode


class Odd(Exception):
    """What nobody foresaw."""


class UnexpectedErrorTests(ClusterCase):
    """One part of a running node raises."""

    def setUp(self) -> None:
        self.cluster = self.make()
        self.client = self.cluster.client(self.cluster.leaders()[0])
        for number in range(20):
            self.cluster.result(self.client.propose(f"v{number}"), 5)
        self.cluster.run(0.5)
        self.stops: list[str] = []
        self.failed = False
        self.said_after: list[bytes] = []
        voters = [node for node in self.cluster.nodes.values() if node.uid not in self.cluster.leaders()]
        # The other follower may be asked for no votes at present.
        self.take(max(voters, key=lambda node: self.node_of(node).performer.voted_upto))

    def take(self, victim: SimulatedNode) -> None:
        """From now on it is about this node: hear what it says once it has failed."""
        self.victim = victim
        self.node = self.node_of(victim)
        self.patch(self.node, "_stop", self.stops.append)
        self.cluster.network.trace = self.heard

    def node_of(self, its: SimulatedNode) -> Any:
        """The node in the process, which runs."""
        assert its.node is not None
        return its.node

    def heard(self, now_s: float, source: str, destination: str, data: bytes) -> None:
        """A datagram leaves."""
        if self.failed and source == self.victim.host:
            self.said_after.append(data)

    def break_(self, part: Any, name: str) -> None:
        """From now on this method raises."""

        def odd(*_: Any, **__: Any) -> Any:
            self.failed = True
            raise Odd("one")

        self.patch(part, name, odd)

    def hold_a_vote(self) -> None:
        """A slow disk: a write is under way, and what reports it is held."""
        assert self.victim.executor is not None
        self.victim.executor.delay_s = 0.1
        self.client.propose("held")
        performer = self.node.performer
        self.assertTrue(self.cluster.run_until(lambda: performer._writing is not None, 5))

    def check(self) -> None:
        """It stops once, with one clear line; no timer is left; nothing leaves any more."""
        self.cluster.run_until(lambda: bool(self.stops), 3)
        self.assertFalse(self.node._timer.active())
        self.client.propose("after it")
        self.cluster.run(2)
        self.assertEqual([f"node {self.victim.uid} stops: unexpected Odd('one')"], self.stops)
        self.assertFalse(self.node._timer.active())
        self.assertEqual([], self.said_after)
        self.assertEqual(1, len(self.flushLoggedErrors(Odd)))

    def test_sending(self) -> None:
        """A message that cannot be encoded: the vote that is held meanwhile is not sent either."""
        self.hold_a_vote()
        self.break_(self.node.messenger, "send")
        self.check()

    def test_endOfATurn(self) -> None:
        """What is due at the end of a turn."""
        self.hold_a_vote()
        self.break_(self.node._measures, "look")
        self.check()

    def test_afterATurn(self) -> None:
        """What a turn leads to when it is settled: without its timer the node would wait for ever."""
        self.hold_a_vote()
        self.break_(self.node.replica, "deadline_s")
        with self.node.turn:
            self.node.turn.plan()
        self.assertEqual(1, len(self.stops))
        self.check()

    def test_timer(self) -> None:
        """The timer itself, at a node that hears nobody."""
        self.cluster.network.isolate(self.victim.host)
        self.break_(self.node.replica, "deadline_s")
        self.check()

    def test_givingToStorage(self) -> None:
        """Storage that takes no records: no vote for them leaves."""
        self.break_(self.node.storage, "write")
        self.client.propose("never stored")
        self.check()

    def test_givingToStorageAgain(self) -> None:
        """The same when a write is tried again that found no room."""
        disk = self.victim.disk
        disk.capacity_bytes = disk.used_bytes
        self.client.propose(b"x" * (1 << 17))
        self.assertTrue(self.cluster.run_until(lambda: bool(self.node.performer.full), 5))
        self.break_(self.node.storage, "write")
        self.check()

    def test_preparingAVote(self) -> None:
        """A vote that cannot be encoded for the disk's thread."""
        self.break_(self.node.messenger, "prepare")
        self.client.propose("never voted for")
        self.check()

    def test_endOfAWrite(self) -> None:
        """A write that ended, and what is to be noted of it fails: what it held is not sent."""
        self.take(self.cluster.nodes[self.cluster.leaders()[0]])
        self.client.propose("noted by nobody")
        self.break_(self.node.storage, "note_chosen")
        self.check()

    def test_applying(self) -> None:
        """A state machine that fails at a command."""
        self.break_(self.node.machine, "advance")
        self.client.propose("not applied")
        self.check()
