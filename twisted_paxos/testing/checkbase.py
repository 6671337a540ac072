"""What every check of a simulated run is made of: what a disk must hold, and what a check is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Command, Entry, Sender, SlotEntry
from twisted_paxos.core.records import Record, Recovered
from twisted_paxos.testing.history import Op


class Disk:
    """What one node certainly has on its disk: what it was told is durable.

    Attributes:
        incarnation: the last one that was started with it.
        promised, stored: its promise, and slot -> (learnt, not accepted; entry).
        highest: the highest slot ever stored.
        older_copy: it was put back to an older state since the last start.
        is_older: it was put back to an older state in this incarnation.
        damaged: it was damaged in this incarnation.
        noted_upto: so far it was told that slots are chosen, in this start.
    """

    def __init__(self) -> None:
        self.incarnation = ""
        self.promised = NO_BALLOT
        self.stored: dict[int, tuple[bool, Entry]] = {}
        self.highest = 0
        self.older_copy = False
        self.is_older = False
        self.damaged = False
        self.noted_upto = 0


class Check:
    """One check; every method is told of one kind of event, in the order of simulated time."""

    name = ""

    def recovered(self, life: Sender, disk: Disk, recovered: Recovered) -> None:
        """A node has opened its storage; ``disk`` is what it must hold at least."""

    def written(self, life: Sender, records: Sequence[Record]) -> None:
        """Records became durable."""

    def noted(self, life: Sender, disk: Disk, upto: int, snapshot_slot: int) -> None:
        """A node notes in storage that slots up to ``upto`` are chosen."""

    def asked(self, life: Sender, disk: Disk, upto: int, snapshot_slot: int) -> None:
        """A node asks storage for chosen slots up to ``upto``."""

    def installed(self, life: Sender, disk: Disk, slot: int, log: Log) -> None:
        """A node took a snapshot of ``slot`` for all up to it; ``log`` is what it knows now."""

    def shared(self, life: Sender, disk: Disk, log: Log) -> None:
        """A node took a leader's word, and perhaps values with it; ``log`` is what it knows now."""

    def stored_read(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """Storage gave these entries as chosen."""

    def chosen(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """A node learnt that these slots are chosen, and will apply them."""

    def applied(self, life: Sender, slot: int, commands: Sequence[Command], state: Any) -> None:
        """A node applied a slot; ``commands`` had an effect, ``state`` is what came of it."""

    def sent(self, life: Sender, disk: Disk, message: Any) -> None:
        """A node sends a message."""

    def delivered(self, life: Sender, message: Any) -> None:
        """A node takes a message."""

    def took(self, life: Sender, sender: Sender, message: Any) -> None:
        """A node takes one of `rulechecks.TAKEN`."""

    def finish(self, ops: Sequence[Op]) -> None:
        """The run is over; these are the clients' operations."""
