"""Rows of the ``sqlite:`` provider and their checksums; `docs/storage-format.md` describes the tables."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec
from crc32c import crc32c
from msgspec import Struct

from twisted_paxos.core.records import SaveAccepted
from twisted_paxos.errors import StorageDamaged, StorageError, StorageUnreadable
from twisted_paxos.storage.format import ACCEPTED, CHOSEN
from twisted_paxos.storage.queued import LogRecord

APPLICATION_ID = 0x50584F53
"""``PXOS`` in the database's header."""

FORMAT_VERSION = 2
SCHEMA = """
CREATE TABLE object_0 (name TEXT PRIMARY KEY, serial INTEGER, payload BLOB, crc INTEGER);
CREATE TABLE object_1 (name TEXT PRIMARY KEY, serial INTEGER, payload BLOB, crc INTEGER);
CREATE TABLE entry (
    slot INTEGER PRIMARY KEY, kind INTEGER, number INTEGER, uid TEXT, value BLOB, crc INTEGER
);
CREATE TABLE snapshot (
    slot INTEGER, number INTEGER, part INTEGER, parts INTEGER, data BLOB, crc INTEGER,
    PRIMARY KEY (slot, number, part)
);
"""

_ROW = struct.Struct("<BQQB")
encode_object = msgspec.json.Encoder(order="deterministic").encode
T = TypeVar("T")

EntryRow = tuple[int, int, int, str, bytes, int]
"""slot, kind, ballot number, ballot uid, value, crc."""


class Tally(Struct, frozen=True):
    """What the database must hold.

    Attributes:
        rows: how many rows ``entry`` has.
        chosen_upto: every slot up to here is chosen and stored, or in the snapshot.
        start: the lowest slot that the log answers for; rows of lower ones are void.
        snapshot: the slot of the snapshot that counts, at least ``start - 1``; 0 when there is none.
        pieces, size_bytes: of the snapshot.
    """

    rows: int = 0
    chosen_upto: int = 0
    start: int = 1
    snapshot: int = 0
    pieces: int = 0
    size_bytes: int = 0


class ObjectCopy(Struct, frozen=True):
    """One row of ``object_0`` or ``object_1``, as found; ``problem`` is empty when it is good."""

    table: str
    serial: int = 0
    payload: bytes = b""
    problem: str = ""


def entry_crc(slot: int, kind: int, number: int, uid: str, value: bytes) -> int:
    """The checksum of a row of ``entry``."""
    label = uid.encode()
    return crc32c(value, crc32c(_ROW.pack(kind, slot, number, len(label)) + label))


def object_crc(name: str, serial: int, payload: bytes) -> int:
    """The checksum of an object's row."""
    return crc32c(payload, crc32c(f"{name} {serial} ".encode()))


def entry_row(record: LogRecord) -> EntryRow:
    """A record as a row of ``entry``."""
    kind = ACCEPTED if isinstance(record, SaveAccepted) else CHOSEN
    value = bytes(record.value)
    number, uid = record.ballot
    return record.slot, kind, number, uid, value, entry_crc(record.slot, kind, number, uid, value)


def read_error(where: str, error: sqlite3.DatabaseError) -> StorageError:
    """What it means that SQLite cannot read: damage, or only that the system cannot read it now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return StorageDamaged(f"{where}: {error}")
    return StorageUnreadable(f"{where}: {error}")


def check_row(path: str, row: EntryRow) -> None:
    """Raises `StorageDamaged` when a row is not what was written."""
    try:
        good = entry_crc(*row[:5]) == row[5]
    except (TypeError, AttributeError, struct.error):
        good = False
    if not good:
        raise StorageDamaged(f"{path}: the row of slot {row[0]} is not what was written")


def read_object_copies(connection: sqlite3.Connection, name: str) -> list[ObjectCopy]:
    """Both copies of an object as they are, good or not.

    Raises:
        sqlite3.Error: the tables cannot be read.
    """
    return [_read_object_copy(connection, f"object_{index}", name) for index in (0, 1)]


def _read_object_copy(connection: sqlite3.Connection, table: str, name: str) -> ObjectCopy:
    query = f"SELECT serial, payload, crc FROM {table} WHERE name = ?"
    row = connection.execute(query, (name,)).fetchone()
    if row is None:
        return ObjectCopy(table, problem="the row is missing")
    serial, payload, crc = row
    if (
        not isinstance(payload, bytes)
        or not isinstance(serial, int)
        or object_crc(name, serial, payload) != crc
    ):
        return ObjectCopy(table, problem="the checksum does not match")
    return ObjectCopy(table, serial, payload)


def decode_object(path: str, name: str, copies: Sequence[ObjectCopy], kind: type[T]) -> tuple[int, T]:
    """Serial and object. Both copies are of one transaction, so good ones are equal.

    Raises:
        StorageDamaged: there is no good copy, or two different ones.
    """
    good = [copy for copy in copies if not copy.problem]
    if not good:
        raise StorageDamaged(f"{path}: both copies of {name} are unusable ({copies[0].problem})")
    if good[0].serial != good[-1].serial or good[0].payload != good[-1].payload:
        raise StorageDamaged(f"{path}: the copies of {name} differ")
    try:
        return good[0].serial, msgspec.json.decode(good[0].payload, type=kind)
    except msgspec.DecodeError as error:
        raise StorageDamaged(f"{path}: {name}: {error}") from error


def check_header(path: str, connection: sqlite3.Connection) -> None:
    """Raises `StorageDamaged` for a database that is not ours, `StorageError` for one of a newer version."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        raise StorageDamaged(f"{path} is not a database of twisted_paxos")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT_VERSION:
        raise StorageError(f"{path}: format version {version} is not known: use the program that wrote it")


def scan_rows(connection: sqlite3.Connection, after_slot: int = 0, step: int = 1000) -> Iterator[EntryRow]:
    """All rows of ``entry`` in order, in short reads, so that a running node's commits do not wait long."""
    query = "SELECT slot, kind, number, uid, value, crc FROM entry WHERE slot > ? ORDER BY slot LIMIT ?"
    while rows := connection.execute(query, (after_slot, step)).fetchall():
        yield from rows
        after_slot = rows[-1][0]
