"""The part of the log that is still moving: what lies above ``chosen_upto``.

Below and up to ``chosen_upto`` everything is chosen and storage has it; memory keeps only
the window above, which is bounded.

Must always hold: ``chosen_upto`` never goes back; an entry above it that is marked chosen
at ballot b stands for the chosen value only if it was accepted at a ballot >= b
(Paxos Made Simple, section 2.2, P2b: whatever is proposed above b is the same value).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Entry, SlotEntry


class Log:
    """Accepted and chosen entries above ``chosen_upto``.

    Args:
        chosen_upto: every slot up to here is chosen and stored.
        log_start: the lowest slot that storage still has.
        entries: what is stored above chosen_upto.

    Attributes:
        entries: slot -> entry, above chosen_upto.
        unsaved: the slots of those that storage does not have: heard by a node without a vote.
        bytes: the size of the values in ``entries``.
    """

    def __init__(
        self, chosen_upto: int = 0, log_start: int = 1, entries: Mapping[int, Entry] | None = None
    ) -> None:
        self.chosen_upto = chosen_upto
        self.log_start = log_start
        self.entries: dict[int, Entry] = dict(entries or {})
        assert all(slot > chosen_upto for slot in self.entries), "recovered entries lie above chosen_upto"
        self.unsaved: set[int] = set()
        self.bytes = sum(len(entry.value) for entry in self.entries.values())
        self._chosen_at: dict[int, ProposalID] = {}

    def put(self, slot: int, ballot: ProposalID, value: Raw, saved: bool) -> None:
        """Keep an entry; a later one of the same slot replaces it."""
        assert slot > self.chosen_upto, "what is chosen is final"
        old = self.entries.get(slot)
        self.bytes += len(value) - (len(old.value) if old else 0)
        self.entries[slot] = Entry(ballot, value)
        if saved:
            self.unsaved.discard(slot)
        else:
            self.unsaved.add(slot)

    def mark_chosen(self, slot: int, ballot: ProposalID) -> None:
        """Note that ``slot`` was chosen at ``ballot``; the value may still be missing here."""
        if slot <= self.chosen_upto:
            return
        known = self._chosen_at.get(slot)
        if known is None or ballot < known:
            self._chosen_at[slot] = ballot

    def is_chosen(self, slot: int) -> bool:
        """Whether ``slot`` is known as chosen, with or without its value."""
        return slot <= self.chosen_upto or slot in self._chosen_at

    @property
    def next_is_chosen(self) -> bool:
        """Whether the slot after ``chosen_upto`` is known as chosen."""
        return self.chosen_upto + 1 in self._chosen_at

    @property
    def highest_chosen(self) -> int:
        """The highest slot known as chosen, gaps below it or not."""
        return max(self._chosen_at) if self._chosen_at else self.chosen_upto

    @property
    def highest(self) -> int:
        """The highest slot with an entry."""
        return max(self.entries, default=self.chosen_upto)

    def install(self, slot: int) -> None:
        """A snapshot stands for everything up to ``slot``; entries above it are kept."""
        for old in [number for number in self.entries if number <= slot]:
            self.bytes -= len(self.entries.pop(old).value)
            self.unsaved.discard(old)
        self._chosen_at = {number: at for number, at in self._chosen_at.items() if number > slot}
        self.log_start = slot + 1
        self.chosen_upto = slot

    def advance(self) -> tuple[list[SlotEntry], list[SlotEntry]]:
        """Move ``chosen_upto`` over every slot that is chosen and whose value is here.

        Returns:
            all slots that it moved over, and those of them that storage does not have.
        """
        moved: list[SlotEntry] = []
        unsaved: list[SlotEntry] = []
        while (ballot := self._chosen_at.get(self.chosen_upto + 1)) is not None:
            slot = self.chosen_upto + 1
            entry = self.entries.get(slot)
            if entry is None or entry.ballot < ballot:
                break
            self.chosen_upto = slot
            del self.entries[slot], self._chosen_at[slot]
            self.bytes -= len(entry.value)
            moved.append(SlotEntry(slot, entry.ballot, entry.value))
            if slot in self.unsaved:
                self.unsaved.discard(slot)
                unsaved.append(moved[-1])
        return moved, unsaved
