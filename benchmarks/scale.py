"""What a cluster of ours with much in it takes: memory, restart, pauses, a wiped node, watchers and leases.

    python -m benchmarks.scale --only keys,wiped,clients [--json scale.json] [--scale 0.01]

keys     1,000,000 keys of 16 + 64 bytes: memory of a node, the longest that a node did not answer meanwhile,
         and from kill -9 of all (while puts go on) to the first linearizable read
wiped    a node whose directory was removed comes back to 500 MB: how fast, and what the others do meanwhile
clients  10,000 watchers and 10,000 leases: memory and CPU of each node, with nothing else to do
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import Raw

from benchmarks import plain
from benchmarks.figures import Run
from benchmarks.load import Workload
from benchmarks.processes import BenchmarkError, environment, wait_for
from benchmarks.systems import LONG_S, Task, TwistedPaxos
from twisted_paxos.core.messages import Command
from twisted_paxos.statemachine.commands import OPEN_SESSION
from twisted_paxos.statemachine.kvcommands import LeaseGrant, encode
from twisted_paxos.statemachine.watches import WatchRequest
from twisted_paxos.wire import client as wire

KEYS = 1_000_000
STATE_BYTES = 500_000_000
LARGE_VALUE_BYTES = 8 << 10
WATCHERS = 10_000
WATCHERS_PER_CONNECTION = 100
LEASES = 10_000
LEASE_TTL_S = 3_600
IDLE_S = 5.0
PROBE_S = 0.002
MIB = 1 << 20


class Probe(threading.Thread):
    """Asks a node for its status again and again; how long the longest answer took.

    Args:
        endpoint: of the node.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self._ended = threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        """Until `end`, or the node is gone."""
        with plain.Connection(self._endpoint, LONG_S) as connection:
            while not self._ended.wait(PROBE_S):
                start_s = time.perf_counter()
                connection.send(wire.GetStatus(1))
                connection.receive()
                self.longest_s = max(self.longest_s, time.perf_counter() - start_s)

    def end(self) -> float:
        """The longest answer, in milliseconds."""
        self._ended.set()
        self.join()
        return round(1000 * self.longest_s, 1)


def _memory_mib(system: TwistedPaxos) -> float:
    """Of a node, mean of all."""
    memory = system.processes.memory_bytes().values()
    return round(sum(memory) / len(memory) / MIB, 1)


def keys(system: TwistedPaxos, scale: float) -> Run:
    """See the module."""
    count = max(1, round(KEYS * scale))
    before_mib = _memory_mib(system)
    probe = Probe(system.leader_endpoint)
    probe.start()
    system.run(Task(name="fill", in_flight=512, operations=count, keys=count, key_step=7_919))
    pause_ms = probe.end()
    after_mib = _memory_mib(system)
    restart_s = system.restart_s()
    return {
        "keys": count,
        "memory_mib": after_mib,
        "bytes_per_key": round((after_mib - before_mib) * MIB / count - 16 - 64, 1),
        "longest_answer_ms": pause_ms,
        "restart_s": round(restart_s, 2),
    }


def wiped(system: TwistedPaxos, scale: float) -> Run:
    """See the module."""
    count = max(1, round(STATE_BYTES * scale / LARGE_VALUE_BYTES))
    system.run(Task(name="fill", in_flight=64, operations=count, keys=count, value_bytes=LARGE_VALUE_BYTES))
    load = Task(name="load", in_flight=64, seconds=3.0)
    before = system.run(load)
    behind = system.followers[0]
    system.processes.kill(behind)
    shutil.rmtree(system.directory / behind)
    began_s = time.monotonic()
    system.processes.start_again(behind)
    meanwhile = _loaded_until(system, lambda: (system.revision(behind) or 0) > count)
    took_s = time.monotonic() - began_s
    assert before is not None
    return {
        "state_mb": round(count * LARGE_VALUE_BYTES / 1e6, 1),
        "catch_up_s": round(took_s, 2),
        "mb_per_s": round(count * LARGE_VALUE_BYTES / 1e6 / took_s, 1),
        "puts_per_s_before": before["rate_per_s"],
        "puts_per_s_meanwhile": meanwhile,
    }


def _loaded_until(system: TwistedPaxos, condition: Callable[[], bool]) -> float:
    """Puts a second, one after another in 64, until ``condition`` holds."""
    workload = Workload(endpoints=[system.leader_endpoint], in_flight=64, seconds=LONG_S, warm_up_s=0.0)
    began_s, before = time.monotonic(), system.revision(system.leader)
    with subprocess.Popen(
        system.load_command(workload), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as loading:
        try:
            wait_for("the wiped node has caught up", lambda: True if condition() else None, LONG_S)
            done = (system.revision(system.leader) or 0) - (before or 0)
            return round(done / (time.monotonic() - began_s), 1)
        finally:
            loading.kill()


def clients(system: TwistedPaxos, scale: float) -> Run:
    """See the module."""
    watchers, leases = max(1, round(WATCHERS * scale)), max(1, round(LEASES * scale))
    idle_s = IDLE_S * max(scale, 0.1)
    idle_percent, before_mib = system.idle_cpu_percent(idle_s), _memory_mib(system)
    with ExitStack() as stack:
        left = watchers
        while left > 0:
            connection = stack.enter_context(plain.Connection(system.leader_endpoint))
            for number in range(min(left, WATCHERS_PER_CONNECTION)):
                connection.send(wire.Watch(number + 1, WatchRequest(b"%08d" % (left - number))))
            for _ in range(min(left, WATCHERS_PER_CONNECTION)):
                connection.receive_kind(wire.WatchStarted)
            left -= WATCHERS_PER_CONNECTION
        _grant(stack.enter_context(plain.Connection(system.leader_endpoint)), leases)
        after = system.processes.memory_bytes()
        return {
            "watchers": watchers,
            "leases": leases,
            "leader_mib_more": round(after[system.leader] / MIB - before_mib, 1),
            "follower_mib_more": round(after[system.followers[0]] / MIB - before_mib, 1),
            "idle_cpu_percent_before": idle_percent,
            "idle_cpu_percent": system.idle_cpu_percent(idle_s),
        }


def _grant(connection: plain.Connection, leases: int) -> None:
    session = "many-leases"
    connection.send(wire.Submit(1, (Command(session, 0, 0, OPEN_SESSION),)))
    connection.receive_kind(wire.Results)
    payload = Raw(encode(LeaseGrant(LEASE_TTL_S)))
    for first in range(1, leases + 1, 500):
        numbers = range(first, min(first + 500, leases + 1))
        connection.send(wire.Submit(first, tuple(Command(session, n, first, payload) for n in numbers)))
        missing = len(numbers)
        while missing > 0:
            missing -= len(connection.receive_kind(wire.Results).results)


PARTS: dict[str, Callable[[TwistedPaxos, float], Run]] = {"keys": keys, "wiped": wiped, "clients": clients}

_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--only", default=",".join(PARTS), show_default=True, help="Which parts.")
@click.option("--scale", default=1.0, show_default=True, help="Share of the full size, for a trial.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Where data go.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write figures here."
)
def main(only: str, scale: float, directory: Path | None, json_file: Path | None) -> None:
    """What a cluster with much in it takes."""
    names = [name.strip() for name in only.split(",")]
    if not set(names) <= PARTS.keys():
        raise click.BadParameter(f"there are {', '.join(PARTS)}", param_hint="--only")
    figures: dict[str, Any] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="paxos-scale-", dir=directory) as place:
            system = TwistedPaxos(Path(place))
            try:
                system.start()
                figures[name] = PARTS[name](system, scale)
            except BenchmarkError as error:
                raise click.ClickException(str(error)) from None
            finally:
                system.processes.stop()
        for figure, value in figures[name].items():
            sys.stdout.write(f"{name:8} {figure:26} {value:,}\n")
            sys.stdout.flush()
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


if __name__ == "__main__":
    main()
