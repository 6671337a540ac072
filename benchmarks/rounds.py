"""The rounds of a comparison: which workloads there are, and who runs what when."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.etcd import Etcd
from benchmarks.figures import Run
from benchmarks.long import LONG
from benchmarks.pysync import PySyncObj
from benchmarks.systems import System, Task, TwistedPaxos

Runs: TypeAlias = dict[str, dict[str, list[Run]]]
"""Workload -> system -> its runs, in the order of rounds."""

SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (TwistedPaxos, Etcd, PySyncObj)}
OURS, THEIRS, THIRD = TwistedPaxos.name, Etcd.name, PySyncObj.name

DEPTHS = (1, 8, 64, 512)
SIZES = {"1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20}
MANY_KEYS = 100_000
GATEWAY_DEPTHS = (1, 64, 512)
IDLE_S = 5.0
LATENCY_SHARE = 0.5
"""The open loop runs at this share of etcd's rate with 512 in flight."""

SHORT = ("put", "keys", "read", "size", "lease", "latency", "idle", "gateway", "failover")
"""Parts that share one cluster in each round."""

PARTS = (*SHORT, *LONG)


def tasks_of(parts: Iterable[str], depths: Sequence[int], seconds: float, warm_up_s: float) -> list[Task]:
    """The workloads that every system is asked to do, without the open loop."""
    made: list[Task] = []

    def add(name: str, **what: Any) -> None:
        made.append(Task(name=name, seconds=seconds, warm_up_s=warm_up_s, **what))

    if "put" in parts:
        for depth in depths:
            add(f"put-{depth}", in_flight=depth)
    if "keys" in parts:
        add(f"put-{max(depths)}-keys", in_flight=max(depths), keys=MANY_KEYS)
    if "read" in parts:
        for operation in ("read", "serializable", "mix"):
            add(f"{operation}-{max(depths)}", operation=operation, in_flight=max(depths))
    if "size" in parts:
        for name, size_bytes in SIZES.items():
            add(f"put-{name}", in_flight=8, value_bytes=size_bytes)
    if "lease" in parts:
        add(f"keepalive-{max(depths)}", operation="keepalive", in_flight=max(depths))
    return made


class Comparison:
    """Runs the rounds.

    Args:
        names: the systems, in the order of the first round.
        parts: which of `PARTS`.
        tasks: the closed loops.
        directory: where data go; the same file system for all.
        seconds, warm_up_s: for the workloads that are no closed loops.
        scale: share of their full size that the parts of `LONG` have.
        say: told what happens, a line at a time.
        save: called after each system of each round.
        runs: of an earlier call that ended early: what is there is not run again.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[str],
        tasks: Sequence[Task],
        directory: Path,
        seconds: float,
        warm_up_s: float,
        scale: float,
        say: Callable[[str], None],
        save: Callable[[], None],
        runs: Runs,
    ) -> None:
        self.runs = runs
        self._names = list(names)
        self._parts = parts
        self._tasks = tasks
        self._directory = directory
        self._seconds = seconds
        self._warm_up_s = warm_up_s
        self._scale = scale
        self._say = say
        self._save = save
        self._rate_per_s = 0.0

    def rounds(self, count: int) -> None:
        """Do ``count`` rounds; every second one in the opposite order. Then the long parts.

        Raises:
            BenchmarkError: a system did not do what it should.
        """
        for number in range(count):
            # etcd first of all: the rate of the open loops comes from it.
            for name in self._names if number % 2 == 0 else reversed(self._names):
                self._one(name, number, count)
        for part in (part for part in LONG if part in self._parts):
            self._long(part, count)

    def _lacks(self, workload: str, name: str, number: int) -> bool:
        """Whether round ``number`` of a workload is still to be run."""
        return len(self.runs.get(workload, {}).get(name, ())) <= number

    def _place(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._directory))

    def _one(self, name: str, number: int, count: int) -> None:
        tasks = [task for task in self._tasks if self._lacks(task.name, name, number) and _has(name, task)]
        others = [part for part in self._others(name) if self._lacks(part, name, number)]
        if not tasks and not others:
            return
        self._say(f"round {number + 1} of {count}: {name}")
        system = SYSTEMS[name](self._place(name))
        try:
            system.start()
            for task in tasks:
                self._keep(task.name, name, system.run(task))
            for part in others:
                self._other(part, system, name)
        finally:
            system.stop()
        self._save()

    def _others(self, name: str) -> list[str]:
        """The workloads of a round that are no closed loops, in order; fail-over ends the cluster."""
        if name == THIRD:
            return []
        made = [part for part in ("latency", "idle") if part in self._parts]
        if "gateway" in self._parts and name == THEIRS:
            made += [f"json-put-{depth}" for depth in GATEWAY_DEPTHS]
        return made + [part for part in ("failover",) if part in self._parts]

    def _other(self, part: str, system: System, name: str) -> None:
        if part == "latency":
            self._latency(system, name)
        elif part == "idle":
            time.sleep(1.0)
            self._keep(part, name, {"cpu_percent": system.idle_cpu_percent(IDLE_S)})
        elif part == "failover":
            self._keep(part, name, system.fail_over())
        else:
            assert isinstance(system, Etcd)
            depth = int(part.rpartition("-")[2])
            self._keep(part, name, system.gateway(Task(name=part, in_flight=depth, seconds=self._seconds)))

    def _latency(self, system: System, name: str) -> None:
        """Both at the same rate: half of what etcd did at most."""
        if not self._rate_per_s:
            puts = [by.get(THEIRS, []) for task, by in self.runs.items() if task.startswith("put-")]
            fastest = max((run["rate_per_s"] for its in puts for run in its), default=0.0)
            self._rate_per_s = round(LATENCY_SHARE * fastest, -2) or 1_000.0
        task = Task(
            name="latency",
            rate_per_s=self._rate_per_s,
            seconds=self._seconds,
            warm_up_s=self._warm_up_s,
        )
        self._keep(task.name, name, system.run(task))

    def _long(self, part: str, count: int) -> None:
        """A part with clusters of its own, in as many rounds as it is worth, in alternation."""
        long = LONG[part]
        for number in range(min(count, long.rounds)):
            for name in self._names if number % 2 == 0 else reversed(self._names):
                if name not in long.systems or not self._lacks(long.workloads[0], name, number):
                    continue
                self._say(f"{part}, round {number + 1}: {name}")
                for workload, run in long.run(SYSTEMS[name], lambda: self._place(part), self._scale):
                    self._keep(workload, name, run)
                self._save()

    def _keep(self, task: str, name: str, run: Run | None) -> None:
        if run is not None:
            self.runs.setdefault(task, {}).setdefault(name, []).append(run)
            shown = {key: value for key, value in run.items() if value != "" and key != "errors"}
            self._say(f"  {task}: {shown}")


def _has(name: str, task: Task) -> bool:
    """Whether a system has such a thing: else it would be asked again and again."""
    if name == OURS:
        return True
    if name == THEIRS:
        return task.keys == 1 and task.operation != "mix"
    return task.keys == 1 and task.operation == "put"
