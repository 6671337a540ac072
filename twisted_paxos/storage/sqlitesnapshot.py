"""Snapshots of the ``sqlite:`` provider: rows of the table ``snapshot``, each a part of a piece.

Rows have checksums of their own. Which snapshot counts, and how much it holds, is said by the tally;
rows of any other one are leftovers.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from crc32c import crc32c
from zope.interface import implementer

from twisted_paxos.errors import StorageDamaged, StorageFull
from twisted_paxos.storage.snapshot import ISnapshotSink, SnapshotInfo, cut
from twisted_paxos.storage.sqliteformat import read_error

DELETE_PARTS = 64
"""How many rows of ``snapshot`` one step deletes."""

_PART = struct.Struct("<QQII")

Transaction: TypeAlias = Callable[[], AbstractContextManager[sqlite3.Connection]]


def part_crc(slot: int, number: int, part: int, parts: int, data: bytes) -> int:
    """The checksum of a row of ``snapshot``."""
    return crc32c(data, crc32c(_PART.pack(slot, number, part, parts)))


def check_pieces(path: str, connection: sqlite3.Connection, info: SnapshotInfo) -> None:
    """Check as far as is cheap that a snapshot is there: how many pieces, and their size.

    Raises:
        StorageDamaged: something is missing.
    """
    query = "SELECT COUNT(DISTINCT number), SUM(LENGTH(data)) FROM snapshot WHERE slot = ?"
    pieces, size_bytes = connection.execute(query, (info.slot,)).fetchone()
    if (pieces, size_bytes or 0) != (info.pieces, info.size_bytes):
        raise StorageDamaged(
            f"{path}: the snapshot of slot {info.slot} has {pieces} pieces of {size_bytes or 0} bytes "
            f"instead of {info.pieces} of {info.size_bytes}"
        )


def read_piece(path: str, connection: sqlite3.Connection, slot: int, number: int) -> bytes:
    """A piece, checked.

    Raises:
        StorageDamaged: it is not what was written.
        StorageUnreadable: the system cannot read it.
    """
    query = "SELECT part, parts, data, crc FROM snapshot WHERE slot = ? AND number = ? ORDER BY part"
    where = f"{path}: piece {number} of the snapshot of slot {slot}"
    try:
        rows = connection.execute(query, (slot, number)).fetchall()
    except sqlite3.DatabaseError as error:
        raise read_error(where, error) from error
    try:
        good = bool(rows) and all(
            (part, parts) == (place, len(rows)) and part_crc(slot, number, part, parts, data) == crc
            for place, (part, parts, data, crc) in enumerate(rows)
        )
    except (TypeError, struct.error) as error:
        raise StorageDamaged(f"{where}: {error}") from error
    if not good:
        raise StorageDamaged(f"{where} is not what was written")
    return b"".join(data for _, _, data, _ in rows)


def delete_pieces(transaction: Transaction, slot: int) -> Iterator[None]:
    """Delete the rows of a snapshot, a few at a time."""
    query = (
        "DELETE FROM snapshot WHERE rowid IN (SELECT rowid FROM snapshot WHERE slot = ? "
        f"ORDER BY number DESC, part DESC LIMIT {DELETE_PARTS})"
    )
    more = True
    while more:
        with transaction() as connection:
            more = connection.execute(query, (slot,)).rowcount > 0
        yield


@implementer(ISnapshotSink)
class SqliteSnapshot:
    """A snapshot on its way into the database.

    Args:
        path: the database's file, for messages.
        transaction: commits what is done inside, or nothing of it.
        slot: of which slot it is.
    """

    def __init__(self, path: str, transaction: Transaction, slot: int) -> None:
        self.slot = slot
        self._path = path
        self._transaction = transaction
        self._pieces = 0
        self._size_bytes = 0

    @property
    def info(self) -> SnapshotInfo:
        """What was written."""
        return SnapshotInfo(self.slot, self._pieces, self._size_bytes)

    def put(self, piece: bytes) -> Iterator[None]:
        """See `ISnapshotSink`: one transaction for each part."""
        data = list(cut(piece))
        number = self._pieces
        for part, chunk in enumerate(data):
            row = (self.slot, number, part, len(data), chunk)
            with self._with_room() as connection:
                connection.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?)", (*row, part_crc(*row)))
            yield
        self._pieces += 1
        self._size_bytes += len(piece)

    @contextmanager
    def _with_room(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._transaction() as connection:
                yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise StorageFull(f"{self._path}: {error}; no room for a snapshot") from error

    def seal(self) -> Iterator[None]:
        """See `ISnapshotSink`: every part is committed already."""
        return iter(())

    def discard(self) -> Iterator[None]:
        """See `ISnapshotSink`."""
        return delete_pieces(self._transaction, self.slot)
