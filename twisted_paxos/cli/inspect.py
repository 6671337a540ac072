"""Looks at a node's files, read-only and without a lock; also while the node runs.

`inspect_directory` is what ``paxosctl inspect`` shows. A running node writes while we read: what looks
wrong is therefore read again, and only what stays wrong is a problem.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.records import Identity
from twisted_paxos.errors import StorageError
from twisted_paxos.storage.disk import LOCK_NAME, OsDisk, reason
from twisted_paxos.storage.durable import DurableObjectHandler, T, choose_copy, read_copies
from twisted_paxos.storage.format import (
    ACCEPTED,
    CHOSEN,
    CHOSEN_UPTO,
    END,
    HEADER_BYTES,
    KIND_NAMES,
    RECORD_HEADER,
    decode_entry,
    scan,
    segment_id,
)
from twisted_paxos.storage.recovery import Floor, LogBase, LogState, examine
from twisted_paxos.storage.snapshotfile import read_contents
from twisted_paxos.storage.sqliteformat import (
    ObjectCopy,
    Tally,
    check_header,
    check_row,
    decode_object,
    read_object_copies,
    scan_rows,
)
from twisted_paxos.storage.wal import base_object, identity_object, promise_object

ATTEMPTS = 3
"""How often files that look wrong are read again before they count as wrong."""

LAST_ENTRIES = 10
VALUE_SHOWN_CHARS = 60


class CopyView(Struct, frozen=True):
    """One of the two copies of a small object.

    Attributes:
        name: the file, or table and object.
        serial: which save it holds, 0 when it is not good.
        problem: empty when it is good.
    """

    name: str
    serial: int
    problem: str


class SegmentView(Struct, frozen=True):
    """One file of the log.

    Attributes:
        name: the file.
        size_bytes, used_bytes: of the file; of the good records in it.
        first_sequence, last_sequence: numbers of its records; last < first when it has none.
        accepted, chosen, chosen_upto: how many records of each kind.
        lowest_slot, highest_slot: of its values, 0 when there are none.
        ended: END is written, so there is a next segment.
        torn_bytes: what lies behind the good records: a write that is under way, or that a crash cut short.
    """

    name: str
    size_bytes: int
    used_bytes: int
    first_sequence: int
    last_sequence: int
    accepted: int
    chosen: int
    chosen_upto: int
    lowest_slot: int
    highest_slot: int
    ended: bool
    torn_bytes: int


class EntryView(Struct, frozen=True):
    """One stored value.

    Attributes:
        slot: its place in the log.
        kind: ``accepted`` or ``chosen``.
        ballot: under which.
        value: its text, shortened.
        value_bytes: its size.
        place: where it is stored: file and offset in bytes, or table.
    """

    slot: int
    kind: str
    ballot: ProposalID
    value: str
    value_bytes: int
    place: str


class Inspection(Struct):
    """What is stored in one place.

    Attributes:
        path: what was inspected.
        kind: ``file`` or ``sqlite``.
        pid: the process that opened it last, 0 when unknown; it may have ended.
        identity: None when it cannot be read.
        promised: None when it cannot be read.
        identity_copies, promise_copies, base_copies: both copies of each.
        segments: files of the log, in order; empty for ``sqlite``.
        records: how many records of each kind, by name.
        chosen_upto: every slot up to here is chosen, and stored or in the snapshot.
        log_start: the lowest slot that the log answers for.
        highest_slot: the highest stored slot.
        snapshot_slot, snapshot_pieces, snapshot_bytes: the snapshot that counts; 0 when there is none.
        last_entries: the last records with values, oldest first.
        problems: damage: the node would not start with it. One line each.
        notes: what is unusual and does no harm. One line each.
    """

    path: str
    kind: str
    pid: int = 0
    identity: Identity | None = None
    promised: ProposalID | None = None
    identity_copies: list[CopyView] = []
    promise_copies: list[CopyView] = []
    base_copies: list[CopyView] = []
    segments: list[SegmentView] = []
    records: dict[str, int] = {}
    chosen_upto: int = 0
    log_start: int = 1
    highest_slot: int = 0
    snapshot_slot: int = 0
    snapshot_pieces: int = 0
    snapshot_bytes: int = 0
    last_entries: list[EntryView] = []
    problems: list[str] = []
    notes: list[str] = []


def inspect_directory(path: str | os.PathLike[str], last_entries: int = LAST_ENTRIES) -> Inspection:
    """Everything about the storage at ``path``: a directory (``file:``) or a database (``sqlite:``).

    Args:
        last_entries: how many of the last values to show.

    Raises:
        StorageError: there is nothing there, or it may not be read.
    """
    for _ in range(ATTEMPTS):
        found = _inspect_once(os.fspath(path), last_entries)
        if not found.problems:
            break
    return found


def _inspect_once(path: str, last_entries: int) -> Inspection:
    try:
        if os.path.isdir(path):
            return _inspect_files(path, last_entries)
        if os.path.exists(path):
            return _inspect_database(path, last_entries)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {reason(error)}") from error
    raise StorageError(f"{path} does not exist")


def shorten(value: bytes) -> str:
    """A value's text on one line, at most `VALUE_SHOWN_CHARS` characters of it."""
    text = value[: 4 * VALUE_SHOWN_CHARS].decode("utf-8", "replace")
    cut = len(value) > 4 * VALUE_SHOWN_CHARS or len(text) > VALUE_SHOWN_CHARS
    printable = "".join(char if char.isprintable() else "?" for char in text[:VALUE_SHOWN_CHARS])
    return printable + "..." if cut else printable


def read_pid(path: str) -> int:
    """The process id in a lock file, 0 when there is none."""
    try:
        return int(Path(path).read_bytes()[:20].strip() or b"0")
    except (OSError, ValueError):
        return 0


def _inspect_files(path: str, last_entries: int) -> Inspection:
    found = Inspection(path, "file", read_pid(os.path.join(path, LOCK_NAME)))
    disk = OsDisk(path, read_only=True)
    disk.open()
    try:
        # Objects first: they say how far the log must reach, and it only grows meanwhile.
        identity = _inspect_object(disk, identity_object(disk), found, found.identity_copies)
        promise = _inspect_object(disk, promise_object(disk), found, found.promise_copies)
        found.identity = identity.identity if identity else None
        found.promised = promise.ballot if promise else None
        floor = max((stored.log for stored in (identity, promise) if stored), default=Floor())
        base = _inspect_object(disk, base_object(disk), found, found.base_copies)
        _check_log(disk, found, floor, base or LogBase())
        _check_snapshot(disk, found, base or LogBase())
        _count_records(disk, found, last_entries)
    finally:
        disk.close()
    return found


def _inspect_object(
    disk: OsDisk, handler: DurableObjectHandler[T], found: Inspection, views: list[CopyView]
) -> T | None:
    copies = read_copies(disk, handler.name)
    views += [CopyView(copy.file, copy.serial, copy.problem) for copy in copies]
    try:
        chosen = choose_copy(disk.path, copies)
        value = handler.decode(chosen)
    except StorageError as error:
        found.problems.append(str(error))
        return None
    for copy in copies:
        if copy.problem:
            found.notes.append(
                f"{copy.file}: {copy.problem}; the other copy is good, the next start repairs it"
            )
        elif copy.serial != chosen.serial:
            found.notes.append(f"{copy.file} is one save behind: a save runs, or was interrupted")
    return value


def _check_log(disk: OsDisk, found: Inspection, floor: Floor, base: LogBase) -> LogState | None:
    """The same checks that a start makes."""
    # Without a readable promise, which is a problem of its own, no ballot is too high.
    promised = found.promised if found.promised is not None else ProposalID((1 << 64) - 1, "")
    try:
        state = examine(disk, promised, floor, base)
    except StorageError as error:
        found.problems.append(str(error))
        return None
    found.chosen_upto, found.log_start = state.chosen_upto, base.start
    torn_bytes = state.segments[-1].dirty_bytes
    if torn_bytes:
        found.notes.append(
            f"{state.segments[-1].name}: {torn_bytes} bytes of a write that is under way or was cut short"
        )
    return state


def _check_snapshot(disk: OsDisk, found: Inspection, base: LogBase) -> None:
    """As far as a start does: the pieces are not read (``paxosctl verify`` does)."""
    found.snapshot_slot = base.snapshot
    if not base.snapshot:
        return
    try:
        info = read_contents(disk, base.snapshot).info
    except StorageError as error:
        if base.start == 1:
            found.notes.append(f"{error}; the log still has everything, the next start drops the snapshot")
        else:
            found.problems.append(str(error))
        return
    found.snapshot_pieces, found.snapshot_bytes = info.pieces, info.size_bytes


def _count_records(disk: OsDisk, found: Inspection, last_entries: int) -> None:
    last: deque[EntryView] = deque(maxlen=max(last_entries, 0))
    records = {KIND_NAMES[kind]: 0 for kind in (ACCEPTED, CHOSEN, CHOSEN_UPTO)}
    for name in filter(segment_id, disk.names()):
        segment = _inspect_segment(disk, name, last)
        found.segments.append(segment)
        records["accepted"] += segment.accepted
        records["chosen"] += segment.chosen
        records["chosen_upto"] += segment.chosen_upto
        found.highest_slot = max(found.highest_slot, segment.highest_slot)
    found.records = records
    found.last_entries = list(last)


def _inspect_segment(disk: OsDisk, name: str, last: deque[EntryView]) -> SegmentView:
    data = memoryview(disk.read(name))
    first = RECORD_HEADER.unpack_from(data)[7] if len(data) >= HEADER_BYTES else 0
    counts = dict.fromkeys((ACCEPTED, CHOSEN, CHOSEN_UPTO, END), 0)
    used_bytes = HEADER_BYTES
    slots: list[int] = []
    places: deque[tuple[int, int, int]] = deque(maxlen=last.maxlen)
    for offset, end, kind, _, _, slot, _ in scan(data, segment_id(name), first, HEADER_BYTES):
        counts[kind] += 1
        used_bytes = end
        if kind in (ACCEPTED, CHOSEN):
            places.append((offset, kind, slot))
            slots = [min(slot, *slots), max(slot, *slots)] if slots else [slot, slot]
    for offset, kind, slot in places:
        ballot, value = decode_entry(data, offset)
        text = bytes(value)
        last.append(
            EntryView(slot, KIND_NAMES[kind], ballot, shorten(text), len(text), f"{name} at byte {offset}")
        )
    records = counts[ACCEPTED] + counts[CHOSEN] + counts[CHOSEN_UPTO]
    return SegmentView(
        name=name,
        size_bytes=len(data),
        used_bytes=used_bytes,
        first_sequence=first,
        last_sequence=first + records - 1,
        accepted=counts[ACCEPTED],
        chosen=counts[CHOSEN],
        chosen_upto=counts[CHOSEN_UPTO],
        lowest_slot=slots[0] if slots else 0,
        highest_slot=slots[1] if slots else 0,
        ended=bool(counts[END]),
        torn_bytes=len(data[used_bytes:].tobytes().rstrip(b"\0")),
    )


def _inspect_database(path: str, last_entries: int) -> Inspection:
    found = Inspection(path, "sqlite", read_pid(f"{path}.lock"))
    try:
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            check_header(path, connection)
            _inspect_objects(connection, found)
            _inspect_rows(connection, found, last_entries)
    except StorageError as error:
        found.problems.append(str(error))
    except sqlite3.Error as error:
        found.problems.append(f"{path}: {error}")
    return found


def _inspect_objects(connection: sqlite3.Connection, found: Inspection) -> None:
    found.identity_copies, identity = _inspect_row_object(connection, found, "identity", Identity)
    found.promise_copies, found.promised = _inspect_row_object(connection, found, "promise", ProposalID)
    found.identity = identity


def _inspect_row_object(
    connection: sqlite3.Connection, found: Inspection, name: str, kind: type[T]
) -> tuple[list[CopyView], T | None]:
    copies = read_both(connection, name)
    views = [CopyView(f"{copy.table} {name}", copy.serial, copy.problem) for copy in copies]
    try:
        _, value = decode_object(found.path, name, copies, kind)
    except StorageError as error:
        found.problems.append(str(error))
        return views, None
    for view in views:
        if view.problem:
            found.notes.append(
                f"{view.name}: {view.problem}; the other copy is good, the next start repairs it"
            )
    return views, value


def read_both(connection: sqlite3.Connection, name: str) -> list[ObjectCopy]:
    """Both copies as of one moment: a commit between the two reads would make them differ."""
    connection.execute("BEGIN")
    try:
        return read_object_copies(connection, name)
    finally:
        connection.execute("COMMIT")


def _inspect_rows(connection: sqlite3.Connection, found: Inspection, last_entries: int) -> None:
    _, tally = decode_object(found.path, "tally", read_both(connection, "tally"), Tally)
    last: deque[EntryView] = deque(maxlen=max(last_entries, 0))
    records = {KIND_NAMES[ACCEPTED]: 0, KIND_NAMES[CHOSEN]: 0}
    promised = found.promised if found.promised is not None else NO_BALLOT
    chosen_upto = max(tally.chosen_upto, tally.snapshot)
    for row in scan_rows(connection):
        check_row(found.path, row)
        slot, kind, number, uid, value, _ = row
        ballot = ProposalID(number, uid)
        if kind == ACCEPTED and ballot > promised and found.promised is not None:
            found.problems.append(f"slot {slot} was accepted at {ballot}, above the promise {promised}")
        records[KIND_NAMES[kind]] += 1
        found.highest_slot = slot
        if kind == CHOSEN:
            chosen_upto = max(chosen_upto, slot)
        last.append(EntryView(slot, KIND_NAMES[kind], ballot, shorten(value), len(value), "entry"))
    rows = sum(records.values())
    if rows < tally.rows:
        found.problems.append(f"{rows} slots are stored instead of {tally.rows}")
    found.records, found.chosen_upto, found.last_entries = records, chosen_upto, list(last)
    found.log_start, found.snapshot_slot = tally.start, tally.snapshot
    found.snapshot_pieces, found.snapshot_bytes = tally.pieces, tally.size_bytes
