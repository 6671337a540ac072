"""Checks that an `IStateMachine` keeps its contract: the same commands give the same state anywhere.

    def test_deterministic(self):
        check_determinism(Counter, [Raw(b'"up"'), Raw(b'"down"'), Raw(b'"up"')])

runs the commands on several fresh machines and compares every result and the final snapshots:

* twice in a row;
* through a snapshot that is restored in the middle;
* with a snapshot that is begun in the middle and read while later commands apply: it must not show them;
* for an `ITypedMachine`, several in one slot, one after another and at once;
* in a child process with another hash seed, which puts sets and their like into another order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.machine import IStateMachine, ITypedMachine

CHILD_TIMEOUT_S = 600

_SHOWN_CHARS = 200
_SLOT_COMMANDS = 5


class NotDeterministic(AssertionError):
    """A state machine broke its contract; the message says where two runs part."""


class Trace(Struct, frozen=True):
    """What a run gave.

    Attributes:
        results: of each command, in order.
        snapshot: of the state at the end, in one piece.
    """

    results: list[bytes]
    snapshot: bytes


class _Order(Struct, frozen=True):
    """What the child is to do."""

    factory: str
    commands: list[bytes]
    step_ms: int


def check_determinism(
    factory: Callable[[], IStateMachine],
    commands: Sequence[Raw | bytes],
    step_ms: int = 10,
    child: bool = True,
) -> Trace:
    """Check a state machine; returns what all runs gave.

    Args:
        factory: makes a fresh machine; for the child it must be importable by its name.
        commands: payloads, as JSON; one slot each.
        step_ms: log time between two of them, in milliseconds; large steps make time-outs happen.
        child: also run in a child process with another hash seed.

    Raises:
        NotDeterministic: two runs differ.
        ValueError: ``child`` is set and ``factory`` cannot be imported.
    """
    payloads = [Raw(bytes(command)) for command in commands]
    name = _name_of(factory) if child else ""
    first = _run(factory, payloads, step_ms)
    _compare(first, _run(factory, payloads, step_ms), payloads, "a second run")
    restored = _run_restored(factory, payloads, step_ms)
    _compare(first, restored, payloads, "a run through a snapshot in the middle")
    _check_frozen(factory, payloads, step_ms)
    _check_typed(factory, payloads, step_ms)
    if child:
        in_child = _run_child(name, payloads, step_ms)
        _compare(first, in_child, payloads, "a process with another hash seed")
    return first


# --------------------------------------------------------------------- runs


def _run(factory: Callable[[], IStateMachine], payloads: Sequence[Raw], step_ms: int) -> Trace:
    machine = factory()
    results = _apply(machine, payloads, 0, step_ms)
    return Trace(results, b"".join(machine.snapshot()))


def _run_restored(factory: Callable[[], IStateMachine], payloads: Sequence[Raw], step_ms: int) -> Trace:
    middle = len(payloads) // 2
    before, after = factory(), factory()
    results = _apply(before, payloads[:middle], 0, step_ms)
    for _ in after.restore(iter(list(before.snapshot()))):
        pass
    if after.deadline_ms != before.deadline_ms:
        raise NotDeterministic(
            f"deadline_ms is {before.deadline_ms} before a snapshot"
            f" and {after.deadline_ms} after it was restored"
        )
    results += _apply(after, payloads[middle:], middle, step_ms)
    return Trace(results, b"".join(after.snapshot()))


def _check_frozen(factory: Callable[[], IStateMachine], payloads: Sequence[Raw], step_ms: int) -> None:
    middle = len(payloads) // 2
    machine = factory()
    _apply(machine, payloads[:middle], 0, step_ms)
    wanted = b"".join(machine.snapshot())
    pieces: Iterator[bytes] = machine.snapshot()
    got = []
    for number in range(middle, len(payloads)):
        _apply(machine, payloads[number : number + 1], number, step_ms)
        got.append(next(pieces, b""))
    if b"".join([*got, *pieces]) != wanted:
        raise NotDeterministic(
            "a snapshot that was begun before some commands and read after them shows them:"
            " it must be of the moment at which snapshot() was called"
        )


def _check_typed(factory: Callable[[], IStateMachine], payloads: Sequence[Raw], step_ms: int) -> None:
    machines: list[Any] = [factory(), factory()]
    if not ITypedMachine.providedBy(machines[0]):
        return
    decode = msgspec.json.Decoder(machines[0].payload_type).decode
    results: list[list[bytes]] = [[], []]
    for start in range(0, len(payloads), _SLOT_COMMANDS):
        slot = payloads[start : start + _SLOT_COMMANDS]
        context = Context(start + 1, 0, (start + 1) * step_ms)
        one_by_one = [(payload, structs.replace(context, index=index)) for index, payload in enumerate(slot)]
        for machine in machines:
            machine.advance(structs.replace(context, index=-1))
        results[0] += [bytes(machines[0].apply(*command)) for command in one_by_one]
        try:
            typed = [decode(payload) for payload in slot]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            results[1] += [bytes(machines[1].apply(*command)) for command in one_by_one]
        else:
            size_bytes = sum(map(len, slot))
            results[1] += [bytes(data) for data in machines[1].apply_all(typed, context, size_bytes)]
    first, other = (Trace(its, b"".join(m.snapshot())) for its, m in zip(results, machines, strict=True))
    _compare(first, other, payloads, "a run with several commands at once")


def _apply(machine: IStateMachine, payloads: Sequence[Raw], first: int, step_ms: int) -> list[bytes]:
    results = []
    for number, payload in enumerate(payloads, first):
        context = Context(number + 1, -1, (number + 1) * step_ms)
        machine.advance(context)
        results.append(bytes(machine.apply(payload, structs.replace(context, index=0))))
    return results


# --------------------------------------------------------------- comparing


def _compare(first: Trace, other: Trace, payloads: Sequence[Raw], which: str) -> None:
    for number, (one, two) in enumerate(zip(first.results, other.results, strict=True), 1):
        if one != two:
            raise NotDeterministic(
                f"command {number} of {len(payloads)}, {_shown(bytes(payloads[number - 1]))}, gives"
                f" {_shown(one)} in the first run and {_shown(two)} in {which}"
            )
    if first.snapshot != other.snapshot:
        place = next(
            (n for n, (a, b) in enumerate(zip(first.snapshot, other.snapshot, strict=False)) if a != b),
            min(len(first.snapshot), len(other.snapshot)),
        )
        raise NotDeterministic(
            f"all results are the same, but the final snapshot of {which} differs from byte {place} on:"
            f" {_shown(first.snapshot[place:])} in the first run, {_shown(other.snapshot[place:])} there"
        )


def _shown(data: bytes) -> str:
    text = data[: _SHOWN_CHARS + 1].decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


# ------------------------------------------------------------------- child


def _name_of(factory: Callable[[], IStateMachine]) -> str:
    """``module:name`` of ``factory``."""
    module, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    if not module or module == "__main__" or not name or "<" in name:
        raise ValueError(
            f"{factory!r} cannot be imported by another process: give a class or function"
            " of a module, or pass child=False"
        )
    return f"{module}:{name}"


def _run_child(name: str, payloads: Sequence[Raw], step_ms: int) -> Trace:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    order = _Order(name, [bytes(payload) for payload in payloads], step_ms)
    ended = subprocess.run(
        [sys.executable, "-m", "twisted_paxos.testing.determinism"],
        input=msgspec.msgpack.encode(order),
        capture_output=True,
        env=environment,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    if ended.returncode:
        lines = ended.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise NotDeterministic(f"the run in a process with another hash seed failed: {lines[-1]}")
    return msgspec.msgpack.decode(ended.stdout, type=Trace)


def _child() -> None:
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Order)
    module, _, path = order.factory.partition(":")
    factory = import_module(module)
    for name in path.split("."):
        factory = getattr(factory, name)
    trace = _run(factory, [Raw(command) for command in order.commands], order.step_ms)  # type: ignore[arg-type]
    sys.stdout.buffer.write(msgspec.msgpack.encode(trace))


if __name__ == "__main__":
    _child()
