"""Log records as bytes; `docs/storage-format.md` is the grammar, with a worked example.

Every record is a header of 56 bytes, the ballot's uid, the value, and zeros up to a multiple of eight:

    crc32c u32 | magic "PXR1" | kind u8 | uid length u8 | reserved u16 | length u32
    | segment u64 | sequence u64 | synced u64 | slot u64 | ballot number u64

All numbers are little-endian. ``length`` counts uid and value. The checksum covers everything behind
itself, padding included, so a flipped bit anywhere in a record is seen. ``segment``, ``sequence`` and
``synced`` say where and when it was written, so it can never be taken for a record of another place or time:

* ``sequence`` numbers the entries of the log, over all segments, without a gap;
* ``synced`` is the highest sequence number that was known to be durable when this was written.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, TypeAlias

from crc32c import crc32c
from msgspec import Raw

from twisted_paxos.core.ballot import ProposalID

RECORD_MAGIC: Final = b"PXR1"
LOG_VERSION: Final = 2
RECORD_HEADER: Final = struct.Struct("<I4sBBHIQQQQQ")
HEADER_BYTES: Final = RECORD_HEADER.size

SEGMENT: Final = 1
"""First record of a segment; ``slot`` is the file's size in bytes, ``ballot number`` the format version."""
ACCEPTED: Final = 2
"""This acceptor accepted the value."""
CHOSEN: Final = 3
"""The value was chosen; learnt from another node."""
CHOSEN_UPTO: Final = 4
"""Every slot up to ``slot`` is chosen and stored."""
END: Final = 5
"""Last record of a segment: the next segment exists, durably. SEGMENT and END take no sequence number."""

KIND_NAMES: Final = {
    SEGMENT: "segment",
    ACCEPTED: "accepted",
    CHOSEN: "chosen",
    CHOSEN_UPTO: "chosen_upto",
    END: "end",
}

SEGMENT_SPAN: Final = 1 << 32
"""A location is ``segment * SEGMENT_SPAN + offset``: 64 bits, so no log is too long for it."""

SEGMENT_MAX_BYTES: Final = 1 << 30
"""No segment is larger, whatever was asked for."""

JOINED_MAX_BYTES: Final = 4096
"""Up to this length a copy of a record costs less than a checksum in parts."""

_NAME = re.compile(r"log-([0-9a-f]{16})\.wal")
_PADDING = (b"", *(bytes(8 - remainder) for remainder in range(1, 8)))

Parsed: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""end offset, kind, uid length, segment, sequence, synced, slot, ballot number."""

Scanned: TypeAlias = tuple[int, int, int, int, int, int, int]
"""offset, end offset, kind, uid length, synced, slot, ballot number."""


def segment_name(segment: int) -> str:
    """The file of a segment: ``log-<16 hex digits>.wal``."""
    return f"log-{segment:016x}.wal"


def draft_name(segment: int) -> str:
    """The file of a segment that is reserved and not yet part of the log."""
    return f"next-{segment:016x}.wal"


def segment_id(name: str) -> int:
    """The inverse of `segment_name`; 0 for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else 0


def record_bytes(uid_bytes: int, value_bytes: int) -> int:
    """Size of a record on disk."""
    return (HEADER_BYTES + uid_bytes + value_bytes + 7) & ~7


def encode_record(
    kind: int,
    segment: int,
    sequence: int,
    synced: int,
    slot: int,
    number: int = 0,
    uid: bytes = b"",
    value: bytes | Raw = b"",
) -> bytes:
    """One record. ``value`` may be any bytes-like object; a uid has at most 255 bytes."""
    return b"".join(record_parts(kind, segment, sequence, synced, slot, number, uid, value))


def record_parts(
    kind: int,
    segment: int,
    sequence: int,
    synced: int,
    slot: int,
    number: int,
    uid: bytes,
    value: bytes | Raw,
) -> tuple[bytes | Raw, ...]:
    """What `encode_record` joins; a large value is among it as it is, and not copied."""
    length = len(uid) + memoryview(value).nbytes
    header = RECORD_HEADER.pack(
        0, RECORD_MAGIC, kind, len(uid), 0, length, segment, sequence, synced, slot, number
    )
    parts = (header[4:], uid, value, _PADDING[(HEADER_BYTES + length) & 7])
    if length <= JOINED_MAX_BYTES:
        body = b"".join(parts)
        return crc32c(body).to_bytes(4, "little"), body
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return crc.to_bytes(4, "little"), *parts


def parse_record(data: memoryview, offset: int) -> Parsed | None:
    """The record at ``offset`` if it is whole and its checksum right, else None."""
    if offset + HEADER_BYTES > len(data):
        return None
    crc, magic, kind, uid_bytes, _, length, segment, sequence, synced, slot, number = (
        RECORD_HEADER.unpack_from(data, offset)
    )
    end = offset + ((HEADER_BYTES + length + 7) & ~7)
    if (
        magic != RECORD_MAGIC
        or end > len(data)
        or uid_bytes > length
        or crc32c(data[offset + 4 : end]) != crc
    ):
        return None
    return end, kind, uid_bytes, segment, sequence, synced, slot, number


def scan(data: memoryview, segment: int, sequence: int, offset: int) -> Iterator[Scanned]:
    """The records from ``offset`` on, the first of which is number ``sequence``.

    Ends at the first one that is not whole, not of this segment or not the next in sequence; and after END.
    """
    while (parsed := parse_record(data, offset)) is not None:
        end, kind, uid_bytes, found_segment, found_sequence, synced, slot, number = parsed
        if found_segment != segment or found_sequence != sequence or not ACCEPTED <= kind <= END:
            return
        yield offset, end, kind, uid_bytes, synced, slot, number
        if kind == END:
            return
        sequence += 1
        offset = end


def declared_bytes(data: memoryview, offset: int) -> int:
    """How long the record at ``offset`` claims to be, unchecked; the header alone if even that is cut."""
    if offset + HEADER_BYTES > len(data):
        return HEADER_BYTES
    return record_bytes(0, RECORD_HEADER.unpack_from(data, offset)[5])


def decode_entry(data: memoryview, offset: int) -> tuple[ProposalID, Raw]:
    """Ballot and value of the checked record at ``offset``; the value is a copy."""
    _, _, _, uid_bytes, _, length, _, _, _, _, number = RECORD_HEADER.unpack_from(data, offset)
    start = offset + HEADER_BYTES
    uid = str(data[start : start + uid_bytes], "utf-8")
    return ProposalID(number, uid), Raw(data[start + uid_bytes : start + length].tobytes())


def synced_evidence(data: memoryview, segment: int, offset: int) -> int:
    """The highest ``synced`` of any whole record of this segment from ``offset`` on; 0 if there is none.

    Looks at every place where a record could start: what lies behind a bad record has no known bounds.
    A value cannot pass for a record: it is JSON, which has no zero bytes, and every header has some.
    """
    highest = 0
    tail = data[offset:].tobytes()
    at = tail.find(RECORD_MAGIC)
    while at >= 0:
        parsed = parse_record(data, offset + at - 4) if at >= 4 else None
        if parsed is not None and parsed[3] == segment:
            highest = max(highest, parsed[5])
        at = tail.find(RECORD_MAGIC, at + 1)
    return highest
