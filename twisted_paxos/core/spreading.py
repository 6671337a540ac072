"""To whom a leader sends each value at once, and when all others hear of it.

A majority chooses a value, and with it all that can be lost is held. So an Accept goes to the nearest
majority first, the voters that answered fastest when all were asked; the others get the value a little
later, many slots in one message and one sync, with the word that they are chosen. (The thrifty Paxos
of Moraru et al., "There Is More Consensus in Egalitarian Parliaments", SOSP 2013, section 6.)

Must always hold:
    * what is shared as chosen is chosen, at a ballot <= the leader's (rule 6);
    * an Accept that is not answered in time goes to all voters, and so does what follows it for a while:
      one slow node costs one wait (Dean and Barroso, "The Tail at Scale", 2013: hedged requests);
    * whoever waits for a slot is told at once.
"""

from __future__ import annotations

from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.effects import EVERYONE, NOTHING, OTHERS, Effects, Send, others_but
from twisted_paxos.core.messages import Commit, SlotEntry
from twisted_paxos.core.timing import is_large

TELL_S = 0.002
"""What is chosen is told with the next Accept; when none leaves for this long, by itself."""

SHARE_S = 0.008
"""After so long, chosen values are shared with whom their Accepts did not go to, beside the next Accept."""

SHARE_LATE_S = 0.010
"""After so long, whether an Accept leaves or not."""

SURVEY_S = 1.0
"""How often an Accept goes to all voters, to find out which of them are the nearest."""

WARY_SLOTS = 64
"""After an Accept that was not answered in time, so many go to all."""

ENTRY_OVERHEAD_BYTES = 80
"""What a shared slot takes at most beyond its value: its number, and the ballot's number and id."""


class Spreading:
    """One leadership's recipients.

    Args:
        uid: this node's id.
    """

    def __init__(self, uid: str) -> None:
        self._uid = uid
        self.stop()

    def start(self, upto: int) -> None:
        """A leadership begins; everybody hears in another way that slots up to ``upto`` are chosen."""
        self.stop()
        self._told_upto = self._shared_upto = self._awaited_upto = upto

    def stop(self) -> None:
        """The leadership is over: nothing more is told under its ballot."""
        self._told_upto = self._shared_upto = self._awaited_upto = 0
        self._tell_at_s: float | None = None
        self._share_at_s: float | None = None
        self._survey_at_s = 0.0
        self._wary_slots = 0
        self._nearest: tuple[str, ...] = ()
        self._spared: dict[int, Raw] = {}
        self._spared_bytes = 0
        self._spared_to: tuple[str, ...] = ()

    # -- Accepts

    def accept_to(
        self, slot: int, value: Raw, chosen_upto: int, now_s: float, awaited: bool
    ) -> tuple[str, ...]:
        """Where the Accept of ``slot``, which also tells ``chosen_upto``, is to go.

        Args:
            awaited: another node waits for the slot.
        """
        told_upto, self._told_upto, self._tell_at_s = self._told_upto, chosen_upto, None
        if awaited:
            self._awaited_upto = slot
        if self._may_spare(len(value), now_s):
            if self._spared_to != self._nearest:
                # Who was the nearest is one of the others now, and may have been told less than those.
                self._shared_upto = min(self._shared_upto, told_upto)
            self._spared[slot] = value
            self._spared_bytes += len(value)
            self._spared_to = self._nearest
            return (self._uid, *self._nearest)
        self._wary_slots = max(0, self._wary_slots - 1)
        if not self._spared or next(iter(self._spared)) > chosen_upto:
            self._shared_upto = chosen_upto
            self._share_at_s = None
        return EVERYONE

    def _may_spare(self, size_bytes: int, now_s: float) -> bool:
        if not self._nearest or self._wary_slots or self._awaited_upto > self._shared_upto:
            return False
        if is_large(size_bytes):
            # By TCP there is nothing to gain, and its time-out is long.
            return False
        if self._spared and self._spared_to != self._nearest:
            return False
        if now_s >= self._survey_at_s:
            self._survey_at_s = now_s + SURVEY_S
            return False
        return True

    def went_to_all(self, slot: int) -> bool:
        """Whether the Accept of ``slot``, not shared yet, went to every node."""
        return slot not in self._spared

    def answered(self, voters: set[str]) -> None:
        """All were asked, and these were the first majority.

        Without this node itself, whose disk is slow then, the others are not a majority and one more:
        all are asked until it is in time again.
        """
        self._nearest = tuple(sorted(voters - {self._uid})) if self._uid in voters else ()

    def unanswered(self) -> None:
        """The nearest did not answer in time: for a while all are asked."""
        self._wary_slots = WARY_SLOTS

    # -- what is chosen

    def awaited(self, slot: int) -> None:
        """Another node waits for ``slot`` to be chosen and told."""
        self._awaited_upto = max(self._awaited_upto, slot)

    @property
    def deadline_s(self) -> float | None:
        """When `tell` wants to be called."""
        if self._tell_at_s is None or (self._share_at_s is not None and self._share_at_s < self._tell_at_s):
            return self._share_at_s
        return self._tell_at_s

    def tell(self, ballot: ProposalID, upto: int, now_s: float, busy: bool) -> Effects:
        """Tell what is chosen to those that do not know it, when it is time.

        Args:
            ballot: the leader's.
            upto: it knows every slot up to here as chosen.
            busy: it waits for votes now; else whoever waits for what was just chosen comes first.
        """
        near, rest = self._told_upto < upto, self._shared_upto < upto
        if not near and not rest:
            return NOTHING
        if near and self._tell_at_s is None:
            self._tell_at_s = now_s + TELL_S
        awaited = self._awaited_upto > self._told_upto or self._awaited_upto > self._shared_upto
        hurry = awaited or (self._tell_at_s is not None and now_s >= self._tell_at_s)
        near = near and hurry
        rest = rest and (hurry or self._is_time_to_share(now_s, busy))
        sends: list[Send] = []
        if near and rest and not self._spared:
            sends.append(Send(OTHERS, Commit(ballot, upto)))
        else:
            if near:
                sends.append(Send(self._spared_to or OTHERS, Commit(ballot, upto)))
            if rest:
                commits = _commits(ballot, upto, self._take_spared(ballot, upto))
                sends += [Send(others_but(self._spared_to), commit) for commit in commits]
        if near:
            self._told_upto, self._tell_at_s = upto, None
        if rest:
            self._shared_upto, self._share_at_s = upto, None
        return Effects(sends=sends) if sends else NOTHING

    def _is_time_to_share(self, now_s: float, busy: bool) -> bool:
        if self._share_at_s is None:
            self._share_at_s = now_s + SHARE_LATE_S
        early_s = SHARE_LATE_S - SHARE_S if busy else 0.0
        return now_s >= self._share_at_s - early_s or self._spared_bytes > limits.BATCH_TARGET_BYTES

    def _take_spared(self, ballot: ProposalID, upto: int) -> list[SlotEntry]:
        """Those up to ``upto`` that did not go to all; they were proposed in order."""
        entries: list[SlotEntry] = []
        for slot, value in self._spared.items():
            if slot > upto:
                break
            entries.append(SlotEntry(slot, ballot, value))
        for entry in entries:
            del self._spared[entry.slot]
            self._spared_bytes -= len(entry.value)
        return entries


def _commits(ballot: ProposalID, upto: int, entries: list[SlotEntry]) -> list[Commit]:
    """As few messages as fit datagrams; each tells as far as it brings."""
    commits: list[Commit] = []
    group: list[SlotEntry] = []
    room = limits.BATCH_TARGET_BYTES
    for entry in entries:
        size_bytes = len(entry.value) + ENTRY_OVERHEAD_BYTES
        if group and size_bytes > room:
            commits.append(Commit(ballot, group[-1].slot, tuple(group)))
            group, room = [], limits.BATCH_TARGET_BYTES
        group.append(entry)
        room -= size_bytes
    return [*commits, Commit(ballot, upto, tuple(group))]
