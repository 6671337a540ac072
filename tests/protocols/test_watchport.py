"""Watches of clients, frame by frame."""

from __future__ import annotations

from typing import Any

from tests.protocols.test_clientport import ClientPortCase
from twisted_paxos.protocols import watchport
from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.kvcommands import DeleteRange, KvCommand, Put, Txn, encode_command
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest
from twisted_paxos.wire.client import (
    Failure,
    Response,
    StopWatch,
    Watch,
    WatchEvents,
    WatchProgress,
    WatchStarted,
)

ALL = WatchRequest(b"\0", b"\0")


class WatchCase(ClientPortCase):
    """A port, a client, and a store that changes."""

    def do(self, *done: KvCommand) -> None:
        """Change the store; each command is one revision."""
        for command in done:
            self.node.machine.apply(encode_command(command), Context(1, 0, 0))

    def put(self, *keys: str) -> None:
        """A put for each key."""
        self.do(*(Put(key.encode(), b"v") for key in keys))

    def watch(self, request_id: int, request: WatchRequest = ALL) -> list[Response]:
        """Start a watch; what follows at once."""
        self.say(Watch(request_id, request))
        return self.answers()

    def events(self) -> list[tuple[int, list[bytes]]]:
        """The keys of each batch that was sent."""
        found = [frame for frame in self.answers() if isinstance(frame, WatchEvents)]
        return [(frame.request_id, [event.kv.key for event in frame.batch.events]) for frame in found]


class WatchTests(WatchCase):
    """From the start to the end of a watch."""

    def test_started(self) -> None:
        """The answer to a watch tells the store's revision at this node; events follow."""
        self.put("a")
        self.assertEqual([WatchStarted(1, 2)], self.watch(1))
        self.put("b")
        self.assertEqual([(1, [b"b"])], self.events())

    def test_from_a_revision(self) -> None:
        """A watch from the past begins there."""
        self.put("a", "b", "c")
        past = WatchRequest(b"\0", b"\0", start_revision=3)
        started, *frames = self.watch(1, past)
        self.assertEqual(WatchStarted(1, 4), started)
        keys = [event.kv.key for frame in frames for event in frame.batch.events]  # type: ignore[union-attr]
        self.assertEqual([b"b", b"c"], keys)

    def test_stop(self) -> None:
        """After StopWatch nothing follows, and the hub has no watcher."""
        self.watch(1)
        self.put("a")
        self.say(StopWatch(1))
        self.assertEqual([], self.events())
        self.assertEqual(0, len(self.node.watches))
        self.say(StopWatch(1), StopWatch(99))
        self.assertFalse(self.transport.disconnecting)

    def test_connection_lost(self) -> None:
        """A lost connection cancels its watches and leaves no timer behind."""
        self.watch(1)
        self.watch(2)
        self.put("a")
        self.protocol.connectionLost()
        self.assertEqual(0, len(self.node.watches))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_compacted(self) -> None:
        """A start that is compacted is answered by a cancellation that says where history begins."""
        self.put("a", "b", "c")
        self.node.machine._mvcc.compact(4)
        _, frame = self.watch(1, WatchRequest(b"\0", b"\0", start_revision=2))
        assert isinstance(frame, WatchEvents)
        self.assertTrue(frame.batch.canceled)
        self.assertEqual(4, frame.batch.compact_revision)
        self.assertEqual([WatchStarted(1, 4)], self.watch(1), "the number can be used again")

    def test_number_in_use(self) -> None:
        """Two watches have two numbers."""
        self.watch(1)
        (answer,) = self.watch(1)
        assert isinstance(answer, Failure)
        self.assertEqual((1, "bad_request"), (answer.request_id, answer.code))

    def test_limit(self) -> None:
        """Beyond the limit of a connection a watch is overloaded, and counted."""
        self.patch(watchport, "WATCHES_MAX", 1)
        self.watch(1)
        (answer,) = self.watch(2)
        assert isinstance(answer, Failure)
        self.assertEqual((2, "overloaded"), (answer.request_id, answer.code))
        self.assertEqual({"watches_max": 1}, self.port.dropped)

    def test_other_state_machine(self) -> None:
        """A node whose state machine has no watches says so."""
        self.patch(type(self.node), "watches", None)
        (answer,) = self.watch(1)
        assert isinstance(answer, Failure)
        self.assertEqual("bad_request", answer.code)


class FlowTests(WatchCase):
    """No faster than the client reads, and in turns."""

    def test_paused(self) -> None:
        """A client that does not read gets nothing, then everything, in order."""
        self.watch(1)
        self.protocol.pauseProducing()
        self.put("a", "b")
        self.assertEqual([], self.events())
        self.put("c")
        self.protocol.resumeProducing()
        self.assertEqual([(1, [b"a", b"b", b"c"])], self.events())

    def test_paused_for_long(self) -> None:
        """What a client that does not read misses is bounded in the node, and comes whole all the same."""
        self.node.watches.queue_max_events = 4
        self.watch(1)
        self.protocol.pauseProducing()
        keys = [f"k{number:03}" for number in range(50)]
        self.put(*keys)
        (watcher,) = self.node.watches.watchers.values()
        self.assertLessEqual(len(watcher.queue), 4)
        self.protocol.resumeProducing()
        seen = [key.decode() for _, batch in self.events() for key in batch]
        self.assertEqual(keys, seen)

    def test_no_starvation(self) -> None:
        """A watch with a long history to read does not keep a new one waiting."""
        self.put(*(f"k{number:04}" for number in range(1_000)))
        self.patch(watchport, "TURN_S", -1.0)  # One frame a turn.
        self.node.watches.scan_revisions = 50
        self.say(Watch(1, WatchRequest(b"\0", b"\0", start_revision=2)), Watch(2, WatchRequest(b"new")))
        self.put("new")
        order = [request_id for request_id, _ in self.events()]
        self.assertLess(order.index(2), 3)
        self.assertGreater(order.count(1), 10)

    def test_fragments(self) -> None:
        """A revision larger than a frame comes in parts; all but the last say that more follows."""
        self.patch(watchport, "FRAGMENT_BYTES", 3_000)
        self.watch(1)
        puts = tuple(Put(b"k%d" % number, b"x" * 1_000) for number in range(8))
        self.do(Txn(success=puts))
        frames = [frame for frame in self.answers() if isinstance(frame, WatchEvents)]
        self.assertEqual([True, True, True, False], [frame.more for frame in frames])
        keys = [event.kv.key for frame in frames for event in frame.batch.events]
        self.assertEqual([put.key for put in puts], keys)
        self.assertEqual({2}, {frame.batch.revision for frame in frames})

    def test_fragments_wait_too(self) -> None:
        """The parts of a large revision are sent no faster than the client reads."""
        self.patch(watchport, "FRAGMENT_BYTES", 1_000)
        self.watch(1)
        self.do(Txn(success=tuple(Put(b"k%d" % number, b"x" * 900) for number in range(4))))
        write = self.transport.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            self.protocol.pauseProducing()

        self.patch(self.transport, "write", write_and_pause)
        for remaining in (3, 2, 1, 0):
            (frame,) = self.answers()
            assert isinstance(frame, WatchEvents)
            self.assertEqual(bool(remaining), frame.more)
            self.protocol.resumeProducing()


class ProgressTests(WatchCase):
    """No silence, and no progress ahead of events."""

    def progress(self) -> list[WatchProgress]:
        """Frames of progress that were sent."""
        return [frame for frame in self.answers() if isinstance(frame, WatchProgress)]

    def test_every_second(self) -> None:
        """One frame a second tells of all watches, however many there are."""
        for number in range(100):
            self.watch(number + 1)
        self.put("a")
        self.events()
        for _ in range(3):
            self.clock.advance(watchport.PROGRESS_S)
            self.assertEqual([WatchProgress(2)], self.progress())

    def test_not_ahead_of_events(self) -> None:
        """Watches with something on its way are named: the progress is not theirs."""
        self.watch(1)
        self.watch(2, WatchRequest(b"other"))
        self.clock.advance(0.5)
        seen: list[Any] = []
        tick = self.protocol._watches._tick

        def put_then_tick() -> None:
            # The events of this revision are still to be sent when progress is told.
            self.put("a")
            tick()
            seen.extend(self.frames())

        self.protocol._watches._timer.cancel()
        put_then_tick()
        self.assertEqual([WatchProgress(2, (1,))], seen)
        self.assertEqual([(1, [b"a"])], self.events())

    def test_not_while_paused(self) -> None:
        """A client that does not read gets no progress to pile up."""
        self.watch(1)
        self.protocol.pauseProducing()
        self.clock.advance(watchport.PROGRESS_S)
        self.assertEqual([], self.progress())
        self.protocol.resumeProducing()
        self.clock.advance(watchport.PROGRESS_S)
        self.assertEqual([WatchProgress(1)], self.progress())

    def test_no_watches_no_timer(self) -> None:
        """The timer ends with the last watch, and begins again with the next."""
        self.watch(1)
        self.say(StopWatch(1))
        self.clock.advance(watchport.PROGRESS_S)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.watch(2)
        self.clock.advance(watchport.PROGRESS_S)
        self.assertEqual([WatchProgress(1)], self.progress())

    def test_node_that_serves_nobody(self) -> None:
        """A node without a leader that works ends its watches and says why."""
        self.watch(1)
        self.watch(2)
        self.node.leader_works = False
        self.clock.pump([1.0] * 3)
        frames = self.answers()
        self.assertFalse(any(isinstance(frame, WatchEvents) for frame in frames))
        self.clock.advance(1.0)
        frames = [frame for frame in self.answers() if isinstance(frame, WatchEvents)]
        self.assertEqual({1, 2}, {frame.request_id for frame in frames})
        for frame in frames:
            self.assertTrue(frame.batch.canceled)
            self.assertRegex(frame.batch.cancel_reason, "^unavailable: ")
        self.assertEqual(0, len(self.node.watches))
        self.assertEqual({"watches_unserved": 1}, self.port.dropped)

    def test_short_election(self) -> None:
        """A node that finds a leader again in time keeps its watches."""
        self.watch(1)
        self.node.leader_works = False
        self.clock.pump([1.0] * 2)
        self.node.leader_works = True
        self.clock.advance(1.0)
        self.node.leader_works = False
        self.clock.pump([1.0] * 2)
        self.assertEqual(1, len(self.node.watches))

    def test_delete_is_an_event(self) -> None:
        """A deletion comes with its revision and no value."""
        self.put("a")
        self.watch(1)
        self.do(DeleteRange(b"a"))
        (frame,) = [frame for frame in self.answers() if isinstance(frame, WatchEvents)]
        self.assertEqual(3, frame.batch.revision)
        self.assertIsInstance(frame.batch, WatchBatch)
        self.assertEqual(["DELETE"], [event.type for event in frame.batch.events])
