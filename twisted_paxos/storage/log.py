"""The segmented log, written and read on one thread: plans a group commit, then writes and syncs it.

What a crash can leave, and nothing else (`recovery` relies on it):

* a segment's file gets its name only after its header is synced, and only after every record
  before it is synced; END is written to the segment before it after that, and before any record goes in;
* records are written in order of their sequence numbers; a group is synced before the next is written;
* before anything is appended after a restart, what was torn is durably zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from msgspec import Raw

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.core.records import SaveAccepted, SaveChosen
from twisted_paxos.errors import StorageDamaged, StorageFull, StorageUnreadable
from twisted_paxos.storage.disk import IDisk, is_full, reason
from twisted_paxos.storage.format import (
    ACCEPTED,
    CHOSEN,
    CHOSEN_UPTO,
    END,
    HEADER_BYTES,
    LOG_VERSION,
    SEGMENT,
    SEGMENT_MAX_BYTES,
    SEGMENT_SPAN,
    declared_bytes,
    decode_entry,
    draft_name,
    encode_record,
    parse_record,
    record_bytes,
    record_parts,
    segment_name,
)
from twisted_paxos.storage.recovery import Floor, LogBase, LogState, Segment, examine

SEGMENT_BYTES = 16 << 20
"""Size of a segment's file, unless told otherwise; a larger record makes a larger one."""

READ_CHUNK_BYTES = 256 << 10
"""What one read asks for: neighbouring records come with it."""

FILL_BELOW_BYTES = 128 << 10
"""A segment is filled with zeros ahead unless records of late were as large as this on average: a sync of
a block that was only reserved must change metadata as well, but then writing every byte twice costs more."""

FILL_STEP_BYTES = 512 << 10
"""So much of it at a time, each step synced: records do not wait for more than one step."""

_GRAIN_BYTES = 4096

LogRecord: TypeAlias = SaveAccepted | SaveChosen


def encode_header(segment: int, size_bytes: int, first_sequence: int) -> bytes:
    """The first record of a segment."""
    return encode_record(SEGMENT, segment, first_sequence, first_sequence - 1, size_bytes, LOG_VERSION)


def _file_bytes(segment_bytes: int, record: int) -> int:
    """Size of a segment that takes at least one record of this size, its header and END."""
    needed = max(segment_bytes, record + 2 * HEADER_BYTES)
    size_bytes = (needed + _GRAIN_BYTES - 1) // _GRAIN_BYTES * _GRAIN_BYTES
    if size_bytes > SEGMENT_MAX_BYTES:
        raise ValueError(f"a segment of {size_bytes} bytes is over the limit of {SEGMENT_MAX_BYTES}")
    return size_bytes


@dataclass
class _Part:
    """What a plan appends to one segment."""

    segment: int
    size_bytes: int
    offset: int
    first_sequence: int
    end: int
    chunks: list[bytes | Raw] = field(default_factory=list)


class Append(NamedTuple):
    """A plan that is one write and one sync at the end of one file."""

    disk: IDisk
    name: str
    offset: int
    data: bytes


class _Mark(NamedTuple):
    parts: int
    chunks: int
    end: int
    placed: int


class Plan:
    """Where the records of one group commit go. Reserves segments; writes no record."""

    def __init__(self, log: SegmentedLog) -> None:
        self._log = log
        last = log.last
        self.parts = [_Part(last.id, last.size_bytes, last.used_bytes, log.sequence, last.used_bytes)]
        self.placed: list[tuple[int, int]] = []
        self.sequence = log.sequence
        self._synced = log.synced

    def take(self, records: Sequence[LogRecord]) -> StorageFull | None:
        """Append all of ``records``, or, when there is no room for them, none and say so.

        Raises:
            OSError: anything but no room.
        """
        point = self._mark()
        start = self._log.index.first_slot
        try:
            for record in records:
                if record.slot < start:
                    continue  # a snapshot stands for it
                kind = ACCEPTED if isinstance(record, SaveAccepted) else CHOSEN
                self.add(kind, record.slot, record.ballot, record.value)
        except OSError as error:
            if not is_full(error):
                raise
            self._back_to(point)
            return StorageFull(f"{self._log.path}: {reason(error)}; make room, and writing goes on")
        return None

    def _mark(self) -> tuple[int, _Mark]:
        """A point to go back to."""
        part = self.parts[-1]
        return self.sequence, _Mark(len(self.parts), len(part.chunks), part.end, len(self.placed))

    def _back_to(self, point: tuple[int, _Mark]) -> None:
        """Forget what was added since ``point``; what was reserved stays reserved."""
        self.sequence, mark = point
        del self.parts[mark.parts :]
        del self.parts[-1].chunks[mark.chunks :]
        self.parts[-1].end = mark.end
        del self.placed[mark.placed :]

    def take_here(self, records: Sequence[LogRecord]) -> bool:
        """Append all of ``records`` to the current segment, without touching a file.

        False when they do not fit: then the plan is of no use.
        """
        start = self._log.index.first_slot
        for record in records:
            if record.slot < start:
                continue  # a snapshot stands for it
            kind = ACCEPTED if type(record) is SaveAccepted else CHOSEN
            if not self.add(kind, record.slot, record.ballot, record.value, here=True):
                return False
        return True

    def add(self, kind: int, slot: int, ballot: ProposalID, value: bytes | Raw, here: bool = False) -> bool:
        """Append a record; where it does not fit, in a new segment, or, if it must be ``here``, not at all.

        Returns:
            whether it was appended.

        Raises:
            OSError: a new segment cannot be reserved.
        """
        uid = ballot.uid.encode()
        size_bytes = record_bytes(len(uid), len(value))
        part = self.parts[-1]
        if part.end + size_bytes + HEADER_BYTES > part.size_bytes:  # END must fit as well.
            if here:
                return False
            following = part.segment + 1
            reserved_bytes = self._log.reserve(following, size_bytes)
            part = _Part(following, reserved_bytes, HEADER_BYTES, self.sequence, HEADER_BYTES)
            self.parts.append(part)
        if kind != CHOSEN_UPTO:
            self.placed.append((slot, part.segment * SEGMENT_SPAN + part.end))
        part.chunks += record_parts(
            kind, part.segment, self.sequence, self._synced, slot, ballot.number, uid, value
        )
        part.end += size_bytes
        self.sequence += 1
        return True


class SegmentedLog:
    """A log that was recovered; see `open_log`. One thread at a time.

    Attributes:
        chosen_upto: the highest recorded.
        sequence: number of the next record.
    """

    def __init__(self, disk: IDisk, state: LogState, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.chosen_upto = state.chosen_upto
        self.sequence = state.sequence
        self.index = state.index
        self._disk = disk
        self._segments = state.segments
        self._segment_bytes = segment_bytes
        self._reserved: dict[int, int] = {}
        self._fill_from = -1  # where the next segment has no zeros yet; -1: none are wanted
        self._full_at = 0
        self.used_bytes = sum(segment.used_bytes for segment in state.segments)

    @property
    def path(self) -> str:
        """Where it is, for messages."""
        return self._disk.path

    @property
    def last(self) -> Segment:
        """The segment that is being written."""
        return self._segments[-1]

    @property
    def synced(self) -> int:
        """The highest sequence number known to be durable: between group commits, all that there is."""
        return self.sequence - 1

    @property
    def floor(self) -> Floor:
        """How far the log certainly reaches, to be saved with identity and promise."""
        return Floor(self.last.id, self.synced)

    @property
    def wants_upkeep(self) -> bool:
        """The next segment lacks zeros, or the current one is half full and the next not reserved yet."""
        if self._fill_from >= 0:
            return True
        last = self.last
        return (
            last.used_bytes * 2 > last.size_bytes
            and last.id + 1 not in self._reserved
            and self._full_at != last.id
        )

    @property
    def _fills(self) -> bool:
        """Whether the next segment is worth its zeros."""
        last = self.last
        return last.used_bytes < FILL_BELOW_BYTES * (self.sequence - last.first_sequence + 1)

    def repair(self, state: LogState) -> int:
        """Make durable what was found, and zero what was torn; returns how many bytes were dropped.

        The records that may not be synced are written again: after a failed sync the system can show
        bytes that never reached the disk, and would not write them at the next sync.
        """
        for name in self._disk.names():
            if name.startswith("next-"):
                self._disk.remove(name)
        self._disk.sync_dir()
        for segment, following in pairwise(self._segments):
            if not segment.ended:
                self._disk.write_at(segment.name, segment.used_bytes, bytes(segment.dirty_bytes))
                self._end(segment, following.first_sequence)
        last = self.last
        again = self._disk.read_at(last.name, state.unsynced_offset, last.used_bytes - state.unsynced_offset)
        if again or last.dirty_bytes:
            self._disk.write_at(last.name, state.unsynced_offset, again + bytes(last.dirty_bytes))
        self._disk.sync(last.name)
        return last.dirty_bytes

    def reserve(self, segment: int, record_bytes: int = 0) -> int:
        """Make sure that there is a file for a future segment, with its zeros; returns its size in bytes.

        Raises:
            OSError: there is no room, or worse.
        """
        needed = _file_bytes(self._segment_bytes, record_bytes)
        try:
            if self._reserved.get(segment, 0) < needed:
                self._release(segment)
                self._create(segment, needed)
            while self._fill_from >= 0:
                self._fill(segment)
        except OSError as error:
            if is_full(error):
                self._release(segment)
            raise
        return self._reserved[segment]

    def upkeep(self) -> bool:
        """One step of what `wants_upkeep` tells of; False when there is no room for the next segment.

        Raises:
            OSError: anything but no room.
        """
        following = self.last.id + 1
        try:
            if self._fill_from >= 0:
                self._fill(following)
            elif following not in self._reserved:
                self._full_at = self.last.id
                self._create(following, _file_bytes(self._segment_bytes, 0))
        except OSError as error:
            if not is_full(error):
                raise
            self._release(following)
            return False
        return True

    def _create(self, segment: int, size_bytes: int) -> None:
        """Reserve room for a future segment, without its zeros."""
        self._disk.create(draft_name(segment), size_bytes)
        self._reserved[segment] = size_bytes
        self._disk.sync(draft_name(segment))
        self._fill_from = 0 if self._fills else -1

    def _release(self, segment: int) -> None:
        """Give back what is reserved for a future segment, if anything is."""
        self._fill_from = -1
        if self._reserved.pop(segment, 0):
            self._disk.remove(draft_name(segment))

    def _fill(self, segment: int) -> None:
        """Write some of the zeros of a segment that is reserved."""
        start, size_bytes = self._fill_from, self._reserved[segment]
        end = min(start + FILL_STEP_BYTES, size_bytes)
        self._disk.fill(draft_name(segment), start, end - start)
        self._disk.sync(draft_name(segment))
        self._fill_from = end if end < size_bytes else -1

    def plan(self) -> Plan:
        """An empty plan for the next group commit; only one is made at a time."""
        return Plan(self)

    def execute(self, plan: Plan, chosen_upto: int) -> None:
        """Write and sync what was planned.

        Args:
            chosen_upto: recorded as far as slots are stored without a gap, if there is room.

        Raises:
            OSError: what is durable is unknown.
        """
        for slot, location in plan.placed:
            self.index.put(slot, location)
        self._plan_chosen(plan, chosen_upto)
        for part in plan.parts:
            self._write(part)
        first = self._segments[0].id
        for slot, location in plan.placed:
            self._segments[location // SEGMENT_SPAN - first].cover(slot)
        self.sequence = plan.sequence

    def append(self, plan: Plan, chosen_upto: int) -> Append:
        """What `execute` would do for a plan that stays in this segment, noted as done.

        It must be done before the log is asked for anything else, and if it fails the log is not used again.
        """
        part, last = plan.parts[0], self.last
        assert len(plan.parts) == 1 and part.chunks, "one write, and something to write"
        for slot, location in plan.placed:
            self.index.put(slot, location)
            last.cover(slot)
        self._plan_chosen(plan, chosen_upto)
        last.used_bytes = part.end
        self.used_bytes += part.end - part.offset
        self.sequence = plan.sequence
        return Append(self._disk, last.name, part.offset, b"".join(part.chunks))

    def _plan_chosen(self, plan: Plan, chosen_upto: int) -> None:
        upto = min(chosen_upto, self.index.contiguous_upto)
        if upto > self.chosen_upto and plan.add(CHOSEN_UPTO, upto, NO_BALLOT, b"", here=True):
            self.chosen_upto = upto

    def _write(self, part: _Part) -> None:
        if part.segment != self.last.id:
            self._advance(part)
        if part.chunks:
            self._disk.write_at(self.last.name, part.offset, b"".join(part.chunks))
            self._disk.sync(self.last.name)
            self.last.used_bytes = part.end
            self.used_bytes += part.end - part.offset

    def _advance(self, part: _Part) -> None:
        """Go on in the next segment; all before it is synced."""
        draft = draft_name(part.segment)
        self._disk.write_at(draft, 0, encode_header(part.segment, part.size_bytes, part.first_sequence))
        self._disk.sync(draft)
        self._disk.rename(draft, segment_name(part.segment))
        self._disk.sync_dir()
        self._end(self.last, part.first_sequence)
        del self._reserved[part.segment]
        self._fill_from = -1
        self._segments.append(Segment(part.segment, part.size_bytes, part.first_sequence))
        self.used_bytes += HEADER_BYTES

    def _end(self, segment: Segment, following_sequence: int) -> None:
        record = encode_record(END, segment.id, following_sequence, following_sequence - 1, 0)
        self._disk.write_at(segment.name, segment.used_bytes, record)
        self._disk.sync(segment.name)
        segment.ended = True

    def begin_at(self, slot: int) -> None:
        """Forget what is below ``slot``: a snapshot stands for it."""
        self.index.begin_at(slot)

    def passed(self, upto_slot: int) -> tuple[int, int]:
        """How many of the first segments hold no slot above ``upto_slot``, and where the log begins then.

        Never the segment that is being written.
        """
        count, start = 0, self.index.first_slot
        for segment in self._segments[:-1]:
            if segment.highest_slot > upto_slot:
                break
            count += 1
            start = max(start, segment.highest_slot + 1)
        return count, start

    def segment(self, position: int) -> Segment:
        """The segment at ``position``, from 0, of those that are there."""
        return self._segments[position]

    def drop(self, count: int, start: int) -> list[str]:
        """Let the first ``count`` segments go, and begin at slot ``start``; returns their files."""
        dropped = self._segments[:count]
        del self._segments[:count]
        self.used_bytes -= sum(segment.used_bytes for segment in dropped)
        self.begin_at(start)
        return [segment.name for segment in dropped]

    def read(self, slots: Iterable[int], limit_bytes: float = math.inf) -> list[SlotEntry]:
        """The newest records of ``slots``, in this order; ends at the first that is not stored.

        Also ends when ``limit_bytes`` of values are passed, after at least one.

        Raises:
            StorageDamaged: a record is not what was written.
            StorageUnreadable: the system cannot read it.
        """
        entries: list[SlotEntry] = []
        size_bytes = 0
        reader = _Reader(self._disk)
        for slot in slots:
            location = self.index.get(slot)
            if not location:
                break
            entry = reader.entry(slot, location)
            size_bytes += memoryview(entry.value).nbytes
            if entries and size_bytes > limit_bytes:
                break
            entries.append(entry)
            if size_bytes >= limit_bytes:
                break
        return entries


class _Reader:
    """Reads records; neighbours come from the same read."""

    def __init__(self, disk: IDisk) -> None:
        self._disk = disk
        self._segment = 0
        self._start = 0
        self._chunk = memoryview(b"")

    def entry(self, slot: int, location: int) -> SlotEntry:
        """The record at ``location``, which must be one of ``slot``."""
        segment, offset = divmod(location, SEGMENT_SPAN)
        try:
            start = self._load(segment, offset)
        except FileNotFoundError:
            raise self._damaged(segment, offset, "the file is missing") from None
        except OSError as error:
            raise StorageUnreadable(f"{self._place(segment, offset)}: {reason(error)}") from error
        parsed = parse_record(self._chunk, start)
        if parsed is None:
            raise self._damaged(segment, offset, f"slot {slot} is not what was written")
        _, kind, _, found_segment, _, _, found_slot, _ = parsed
        if kind not in (ACCEPTED, CHOSEN) or found_slot != slot or found_segment != segment:
            raise self._damaged(segment, offset, f"another record is in the place of slot {slot}")
        ballot, value = decode_entry(self._chunk, start)
        return SlotEntry(slot, ballot, value)

    def _load(self, segment: int, offset: int) -> int:
        """Have the whole record in the chunk; returns where it starts in it."""
        start = offset - self._start
        if segment == self._segment and start >= 0:
            end = start + declared_bytes(self._chunk, start)
            if end <= len(self._chunk):
                return start
        name = segment_name(segment)
        chunk = memoryview(self._disk.read_at(name, offset, READ_CHUNK_BYTES))
        wanted = min(declared_bytes(chunk, 0), self._disk.size(name) - offset)
        if wanted > len(chunk):
            chunk = memoryview(self._disk.read_at(name, offset, wanted))
        self._segment, self._start, self._chunk = segment, offset, chunk
        return 0

    def _damaged(self, segment: int, offset: int, what: str) -> StorageDamaged:
        return StorageDamaged(f"{self._place(segment, offset)}: {what}")

    def _place(self, segment: int, offset: int) -> str:
        return f"{self._disk.path}/{segment_name(segment)} at byte {offset}"


def create_files(segment_bytes: int) -> dict[str, bytes]:
    """The files of an empty log, for `IDisk.format`."""
    size_bytes = _file_bytes(segment_bytes, 0)
    return {segment_name(1): encode_header(1, size_bytes, 1).ljust(size_bytes, b"\0")}


def open_log(
    disk: IDisk, promised: ProposalID, floor: Floor, base: LogBase, segment_bytes: int
) -> tuple[SegmentedLog, int]:
    """Check the log, make durable what is in it, and be ready to append.

    Returns the log, and how many torn bytes of an unacknowledged write were dropped.

    Raises:
        StorageDamaged: something synced is missing or changed.
        OSError: it cannot be read or written.
    """
    state = examine(disk, promised, floor, base)
    log = SegmentedLog(disk, state, segment_bytes)
    return log, log.repair(state)
