"""``sqlite:PATH``: the same records in one SQLite database, for those who want to look with SQL.

Tables (`docs/storage-format.md`): ``object_0`` and ``object_1`` hold identity, promise and the log's
tally, one copy each, in different pages of the file; ``entry`` holds one row per slot, ``snapshot`` the
pieces of snapshots, of which the tally says which one counts. Every row has a
CRC32C of its own. A group commit is one transaction; ``synchronous=FULL`` with a rollback journal
that is truncated, because SQLite's own write-ahead log ends silently at the first damaged frame and so
could forget a promise. The tally counts the rows, so a lost one is noticed. The database is made under
another name and renamed when it is complete: a missing table is damage, never a new node.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TypeVar
from urllib.parse import quote

from msgspec import Raw
from msgspec.structs import replace
from twisted.logger import Logger
from zope.interface import implementer

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Entry, SlotEntry
from twisted_paxos.core.records import Identity, Record, Recovered
from twisted_paxos.errors import StorageDamaged, StorageError, StorageForeign, StorageFull
from twisted_paxos.interfaces import IDiskExecutor
from twisted_paxos.storage.disk import (
    ASIDE_SUFFIX,
    is_full,
    make_directories,
    reason,
    sync_directory,
    take_lock,
)
from twisted_paxos.storage.format import ACCEPTED, CHOSEN
from twisted_paxos.storage.index import SlotIndex
from twisted_paxos.storage.queued import (
    IStorageBackend,
    LogRecord,
    PromiseRule,
    QueuedStorage,
    Write,
    check_identity,
    last_identity,
    log_records,
)
from twisted_paxos.storage.snapshot import SnapshotInfo
from twisted_paxos.storage.sqliteformat import (
    APPLICATION_ID,
    FORMAT_VERSION,
    SCHEMA,
    Tally,
    check_header,
    check_row,
    decode_object,
    encode_object,
    entry_row,
    object_crc,
    read_error,
    read_object_copies,
    scan_rows,
)
from twisted_paxos.storage.sqlitesnapshot import SqliteSnapshot, check_pieces, delete_pieces, read_piece

log = Logger()

BUSY_TIMEOUT_S = 30.0
"""How long a commit waits for somebody who reads the database."""

DELETE_ROWS = 64
"""How many rows of ``entry`` one step of a compaction deletes."""

T = TypeVar("T")


@implementer(IStorageBackend)
class SqliteBackend:
    """The blocking half of `SqliteStorage`.

    Args:
        path: the database's file.
        uid: the node that it must belong to.
    """

    wants_upkeep = False

    def __init__(self, path: str, uid: str) -> None:
        self.log_bytes = 0
        self.snapshot: SnapshotInfo | None = None
        self.path = path
        self._uid = uid
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        self._promised = NO_BALLOT
        self._rule = PromiseRule(NO_BALLOT)
        self._index = SlotIndex()  # a slot's "location" is the size of its value, plus one
        self._tally = Tally()
        self._serials: dict[str, int] = {}
        self._foreign = ""

    def recover(self, word: str, cluster: str, lost: bool = False) -> Recovered:
        """See `IAcceptorStorage`."""
        self.path = os.path.abspath(self.path)
        lock = f"{self.path}.lock"
        # Whatever we made has a lock file beside it; what has none may be anybody's.
        foreign = os.path.exists(self.path) and not os.path.exists(lock)
        try:
            make_directories(os.path.dirname(self.path))
            self._lock_fd = take_lock(lock)
            fresh = not os.path.exists(self.path)
            sync_directory(os.path.dirname(self.path))
            if fresh:
                lost = lost or os.path.exists(f"{self.path}{ASIDE_SUFFIX}")
                self._create(Identity(self._uid, word, cluster, lost=lost))
            return self._load(word, cluster, fresh)
        except (sqlite3.DatabaseError, StorageDamaged) as error:
            self.close()
            if foreign:
                os.remove(lock)
            raise _open_error(self.path, error) from error
        except OSError as error:
            self.close()
            kind = StorageFull if is_full(error) else StorageError
            raise kind(f"{self.path} cannot be used: {reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def _create(self, identity: Identity) -> None:
        """Make the whole database under another name, then rename it."""
        if os.path.exists(f"{self.path}-journal"):
            raise StorageDamaged(f"{self.path} is missing, though {self.path}-journal is there")
        draft = f"{self.path}.new"
        for leftover in (draft, f"{draft}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(leftover)
        connection = _connect(draft)
        try:
            connection.executescript(SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for name, value in (("identity", identity), ("promise", NO_BALLOT), ("tally", Tally())):
                self._save(connection, name, value)
        finally:
            connection.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{draft}-journal")
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.rename(draft, self.path)
        sync_directory(os.path.dirname(self.path))
        self._serials.clear()

    def _load(self, word: str, cluster: str, fresh: bool) -> Recovered:
        self._connection = connection = _connect(self.path)
        check_header(self.path, connection)
        identity = self._load_object("identity", Identity)
        try:
            check_identity(identity, self._uid, cluster, self.path)
        except StorageForeign as error:
            self._foreign = str(error)
            raise
        self._promised = self._load_object("promise", ProposalID)
        self._rule = PromiseRule(self._promised)
        self._tally = self._load_object("tally", Tally)
        entries = self._load_entries(connection)
        self._open_snapshot(connection)
        identity = identity.started(word)
        with self._transaction() as transaction:
            for name, value in (("identity", identity), ("promise", self._promised), ("tally", self._tally)):
                self._save(transaction, name, value)
        self._delete_leftovers()
        return Recovered(
            identity=identity,
            promised=self._promised,
            chosen_upto=self._tally.chosen_upto,
            log_start=self.log_start,
            entries=entries,
            fresh=fresh,
            snapshot_slot=self._tally.snapshot,
        )

    def _load_object(self, name: str, kind: type[T]) -> T:
        copies = read_object_copies(self._open_connection(), name)
        self._serials[name], value = decode_object(self.path, name, copies, kind)
        for copy in copies:
            if copy.problem:
                log.warn(
                    "{path}: {table}: {name}: {problem}; written again from the other copy, nothing is lost",
                    path=self.path,
                    table=copy.table,
                    name=name,
                    problem=copy.problem,
                )
        return value

    def _load_entries(self, connection: sqlite3.Connection) -> dict[int, Entry]:
        """Check every row; those above chosen_upto are returned.

        What is learnt is stored in order, so every slot up to the highest CHOSEN row is chosen.
        """
        self._index = SlotIndex(self._tally.start)
        entries: dict[int, Entry] = {}
        rows, self.log_bytes = 0, 0
        chosen_upto = max(self._tally.chosen_upto, self._tally.snapshot)
        for row in scan_rows(connection):
            check_row(self.path, row)
            slot, kind, number, uid, value, _ = row
            ballot = ProposalID(number, uid)
            if kind == ACCEPTED and ballot > self._promised:
                raise StorageDamaged(
                    f"{self.path}: slot {slot} was accepted at {ballot}, above the saved promise"
                )
            rows += 1
            self._index.put(slot, len(value) + 1)
            self.log_bytes += len(value)
            if kind == CHOSEN:
                chosen_upto = max(chosen_upto, slot)
            if slot > chosen_upto:
                entries[slot] = Entry(ballot, Raw(value))
        if rows != self._tally.rows:
            raise StorageDamaged(f"{self.path}: {rows} slots are stored instead of {self._tally.rows}")
        if chosen_upto > self._index.contiguous_upto:
            raise StorageDamaged(f"{self.path}: slot {self._index.contiguous_upto + 1} is missing")
        self._tally = replace(self._tally, chosen_upto=chosen_upto)
        return {slot: entry for slot, entry in entries.items() if slot > chosen_upto}

    def _open_snapshot(self, connection: sqlite3.Connection) -> None:
        """The snapshot that counts must be there, unless the log still has all that it stands for."""
        tally = self._tally
        self.snapshot = None
        if not tally.snapshot:
            return
        info = SnapshotInfo(tally.snapshot, tally.pieces, tally.size_bytes)
        try:
            check_pieces(self.path, connection, info)
            self.snapshot = info
        except StorageDamaged as error:
            if tally.start > 1:
                raise
            log.warn("{error}; it is dropped: the log still has everything", error=str(error))
            self._tally = replace(tally, snapshot=0, pieces=0, size_bytes=0)

    def _delete_leftovers(self) -> None:
        """What a crash left, and the tally does not name."""
        query = "SELECT DISTINCT slot FROM snapshot WHERE slot != ?"
        for (slot,) in self._open_connection().execute(query, (self._tally.snapshot,)).fetchall():
            for _ in delete_pieces(self._transaction, slot):
                pass
        for _ in self._delete_entries():
            pass

    def set_aside(self) -> str:
        """See `IAcceptorStorage`. A journal goes with its database: it may be half of what it holds."""
        self.path = os.path.abspath(self.path)
        aside = f"{self.path}{ASIDE_SUFFIX}"
        try:
            if os.path.exists(self.path) and not os.path.exists(f"{self.path}.lock"):
                raise StorageError(f"{self.path} was not made by this program: it is not moved")
            make_directories(os.path.dirname(self.path))
            self._lock_fd = take_lock(f"{self.path}.lock")
            self._check_movable()
            for suffix in ("", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
            sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise StorageError(f"{self.path} cannot be set aside: {reason(error)}") from error
        finally:
            self.close()
        return aside

    def _check_movable(self) -> None:
        """A wrong option must not cost another node, or another cluster, its database."""
        if self._foreign:
            raise StorageError(self._foreign)
        if not os.path.exists(self.path):
            return
        uri = f"file:{quote(self.path)}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
                copies = read_object_copies(connection, "identity")
            _, identity = decode_object(self.path, "identity", copies, Identity)
        except (sqlite3.Error, StorageDamaged):
            return
        if identity.uid != self._uid:
            raise StorageError(f"{self.path} belongs to node {identity.uid!r}: it is not moved")

    def append(self, records: Sequence[Record], chosen_upto: int) -> None:
        """See `IStorageBackend`: there is no such short way."""

    def commit(self, writes: Sequence[Write], chosen_upto: int) -> list[StorageFull | None]:
        """See `IStorageBackend`. One transaction: a full disk refuses the whole group."""
        promised, identity = self._promised, None
        records: list[LogRecord] = []
        outcomes: list[StorageFull | None] = []
        for write in writes:
            refusal = write if isinstance(write, StorageFull) else None
            if not isinstance(write, StorageFull):
                after = self._rule.after(write, promised)
                if isinstance(after, StorageFull):
                    refusal = after
                else:
                    promised, identity = after, last_identity(write, identity)
                    records += log_records(write)
            outcomes.append(refusal)
        try:
            self._store(records, promised, identity, chosen_upto)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            self._rule.refuse(promised)
            return [StorageFull(f"{self.path}: {error}; make room, and writing goes on") for _ in writes]
        return outcomes

    def _store(
        self, records: Sequence[LogRecord], promised: ProposalID, identity: Identity | None, chosen_upto: int
    ) -> None:
        # For what is below its start, a snapshot stands.
        rows = {record.slot: entry_row(record) for record in records if record.slot >= self.log_start}
        added = sum(not self._index.get(slot) for slot in rows)
        # Slots that are new in this very transaction count from the next one on: the tally may lag.
        upto = max(self._tally.chosen_upto, min(chosen_upto, self._index.contiguous_upto))
        tally = replace(self._tally, rows=self._tally.rows + added, chosen_upto=upto)
        changed: dict[str, object] = {}
        if promised != self._promised:
            changed["promise"] = promised
        if identity is not None:
            changed["identity"] = identity
        if tally != self._tally:
            changed["tally"] = tally
        if not rows and not changed:
            return
        with self._transaction() as transaction:
            transaction.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?)", rows.values())
            for name, value in changed.items():
                self._save(transaction, name, value)
        self._promised, self._tally = promised, tally
        for slot, row in rows.items():
            size_bytes = len(row[4])
            self.log_bytes += size_bytes - max(self._index.get(slot) - 1, 0)
            self._index.put(slot, size_bytes + 1)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what is done inside, or nothing of it. Serial numbers go back with it."""
        connection = self._open_connection()
        serials = dict(self._serials)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            self._serials = serials
            with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                connection.execute("ROLLBACK")
            raise

    def _save(self, connection: sqlite3.Connection, name: str, value: object) -> None:
        serial = self._serials[name] = self._serials.get(name, 0) + 1
        payload = encode_object(value)
        row = (name, serial, payload, object_crc(name, serial, payload))
        for table in ("object_0", "object_1"):
            connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", row)

    def read(self, from_slot: int, upto_slot: int, limit_bytes: int) -> list[SlotEntry]:
        """See `IStorageBackend`."""
        found: list[SlotEntry] = []
        if from_slot < self.log_start:
            return found
        try:
            for row in scan_rows(self._open_connection(), from_slot - 1, step=100):
                slot, _, number, uid, value, _ = row
                if slot != from_slot + len(found) or slot > upto_slot:
                    break
                check_row(self.path, row)
                limit_bytes -= len(value)
                if found and limit_bytes < 0:
                    break
                found.append(SlotEntry(slot, ProposalID(number, uid), Raw(value)))
        except sqlite3.DatabaseError as error:
            raise read_error(self.path, error) from error
        if len(found) == 0 and from_slot <= upto_slot and self._index.get(from_slot):
            raise StorageDamaged(f"{self.path}: the row of slot {from_slot} is missing")
        return found

    @property
    def log_start(self) -> int:
        """See `ISnapshotBackend`."""
        return self._tally.start

    def draft(self, slot: int) -> SqliteSnapshot:
        """See `ISnapshotBackend`."""
        return SqliteSnapshot(self.path, self._transaction, slot)

    def adopt(self, sink: SqliteSnapshot, chosen_upto: int) -> SnapshotInfo:
        """See `ISnapshotBackend`."""
        info = sink.info
        stored_upto = min(chosen_upto, self._index.contiguous_upto)
        start = self.log_start if info.slot <= stored_upto else info.slot + 1
        self._save_tally(
            replace(
                self._tally,
                start=start,
                snapshot=info.slot,
                pieces=info.pieces,
                size_bytes=info.size_bytes,
                chosen_upto=max(self._tally.chosen_upto, info.slot),
            )
        )
        self._index.begin_at(start)
        self.snapshot = info
        return info

    def _save_tally(self, tally: Tally) -> None:
        with self._transaction() as transaction:
            self._save(transaction, "tally", tally)
        self._tally = tally

    def read_piece(self, slot: int, number: int) -> bytes:
        """See `ISnapshotBackend`."""
        return read_piece(self.path, self._open_connection(), slot, number)

    def drop_snapshot(self, slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`."""
        return delete_pieces(self._transaction, slot)

    def compact(self, upto_slot: int) -> Iterator[None]:
        """See `ISnapshotBackend`: exactly; the room is used again, the file does not shrink."""
        assert upto_slot <= self._tally.snapshot, "no slot is let go that no snapshot stands for"
        if upto_slot >= self.log_start:
            self._save_tally(replace(self._tally, start=upto_slot + 1))
            self._index.begin_at(upto_slot + 1)
        yield from self._delete_entries()

    def _delete_entries(self) -> Iterator[None]:
        """Delete void rows, a few at a time."""
        query = "SELECT slot, LENGTH(value) FROM entry WHERE slot < ? ORDER BY slot LIMIT ?"
        connection = self._open_connection()
        while rows := connection.execute(query, (self.log_start, DELETE_ROWS)).fetchall():
            tally = replace(self._tally, rows=self._tally.rows - len(rows))
            with self._transaction() as transaction:
                transaction.execute("DELETE FROM entry WHERE slot <= ?", (rows[-1][0],))
                self._save(transaction, "tally", tally)
            self._tally = tally
            self.log_bytes -= sum(size_bytes for _, size_bytes in rows)
            yield

    def upkeep(self) -> str:
        """See `IStorageBackend`: never anything to do."""
        return ""

    def close(self) -> None:
        """See `IStorageBackend`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _open_connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "recover comes first"
        return self._connection


def _connect(path: str) -> sqlite3.Connection:
    # Opened on the reactor's thread by `recover`, then used on the executor's only.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _open_error(path: str, error: sqlite3.DatabaseError | StorageDamaged) -> StorageError:
    """Sort what SQLite says at the start: no room, not usable now, or damage."""
    if isinstance(error, StorageDamaged):
        return error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{path}: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return StorageDamaged(f"{path}: {error}")
    return StorageError(f"{path} cannot be used: {error}")


class SqliteStorage(QueuedStorage):
    """``sqlite:PATH`` as `IAcceptorStorage` and `ISnapshotStorage`.

    Args:
        path: the database's file; a relative one is resolved by `recover`.
        uid: the node that it must belong to.
        executor: where blocking work runs; closed with the storage.
        description: for status tables; ``sqlite:`` and the path unless given.
    """

    def __init__(self, path: str, uid: str, executor: IDiskExecutor, description: str = "") -> None:
        super().__init__(SqliteBackend(path, uid), executor, description or f"sqlite:{path}")
