"""Who votes on which slot, and what a majority is.

The configured ids never change here; what changes is which **incarnation** of an id votes:
a node whose state was lost comes back as a new one (DESIGN.md section 6). Each change holds
from a slot on (Lamport, Malkhi, Zhou, "Reconfiguring a State Machine", section 4: R-alpha).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twisted_paxos.core.messages import Sender


class Membership:
    """The voting incarnations, slot by slot.

    Args:
        voters: the configured ids.
        members: the incarnation of each, from slot 1 on; empty before the first formation,
            when nobody's vote counts.

    Attributes:
        sets: all sets that are still known, with the slot from which each holds.
        latest: the incarnations of the newest set.
        latest_from: the first slot of the newest set.
        formed: there are members at all.
    """

    sets: tuple[tuple[int, dict[str, str]], ...]
    latest: dict[str, str]
    latest_from: int
    formed: bool

    def __init__(self, voters: Iterable[str], members: Mapping[str, str]) -> None:
        self.voters = tuple(sorted(voters))
        self.majority = len(self.voters) // 2 + 1
        self._sets: list[tuple[int, dict[str, str]]] = [(1, dict(members))]
        self._index()

    def _index(self) -> None:
        # Asked for with every message, changed hardly ever.
        self._members = {pair for _, members in self._sets for pair in members.items()}
        self.sets = tuple(self._sets)
        self.latest_from, self.latest = self._sets[-1]
        self.formed = bool(self.latest)

    def load(self, sets: Iterable[tuple[int, Mapping[str, str]]]) -> None:
        """Set everything, as a formation, a restart or a snapshot tells."""
        self._sets = [(from_slot, dict(members)) for from_slot, members in sets]
        assert self._sets and all(set(members) == set(self.voters) for _, members in self._sets)
        self._index()

    def at(self, slot: int) -> dict[str, str]:
        """The incarnations that vote on ``slot``."""
        sets = self._sets
        place = len(sets) - 1
        while place and slot < sets[place][0]:
            place -= 1
        return sets[place][1]

    def replace(self, uid: str, new: str, from_slot: int) -> None:
        """From ``from_slot`` on, ``new`` votes for ``uid`` (the command that says so was chosen)."""
        assert uid in self.voters and from_slot >= self.latest_from
        self._sets.append((from_slot, {**self.latest, uid: new}))
        self._index()

    def forget_below(self, slot: int) -> None:
        """Drop the sets that govern no slot from ``slot`` on."""
        while len(self._sets) > 1 and self._sets[1][0] <= slot:
            del self._sets[0]
        self._index()

    def votes_on(self, slot: int, sender: Sender) -> bool:
        """Whether ``sender``'s vote on ``slot`` counts."""
        members = self.latest if slot >= self.latest_from else self.at(slot)
        return members.get(sender.uid) == sender.incarnation

    def is_member(self, sender: Sender) -> bool:
        """Whether ``sender`` votes in any set that is still known."""
        return (sender.uid, sender.incarnation) in self._members

    def is_majority(self, uids: Iterable[str]) -> bool:
        """Whether these distinct ids are a majority of the configured ones."""
        return sum(1 for uid in uids if uid in self.voters) >= self.majority

    def is_phase_1_quorum(self, promises: Mapping[str, str], above_slot: int) -> bool:
        """Whether ``promises`` (uid -> incarnation) has a majority of each set that governs a slot above."""
        ends = [from_slot for from_slot, _ in self._sets[1:]]
        relevant = [
            members
            for (_, members), end in zip(self._sets, [*ends, None], strict=True)
            if end is None or end > above_slot + 1
        ]
        counts = (sum(members.get(uid) == life for uid, life in promises.items()) for members in relevant)
        return all(count >= self.majority for count in counts)
