"""What clients of the key-value store were promised, judged by the chosen log at the end of a simulated run.

The log is applied once more, by the slow `ReferenceStore` and plain sessions (`kvreplay`); each check
compares one part of the clients' history with that. The first that fails is the run's violation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from twisted_paxos.core.messages import Command, Sender
from twisted_paxos.statemachine.commands import decode_payload
from twisted_paxos.statemachine.kvcommands import (
    COMPACTED,
    FUTURE_REVISION,
    KvError,
    KvQuery,
    LeaseGrantResult,
    LeaseKeepAliveResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    decode_result,
)
from twisted_paxos.testing.checks import Check, RealTime
from twisted_paxos.testing.history import Op
from twisted_paxos.testing.kvhistory import KvHistory, Request
from twisted_paxos.testing.kvreference import answer
from twisted_paxos.testing.kvreplay import Replay
from twisted_paxos.testing.linearizability import Call, find_violation
from twisted_paxos.testing.witness import Violation

DRIFT_SHARE: Final = 0.02
"""By how much two clocks may differ in speed, of the time that passes (docs/recipes.md)."""

LOG_STEP_S: Final = 0.2
"""By how much one jump of a leader's clock may move log time: two heartbeats."""

LEASE_MAX_S: Final = 4.0
"""No lease of these runs has a longer time to live."""

_decode_query = msgspec.json.Decoder(KvQuery).decode


class KvRun:
    """What all checks look at.

    Args:
        history: of the clients.
        replay: makes the replay of the log, at the end.
        now_s: gives the simulated time.
    """

    def __init__(self, history: KvHistory, replay: Callable[[], Replay], now_s: Callable[[], float]) -> None:
        self.history = history
        self.now_s = now_s
        self._make_replay = replay
        self._replay: Replay | None = None

    @property
    def replay(self) -> Replay:
        """The replay of the whole log."""
        if self._replay is None:
            self._replay = self._make_replay()
        return self._replay

    def revision_s(self, revision: int) -> float:
        """When a node first had a revision; infinity: none ever had."""
        slot = self.replay.slot_of.get(revision)
        return self.slot_s(slot) if slot is not None else math.inf

    def slot_s(self, slot: int) -> float:
        """When a slot was first applied by any node."""
        return self.history.applied_s.get(slot, math.inf) if slot else 0.0

    def slack_s(self, at_s: float) -> float:
        """By how much log time may have run ahead within the life of a lease, because clocks jumped."""
        return LOG_STEP_S * sum(at_s - LEASE_MAX_S <= jump_s <= at_s for jump_s in self.history.jumps_s)

    def revision_at(self, at_s: float) -> int:
        """The highest revision that any node had at a time."""
        found = 1
        for revision in self.replay.slot_of:
            if self.revision_s(revision) <= at_s:
                found = max(found, revision)
        return found


class KvCheck(Check):
    """One check of clients' histories."""

    def __init__(self, run: KvRun) -> None:
        self._run = run


class AppliedOnce(KvCheck):
    """Notes what is applied and when; at the end: what had an effect is what should have had one, once."""

    name = "kv sessions"

    def applied(self, life: Sender, slot: int, commands: Sequence[Command], state: Any) -> None:
        """The first time that any node applied it."""
        history = self._run.history
        if slot not in history.applied_s:
            history.applied_s[slot] = self._run.now_s()
            history.applied[slot] = [(command.client, command.sequence) for command in commands]

    def finish(self, ops: Sequence[Op]) -> None:
        """Slot by slot, and each command as often as it was sent at most."""
        replay, history = self._run.replay, self._run.history
        expected: dict[int, list[tuple[str, int]]] = {slot: [] for slot in range(1, replay.slots + 1)}
        for (slot, _), effect in replay.effects.items():
            expected[slot].append((effect.client, effect.sequence))
        for slot, its in history.applied.items():
            if its != expected.get(slot):
                raise Violation(f"slot {slot}: {its} had an effect, not {expected.get(slot)}")
        done = Counter(effect.payload for effect in replay.effects.values() if effect.result is not None)
        for payload, times in done.items():
            # What puts something was asked for once: its values, or its keys, are unique.
            allowed = 1 if b'"type":"put"' in payload else history.sent[payload]
            if times > allowed:
                raise Violation(f"{payload!r} had {times} effects, and should have had {allowed} at most")


class Results(KvCheck):
    """What a command's client was told is the result of the reference store at that place of the log."""

    name = "kv result"

    def finish(self, ops: Sequence[Op]) -> None:
        """Each command; and one that was refused had no effect."""
        replay, history = self._run.replay, self._run.history
        commands = [request for request in history.requests if not request.is_read]
        effects = {effect.payload for effect in replay.effects.values()}
        for request in commands:
            if (
                request.outcome == "refused"
                and history.sent[request.payload] == 1
                and request.payload in effects
            ):
                raise Violation(f"{request} had an effect")
            if request.outcome != "done":
                continue
            effect = replay.effects.get(request.place)
            if effect is None or effect.payload != request.payload:
                raise Violation(f"{request} is not there, but {effect}")
            told = decode_result(request.data)
            if told != effect.result:
                raise Violation(f"{request} gave {told}, and should have given {effect.result}")
        RealTime().finish(commands)  # type: ignore[arg-type]


class Reads(KvCheck):
    """Every answer is right at its revision; a linearizable one is as new as all that was seen before."""

    name = "kv read"

    def finish(self, ops: Sequence[Op]) -> None:
        """Each question about keys."""
        reads = [r for r in self._run.history.requests if r.is_read and r.outcome == "done"]
        for request, seen in self._with_seen(reads):
            query = _decode_query(request.payload)
            if isinstance(query, Range):
                self._check(request, query, decode_result(request.data), seen)

    def _with_seen(self, reads: list[Request]) -> Iterator[tuple[Request, int]]:
        """Each with the highest revision that anybody had been shown before it began."""
        shown = sorted(self._shown())
        position = highest = 0
        for request in sorted(reads, key=lambda read: read.start_s):
            while position < len(shown) and shown[position][0] < request.start_s:
                highest = max(highest, shown[position][1])
                position += 1
            yield request, highest

    def _shown(self) -> Iterator[tuple[float, int]]:
        history = self._run.history
        for request in history.requests:
            if request.outcome == "done":
                revision = revision_of(request)
                if revision:
                    yield request.end_s, revision
        for watching in history.watchings:
            for at_s, batch in watching.batches:
                yield at_s, batch.revision

    def _check(self, request: Request, query: Range, told: Any, seen: int) -> None:
        replay, fresh = self._run.replay, request.kind == "read"
        if isinstance(told, KvError):
            compacted = any(
                revision > query.revision and self._run.slot_s(slot) <= request.end_s
                for slot, revision in replay.compacted
            )
            stale = not fresh or query.revision > seen
            if not query.revision or not (
                (told == COMPACTED and compacted) or (told == FUTURE_REVISION and stale)
            ):
                raise Violation(f"{request} was answered with {told}")
            return
        if fresh and told.revision < seen:
            raise Violation(f"{request} was answered as of {told.revision}, and {seen} had been seen before")
        if self._run.revision_s(told.revision) > request.end_s:
            raise Violation(f"{request} was answered as of {told.revision}, which nobody had by then")
        expected = answer(query, replay.store.states[query.revision or told.revision], told.revision)
        if told != expected:
            raise Violation(f"{request} gave {told}, and should have given {expected}")


def revision_of(request: Request) -> int:
    """The store's revision in an answer; 0 when there is none."""
    try:
        result = decode_result(request.data)
    except msgspec.DecodeError:
        return 0
    return 0 if isinstance(result, KvError) else result.revision


class Cells(KvCheck):
    """Each single key is linearizable: put, compare-and-swap, read; without the log (Wing and Gong)."""

    name = "kv linearizable"

    def finish(self, ops: Sequence[Op]) -> None:
        """Key by key."""
        keys: dict[bytes, list[Call]] = {}
        for request in self._run.history.requests:
            if request.kind != "serializable" and request.outcome != "refused":
                for key, call in cell_calls(request):
                    keys.setdefault(key, []).append(call)
        for key, calls in keys.items():
            found = find_violation(calls)
            if found:
                raise Violation(f"key {key!r}: {found}")


def cell_calls(request: Request) -> Iterator[tuple[bytes, Call]]:
    """What a request did with keys below ``r/``, as the checker takes it; without an end when not known."""
    try:
        asked: Any = _decode_query(request.payload) if request.is_read else decode_payload(request.payload)  # type: ignore[arg-type]
    except msgspec.DecodeError:
        return
    told: Any = decode_result(request.data) if request.outcome == "done" else None
    end_s = request.end_s if told is not None else math.inf
    if isinstance(asked, Range) and asked.key.startswith(b"r/") and not (asked.range_end or asked.revision):
        if isinstance(told, RangeResult):
            yield asked.key, Call(request.start_s, end_s, "", _value_in(told))
    elif isinstance(asked, Put) and asked.key.startswith(b"r/") and asked.prev_kv:
        before = _text(told.prev_kv) if isinstance(told, PutResult) else None
        yield asked.key, Call(request.start_s, end_s, asked.value.decode(), before)
    elif isinstance(asked, Txn) and asked.compare and asked.compare[0].key.startswith(b"r/"):
        yield asked.compare[0].key, _swap_call(request, asked, told, end_s)


def _swap_call(request: Request, asked: Txn, told: Any, end_s: float) -> Call:
    needs, new = asked.compare[0].value.decode(), asked.success[0].value.decode()  # type: ignore[union-attr]
    if not isinstance(told, TxnResult):
        return Call(request.start_s, end_s, new, None, needs)
    if told.succeeded:
        return Call(request.start_s, end_s, new, needs)
    found: Any = told.responses[0]
    return Call(request.start_s, end_s, "", _value_in(found))


def _value_in(found: RangeResult) -> str:
    return _text(found.kvs[0] if found.kvs else None)


def _text(kv: Any) -> str:
    return kv.value.decode() if kv is not None else ""


class LeaseTimes(KvCheck):
    """No lease runs out while its holder is sure of it, or sooner than it was told, whoever leads."""

    name = "kv lease"

    def finish(self, ops: Sequence[Op]) -> None:
        """Both views of the holder, each against when a node first applied the expiry."""
        history, replay = self._run.history, self._run.replay
        for lease_id, sure_s in history.sure_s.items():
            self._check(lease_id, sure_s, "its holder was sure of it")
        for request in history.requests:
            told = self._told(request)
            if told is not None and told.ttl > 0 and told.id in replay.expired:
                until_s = request.start_s + told.ttl * (1 - DRIFT_SHARE)
                self._check(told.id, until_s, f"{request} was acknowledged")

    @staticmethod
    def _told(request: Request) -> LeaseGrantResult | LeaseKeepAliveResult | None:
        if request.is_read or request.outcome != "done":
            return None
        told = decode_result(request.data)
        return told if isinstance(told, LeaseGrantResult | LeaseKeepAliveResult) else None

    def _check(self, lease_id: int, until_s: float, why: str) -> None:
        slot = self._run.replay.expired.get(lease_id)
        if slot is None:
            return
        over_s = self._run.slot_s(slot)
        if over_s < until_s - self._run.slack_s(until_s):
            text = (
                f"lease {lease_id:x} was over at {over_s:.4f} s (slot {slot}), and not before {until_s:.4f} s"
            )
            raise Violation(f"{text}: {why}")


class FinalState(KvCheck):
    """Every node ends with the reference store's keys, leases and revisions."""

    name = "kv state"

    def __init__(self, run: KvRun, states: Callable[[], list[tuple[str, Any]]]) -> None:
        super().__init__(run)
        self._states = states

    def finish(self, ops: Sequence[Op]) -> None:
        """Those that have applied everything."""
        replay = self._run.replay
        expected = replay.store
        keys = answer(Range(b"\0", b"\0"), expected.states[expected.revision], expected.revision)
        for uid, state in self._states():
            if state.applied_upto != replay.slots:
                continue
            store = state.machine
            found = {lease.id: [lease.ttl_s, lease.deadline_ms] for lease in store._leases.records()}
            if store.range(Range(b"\0", b"\0")) != keys:
                raise Violation(
                    f"{uid} has {store.range(Range(b'%c' % 0, b'%c' % 0))}, and should have {keys}"
                )
            if found != expected.leases:
                raise Violation(f"{uid} has the leases {found}, and should have {expected.leases}")
            if store.compact_revision != expected.compact_revision:
                raise Violation(
                    f"{uid} is compacted at {store.compact_revision}, not {expected.compact_revision}"
                )
