"""Where the newest record of each slot is; eight bytes a slot."""

from __future__ import annotations

from array import array


class SlotIndex:
    """Maps slots to non-zero 64-bit locations.

    Slots without a gap from ``first_slot`` on live in an array; the few above the first gap in a dict,
    which the protocol's window (`limits.WINDOW_SLOTS`) bounds. A slot below ``first_slot`` is never
    kept: a snapshot stands for it.
    """

    def __init__(self, first_slot: int = 1) -> None:
        self.first_slot = first_slot
        self._dense = array("Q")
        self._sparse: dict[int, int] = {}

    @property
    def contiguous_upto(self) -> int:
        """Every slot from the first one up to here is stored."""
        return self.first_slot + len(self._dense) - 1

    def put(self, slot: int, location: int) -> None:
        """Remember ``location`` for ``slot``, in place of an earlier one; nothing below ``first_slot``."""
        position = slot - self.first_slot
        dense = self._dense
        if position == len(dense):
            dense.append(location)
            if self._sparse:
                self._drain()
        elif 0 <= position < len(dense):
            dense[position] = location
        elif position > 0:
            self._sparse[slot] = location

    def get(self, slot: int) -> int:
        """The location of ``slot``, 0 when it is not stored."""
        position = slot - self.first_slot
        if 0 <= position < len(self._dense):
            return self._dense[position]
        return self._sparse.get(slot, 0)

    def begin_at(self, first_slot: int) -> None:
        """Forget what is below ``first_slot``; it never goes back."""
        passed = first_slot - self.first_slot
        if passed <= 0:
            return
        del self._dense[:passed]
        self.first_slot = first_slot
        if not self._dense:
            self._sparse = {slot: at for slot, at in self._sparse.items() if slot >= first_slot}
            self._drain()

    def above(self, slot: int) -> list[int]:
        """Every stored slot above ``slot``, ascending."""
        return [
            *range(max(slot + 1, self.first_slot), self.contiguous_upto + 1),
            *sorted(s for s in self._sparse if s > slot),
        ]

    def __len__(self) -> int:
        return len(self._dense) + len(self._sparse)

    def _drain(self) -> None:
        following = self.contiguous_upto + 1
        while (location := self._sparse.pop(following, 0)) != 0:
            self._dense.append(location)
            following += 1
