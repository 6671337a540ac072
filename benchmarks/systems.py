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

from benchmarks import plain
from benchmarks.figures import Run
from benchmarks.load import Workload
from benchmarks.processes import BenchmarkError, Processes, environment, output_of, python, wait_for
from twisted_paxos.statemachine.kvcommands import StoreQuery
from twisted_paxos.testing.nodes import free_ports

UIDS = ("A", "B", "C")
MORE_UIDS = (*UIDS, "D", "E", "F", "G")
FILL_IN_FLIGHT = 512
LONG_S = 900.0
"""How long filling, a restart or a catch-up may take."""
UNDER_WAY_S = 0.1
"""So long after a leader's death answers of its own may still arrive."""
GRACE_S = 60.0
"""How much longer than its own time a driver may take."""


class Task(Struct, frozen=True, kw_only=True):
    """One workload, for any system.

    Attributes:
        name: in the tables.
        operation: see `benchmarks.load.Workload`.
        in_flight: operations under way; the most that may be in an open loop.
        rate_per_s: for an open loop.
        operations, keys, first_key, key_step, value_bytes, seconds, warm_up_s: see
            `benchmarks.load.Workload`; only ours ends after a number of operations, and has many keys.
    """

    name: str
    operation: str = "put"
    in_flight: int = 1
    rate_per_s: float = 0.0
    operations: int = 0
    keys: int = 1
    first_key: int = 0
    key_step: int = 1
    value_bytes: int = 64
    seconds: float = 3.0
    warm_up_s: float = 1.0


class System(ABC):
    """A cluster on 127.0.0.1, with data in a directory of its own.

    Args:
        directory: empty.
        nodes: how many.
    """

    name = ""

    def __init__(self, directory: Path, nodes: int = len(UIDS)) -> None:
        self.directory = directory
        self.uids = MORE_UIDS[:nodes]
        self.processes = Processes(directory)
        self._leader = ""

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

    def fail_over(self) -> Run | None:
        """Kill the leader while a client writes; see `silences`. None if it cannot tell."""
        return None

    def fill(self, operations: int) -> None:
        """Put the one key so often, as fast as it goes."""
        raise BenchmarkError(f"{self.name} is not filled")

    def revision(self, uid: str) -> int | None:
        """The revision that one node has applied; None while it does not answer."""
        return None

    def serves(self) -> bool | None:
        """True once some node answers a linearizable read; None before."""
        return None

    def restart_s(self) -> float:
        """Kill all at once, start all; seconds from there until a linearizable read is answered."""
        names = self.processes.kill_all()
        began_s = time.monotonic()
        for name in names:
            self.processes.start_again(name)
        wait_for(f"{self.name} serves again", self.serves, LONG_S)
        return time.monotonic() - began_s

    def catch_up_s(self, operations: int) -> float:
        """Stop a follower, fill, start it again; seconds until it has applied what the leader has."""
        behind = next(uid for uid in reversed(self.uids) if uid != self._leader)
        self.processes.kill(behind)
        self.fill(operations)
        target = wait_for("the leader tells its revision", lambda: self.revision(self._leader))
        began_s = time.monotonic()
        self.processes.start_again(behind)
        wait_for(
            f"{self.name} has caught up",
            lambda: True if (self.revision(behind) or 0) >= target else None,
            LONG_S,
        )
        return time.monotonic() - began_s

    def stop(self) -> None:
        """End all processes and remove the data."""
        self.processes.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def idle_cpu_percent(self, seconds: float) -> float:
        """Share of one core that a node takes with nothing to do, mean of all, in per cent."""
        before = self.processes.cpu_s()
        time.sleep(seconds)
        after = self.processes.cpu_s()
        used_s = sum(after[name] - before[name] for name in after)
        return round(100 * used_s / len(after) / seconds, 3)


def silences(times_s: Sequence[float], killed_s: float) -> Run:
    """What the times of acknowledgements say of a kill.

    Returns:
        ``fail_over_s``, from the kill to the end of the silence that follows it, and
        ``later_silence_s``, the longest one after that.

    Raises:
        BenchmarkError: there was no acknowledgement after it.
    """
    before = [time_s for time_s in times_s if time_s <= killed_s]
    after = [time_s for time_s in times_s if time_s > killed_s]
    if not before or not after:
        raise BenchmarkError("no acknowledged write before the leader was killed, or none after it")
    points = [killed_s, *after]
    gaps = [(later - earlier, earlier, later) for earlier, later in pairwise(points)]
    _, _, served_s = max(gap for gap in gaps if gap[1] <= killed_s + UNDER_WAY_S)
    later_s = max((length_s for length_s, began_s, _ in gaps if began_s >= served_s), default=0.0)
    return {"fail_over_s": round(served_s - killed_s, 3), "later_silence_s": round(later_s, 3)}


class TwistedPaxos(System):
    """Nodes of this checkout, default settings."""

    name = "twisted_paxos"

    @staticmethod
    def missing() -> list[str]:
        """See `System`: it runs this."""
        return []

    def start(self) -> None:
        """See `System`."""
        uids = self.uids
        ports = free_ports(2 * len(uids))
        peers = [f"--peer={uid}=127.0.0.1:{port}" for uid, port in zip(uids, ports, strict=False)]
        self._endpoints = {
            uid: f"127.0.0.1:{port}" for uid, port in zip(uids, ports[len(uids) :], strict=True)
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
        return leaders[0] if leaders and len(statuses) == len(self.uids) else None

    def _ask(self, what: str) -> Any:
        endpoints = ",".join(self._endpoints.values())
        return msgspec.json.decode(output_of(python("-m", "benchmarks.ask", what, endpoints), GRACE_S))

    def _from_leader(self) -> list[str]:
        others = [endpoint for uid, endpoint in self._endpoints.items() if uid != self._leader]
        return [self._endpoints[self._leader], *others]

    @property
    def leader(self) -> str:
        """The id of the leader, as found at the start."""
        return self._leader

    @property
    def followers(self) -> list[str]:
        """All the others."""
        return [uid for uid in self.uids if uid != self._leader]

    @property
    def leader_endpoint(self) -> str:
        """Where clients of the leader connect."""
        return self._endpoints[self._leader]

    def load_command(self, workload: Workload) -> list[str]:
        """What to run for a load."""
        return python("-m", "benchmarks.load", msgspec.json.encode(workload).decode())

    def run(self, task: Task) -> Run | None:
        """See `System`."""
        workload = Workload(
            endpoints=self._from_leader(),
            operation=task.operation,
            in_flight=task.in_flight,
            rate_per_s=task.rate_per_s,
            operations=task.operations,
            keys=task.keys,
            first_key=task.first_key,
            key_step=task.key_step,
            value_bytes=task.value_bytes,
            seconds=task.seconds,
            warm_up_s=task.warm_up_s,
        )
        before = self.processes.cpu_s()
        limit_s = LONG_S if task.operations else task.seconds + task.warm_up_s + GRACE_S
        said = output_of(self.load_command(workload), limit_s)
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
        if task.operation in ("read", "serializable", "keepalive"):
            return
        found = self._ask("revisions")
        if found != [self._puts] * len(self.uids):
            raise BenchmarkError(
                f"twisted_paxos: {self._puts} puts acknowledged, {found} applied on the nodes"
            )

    def fill(self, operations: int) -> None:
        """See `System`."""
        workload = Workload(endpoints=self._from_leader(), in_flight=FILL_IN_FLIGHT, operations=operations)
        done = msgspec.json.decode(output_of(self.load_command(workload), LONG_S))
        if done["errors"]:
            raise BenchmarkError(f"twisted_paxos: {done['errors']} errors: {done['error']}")
        self._puts += done["acknowledged_puts"]

    def revision(self, uid: str) -> int | None:
        """See `System`."""
        return plain.revision(self._endpoints[uid])

    def serves(self) -> bool | None:
        """See `System`."""
        asked = (plain.ask(endpoint, StoreQuery(), False) for endpoint in self._endpoints.values())
        return True if any(answer is not None for answer in asked) else None

    def fail_over(self) -> Run | None:
        """See `System`."""
        # Other loads came before: it may be another one by now.
        self._leader = wait_for("twisted_paxos has a leader", self._find_leader)
        workload = Workload(endpoints=self._from_leader(), seconds=6.0, warm_up_s=0.5, times=True)
        return fail_over_of(self.processes, self._leader, self.load_command(workload))


def fail_over_of(processes: Processes, leader: str, writer: list[str]) -> Run:
    """Run a writer, kill the leader after two seconds; see `silences`."""
    with subprocess.Popen(writer, stdout=subprocess.PIPE, env=environment()) as writing:
        time.sleep(3.0)
        killed_s = processes.kill(leader)
        said, _ = writing.communicate(timeout=GRACE_S)
    return silences(msgspec.json.decode(said)["times_s"], killed_s)
