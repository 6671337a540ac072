"""Sees what no node can see: every disk and every message; knows what is truly chosen.

`PureCluster` shows it everything. It holds no opinion on how nodes work, only on what must never
happen: rules 1 to 7 of `docs/protocol.md`, stated on disks and messages alone. So a fault in the
core shows when it is made, not only when it has led two nodes to different values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Chosen,
    Commit,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Nack,
    Prepare,
    Promise,
    Sender,
    SlotEntry,
    Status,
    decode_value,
    is_change,
)
from twisted_paxos.core.quorum import Membership


class Violation(AssertionError):
    """Something that must never happen."""


Stored = Mapping[int, tuple[bool, Entry]]
"""What a disk holds: slot -> (learnt, not accepted; entry)."""


def show(life: Sender) -> str:
    """A start of a node, in short."""
    return f"{life.incarnation} start {life.boot}"


def tells_of(message: Any, uid: str) -> ProposalID:
    """The highest ballot that this message shows to node ``uid`` as in use."""
    kind = type(message)
    if kind in (Accepted, Accept, Commit, Prepare):
        return message.ballot
    if kind is Heartbeat or kind is HeartbeatReply:
        return message.status.ballot if message.status.leading else NO_BALLOT
    if kind is Nack and message.ballot.uid == uid:
        return message.promised
    if kind is Chosen:
        return max((entry.ballot for entry in message.entries), default=NO_BALLOT)
    return NO_BALLOT


class Witness:
    """The truth about a run.

    Args:
        voters: the configured ids.

    Attributes:
        membership: the founders, and every change that is chosen.
        chosen: slot -> value of every slot that a majority of the incarnations that vote on it has
            durably accepted at one ballot.
        chosen_upto: every slot up to here is among them.
        applied_upto: the highest slot that any node has applied, and so may have answered.
    """

    def __init__(self, voters: Sequence[str]) -> None:
        self.membership = Membership(voters, {})
        self.chosen: dict[int, Raw] = {}
        self.chosen_upto = 0
        self.applied_upto = 0
        self._chosen_at: dict[int, ProposalID] = {}
        self._votes: dict[tuple[int, ProposalID], set[str]] = {}
        self._proposed: dict[tuple[int, ProposalID], Raw] = {}
        self._ballot_lives: dict[ProposalID, Sender] = {}
        self._seen: dict[Sender, ProposalID] = {}
        self._parts: dict[tuple[Sender, int], list[Promise]] = {}
        self._counted: dict[ProposalID, int] = {}
        self._checks: dict[type, Callable[..., None]] = {
            Prepare: self._prepare,
            Promise: self._promise,
            Accept: self._accept,
            Accepted: self._accepted,
            Commit: self._commit,
            Chosen: self._chosen,
            Heartbeat: self._heartbeat,
            HeartbeatReply: self._heartbeat,
        }

    # -- what is told

    def formed(self, founders: Mapping[str, str]) -> None:
        """A node has durably recorded these incarnations as the founders."""
        if not self.membership.formed:
            self.membership.load([(1, founders)])
        if self.membership.sets[0] != (1, dict(founders)):
            raise Violation(f"founded twice: {founders} and {self.membership.sets[0]}")

    def voted(self, life: Sender | tuple[str, str], slot: int, ballot: ProposalID, value: Raw) -> None:
        """This incarnation has durably accepted this."""
        uid, incarnation = life[:2]
        if self._proposed.setdefault((slot, ballot), value) != value:
            raise Violation(f"{uid}: stored another value in slot {slot} than {ballot} proposed")
        votes = self._votes.setdefault((slot, ballot), set())
        votes.add(incarnation)
        voters = self.membership.at(slot).values()
        if len(votes & set(voters)) < self.membership.majority:
            return
        if self.chosen.setdefault(slot, value) != value:
            raise Violation(f"slot {slot} has two chosen values, the second at {ballot}")
        self._chosen_at[slot] = min(ballot, self._chosen_at.get(slot, ballot))
        while self.chosen_upto + 1 in self.chosen:
            self.chosen_upto += 1
            self._change(self.chosen_upto, self.chosen[self.chosen_upto])

    def _change(self, slot: int, value: Raw) -> None:
        replace = decode_value(value).replace if is_change(value) else None
        if replace is not None and self.membership.latest.get(replace.uid) == replace.old:
            self.membership.replace(replace.uid, replace.new, slot + limits.ALPHA)

    def recovered(self, uid: str, chosen_upto: int, stored: Stored) -> None:
        """``uid`` starts, and takes these slots of its disk as chosen."""
        for slot in range(1, chosen_upto + 1):
            self._is_chosen(f"{uid} at its start", SlotEntry(slot, *stored[slot][1]))

    def applied(self, uid: str, entry: SlotEntry) -> None:
        """``uid`` applies this as chosen."""
        self._is_chosen(f"{uid} applying", entry)
        self.applied_upto = max(self.applied_upto, entry.slot)

    def _is_chosen(self, who: str, entry: SlotEntry) -> None:
        if entry.slot not in self.chosen:
            raise Violation(f"{who}: slot {entry.slot} is not chosen")
        if self.chosen[entry.slot] != entry.value:
            chosen = bytes(self.chosen[entry.slot])
            raise Violation(f"{who}: slot {entry.slot} has {bytes(entry.value)!r}, chosen is {chosen!r}")
        if entry.ballot < self._chosen_at[entry.slot]:
            chosen_at = self._chosen_at[entry.slot]
            raise Violation(f"rule 5: {who}: slot {entry.slot} of {entry.ballot}, chosen at {chosen_at}")

    # -- messages

    def delivered(self, life: Sender, message: Any) -> None:
        """A message reached a node: after a higher ballot it sends nothing more under its own."""
        ballot = tells_of(message, life.uid)
        if ballot > self._seen.get(life, NO_BALLOT):
            self._seen[life] = ballot

    def sent(self, life: Sender, promised: ProposalID, stored: Stored, message: Any) -> None:
        """A node sends ``message`` while its disk holds ``promised`` and ``stored``."""
        check = self._checks.get(type(message))
        if check is not None:
            check(life, promised, stored, message)

    def _prepare(self, life: Sender, promised: ProposalID, stored: Stored, message: Prepare) -> None:
        """Rule 1: the ballot is durable; it belongs to one life of one node."""
        if promised < message.ballot:
            raise Violation(f"rule 1: {show(life)} sends Prepare {message.ballot}, its disk has {promised}")
        if self._ballot_lives.setdefault(message.ballot, life) != life or message.ballot.uid != life.uid:
            raise Violation(
                f"rule 1: {show(life)} uses {message.ballot} of {show(self._ballot_lives[message.ballot])}"
            )

    def _promise(self, life: Sender, promised: ProposalID, stored: Stored, message: Promise) -> None:
        """Rules 1 and 2: durable, and complete."""
        if promised < message.ballot:
            raise Violation(f"rule 1: {show(life)} promises {message.ballot}, its disk has {promised}")
        self._is_member(life)
        if message.chosen_upto > self.chosen_upto:
            raise Violation(f"rule 3: {show(life)} reports slots up to {message.chosen_upto} as chosen")
        parts = self._parts.setdefault((life, message.promise_id), [])
        parts.append(message)
        if len(parts) < message.parts:
            return
        del self._parts[life, message.promise_id]
        told = {entry.slot: entry.ballot for part in parts for entry in part.accepted}
        for slot, (learnt, entry) in stored.items():
            if learnt or slot <= message.chosen_upto or entry.ballot >= message.ballot:
                continue
            if told.get(slot, NO_BALLOT) < entry.ballot:
                raise Violation(
                    f"rule 2: {show(life)} promises {message.ballot} without its vote in slot {slot}"
                )

    def _accept(self, life: Sender, promised: ProposalID, stored: Stored, message: Accept) -> None:
        """Rules 1, 4 and 6."""
        if promised < message.ballot:
            raise Violation(f"rule 1: {show(life)} sends Accept {message.ballot}, its disk has {promised}")
        if message.slot > message.chosen_upto + limits.ALPHA:
            raise Violation(f"rule 4: {show(life)} proposes slot {message.slot} above {message.chosen_upto}")
        if self._seen.get(life, NO_BALLOT) > message.ballot:
            raise Violation(f"rule 4: {show(life)} goes on with {message.ballot} after {self._seen[life]}")
        if self._proposed.setdefault((message.slot, message.ballot), message.value) != message.value:
            raise Violation(
                f"rule 4: {show(life)} proposes two values in slot {message.slot} at {message.ballot}"
            )
        self._counts(life, message.ballot, message.chosen_upto)

    def _accepted(self, life: Sender, promised: ProposalID, stored: Stored, message: Accepted) -> None:
        """Rules 1 and 5: durable, exactly these slots at exactly this ballot."""
        if promised < message.ballot:
            raise Violation(f"rule 1: {show(life)} accepted {message.ballot}, its disk has {promised}")
        self._is_member(life)
        for slot in message.slots:
            if slot not in self.chosen and life.incarnation not in self._votes.get(
                (slot, message.ballot), ()
            ):
                raise Violation(f"rule 1: {show(life)} has not stored slot {slot} at {message.ballot}")

    def _commit(self, life: Sender, promised: ProposalID, stored: Stored, message: Commit) -> None:
        """Rules 4 and 6."""
        if self._seen.get(life, NO_BALLOT) > message.ballot:
            raise Violation(f"rule 4: {show(life)} goes on with {message.ballot} after {self._seen[life]}")
        self._counts(life, message.ballot, message.chosen_upto)
        for entry in message.entries:
            self._is_chosen(f"rule 6: {show(life)} sharing", entry)

    def _is_member(self, life: Sender) -> None:
        """Rule 5: only who is configured votes: a founder, or whom a Replace named."""
        if not self.membership.is_member(life):
            raise Violation(f"rule 5: {show(life)} votes, and is no member")

    def _chosen(self, life: Sender, promised: ProposalID, stored: Stored, message: Chosen) -> None:
        """Rule 7: only what is chosen moves."""
        for entry in message.entries:
            self._is_chosen(f"rule 7: {show(life)} answering", entry)

    def _heartbeat(
        self, life: Sender, promised: ProposalID, stored: Stored, message: Heartbeat | HeartbeatReply
    ) -> None:
        status: Status = message.status
        if status.chosen_upto > self.chosen_upto:
            raise Violation(f"{show(life)} claims {status.chosen_upto} slots as chosen")
        if status.leading:
            self._counts(life, status.ballot, status.chosen_upto)

    def _counts(self, life: Sender, ballot: ProposalID, chosen_upto: int) -> None:
        """Rule 6: a leader counts only slots chosen at ballots up to its own."""
        for slot in range(self._counted.get(ballot, 0) + 1, chosen_upto + 1):
            if slot not in self._chosen_at or self._chosen_at[slot] > ballot:
                raise Violation(f"rule 6: {show(life)} counts slot {slot} as chosen at {ballot} or below")
        self._counted[ballot] = max(chosen_upto, self._counted.get(ballot, 0))
