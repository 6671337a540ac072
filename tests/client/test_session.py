"""The native client against fake nodes: one result per value, whatever happens on the way."""

from __future__ import annotations

import random
from typing import Any

from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.client.support import ENDPOINTS, ClientCase
from twisted_paxos.client import Client, SlotEntry, connect, payload_of, session, value_of
from twisted_paxos.client.liveness import PING_AFTER_S
from twisted_paxos.client.payloads import encode_value
from twisted_paxos.client.pending import QUEUE_MAX_COMMANDS
from twisted_paxos.core import limits
from twisted_paxos.errors import (
    ConfigError,
    OutcomeUnknown,
    Overloaded,
    SessionExpired,
    Unavailable,
    ValueTooLarge,
)
from twisted_paxos.statemachine.commands import Result


class ProposeTests(ClientCase):
    """The plain case."""

    def test_propose(self) -> None:
        """The session is opened through the log, then the value gets sequence 1."""
        client = self.connect()
        result = self.finish(client.propose("hello"))
        self.assertEqual((2, 0, 1), (result.slot, result.index, result.sequence))
        opening, command = self.nodes[0].submitted
        self.assertEqual((client.session_id, 0, 0), (opening.client, opening.sequence, opening.floor))
        self.assertEqual(16, len(client.session_id))
        self.assertEqual("hello", payload_of(command))

    def test_values_are_kept(self) -> None:
        """Text, bytes that are text, other bytes, and the empty value come out as they went in."""
        client = self.connect()
        values = ["text", b"bytes", b"\xff\x00", "", "\u2603", "\udcff", "\x01" * 1000]
        for value in values:
            self.finish(client.propose(value))
        found = [payload_of(c) for entry in self.nodes[0].entries[1:] for c in value_of(entry).commands]
        self.assertEqual(["text", "bytes", b"\xff\x00", "", "\u2603", b"\xff", "\x01" * 1000], found)

    def test_one_turn_one_frame(self) -> None:
        """All values of one turn travel, and are chosen, together."""
        client = self.connect()
        self.finish(client.propose("first"))
        waiting = [client.propose(str(number)) for number in range(100)]
        self.network.run()
        self.assertEqual({3}, {self.successResultOf(one).slot for one in waiting})

    def test_large_turns_are_split(self) -> None:
        """A Submit stops at the batch size; one large value goes alone."""
        client = self.connect()
        self.finish(client.propose("first"))
        waiting = [client.propose("x" * size) for size in (20_000, 20_000, 20_000, limits.VALUE_MAX_BYTES, 1)]
        self.network.run()
        self.assertEqual([3, 3, 4, 5, 6], [self.successResultOf(one).slot for one in waiting])

    def test_largest_value(self) -> None:
        """Any value of the largest size fits a command; one byte more is refused at once."""
        client = self.connect()
        for byte in (b"x", b"\xff", b"\x01", b'"'):
            self.finish(client.propose(byte * limits.VALUE_MAX_BYTES))
        self.failureResultOf(client.propose(b"x" * (limits.VALUE_MAX_BYTES + 1)), ValueTooLarge)

    def test_begin(self) -> None:
        """A call instead of a Deferred: told the result, or why there is none; once, and never at once."""
        client, outcomes = self.connect(), list[Any]()
        client.begin(encode_value("first"), outcomes.append)
        self.assertEqual([], outcomes)
        self.network.run()
        self.assertEqual([1], [outcome.sequence for outcome in outcomes])
        self.nodes[0].hold = True
        client.begin(encode_value("second"), outcomes.append, timeout_s=1)
        self.network.run()
        self.network.run(2)
        self.assertIsInstance(outcomes[1], OutcomeUnknown)
        with self.assertRaises(ValueTooLarge):
            client.begin(Raw(b" " * (limits.PAYLOAD_MAX_BYTES + 1)), outcomes.append)
        self.assertEqual(2, len(outcomes))

    def test_floor(self) -> None:
        """A command's floor is the lowest sequence without a result."""
        client = self.connect()
        self.finish(client.propose("1"))
        self.nodes[0].hold = True
        for value in "23":
            client.propose(value).addErrback(lambda _: None)
            self.network.run()
        self.assertEqual([0, 1, 2, 2], [command.floor for command in self.nodes[0].submitted])

    def test_window(self) -> None:
        """Not more than the window is in flight; what waits follows as results come."""
        client = self.connect(window=3)
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        waiting = [client.propose(str(number)) for number in range(8)]
        self.network.run()
        self.assertEqual(3, client.in_flight)
        self.nodes[0].release()
        self.network.run()
        self.assertEqual(
            [1, 2, 3, 4, 5, 6, 7, 8], [self.successResultOf(one).sequence - 1 for one in waiting]
        )

    def test_queue_limit(self) -> None:
        """Beyond the queue's limit a value is refused at once."""
        client = self.connect()
        self.nodes[0].hold = True
        for _ in range(QUEUE_MAX_COMMANDS):
            client.propose("x").addErrback(lambda _: None)
        self.failureResultOf(client.propose("x"), Overloaded)

    def test_close(self) -> None:
        """Closing ends what was sent as unknown, what was not as unavailable, and all timers."""
        client = self.connect(window=1)
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        sent, waiting = client.propose("sent"), client.propose("waits")
        self.network.run()
        self.successResultOf(client.close())
        self.failureResultOf(sent, OutcomeUnknown)
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(client.propose("late"), Unavailable)
        self.network.run(10)
        self.assertEqual([], self.reactor.getDelayedCalls())


class FailOverTests(ClientCase):
    """Nodes that die, stall, or refuse."""

    def test_resend(self) -> None:
        """What a dead node did not answer is sent to the next under the same sequence, and applies once."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        waiting = [client.propose(str(number)) for number in range(3)]
        self.network.run()
        lost = self.nodes[0].held[0][0]
        self.network.kill(5100)
        self.network.run(0.1)
        self.assertEqual([2, 3, 4], [self.successResultOf(one).sequence for one in waiting])
        self.assertEqual(list(lost), self.nodes[1].submitted)
        self.assertEqual(ENDPOINTS[1], client.endpoint)

    def test_applied_before_the_answer_was_lost(self) -> None:
        """A value that was applied before its node died keeps its first slot."""
        client = self.connect()
        self.finish(client.propose("first"))
        waiting = client.propose("once")
        node = self.nodes[0]
        node.hold = True
        self.network.run()
        commands, sink = node.held[0]
        node._apply(commands, sink)
        self.network.cut(5100)
        self.network.run(0.1)
        self.assertEqual(3, self.successResultOf(waiting).slot)

    def test_session_opening_is_lost(self) -> None:
        """A connection that breaks before the session is open only delays."""
        client = self.connect()
        self.nodes[0].hold = True
        waiting = client.propose("x")
        self.network.run()
        self.network.kill(5100)
        self.assertEqual(1, self.finish(waiting, 0.1).sequence)

    def test_leaderless_node_is_left(self) -> None:
        """A node that says that it has no leader that works is left for the next one."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        self.nodes[0].leader_works = False
        waiting = client.propose("x")
        self.network.run(PING_AFTER_S)
        self.assertNoResult(waiting)
        self.assertEqual(2, self.finish(waiting, 0.5).sequence)
        self.assertEqual(ENDPOINTS[1], client.endpoint)

    def test_slow_node_is_kept(self) -> None:
        """A node that answers no commands for long, but says that its leader works, is kept."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        waiting = client.propose("x")
        self.network.run(3)
        self.assertNoResult(waiting)
        self.nodes[0].release()
        self.finish(waiting)
        self.assertEqual(ENDPOINTS[0], client.endpoint)

    def test_idle_time_is_no_stall(self) -> None:
        """Time without commands does not count when the next command is sent."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.network.run(5)
        self.nodes[0].hold = True
        waiting = client.propose("x")
        self.network.run(0.3)
        self.nodes[0].release()
        self.finish(waiting)
        self.assertEqual(ENDPOINTS[0], client.endpoint)

    def test_all_nodes_away(self) -> None:
        """With no node left the client tries on, with growing pauses, until one is back."""
        client = self.connect()
        self.finish(client.propose("first"))
        ports = [self.network.kill(number) for number in (5100, 5101, 5102)]
        waiting = client.propose("x")
        before = len(self.network.attempts)
        self.network.run(5)
        tries = len(self.network.attempts) - before
        self.assertTrue(10 <= tries <= 60, tries)
        self.network.ports[5102] = ports[2]
        self.assertEqual(2, self.finish(waiting, 1.5).sequence)

    def test_overloaded_is_tried_again(self) -> None:
        """A refused command is sent again after a pause, and nothing else meanwhile."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].refuse = Overloaded("full")
        waiting = client.propose("x")
        self.network.run()
        later = client.propose("y")
        self.network.run()
        self.nodes[0].refuse = None
        self.assertNoResult(waiting)
        self.assertEqual(2, self.finish(waiting, 0.2).sequence)
        self.assertEqual(3, self.successResultOf(later).sequence)

    def test_overloaded_until_the_timeout(self) -> None:
        """A command that every node refused was certainly not done: Overloaded, not unknown."""
        client = self.connect()
        self.finish(client.propose("first"))
        for node in self.nodes:
            node.refuse = Overloaded("full")
        waiting = client.propose("x", timeout_s=1.0)
        self.network.run(1.1)
        self.failureResultOf(waiting, Overloaded)

    def test_node_that_is_stopping(self) -> None:
        """A node that can do nothing now is left for the next."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].refuse = Unavailable("stopping")
        self.assertEqual(2, self.finish(client.propose("x"), 0.1).sequence)
        self.assertEqual(ENDPOINTS[1], client.endpoint)

    def test_expired_session(self) -> None:
        """A forgotten session fails what was under way, never repeats it, and a new one is opened."""
        client = self.connect()
        self.finish(client.propose("first"))
        old = client.session_id
        self.nodes[0].seen.clear()
        waiting = client.propose("x")
        self.network.run()
        self.failureResultOf(waiting, SessionExpired)
        self.assertEqual(1, self.finish(client.propose("y")).sequence)
        self.assertNotEqual(old, client.session_id)
        self.assertEqual(1, [payload_of(command) for command in self.nodes[0].submitted].count("x"))

    def test_long_unused_session(self) -> None:
        """A session unused for long is given up before the cluster can have forgotten it."""
        client = self.connect()
        self.finish(client.propose("first"))
        old = client.session_id
        self.reactor.advance(session.SESSION_FRESH_S + 1)
        self.nodes[0].seen.clear()
        self.assertEqual(1, self.finish(client.propose("x")).sequence)
        self.assertNotEqual(old, client.session_id)


class ChaosTests(ClientCase):
    """Random faults."""

    def test_each_value_once(self) -> None:
        """Whatever breaks, a result names the place where its value is, and no value has two numbers."""
        for seed in range(20):
            with self.subTest(seed=seed):
                self.setUp()
                self.play(random.Random(seed))

    def play(self, rng: random.Random) -> None:
        """Propose while connections break, nodes hold back, refuse, and are away."""
        client = self.connect(window=rng.choice((1, 5, 50)))
        outcomes: dict[int, Any] = {}
        running = client.propose_many(map(str, range(300)), outcomes.__setitem__, timeout_s=20.0)
        away: dict[int, Any] = {}
        for _ in range(60):
            self.disturb(rng, away)
            self.network.run(rng.choice((0.0, 0.02, 0.3)))
        self.network.ports.update(away)
        for node in self.nodes:
            node.refuse = None
            node.release()
        self.assertEqual(300, self.finish(running, 25))
        self.check(outcomes)

    def disturb(self, rng: random.Random, away: dict[int, Any]) -> None:
        """One fault, or the end of one."""
        node, number = rng.choice(self.nodes), rng.choice((5100, 5101, 5102))
        node.refuse = rng.choice((None, None, Overloaded("full"), Unavailable("stopping")))
        if rng.random() < 0.5:
            node.release()
        else:
            node.hold = True
        if number in away:
            self.network.ports[number] = away.pop(number)
        elif rng.random() < 0.3:
            away[number] = self.network.kill(number)
        else:
            self.network.cut(number)

    def check(self, outcomes: dict[int, Any]) -> None:
        """What was told agrees with the log."""
        entries = [value_of(entry).commands for entry in self.nodes[0].entries]
        numbers: dict[Any, set[int]] = {}
        for command in (command for commands in entries for command in commands):
            numbers.setdefault(payload_of(command), set()).add(command.sequence)
        for number in range(300):
            self.assertLessEqual(len(numbers.get(str(number), ())), 1)
            outcome = outcomes[number]
            if isinstance(outcome, Result):
                command = entries[outcome.slot - 1][outcome.index]
                self.assertEqual((str(number), outcome.sequence), (payload_of(command), command.sequence))
            elif not isinstance(outcome, OutcomeUnknown):
                self.assertNotIn(str(number), numbers, outcome)


class TimeoutTests(ClientCase):
    """The end of patience."""

    def test_sent(self) -> None:
        """A command that was sent ends as unknown; its late result changes nothing."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        waiting = client.propose("x", timeout_s=1.0)
        self.network.run(0.9)
        self.assertNoResult(waiting)
        self.network.run(0.2)
        self.failureResultOf(waiting, OutcomeUnknown)
        self.nodes[0].release()
        self.assertEqual(3, self.finish(client.propose("y")).sequence)

    def test_never_sent(self) -> None:
        """A command that could not be sent ends as unavailable, with the reason."""
        client = self.connect()
        for number in (5100, 5101, 5102):
            self.network.kill(number)
        waiting = client.propose("x", timeout_s=1.0)
        self.network.run(1.1)
        self.assertIn("refused", str(self.failureResultOf(waiting, Unavailable).value))

    def test_each_its_own(self) -> None:
        """A short timeout behind a long one is kept."""
        client = self.connect()
        self.finish(client.propose("first"))
        for node in self.nodes:
            node.hold = True
        long, short = client.propose("long", timeout_s=5.0), client.propose("short", timeout_s=0.5)
        self.network.run(0.6)
        self.failureResultOf(short, OutcomeUnknown)
        self.assertNoResult(long)
        self.network.run(5)
        self.failureResultOf(long, OutcomeUnknown)

    def test_process_that_slept(self) -> None:
        """After a stop of this process, answers that wait unread are read before anything times out."""
        client = self.connect()
        self.finish(client.propose("first"))
        self.nodes[0].hold = True
        waiting = client.propose("x", timeout_s=1.0)
        self.network.run()
        self.nodes[0].release()
        self.reactor.advance(30.0)
        self.assertEqual(2, self.finish(waiting).sequence)

    def test_cancel(self) -> None:
        """Cancelled before it was sent, a command is never sent; after that its outcome is unknown."""
        client = self.connect()
        self.finish(client.propose("first"))
        early = client.propose("early")
        early.cancel()
        self.failureResultOf(early, CancelledError)
        self.nodes[0].hold = True
        late = client.propose("late")
        self.network.run()
        late.cancel()
        self.failureResultOf(late, OutcomeUnknown)
        self.assertEqual(0, client.in_flight)
        self.assertNotIn("early", [payload_of(command) for command in self.nodes[0].submitted])


class ManyTests(ClientCase):
    """Values in a stream."""

    def test_all(self) -> None:
        """Every value gets its result, under its number; the count comes last."""
        client = self.connect(window=7)
        outcomes: dict[int, Any] = {}
        count = self.finish(client.propose_many(map(str, range(100)), outcomes.__setitem__))
        self.assertEqual(100, count)
        self.assertEqual(list(range(1, 101)), [outcomes[number].sequence for number in range(100)])

    def test_none(self) -> None:
        """No values, no results."""
        self.assertEqual(0, self.finish(self.connect().propose_many([], lambda *_: None)))

    def test_back_pressure(self) -> None:
        """Values are taken from an endless source only while there is room."""
        client = self.connect(window=4)
        self.nodes[0].hold = True
        taken = 0

        def endless() -> Any:
            nonlocal taken
            while True:
                taken += 1
                yield "x"

        running = client.propose_many(endless(), lambda *_: None)
        self.network.run(0.5)
        self.assertTrue(4 <= taken <= 12, taken)
        running.cancel()
        self.failureResultOf(running, CancelledError)

    def test_asynchronous_source(self) -> None:
        """The source may be an async iterator that waits."""
        client = self.connect()
        pause: Deferred[None] = Deferred()

        async def source() -> Any:
            yield "a"
            await pause
            yield "b"

        outcomes: dict[int, Any] = {}
        running = client.propose_many(source(), outcomes.__setitem__)
        self.network.run()
        self.assertEqual([0], list(outcomes))
        pause.callback(None)
        self.assertEqual(2, self.finish(running))

    def test_bad_value_among_good_ones(self) -> None:
        """A value that is too large gets its error; the others go on."""
        client = self.connect()
        outcomes: dict[int, Any] = {}
        large = "x" * (limits.VALUE_MAX_BYTES + 1)
        self.finish(client.propose_many(["a", large, "b"], outcomes.__setitem__))
        self.assertEqual([Result, ValueTooLarge, Result], [type(outcomes[number]) for number in range(3)])

    def test_failing_callback(self) -> None:
        """An error in the caller's callback ends the run with that error, and is told once."""
        client = self.connect()
        calls = []

        def broken(number: int, outcome: Any) -> None:
            calls.append(number)
            raise BrokenPipeError

        running = client.propose_many(map(str, range(10)), broken)
        self.network.run()
        self.failureResultOf(running, BrokenPipeError)
        self.assertEqual([0], calls)

    def test_closed_meanwhile(self) -> None:
        """A run whose client is closed ends, and every started value has an outcome."""
        client = self.connect(window=2)
        self.nodes[0].hold = True
        outcomes: dict[int, Any] = {}
        running = client.propose_many(map(str, range(10)), outcomes.__setitem__)
        self.network.run()
        client.close()
        self.network.run()
        self.failureResultOf(running, Unavailable)
        self.assertTrue(outcomes)


class ConnectTests(ClientCase):
    """The first connection, and the status."""

    def test_first_that_answers(self) -> None:
        """Endpoints are tried in their order."""
        del self.network.ports[5100]
        self.assertEqual(ENDPOINTS[1], self.connect().endpoint)

    def test_none_answers(self) -> None:
        """One line names what is wrong with each."""
        self.network.ports.clear()
        self.network.silent.add(5101)
        connecting = connect(self.reactor, ENDPOINTS)
        self.network.run(3.1)
        text = str(self.failureResultOf(connecting, Unavailable).value)
        self.assertIn("127.0.0.1:5100: connection refused; 127.0.0.1:5101: no answer in time", text)
        self.assertNotIn("\n", text)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_cancel(self) -> None:
        """A cancelled connect ends as cancelled and leaves nothing."""
        self.network.silent.add(5100)
        connecting = connect(self.reactor, ENDPOINTS)
        self.network.run()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_no_endpoint(self) -> None:
        """No endpoint is an error at once."""
        with self.assertRaises(ConfigError):
            Client(self.reactor, [])

    def test_status(self) -> None:
        """The status is that of the node in use, or of the next that answers."""
        client = self.connect()
        self.assertEqual("A", self.finish(client.status()).uid)
        self.network.kill(5100)
        self.assertEqual("B", self.finish(client.status()).uid)


class LogTests(ClientCase):
    """Reading the log."""

    def setUp(self) -> None:
        """Five slots."""
        super().setUp()
        self.client = self.connect()
        for value in "abcd":
            self.finish(self.client.propose(value))

    def collect(self, reader: Any, slots: list[int]) -> Deferred[Any]:
        """Put the slots that ``reader`` yields into ``slots``."""

        async def run() -> str:
            async for entry in reader:
                slots.append(entry.slot)
            return "end"

        return Deferred.fromCoroutine(run())

    def test_read(self) -> None:
        """A plain read ends by itself."""
        slots: list[int] = []
        reading = self.collect(self.client.read_log(2), slots)
        self.assertEqual("end", self.finish(reading))
        self.assertEqual([2, 3, 4, 5], slots)

    def test_follow_over_a_fail_over(self) -> None:
        """A followed log goes on at another node where it stopped, without a gap or a repetition."""
        slots: list[int] = []
        reader = self.client.read_log(1, follow=True)
        reading = self.collect(reader, slots)
        self.network.run()
        self.network.kill(5100)
        self.network.run(0.1)
        self.finish(self.client.propose("e"), 0.1)
        self.assertEqual([1, 2, 3, 4, 5, 6], slots)
        reader.close()
        self.assertEqual("end", self.finish(reading))
        self.assertEqual([], self.nodes[1].listeners)

    def test_reader_that_is_not_read(self) -> None:
        """Who does not take entries is not sent more: what is read ahead is bounded."""
        node = self.nodes[0]
        newest = node.entries[-1]
        node.entries.extend(SlotEntry(slot, newest.ballot, newest.value) for slot in range(6, 2_000))
        self.patch(node, "read_log", lambda slot, _: succeed(node.entries[slot - 1 : slot + 99]))
        reader = self.client.read_log(1)
        first = Deferred.fromCoroutine(reader.__anext__())
        self.assertEqual(1, self.finish(first).slot)
        self.network.run(0.1)
        self.assertTrue(100 < reader.buffered < 500, reader.buffered)
        slots = [1]
        self.assertEqual("end", self.finish(self.collect(reader, slots)))
        self.assertEqual(list(range(1, 2_000)), slots)

    def test_missing_slots(self) -> None:
        """Slots that a node has no more are told, not passed over."""
        self.patch(self.nodes[0], "read_log", lambda *_: succeed(self.nodes[0].entries[3:]))
        reading = self.collect(self.client.read_log(1), [])
        self.network.run()
        self.assertIn("read from slot 4", str(self.failureResultOf(reading, Unavailable).value))

    def test_no_node(self) -> None:
        """A log that no node serves is unavailable at once."""
        for number in (5100, 5101, 5102):
            self.network.kill(number)
        reading = self.collect(self.client.read_log(1), [])
        self.network.run(0.1)
        self.failureResultOf(reading, Unavailable)


class BackoffTests(SynchronousTestCase):
    """Pauses."""

    def test_bounds(self) -> None:
        """Pauses double up to the bound, with half of each left to chance."""
        from random import Random

        from twisted_paxos.client.connection import BACKOFF_MAX_S, BACKOFF_MIN_S, backoff_s

        for rounds in range(0, 2_000, 7):
            pause_s = backoff_s(rounds, Random(rounds))
            self.assertTrue(BACKOFF_MIN_S / 2 <= pause_s <= BACKOFF_MAX_S)
        self.assertLess(backoff_s(1, Random(1)), backoff_s(4, Random(1)))
