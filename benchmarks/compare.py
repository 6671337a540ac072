"""Compares twisted_paxos with etcd and PySyncObj, side by side on this machine.

    python -m benchmarks.compare --help
    python -m benchmarks.compare --charts docs/performance --json figures.json

Installs nothing; says what to install. Runs one system at a time, in alternation, each time with a new
cluster of three on 127.0.0.1 whose data lie in one directory; then gives medians, and the medians of the
ratios round by round. `docs/performance.md` explains the method.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import charts
from benchmarks.etcd import Etcd
from benchmarks.figures import Run, median_of, ratio
from benchmarks.machine import machine, versions
from benchmarks.processes import BenchmarkError
from benchmarks.pysync import PySyncObj
from benchmarks.systems import System, Task, TwistedPaxos

Runs: TypeAlias = dict[str, dict[str, list[Run]]]
"""Workload -> system -> its runs, in the order of rounds."""

SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (TwistedPaxos, Etcd, PySyncObj)}
OURS, THEIRS, THIRD = TwistedPaxos.name, Etcd.name, PySyncObj.name

DEPTHS = (1, 8, 64, 512)
SIZES = {"1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20}
MANY_KEYS = 100_000
IDLE_S = 5.0
LATENCY_SHARE = 0.5
"""The open loop runs at this share of etcd's rate with 512 in flight."""

GOALS = {
    "put-1": 1.2,
    "put-8": 2.0,
    "put-64": 3.0,
    "put-512": 4.0,
    "read-512": 3.0,
    "put-1MiB": 1.0,
}
"""What the rate is to be at least, as a multiple of etcd's."""

PARTS = ("put", "keys", "read", "size", "latency", "idle", "gateway", "failover")


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
    return made


class Comparison:
    """Runs the rounds.

    Args:
        names: the systems, in the order of the first round.
        parts: which of `PARTS`.
        tasks: the closed loops.
        directory: where data go; the same file system for all.
        seconds, warm_up_s: for the workloads that are no closed loops.
        say: told what happens, a line at a time.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[str],
        tasks: Sequence[Task],
        directory: Path,
        seconds: float,
        warm_up_s: float,
        say: Callable[[str], None],
    ) -> None:
        self.runs: Runs = {}
        self._names = list(names)
        self._parts = parts
        self._tasks = tasks
        self._directory = directory
        self._seconds = seconds
        self._warm_up_s = warm_up_s
        self._say = say
        self._rate_per_s = 0.0

    def rounds(self, count: int) -> None:
        """Do ``count`` rounds; every second one in the opposite order.

        Raises:
            BenchmarkError: a system did not do what it should.
        """
        for number in range(count):
            # etcd first of all: the rate of the open loops comes from it.
            for name in self._names if number % 2 == 0 else reversed(self._names):
                self._say(f"round {number + 1} of {count}: {name}")
                self._one(name)

    def _one(self, name: str) -> None:
        place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._directory))
        system = SYSTEMS[name](place)
        try:
            system.start()
            for task in self._tasks:
                self._keep(task.name, name, system.run(task))
            self._others(system, name)
        finally:
            system.stop()

    def _others(self, system: System, name: str) -> None:
        if name == THIRD:
            return
        if "latency" in self._parts:
            self._latency(system, name)
        if "idle" in self._parts:
            time.sleep(1.0)
            self._keep("idle", name, {"cpu_percent": system.idle_cpu_percent(IDLE_S)})
        if "gateway" in self._parts and isinstance(system, Etcd):
            for depth in (1, 64, 512):
                task = Task(name=f"json-put-{depth}", in_flight=depth, seconds=self._seconds)
                self._keep(task.name, name, system.gateway(task))
        if "failover" in self._parts:
            seconds = system.fail_over_s()
            if seconds is not None:
                self._keep("failover", name, {"fail_over_s": round(seconds, 3)})

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

    def _keep(self, task: str, name: str, run: Run | None) -> None:
        if run is not None:
            self.runs.setdefault(task, {}).setdefault(name, []).append(run)
            shown = {key: value for key, value in run.items() if value != "" and key != "errors"}
            self._say(f"  {task}: {shown}")


# -- what comes out


def summary(runs: Runs) -> list[dict[str, Any]]:
    """One row a workload: medians of each system, and ratios to ours."""
    rows = []
    for task, by in runs.items():
        row: dict[str, Any] = {"workload": task}
        for name, its in by.items():
            numbers = {key for run in its for key, value in run.items() if isinstance(value, int | float)}
            figures = sorted(numbers)
            row[name] = {key: median_of(its, key) for key in figures}
        if OURS in by:
            figure = _figure(by[OURS][0])
            row["ratios"] = {
                name: round(ratio(by[OURS], its, figure), 3) for name, its in by.items() if name != OURS
            }
            row["goal"] = GOALS.get(task)
        rows.append(row)
    return rows


def _figure(run: Run) -> str:
    """What a run is compared by."""
    return next(key for key in ("fail_over_s", "cpu_percent", "rate_per_s") if key in run)


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """The medians as a table."""
    made = Table(title="medians; ratios are medians of the rounds' ratios, ours to theirs")
    made.add_column("workload")
    for name in names:
        made.add_column(name, justify="right")
        made.add_column("p50 / p99 / p99.9 / max ms", justify="right")
    made.add_column("ratio", justify="right")
    made.add_column("goal", justify="right")
    for row in rows:
        cells = [row["workload"]]
        for name in names:
            cells += _cells(row.get(name))
        ratios = row.get("ratios", {})
        cells.append("  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
        cells.append(f"{row['goal']:g}" if row.get("goal") else "")
        made.add_row(*cells)
    return made


def _cells(figures: dict[str, float] | None) -> tuple[str, str]:
    if not figures:
        return "", ""
    if "rate_per_s" not in figures:
        return " ".join(f"{value:g} {name}" for name, value in figures.items()), ""
    spread = [figures[name] for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms") if name in figures]
    return f"{figures['rate_per_s']:,.0f}/s", " / ".join(f"{value:.3g}" for value in spread)


def draw(rows: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """Write one chart for each kind of workload."""
    directory.mkdir(parents=True, exist_ok=True)
    kinds = {
        "puts": ("Puts by commands in flight", [f"put-{depth}" for depth in DEPTHS]),
        "reads": ("Reads, 512 in flight", ["read-512", "serializable-512", "mix-512"]),
        "sizes": ("Puts of large values, 8 in flight", [f"put-{size}" for size in SIZES]),
    }
    written = []
    for name, (title, tasks) in kinds.items():
        chosen = [row for task in tasks for row in rows if row["workload"] == task]
        written += _draw(directory / f"{name}.svg", title, "per second", chosen, "rate_per_s", name == "puts")
    latency = [row for row in rows if row["workload"] == "latency"]
    if latency:
        written.append(_draw_latency(directory / "latency.svg", latency[0]))
    for name, title, unit, figure in (
        ("failover", "From kill -9 of the leader to the next write", "s", "fail_over_s"),
        ("idle", "CPU of an idle node", "% of a core", "cpu_percent"),
    ):
        chosen = [row for row in rows if row["workload"] == name]
        written += _draw(directory / f"{name}.svg", title, unit, chosen, figure, False)
    return written


def _systems(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in SYSTEMS if any(name in row for row in rows)]


def _draw(
    path: Path, title: str, unit: str, rows: Sequence[dict[str, Any]], figure: str, logarithmic: bool
) -> list[Path]:
    if not rows:
        return []
    series = {name: [row.get(name, {}).get(figure, math.nan) for row in rows] for name in _systems(rows)}
    groups = [row["workload"] for row in rows]
    path.write_text(charts.bars(title, unit, groups, series, logarithmic))
    return [path]


def _draw_latency(path: Path, row: dict[str, Any]) -> Path:
    names = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    series = {system: [row[system].get(name, math.nan) for name in names] for system in _systems([row])}
    groups = ["p50", "p99", "p99.9", "max"]
    path.write_text(charts.bars("Latency of puts at one fixed rate", "ms", groups, series, True))
    return path


def missing_of(names: Iterable[str]) -> list[str]:
    """What to install before these systems can run."""
    return [command for name in names for command in SYSTEMS[name].missing()]


_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Runs of each system.")
@click.option("--seconds", default=3.0, show_default=True, help="How long each workload is measured.")
@click.option("--warm-up", default=1.0, show_default=True, help="Seconds before that.")
@click.option(
    "--systems", default=f"{THEIRS},{OURS},{THIRD}", show_default=True, help="Which, in this order."
)
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Which workloads.")
@click.option("--depths", default=",".join(map(str, DEPTHS)), show_default=True, help="Commands in flight.")
@click.option("--directory", type=_DIRECTORY, help="Where data go [default: temporary].")
@click.option("--json", "json_file", type=_FILE, help="Write all figures here.")
@click.option("--charts", "chart_directory", type=_DIRECTORY, help="Write charts here.")
def main(
    rounds: int,
    seconds: float,
    warm_up: float,
    systems: str,
    parts: str,
    depths: str,
    directory: Path | None,
    json_file: Path | None,
    chart_directory: Path | None,
) -> None:
    """Compare twisted_paxos with etcd and PySyncObj on this machine."""
    names, wanted = _known(systems, SYSTEMS, "system"), _known(parts, PARTS, "part")
    absent = missing_of(names)
    if absent:
        raise click.ClickException(
            "install first: " + "; ".join(absent) + " (or leave it out with --systems)"
        )
    try:
        numbers = [int(depth) for depth in depths.split(",")]
    except ValueError:
        raise click.BadParameter(f"{depths!r} is no list of numbers", param_hint="--depths") from None
    _check_writable(json_file, chart_directory)
    error_console = Console(stderr=True, highlight=False)
    settings = {
        "rounds": rounds,
        "seconds": seconds,
        "warm_up_s": warm_up,
        "key_bytes": 16,
        "value_bytes": 64,
    }
    with tempfile.TemporaryDirectory(prefix="paxos-bench-", dir=directory) as place:
        where = machine(Path(place))
        comparison = Comparison(
            names,
            wanted,
            tasks_of(wanted, numbers, seconds, warm_up),
            Path(place),
            seconds,
            warm_up,
            error_console.print,
        )
        try:
            comparison.rounds(rounds)
        except BenchmarkError as error:
            raise click.ClickException(str(error)) from None
    rows = summary(comparison.runs)
    report = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": versions(),
        "machine": where,
        "settings": settings,
        "summary": rows,
        "runs": comparison.runs,
    }
    _publish(report, names, json_file, chart_directory)


def _check_writable(json_file: Path | None, chart_directory: Path | None) -> None:
    """Before the hour of measuring, not after it."""
    try:
        if json_file is not None:
            json_file.touch()
        if chart_directory is not None:
            chart_directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write {error.filename}: {error.strerror}") from None


def _known(text: str, known: Iterable[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"unknown {what} {name!r}; there are {', '.join(known)}")
    return names


def _publish(
    report: dict[str, Any], names: Sequence[str], json_file: Path | None, chart_directory: Path | None
) -> None:
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table(report["summary"], [name for name in SYSTEMS if name in names]))
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    if json_file is None:
        console.print_json(encoded.decode())
    else:
        json_file.write_bytes(encoded + b"\n")
    if chart_directory is not None:
        for path in draw(report["summary"], chart_directory):
            console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
