"""Cuts a failing schedule down to the faults that it takes.

Delta debugging in its simple form (Zeller and Hildebrandt, "Simplifying and Isolating
Failure-Inducing Input", 2002): drop halves, then quarters, and so on, while the same check fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from twisted_paxos.testing.schedule import Fault, Schedule

RUNS_MAX: Final = 80
"""How many runs are made at most."""


def minimise(
    schedule: Schedule, fails: Callable[[Schedule], bool], runs_max: int = RUNS_MAX
) -> tuple[Schedule, int]:
    """The smallest schedule found for which ``fails`` is still true, and how many runs that took.

    Args:
        schedule: one that fails.
        fails: runs a schedule; whether it fails in the same way.
        runs_max: bound on the effort.
    """
    runs = 0

    def still_fails(faults: Sequence[Fault]) -> bool:
        nonlocal runs
        runs += 1
        return fails(schedule._replace(faults=tuple(faults)))

    faults = list(schedule.faults)
    if faults and runs < runs_max and still_fails(()):
        return schedule._replace(faults=()), runs
    size = max(1, len(faults) // 2)
    while runs < runs_max and faults:
        dropped = False
        start = 0
        while start < len(faults) and runs < runs_max:
            fewer = faults[:start] + faults[start + size :]
            if still_fails(fewer):
                faults, dropped = fewer, True
            else:
                start += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2)
    return schedule._replace(faults=tuple(faults)), runs
