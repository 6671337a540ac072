"""The store's snapshot: a stream of frames, made and read piece by piece.

    snapshot = frame*
    frame    = length (4 bytes, big-endian) body
    body     = MessagePack array [kind, ...]

in the order of the classes below: one ``head``, then ``leases``, ``keys``, ``changes``, one ``end``.
``keys`` holds what was present just before the first revision whose changes are kept, in the
order of keys; ``changes`` every change since, in order. Reading does the changes again: so
the restored store answers for old revisions, and goes on with watches, as the first one does.

The bytes are canonical: two members that have applied the same slots make the same ones. A
piece is a part of the stream of any length, and says nothing about frames.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import groupby, islice
from operator import attrgetter
from typing import Final, Union
from zlib import crc32

import msgspec
from msgspec import Struct

from twisted_paxos.statemachine.kvcommands import Int64, KeyValue
from twisted_paxos.statemachine.leases import Lease, Leases
from twisted_paxos.statemachine.mvcc import FIRST_REVISION, Mvcc

SNAPSHOT_VERSION: Final = 1
PIECE_BYTES: Final = 64 << 10
FRAME_MAX_BYTES: Final = 64 << 20

STEP_RECORDS: Final = 500
"""Records of a frame, and keys that one piece looks at."""


class Head(Struct, frozen=True, array_like=True, tag="head"):
    """What comes first.

    Attributes:
        version: of the format.
        revision: the store's.
        compact_revision: the store's.
        time_ms: log time.
        marks: ``[log time in ms, revision]``, of `Retention`.
    """

    version: int
    revision: Int64
    compact_revision: Int64
    time_ms: Int64
    marks: tuple[tuple[int, int], ...]


class LeaseRecords(Struct, frozen=True, array_like=True, tag="leases"):
    """Some leases, in the order in which they were granted."""

    leases: list[Lease]


class Keys(Struct, frozen=True, array_like=True, tag="keys"):
    """Some keys, in their order, as of the revision before the first change that is kept."""

    kvs: list[KeyValue]


class Changes(Struct, frozen=True, array_like=True, tag="changes"):
    """Some changes in their order; a revision can go on in the next frame."""

    kvs: list[KeyValue]


class End(Struct, frozen=True, array_like=True, tag="end"):
    """What comes last: the CRC-32 of every byte before this frame."""

    crc: int


Body = Union[Head, LeaseRecords, Keys, Changes, End]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode


def first_change(compact_revision: int) -> int:
    """The first revision whose changes a snapshot holds."""
    return max(compact_revision, FIRST_REVISION + 1)


# ------------------------------------------------------------------ writing


def snapshot_pieces(head: Head, mvcc: Mvcc, leases: Leases, step: int = STEP_RECORDS) -> Generator[bytes]:
    """The snapshot of this moment, frozen from this call on; a piece can be empty (nothing found yet).

    While it is under way memory is not swept; closing it, or dropping it, ends that.

    Args:
        head: what comes first.
        mvcc, leases: whose state.
        step: how many records a frame holds and a piece looks at, at most.
    """
    pieces = _pieces(head, mvcc, leases.records(), step)
    next(pieces)  # up to its first yield: from here on it closes what it opened
    return pieces


def _pieces(head: Head, mvcc: Mvcc, leases: list[Lease], step: int) -> Generator[bytes]:
    mvcc.frozen += 1
    try:
        yield b""
        crc = 0
        for body in _bodies(head, mvcc, leases, step):
            if body is None:
                yield b""
                continue
            frame = _framed(body)
            crc = crc32(frame, crc)
            for start in range(0, len(frame), PIECE_BYTES):
                yield frame[start : start + PIECE_BYTES]
        yield _framed(End(crc))
    finally:
        mvcc.frozen -= 1


def _framed(body: Body) -> bytes:
    encoded = _encode(body)
    return len(encoded).to_bytes(4, "big") + encoded


def _bodies(head: Head, mvcc: Mvcc, leases: list[Lease], step: int) -> Iterator[Body | None]:
    yield head
    for start in range(0, len(leases), step):
        yield LeaseRecords(leases[start : start + step])
    first = first_change(head.compact_revision)
    stretches = _keys_at(mvcc, first - 1, step) if head.compact_revision >= first else iter(())
    for kvs in _gathered(stretches, step):
        yield Keys(kvs) if kvs else None
    for kvs in _gathered(_changes(mvcc, first, head.revision, step), step):
        yield Changes(kvs) if kvs else None


def _keys_at(mvcc: Mvcc, revision: int, step: int) -> Iterator[list[KeyValue]]:
    """The keys as of ``revision``, by stretches; goes on rightly after changes in between."""
    start = b""
    while keys := list(islice(mvcc.keys_ever((start, None)), step)):
        yield mvcc.versions_at(keys, revision)
        start = keys[-1] + b"\0"


def _changes(mvcc: Mvcc, first: int, last: int, step: int) -> Iterator[list[KeyValue]]:
    """The changes of revisions ``first`` to ``last``, by stretches."""
    for start in range(first, last + 1, step):
        end = min(start + step, last + 1)
        changes = mvcc.log.single_changes(start, end)
        if changes is None:
            changes = []
            for revision in range(start, end):
                changes += mvcc.log.entry(revision)
                if len(changes) >= step:
                    yield changes
                    changes = []
        yield changes


def _gathered(stretches: Iterable[list[KeyValue]], step: int) -> Iterator[list[KeyValue] | None]:
    """Lists for a frame each, whose ends depend on the versions alone; None after a stretch without one."""
    gathered: list[KeyValue] = []
    size_bytes = 0
    for kvs in stretches:
        silent = True
        stretch_bytes = sum([len(kv.key) + len(kv.value) for kv in kvs])
        if len(gathered) + len(kvs) < step and size_bytes + stretch_bytes < PIECE_BYTES:
            # No frame ends here.
            gathered += kvs
            size_bytes += stretch_bytes
            yield None
            continue
        if not gathered and len(kvs) == step and stretch_bytes < PIECE_BYTES:
            # Small changes of a revision each: a stretch is a frame.
            yield kvs
            continue
        for kv in kvs:
            gathered.append(kv)
            size_bytes += len(kv.key) + len(kv.value)
            if size_bytes >= PIECE_BYTES or len(gathered) >= step:
                yield gathered
                gathered, size_bytes, silent = [], 0, False
        if silent:
            yield None
    if gathered:
        yield gathered


# ------------------------------------------------------------------ reading


class SnapshotReader:
    """Builds a store's parts from a snapshot.

    Attributes:
        head: the first frame, once it came.
        mvcc: the versions so far.
        leases: the leases so far.
    """

    def __init__(self, leases: Leases) -> None:
        self.head: Head | None = None
        self.mvcc = Mvcc()
        self.leases = leases
        self._buffer = bytearray()
        self._crc = 0
        self._ended = False
        self._revision: list[KeyValue] = []

    def feed(self, piece: bytes) -> Iterator[None]:
        """Take the next piece; yields after each frame in it.

        Raises:
            ValueError: this is no snapshot of ours.
        """
        buffer = self._buffer
        buffer += piece
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[:4], "big")
            if length > FRAME_MAX_BYTES:
                raise ValueError(f"this is no snapshot of a key-value store: a frame of {length:,} bytes")
            if len(buffer) < 4 + length:
                return
            frame = bytes(buffer[: 4 + length])
            del buffer[: 4 + length]
            self._take(frame)
            yield

    def finish(self) -> Head:
        """Check that it was whole.

        Raises:
            ValueError: it was not.
        """
        if self.head is None or not self._ended or self._buffer:
            raise ValueError("the snapshot of the key-value store is cut off")
        return self.head

    def _take(self, frame: bytes) -> None:
        try:
            body = _decode(frame[4:])
        except msgspec.DecodeError as error:
            raise ValueError(f"this is no snapshot of a key-value store: {error}") from None
        if self._ended or (self.head is None) != (type(body) is Head):
            raise ValueError("the snapshot of the key-value store has frames out of order")
        if type(body) is End:
            self._end(body)
        else:
            self._crc = crc32(frame, self._crc)
            self._add(body)

    def _add(self, body: Body) -> None:
        if isinstance(body, Head):
            if body.version != SNAPSHOT_VERSION:
                raise ValueError(f"the snapshot has format {body.version}, not {SNAPSHOT_VERSION}")
            self.head = body
            self.mvcc = Mvcc(first_change(body.compact_revision) - 1, body.compact_revision)
        elif isinstance(body, LeaseRecords):
            for lease in body.leases:
                self.leases.add(lease)
        elif isinstance(body, Keys):
            self.mvcc.load(body.kvs)
            for kv in body.kvs:
                if kv.lease:
                    self.leases.attach(kv.lease, kv.key)
        elif isinstance(body, Changes):
            self._replay(body.kvs)

    def _replay(self, kvs: list[KeyValue]) -> None:
        """Do whole revisions again; the last one may go on in the next frame."""
        for revision, group in groupby(kvs, key=attrgetter("mod_revision")):
            if self._revision and self._revision[0].mod_revision != revision:
                self._commit()
            self._revision += group

    def _commit(self) -> None:
        kvs, self._revision = self._revision, []
        for kv, before in zip(kvs, self.mvcc.replay(kvs), strict=True):
            if before is not None and before.lease:
                self.leases.detach(before.lease, kv.key)
            if kv.lease:
                self.leases.attach(kv.lease, kv.key)

    def _end(self, end: End) -> None:
        if self._revision:
            self._commit()
        if end.crc != self._crc:
            raise ValueError("the snapshot of the key-value store is damaged: its checksum is wrong")
        assert self.head is not None
        if self.mvcc.revision != self.head.revision:
            raise ValueError("the snapshot of the key-value store lacks changes")
        self._ended = True
