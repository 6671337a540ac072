"""What clients did, as they saw it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from twisted_paxos.testing.linearizability import Call


@dataclass(eq=False)
class Op:
    """One operation of one client.

    Attributes:
        key: of the register that it is about.
        value: what it writes, unique; empty for a read.
        start_s: when it began.
        end_s: when its outcome was known; infinity until then.
        outcome: ``open``, ``done``, ``refused`` (never done), or ``unknown`` (perhaps done, perhaps later).
        slot, index: its place in the log, when done.
        result: what it read, or what its write replaced; empty for nothing.
    """

    key: str
    value: str
    start_s: float
    end_s: float = math.inf
    outcome: str = "open"
    slot: int = 0
    index: int = 0
    result: str = ""

    @property
    def is_read(self) -> bool:
        """Whether it only reads."""
        return not self.value

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the log."""
        return self.slot, self.index

    def call(self) -> Call:
        """As the checker takes it; without an end while the outcome is open."""
        if self.outcome == "done":
            return Call(self.start_s, self.end_s, self.value, self.result)
        return Call(self.start_s, math.inf, self.value, None)

    def __str__(self) -> str:
        what = f"write of {self.value}" if self.value else "read"
        at = f" at {self.slot}.{self.index}" if self.slot else ""
        return f"{what} to {self.key} ({self.start_s:.4f} to {self.end_s:.4f} s{at}, {self.outcome})"
