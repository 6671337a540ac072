"""``python -m twisted_paxos.testing.simulate``: whole clusters, simulated, with everything that can go wrong.

    python -m twisted_paxos.testing.simulate --seeds 0-999
    python -m twisted_paxos.testing.simulate --seeds 17 --trace --faults network,crash

One seed is one run of about 20 simulated seconds: a cluster of the real node code on a simulated
network and simulated disks, three clients with the real client library (or clients of the key-value
store, or both: ``--load``), faults for a while, then none, then the final checks. The same seed gives
the same run, in any process. Exit status 1 when a check failed; then the seed, the check, the faults
that it takes and, with ``--trace``, all that happened are printed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twisted_paxos.errors import ConfigError
from twisted_paxos.testing.schedule import FAULTY_S, LOADS, describe, parse_kinds
from twisted_paxos.testing.seeds import Found, Wish, parse_seeds, run_all, run_seed, workers

FAILURES_SHOWN_MAX = 20

LINE_EVERY_S = 20.0
"""How often a run whose output is no terminal says how far it is."""


class Summary:
    """Counts what came of many runs, and shows those that failed."""

    def __init__(self, console: Console) -> None:
        self.failed = 0
        self._console = console
        self._checks: Counter[str] = Counter()
        self._runs = self._writes = self._reads = 0
        self._simulated_s = 0.0
        self._started_s = monotonic()

    def add(self, found: Found) -> None:
        """One more result."""
        outcome = found.outcome
        self._runs += 1
        self._writes += outcome.writes
        self._reads += outcome.reads
        self._simulated_s += outcome.simulated_s
        if outcome.check:
            self.failed += 1
            self._checks[outcome.check] += 1
            if self.failed <= FAILURES_SHOWN_MAX:
                self._show(found)

    def _show(self, found: Found) -> None:
        outcome, schedule = found.outcome, found.schedule
        for line in outcome.trace:
            self._print(line)
        self._print(f"\nseed {found.wish.seed} fails: {outcome.check}: {outcome.what}")
        for line in describe(schedule):
            self._print(f"    {line}")
        if found.runs:
            self._print(f"    (cut down to {len(schedule.faults)} faults in {found.runs} runs)")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """The last lines."""
        elapsed_s = max(monotonic() - self._started_s, 0.001)
        self._print(
            f"{self._runs} seeds, {self._simulated_s:,.0f} simulated seconds in {elapsed_s:,.0f} s"
            f" ({self._simulated_s / elapsed_s:.1f} per second);"
            f" {self._writes:,} writes and {self._reads:,} reads were acknowledged"
        )
        counts = ", ".join(f"{check}: {count}" for check, count in self._checks.most_common())
        self._print(f"{self.failed} failed ({counts})" if self.failed else "no violation")


def simulate(wishes: Iterable[Wish], jobs: int | None, dask: str, console: Console) -> int:
    """Run ``wishes``; returns how many failed.

    Raises:
        ConfigError: the Dask cluster cannot be used.
    """
    summary = Summary(console)
    wishes = list(wishes)
    with _results(wishes, jobs, dask) as results:
        for found in watched(results, len(wishes), console):
            summary.add(found)
    summary.close()
    return summary.failed


@contextmanager
def _results(wishes: Sequence[Wish], jobs: int | None, dask: str) -> Iterator[Iterable[Found]]:
    if jobs == 1 and not dask:
        yield map(run_seed, wishes)
    else:
        with workers(jobs, dask) as (executor, count):
            yield run_all(executor, count, run_seed, wishes)


def watched(results: Iterable[Found], total: int, console: Console) -> Iterator[Found]:
    """``results`` as they come: with a bar on a terminal, with a line now and then in a file."""
    if not console.is_terminal:
        yield from _with_lines(results, total, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=total)
        for found in results:
            yield found
            progress.advance(task)


def _with_lines(results: Iterable[Found], total: int, console: Console) -> Iterator[Found]:
    started_s = told_s = monotonic()
    for count, found in enumerate(results, 1):
        yield found
        now_s = monotonic()
        if now_s - told_s >= LINE_EVERY_S and count < total:
            told_s = now_s
            console.print(f"{count} of {total} seeds in {now_s - started_s:.0f} s", highlight=False)


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--seeds", default="0-99", show_default=True, help="Seeds, such as 0-999 or 3,5,8-9.")
@click.option("--nodes", type=click.IntRange(1, 9), help="Voters; 3 or 5, from the seed, unless given.")
@click.option("--faults", default="all", show_default=True, help="Kinds or classes of faults, or none.")
@click.option("--load", type=click.Choice(LOADS), help="What clients do; from the seed, unless given.")
@click.option("--trace", is_flag=True, help="Show all that happened in a run that fails.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=FAULTY_S, help="How long faults go on.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; as many as there are cores.")
@click.option("--dask", default="", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
@click.option("--mutant", default="", help="Plant a bug; see twisted_paxos.testing.mutants.")
@click.option("--whole", is_flag=True, help="Do not cut down a schedule that fails.")
def main(
    seeds: str,
    nodes: int | None,
    faults: str,
    load: str | None,
    trace: bool,
    seconds: float,
    jobs: int | None,
    dask: str,
    mutant: str,
    whole: bool,
) -> None:
    """The command line."""
    console = Console()
    try:
        numbers = parse_seeds(seeds)
        kinds = None if faults == "all" else parse_kinds(faults)
        wishes = (Wish(seed, nodes, kinds, seconds, trace, mutant, not whole, load or "") for seed in numbers)
        failed = simulate(wishes, jobs or (1 if len(numbers) == 1 else None), dask, console)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
