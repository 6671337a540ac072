"""Counts of durations, cheap enough to stand beside every sync and every batch."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

LATENCY_BOUNDS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the buckets in seconds: from a fast disk's sync to a stuck one's."""


class Distribution(NamedTuple):
    """What a `Histogram` held at one moment.

    Attributes:
        bounds_s: upper bounds of the buckets, in seconds, ascending.
        counts: how many fell into each bucket, and, last, how many lay above all of them.
        sum_s: all of them added up, in seconds.
    """

    bounds_s: tuple[float, ...] = LATENCY_BOUNDS_S
    counts: tuple[int, ...] = (0,) * (len(LATENCY_BOUNDS_S) + 1)
    sum_s: float = 0.0

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.counts)


class Histogram:
    """Counts durations by size; one `observe` is a binary search and two additions."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, duration_s)] += 1
        self._sum_s += duration_s

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds_s, tuple(self._counts), self._sum_s)
