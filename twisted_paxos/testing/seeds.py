"""Runs many seeds on all cores, or on a Dask cluster: both look like `concurrent.futures`."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from twisted.logger import globalLogBeginner

from twisted_paxos.errors import ConfigError
from twisted_paxos.testing.minimise import minimise
from twisted_paxos.testing.run import Outcome, Run
from twisted_paxos.testing.schedule import FAULTY_S, Schedule, draw_load, draw_schedule

SEEDS_MAX: Final = 10_000_000
AHEAD: Final = 4
"""Runs that are planned per worker, so that none waits."""

T = TypeVar("T")
Argument = TypeVar("Argument")


class Wish(NamedTuple):
    """One run that is wanted.

    Attributes:
        seed: which.
        size: number of voters, or None.
        kinds: kinds of faults, or None for all.
        faulty_s: how long faults go on.
        trace: keep readable lines.
        mutant: the name of a planted bug, or nothing.
        minimised: cut the schedule down if it fails.
        load: what clients do; drawn from the seed when empty.
    """

    seed: int
    size: int | None = None
    kinds: tuple[str, ...] | None = None
    faulty_s: float = FAULTY_S
    trace: bool = False
    mutant: str = ""
    minimised: bool = True
    load: str = ""


class Found(NamedTuple):
    """What came of it.

    Attributes:
        wish: what was wanted.
        outcome: of the run, or, where it failed, of the minimised one that fails alike.
        schedule: of that.
        runs: how many runs the cutting down took.
    """

    wish: Wish
    outcome: Outcome
    schedule: Schedule
    runs: int = 0


def parse_seeds(text: str) -> list[int]:
    """``7``, ``0-999`` or a comma-separated list of both.

    Raises:
        ConfigError: it is none.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ConfigError(f"{text!r} is no list of seeds: give for example 0-99,7") from None
    if not 0 < len(seeds) <= SEEDS_MAX:
        raise ConfigError(f"{text!r}: between 1 and {SEEDS_MAX:,} seeds")
    return seeds


def run_seed(wish: Wish) -> Found:
    """Run one seed in this process."""
    from twisted_paxos.testing.mutants import planted

    quieten()
    schedule = draw_schedule(
        wish.seed, wish.size, wish.kinds, wish.faulty_s, wish.load or draw_load(wish.seed)
    )
    with planted(wish.mutant):
        outcome = Run(schedule, wish.trace).run()
        if not outcome.check or not wish.minimised:
            return Found(wish, outcome, schedule)
        smaller, runs = minimise(schedule, lambda tried: Run(tried).run().check == outcome.check)
        return Found(wish, Run(smaller, wish.trace).run(), smaller, runs)


_quiet = False


def quieten() -> None:
    """Twisted keeps what is logged before a log begins: in a process that runs seeds, drop it.

    What is loaded by now stays, so the collections after each run need not look at it.
    """
    global _quiet
    if not _quiet:
        _quiet = True
        gc.freeze()
        globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


@contextmanager
def workers(jobs: int | None = None, dask: str = "") -> Iterator[tuple[Executor, int]]:
    """An executor, and how many runs it does at once.

    Args:
        jobs: worker processes; as many as there are cores when None.
        dask: address of a Dask scheduler to use instead.

    Raises:
        ConfigError: Dask is not installed, or not there.
    """
    if dask:
        yield from _dask_workers(dask)
        return
    count = jobs or os.cpu_count() or 1
    with ProcessPoolExecutor(count) as executor:
        yield executor, count


def _dask_workers(address: str) -> Iterator[tuple[Executor, int]]:
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("Dask is not installed: pip install 'twisted_paxos[dask]'") from None
    try:
        client = Client(address, timeout=10)
    except OSError as error:
        raise ConfigError(f"no Dask scheduler at {address}: {error}") from None
    try:
        yield client.get_executor(), max(1, sum(client.ncores().values()))
    finally:
        client.close()


def run_all(
    executor: Executor, count: int, work: Callable[[Argument], T], arguments: Iterable[Argument]
) -> Iterator[T]:
    """``work`` of each argument, as results come; few are under way at a time, so it can be ended."""
    remaining = iter(arguments)
    running: set[Future[Any]] = {executor.submit(work, wish) for wish in islice(remaining, AHEAD * count)}
    try:
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for wish in islice(remaining, len(done)):
                running.add(executor.submit(work, wish))
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
