"""Whole nodes on the simulated network: agreement, restart, large values, reads, observers, time."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.effects import Effects
from twisted_paxos.core.messages import Accept, Accepted, Heartbeat, SlotEntry, encode_value
from twisted_paxos.errors import NodeStopped, ValueTooLarge
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.statemachine.kvcommands import (
    LeaseGrant,
    Put,
    Range,
    RangeResult,
    decode_result,
    encode_command,
)
from twisted_paxos.testing.cluster import SimulatedCluster


class ClusterCase(SynchronousTestCase):
    """A cluster that has a leader."""

    def make(self, seed: int = 1, **options: Any) -> SimulatedCluster:
        """Start it."""
        cluster = SimulatedCluster(Random(seed), **options)
        cluster.start()
        self.assertTrue(cluster.run_until(lambda: bool(cluster.leaders()), 10), "no leader")
        return cluster

    def logs(self, cluster: SimulatedCluster, uids: str) -> list[list[SlotEntry]]:
        """Their logs, once they have applied the same slots."""
        nodes = [cluster.nodes[uid] for uid in uids]
        level = lambda: len({node.node.applier.applied_upto for node in nodes if node.node}) == 1  # noqa: E731
        self.assertTrue(cluster.run_until(level, 10), "they do not become level")
        return [cluster.log_of(uid) for uid in uids]


class AgreementTests(ClusterCase):
    """Values in, the same log everywhere."""

    def test_throughAnyNode(self) -> None:
        """Each node takes proposals, and all three logs are equal."""
        cluster = self.make()
        for uid in "ABC":
            client = cluster.client(uid)
            for number in range(10):
                cluster.result(client.propose(f"{uid}{number}"), 5)
        logs = self.logs(cluster, "ABC")
        self.assertEqual(logs[0], logs[1])
        self.assertEqual(logs[0], logs[2])

    def test_leaderDies(self) -> None:
        """With the leader gone the others go on within a second, and it catches up when it is back."""
        cluster = self.make()
        client = cluster.client()
        cluster.result(client.propose("before"), 5)
        leader = cluster.leaders()[0]
        cluster.nodes[leader].crash(power_loss=True)
        started_s = cluster.clock.now_s
        cluster.result(client.propose("after"), 5)
        self.assertLess(cluster.clock.now_s - started_s, 1.0)
        cluster.nodes[leader].start()
        logs = self.logs(cluster, "ABC")
        self.assertEqual(logs[0], logs[1])
        self.assertEqual(logs[0], logs[2])

    def test_allDie(self) -> None:
        """All lose power at once: what was acknowledged is there when they are back."""
        cluster = self.make()
        client = cluster.client()
        places = [cluster.result(client.propose(f"v{number}"), 5) for number in range(30)]
        for node in cluster.nodes.values():
            node.crash(power_loss=True)
        cluster.start()
        cluster.result(client.propose("again"), 10)
        log = self.logs(cluster, "ABC")[0]
        for number, place in enumerate(places):
            self.assertIn(f'"v{number}"'.encode(), bytes(log[place.slot - 1].value))

    def test_largeValue(self) -> None:
        """1 MiB goes by the TCP link, through a follower; more is refused with a clear error."""
        cluster = self.make()
        follower = next(uid for uid in "ABC" if uid not in cluster.leaders())
        client = cluster.client(follower)
        cluster.result(client.propose(b"x" * (1 << 20)), 10)
        logs = self.logs(cluster, "ABC")
        self.assertEqual(logs[0], logs[2])
        self.assertRaises(ValueTooLarge, cluster.result, client.propose(b"x" * ((1 << 20) + 1)), 5)

    def test_smallDatagrams(self) -> None:
        """With 1,400-byte datagrams whatever is larger takes the link, and nothing else changes."""
        cluster = self.make(datagram_max_bytes=1_400)
        client = cluster.client()
        for size in (10, 1_000, 2_000, 50_000):
            cluster.result(client.propose("x" * size), 5)
        logs = self.logs(cluster, "ABC")
        self.assertEqual(logs[0], logs[1])

    def test_wrongKey(self) -> None:
        """A node with another cluster key is not heard; the others go on and count what they drop."""
        cluster = self.make(key=b"k" * 32)
        cluster.nodes["C"].crash()
        cluster.key = b"x" * 32
        cluster.nodes["C"].start()
        client = cluster.client("A", "B")
        cluster.result(client.propose("without C"), 5)
        cluster.run(1)
        node = cluster.nodes["A"].node
        assert node is not None
        self.assertGreater(node.receiver.dropped["bad_tag"], 5)
        stranger = cluster.nodes["C"].node
        assert stranger is not None
        self.assertEqual(0, stranger.applier.applied_upto)

    def test_observer(self) -> None:
        """An observer learns everything, answers reads and takes proposals, and never votes."""
        cluster = self.make(observers=1)
        client = cluster.client("D")
        cluster.result(client.propose("by way of D"), 5)
        logs = self.logs(cluster, "ABCD")
        self.assertEqual(logs[0], logs[3])
        observer = cluster.nodes["D"].node
        assert observer is not None
        self.assertEqual("observer", observer.status().role)
        cluster.nodes["A"].crash()
        cluster.nodes["B"].crash()
        waiting = client.propose("one voter and an observer are no majority")
        cluster.run(3)
        self.assertNoResult(waiting)


class EmbeddingTests(ClusterCase):
    """What a program that embeds a node calls."""

    def test_propose(self) -> None:
        """`propose` at any node opens a session by itself; results come in order, once each."""
        cluster = self.make()
        node = cluster.nodes["B"].node
        assert node is not None
        waiting = [node.propose(f"v{number}") for number in range(20)]
        results = [cluster.result(one, 5) for one in waiting]
        self.assertEqual(list(range(1, 21)), [result.sequence for result in results])
        places = [(result.slot, result.index) for result in results]
        self.assertEqual(sorted(set(places)), places)

    def test_stop(self) -> None:
        """What waits when the node stops fails, and so does what comes later."""
        cluster = self.make()
        node, service = cluster.nodes["A"].node, cluster.nodes["A"].service
        assert node is not None and service is not None
        cluster.nodes["B"].crash()
        cluster.nodes["C"].crash()
        waiting: list[Deferred[Any]] = [node.propose("x"), node.read()]
        service.stopService()
        for one in waiting:
            self.failureResultOf(one, NodeStopped)
        self.assertRaises(NodeStopped, node.propose, "late")
        cluster.run(1)

    def test_linearizableRead(self) -> None:
        """A read at any node sees what another node has answered for before."""
        cluster = self.make()
        writer = cluster.client(cluster.leaders()[0])
        for number in range(20):
            place = cluster.result(writer.propose(f"v{number}"), 5)
            for uid in "ABC":
                node = cluster.nodes[uid].node
                assert node is not None
                cluster.result(node.read(), 5)
                self.assertGreaterEqual(node.applier.applied_upto, place.slot)

    def test_readAfterReadOnASingleNode(self) -> None:
        """Where a read needs no other node, one that follows another waits for no timer."""
        cluster = self.make(size=1)
        node = cluster.nodes["A"].node
        assert node is not None
        cluster.result(node.propose("x"), 5)
        started_s = cluster.clock.now_s
        following = node.read().addCallback(lambda _: node.read()).addCallback(lambda _: node.read())
        cluster.result(following, 5)
        self.assertLess(cluster.clock.now_s - started_s, 0.001)

    def test_readWithoutAMajority(self) -> None:
        """Without a majority a read waits, and is answered once there is one."""
        cluster = self.make()
        node = cluster.nodes["A"].node
        assert node is not None
        cluster.nodes["B"].crash()
        cluster.nodes["C"].crash()
        cluster.run(1)
        waiting = node.read()
        cluster.run(3)
        self.assertNoResult(waiting)
        cluster.nodes["B"].start()
        cluster.result(waiting, 5)

    def test_isolatedLeaderConfirmsNothing(self) -> None:
        """A leader that is cut off answers no read, whatever it believes."""
        cluster = self.make()
        leader = cluster.leaders()[0]
        node = cluster.nodes[leader].node
        assert node is not None
        cluster.network.isolate(cluster.nodes[leader].host)
        waiting = node.read()
        cluster.run(0.2)
        self.assertTrue(node.replica.proposer.leading, "it has not noticed yet")
        self.assertNoResult(waiting)
        cluster.network.heal_all()
        cluster.result(waiting, 5)


class RoutineTests(ClusterCase):
    """What changes nothing ends no turn: nothing is proposed, written or armed anew for it."""

    def setUp(self) -> None:
        self.cluster = self.make()
        self.client = self.cluster.client()
        self.cluster.result(self.client.propose("x"), 5)
        self.cluster.run(2)
        self.leading = self.cluster.leaders()[0]
        self.leader = self.node(self.leading)
        self.follower = self.node(next(uid for uid in "ABC" if uid != self.leading))
        self.turns = 0
        self.ticks = 0

    def node(self, uid: str) -> PersistentPaxosNode:
        """A running node."""
        node = self.cluster.nodes[uid].node
        assert node is not None
        return node

    def watch(self, node: PersistentPaxosNode) -> None:
        """Count its turns' ends, and those at which something was due."""
        write_now, tick = node.performer.write_now, node.replica.tick

        def count_turn() -> None:
            self.turns += 1
            write_now()

        def count_tick(now_s: float) -> Effects:
            self.ticks += 1
            return tick(now_s)

        self.patch(node.performer, "write_now", count_turn)
        self.patch(node.replica, "tick", count_tick)

    def tell(self, node: PersistentPaxosNode, source: PersistentPaxosNode, message: Any) -> int:
        """``node`` hears this from ``source``; how many turns ended for it."""
        before = self.turns
        with node.turn:
            node.receive(source.replica.me, message, self.cluster.clock.now_s)
        return self.turns - before

    def heartbeats(self, node: PersistentPaxosNode) -> int:
        """How many came to ``node``, with the replies to its own."""
        return node.receiver.received["Heartbeat"] + node.receiver.received["HeartbeatReply"]

    def heartbeat(self, source: PersistentPaxosNode, **changes: Any) -> Heartbeat:
        """As ``source`` would send it, with these changes in what it says of itself."""
        status = source.replica.status(self.cluster.clock.now_s)
        return Heartbeat(7, msgspec.structs.replace(status, **changes))

    def test_voteComesFirst(self) -> None:
        """A follower gives its vote to the disk before it learns what the Accept tells, in the same turn."""
        order: list[str] = []
        write, learn = self.follower.storage.write, self.follower.replica.learner.on_chosen_upto

        def write_and_tell(*of: Any) -> Deferred[None]:
            order.append("write")
            return write(*of)

        def learn_and_tell(*of: Any) -> Effects:
            order.append("learn")
            return learn(*of)

        self.patch(self.follower.storage, "write", write_and_tell)
        self.patch(self.follower.replica.learner, "on_chosen_upto", learn_and_tell)
        self.addCleanup(self.follower.on_chosen(lambda upto: None))
        ballot, slot = self.leader.replica.proposer.ballot, self.leader.replica.log.chosen_upto + 1
        for place in (slot, slot + 1):
            accept = Accept(ballot, place, encode_value(0, ()), place - 1)
            with self.follower.turn:
                self.follower._perform(self.follower.receive(self.leader.replica.me, accept, 0.0))
            self.assertEqual(order[:1], ["write"])
            self.assertEqual(self.follower.replica.log.chosen_upto, place - 1)
            order.clear()
            self.cluster.run(0.001)
            order.clear()

    def test_whatWasToldIsKeptAtTheEnd(self) -> None:
        """A node that stops notes how far slots are chosen as it was told, though it had not learnt it."""
        ballot, slot = self.leader.replica.proposer.ballot, self.leader.replica.log.chosen_upto + 1
        now_s = self.cluster.clock.now_s
        self.cluster.network.isolate(self.cluster.nodes[self.follower.uid].host)
        for place in (slot, slot + 1):
            accept = Accept(ballot, place, encode_value(0, ()), place - 1)
            with self.follower.turn:
                self.follower._perform(self.follower.receive(self.leader.replica.me, accept, now_s))
            self.cluster.run(0.001)
        self.assertEqual(self.follower.replica.log.chosen_upto, slot - 1)
        stopping = self.follower.stopService()
        self.cluster.run(0.1)
        self.successResultOf(stopping)
        self.assertEqual(self.follower.replica.log.chosen_upto, slot)
        self.assertEqual(self.follower.storage._chosen_upto, slot)  # type: ignore[attr-defined]

    def test_idleLeaderProposesAtOnce(self) -> None:
        """With nothing under way a command waits for no other one, nor for the reactor; else it does."""
        proposer = self.leader.replica.proposer
        self.cluster.result(self.leader.propose("opens a session"), 5)
        self.assertEqual(proposer.in_flight, 0)
        self.leader.propose("first")
        self.assertEqual(proposer.in_flight, 1)
        for text in ("second", "third"):
            self.leader.propose(text)
        self.assertEqual(proposer.in_flight, 1)
        self.cluster.run(0)
        self.assertEqual(proposer.in_flight, 2, "both in one slot")

    def test_heldLeaderTakesNoTurns(self) -> None:
        """While commands are held, each of them is no turn of its own."""
        self.watch(self.leader)
        self.leader._hold(True)
        self.cluster.run(0)
        before = self.turns
        for _ in range(9):
            self.leader.propose("held")
        self.assertEqual(self.turns, before)
        self.leader._hold(False)
        self.cluster.run(1)
        self.assertFalse(self.leader.replica.requests)

    def test_whatACallbackProposesIsOfNow(self) -> None:
        """After the results are told, however long that took, the time is looked at anew."""
        flush, clock, late = self.leader.replica.flush, self.cluster.clock, []

        def flush_in_time(now_s: float, *of: Any) -> Effects:
            late.append(self.leader._reactor.seconds() - now_s)
            return flush(now_s, *of)

        def slowly(_: object) -> None:
            self.patch(self.leader._reactor, "seconds", lambda: clock.now_s + 0.05)
            self.leader.propose("next")

        self.patch(self.leader.replica, "flush", flush_in_time)
        first = self.leader.propose("first").addCallback(slowly)
        self.cluster.result(first, 5)
        self.assertLess(max(late), 0.001)

    def test_idleCluster(self) -> None:
        """In an idle cluster only what is due ends a turn: no heartbeat of another node does."""
        nodes = (self.leader, self.follower)
        for node in nodes:
            self.watch(node)
        before = sum(map(self.heartbeats, nodes))
        self.cluster.run(3)
        self.assertEqual(self.turns, self.ticks)
        self.assertGreater(sum(map(self.heartbeats, nodes)) - before, 3 * self.ticks)

    def test_armsNothing(self) -> None:
        """A heartbeat does not touch the timer."""
        self.watch(self.follower)
        timer, due_s = self.follower._timer, self.follower._timer.getTime()
        self.assertEqual(0, self.tell(self.follower, self.leader, self.heartbeat(self.leader)))
        self.assertEqual((timer, due_s), (self.follower._timer, self.follower._timer.getTime()))

    def test_voteAfterTheMajority(self) -> None:
        """A vote that comes late changes nothing; one that counts does."""
        self.watch(self.leader)
        replica = self.leader.replica
        late = Accepted(replica.proposer.ballot, (replica.log.chosen_upto,))
        self.assertEqual(0, self.tell(self.leader, self.follower, late))
        for uid in "ABC".replace(self.leading, ""):
            hosts = [self.cluster.nodes[its].host for its in (self.leading, uid)]
            self.cluster.network.cut(*hosts, both=False)
        self.follower.propose("the leader hears of it, nobody else votes for it")
        self.cluster.run(0.01)
        self.assertFalse(self.leader.replica.requests)
        counts = Accepted(replica.proposer.ballot, (replica.log.chosen_upto + 1,))
        self.assertEqual(1, self.tell(self.leader, self.follower, counts))

    def test_newsIsNoRoutine(self) -> None:
        """A heartbeat that tells of slots that are missing here: they are to be asked for in time."""
        self.watch(self.follower)
        chosen_upto = self.follower.replica.log.chosen_upto
        news = self.heartbeat(self.leader, chosen_upto=chosen_upto + 3)
        self.assertEqual(1, self.tell(self.follower, self.leader, news))

    def test_waitingCommandsAreNoRoutine(self) -> None:
        """While commands of this node wait, a heartbeat may say where they are to go."""
        self.cluster.network.isolate(self.cluster.nodes[self.follower.uid].host)
        self.follower.propose("y")
        self.cluster.run(0.01)
        self.watch(self.follower)
        self.assertEqual(1, self.tell(self.follower, self.leader, self.heartbeat(self.leader)))


class StoreTests(ClusterCase):
    """The key-value store behind the log."""

    def put(self, cluster: SimulatedCluster, uid: str, put: Put) -> None:
        """Put through a node."""
        node = cluster.nodes[uid].node
        assert node is not None
        cluster.result(node.propose(encode_command(put)), 5)

    def get(self, cluster: SimulatedCluster, uid: str, key: bytes) -> list[bytes]:
        """Read at a node."""
        node = cluster.nodes[uid].node
        assert node is not None
        found = decode_result(cluster.result(node.query(encode_command(Range(key))), 5))
        assert isinstance(found, RangeResult), found
        return [kv.value for kv in found.kvs]

    def test_putAndGet(self) -> None:
        """A put at one node is seen by a read at each other."""
        cluster = self.make()
        self.put(cluster, "A", Put(b"k", b"v"))
        for uid in "ABC":
            self.assertEqual([b"v"], self.get(cluster, uid, b"k"))

    def test_leaseRunsOutOnAnIdleCluster(self) -> None:
        """A lease ends although nobody sends anything; never early, and not while nobody leads."""
        cluster = self.make()
        node = cluster.nodes["A"].node
        assert node is not None
        cluster.result(node.propose(encode_command(LeaseGrant(5, 7))), 5)
        self.put(cluster, "A", Put(b"k", b"v", lease=7))
        cluster.run(3)
        self.assertEqual([b"v"], self.get(cluster, "B", b"k"))
        for uid in "BC":
            cluster.nodes[uid].crash()
        cluster.run(60)
        cluster.start()
        self.assertEqual([b"v"], self.get(cluster, "B", b"k"))
        cluster.run(6)
        self.assertEqual([], self.get(cluster, "B", b"k"))
