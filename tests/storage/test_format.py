"""The bytes of records, and the examples of `docs/storage-format.md`."""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Command, encode_value
from twisted_paxos.storage.durable import decode_copy, encode_copy
from twisted_paxos.storage.format import (
    ACCEPTED,
    HEADER_BYTES,
    JOINED_MAX_BYTES,
    RECORD_MAGIC,
    SEGMENT_SPAN,
    declared_bytes,
    decode_entry,
    encode_record,
    parse_record,
    record_bytes,
    record_parts,
    scan,
    segment_id,
    segment_name,
    synced_evidence,
)
from twisted_paxos.storage.index import SlotIndex
from twisted_paxos.storage.log import encode_header
from twisted_paxos.storage.recovery import Floor
from twisted_paxos.storage.snapshotfile import SnapshotFile, read_contents, read_piece, snapshot_name
from twisted_paxos.storage.wal import StoredPromise
from twisted_paxos.testing.storage import SimulatedDisk

DOCUMENT = Path(__file__).parents[2] / "docs" / "storage-format.md"
VALUE = encode_value(5, [Command("c1", 1, 0, Raw(b'"x"'))])


def example_object() -> bytes:
    """The small object that the document shows."""
    payload = msgspec.json.encode(StoredPromise(ProposalID(3, "B"), Floor(1, 7)))
    return encode_copy("promise", 2, payload).rstrip(b"\0")


def example_log() -> bytes:
    """The log that the document shows."""
    return encode_header(1, 16 << 20, 1) + encode_record(ACCEPTED, 1, 1, 0, 1, 1, b"A", VALUE)


def document_example(name: str) -> bytes:
    """The bytes of an example's hex dump."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(rf"<!-- example: {name} -->\n```\n(.*?)```", text, re.DOTALL)
    assert block is not None, name
    data = bytearray()
    for line in block[1].splitlines():
        offset, dump = re.match(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", line).groups()  # type: ignore[union-attr]
        assert int(offset, 16) == len(data), line
        data += bytes.fromhex(dump)
    return bytes(data)


class DocumentTests(SynchronousTestCase):
    """The document says what the code does."""

    def test_object(self) -> None:
        """The example of a small object is what the code writes and reads."""
        self.assertEqual(document_example("object"), example_object())
        copy = decode_copy("promise.0", "promise", document_example("object"))
        self.assertEqual((copy.problem, copy.serial), ("", 2))
        self.assertEqual(
            msgspec.json.decode(copy.payload, type=StoredPromise),
            StoredPromise(ProposalID(3, "B"), Floor(1, 7)),
        )

    def test_snapshot(self) -> None:
        """The example of a snapshot is what the code writes and reads."""
        disk = SimulatedDisk()
        file = SnapshotFile(disk, 5)
        for _ in (*file.put(b"state"), *file.seal()):
            pass
        file.publish()
        self.assertEqual(document_example("snapshot"), disk.read(snapshot_name(5)))
        contents = read_contents(disk, 5)
        self.assertEqual(contents.info, (5, 1, 5))
        self.assertEqual(read_piece(disk, contents, 0), b"state")

    def test_log(self) -> None:
        """The example of a log is what the code writes and reads."""
        self.assertEqual(document_example("log"), example_log())
        data = memoryview(document_example("log"))
        records = list(scan(data, 1, 1, HEADER_BYTES))
        self.assertEqual(
            [(kind, slot, number) for _, _, kind, _, _, slot, number in records], [(ACCEPTED, 1, 1)]
        )
        ballot, value = decode_entry(data, records[0][0])
        self.assertEqual((ballot, bytes(value)), (ProposalID(1, "A"), bytes(VALUE)))


class RecordTests(SynchronousTestCase):
    """Encoding, parsing, scanning."""

    @given(
        kind=st.integers(2, 4),
        numbers=st.tuples(*[st.integers(0, (1 << 64) - 1)] * 5),
        uid=st.text(max_size=32),
        value=st.binary(max_size=300),
    )
    def test_round_trip(self, kind: int, numbers: tuple[int, ...], uid: str, value: bytes) -> None:
        """Any record comes back as it was, and takes the room that was reckoned."""
        segment, sequence, synced, slot, number = numbers
        label = uid.encode("utf-8", "replace")
        record = encode_record(kind, segment, sequence, synced, slot, number, label, value)
        self.assertEqual(len(record), record_bytes(len(label), len(value)))
        parsed = parse_record(memoryview(record), 0)
        self.assertEqual(parsed, (len(record), kind, len(label), segment, sequence, synced, slot, number))
        self.assertEqual(declared_bytes(memoryview(record), 0), len(record))
        self.assertEqual(bytes(decode_entry(memoryview(record), 0)[1]), value)

    def test_large_value_is_not_copied(self) -> None:
        """Its record is made of parts, the value itself among them, and is read like any other."""
        for size_bytes in (JOINED_MAX_BYTES - 1, JOINED_MAX_BYTES, JOINED_MAX_BYTES + 5, 1 << 20):
            value = random.Random(size_bytes).randbytes(size_bytes)
            parts = record_parts(ACCEPTED, 1, 2, 3, 4, 5, b"A", value)
            record = b"".join(parts)
            self.assertEqual(any(part is value for part in parts), size_bytes >= JOINED_MAX_BYTES)
            self.assertEqual(parse_record(memoryview(record), 0), (len(record), ACCEPTED, 1, 1, 2, 3, 4, 5))
            self.assertEqual(bytes(decode_entry(memoryview(record), 0)[1]), value)
            changed = bytearray(record)
            changed[-20] ^= 1
            self.assertIsNone(parse_record(memoryview(bytes(changed)), 0))

    def test_any_flip_is_seen(self) -> None:
        """A flipped bit anywhere in a record, padding included, makes it no record."""
        record = encode_record(ACCEPTED, 1, 2, 3, 4, 5, b"A", b"12345")
        for offset in range(len(record)):
            for bit in range(8):
                changed = bytearray(record)
                changed[offset] ^= 1 << bit
                self.assertIsNone(parse_record(memoryview(bytes(changed)), 0))

    def test_scan_stops(self) -> None:
        """A scan ends at another segment's record, at a gap in the sequence, and at what is cut."""
        first = encode_record(ACCEPTED, 1, 1, 0, 1, 1, b"A", b"x")
        for following in (
            encode_record(ACCEPTED, 2, 2, 0, 2, 1, b"A", b"x"),
            encode_record(ACCEPTED, 1, 3, 0, 2, 1, b"A", b"x"),
            encode_record(ACCEPTED, 1, 1, 0, 2, 1, b"A", b"x"),
            encode_record(9, 1, 2, 0, 2, 1, b"A", b"x"),
            encode_record(ACCEPTED, 1, 2, 0, 2, 1, b"A", b"x")[:-1],
            b"",
        ):
            self.assertEqual(len(list(scan(memoryview(first + following), 1, 1, 0))), 1)

    def test_evidence_at_any_place(self) -> None:
        """A whole record behind rubbish of any length tells how far the log was synced; others do not."""
        record = encode_record(ACCEPTED, 1, 9, 8, 9, 1, b"A", b"x")
        other = encode_record(ACCEPTED, 2, 99, 98, 9, 1, b"A", b"x")
        for rubbish in (b"", b"abc", RECORD_MAGIC * 3, record[:-1], other):
            self.assertEqual(synced_evidence(memoryview(rubbish + record + b"more"), 1, 0), 8)
        self.assertEqual(synced_evidence(memoryview(other), 1, 0), 0)

    def test_names(self) -> None:
        """Segment names are their ids; nothing else is taken for one."""
        for segment in (1, 255, (1 << 64) - 1):
            self.assertEqual(segment_id(segment_name(segment)), segment)
        for name in ("log-1.wal", "next-0000000000000001.wal", "log-0000000000000001.wal.bak", "lock"):
            self.assertEqual(segment_id(name), 0)


class SlotIndexTests(SynchronousTestCase):
    """Where slots are."""

    @example([3, 2, 1, 5])
    @given(st.lists(st.integers(1, 12), max_size=30))
    def test_like_a_dict(self, slots: list[int]) -> None:
        """Whatever the order, it answers as a dict would."""
        index, model = SlotIndex(), {}
        for number, slot in enumerate(slots, 1):
            index.put(slot, number + 5 * SEGMENT_SPAN)
            model[slot] = number + 5 * SEGMENT_SPAN
        self.assertEqual({slot: index.get(slot) for slot in range(42) if index.get(slot)}, model)
        self.assertEqual(len(index), len(model))
        upto = next(slot for slot in range(42) if slot + 1 not in model)
        self.assertEqual(index.contiguous_upto, upto)
        for above in (0, 3, 50):
            self.assertEqual(index.above(above), sorted(slot for slot in model if slot > above))

    def test_below_the_first(self) -> None:
        """A slot below the first one is not kept: a snapshot stands for it."""
        index = SlotIndex(5)
        index.put(4, 1)
        self.assertEqual((len(index), index.get(4), index.contiguous_upto), (0, 0, 4))

    @given(st.lists(st.integers(1, 12), max_size=20), st.integers(1, 14), st.lists(st.integers(1, 14)))
    def test_begin_at(self, before: list[int], first_slot: int, after: list[int]) -> None:
        """Once it begins later, it is as if lower slots had never been there."""
        index, model = SlotIndex(), SlotIndex(first_slot)
        for slot in before:
            index.put(slot, slot)
            model.put(slot, slot)
        index.begin_at(first_slot)
        index.begin_at(1)
        for slot in after:
            index.put(slot, slot)
            model.put(slot, slot)
        self.assertEqual(index.above(0), model.above(0))
        self.assertEqual((index.contiguous_upto, len(index)), (model.contiguous_upto, len(model)))
