"""``sqlite:PATH``: the same records in one SQLite database, for those who want to look with SQL.

Tables (`docs/storage-format.md`): ``object_0`` and ``object_1`` hold identity, promise and the log's
tally, one copy each, in different pages of the file; ``entry`` holds one row per slot. Every row has a
CRC32C of its own. A group commit is one transaction; ``synchronous=FULL`` with a rollback journal
that is truncated, because SQLite's own write-ahead log ends silently at the first damaged frame and so
could forget a promise. The tally counts the rows, so a lost one is noticed. The database is made under
another name and renamed when it is complete: a missing table is damage, never a new node.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec
from crc32c import crc32c
from msgspec import Raw, Struct
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Entry, SlotEntry
from twisted_paxos.core.records import Identity, Recovered, SaveAccepted
from twisted_paxos.errors import StorageDamaged, StorageError, StorageFull
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
    ForeignStorage,
    IStorageBackend,
    LogRecord,
    PromiseRule,
    QueuedStorage,
    Write,
    check_identity,
    last_identity,
    log_records,
)

log = Logger()

APPLICATION_ID = 0x50584F53
"""``PXOS`` in the database's header."""

FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 30.0
"""How long a commit waits for somebody who reads the database."""

SCHEMA = """
CREATE TABLE object_0 (name TEXT PRIMARY KEY, serial INTEGER, payload BLOB, crc INTEGER);
CREATE TABLE object_1 (name TEXT PRIMARY KEY, serial INTEGER, payload BLOB, crc INTEGER);
CREATE TABLE entry (
    slot INTEGER PRIMARY KEY, kind INTEGER, number INTEGER, uid TEXT, value BLOB, crc INTEGER
);
"""

_ROW = struct.Struct("<BQQB")
_encode = msgspec.json.Encoder(order="deterministic").encode
T = TypeVar("T")

EntryRow = tuple[int, int, int, str, bytes, int]
"""slot, kind, ballot number, ballot uid, value, crc."""


class Tally(Struct, frozen=True):
    """What the log must hold: so many rows, and every slot up to ``chosen_upto``."""

    rows: int = 0
    chosen_upto: int = 0


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
        self.path = path
        self._uid = uid
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        self._promised = NO_BALLOT
        self._rule = PromiseRule(NO_BALLOT)
        self._index = SlotIndex()
        self._tally = Tally()
        self._serials: dict[str, int] = {}
        self._foreign = ""

    def recover(self, fresh_incarnation: str, cluster: str, lost: bool = False) -> Recovered:
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
                self._create(Identity(self._uid, fresh_incarnation, cluster, lost=lost))
            return self._load(cluster, fresh)
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

    def _load(self, cluster: str, fresh: bool) -> Recovered:
        self._connection = connection = _connect(self.path)
        check_header(self.path, connection)
        identity = self._load_object("identity", Identity)
        try:
            check_identity(identity, self._uid, cluster, self.path)
        except ForeignStorage as error:
            self._foreign = str(error)
            raise
        self._promised = self._load_object("promise", ProposalID)
        self._rule = PromiseRule(self._promised)
        self._tally = self._load_object("tally", Tally)
        entries = self._load_entries(connection)
        identity = replace(identity, boot=identity.boot + 1)
        with self._transaction() as transaction:
            for name, value in (("identity", identity), ("promise", self._promised), ("tally", self._tally)):
                self._save(transaction, name, value)
        self.log_bytes = os.path.getsize(self.path)
        return Recovered(
            identity=identity,
            promised=self._promised,
            chosen_upto=self._tally.chosen_upto,
            entries=entries,
            fresh=fresh,
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
        """Check every row; those above chosen_upto are returned."""
        entries: dict[int, Entry] = {}
        for row in scan_rows(connection):
            check_row(self.path, row)
            slot, kind, number, uid, value, _ = row
            ballot = ProposalID(number, uid)
            if kind == ACCEPTED and ballot > self._promised:
                raise StorageDamaged(
                    f"{self.path}: slot {slot} was accepted at {ballot}, above the saved promise"
                )
            self._index.put(slot, 1)
            if slot > self._tally.chosen_upto:
                entries[slot] = Entry(ballot, Raw(value))
        if len(self._index) != self._tally.rows:
            raise StorageDamaged(
                f"{self.path}: {len(self._index)} slots are stored instead of {self._tally.rows}"
            )
        if self._tally.chosen_upto > self._index.contiguous_upto:
            raise StorageDamaged(f"{self.path}: slot {self._index.contiguous_upto + 1} is missing")
        return entries

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
        rows = {record.slot: entry_row(record) for record in records}
        added = sum(not self._index.get(slot) for slot in rows)
        # Slots that are new in this very transaction count from the next one on: the tally may lag.
        upto = max(self._tally.chosen_upto, min(chosen_upto, self._index.contiguous_upto))
        tally = Tally(self._tally.rows + added, upto)
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
        for slot in rows:
            self._index.put(slot, 1)
        self.log_bytes = os.path.getsize(self.path)

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
        payload = _encode(value)
        row = (name, serial, payload, object_crc(name, serial, payload))
        for table in ("object_0", "object_1"):
            connection.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", row)

    def read(self, from_slot: int, upto_slot: int, limit_bytes: int) -> list[SlotEntry]:
        """See `IStorageBackend`."""
        found: list[SlotEntry] = []
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
            raise StorageDamaged(f"{self.path}: {error}") from error
        if len(found) == 0 and from_slot <= upto_slot and self._index.get(from_slot):
            raise StorageDamaged(f"{self.path}: the row of slot {from_slot} is missing")
        return found

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
    """``sqlite:PATH`` as `IAcceptorStorage`.

    Args:
        path: the database's file; a relative one is resolved by `recover`.
        uid: the node that it must belong to.
        executor: where blocking work runs; closed with the storage.
        reactor: for the turn at whose end a group starts.
        description: for status tables; ``sqlite:`` and the path unless given.
    """

    def __init__(
        self, path: str, uid: str, executor: IDiskExecutor, reactor: IReactorTime, description: str = ""
    ) -> None:
        super().__init__(SqliteBackend(path, uid), executor, reactor, description or f"sqlite:{path}")
