"""What ``key`` and ``range_end`` select.

Inside the store a range is ``(start, end)``: ``end`` None means no upper bound. A single key
is the range from it to its direct successor.
"""

from __future__ import annotations

from typing import TypeAlias

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
