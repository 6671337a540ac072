"""The systems under test: three nodes each, and how each is loaded and asked."""

from __future__ import annotations

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.figures import Run
from benchmarks.load import Workload
from benchmarks.processes import BenchmarkError, Processes, environment, output_of, python, wait_for
from twisted_paxos.testing.nodes import free_ports

UIDS = ("A", "B", "C")
GRACE_S = 60.0
"""How much longer than its own time a driver may take."""


class Task(Struct, frozen=True, kw_only=True):
    """One workload, for any system.

    Attributes:
        name: in the tables.
        operation: see `benchmarks.load.Workload`.
        in_flight: operations under way; the most that may be in an open loop.
        rate_per_s: for an open loop.
        keys, value_bytes, seconds, warm_up_s: see `benchmarks.load.Workload`.
    """

    name: str
    operation: str = "put"
    in_flight: int = 1
    rate_per_s: float = 0.0
    keys: int = 1
    value_bytes: int = 64
    seconds: float = 3.0
    warm_up_s: float = 1.0


class System(ABC):
    """A cluster of three on 127.0.0.1, with data in a directory of its own.

    Args:
        directory: empty.
    """

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes = Processes(directory)

    @staticmethod
    @abstractmethod
    def missing() -> list[str]:
        """What must be installed first: one command each; nothing when all is there."""

    @abstractmethod
    def start(self) -> None:
        """Start the cluster and wait until it has a leader."""

    @abstractmethod
    def run(self, task: Task) -> Run | None:
        """Do a workload, and check that what was acknowledged is there; None: it has no such thing."""

    def fail_over_s(self) -> float | None:
        """Kill the leader while a client writes; seconds until the next acknowledgement, if it can tell."""
        return None

    def stop(self) -> None:
        """End all processes and remove the data."""
        self.processes.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def idle_cpu_percent(self, seconds: float) -> float:
        """Share of one core that a node takes with nothing to do, mean of the three, in per cent."""
        before = self.processes.cpu_s()
        time.sleep(seconds)
        after = self.processes.cpu_s()
        used_s = sum(after[name] - before[name] for name in after)
        return round(100 * used_s / len(after) / seconds, 3)


def longest_gap(times_s: Sequence[float], killed_s: float) -> float:
    """From the kill to the end of the longest silence that began at or after it, or contains it.

    Raises:
        BenchmarkError: there was no acknowledgement after it.
    """
    before = [time_s for time_s in times_s if time_s <= killed_s]
    after = [time_s for time_s in times_s if time_s > killed_s]
    if not before or not after:
        raise BenchmarkError("no acknowledged write before the leader was killed, or none after it")
    points = [killed_s, *after]
    gaps = [(later - earlier, later) for earlier, later in pairwise(points)]
    return max(gaps)[1] - killed_s


class TwistedPaxos(System):
    """Three nodes of this checkout, default settings."""

    name = "twisted_paxos"

    @staticmethod
    def missing() -> list[str]:
        """See `System`: it runs this."""
        return []

    def start(self) -> None:
        """See `System`."""
        ports = free_ports(2 * len(UIDS))
        peers = [f"--peer={uid}=127.0.0.1:{port}" for uid, port in zip(UIDS, ports, strict=False)]
        self._endpoints = {
            uid: f"127.0.0.1:{port}" for uid, port in zip(UIDS, ports[len(UIDS) :], strict=True)
        }
        for uid, endpoint in self._endpoints.items():
            client = f"tcp:{endpoint.rpartition(':')[2]}:interface=127.0.0.1"
            storage = f"file:{self.directory / uid}"
            options = [
                "--id",
                uid,
                *peers,
                "--storage",
                storage,
                "--client",
                client,
                "--http",
                "none",
                "--quiet",
            ]
            self.processes.start(uid, python("-m", "twisted_paxos", *options))
        self._puts = 0
        self._leader = wait_for("twisted_paxos has a leader", self._find_leader)

    def _find_leader(self) -> str | None:
        self.processes.check()
        statuses = self._ask("status")
        leaders = [status["uid"] for status in statuses if status["role"] == "leader"]
        return leaders[0] if leaders and len(statuses) == len(UIDS) else None

    def _ask(self, what: str) -> Any:
        endpoints = ",".join(self._endpoints.values())
        return msgspec.json.decode(output_of(python("-m", "benchmarks.ask", what, endpoints), GRACE_S))

    def _from_leader(self) -> list[str]:
        others = [endpoint for uid, endpoint in self._endpoints.items() if uid != self._leader]
        return [self._endpoints[self._leader], *others]

    def _command(self, workload: Workload) -> list[str]:
        return python("-m", "benchmarks.load", msgspec.json.encode(workload).decode())

    def run(self, task: Task) -> Run | None:
        """See `System`."""
        workload = Workload(
            endpoints=self._from_leader(),
            operation=task.operation,
            in_flight=task.in_flight,
            rate_per_s=task.rate_per_s,
            keys=task.keys,
            value_bytes=task.value_bytes,
            seconds=task.seconds,
            warm_up_s=task.warm_up_s,
        )
        before = self.processes.cpu_s()
        said = output_of(self._command(workload), task.seconds + task.warm_up_s + GRACE_S)
        after = self.processes.cpu_s()
        run: Run = msgspec.json.decode(said)
        used_s = {uid: after[uid] - before[uid] for uid in after}
        run["server_cpu_s"] = round(sum(used_s.values()), 3)
        if run["errors"]:
            raise BenchmarkError(f"twisted_paxos, {task.name}: {run['errors']} errors: {run['error']}")
        self._puts += run["acknowledged_puts"]
        self._check(task)
        return run

    def _check(self, task: Task) -> None:
        """Every put that was acknowledged made one revision, on every node, and nothing else did."""
        if task.operation in ("read", "serializable"):
            return
        found = self._ask("revisions")
        if found != [self._puts] * len(UIDS):
            raise BenchmarkError(
                f"twisted_paxos: {self._puts} puts acknowledged, {found} applied on the nodes"
            )

    def fail_over_s(self) -> float | None:
        """See `System`."""
        workload = Workload(endpoints=self._from_leader(), seconds=6.0, warm_up_s=0.5, times=True)
        return fail_over_of(self.processes, self._leader, self._command(workload))


def fail_over_of(processes: Processes, leader: str, writer: list[str]) -> float:
    """Run a writer, kill the leader after two seconds; seconds without a write."""
    with subprocess.Popen(writer, stdout=subprocess.PIPE, env=environment()) as writing:
        time.sleep(3.0)
        killed_s = processes.kill(leader)
        said, _ = writing.communicate(timeout=GRACE_S)
    return longest_gap(msgspec.json.decode(said)["times_s"], killed_s)
