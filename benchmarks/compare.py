"""Compares twisted_paxos with etcd and PySyncObj, side by side on this machine.

    python -m benchmarks.compare --help
    python -m benchmarks.compare --json figures.json --charts docs/performance

Installs nothing; says what to install. Runs one system at a time, in alternation, each time with a new
cluster on 127.0.0.1 whose data lie in one directory; then gives medians, and the medians of the ratios round
by round. With ``--json`` the figures are written after each system: the same command again goes on where
one that was cut short had come to. `docs/performance.md` explains the method.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from benchmarks.machine import machine, versions
from benchmarks.processes import BenchmarkError
from benchmarks.report import draw, summary, table
from benchmarks.rounds import DEPTHS, OURS, PARTS, SYSTEMS, THEIRS, THIRD, Comparison, Runs, tasks_of


class Report:
    """The figures, and the file that they go to.

    Args:
        path: the file; None when there is none.
        settings: of this call; figures of other settings are not gone on with.
        where: the machine.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], where: dict[str, Any]) -> None:
        self.runs: Runs = {}
        self._path = path
        self._settings = settings
        self._where = where
        if path is not None and path.exists() and path.stat().st_size:
            self._go_on(path)

    def _go_on(self, path: Path) -> None:
        try:
            found = msgspec.json.decode(path.read_bytes())
            settings, runs = found["settings"], found["runs"]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise click.ClickException(f"{path} holds no figures: remove it first") from None
        if settings != self._settings:
            raise click.ClickException(f"{path} has figures of other settings, {settings}: remove it first")
        self.runs = runs

    def encoded(self) -> bytes:
        """All of it, as JSON."""
        report = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "versions": versions(),
            "machine": self._where,
            "settings": self._settings,
            "summary": summary(self.runs),
            "runs": self.runs,
        }
        return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"

    def save(self) -> None:
        """Write what there is so far."""
        if self._path is not None:
            self._path.write_bytes(self.encoded())


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
@click.option("--only", "parts", default=",".join(PARTS), show_default=True, help="Which workloads.")
@click.option("--depths", default=",".join(map(str, DEPTHS)), show_default=True, help="Commands in flight.")
@click.option("--scale", default=1.0, show_default=True, help="Share of their size that the long parts have.")
@click.option("--directory", type=_DIRECTORY, help="Where data go [default: temporary].")
@click.option("--json", "json_file", type=_FILE, help="Write all figures here; go on from what is there.")
@click.option("--charts", "chart_directory", type=_DIRECTORY, help="Write charts here.")
def main(
    rounds: int,
    seconds: float,
    warm_up: float,
    systems: str,
    parts: str,
    depths: str,
    scale: float,
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
    settings = {"seconds": seconds, "warm_up_s": warm_up, "key_bytes": 16, "value_bytes": 64, "scale": scale}
    console = Console(stderr=True, highlight=False)
    for name, version in versions().items():
        console.print(f"{name} {version}")
    with tempfile.TemporaryDirectory(prefix="paxos-bench-", dir=directory) as place:
        report = Report(json_file, settings, machine(Path(place)))
        comparison = Comparison(
            names,
            wanted,
            tasks_of(wanted, numbers, seconds, warm_up),
            Path(place),
            seconds,
            warm_up,
            scale,
            console.print,
            report.save,
            report.runs,
        )
        try:
            comparison.rounds(rounds)
        except BenchmarkError as error:
            raise click.ClickException(str(error)) from None
    _publish(report, names, json_file is None, chart_directory)


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


def _publish(report: Report, names: Sequence[str], in_full: bool, chart_directory: Path | None) -> None:
    console = Console(width=None if Console().is_terminal else 250)
    rows = summary(report.runs)
    console.print(table(rows, [name for name in SYSTEMS if name in names]))
    report.save()
    if in_full:
        console.print_json(report.encoded().decode())
    if chart_directory is not None:
        for path in draw(rows, chart_directory):
            console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
