"""`statemachine.replicated`: whatever way a slot is applied, it does the same."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command, Replace, Value, encode_change, encode_value
from twisted_paxos.statemachine import kv
from twisted_paxos.statemachine.commands import OPEN_SESSION, Context, Result, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import (
    DeleteRange,
    LeaseGrant,
    Put,
    Range,
    Txn,
    encode_command,
)
from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.statemachine.opaque import OpaqueLog
from twisted_paxos.statemachine.replicated import ReplicatedState
from twisted_paxos.statemachine.watches import WatchRequest

SMALL = KvLimits(quota_bytes=12_000, request_max_bytes=150, keep_revisions=20)
OPENING = Command("c", 0, 0, OPEN_SESSION)


def put(sequence: int, key: bytes = b"k", client: str = "c", **more: Any) -> Command:
    """A put of its number."""
    return Command(client, sequence, 1, encode_command(Put(key, b"%d" % sequence, **more)))


def one_after_another(state: ReplicatedState, slot: int, value: Value) -> list[Result]:
    """What applying is by definition: each command by itself, in order."""
    sessions, machine = state.sessions, state.machine
    sessions.advance(value.time_ms)
    machine.advance(Context(slot, -1, sessions.log_time_ms))
    results = []
    for index, command in enumerate(value.commands):
        result = sessions.admit(command, slot, index)
        if result is None:
            data = machine.apply(command.payload, Context(slot, index, sessions.log_time_ms))
            sessions.remember(command, slot, index, data)
            result = Result(command.client, command.sequence, slot, index, "", data)
        results.append(result)
    state.applied_upto = slot
    return results


class Log:
    """Slots such as clients, and those who mean no good, may bring about."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._next = {"c": 1, "d": 1, "never": 1}
        self._time_ms = 0

    def payload(self) -> Raw:
        """Mostly plain puts; now and then anything."""
        rng = self._rng
        key = rng.choice((b"a", b"b", b"c", b"%d" % rng.randrange(50)))
        value = b"x" * rng.choice((0, 1, 20, 200))
        usual = Put(key, value)
        others = (
            Put(key, value, prev_kv=True),
            Put(key, value, lease=7),
            Put(key, ignore_value=True),
            Put(b"", value),
            Txn((), (Put(key, value), Put(key + b"t", value))),
            DeleteRange(key),
            LeaseGrant(7, 5),
            Range(key),
        )
        kind = rng.randrange(60)
        if kind == 0:
            return rng.choice((encode_opaque("text"), Raw(b'{"type":"put"}'), Raw(b'{"type":"none"}')))
        return encode_command(usual if kind > 12 else rng.choice(others))

    def slot(self) -> Value:
        """The next slot's value: runs of one client's commands, some of them repeated or out of order."""
        rng, commands = self._rng, []
        for _ in range(rng.randrange(4)):
            client = rng.choice("ccccd") if rng.random() < 0.95 else "never"
            for _ in range(rng.choice((1, 2, 10))):
                sequence = self._next[client]
                self._next[client] += 1
                if rng.random() < 0.03:
                    sequence = max(0, sequence - rng.randrange(20))
                floor = max(0, sequence - rng.choice((0, 5, 5, 5, 40, -3 if rng.random() < 0.05 else 5)))
                commands.append(Command(client, sequence, floor, self.payload()))
        if rng.random() < 0.05 or not self._time_ms:
            commands[:0] = [Command(client, 0, 0, OPEN_SESSION) for client in "cd"]
        self._time_ms += rng.randrange(1, 1_000)
        return Value.of(self._time_ms, commands)


class SameTests(SynchronousTestCase):
    """A batch at once and one command after another."""

    def both(self, seed: int, kv_limits: KvLimits) -> int:
        """Apply one log in three ways; all that can be seen must be equal. How many commands applied."""
        log = Log(seed)
        states = [ReplicatedState(KeyValueStore(kv_limits)) for _ in range(3)]
        watches = [self.watch(state) for state in states]
        count = 0
        for slot in range(1, 60):
            value = log.slot()
            wanted = one_after_another(states[0], slot, value)
            first = states[1].apply(slot, value)
            second = states[2].apply_encoded(slot, encode_value(value.time_ms, value.commands))
            self.assertEqual(first.results, wanted)
            self.assertEqual(second.results, wanted)
            self.assertEqual(second.commands, first.commands)
            self.assertEqual(second.failed, sum(bool(result.error) for result in wanted))
            count += second.count
            events = [state.machine.watches.poll(watch) for state, watch in zip(states, watches, strict=True)]
            self.assertEqual((events[1], events[2]), (events[0], events[0]))
        snapshots = [list(state.snapshot(())) for state in states]
        self.assertEqual((snapshots[1], snapshots[2]), (snapshots[0], snapshots[0]))
        return count

    @staticmethod
    def watch(state: ReplicatedState) -> int:
        """Follow every key there."""
        hub = state.machine.watches
        return int(hub.create(WatchRequest(b"\0", b"\0", prev_kv=True), lambda: None))

    def test_anyLog(self) -> None:
        """Results, events, sessions and the store are the same, whichever way slots are applied."""
        counts = [self.both(seed, KvLimits()) for seed in range(40)]
        self.assertGreater(min(counts), 50)

    def test_fullSessions(self) -> None:
        """So they are where a session has as many results as it may."""
        self.patch(limits, "SESSION_RESULTS_MAX", 8)
        counts = [self.both(seed, KvLimits()) for seed in range(40)]
        self.assertGreater(min(counts), 50)

    def test_smallLimits(self) -> None:
        """So they are where puts are refused for their size, or because the quota is used up."""
        counts = [self.both(seed, SMALL) for seed in range(40)]
        self.assertGreater(min(counts), 50)


class ApplyTests(SynchronousTestCase):
    """What one slot did."""

    def setUp(self) -> None:
        self.state = ReplicatedState(KeyValueStore())
        self.state.apply(1, Value.of(1, (OPENING,)))

    def test_countsAndCommands(self) -> None:
        """Commands that applied are told as they stand in the log, without repetitions and refusals."""
        commands = (put(1), put(2), put(1), put(1, client="nobody"), put(3))
        applied = self.state.apply_encoded(2, encode_value(2, commands))
        self.assertEqual((applied.count, applied.failed), (3, 1))
        self.assertEqual(applied.commands, [commands[0], commands[1], commands[4]])
        self.assertEqual([result.index for result in applied.results], [0, 1, 0, 0, 4])

    def test_oneOfARunAgain(self) -> None:
        """A repetition of one among many gets its own first result: where it was, and its data."""
        run = self.state.apply_encoded(2, encode_value(2, tuple(put(number) for number in range(1, 6))))
        self.state.apply_encoded(3, encode_value(3, (put(6), put(7))))
        again = self.state.apply_encoded(4, encode_value(4, (put(4), put(2))))
        self.assertEqual(again.results, [run.results[3], run.results[1]])
        self.assertEqual(bytes(again.results[0].data), b'{"type":"put","revision":5}')
        self.assertEqual(again.count, 0)
        restored = ReplicatedState(KeyValueStore())
        for _ in restored.restore(iter(list(self.state.snapshot(())))):
            pass
        self.assertEqual(restored.apply(5, Value.of(5, (put(4),))).results, [run.results[3]])

    def test_oneBadPayload(self) -> None:
        """A payload that cannot be decoded fails alone."""
        bad = Command("c", 2, 1, Raw(b'{"type":"put","key":"!"}'))
        applied = self.state.apply_encoded(2, encode_value(2, (put(1), bad, put(3))))
        kinds = [msgspec.json.decode(result.data)["type"] for result in applied.results]
        self.assertEqual(kinds, ["put", "error", "put"])

    def test_fullStore(self) -> None:
        """Where puts are refused for the quota, a slot of many costs each of them one look."""
        looks: list[Any] = []
        self.patch(kv, "_is_plain", lambda payload: looks.append(payload) or True)
        state = ReplicatedState(KeyValueStore(SMALL))
        commands = tuple(put(number) for number in range(1, 300))
        state.apply(1, Value.of(1, (OPENING,)))
        state.apply_encoded(2, encode_value(2, commands))
        self.assertEqual(len(looks), len(commands))

    def test_bytesThatAreNoValue(self) -> None:
        """Bytes that are no value are an error, and nothing is applied."""
        with self.assertRaises(msgspec.DecodeError):
            self.state.apply_encoded(2, Raw(b'{"time_ms":-1}'))
        self.assertEqual(self.state.applied_upto, 1)

    def test_valuesOfOtherVersions(self) -> None:
        """A field that is not known makes it no value, rather than one without commands."""
        for later in (b'"commands":[["c",1,1,"x"]]', b'"runs":[["c",1,1,["x"],0]]', b'"runs":[["c",1,1,[]]]'):
            for state in (self.state, ReplicatedState(OpaqueLog())):
                before = state.applied_upto
                with self.assertRaises(msgspec.DecodeError):
                    state.apply_encoded(before + 1, Raw(b'{"time_ms":5,%s}' % later))
                self.assertEqual(state.applied_upto, before)

    def test_changeOfMembers(self) -> None:
        """It is nothing to the state machine, but log time."""
        applied = self.state.apply_encoded(2, encode_change(7, Replace("A", "old", "new")))
        self.assertEqual((applied.count, applied.results, self.state.log_time_ms), (0, [], 7))

    def test_otherMachines(self) -> None:
        """A state machine that takes payloads as they are gets them so."""
        state = ReplicatedState(OpaqueLog())
        opaque = tuple(Command("c", number, 1, encode_opaque("v")) for number in (1, 2, 3))
        applied = state.apply_encoded(1, encode_value(1, (OPENING, *opaque)))
        self.assertEqual((applied.count, applied.commands), (3, list(opaque)))
