"""Medians, percentiles and ratios; what one run of a workload gives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Run: TypeAlias = dict[str, Any]
"""One run of one workload on one system: ``rate_per_s``, ``p50_ms`` and so on, as far as it has them."""

PERCENTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of ``ordered`` are not above; not a number when there is none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies(seconds: Iterable[float]) -> dict[str, float]:
    """The percentiles of `PERCENTILES`, in milliseconds."""
    ordered = sorted(seconds)
    return {name: round(1000 * percentile(ordered, share), 3) for name, share in PERCENTILES.items()}


def median(values: Iterable[float]) -> float:
    """The median of the numbers among ``values``; not a number when there is none."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.median(numbers) if numbers else math.nan


def median_of(runs: Sequence[Run], name: str) -> float:
    """The median of one figure over several runs; runs without it do not count."""
    return median(run[name] for run in runs if name in run)


def ratio(ours: Sequence[Run], theirs: Sequence[Run], name: str) -> float:
    """The median of the ratios round by round: run ``n`` of ours by run ``n`` of theirs."""
    pairs = zip(ours, theirs, strict=False)
    both = ((a.get(name, math.nan), b.get(name, math.nan)) for a, b in pairs)
    return median(a / b for a, b in both if b)
