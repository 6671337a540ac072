"""The log of revisions: what each one changed, and how much compacting up to it frees.

Sizes are kept as running sums, so that the size of the state after any compaction is a
subtraction: what counts for the quota is known at once and is the same on every member,
however far each one's memory was really cleaned.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import TypeAlias

from twisted_paxos.statemachine.kvcommands import KeyValue

Entry: TypeAlias = KeyValue | tuple[KeyValue, ...]
"""A revision's changes in their order; a single one, the usual case, without a tuple around it."""

_TRIM_MIN = 4_096


class RevisionLog:
    """Revisions ``first`` to ``last``, without a gap.

    Attributes:
        first: the lowest revision that it has.
    """

    __slots__ = ("_entries", "_freed", "_gone", "first")

    def __init__(self, first: int) -> None:
        self.first = first
        self._gone = 0  # leading places whose entries were forgotten
        self._entries: list[Entry | None] = []
        self._freed = array("q")

    @property
    def last(self) -> int:
        """The highest revision; ``first - 1`` when there is none."""
        return self.first - self._gone + len(self._entries) - 1

    def append(self, entry: Entry, freed_bytes: int) -> None:
        """Add the next revision; ``freed_bytes`` is the running sum up to and with it."""
        self._entries.append(entry)
        self._freed.append(freed_bytes)

    def extend(self, entries: Sequence[KeyValue], freed_bytes: Sequence[int]) -> None:
        """`append` for revisions of one change each."""
        self._entries.extend(entries)
        self._freed.extend(freed_bytes)

    def entry(self, revision: int) -> tuple[KeyValue, ...]:
        """The changes of ``revision``, which must be between ``first`` and ``last``."""
        assert revision >= self.first
        entry = self._entries[revision - self.first + self._gone]
        assert entry is not None
        return entry if type(entry) is tuple else (entry,)  # type: ignore[return-value]

    def single_changes(self, start: int, end: int) -> list[KeyValue] | None:
        """The changes of revisions ``start`` to ``end`` (not included); None when one of them has several."""
        assert start >= self.first
        offset = self._gone - self.first
        entries = self._entries[start + offset : end + offset]
        return None if tuple in set(map(type, entries)) else entries  # type: ignore[return-value]

    def first_singles(self, count: int) -> list[KeyValue]:
        """The changes of the first revisions, at most ``count``, up to the first one with several changes."""
        entries = self._entries[self._gone : self._gone + count]
        types = list(map(type, entries))
        return entries[: types.index(tuple)] if tuple in types else entries  # type: ignore[return-value]

    def freed_upto(self, revision: int) -> int:
        """The running sum at ``revision``, which must be between ``first`` and ``last``."""
        assert revision >= self.first
        return self._freed[revision - self.first + self._gone]

    def first_with_freed(self, freed_bytes: int) -> int:
        """The lowest revision whose running sum is at least ``freed_bytes``; ``last + 1`` if none."""
        place = bisect_left(self._freed, freed_bytes, lo=self._gone)
        return place + self.first - self._gone

    def forget_first(self, count: int = 1) -> None:
        """Forget the lowest revisions."""
        self._entries[self._gone : self._gone + count] = [None] * count
        self._gone += count
        self.first += count
        # In large steps: taking one from the front of a list moves all others.
        if self._gone >= _TRIM_MIN and self._gone * 4 >= len(self._entries):
            del self._entries[: self._gone]
            del self._freed[: self._gone]
            self._gone = 0
