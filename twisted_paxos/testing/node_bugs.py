"""Planted bugs of what surrounds the algorithm: snapshots, sessions, reads, storage, members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import msgspec
from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.formation import Formation
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Command, ReadAt, Refused
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.reads import Reads
from twisted_paxos.core.records import SaveChosen
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.reads import NodeReads
from twisted_paxos.snapshots import SnapshotMaker
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.sessions import Sessions
from twisted_paxos.storage import executor, recovery
from twisted_paxos.storage import format as log_format
from twisted_paxos.storage.durable import DurableObjectHandler, encode_copy
from twisted_paxos.storage.recovery import Floor
from twisted_paxos.storage.wal import FileBackend
from twisted_paxos.testing.planting import Patch, mutant, without, wrap
from twisted_paxos.testing.storage import SimulatedDisk

# -- rules 7 to 9, snapshots


@mutant("3.7 only chosen entries move")
def fetch_answers_unsynced() -> Sequence[Patch]:
    """An answer to a Fetch is read from storage before storage has the chosen value."""

    def read(original: Any, self: EffectPerformer, wanted: Any) -> None:
        stored, self.stored_upto = self.stored_upto, self._chosen_upto
        try:
            original(self, wanted)
        finally:
            self.stored_upto = stored

    return [wrap(EffectPerformer, "_read", read)]


@mutant("3.7 chosen is noted when it is stored")
def chosen_noted_too_early() -> Sequence[Patch]:
    """How far slots are chosen is noted in storage before their values are there."""

    def perform(original: Any, self: EffectPerformer, effects: Effects) -> None:
        original(self, effects)
        if effects.chosen:
            self._storage.note_chosen(effects.chosen[-1].slot)

    return [wrap(EffectPerformer, "_perform", perform)]


@mutant("3.7 a snapshot keeps what was accepted above")
def snapshot_drops_accepted() -> Sequence[Patch]:
    """Installing a snapshot forgets what was accepted above it."""

    def install(original: Any, self: Log, slot: int) -> None:
        original(self, slot)
        self.entries.clear()

    return [wrap(Log, "install", install)]


@mutant("3 snapshots")
def snapshot_off_by_one() -> Sequence[Patch]:
    """A snapshot claims to be of one slot more than it holds."""

    def make(original: Any, self: SnapshotMaker) -> Any:
        self._state.applied_upto += 1
        try:
            return original(self)
        finally:
            self._state.applied_upto -= 1

    return [wrap(SnapshotMaker, "make", make)]


@mutant("3 snapshots are synced as they go")
def snapshot_not_synced() -> Sequence[Patch]:
    """A snapshot takes the place of the log before it is on the disk."""
    return [wrap(SimulatedDisk, "sync", partial(_sync_others, "snapshot", "draft"))]


def _sync_others(*arguments: Any) -> None:
    *prefixes, sync, disk, name = arguments
    if not name.startswith(tuple(prefixes)):
        sync(disk, name)


@mutant("3.9 commands once")
def repeated_command_applies() -> Sequence[Patch]:
    """A command that is tried again is applied again."""

    def remember(original: Any, self: Sessions, command: Command, slot: int, index: int, data: Raw) -> Result:
        result = original(self, command, slot, index, data)
        del self._sessions[command.client].results[command.sequence]
        return result

    return [wrap(Sessions, "remember", remember)]


@mutant("5 results are part of the state")
def sessions_not_in_snapshot() -> Sequence[Patch]:
    """A snapshot leaves out the results of sessions."""

    def load(original: Any, self: Sessions, saved: Any) -> None:
        original(self, [msgspec.structs.replace(session, results=()) for session in saved])

    return [wrap(Sessions, "load", load)]


# -- reads


@mutant("5 reads are confirmed")
def read_without_confirmation() -> Sequence[Patch]:
    """A leader answers reads without asking whether it still is one."""

    def on_request(self: Reads, sender: Any, message: Any, now_s: float) -> Effects:
        if not self._leads():
            return Effects()
        answer = ReadAt(message.read_id, self._proposer.highest_proposed)
        return Effects(sends=[Send((sender.uid,), answer)])

    return [mock.patch.object(Reads, "on_request", on_request)]


@mutant("5 the highest slot proposed")
def read_at_chosen_upto() -> Sequence[Patch]:
    """A read waits for what the leader knows as chosen, not for all that it proposed."""
    own = property(lambda self: self.log.chosen_upto)
    return [mock.patch.object(Proposer, "highest_proposed", own)]


@mutant("5 a read waits until its slot is applied")
def read_before_applied() -> Sequence[Patch]:
    """A read is answered when it is confirmed, whatever is applied here."""

    def confirmed(original: Any, self: NodeReads, readable: Any) -> None:
        original(self, readable._replace(slot=0))

    return [wrap(NodeReads, "confirmed", confirmed)]


@mutant("5 a nonce issued after the arrival")
def read_joins_running_round() -> Sequence[Patch]:
    """A read is confirmed by a question that was asked before it arrived."""

    def on_request(original: Any, self: Reads, sender: Any, message: Any, now_s: float) -> Effects:
        effects = original(self, sender, message, now_s)
        if self._confirming and self._waiting:
            self._confirming += self._waiting
            self._waiting = []
        return effects

    return [wrap(Reads, "on_request", on_request)]


# -- section 6: storage and members


@mutant("6 fdatasync")
def log_not_synced() -> Sequence[Patch]:
    """The log is written and reported without a sync."""
    return [wrap(SimulatedDisk, "sync", partial(_sync_others, "log-"))]


@mutant("3.1 persist, then send")
def vote_before_its_sync() -> Sequence[Patch]:
    """A vote leaves when its record is given to the disk, before it is written and synced."""

    def append(disk: Any, name: str, offset: int, data: bytes, then: Any, failed: Any) -> None:
        if then is not None:
            then()
        original(disk, name, offset, data, None, failed)

    original = executor.append
    return [mock.patch.object(executor, "append", append)]


@mutant("6 two copies of the promise")
def promise_in_one_copy() -> Sequence[Patch]:
    """The promise is written to the second copy only every other time."""

    def save(self: DurableObjectHandler[Any], value: Any) -> None:
        self._serial += 1
        data = encode_copy(self.name, self._serial, self._encode(value))
        for index in (0, 1) if self._serial % 2 else (0,):
            self._disk.write_at(f"{self.name}.{index}", 0, data)
            self._disk.sync(f"{self.name}.{index}")

    return [mock.patch.object(DurableObjectHandler, "save", save)]


@mutant("6 checksums")
def torn_record_accepted() -> Sequence[Patch]:
    """A record of the log is taken as it is, whatever its checksum."""

    def parse(data: memoryview, offset: int) -> Any:
        if offset + log_format.HEADER_BYTES > len(data):
            return None
        _, magic, kind, uid_bytes, _, length, segment, sequence, synced, slot, number = (
            log_format.RECORD_HEADER.unpack_from(data, offset)
        )
        end = offset + ((log_format.HEADER_BYTES + length + 7) & ~7)
        if magic != log_format.RECORD_MAGIC or end > len(data) or uid_bytes > length:
            return None
        return end, kind, uid_bytes, segment, sequence, synced, slot, number

    return [mock.patch.object(module, "parse_record", parse) for module in (log_format, recovery)]


@mutant("6 damage below a synced point")
def damage_taken_for_torn() -> Sequence[Patch]:
    """Whatever is bad in the last segment counts as torn, also below what was synced."""

    def examine(original: Any, disk: Any, promised: Any, floor: Any, *more: Any) -> Any:
        return original(disk, promised, Floor(), *more)

    def take_rest(original: Any, *arguments: Any) -> int:
        return 0

    return [
        wrap(recovery, "synced_evidence", take_rest),
        mock.patch("twisted_paxos.storage.log.examine", partial(examine, recovery.examine)),
    ]


@mutant("6 a new incarnation does not vote")
def wiped_node_votes() -> Sequence[Patch]:
    """A node with a fresh directory votes at once, and its votes count for its id."""

    def votes_on(self: Membership, slot: int, sender: Any) -> bool:
        return sender.uid in self.voters

    def is_voter(self: Formation) -> bool:
        return self.membership.formed and self.me.uid in self.membership.voters

    def is_quorum(self: Membership, promises: Any, above_slot: int) -> bool:
        return len(promises) >= self.majority

    return [
        mock.patch.object(Membership, "votes_on", votes_on),
        mock.patch.object(Membership, "is_member", lambda self, sender: sender.uid in self.voters),
        mock.patch.object(Membership, "is_phase_1_quorum", is_quorum),
        mock.patch.object(Formation, "is_voter", property(is_voter)),
    ]


@mutant("6 an old copy is refused")
def old_copy_is_heard() -> Sequence[Patch]:
    """A start is listened to without looking at its number."""

    def admit(original: Any, self: Formation, sender: Any, message: Any) -> tuple[bool, Effects]:
        admitted, effects = original(self, sender, message)
        if any(isinstance(send.message, Refused) for send in effects.sends):
            return True, Effects()
        return admitted, effects

    return [wrap(Formation, "admit", admit)]


@mutant("6 a start comes from the recorded one")
def descent_is_not_asked() -> Sequence[Patch]:
    """A start with a higher number is believed, whatever its storage comes from."""

    def problem(original: Any, self: Formation, sender: Any, message: Any) -> Any:
        return original(self, sender, msgspec.structs.replace(message, descends=True))

    return [wrap(Formation, "_problem", problem)]


@mutant("6 Replace takes effect alpha slots later")
def replace_at_once() -> Sequence[Patch]:
    """A Replace holds from the next slot on, where values may be on their way already."""

    def replace(original: Any, self: Membership, uid: str, new: str, from_slot: int) -> None:
        original(self, uid, new, max(from_slot - limits.ALPHA + 1, self.latest_from))

    return [wrap(Membership, "replace", replace)]


@mutant("6 a full disk refuses")
def full_disk_forgets() -> Sequence[Patch]:
    """A write for which there is no room is reported as stored."""

    def commit(original: Any, self: FileBackend, writes: Any, chosen_upto: int) -> Any:
        return [None for _ in original(self, writes, chosen_upto)]

    return [wrap(FileBackend, "commit", commit)]


@mutant("6 what was learnt is stored")
def learnt_not_saved() -> Sequence[Patch]:
    """A slot that was fetched is not written down."""

    def advance(original: Any, self: Learner, now_s: float) -> Effects:
        return without(SaveChosen, original(self, now_s))

    return [wrap(Learner, "_advance", advance)]
