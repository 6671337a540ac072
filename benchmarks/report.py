"""What comes out of a comparison: medians, ratios, goals, a table, and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks import charts
from benchmarks.figures import Run, median_of, ratio
from benchmarks.long import GROWTH_KEYS, NODES, NODES_DEPTHS, growth_name
from benchmarks.rounds import DEPTHS, OURS, SIZES, SYSTEMS, THEIRS, THIRD, Runs


class Goal(NamedTuple):
    """What is to be reached.

    Attributes:
        workload: which.
        against: the system that ours is compared with; empty: ours alone.
        figure: by what; with ``against``, by the median of its ratios.
        limit: how much.
        at_least: or, when False, at most.
    """

    workload: str
    against: str
    figure: str
    limit: float
    at_least: bool = True

    def __str__(self) -> str:
        what = f"{self.figure} of {self.against}'s" if self.against else self.figure
        return f"{'>=' if self.at_least else '<='} {self.limit:g} {what}"


GOALS = (
    Goal("put-1", THEIRS, "rate_per_s", 1.2),
    Goal("put-8", THEIRS, "rate_per_s", 2.0),
    Goal("put-64", THEIRS, "rate_per_s", 3.0),
    Goal("put-512", THEIRS, "rate_per_s", 4.0),
    Goal("put-1", THIRD, "rate_per_s", 50.0),
    Goal("put-512", THIRD, "rate_per_s", 10.0),
    Goal("read-512", THEIRS, "rate_per_s", 3.0),
    Goal("put-1MiB", THEIRS, "rate_per_s", 1.0),
    Goal("latency", THEIRS, "p99_ms", 1.0, at_least=False),
    Goal("latency", THEIRS, "p999_ms", 1.0, at_least=False),
    Goal("idle", "", "cpu_percent", 1.0, at_least=False),
    Goal("failover", THEIRS, "fail_over_s", 0.5, at_least=False),
    Goal("keys-1M", "", "cost_ratio", 1.2, at_least=False),
)

_COMPARED_BY = ("fail_over_s", "cpu_percent", "seconds", "rate_per_s")


def summary(runs: Runs, goals: Sequence[Goal] = GOALS) -> list[dict[str, Any]]:
    """One row a workload: medians of each system, ratios of ours to theirs, and how the goals stand."""
    rows = []
    for task, by in runs.items():
        row: dict[str, Any] = {"workload": task}
        for name, its in by.items():
            numbers = {key for run in its for key, value in run.items() if isinstance(value, int | float)}
            row[name] = {key: median_of(its, key) for key in sorted(numbers)}
        if OURS in by:
            figure = _figure(by[OURS][0])
            row["ratios"] = {
                name: round(ratio(by[OURS], its, figure), 3) for name, its in by.items() if name != OURS
            }
            row["goals"] = [found for goal in goals if (found := _reached(goal, task, by)) is not None]
        rows.append(row)
    return rows


def _figure(run: Run) -> str:
    """What a run is compared by."""
    return next(key for key in _COMPARED_BY if key in run)


def _reached(goal: Goal, task: str, by: Mapping[str, Sequence[Run]]) -> dict[str, Any] | None:
    """How a goal stands; None when it is not this workload's, or nothing was measured against it."""
    if goal.workload != task or (goal.against and goal.against not in by):
        return None
    if goal.against:
        found = ratio(by[OURS], by[goal.against], goal.figure)
    else:
        found = median_of(by[OURS], goal.figure)
    reached = found >= goal.limit if goal.at_least else found <= goal.limit
    return {"goal": str(goal), "found": round(found, 3), "reached": reached}


def table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Table:
    """The medians as a table."""
    made = Table(title="medians; ratios are medians of the rounds' ratios, ours to theirs")
    made.add_column("workload")
    for name in names:
        made.add_column(name, justify="right")
        made.add_column("p50 / p99 / p99.9 / max ms", justify="right")
    made.add_column("ratio", justify="right")
    made.add_column("goals")
    for row in rows:
        cells = [row["workload"]]
        for name in names:
            cells += _cells(row.get(name))
        ratios = row.get("ratios", {})
        cells.append("  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
        cells.append("; ".join(_told(goal) for goal in row.get("goals", ())))
        made.add_row(*cells)
    return made


def _told(goal: Mapping[str, Any]) -> str:
    return f"{goal['goal']}: {goal['found']:g}, {'yes' if goal['reached'] else 'no'}"


def _cells(figures: dict[str, float] | None) -> tuple[str, str]:
    if not figures:
        return "", ""
    if "rate_per_s" not in figures:
        return " ".join(f"{value:g} {name}" for name, value in figures.items()), ""
    spread = [figures[name] for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms") if name in figures]
    return f"{figures['rate_per_s']:,.0f}/s", " / ".join(f"{value:.3g}" for value in spread)


class _Chart(NamedTuple):
    """One chart: a group of bars for each of ``workloads``."""

    name: str
    title: str
    unit: str
    workloads: tuple[str, ...]
    figure: str = "rate_per_s"
    logarithmic: bool = False


_CHARTS = (
    _Chart(
        "puts",
        "Puts by commands in flight",
        "per second",
        tuple(f"put-{n}" for n in DEPTHS),
        "rate_per_s",
        True,
    ),
    _Chart("reads", "Reads, 512 in flight", "per second", ("read-512", "serializable-512", "mix-512")),
    _Chart(
        "sizes", "Puts of large values, 8 in flight", "per second", tuple(f"put-{size}" for size in SIZES)
    ),
    _Chart("leases", "Keep-alives of a lease, 512 in flight", "per second", ("keepalive-512",)),
    _Chart("failover", "From kill -9 of the leader to the next write", "s", ("failover",), "fail_over_s"),
    _Chart("idle", "CPU of an idle node", "% of a core", ("idle",), "cpu_percent"),
    _Chart("watch", "Events to 1,000 watchers of one prefix", "per second", ("watch",)),
    _Chart(
        "nodes",
        "Puts with more nodes",
        "per second",
        tuple(f"{count}-nodes-put-{depth}" for depth in NODES_DEPTHS for count in NODES),
        "rate_per_s",
        True,
    ),
    _Chart(
        "restart",
        "From a start after a million commands to the first read",
        "s",
        ("restart",),
        "seconds",
    ),
    _Chart("catchup", "A node catches up with 300,000 commands", "s", ("catchup",), "seconds"),
    _Chart(
        "growth",
        "CPU for one put by number of keys",
        "times that of a cluster with 10,000, beside it",
        tuple(growth_name(keys) for keys in GROWTH_KEYS),
        "cost_ratio",
    ),
)


def draw(rows: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """Write one chart for each kind of workload that was measured."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in _CHARTS:
        chosen = [row for task in chart.workloads for row in rows if row["workload"] == task]
        if chosen:
            path = directory / f"{chart.name}.svg"
            names = _systems(chosen)
            series = {
                name: [row.get(name, {}).get(chart.figure, math.nan) for row in chosen] for name in names
            }
            groups = [row["workload"] for row in chosen]
            path.write_text(charts.bars(chart.title, chart.unit, groups, series, chart.logarithmic))
            written.append(path)
    latency = [row for row in rows if row["workload"] == "latency"]
    if latency:
        written.append(_draw_latency(directory / "latency.svg", latency[0]))
    return written


def _systems(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in SYSTEMS if any(name in row for row in rows)]


def _draw_latency(path: Path, row: dict[str, Any]) -> Path:
    names = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    series = {system: [row[system].get(name, math.nan) for name in names] for system in _systems([row])}
    groups = ["p50", "p99", "p99.9", "max"]
    path.write_text(charts.bars("Latency of puts at one fixed rate", "ms", groups, series, True))
    return path
