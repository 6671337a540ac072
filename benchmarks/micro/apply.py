"""Apply and session admit: python -m benchmarks.micro.apply [pyperf options]"""

from __future__ import annotations

import time

import pyperf  # type: ignore[import-untyped]

from benchmarks.micro.samples import BATCH, CLIENT, puts
from twisted_paxos.core.messages import Command, Value, encode_value
from twisted_paxos.core.requests import Requests
from twisted_paxos.statemachine.commands import NO_DATA, OPEN_SESSION
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.machine import IStateMachine
from twisted_paxos.statemachine.opaque import OpaqueLog
from twisted_paxos.statemachine.replicated import ReplicatedState
from twisted_paxos.statemachine.sessions import Sessions


def apply_batches(loops: int, machine: IStateMachine, keys: int) -> float:
    """Seconds to decode and apply ``loops`` values of one batch each, as a node does."""
    state = ReplicatedState(machine)
    state.apply(1, Value.of(1, (Command(CLIENT, 0, 0, OPEN_SESSION),)))
    took_s = 0.0
    for number in range(loops):
        value = encode_value(number + 2, puts(number * BATCH, keys))
        start_s = time.perf_counter()
        state.apply_encoded(number + 2, value)
        took_s += time.perf_counter() - start_s
    return took_s


def admit(loops: int) -> float:
    """Seconds to admit and remember ``loops`` batches, without applying anything."""
    sessions = Sessions()
    sessions.admit(Command(CLIENT, 0, 0, OPEN_SESSION), 1, 0)
    took_s = 0.0
    for number in range(loops):
        commands = puts(number * BATCH)
        start_s = time.perf_counter()
        for index, command in enumerate(commands):
            sessions.admit(command, number + 2, index)
            sessions.remember(command, number + 2, index, NO_DATA)
        took_s += time.perf_counter() - start_s
    return took_s


def requests(loops: int) -> float:
    """Seconds for ``loops`` batches to come in and to find their owners again."""
    waiting, owner = Requests(lambda: 0.5), object()
    took_s = 0.0
    for number in range(loops):
        commands = puts(number * BATCH)
        start_s = time.perf_counter()
        waiting.submit(commands, owner)
        for command in commands:
            waiting.applied((command.client, command.sequence))
        took_s += time.perf_counter() - start_s
    return took_s


def main() -> None:
    """Each figure is for one batch."""
    runner = pyperf.Runner(program_args=("-m", "benchmarks.micro.apply"), metadata={"batch": BATCH})
    runner.bench_time_func("apply: opaque values", lambda loops: apply_batches(loops, OpaqueLog(), 1))
    runner.bench_time_func("apply: puts, one key", lambda loops: apply_batches(loops, KeyValueStore(), 1))
    runner.bench_time_func(
        "apply: puts, 100,000 keys", lambda loops: apply_batches(loops, KeyValueStore(), 100_000)
    )
    runner.bench_time_func("session: admit and remember", admit)
    runner.bench_time_func("requests: submit and applied", requests)


if __name__ == "__main__":
    main()
