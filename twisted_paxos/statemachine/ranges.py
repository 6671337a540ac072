"""What ``key`` and ``range_end`` select.

Inside the store a range is ``(start, end)``: ``end`` None means no upper bound. A single key
is the range from it to its direct successor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from sortedcontainers import SortedDict

from twisted_paxos.statemachine.kvcommands import FROM_KEY

Bounds: TypeAlias = tuple[bytes, bytes | None]
"""From ``start`` up to but without ``end``; None for no end."""


def bounds_of(key: bytes, range_end: bytes) -> Bounds:
    """The bounds that a request's two fields mean; where ``range_end`` is below ``key``, nothing."""
    if not range_end:
        return key, key + b"\0"
    return key, None if range_end == FROM_KEY else range_end


def within(key: bytes, bounds: Bounds) -> bool:
    """Whether ``key`` is in ``bounds``."""
    start, end = bounds
    return start <= key and (end is None or key < end)


class Coverage:
    """A union of ranges, kept as disjoint ones: adding and asking cost a logarithm of how many there are."""

    def __init__(self) -> None:
        self._ends: SortedDict[bytes, bytes | None] = SortedDict()

    def __iter__(self) -> Iterator[Bounds]:
        return iter(self._ends.items())

    def __contains__(self, key: bytes) -> bool:
        place = self._ends.bisect_right(key) - 1
        return place >= 0 and within(key, self._ends.peekitem(place))

    def add(self, bounds: Bounds) -> None:
        """Cover ``bounds`` too."""
        start, end = bounds
        if end is not None and start >= end:
            return
        ends = self._ends
        place = ends.bisect_right(start) - 1
        if place >= 0 and within(start, ends.peekitem(place)):
            start = ends.peekitem(place)[0]
        else:
            place += 1
        while place < len(ends) and (end is None or ends.peekitem(place)[0] <= end):
            _, other = ends.popitem(place)
            end = None if end is None or other is None else max(end, other)
        ends[start] = end
