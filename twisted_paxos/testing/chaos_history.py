"""What the chaos tests' clients did, and whether the log agrees with it. Pure.

The checks: every acknowledged write is in the log where its result said; none is there twice;
nothing is there that nobody proposed; and if one write was acknowledged before another began,
it is before it in the log (real-time order: writes are linearizable). Reads and swaps of a key, at all
nodes, must have an order that explains what they gave (`linearizability`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import Struct

from twisted_paxos.client import SlotEntry, Special, payload_of
from twisted_paxos.core.messages import decode_value
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.linearizability import Call, find_violation

Place = tuple[int, int]
"""Slot, and place in the slot's batch."""


class ChaosFailed(PaxosError):
    """A promise to users was broken; the text says which."""


class Write(Struct):
    """One write.

    Attributes:
        worker: who wrote.
        invoked_s: when it began, on the run's one clock.
        acknowledged_s: when its result came; None when none came.
        place: where its result said that it is.
    """

    worker: str
    invoked_s: float
    acknowledged_s: float | None = None
    place: Place | None = None


class History:
    """All writes of one cluster's life.

    Attributes:
        writes: by value; each value is written once.
        read_upto: the log is known up to this slot.
        calls: reads and swaps of the key of the present repetition.
        reads: how many linearizable reads were explained so far.
    """

    def __init__(self) -> None:
        self.writes: dict[str, Write] = {}
        self.read_upto = 0
        self.calls: list[Call] = []
        self.reads = 0
        self._found: dict[str, Place] = {}
        self._seen: set[tuple[str, int]] = set()

    def read(self, entries: Iterable[SlotEntry]) -> None:
        """Take the log's next entries.

        Raises:
            ChaosFailed: a gap, a value of nobody's, or one that is there twice.
        """
        for entry in entries:
            if entry.slot != self.read_upto + 1:
                raise ChaosFailed(f"slot {entry.slot} follows slot {self.read_upto} in the log")
            self.read_upto = entry.slot
            for index, command in enumerate(decode_value(entry.value).commands):
                key = (command.client, command.sequence)
                # A repetition has the same key; it is in the log and was not applied again.
                if command.sequence and key not in self._seen:
                    self._seen.add(key)
                    value = payload_of(command)
                    if not isinstance(value, Special):
                        self._place(value, (entry.slot, index))

    def _place(self, value: object, place: Place) -> None:
        if not isinstance(value, str) or value not in self.writes:
            raise ChaosFailed(f"{str(value)[:80]!r} at {place} was never proposed")
        if value in self._found:
            raise ChaosFailed(f"{value[:80]!r} is at {self._found[value]} and again at {place}")
        self._found[value] = place

    def check(self) -> None:
        """Compare what was acknowledged with the log as far as it was read.

        Raises:
            ChaosFailed: something is missing, elsewhere, or out of order.
        """
        for value, write in self.writes.items():
            if write.place is not None and self._found.get(value) != write.place:
                raise ChaosFailed(
                    f"{value[:80]!r} was acknowledged at {write.place}, and is at {self._found.get(value)}"
                )
        self._check_order()
        self._check_calls()

    def _check_calls(self) -> None:
        violation = find_violation(self.calls)
        if violation:
            raise ChaosFailed(f"not linearizable: {violation}")
        self.reads += sum(call.gave is not None and not call.writes for call in self.calls)
        self.calls.clear()

    def _check_order(self) -> None:
        """No write may be before one that was acknowledged when it began."""
        begun = sorted((self.writes[value].invoked_s, place) for value, place in self._found.items())
        ended = sorted(
            (write.acknowledged_s, write.place)
            for write in self.writes.values()
            if write.acknowledged_s is not None and write.place is not None
        )
        position, latest = 0, (0, 0)
        for invoked_s, place in begun:
            while position < len(ended) and ended[position][0] < invoked_s:
                latest = max(latest, ended[position][1])
                position += 1
            if place < latest:
                raise ChaosFailed(f"the write at {place} began after the one at {latest} was acknowledged")

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged."""
        return sum(write.place is not None for write in self.writes.values())

    def times_s(self, worker: str = "") -> list[float]:
        """When acknowledgements came, sorted: those of ``worker``, or all."""
        return sorted(
            write.acknowledged_s
            for write in self.writes.values()
            if write.acknowledged_s is not None and worker in ("", write.worker)
        )


def longest_gap_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """The longest time without an acknowledgement that touches [``start_s``, ``end_s``].

    A gap counts from the last acknowledgement before the start, and is cut at the end.
    """
    before = [time_s for time_s in times_s if time_s <= start_s]
    within = [time_s for time_s in times_s if start_s < time_s <= end_s]
    moments = [*before[-1:], *within, end_s] if before else [start_s, *within, end_s]
    return max(later - earlier for earlier, later in pairwise(moments))
