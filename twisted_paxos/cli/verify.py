"""Checks every byte that a node relies on, read-only and without a lock; also while the node runs.

`verify_directory` is what ``paxosctl verify`` shows: what is wrong, where, and what the next start will
do about it. A running node writes while we read: what looks wrong is therefore read again, and only
what stays wrong is reported. The end of a write that is under way is normal.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from urllib.parse import quote

from msgspec import Struct

from twisted_paxos.cli.inspect import ATTEMPTS, read_both, read_pid
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.records import Identity
from twisted_paxos.errors import StorageDamaged, StorageError, StorageUnreadable
from twisted_paxos.storage.disk import LOCK_NAME, OsDisk, reason
from twisted_paxos.storage.durable import DurableObjectHandler, T, choose_copy, read_copies
from twisted_paxos.storage.format import (
    ACCEPTED,
    CHOSEN,
    END,
    HEADER_BYTES,
    RECORD_MAGIC,
    SEGMENT,
    parse_record,
    scan,
    segment_id,
    synced_evidence,
)
from twisted_paxos.storage.recovery import Floor, LogBase, examine
from twisted_paxos.storage.snapshot import SnapshotInfo
from twisted_paxos.storage.snapshotfile import read_contents, read_piece, snapshot_name, snapshot_slot
from twisted_paxos.storage.sqliteformat import Tally, check_header, check_row, decode_object, scan_rows
from twisted_paxos.storage.sqlitesnapshot import check_pieces
from twisted_paxos.storage.sqlitesnapshot import read_piece as read_row_piece
from twisted_paxos.storage.wal import base_object, identity_object, promise_object

FINDINGS_MAX = 100
"""No more than so many findings are kept."""

NEW_INCARNATION = "it comes back as a new incarnation, without a vote until the others admit it"
OTHER_COPY = "the next start writes it again from the other copy"
NOTHING_LOST = "nothing is lost: the next start clears it away"
NORMAL = "normal: a write that is under way, or that a crash cut short; nobody was told of it"

_ANY_BALLOT = ProposalID((1 << 64) - 1, "")
_PLACE = re.compile(r"([a-z]+[-.][0-9a-z.]+)(?: at byte (\d+))?:? (.*)")
_SLOT = re.compile(r"\bslot (\d+)")


class Finding(Struct, frozen=True):
    """Something that is not as it should be.

    Attributes:
        where: the file, or the table.
        offset: in the file, in bytes; None where it has no one place.
        slot: the slot that is concerned, if that is known.
        damage: False when the node goes on without losing anything.
        what: in words.
        outcome: what the next start does.
    """

    where: str
    offset: int | None
    slot: int | None
    damage: bool
    what: str
    outcome: str


class Verification(Struct):
    """What was checked in one place.

    Attributes:
        path: what was checked.
        kind: ``file`` or ``sqlite``.
        verdict: ``fine``, or ``damaged`` when the node would not start with it as it is.
        pid: the process that opened it last, 0 when unknown; it may have ended.
        uid, incarnation: whose it is; empty when that cannot be read.
        records: how many log records are whole.
        log_start: the lowest slot that the log answers for.
        chosen_upto: how far slots are chosen, as far as is recorded.
        snapshot_slot, snapshot_pieces, snapshot_bytes: the snapshot that counts; 0 when there is none.
        checked_bytes: how much was read.
        findings: what is not as it should be; at most `FINDINGS_MAX`.
    """

    path: str
    kind: str
    verdict: str = "fine"
    pid: int = 0
    uid: str = ""
    incarnation: str = ""
    records: int = 0
    log_start: int = 1
    chosen_upto: int = 0
    snapshot_slot: int = 0
    snapshot_pieces: int = 0
    snapshot_bytes: int = 0
    checked_bytes: int = 0
    findings: list[Finding] = []

    def add(
        self,
        where: str,
        what: str,
        outcome: str = NEW_INCARNATION,
        offset: int | None = None,
        slot: int | None = None,
        damage: bool = True,
    ) -> None:
        """Note a finding, unless one of the same place is there."""
        known = any(
            (found.where, found.offset, found.slot) == (where, offset, slot) for found in self.findings
        )
        if damage:
            self.verdict = "damaged"
        if len(self.findings) < FINDINGS_MAX and not (known and offset is not None):
            self.findings.append(Finding(where, offset, slot, damage, what, outcome))

    def add_error(self, error: StorageError, outcome: str = NEW_INCARNATION, damage: bool = True) -> None:
        """Note what a check of storage says, with the place that its text names."""
        text = str(error).removeprefix(self.path).lstrip(":/ ")
        slot = _SLOT.search(text)
        place = _PLACE.match(text)
        where, offset, what = place.groups() if place else (os.path.basename(self.path), None, text)
        at = int(offset) if offset else None
        self.add(where, what, outcome, at, int(slot[1]) if slot else None, damage)


def verify_directory(path: str | os.PathLike[str]) -> Verification:
    """Check everything at ``path``: a directory (``file:``) or a database (``sqlite:``).

    Raises:
        StorageError: there is nothing of a node there, it may not be read, or it is of a newer version.
    """
    for _ in range(ATTEMPTS):
        report = _verify_once(os.path.abspath(os.fspath(path)))
        if report.verdict == "fine":
            break
    return report


def _verify_once(path: str) -> Verification:
    try:
        if os.path.isdir(path):
            return _verify_files(path)
        if os.path.exists(path):
            return _verify_database(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {reason(error)}") from error
    raise StorageError(f"{path} does not exist")


# A directory.


def _verify_files(path: str) -> Verification:
    report = Verification(path, "file", pid=read_pid(os.path.join(path, LOCK_NAME)))
    disk = OsDisk(path, read_only=True)
    disk.open()
    if not any(name.split(".")[0] == "identity" or segment_id(name) for name in disk.names()):
        raise StorageError(f"{path} holds nothing of a node")
    try:
        # In this order: each tells what those behind it must hold, and that only grows meanwhile.
        identity = _verify_object(disk, identity_object(disk), report)
        promise = _verify_object(disk, promise_object(disk), report)
        base = _verify_object(disk, base_object(disk), report)
        if identity is not None:
            report.uid, report.incarnation = identity.identity.uid, identity.identity.incarnation
        floor = max((stored.log for stored in (identity, promise) if stored), default=Floor())
        if base is not None:
            _verify_log(disk, report, promise.ballot if promise else _ANY_BALLOT, floor, base)
            _verify_snapshot(disk, report, base)
        _verify_segments(disk, report, base.segment if base else 1)
        _note_leftovers(disk, report, base or LogBase())
    finally:
        disk.close()
    return report


def _verify_object(disk: OsDisk, handler: DurableObjectHandler[T], report: Verification) -> T | None:
    copies = read_copies(disk, handler.name)
    try:
        chosen = choose_copy(disk.path, copies)
        value = handler.decode(chosen)
    except StorageDamaged as error:
        for copy in copies:
            if copy.problem:
                report.add(copy.file, copy.problem)
        if not any(copy.problem for copy in copies):
            report.add_error(error)
        return None
    report.checked_bytes += sum(len(copy.payload) for copy in copies)
    for copy in copies:
        if copy.problem:
            report.add(copy.file, copy.problem, OTHER_COPY, damage=False)
        elif copy.serial != chosen.serial:
            report.add(
                copy.file, "one save behind: a save runs, or was interrupted", OTHER_COPY, damage=False
            )
    return value


def _verify_log(
    disk: OsDisk, report: Verification, promised: ProposalID, floor: Floor, base: LogBase
) -> None:
    """The checks that a start makes; they end at the first damage."""
    report.log_start = base.start
    try:
        state = examine(disk, promised, floor, base)
    except StorageDamaged as error:
        report.add_error(error)
        return
    report.chosen_upto = state.chosen_upto
    last = state.segments[-1]
    if last.dirty_bytes:
        report.add(
            last.name, f"{last.dirty_bytes} bytes of no record", NORMAL, offset=last.used_bytes, damage=False
        )


def _verify_segments(disk: OsDisk, report: Verification, first_segment: int) -> None:
    """Every record of every segment, also behind the first damage."""
    names = [name for name in disk.names() if segment_id(name) >= first_segment]
    firsts = [_first_sequence(disk, name, report) for name in names]
    for name, first, following in zip(names, firsts, [*firsts[1:], None], strict=True):
        if first is not None:
            _verify_segment(disk, report, name, first, following)


def _first_sequence(disk: OsDisk, name: str, report: Verification) -> int | None:
    parsed = parse_record(memoryview(disk.read_at(name, 0, HEADER_BYTES)), 0)
    if parsed is None or (parsed[1], parsed[3]) != (SEGMENT, segment_id(name)):
        report.add(name, "no segment header", offset=0)
        return None
    return parsed[4]


def _verify_segment(disk: OsDisk, report: Verification, name: str, first: int, following: int | None) -> None:
    data = memoryview(disk.read(name))
    report.checked_bytes += len(data)
    sequence, offset = first, HEADER_BYTES
    for _, end, kind, *_ in scan(data, segment_id(name), first, HEADER_BYTES):
        if kind != END:
            report.records += 1
            sequence += 1
        offset = end
    if following is not None and sequence != following:
        report.add(name, f"records {sequence} to {following - 1} are not what was written", offset=offset)
    if following is None and synced_evidence(data, segment_id(name), offset) >= sequence:
        report.add(name, f"record {sequence} is not what was written, though synced", offset=offset)
    _verify_rest(report, name, data, offset)


def _verify_rest(report: Verification, name: str, data: memoryview, offset: int) -> None:
    """Whole records behind a bad place say what else was in the file, and where it goes on."""
    tail = data[offset:].tobytes()
    at = tail.find(RECORD_MAGIC)
    while at >= 0:
        parsed = parse_record(data, offset + at - 4) if at >= 4 else None
        if parsed is not None and parsed[3] == segment_id(name) and parsed[1] in (ACCEPTED, CHOSEN):
            where = f"the next whole record behind byte {offset} is number {parsed[4]}"
            damage = report.verdict == "damaged"
            report.add(
                name, where, NEW_INCARNATION if damage else NORMAL, offset + at - 4, parsed[6], damage=damage
            )
            return
        at = tail.find(RECORD_MAGIC, at + 1)


def _verify_snapshot(disk: OsDisk, report: Verification, base: LogBase) -> None:
    if not base.snapshot:
        return
    report.snapshot_slot = base.snapshot
    try:
        contents = read_contents(disk, base.snapshot)
    except (StorageDamaged, StorageUnreadable) as error:
        whole_log = base.start == 1
        outcome = "it is dropped: the log still has everything" if whole_log else NEW_INCARNATION
        report.add_error(error, outcome, damage=not whole_log)
        return
    _verify_pieces(report, contents.info, lambda number: read_piece(disk, contents, number))


def _verify_pieces(report: Verification, info: SnapshotInfo, read: Callable[[int], bytes]) -> None:
    report.snapshot_pieces, report.snapshot_bytes = info.pieces, info.size_bytes
    for number in range(info.pieces):
        try:
            report.checked_bytes += len(read(number))
        except (StorageDamaged, StorageUnreadable) as error:
            report.add_error(error)


def _note_leftovers(disk: OsDisk, report: Verification, base: LogBase) -> None:
    counts = snapshot_name(base.snapshot) if base.snapshot else ""
    for name in disk.names():
        if snapshot_slot(name) is not None and name != counts:
            what = "a snapshot that is being written, still read, or left over"
            report.add(name, what, NOTHING_LOST, damage=False)
        elif 0 < segment_id(name) < base.segment:
            report.add(name, "a segment that compaction let go", NOTHING_LOST, damage=False)


# A database.


def _verify_database(path: str) -> Verification:
    report = Verification(path, "sqlite", pid=read_pid(f"{path}.lock"))
    try:
        uri = f"file:{quote(path)}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            check_header(path, connection)
            _verify_tables(connection, report)
    except StorageDamaged as error:
        report.add_error(error)
    except sqlite3.Error as error:
        report.add(os.path.basename(path), str(error))
    return report


def _verify_tables(connection: sqlite3.Connection, report: Verification) -> None:
    identity = _verify_row_object(connection, report, "identity", Identity)
    promised = _verify_row_object(connection, report, "promise", ProposalID)
    tally = _verify_row_object(connection, report, "tally", Tally)
    if identity is not None:
        report.uid, report.incarnation = identity.uid, identity.incarnation
    slots = _verify_rows(connection, report, promised if promised is not None else _ANY_BALLOT)
    again = _verify_row_object(connection, report, "tally", Tally)
    if tally is None or again is None:
        return
    report.log_start, report.chosen_upto = again.start, max(again.chosen_upto, again.snapshot)
    report.snapshot_slot = again.snapshot
    if tally == again:
        _verify_tally(report, tally, slots)
    if again.snapshot:
        info = SnapshotInfo(again.snapshot, again.pieces, again.size_bytes)
        check_pieces(report.path, connection, info)
        _verify_pieces(
            report, info, lambda number: read_row_piece(report.path, connection, info.slot, number)
        )


def _verify_row_object(
    connection: sqlite3.Connection, report: Verification, name: str, kind: type[T]
) -> T | None:
    copies = read_both(connection, name)
    try:
        _, value = decode_object(report.path, name, copies, kind)
    except StorageDamaged as error:
        report.add_error(error)
        return None
    for copy in copies:
        if copy.problem:
            report.add(f"{copy.table} {name}", copy.problem, OTHER_COPY, damage=False)
    return value


def _verify_rows(connection: sqlite3.Connection, report: Verification, promised: ProposalID) -> Sequence[int]:
    """Every row; the slots that there are."""
    slots: list[int] = []
    for row in scan_rows(connection):
        slot, kind, number, uid, value, _ = row
        slots.append(slot)
        try:
            check_row(report.path, row)
        except StorageDamaged:
            report.add("entry", "the row is not what was written", slot=slot)
            continue
        report.records += 1
        report.checked_bytes += len(value)
        if kind == CHOSEN:
            report.chosen_upto = max(report.chosen_upto, slot)
        if kind == ACCEPTED and ProposalID(number, uid) > promised:
            report.add("entry", f"accepted at {number}.{uid}, above the saved promise {promised}", slot=slot)
    return slots


def _verify_tally(report: Verification, tally: Tally, slots: Sequence[int]) -> None:
    """Nothing changed meanwhile: the rows must be those that the tally counts."""
    if len(slots) != tally.rows:
        report.add("entry", f"{len(slots)} rows are stored instead of {tally.rows}")
    following = tally.start
    for slot in slots:
        following += slot == following
    if following <= report.chosen_upto:
        report.add("entry", f"missing, though chosen up to {report.chosen_upto}", slot=following)
