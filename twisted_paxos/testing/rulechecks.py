"""Rules that can be seen where they are kept: at a node's own storage, its log, and the reads that it serves.

What a breach of them leads to takes a chain of accidents; the breach itself is common.
"""

from __future__ import annotations

from typing import Any

from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Confirm, Confirmed, ReadAt, ReadRequest, Sender
from twisted_paxos.testing.checkbase import Check, Disk
from twisted_paxos.testing.witness import Violation, Witness, show

READ_MESSAGES = (ReadRequest, Confirmed, ReadAt)
"""What `Check.took` is told of."""


class OnlyStoredIsChosen(Check):
    """Rule 7: only what storage has as chosen is noted there, or read from there as chosen."""

    name = "rule 7"

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def noted(self, life: Sender, disk: Disk, upto: int, snapshot_slot: int) -> None:
        """Its disk has the chosen value of each of these slots, or a snapshot that stands for it."""
        for slot in range(max(disk.noted_upto, snapshot_slot) + 1, upto + 1):
            _, entry = disk.stored.get(slot, (False, None))
            if entry is None or self._witness.chosen.get(slot) != entry.value:
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
        elif sender == life:
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
