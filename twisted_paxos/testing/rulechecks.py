"""Rules that can be seen where they are kept: at a node's own storage, its log, and the reads that it serves.

What a breach of them leads to takes a chain of accidents; the breach itself is common.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Confirm,
    Confirmed,
    Promise,
    ReadAt,
    ReadRequest,
    Sender,
    SlotEntry,
)
from twisted_paxos.testing.checkbase import Check, Disk
from twisted_paxos.testing.witness import Violation, Witness, show

TAKEN = (Promise, ReadRequest, Confirmed, ReadAt)
"""The messages that `Check.took` is told of."""


class OnlyStoredIsChosen(Check):
    """Rule 7: only what storage has as chosen is noted there, or read from there as chosen."""

    name = "rule 7"

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def noted(self, life: Sender, disk: Disk, upto: int, snapshot_slot: int) -> None:
        """Its disk has the chosen value of each of these slots, or a snapshot that stands for it.

        Whether they are chosen at all is looked at when they are applied.
        """
        for slot in range(max(disk.noted_upto, snapshot_slot) + 1, upto + 1):
            _, entry = disk.stored.get(slot, (False, None))
            chosen = self._witness.chosen.get(slot)
            if chosen is not None and (entry is None or entry.value != chosen):
                raise Violation(
                    f"rule 7: {show(life)} notes slot {slot} as chosen, its disk does not have its value"
                )
        disk.noted_upto = max(disk.noted_upto, upto)

    def asked(self, life: Sender, disk: Disk, upto: int, snapshot_slot: int) -> None:
        """Not before it was noted."""
        stored_upto = max(disk.noted_upto, snapshot_slot)
        if upto > stored_upto:
            raise Violation(
                f"rule 7: {show(life)} reads slot {upto} as chosen, its disk has it up to {stored_upto}"
            )


class SnapshotKeepsVotes(Check):
    """Rule 7: a snapshot takes the place of what lies below it, never of a vote above it."""

    name = "rule 7"

    def installed(self, life: Sender, disk: Disk, slot: int, log: Log) -> None:
        """Every vote above that is on its disk is still known."""
        for voted, (learnt, entry) in disk.stored.items():
            if learnt or voted <= max(slot, log.chosen_upto):
                continue
            known = log.entries.get(voted)
            if known is None or known.ballot < entry.ballot:
                raise Violation(
                    f"rule 7: {show(life)} forgets its vote in slot {voted} for a snapshot of {slot}"
                )


class SharedKeepsVotes(Check):
    """Rule 2: what a leader shares takes the place of no vote: the next Promise would leave that out."""

    name = "rule 2"

    def shared(self, life: Sender, disk: Disk, log: Log) -> None:
        """No vote that is on its disk counts as not stored."""
        for slot in log.unsaved:
            learnt, _ = disk.stored.get(slot, (True, None))
            if not learnt:
                raise Violation(f"rule 2: {show(life)} forgets its vote in slot {slot} for a shared value")


class HighestBallotWins(Check):
    """Rule 3: what a leader proposes follows from a majority of the promises that it took, without a gap."""

    name = "rule 3"

    def __init__(self, witness: Witness) -> None:
        self._majority = witness.membership.majority
        self._parts: dict[tuple[Sender, Sender, int], list[Promise]] = {}
        self._promises: dict[tuple[Sender, ProposalID], dict[str, list[_Promised]]] = {}
        self._seen: set[tuple[ProposalID, int]] = set()

    def took(self, life: Sender, sender: Sender, message: Any) -> None:
        """A promise, or a part of one."""
        if not isinstance(message, Promise):
            return
        key = (life, sender, message.promise_id)
        parts = self._parts.setdefault(key, [])
        if all(part.part != message.part for part in parts):
            parts.append(message)
        if len(parts) == message.parts:
            votes = {one.slot: one for part in parts for one in part.accepted}
            of_ballot = self._promises.setdefault((life, message.ballot), {})
            of_ballot.setdefault(sender.uid, []).append(_Promised(message.chosen_upto, votes))

    def sent(self, life: Sender, disk: Disk, message: Any) -> None:
        """The first Accept of a slot and ballot."""
        if not isinstance(message, Accept) or (message.ballot, message.slot) in self._seen:
            return
        self._seen.add((message.ballot, message.slot))
        before = message.slot - 1
        if before > message.chosen_upto and (message.ballot, before) not in self._seen:
            raise Violation(f"rule 3: {show(life)} leaves slot {before} empty at {message.ballot}")
        self._follows(life, message)

    def _follows(self, life: Sender, message: Accept) -> None:
        promises = self._promises.get((life, message.ballot), {})
        votes = {NO_BALLOT}
        for one in (one for of_one in promises.values() for one in of_one):
            vote = one.votes.get(message.slot)
            if vote is not None and vote.value == message.value:
                votes.add(vote.ballot)
        for highest in votes:
            agree = sum(any(one.allows(message, highest) for one in of_one) for of_one in promises.values())
            if agree >= self._majority:
                return
        raise Violation(
            f"rule 3: {show(life)} proposes in slot {message.slot} at {message.ballot} what no majority"
            " of the promises that it took allows"
        )


class _Promised(NamedTuple):
    """A promise that was taken: how far its sender knew slots as chosen, and its votes above."""

    chosen_upto: int
    votes: dict[int, SlotEntry]

    def allows(self, accept: Accept, highest: ProposalID) -> bool:
        """Whether it fits that the highest ballot reported for the slot was ``highest``, of that value."""
        if accept.slot <= self.chosen_upto:
            return False
        vote = self.votes.get(accept.slot)
        if vote is None or vote.ballot < highest:
            return True
        return vote.ballot == highest and vote.value == accept.value


class ReadsConfirmed(Check):
    """A read is answered after a majority answered a question that was asked after the read came."""

    name = "confirmed"

    def __init__(self, witness: Witness) -> None:
        self._majority = witness.membership.majority
        self._count = 0
        self._arrived: dict[tuple[Sender, str, int], int] = {}
        self._rounds: dict[Sender, dict[Any, tuple[int, set[str]]]] = {}

    def took(self, life: Sender, sender: Sender, message: Any) -> None:
        """A read came, or an answer to the question; or the leader answers a read of its own."""
        self._count += 1
        if isinstance(message, ReadRequest):
            self._arrived.setdefault((life, message.start, message.read_id), self._count)
        elif isinstance(message, Confirmed):
            asked = self._rounds.get(life, {}).get((message.ballot, message.nonce))
            if asked is not None:
                asked[1].add(sender.uid)
        elif isinstance(message, ReadAt) and sender == life:
            self._answers(life, message)

    def sent(self, life: Sender, disk: Disk, message: Any) -> None:
        """It asks the question, or answers another node's read."""
        if isinstance(message, Confirm):
            self._count += 1
            rounds = self._rounds.setdefault(life, {})
            rounds.setdefault((message.ballot, message.nonce), (self._count, set()))
        elif isinstance(message, ReadAt):
            self._answers(life, message)

    def _answers(self, life: Sender, message: ReadAt) -> None:
        arrived = self._arrived.get((life, message.start, message.read_id))
        for asked, answered in reversed(self._rounds.get(life, {}).values()):
            if arrived is not None and asked > arrived and len(answered) >= self._majority:
                return
        raise Violation(f"{show(life)} answers read {message.read_id} unconfirmed")
