"""Snapshot files of the ``file:`` provider; `docs/storage-format.md` is the grammar.

A snapshot is a sequence of frames, each with a header of 32 bytes and its data:

    crc32c u32 | magic "PXS1" | kind u8 | reserved u8 | reserved u16 | length u32 | slot u64 | number u64

HEAD, the pieces in order, INDEX (the size of each piece) and END (how many pieces there are). A file
that does not end with a good END is no snapshot. It is written under another name, synced piece by
piece, and renamed when it is complete; which one counts is said by the log's base (`recovery.LogBase`).
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from crc32c import crc32c
from zope.interface import implementer

from twisted_paxos.errors import StorageDamaged, StorageError, StorageFull, StorageUnreadable
from twisted_paxos.storage.disk import IDisk, is_full, reason
from twisted_paxos.storage.snapshot import ISnapshotSink, SnapshotInfo, cut

FRAME_MAGIC: Final = b"PXS1"
FRAME_HEADER: Final = struct.Struct("<I4sBBHIQQ")
FRAME_BYTES: Final = FRAME_HEADER.size
SNAPSHOT_VERSION: Final = 1

HEAD: Final = 1
"""First frame; ``number`` is the format version, no data."""
PIECE: Final = 2
"""``number`` counts pieces from 0."""
INDEX: Final = 3
"""The size of each piece, u32; ``number`` is how many there are."""
END: Final = 4
"""Last frame; ``number`` is the size of all pieces in bytes, the data how many there are, u64."""

END_BYTES: Final = FRAME_BYTES + 8

SHRINK_BYTES: Final = 16 << 20
"""A file is removed in steps of this size: the system takes its time for a large one."""

_COUNT = struct.Struct("<Q")
_NAME = re.compile(r"snapshot-([0-9a-f]{16})(\.tmp)?")


class Frame(NamedTuple):
    """A frame whose checksum is right; its data are from ``start`` to ``end`` of what was parsed."""

    kind: int
    slot: int
    number: int
    start: int
    end: int


class Contents(NamedTuple):
    """What the end of a snapshot file tells.

    Attributes:
        slot: of which slot it is.
        offsets: where the frame of each piece starts; one more: where the last one ends.
    """

    slot: int
    offsets: array

    @property
    def info(self) -> SnapshotInfo:
        """Slot, number of pieces, size of their data in bytes."""
        pieces = len(self.offsets) - 1
        return SnapshotInfo(self.slot, pieces, self.offsets[-1] - self.offsets[0] - pieces * FRAME_BYTES)


def snapshot_name(slot: int) -> str:
    """The file of a complete snapshot: ``snapshot-<16 hex digits>``."""
    return f"snapshot-{slot:016x}"


def snapshot_slot(name: str) -> int | None:
    """The slot of a snapshot file, complete or not; None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def encode_frame(kind: int, slot: int, number: int, data: bytes = b"") -> bytes:
    """One frame."""
    header = FRAME_HEADER.pack(0, FRAME_MAGIC, kind, 0, 0, len(data), slot, number)[4:]
    return b"".join((crc32c(data, crc32c(header)).to_bytes(4, "little"), header, data))


def parse_frame(data: memoryview, offset: int = 0) -> Frame | None:
    """The frame at ``offset`` if it is whole and its checksum right, else None."""
    if offset + FRAME_BYTES > len(data):
        return None
    crc, magic, kind, _, _, length, slot, number = FRAME_HEADER.unpack_from(data, offset)
    end = offset + FRAME_BYTES + length
    if magic != FRAME_MAGIC or end > len(data) or crc32c(data[offset + 4 : end]) != crc:
        return None
    return Frame(kind, slot, number, offset + FRAME_BYTES, end)


def read_contents(disk: IDisk, slot: int) -> Contents:
    """Check a complete snapshot as far as is cheap: its first frame, its last two, its size.

    Raises:
        StorageDamaged: it is missing, cut short or changed; says where.
        StorageUnreadable: the system cannot read it.
        StorageError: it is of a newer version of the program.
    """
    name = snapshot_name(slot)
    try:
        return _read_contents(disk, name, slot)
    except FileNotFoundError:
        raise StorageDamaged(f"{disk.path}/{name} is missing") from None
    except OSError as error:
        raise StorageUnreadable(f"{disk.path}/{name} cannot be read: {reason(error)}") from error


def _read_contents(disk: IDisk, name: str, slot: int) -> Contents:
    head = _read_frame(disk, name, 0, FRAME_BYTES, HEAD, slot)
    if head.number != SNAPSHOT_VERSION:
        raise StorageError(
            f"{disk.path}/{name}: format version {head.number} is not known: use a newer program"
        )
    size_bytes = disk.size(name)
    end_at = size_bytes - END_BYTES
    end = _read_frame(disk, name, end_at, END_BYTES, END, slot)
    pieces = _COUNT.unpack(_data_of(disk, name, end_at, end))[0]
    index_at = end_at - FRAME_BYTES - 4 * pieces
    index = _read_frame(disk, name, index_at, end_at - index_at, INDEX, slot)
    sizes = struct.unpack(f"<{pieces}I", _data_of(disk, name, index_at, index))
    steps = (size + FRAME_BYTES for size in sizes)
    offsets = array("Q", accumulate(steps, initial=FRAME_BYTES))
    if (index.number, offsets[-1], sum(sizes)) != (pieces, index_at, end.number):
        raise StorageDamaged(f"{disk.path}/{name} at byte {index_at}: sizes do not match the file")
    return Contents(slot, offsets)


def _read_frame(disk: IDisk, name: str, offset: int, size_bytes: int, kind: int, slot: int) -> Frame:
    frame = parse_frame(memoryview(disk.read_at(name, offset, size_bytes))) if offset >= 0 else None
    if frame is None or (frame.kind, frame.slot, frame.end) != (kind, slot, size_bytes):
        raise StorageDamaged(f"{disk.path}/{name} at byte {max(offset, 0)}: not what was written")
    return frame


def _data_of(disk: IDisk, name: str, offset: int, frame: Frame) -> bytes:
    return disk.read_at(name, offset + frame.start, frame.end - frame.start)


def read_piece(disk: IDisk, contents: Contents, number: int) -> bytes:
    """Piece ``number`` of a snapshot, checked.

    Raises:
        StorageDamaged: it is not what was written; says where.
        StorageUnreadable: the system cannot read it.
    """
    name = snapshot_name(contents.slot)
    offset, end = contents.offsets[number], contents.offsets[number + 1]
    try:
        data = disk.read_at(name, offset, end - offset)
    except FileNotFoundError:
        raise StorageDamaged(f"{disk.path}/{name} is missing") from None
    except OSError as error:
        raise StorageUnreadable(f"{disk.path}/{name} at byte {offset}: {reason(error)}") from error
    frame = parse_frame(memoryview(data))
    if frame is None or frame != (PIECE, contents.slot, number, FRAME_BYTES, end - offset):
        raise StorageDamaged(f"{disk.path}/{name} at byte {offset}: piece {number} is not what was written")
    return data[FRAME_BYTES:]


def remove_in_steps(disk: IDisk, name: str) -> Iterator[None]:
    """Remove a file without occupying the disk for long at a time; does nothing when there is none."""
    try:
        size_bytes = disk.size(name)
    except FileNotFoundError:
        return
    while size_bytes > SHRINK_BYTES:
        size_bytes -= SHRINK_BYTES
        disk.truncate(name, size_bytes)
        yield
    disk.remove(name)


@implementer(ISnapshotSink)
class SnapshotFile:
    """A snapshot on its way into a file.

    Args:
        disk: the directory.
        slot: of which slot it is.
    """

    def __init__(self, disk: IDisk, slot: int) -> None:
        self.slot = slot
        self._disk = disk
        self._name = f"{snapshot_name(slot)}.tmp"
        self._created = False
        self._size_bytes = 0
        self._offsets = array("Q")
        self._sizes = array("I")

    @property
    def contents(self) -> Contents:
        """What was written."""
        return Contents(self.slot, self._offsets)

    def put(self, piece: bytes) -> Iterator[None]:
        """See `ISnapshotSink`."""
        if not self._created:
            yield from self._append(encode_frame(HEAD, self.slot, SNAPSHOT_VERSION))
        self._offsets.append(self._size_bytes)
        self._sizes.append(len(piece))
        yield from self._append(encode_frame(PIECE, self.slot, len(self._sizes) - 1, piece))

    def seal(self) -> Iterator[None]:
        """See `ISnapshotSink`."""
        if not self._created:
            yield from self._append(encode_frame(HEAD, self.slot, SNAPSHOT_VERSION))
        self._offsets.append(self._size_bytes)
        sizes = struct.pack(f"<{len(self._sizes)}I", *self._sizes)
        index = encode_frame(INDEX, self.slot, len(self._sizes), sizes)
        end = encode_frame(END, self.slot, sum(self._sizes), _COUNT.pack(len(self._sizes)))
        yield from self._append(index + end)

    def _append(self, data: bytes) -> Iterator[None]:
        """Write and sync in steps, with a yield between two.

        A full disk is no failure: nothing but this file is touched, and nobody relies on it yet.
        """
        for number, part in enumerate(cut(data, FRAME_BYTES)):
            if number:
                yield
            try:
                if not self._created:
                    self._disk.create(self._name, 0)
                    self._created = True
                self._disk.write_at(self._name, self._size_bytes, part)
                self._disk.sync(self._name)
            except OSError as error:
                if not is_full(error):
                    raise
                raise StorageFull(f"{self._disk.path}: {reason(error)}; no room for a snapshot") from error
            self._size_bytes += len(part)

    def publish(self) -> None:
        """Give it its name, durably; it is sealed.

        Raises:
            OSError: which name it has is unknown.
        """
        self._disk.rename(self._name, snapshot_name(self.slot))
        self._disk.sync_dir()

    def discard(self) -> Iterator[None]:
        """See `ISnapshotSink`."""
        if self._created:
            yield from remove_in_steps(self._disk, self._name)


class SnapshotFiles:
    """The complete snapshots of a directory: the one that counts, and older ones still being read.

    Args:
        disk: the directory.
    """

    def __init__(self, disk: IDisk) -> None:
        self._disk = disk
        self._contents: dict[int, Contents] = {}

    def open(self, slot: int) -> SnapshotInfo:
        """Check the snapshot that counts; see `read_contents`."""
        contents = self._contents[slot] = read_contents(self._disk, slot)
        return contents.info

    def adopt(self, file: SnapshotFile) -> SnapshotInfo:
        """Take over what is sealed and published."""
        self._contents[file.slot] = file.contents
        return file.contents.info

    def read(self, slot: int, number: int) -> bytes:
        """See `read_piece`."""
        return read_piece(self._disk, self._contents[slot], number)

    def drop(self, slot: int) -> Iterator[None]:
        """Remove a snapshot that no longer counts, step by step."""
        del self._contents[slot]
        yield from remove_in_steps(self._disk, snapshot_name(slot))
        self._disk.sync_dir()

    def remove_leftovers(self, keep_slot: int) -> bool:
        """Remove every other snapshot file, complete or not; whether there was one. Not synced."""
        keep = snapshot_name(keep_slot) if keep_slot else ""
        found = [name for name in self._disk.names() if snapshot_slot(name) is not None and name != keep]
        for name in found:
            self._disk.remove(name)
        return bool(found)
