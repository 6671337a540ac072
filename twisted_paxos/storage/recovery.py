"""Checks a log as it lies on disk: what is in it, and whether all that was ever synced is there.

The rule (DESIGN.md, section 6): what is bad at or below any known synced point is damage; only what
no one can ever have been told of may be torn. What is known as synced:

* every record says how far the log was synced when it was written, and any whole record of the
  segment counts, also one that lies behind a bad place;
* a segment exists only when all before it is synced: its header says how far that was;
* END at the end of a segment says that the next segment exists;
* identity and promise say how far the log was synced when they were saved: the `Floor`.

Where the log begins, and which snapshot stands for what is gone, is durable as well: the `LogBase`. So
lost first segments, or a lost snapshot, cannot pass for a short log.

Nothing here writes; `log` repairs, `cli.inspect` only looks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from msgspec import Struct

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.disk import IDisk
from twisted_paxos.storage.format import (
    ACCEPTED,
    CHOSEN,
    CHOSEN_UPTO,
    END,
    HEADER_BYTES,
    LOG_VERSION,
    SEGMENT,
    SEGMENT_SPAN,
    parse_record,
    scan,
    segment_id,
    segment_name,
    synced_evidence,
)
from twisted_paxos.storage.index import SlotIndex


class Floor(NamedTuple):
    """How far the log certainly reaches: this segment exists, this sequence number is synced."""

    segment: int = 1
    synced: int = 0


class LogBase(Struct, frozen=True):
    """Where the log begins; saved before anything is removed.

    Attributes:
        segment: the first segment; those before it are gone, or about to go.
        sequence: number of its first record.
        start: the lowest slot that the log answers for. What it holds of lower slots is void: it may
            be incomplete, or, below a snapshot that was fetched from a peer, not what was chosen.
        snapshot: the slot of the snapshot that counts, at least ``start - 1``; 0 when there is none.
    """

    segment: int = 1
    sequence: int = 1
    start: int = 1
    snapshot: int = 0


@dataclass
class Segment:
    """One file of the log.

    Attributes:
        id: without a gap.
        size_bytes: of the file, as its header says.
        first_sequence: number of its first record.
        used_bytes: where its records end.
        lowest_slot, highest_slot: of the values in it; 0 when there is none.
        ended: END is written.
        dirty_bytes: what is not zero behind its records.
    """

    id: int
    size_bytes: int
    first_sequence: int
    used_bytes: int = HEADER_BYTES
    lowest_slot: int = 0
    highest_slot: int = 0
    ended: bool = False
    dirty_bytes: int = 0

    @cached_property
    def name(self) -> str:
        """Its file."""
        return segment_name(self.id)

    def cover(self, slot: int) -> None:
        """There is a value of ``slot`` in it."""
        if slot > self.highest_slot:
            self.highest_slot = slot
        if slot < self.lowest_slot or not self.lowest_slot:
            self.lowest_slot = slot


@dataclass
class LogState:
    """What a log holds.

    Attributes:
        segments: in order; the last one is being written.
        index: where each slot's newest record is.
        chosen_upto: how far slots are chosen, as far as is recorded.
        chosen_at: the highest CHOSEN record: what is learnt is stored in order, so every slot up to there
            is chosen and stored.
        sequence: number of the next record.
        unsynced_offset: where, in the last segment, the records start that may not be synced.
    """

    segments: list[Segment] = field(default_factory=list)
    index: SlotIndex = field(default_factory=SlotIndex)
    chosen_upto: int = 0
    chosen_at: int = 0
    sequence: int = 1
    unsynced_offset: int = HEADER_BYTES


def examine(
    disk: IDisk,
    promised: ProposalID,
    floor: Floor,
    base: LogBase = LogBase(),  # noqa: B008 - frozen
) -> LogState:
    """Read and check the whole log; changes nothing.

    Args:
        promised: the saved promise; no entry may have been accepted above it.
        floor: how far the log must reach at least.
        base: where it begins.

    Raises:
        StorageDamaged: something synced is missing or changed; says where.
        StorageError: it is of a newer version of the program.
        OSError: it cannot be read.
    """
    segments = _read_headers(disk, floor, base)
    state = LogState(segments, SlotIndex(base.start))
    for position, segment in enumerate(segments):
        following = segments[position + 1] if position + 1 < len(segments) else None
        _examine_segment(disk, state, segment, following, promised, floor)
    state.chosen_upto = max(state.chosen_upto, state.chosen_at, base.snapshot)
    if state.chosen_upto > state.index.contiguous_upto:
        missing = state.index.contiguous_upto + 1
        raise StorageDamaged(
            f"{disk.path}: slot {missing} is missing though chosen up to {state.chosen_upto}"
        )
    return state


def _read_headers(disk: IDisk, floor: Floor, base: LogBase) -> list[Segment]:
    ids = sorted(number for number in map(segment_id, disk.names()) if number >= base.segment)
    expected = range(base.segment, max([base.segment, floor.segment, *ids]) + 1)
    missing = sorted(set(expected) - set(ids))
    if missing:
        raise StorageDamaged(f"{disk.path}/{segment_name(missing[0])} is missing")
    segments = [_read_header(disk, number) for number in ids]
    if segments[0].first_sequence != base.sequence:
        raise StorageDamaged(
            f"{disk.path}/{segments[0].name} at byte 0: "
            f"starts with record {segments[0].first_sequence} instead of {base.sequence}"
        )
    return segments


def _read_header(disk: IDisk, number: int) -> Segment:
    name = segment_name(number)
    parsed = parse_record(memoryview(disk.read_at(name, 0, HEADER_BYTES)), 0)
    if parsed is None or parsed[1] != SEGMENT or parsed[3] != number:
        raise StorageDamaged(f"{disk.path}/{name} at byte 0: no segment header")
    _, _, _, _, sequence, _, size_bytes, version = parsed
    if version != LOG_VERSION:
        raise StorageError(
            f"{disk.path}/{name}: format version {version} is not known: use the program that wrote it"
        )
    actual = disk.size(name)
    if actual != size_bytes:
        raise StorageDamaged(f"{disk.path}/{name}: {actual} bytes long instead of {size_bytes}")
    return Segment(number, size_bytes, sequence)


def _examine_segment(
    disk: IDisk,
    state: LogState,
    segment: Segment,
    following: Segment | None,
    promised: ProposalID,
    floor: Floor,
) -> None:
    data = memoryview(disk.read(segment.name))
    offsets, known = _read_records(f"{disk.path}/{segment.name}", data, state, segment, promised)
    rest = data[segment.used_bytes :].tobytes().rstrip(b"\0")
    segment.dirty_bytes = len(rest)
    if following is not None:
        known = following.first_sequence - 1
        if state.sequence > following.first_sequence:
            raise StorageDamaged(
                f"{disk.path}/{following.name} at byte 0: its header does not follow {segment.name}"
            )
    else:
        if segment.ended:
            raise StorageDamaged(f"{disk.path}/{segment_name(segment.id + 1)} is missing")
        known = max(known, floor.synced, segment.first_sequence - 1)
        if rest:
            known = max(known, synced_evidence(data, segment.id, segment.used_bytes))
    if state.sequence <= known:
        raise StorageDamaged(
            f"{disk.path}/{segment.name} at byte {segment.used_bytes}: "
            f"record {state.sequence} is not what was written, though synced up to {known}"
        )
    confirmed = known - segment.first_sequence + 1
    state.unsynced_offset = offsets[confirmed] if confirmed < len(offsets) else segment.used_bytes


def _read_records(
    path: str, data: memoryview, state: LogState, segment: Segment, promised: ProposalID
) -> tuple[Sequence[int], int]:
    """Take the records of a segment up to the first bad one into ``state``.

    Returns their offsets, and the highest ``synced`` that they tell.
    """
    offsets = array("Q")
    known = lowest = highest = chosen_at = 0
    end = HEADER_BYTES
    put = state.index.put
    base = segment.id * SEGMENT_SPAN
    for offset, end_of_record, kind, uid_bytes, synced, slot, number in scan(
        data, segment.id, segment.first_sequence, HEADER_BYTES
    ):
        if synced > known:
            known = synced
        if kind == END:
            segment.ended = True
            break
        offsets.append(offset)
        end = end_of_record
        if kind == CHOSEN_UPTO:
            state.chosen_upto = max(state.chosen_upto, slot)
            continue
        if kind == ACCEPTED and number >= promised.number:
            _check_ballot(path, data, offset, number, uid_bytes, promised)
        if kind == CHOSEN and slot > chosen_at:
            chosen_at = slot
        put(slot, base + offset)
        if slot > highest:
            highest = slot
        if slot < lowest or not lowest:
            lowest = slot
    if highest:
        segment.cover(lowest)
        segment.cover(highest)
    segment.used_bytes = end
    state.chosen_at = max(state.chosen_at, chosen_at)
    state.sequence = segment.first_sequence + len(offsets)
    return offsets, known


def _check_ballot(
    path: str, data: memoryview, offset: int, number: int, uid_bytes: int, promised: ProposalID
) -> None:
    start = offset + HEADER_BYTES
    ballot = ProposalID(number, str(data[start : start + uid_bytes], "utf-8", "replace"))
    if ballot > promised:
        raise StorageDamaged(
            f"{path} at byte {offset}: accepted at ballot {ballot}, above the saved promise {promised}"
        )
