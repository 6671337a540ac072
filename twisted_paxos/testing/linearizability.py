"""Is a concurrent history of one register linearizable?

Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of Lowe, "Testing
for Linearizability" (2017): a set of linearized calls with the state that they lead to is tried once.

The register knows two operations: a read gives its value; a swap writes a value, unique in the
history, and gives the value that it replaced. A call of unknown outcome has no end: it may take effect at any
time after its start, or never, and gives nothing. A compare-and-swap is, by what came of it, a swap or a
read; of unknown outcome, a swap that needs a certain value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EMPTY = ""
"""What a register holds before the first write."""


class Call(NamedTuple):
    """One call.

    Attributes:
        start_s, end_s: from when to when; the end is infinity when the outcome is unknown.
        writes: the value that it writes; empty for a read.
        gave: the value that it read or replaced; None when that is unknown.
        needs: of an unknown outcome: it has no effect unless this is the value; None: any will do.
    """

    start_s: float
    end_s: float
    writes: str
    gave: str | None
    needs: str | None = None

    def __str__(self) -> str:
        what = f"swap({self.writes})" if self.writes else "read"
        return f"{what} -> {self.gave!r} from {self.start_s:.4f} to {self.end_s:.4f}"


def find_violation(calls: Sequence[Call]) -> str:
    """Why the history is not linearizable; empty when it is.

    Args:
        calls: of one register, in any order.
    """
    seen = {call.gave for call in calls}
    # A write of unknown outcome whose value nobody saw need not have happened.
    history = [call for call in calls if call.gave is not None or (call.writes and call.writes in seen)]
    history.sort(key=lambda call: (call.start_s, call.end_s))
    needed = sum(1 << n for n, c in enumerate(history) if c.gave is not None)
    best = _Search(history, needed)
    if best.run():
        return ""
    stuck = [call for n, call in enumerate(history) if best.furthest >> n & 1 == 0 and call.gave is not None]
    first = min(stuck, key=lambda call: call.end_s)
    return f"no order explains {first}; the register held {best.furthest_state!r} at best"


class _Search:
    """Depth first, with an explicit stack.

    Attributes:
        furthest: of all sets of calls that could be put in order, the one with most of them, as bits.
        furthest_state: what the register holds after those.
    """

    def __init__(self, history: Sequence[Call], needed: int) -> None:
        self.furthest = 0
        self.furthest_state = EMPTY
        self._history = history
        self._needed = needed
        self._seen = {(0, EMPTY)}

    def run(self) -> bool:
        """Whether an order exists."""
        stack = [(0, EMPTY)]
        while stack:
            taken, state = stack.pop()
            if taken & self._needed == self._needed:
                return True
            if (taken & self._needed).bit_count() > (self.furthest & self._needed).bit_count():
                self.furthest, self.furthest_state = taken, state
            following = [step for step in self._next(taken, state) if step not in self._seen]
            self._seen.update(following)
            # Calls with a known outcome are tried first: they are at the end of the stack.
            stack += following
        return False

    def _next(self, taken: int, state: str) -> list[tuple[int, str]]:
        """Every call that may come next: none that is not taken yet ended before it began."""
        known: list[tuple[int, str]] = []
        unknown: list[tuple[int, str]] = []
        ends_s = float("inf")
        for number, call in enumerate(self._history):
            if taken >> number & 1:
                continue
            if call.start_s > ends_s:
                break
            ends_s = min(ends_s, call.end_s)
            if call.gave is None:
                if call.needs is not None and call.needs != state:
                    continue
                unknown.append((taken | 1 << number, call.writes))
            elif call.gave == state:
                known.append((taken | 1 << number, call.writes or state))
        return [*unknown, *known]
