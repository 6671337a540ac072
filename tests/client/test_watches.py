"""Watches of the client over failures, against nodes in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.client.support import ClientCase
from twisted_paxos.client import watches as module
from twisted_paxos.client.watches import Watch, Watches
from twisted_paxos.errors import Overloaded, Unavailable, WatchCanceled
from twisted_paxos.protocols import watchport
from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import Compact, Event, KeyValue, Put, Txn, encode_command
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest


class Consumer:
    """Takes what a watch gives, until it ends.

    Attributes:
        batches: what it gave.
        ended: fires when the iteration ends.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.batches: list[WatchBatch] = []
        self.ended = Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        async for batch in self.watch:
            self.batches.append(batch)

    @property
    def revisions(self) -> list[int]:
        """The revision of each event."""
        return [event.kv.mod_revision for batch in self.batches for event in batch.events]


class WatchCase(ClientCase):
    """A client that watches, and a store that changes."""

    def setUp(self) -> None:
        """Connect it."""
        super().setUp()
        self.client = self.connect(timeout_s=5.0)
        self.kv = self.client.kv

    def put(self, *keys: str) -> None:
        """A put for each key, without the client."""
        for key in keys:
            self.nodes[0].machine.apply(encode_command(Put(key.encode(), b"v")), Context(1, 0, 0))

    def take_snapshot(self) -> None:
        """The node comes to be at revision 9, compacted at 6, by a snapshot."""
        other = KeyValueStore()
        for number in range(8):
            other.apply(encode_command(Put(b"%d" % number, b"v")), Context(1, 0, 0))
        other.apply(encode_command(Compact(6)), Context(1, 0, 0))
        for _ in self.nodes[0].machine.restore(iter(list(other.snapshot()))):
            pass
        self.network.run(0.1)

    def consume(self, **options: Any) -> Consumer:
        """Watch everything."""
        consumer = Consumer(self.kv.watch("", prefix=True, **options))
        self.addCleanup(consumer.watch.close)
        self.network.run(0.05)
        return consumer

    def watch_link(self) -> Any:
        """The connection that carries the watches."""
        return [link for link in self.network.links if link.alive][-1]


class WatchTests(WatchCase):
    """Every event once, in order."""

    def test_events(self) -> None:
        """Changes after the start, a batch for each turn."""
        self.put("before")
        consumer = self.consume()
        self.put("a", "b")
        self.network.run(0.01)
        self.assertEqual([3, 4], consumer.revisions)
        self.assertEqual(5, consumer.watch.next_revision)

    def test_from_a_revision(self) -> None:
        """A watch from the past, with the versions before, and without puts."""
        self.finish(self.kv.put("k", "1"))
        self.finish(self.kv.put("k", "2"))
        self.finish(self.kv.delete("k"))
        consumer = self.consume(start_revision=3, prev_kv=True)
        events = [event for batch in consumer.batches for event in batch.events]
        self.assertEqual([("PUT", b"1"), ("DELETE", b"2")], [(e.type, e.prev_kv.value) for e in events])
        deletions = self.consume(start_revision=1, noput=True)
        self.assertEqual([4], deletions.revisions)

    def test_close(self) -> None:
        """A closed watch ends its iteration, and the node's watcher is gone."""
        consumer = self.consume()
        self.assertEqual(1, len(self.nodes[0].watches))
        consumer.watch.close()
        self.network.run(0.01)
        self.successResultOf(consumer.ended)
        self.assertEqual(0, len(self.nodes[0].watches))

    def test_client_closed(self) -> None:
        """Closing the client ends its watches; a new one says why it cannot be."""
        consumer = self.consume()
        self.client.close()
        self.successResultOf(consumer.ended)
        late = Consumer(self.kv.watch("k"))
        self.failureResultOf(late.ended, Unavailable)

    def test_connection_is_shared_and_let_go(self) -> None:
        """All watches share one connection, which is closed some time after the last of them."""
        consumers = [self.consume() for _ in range(3)]
        self.assertEqual(2, sum(link.alive for link in self.network.links))
        for consumer in consumers:
            consumer.watch.close()
        self.network.run(module.IDLE_S + 1, step_s=0.1)
        self.assertEqual(1, sum(link.alive for link in self.network.links))

    def test_progress(self) -> None:
        """With progress_notify, batches without events tell how far the watch is."""
        consumer = self.consume(progress_notify=True)
        self.put("a")
        self.network.run(watchport.PROGRESS_S + 0.1)
        self.assertEqual([(2, 1), (2, 0)], [(b.revision, len(b.events)) for b in consumer.batches])

    def test_compacted(self) -> None:
        """A watch from a compacted revision ends, with where history begins."""
        self.put("a", "b", "c")
        self.finish(self.kv.compact(4))
        consumer = self.consume(start_revision=2)
        error = self.failureResultOf(consumer.ended, WatchCanceled).value
        self.assertEqual(4, error.compact_revision)
        self.assertIn("compacted", str(error))

    def test_too_many(self) -> None:
        """A node with as many watches as it may have says so; the iteration raises it."""
        self.patch(watchport, "WATCHES_MAX", 1)
        self.consume()
        consumer = self.consume()
        self.failureResultOf(consumer.ended, Overloaded)

    def test_empty_range(self) -> None:
        """A range that can have no key is an error, not a silence."""
        consumer = Consumer(self.kv.watch("b", range_end="a"))
        self.network.run(0.05)
        self.failureResultOf(consumer.ended, WatchCanceled)


class ResumeTests(WatchCase):
    """Over the loss of nodes."""

    def test_node_dies(self) -> None:
        """Changes while there is no connection come once it is there again, each once."""
        consumer = self.consume()
        self.put("a")
        self.network.run(0.01)
        self.network.kill(5100)
        self.put("b", "c")
        self.network.run(0.5)
        self.put("d")
        self.network.run(0.1)
        self.assertEqual([2, 3, 4, 5], consumer.revisions)

    def test_quiet_watch_resumes_where_progress_was(self) -> None:
        """A watch without events goes on from the last progress: history may be compacted by then."""
        consumer = Consumer(self.kv.watch("rare"))
        self.network.run(0.05)
        self.put("a", "b", "c")
        self.network.run(watchport.PROGRESS_S + 0.1)
        self.finish(self.kv.compact(4))
        self.network.cut(5100)
        self.network.run(0.5)
        self.put("rare")
        self.network.run(0.1)
        self.assertEqual([5], consumer.revisions)
        consumer.watch.close()

    def test_silence(self) -> None:
        """A connection on which nothing comes is left for the next node."""
        consumer = self.consume()
        self.watch_link().alive = False  # Nothing moves, and nobody is told.
        self.put("a")
        self.network.run(module.SILENCE_S - 0.5)
        self.assertEqual([], consumer.revisions)
        self.network.run(1.5)
        self.assertEqual([2], consumer.revisions)

    def test_node_that_serves_nobody(self) -> None:
        """A node that ends watches because it has no leader is left for another."""
        consumer = self.consume()
        self.nodes[0].leader_works = False
        self.network.run(watchport.UNSERVED_MAX_S + 2.5)
        self.put("a")
        self.network.run(0.1)
        self.assertEqual([2], consumer.revisions)
        self.assertNoResult(consumer.ended)

    def test_all_nodes_gone(self) -> None:
        """Without any node the watch waits, and goes on when one is back."""
        consumer = self.consume()
        ports = [self.network.kill(number) for number in (5100, 5101, 5102)]
        self.network.run(20.0, step_s=0.05)
        self.put("a")
        self.network.ports[5101] = ports[1]
        self.network.run(3.0)
        self.assertEqual([2], consumer.revisions)

    def test_many_watches(self) -> None:
        """All watches of a lost connection go on."""
        consumers = [Consumer(self.kv.watch(f"k{number}")) for number in range(50)]
        self.network.run(0.05)
        self.network.kill(5100)
        self.put(*(f"k{number}" for number in range(50)))
        self.network.run(0.5)
        self.assertEqual([[number + 2] for number in range(50)], [c.revisions for c in consumers])
        for consumer in consumers:
            consumer.watch.close()

    def test_not_before_what_the_client_has_seen(self) -> None:
        """A watch from the present on, at a node that lags, begins behind what this client has seen."""
        self.kv.revision = 3
        consumer = self.consume()
        self.put("a", "b", "c")
        self.network.run(0.05)
        self.assertEqual([4], consumer.revisions)

    def test_future_revision(self) -> None:
        """A watch from a revision that is not there yet waits for it, also over a change of nodes."""
        consumer = self.consume(start_revision=4)
        self.put("a")
        self.network.run(watchport.PROGRESS_S + 0.1)
        self.network.kill(5100)
        self.network.run(0.5)
        self.put("b", "c", "d")
        self.network.run(0.1)
        self.assertEqual([4, 5], consumer.revisions)

    def test_node_behind_the_client_takes_a_snapshot(self) -> None:
        """What a node missed, and cannot tell any more, does not end a watch that does not want it."""
        self.kv.revision = 8
        consumer = self.consume()
        self.take_snapshot()
        self.assertNoResult(consumer.ended)
        self.put("new")
        self.network.run(0.1)
        self.assertEqual([9, 10], consumer.revisions)

    def test_node_lacks_history(self) -> None:
        """A watch that does want it ends, and says where history begins."""
        consumer = self.consume(start_revision=3)
        self.take_snapshot()
        self.assertEqual(6, self.failureResultOf(consumer.ended, WatchCanceled).value.compact_revision)


class SlowConsumerTests(WatchCase):
    """A consumer that does not take what comes."""

    def test_rests(self) -> None:
        """Its watch stops at the node, others go on, and nothing is lost in the end."""
        self.patch(module, "BUFFER_MAX_BATCHES", 10)
        slow = self.kv.watch("", prefix=True)
        self.addCleanup(slow.close)
        quick = self.consume()
        for number in range(40):
            self.put(f"k{number}")
            self.network.run(0.01)
        self.assertTrue(slow.resting)
        self.assertEqual(1, len(self.nodes[0].watches))
        self.assertEqual(40, len(quick.revisions))
        consumer = Consumer(slow)
        self.network.run(1.0)
        self.assertEqual(quick.revisions, consumer.revisions)

    def test_catches_up_without_a_node(self) -> None:
        """One whose consumer catches up while there is no connection goes on with the next one."""
        self.patch(module, "BUFFER_MAX_BATCHES", 10)
        slow = self.kv.watch("", prefix=True)
        self.addCleanup(slow.close)
        quick = self.consume()
        for number in range(40):
            self.put(f"k{number}")
            self.network.run(0.01)
        self.assertTrue(slow.resting)
        self.network.kill(5100)
        consumer = Consumer(slow)
        self.assertLess(len(consumer.revisions), 40)
        self.network.run(1.0)
        self.assertEqual(quick.revisions, consumer.revisions)


class UnitTests(WatchCase):
    """Single steps that a conversation hardly shows."""

    def setUp(self) -> None:
        """A watch that is at no node."""
        super().setUp()
        self.watches = Watches(self.reactor, list, None)  # type: ignore[arg-type]
        self.watch = Watch(self.watches, WatchRequest(b"k"), 0)

    def batch(self, *revisions: int) -> WatchBatch:
        """A batch with an event of each revision."""
        events = tuple(Event(KeyValue(b"k", 1, revision, revision)) for revision in revisions)
        return WatchBatch(9, revisions[-1], events)

    def given(self) -> list[list[int]]:
        """The revisions of the batches that wait."""
        return [[event.kv.mod_revision for event in batch.events] for batch in self.watch._batches]

    def test_progress_before_it_has_started(self) -> None:
        """Progress that a node tells before it has the watch is not the watch's."""
        self.watch.next_revision = 5
        self.watch.progress(9)
        self.assertEqual(5, self.watch.next_revision)
        self.watch.started(9)
        self.watch.progress(9)
        self.assertEqual(10, self.watch.next_revision)

    def test_half_a_revision_is_not_given(self) -> None:
        """The first part of a large revision waits for the last; if the connection ends, it comes anew."""
        self.watch.started(1)
        self.watch.deliver(self.batch(2), more=True)
        self.assertEqual([], self.given())
        self.watch.detached()
        self.watch.started(4)
        self.watch.deliver(self.batch(2), more=True)
        self.watch.deliver(self.batch(2), more=False)
        self.assertEqual([[2, 2]], self.given())

    def test_nothing_twice(self) -> None:
        """What was given already is left out, should it come again."""
        self.watch.started(1)
        self.watch.deliver(self.batch(2, 3), more=False)
        self.watch.deliver(self.batch(3), more=False)
        self.watch.deliver(self.batch(3, 4), more=False)
        self.assertEqual([[2, 3], [4]], self.given())

    def test_parts_and_progress(self) -> None:
        """Progress in the middle of a revision does not skip the rest of it."""
        self.watch.started(1)
        self.watch.deliver(self.batch(2), more=True)
        self.watch.progress(2)
        self.watch.deliver(self.batch(2), more=False)
        self.assertEqual([[2, 2]], self.given())

    def test_large_revision(self) -> None:
        """A transaction larger than a frame comes as one batch."""
        self.patch(watchport, "FRAGMENT_BYTES", 2_000)
        consumer = self.consume()
        txn = Txn(success=tuple(Put(b"k%d" % number, b"x" * 900) for number in range(20)))
        self.nodes[0].machine.apply(encode_command(txn), Context(1, 0, 0))
        self.network.run(0.1)
        self.assertEqual([20], [len(batch.events) for batch in consumer.batches])
