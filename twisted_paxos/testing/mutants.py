"""Bugs planted on purpose, one at a time: a simulator that does not find them proves nothing.

    python -m twisted_paxos.testing.mutants

Each mutant is a patch at run time that breaks one rule of DESIGN.md. The simulator runs seed after
seed with it until a check fails; a seed that fails without the mutant as well does not count. The table
goes to `docs/testing.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, NamedTuple

import click
from rich.console import Console

from twisted_paxos.errors import ConfigError
from twisted_paxos.testing import core_bugs, kv_bugs, kv_watch_bugs, node_bugs
from twisted_paxos.testing.planting import MUTANTS
from twisted_paxos.testing.seeds import Wish, run_all, run_seed, workers

__all__ = ["MUTANTS", "Fate", "hunt", "planted", "table"]

SEEDS_MAX: Final = 500
"""How many seeds a mutant may survive."""

_REGISTERED = (core_bugs, node_bugs, kv_bugs, kv_watch_bugs)


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this lasts, the bug ``name`` is there; none for an empty name.

    Raises:
        ConfigError: there is no such mutant.
    """
    if name and name not in MUTANTS:
        raise ConfigError(f"{name!r} is no mutant; there are: {', '.join(MUTANTS)}")
    with ExitStack() as stack:
        for patch in MUTANTS[name].plant() if name else ():
            stack.enter_context(patch)
        yield


class Fate(NamedTuple):
    """What became of a mutant; ``seeds`` is 0 when it survived."""

    mutant: str
    seeds: int
    check: str
    what: str


def hunt(name: str, seeds_max: int = SEEDS_MAX) -> Fate:
    """Run seeds with the mutant until one fails that does not fail without it."""
    load = MUTANTS[name].load
    for seed in range(seeds_max):
        outcome = run_seed(Wish(seed, mutant=name, minimised=False, load=load)).outcome
        if outcome.check and not run_seed(Wish(seed, minimised=False, load=load)).outcome.check:
            return Fate(name, seed + 1, outcome.check, outcome.what)
    return Fate(name, 0, "", "")


def table(fates: Sequence[Fate]) -> list[str]:
    """The table of `docs/testing.md`."""
    lines = ["| mutant | rule | what is wrong | seeds | found by |", "|---|---|---|---|---|"]
    for fate in fates:
        found = MUTANTS[fate.mutant]
        seeds = str(fate.seeds) if fate.seeds else "not found"
        lines.append(f"| `{found.name}` | {found.rule} | {found.what} | {seeds} | {fate.check} |")
    return lines


@click.command(help="Find every planted bug with the simulator, and print the table.")
@click.argument("names", nargs=-1)
@click.option("--seeds", type=click.IntRange(1), default=SEEDS_MAX, show_default=True, help="To try at most.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; as many as there are cores.")
@click.option("--dask", default="", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
def main(names: tuple[str, ...], seeds: int, jobs: int | None, dask: str) -> None:
    """The command line."""
    console = Console()
    wanted = names or tuple(MUTANTS)
    unknown = [name for name in wanted if name not in MUTANTS]
    if unknown:
        raise click.ClickException(f"{unknown[0]!r} is no mutant; there are: {', '.join(MUTANTS)}")
    fates: dict[str, Fate] = {}
    try:
        with workers(jobs, dask) as (executor, count):
            for fate in run_all(executor, count, partial(hunt, seeds_max=seeds), wanted):
                fates[fate.mutant] = fate
                console.print(str(fate), markup=False, highlight=False, soft_wrap=True)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    for line in table([fates[name] for name in wanted]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if all(fate.seeds for fate in fates.values()) else 1)


if __name__ == "__main__":
    main()
