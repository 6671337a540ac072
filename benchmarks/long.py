"""The parts of a comparison that need clusters of their own: many nodes, many keys, restarts, watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from benchmarks.etcd import Etcd
from benchmarks.figures import Run, median
from benchmarks.systems import System, Task, TwistedPaxos
from benchmarks.watchers import watch_etcd, watch_ours

Place: TypeAlias = Callable[[], Path]
"""Makes an empty directory for one cluster."""

Outcome: TypeAlias = Iterator[tuple[str, Run]]
"""Workloads and what each gave."""

NODES = (5, 7)
NODES_DEPTHS = (8, 512)
RESTART_COMMANDS = 1_000_000
CATCH_UP_COMMANDS = 300_000
GROWTH_KEYS = (10_000, 100_000, 1_000_000, 3_000_000)
GROWTH_PAIRS = 3
GROWTH_STEP = 7_919
"""From one key to the next one that is put: prime to every number of keys, so that all are met, far apart."""
WATCHERS = 1_000
WATCH_PUTS = 100
SECONDS = 3.0


class Long(NamedTuple):
    """One such part.

    Attributes:
        run: measures one system; gives workloads with their figures.
        workloads: what they are called.
        systems: names of those that have it.
        rounds: at most so many, whatever was asked for.
    """

    run: Callable[[type[System], Place, float], Outcome]
    workloads: tuple[str, ...]
    systems: tuple[str, ...] = (TwistedPaxos.name, Etcd.name)
    rounds: int = 1


def scaled(number: int, scale: float) -> int:
    """``number``, or a share of it for a trial."""
    return max(1, round(number * scale))


def nodes(kind: type[System], place: Place, scale: float) -> Outcome:
    """Clusters of five and seven."""
    for count in NODES:
        system = kind(place(), count)
        try:
            system.start()
            for depth in NODES_DEPTHS:
                seconds = SECONDS * max(scale, 0.1)
                run = system.run(Task(name="nodes", in_flight=depth, seconds=seconds, warm_up_s=seconds / 3))
                assert run is not None
                yield f"{count}-nodes-put-{depth}", run
        finally:
            system.stop()


def restart(kind: type[System], place: Place, scale: float) -> Outcome:
    """All killed after a million commands, and started."""
    commands = scaled(RESTART_COMMANDS, scale)
    system = kind(place())
    try:
        system.start()
        system.fill(commands)
        yield "restart", {"seconds": round(system.restart_s(), 3), "commands": commands}
    finally:
        system.stop()


def catch_up(kind: type[System], place: Place, scale: float) -> Outcome:
    """One node killed, many commands, that node started."""
    commands = scaled(CATCH_UP_COMMANDS, scale)
    system = kind(place())
    try:
        system.start()
        seconds = system.catch_up_s(commands)
        yield "catchup", {"seconds": round(seconds, 3), "commands": commands}
    finally:
        system.stop()


def growth(kind: type[System], place: Place, scale: float) -> Outcome:
    """Cost of a put by the number of keys, in pairs with a second cluster that keeps the fewest."""
    sizes = [scaled(keys, scale) for keys in GROWTH_KEYS]
    small, large = kind(place()), kind(place())
    try:
        for system in (small, large):
            system.start()
            _fill_keys(system, 0, sizes[0])
        had = sizes[0]
        for name, keys in zip(GROWTH_KEYS, sizes, strict=True):
            _fill_keys(large, had, keys)
            had = keys
            yield growth_name(name), _pairs(small, sizes[0], large, keys, SECONDS * max(scale, 0.1))
    finally:
        small.stop()
        large.stop()


def growth_name(keys: int) -> str:
    """The workload's name for so many keys."""
    return f"keys-{keys // 1_000_000}M" if keys >= 1_000_000 else f"keys-{keys // 1_000}k"


def _fill_keys(system: System, had: int, keys: int) -> None:
    if keys > had:
        system.run(Task(name="fill", in_flight=512, operations=keys - had, keys=keys, first_key=had))


def _pairs(small: System, few: int, large: System, many: int, seconds: float) -> Run:
    """Medians of the large one, and of its cost against the small one's, measured right before or after."""
    runs = [(_puts(small, few, seconds), _puts(large, many, seconds)) for _ in range(GROWTH_PAIRS)]
    cost = [cost_us(b) / cost_us(a) for a, b in runs]
    figures = ("rate_per_s", "p50_ms", "p99_ms", "p999_ms", "max_ms")
    made: Run = {name: median(b[name] for _, b in runs) for name in figures}
    memory = large.processes.memory_bytes().values()
    return {
        **made,
        "keys": many,
        "server_cpu_us": round(median(cost_us(b) for _, b in runs), 2),
        "cost_ratio": round(median(cost), 3),
        "memory_mib": round(sum(memory) / len(memory) / (1 << 20)),
    }


def cost_us(run: Run) -> float:
    """CPU time of all nodes for one operation, in microseconds."""
    return 1e6 * float(run["server_cpu_s"]) / max(1, int(run["acknowledged_puts"]))


def _puts(system: System, keys: int, seconds: float) -> Run:
    task = Task(name="growth", in_flight=512, keys=keys, key_step=GROWTH_STEP, seconds=seconds, warm_up_s=0.5)
    run = system.run(task)
    assert run is not None
    return run


def watch(kind: type[System], place: Place, scale: float) -> Outcome:
    """One put after another under a prefix that a thousand watchers watch; each waits for all events."""
    watchers, puts = scaled(WATCHERS, scale), scaled(WATCH_PUTS, scale)
    system = kind(place())
    try:
        system.start()
        if isinstance(system, Etcd):
            run = watch_etcd(system.leader_address, watchers, puts)
        else:
            assert isinstance(system, TwistedPaxos)
            run = watch_ours(system.leader_endpoint, watchers, puts)
        yield "watch", run
    finally:
        system.stop()


def _names(prefix: Iterable[int]) -> tuple[str, ...]:
    return tuple(growth_name(keys) for keys in prefix)


LONG = {
    "watch": Long(watch, ("watch",), rounds=3),
    "nodes": Long(nodes, tuple(f"{n}-nodes-put-{d}" for n in NODES for d in NODES_DEPTHS), rounds=3),
    "catchup": Long(catch_up, ("catchup",), rounds=3),
    "restart": Long(restart, ("restart",)),
    "growth": Long(growth, _names(GROWTH_KEYS), (TwistedPaxos.name,)),
}
"""By name, in the order in which they run."""
