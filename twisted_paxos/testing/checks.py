"""What must always hold in a simulated run: small classes, each with one idea.

`Checks` tells them what happens; the first thing that must not be is kept as the run's `Violation`.
Nothing is raised where it is found: code of a node would catch it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Command, Entry, Sender, SlotEntry, decode_value
from twisted_paxos.core.records import (
    Identity,
    Record,
    Recovered,
    SaveAccepted,
    SaveChosen,
    SaveIdentity,
    SavePromise,
)
from twisted_paxos.testing.checkbase import Check, Disk
from twisted_paxos.testing.history import Op
from twisted_paxos.testing.linearizability import find_violation
from twisted_paxos.testing.rulechecks import (
    HighestBallotWins,
    OnlyStoredIsChosen,
    ReadsConfirmed,
    SharedKeepsVotes,
    SnapshotKeepsVotes,
)
from twisted_paxos.testing.witness import Violation, Witness, show

STATE_EVERY_SLOTS = 8
"""States are compared after every so many slots, and at the end."""


class Rules(Check):
    """Rules 1 to 7 of `docs/protocol.md`, on disks and messages: what `Witness` knows."""

    name = "rules"

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def recovered(self, life: Sender, disk: Disk, recovered: Recovered) -> None:
        """What is found counts as a vote: it may have been durable before the node was told so."""
        self._formed(recovered.identity)
        for slot, entry in recovered.entries.items():
            learnt, known = disk.stored.get(slot, (False, None))
            if not (learnt and known == entry):
                self._witness.voted(life, slot, entry.ballot, entry.value)
        if recovered.chosen_upto > self._witness.chosen_upto:
            raise Violation(f"{show(life)} starts with {recovered.chosen_upto} slots as chosen")

    def written(self, life: Sender, records: Sequence[Record]) -> None:
        """Votes, and who founded the cluster."""
        for record in records:
            if isinstance(record, SaveAccepted):
                self._witness.voted(life, record.slot, record.ballot, record.value)
            elif isinstance(record, SaveIdentity):
                self._formed(record.identity)

    def _formed(self, identity: Identity) -> None:
        if identity.formed and identity.sets == ((1, identity.members),):
            self._witness.formed(identity.members)
        for known in identity.sets if identity.formed else ():
            if known not in self._witness.membership.sets:
                raise Violation(f"rule 5: {identity.uid} goes by voters that nobody chose: {known}")

    def sent(self, life: Sender, disk: Disk, message: Any) -> None:
        """See `Witness.sent`."""
        self._witness.sent(life, disk.promised, disk.stored, message)

    def delivered(self, life: Sender, message: Any) -> None:
        """See `Witness.delivered`."""
        self._witness.delivered(life, message)


class OneValue(Check):
    """One value per slot, for ever: what is applied, and what storage says is chosen, was chosen."""

    name = "one value"

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def stored_read(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """For catch-up, for clients, for recovery."""
        self.chosen(f"{uid} reading its storage", entries)

    def chosen(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """In memory."""
        for entry in entries:
            self._witness.applied(uid, entry)


class Durable(Check):
    """What a node was told is durable is there at its next start, or that start is a new incarnation."""

    name = "durable"

    def recovered(self, life: Sender, disk: Disk, recovered: Recovered) -> None:
        """Compare."""
        if disk.incarnation and recovered.identity.incarnation != disk.incarnation and not disk.damaged:
            raise Violation(f"{show(life)} lost its storage, and no fault explains it")
        if recovered.identity.incarnation != disk.incarnation or disk.older_copy:
            return
        if recovered.promised < disk.promised:
            raise Violation(f"{show(life)} promised {disk.promised}, and starts with {recovered.promised}")
        for slot, (_, entry) in disk.stored.items():
            found = recovered.entries.get(slot)
            if slot > recovered.chosen_upto and (found is None or found.ballot < entry.ballot):
                raise Violation(f"{show(life)} stored slot {slot} at {entry.ballot}, and starts with {found}")


class PromiseOnlyGrows(Check):
    """Per incarnation, what is saved as promise never goes back."""

    name = "promise"

    def __init__(self) -> None:
        self._promised: dict[str, ProposalID] = {}

    def recovered(self, life: Sender, disk: Disk, recovered: Recovered) -> None:
        """A new incarnation begins anew."""
        self._promised[life.uid] = recovered.promised

    def written(self, life: Sender, records: Sequence[Record]) -> None:
        """Compare with the one before; a vote is at the ballot promised last."""
        uid = life.uid
        for record in records:
            promised = self._promised.get(uid, NO_BALLOT)
            if isinstance(record, SavePromise):
                if record.ballot < promised:
                    raise Violation(f"{uid} saves promise {record.ballot} after {promised}")
                self._promised[uid] = record.ballot
            elif isinstance(record, SaveAccepted) and record.ballot != promised:
                raise Violation(f"rule 4: {uid} accepts at {record.ballot}, its promise is {promised}")


class SameState(Check):
    """After the same slot, every node has the same state, also when it came from a snapshot."""

    name = "state"

    def __init__(self) -> None:
        self._digests: dict[int, tuple[str, Sender]] = {}

    def applied(self, life: Sender, slot: int, commands: Sequence[Command], state: Any) -> None:
        """Compare now and then."""
        if slot % STATE_EVERY_SLOTS == 0:
            self.compare(life, slot, state)

    def compare(self, life: Sender, slot: int, state: Any) -> None:
        """Compare with what the first node had after ``slot``."""
        digest = state_digest(state)
        known, first = self._digests.setdefault(slot, (digest, life))
        if known != digest:
            raise Violation(f"after slot {slot}, {show(life)} has another state than {show(first)}")


def state_digest(state: Any) -> str:
    """A digest of all that a `ReplicatedState` holds."""
    digest = hashlib.blake2b(digest_size=12)
    for session in state.sessions.saved():
        results = [(*place, bytes(data)) for *place, data in session.results]
        digest.update(repr((session.client, session.floor, session.used_ms, results)).encode())
    digest.update(str(state.sessions.log_time_ms).encode())
    summary = getattr(state.machine, "summary", None)
    if summary is not None:
        digest.update(summary())
    return digest.hexdigest()


class ExactlyOnce(Check):
    """No command has its effect twice, and none has one that no client sent."""

    name = "exactly once"

    def __init__(self, sent: Callable[[Command], bool]) -> None:
        self._sent = sent
        self._slots: dict[tuple[str, int], int] = {}
        self._seen: dict[str, tuple[Sender, int]] = {}

    def applied(self, life: Sender, slot: int, commands: Sequence[Command], state: Any) -> None:
        """Each command has one slot, in all lives of all nodes."""
        before, last = self._seen.get(life.uid, (life, 0))
        if before == life and slot <= last:
            raise Violation(f"{show(life)} applies slot {slot} after {last}")
        self._seen[life.uid] = (life, slot)
        for command in commands:
            key = (command.client, command.sequence)
            known = self._slots.get(key)
            if known is None:
                self._slots[key] = slot
                if not self._sent(command):
                    raise Violation(f"{show(life)}: nobody sent the command {command}")
            elif known != slot:
                raise Violation(f"{show(life)}: command {key} has its effect in slots {known} and {slot}")


class Acknowledged(Check):
    """What a client was told is true: done means in the log, where it says; refused means never."""

    name = "acknowledged"

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def finish(self, ops: Sequence[Op]) -> None:
        """Look up each."""
        places = self._places()
        for op in ops:
            if op.is_read:
                continue
            found = places.get(op.value, [])
            if op.outcome == "done" and (op.slot, op.index) not in found:
                raise Violation(f"{op} was acknowledged, and is not at {op.slot}.{op.index}, but at {found}")
            if op.outcome == "refused" and found:
                raise Violation(f"{op} was refused, and is at {found}")

    def _places(self) -> dict[str, list[tuple[int, int]]]:
        places: dict[str, list[tuple[int, int]]] = {}
        for slot in sorted(self._witness.chosen):
            for index, command in enumerate(decode_value(self._witness.chosen[slot]).commands):
                if command.sequence:
                    name = bytes(command.payload).decode().strip('"').split(" ")[0]
                    places.setdefault(name, []).append((slot, index))
        return places


class RealTime(Check):
    """A write that ended before another began has the lower place in the log."""

    name = "real time"

    def finish(self, ops: Sequence[Op]) -> None:
        """Sweep over time."""
        done = [op for op in ops if op.outcome == "done" and not op.is_read]
        ends = sorted(done, key=lambda op: op.end_s)
        latest: Op | None = None
        position = 0
        for op in sorted(done, key=lambda op: op.start_s):
            while position < len(ends) and ends[position].end_s < op.start_s:
                if latest is None or ends[position].place > latest.place:
                    latest = ends[position]
                position += 1
            if latest is not None and latest.place >= op.place:
                raise Violation(f"{latest} ended before {op} began")


class Linearizable(Check):
    """The history of each key is linearizable (Wing and Gong)."""

    name = "linearizable"

    def finish(self, ops: Sequence[Op]) -> None:
        """Key by key."""
        keys: dict[str, list[Op]] = {}
        for op in ops:
            keys.setdefault(op.key, []).append(op)
        for key, its in keys.items():
            found = find_violation([op.call() for op in its if op.outcome != "refused"])
            if found:
                raise Violation(f"key {key}: {found}")


class Checks:
    """Tells every check what happens, and keeps what each node's disk must hold.

    Args:
        voters: ids of the voters.
        uids: all nodes.
        sent: says whether a client sent a command.
        may_stop: says whether a fault allows a node to stop by itself.
        more: further checks; they come last.

    Attributes:
        violation: the first (check, what) that must not be; None while all is well.
        witness: knows what is truly chosen.
        disks: by id.
        older_copies: starts that nobody may listen to.
    """

    def __init__(
        self,
        voters: Sequence[str],
        uids: Iterable[str],
        sent: Callable[[Command], bool],
        may_stop: Callable[[str], bool],
        more: Sequence[Check] = (),
    ) -> None:
        self.violation: tuple[str, str] | None = None
        self.witness = Witness(voters)
        self.disks = {uid: Disk() for uid in uids}
        self._may_stop = may_stop
        self.older_copies: set[Sender] = set()
        self._same_state = SameState()
        self._checks: tuple[Check, ...] = (
            Rules(self.witness),
            OneValue(self.witness),
            Durable(),
            PromiseOnlyGrows(),
            self._same_state,
            ExactlyOnce(sent),
            OnlyStoredIsChosen(self.witness),
            SnapshotKeepsVotes(),
            SharedKeepsVotes(),
            HighestBallotWins(self.witness),
            ReadsConfirmed(self.witness),
            Acknowledged(self.witness),
            RealTime(),
            Linearizable(),
            *more,
        )
        events = [name for name, what in vars(Check).items() if callable(what) and name[0] != "_"]
        self._listeners = {
            event: [
                (check.name, getattr(check, event))
                for check in self._checks
                if getattr(type(check), event) is not getattr(Check, event)
            ]
            for event in events
        }

    def report(self, check: str, what: str) -> None:
        """Keep the first violation."""
        if self.violation is None:
            self.violation = (check, what)

    def _tell(self, event: str, *arguments: Any) -> None:
        if self.violation is not None:
            return
        for name, listener in self._listeners[event]:
            try:
                listener(*arguments)
            except Violation as violation:
                text = str(violation)
                self.report(text.split(":")[0] if text.startswith("rule ") else name, text)
                return

    def recovered(self, life: Sender, recovered: Recovered) -> None:
        """A node opened its storage."""
        disk = self.disks[life.uid]
        self._tell("recovered", life, disk, recovered)
        if recovered.identity.incarnation != disk.incarnation:
            disk.stored, disk.incarnation = {}, recovered.identity.incarnation
            disk.damaged = disk.is_older = disk.older_copy = False
        disk.promised, disk.noted_upto = recovered.promised, recovered.chosen_upto
        kept = {s: had for s, had in disk.stored.items() if s <= recovered.chosen_upto}
        for slot, entry in recovered.entries.items():
            learnt, known = disk.stored.get(slot, (False, None))
            kept[slot] = (learnt and known == entry, entry)
        disk.stored = kept

    def written(self, life: Sender, records: Sequence[Record]) -> None:
        """Records of a node became durable."""
        disk = self.disks[life.uid]
        if life.incarnation != disk.incarnation:
            return
        for record in records:
            if isinstance(record, SavePromise):
                disk.promised = record.ballot
            elif not isinstance(record, SaveIdentity):
                entry = Entry(record.ballot, record.value)
                disk.stored[record.slot] = (isinstance(record, SaveChosen), entry)
                disk.highest = max(disk.highest, record.slot)
        self._tell("written", life, records)

    def noted(self, life: Sender, upto: int, snapshot_slot: int) -> None:
        """A node notes how far slots are chosen; its newest snapshot is of ``snapshot_slot``."""
        disk = self.disks[life.uid]
        if life.incarnation == disk.incarnation:
            self._tell("noted", life, disk, upto, snapshot_slot)

    def asked(self, life: Sender, upto: int, snapshot_slot: int) -> None:
        """A node asks storage for chosen slots."""
        disk = self.disks[life.uid]
        if life.incarnation == disk.incarnation:
            self._tell("asked", life, disk, upto, snapshot_slot)

    def installed(self, life: Sender, slot: int, log: Log) -> None:
        """A node took a snapshot for all up to ``slot``."""
        self._tell("installed", life, self.disks[life.uid], slot, log)

    def shared(self, life: Sender, log: Log) -> None:
        """A node took a Commit."""
        self._tell("shared", life, self.disks[life.uid], log)

    def took(self, life: Sender, sender: Sender, message: Any) -> None:
        """A node takes one of `TAKEN`."""
        self._tell("took", life, sender, message)

    def stored_read(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """Storage gave chosen entries."""
        self._tell("stored_read", uid, entries)

    def started(self, life: Sender) -> None:
        """A node has started, with what `recovered` told."""
        disk = self.disks[life.uid]
        if disk.older_copy:
            disk.older_copy, disk.is_older = False, True
        if disk.is_older:
            self.older_copies.add(life)

    def admitted(self, life: Sender, sender: Sender) -> None:
        """A node listens to this start of a member: not to one whose storage is an older copy."""
        if sender.uid != life.uid and sender in self.older_copies:
            self.report("old copy", f"{show(life)} hears {show(sender)}, whose storage is an older copy")

    def chosen(self, uid: str, entries: Sequence[SlotEntry]) -> None:
        """A node learnt chosen slots."""
        self._tell("chosen", uid, entries)

    def applied(self, life: Sender, slot: int, commands: Sequence[Command], state: Any) -> None:
        """A node applied a slot."""
        self._tell("applied", life, slot, commands, state)

    def sent(self, life: Sender, message: Any) -> None:
        """A node sends a message."""
        self._tell("sent", life, self.disks[life.uid], message)

    def delivered(self, life: Sender, message: Any) -> None:
        """A node takes a message."""
        self._tell("delivered", life, message)

    def stopped(self, uid: str, reason: str) -> None:
        """A node gave up."""
        if not self._may_stop(uid):
            self.report("stops", f"{uid} stopped without need: {reason}")

    def compare_states(self, lives: Iterable[tuple[Sender, Any]]) -> None:
        """All nodes, where they are now."""
        for life, state in lives:
            try:
                self._same_state.compare(life, state.applied_upto, state)
            except Violation as violation:
                self.report("state", str(violation))

    def finish(self, ops: Sequence[Op]) -> None:
        """The run is over."""
        self._tell("finish", ops)


@implementer(ILogObserver)
class LogWatch:
    """Nothing that runs in the simulation may log a failure.

    Args:
        report: told (check, what).
    """

    def __init__(self, report: Callable[[str, str], None]) -> None:
        self._report = report

    def __enter__(self) -> LogWatch:
        globalLogPublisher.addObserver(self)
        return self

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self)

    def __call__(self, event: Any) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            self._report("log", f"{formatEvent(event)}: {failure.getTraceback()}")
        elif event.get("log_level") is LogLevel.critical:
            self._report("log", formatEvent(event))
