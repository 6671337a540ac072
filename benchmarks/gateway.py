"""Compares our JSON gateway with etcd's, by wrk, side by side on this machine.

    python -m benchmarks.gateway --help
    python -m benchmarks.gateway --rounds 5 --json gateway.json

Three members each, default settings, fsync on, one system at a time and in alternation. ``-1`` and ``-64``
are connections to the leader, ``-64-spread`` the same number over all three members. After each workload
of puts the key's ``version`` must account for every answer.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
from rich.console import Console

from benchmarks.etcd import wrk_figures
from benchmarks.figures import Run
from benchmarks.machine import machine, versions
from benchmarks.processes import BenchmarkError, output_of, wait_for
from benchmarks.report import Goal, summary, table
from benchmarks.rounds import THEIRS, Runs
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.etcdservers import Servers, etcd, ours, post

SYSTEMS: dict[str, Callable[[Path, int], Servers]] = {"etcd": etcd, "twisted_paxos": ours}
MEMBERS = 3
KEY, VALUE = b"key-000000000001", b"v" * 64
GRACE_S = 30.0
THREADS_MAX = 2
GOALS = tuple(
    Goal(name, THEIRS, "rate_per_s", limit)
    for name, limit in (
        ("put-1", 1.0),
        ("put-64", 0.7),
        ("put-64-spread", 0.7),
        ("range-1", 1.0),
        ("range-64", 0.7),
        ("range-64-spread", 0.7),
    )
)


class Load(NamedTuple):
    """One workload.

    Attributes:
        name: in the table.
        path, body: the request.
        connections: in all.
        spread: over all members, not on the leader alone.
    """

    name: str
    path: str
    body: dict[str, str]
    connections: int
    spread: bool = False


def loads(connections: Sequence[int]) -> list[Load]:
    """All workloads: puts and linearizable ranges of one key."""
    key = base64.b64encode(KEY).decode()
    put = {"key": key, "value": base64.b64encode(VALUE).decode()}
    most = max(connections)
    made = []
    for name, path, body in (("put", "kv/put", put), ("range", "kv/range", {"key": key})):
        made += [Load(f"{name}-{count}", path, body, count) for count in connections]
        made.append(Load(f"{name}-{most}-spread", path, body, most, spread=True))
    return made


def leader_first(servers: Servers) -> list[str]:
    """Addresses of all members, the leader's first."""

    def find() -> list[str] | None:
        for address in servers.addresses:
            status = post(address, "/v3/maintenance/status", {})
            if status.get("leader") == status["header"]["member_id"]:
                return [address, *(other for other in servers.addresses if other != address)]
        return None

    return wait_for(f"{servers.name} has a leader", find)


def shares(connections: int, members: int) -> list[int]:
    """Connections of each member, as even as can be; none gets none."""
    each, more = divmod(connections, members)
    counts = [each + (number < more) for number in range(members)]
    return [count for count in counts if count]


class Wrk:
    """Runs wrk against a cluster.

    Args:
        servers: the cluster, running.
        directory: for scripts.
        seconds: of each run.
    """

    def __init__(self, servers: Servers, directory: Path, seconds: int) -> None:
        self._addresses = leader_first(servers)
        self._name = servers.name
        self._directory = directory
        self._seconds = seconds
        # What is read must be there, and every put from now on counts.
        post(self._addresses[0], "/v3/kv/put", loads([1])[0].body)

    def run(self, load: Load) -> Run:
        """One workload.

        Raises:
            BenchmarkError: a request failed, or what was answered is not there.
        """
        before = self._settled()
        members = self._addresses if load.spread else self._addresses[:1]
        run = self._together(load, members)
        stored = self._settled() - before
        answered = run["operations"] if load.path == "kv/put" else 0
        # A request of each connection may be under way when wrk ends.
        if not answered <= stored <= answered + (load.connections if answered else 0):
            raise BenchmarkError(f"{self._name}, {load.name}: {answered} puts answered, {stored} stored")
        return run

    def _wrk(self, load: Load, address: str, connections: int) -> Run:
        script = self._directory / f"{load.name}-{address.replace(':', '-')}.lua"
        script.write_text(f"wrk.method = 'POST'\nwrk.body = '{json.dumps(load.body)}'\n")
        threads = min(THREADS_MAX, connections)
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{self._seconds}s", "--latency"]
        said = output_of(
            [*command, "-s", str(script), f"http://{address}/v3/{load.path}"], self._seconds + GRACE_S
        )
        return wrk_figures(said)

    def _together(self, load: Load, addresses: Sequence[str]) -> Run:
        counts = shares(load.connections, len(addresses))
        with ThreadPoolExecutor(len(counts)) as pool:
            runs = list(pool.map(lambda pair: self._wrk(load, *pair), zip(addresses, counts, strict=False)))
        return together(runs)

    def _settled(self) -> int:
        """The version once it stays: requests under way when wrk went are done a little later."""
        seen = [-1]

        def same() -> int | None:
            seen.append(self._version())
            return seen[-1] if seen[-1] == seen[-2] else None

        return wait_for(f"{self._name}: nothing is written any more", same)

    def _version(self) -> int:
        key = base64.b64encode(KEY).decode()
        found = post(self._addresses[0], "/v3/kv/range", {"key": key})
        return int(found["kvs"][0]["version"])


def together(runs: Sequence[Run]) -> Run:
    """Runs at the same time as one: rates add up; latencies are the worst member's."""
    made: Run = {"operations": sum(run["operations"] for run in runs)}
    made["rate_per_s"] = round(sum(run["rate_per_s"] for run in runs), 1)
    for name in ("p50_ms", "p99_ms"):
        made[name] = max(run.get(name, 0.0) for run in runs)
    return made


def measure(
    rounds: int, work: Sequence[Load], directory: Path, seconds: int, say: Callable[[str], None]
) -> Runs:
    """All rounds, every second one in the opposite order; each with new clusters.

    Raises:
        BenchmarkError: a system did not do what it should.
    """
    runs: Runs = {}
    for number in range(rounds):
        names = list(SYSTEMS) if number % 2 == 0 else list(reversed(SYSTEMS))
        for name in names:
            say(f"round {number + 1} of {rounds}: {name}")
            place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
            with SYSTEMS[name](place, MEMBERS) as servers:
                wrk = Wrk(servers, place, seconds)
                for load in work:
                    run = wrk.run(load)
                    say(f"  {load.name}: {run}")
                    runs.setdefault(load.name, {}).setdefault(name, []).append(run)
            shutil.rmtree(place, ignore_errors=True)
    return runs


def _missing() -> list[str]:
    packages = {"etcd": "etcd-server", "wrk": "wrk"}
    return [package for command, package in packages.items() if shutil.which(command) is None]


def _report(runs: Runs, where: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    rows = summary(runs, GOALS)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": versions(),
        "machine": where,
        "settings": settings,
        "summary": rows,
        "runs": runs,
    }


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Runs of each system.")
@click.option("--seconds", default=3, show_default=True, type=click.IntRange(1), help="Of each workload.")
@click.option("--connections", default="1,64", show_default=True, help="Of wrk.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Where data go.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All figures.")
def main(rounds: int, seconds: int, connections: str, directory: Path | None, json_file: Path | None) -> None:
    """Compare our JSON gateway with etcd's on this machine."""
    absent = _missing()
    if absent:
        raise click.ClickException(f"install first: apt-get install {' '.join(absent)}")
    try:
        counts = [int(count) for count in connections.split(",")]
    except ValueError:
        raise click.BadParameter(f"{connections!r} is no list of numbers") from None
    settings = {"rounds": rounds, "seconds": seconds, "connections": counts, "members": MEMBERS}
    say = Console(stderr=True, highlight=False).print
    with tempfile.TemporaryDirectory(prefix="paxos-gateway-", dir=directory) as place:
        where = machine(Path(place))
        try:
            runs = measure(rounds, loads(counts), Path(place), seconds, say)
        except (BenchmarkError, PaxosError) as error:
            raise click.ClickException(str(error)) from None
    report = _report(runs, where, settings)
    Console(width=None if Console().is_terminal else 160).print(table(report["summary"], list(SYSTEMS)))
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
    if json_file is None:
        click.echo(encoded.decode(), nl=False)
    else:
        json_file.write_bytes(encoded)


if __name__ == "__main__":
    main()
