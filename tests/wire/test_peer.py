"""`wire.peer`: what comes out is what went in, or nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, command, entry, sender, value
from twisted_paxos.core import limits
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Admit,
    AskDescent,
    Chosen,
    Commit,
    Confirm,
    Confirmed,
    Descent,
    Fetch,
    FetchPiece,
    Forward,
    ForwardReply,
    Heartbeat,
    HeartbeatReply,
    Join,
    Joined,
    Message,
    Nack,
    Piece,
    Prepare,
    Promise,
    ReadAt,
    ReadRequest,
    Refused,
    Status,
)
from twisted_paxos.errors import WireError
from twisted_paxos.wire.peer import PeerCodec

PROTOCOL_MD = Path(__file__).parents[2] / "docs" / "protocol.md"
CLUSTER = "c0ffee"
KEY = b"sixteen bytes or more"
ME = sender("A")
STATUS = Status(
    ballot("3.A"),
    True,
    ballot("3.A"),
    True,
    ballot("3.A"),
    voter=True,
    chosen_upto=9,
    client="h:1",
    voted=ballot("3.A"),
    voted_upto=9,
)

SAMPLES: list[Message] = [
    Prepare(ballot("3.A"), 7),
    Promise(ballot("3.A"), 2, 0, 1, 4, (entry(5, "2.B", 5), entry(7, "1.C"))),
    Accept(ballot("3.A"), 5, value(1, 2), 4),
    Accepted(ballot("3.A"), (5, 7)),
    Commit(ballot("3.A"), 7),
    Nack(ballot("3.A"), ballot("4.B")),
    Heartbeat(12, STATUS),
    HeartbeatReply(12, Status()),
    Fetch(1, 5, 9),
    Chosen(1, (entry(5, "3.A", 1),), 9, 1),
    Forward(3, (command(1), command(2))),
    ForwardReply(3, True),
    FetchPiece(4, 120, 2),
    Piece(4, 120, 2, 9, b"\x00piece\xff"),
    ReadRequest(8),
    ReadAt(8, 120),
    Confirm(ballot("3.A"), 5),
    Confirmed(ballot("3.A"), 5),
    Join(1 << 32),
    Joined(1 << 32, False, {"A": "a1", "B": "b1"}),
    Admit("c1", 9),
    AskDescent("boot1"),
    Descent("boot1", True, 2, ballot("3.A"), 7),
    Refused("b1", 2, "boot2", "it forgot"),
]


def codecs() -> list[PeerCodec]:
    """Without and with a cluster key."""
    return [PeerCodec(CLUSTER), PeerCodec(CLUSTER, KEY)]


def sealed(body: bytes) -> bytes:
    """Any body with the right head and checksum: what a well-meaning stranger could send."""
    return b"\x02c" + crc32c(body, crc32c(b"\x02c")).to_bytes(4, "big") + body


def envelope(message: object) -> bytes:
    """A message as JSON in an envelope of ours."""
    return msgspec.json.encode({"cluster": CLUSTER, "sender": list(ME), "message": message})


class RoundTripTests(SynchronousTestCase):
    """Every type of message."""

    def test_samplesCoverEveryMessage(self) -> None:
        """The list above has one of each type that can travel."""
        self.assertEqual({type(one) for one in SAMPLES}, set(get_args(Message)))

    def test_comesOutAsItWentIn(self) -> None:
        """Encoded and decoded, with and without key, each message is equal to itself, sender included."""
        for codec in codecs():
            for message in SAMPLES:
                found = codec.decode(codec.encode(ME, message))
                self.assertEqual((found.sender, found.message), (ME, message))

    def test_aPersonCanReadIt(self) -> None:
        """Behind head and tag there is JSON with the message's name."""
        data = codecs()[0].encode(ME, Prepare(ballot("3.A"), 7))
        body = msgspec.json.decode(data[6:])
        self.assertEqual(body["message"], {"type": "prepare", "ballot": [3, "A"], "from_slot": 7})

    def test_workedExample(self) -> None:
        """The example in docs/protocol.md, byte for byte."""
        text = PROTOCOL_MD.read_text("utf-8")
        head, body = re.findall(r"^    (02 63 [0-9a-f ]+)\n    (\{.*\})$", text, re.MULTILINE)[0]
        data = PeerCodec("example").encode(sender("A"), Prepare(ballot("3.A"), 7))
        self.assertEqual(data, bytes.fromhex(head) + body.encode())


class RefusalTests(SynchronousTestCase):
    """Everything else is refused with a reason."""

    def reason(self, codec: PeerCodec, data: bytes) -> str:
        """Why it is refused."""
        return self.assertRaises(WireError, codec.decode, data).reason

    def test_everyFlippedBit(self) -> None:
        """Whichever single bit of a datagram changes, it is refused."""
        for codec in codecs():
            data = codec.encode(ME, Accept(ballot("3.A"), 5, value(1), 4))
            for position in range(8 * len(data)):
                changed = bytearray(data)
                changed[position // 8] ^= 1 << position % 8
                self.assertIn(self.reason(codec, bytes(changed)), ("version", "bad_tag"))

    def test_everyTruncation(self) -> None:
        """However short it is cut, or with a byte more, it is refused."""
        for codec in codecs():
            data = codec.encode(ME, Accepted(ballot("3.A"), (5,)))
            for length in range(len(data)):
                self.assertIn(self.reason(codec, data[:length]), ("short", "bad_tag"))
            self.assertEqual(self.reason(codec, data + b" "), "bad_tag")

    def test_foreignCluster(self) -> None:
        """A message of another configuration is dropped as such."""
        data = PeerCodec("other").encode(ME, Fetch(1, 5, 9))
        self.assertEqual(self.reason(PeerCodec(CLUSTER), data), "foreign_cluster")

    def test_wrongKeyAndMissingTag(self) -> None:
        """With a key, only what was made with that key is taken; without, nothing keyed is."""
        message = Fetch(1, 5, 9)
        plain, keyed, other = PeerCodec(CLUSTER), PeerCodec(CLUSTER, KEY), PeerCodec(CLUSTER, b"another key")
        reasons = [
            self.reason(keyed, other.encode(ME, message)),
            self.reason(keyed, plain.encode(ME, message)),
            self.reason(plain, keyed.encode(ME, message)),
        ]
        self.assertEqual(reasons, ["bad_tag"] * 3)

    def test_otherVersions(self) -> None:
        """Another version byte is told apart from damage."""
        data = bytearray(PeerCodec(CLUSTER).encode(ME, Fetch(1, 5, 9)))
        data[0] += 1
        self.assertEqual(self.reason(PeerCodec(CLUSTER), bytes(data)), "version")

    def test_oversized(self) -> None:
        """Nothing longer than a frame is looked at."""
        self.assertEqual(self.reason(PeerCodec(CLUSTER), b"\x01" * (limits.FRAME_MAX_BYTES + 1)), "oversized")

    def test_numbersOutOfRange(self) -> None:
        """Negative, too large, fractional and missing numbers are malformed, whatever the checksum says."""
        codec = PeerCodec(CLUSTER)
        fetch = {"type": "fetch", "request_id": 1, "from_slot": 5, "upto_slot": 9}
        self.assertEqual(codec.decode(sealed(envelope(fetch))).message, Fetch(1, 5, 9))
        for wrong in (0, -1, limits.NUMBER_MAX + 1, 1 << 64, 1.5, "5", None, True, [5]):
            self.assertEqual(self.reason(codec, sealed(envelope({**fetch, "from_slot": wrong}))), "malformed")
        del fetch["from_slot"]
        self.assertEqual(self.reason(codec, sealed(envelope(fetch))), "malformed")

    def test_ballotsOutOfRange(self) -> None:
        """A ballot has a number in range and an id of bounded length."""
        codec = PeerCodec(CLUSTER)
        for wrong in ([-1, "A"], [1 << 62, "A"], [1, "A" * 33], [1], [1, "A", 2], "1.A", None):
            message = {"type": "accepted", "ballot": wrong, "slots": [1]}
            self.assertEqual(self.reason(codec, sealed(envelope(message))), "malformed")

    def test_unknownTypes(self) -> None:
        """A type that does not exist, or none, is malformed; it never names a method."""
        codec = PeerCodec(CLUSTER)
        for kind in ("", "nothing", "__init__", "decode", 7, None):
            self.assertEqual(self.reason(codec, sealed(envelope({"type": kind}))), "malformed")
        self.assertEqual(self.reason(codec, sealed(b"[]")), "malformed")

    def test_deepNesting(self) -> None:
        """Thousands of brackets are malformed, not a crash."""
        deep = b"[" * 100_000 + b"]" * 100_000
        body = envelope({"type": "x"}).replace(b'"x"', deep)
        self.assertEqual(self.reason(PeerCodec(CLUSTER), sealed(body)), "malformed")

    def test_badText(self) -> None:
        """Bytes that are no UTF-8 inside a string are malformed."""
        body = envelope({"type": "join", "nonce": 1}).replace(b"c0ffee", b"c0\xff\xfee")
        self.assertEqual(self.reason(PeerCodec(CLUSTER), sealed(body)), "malformed")

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.binary(max_size=200))
    def test_randomBytes(self, data: bytes) -> None:
        """Any bytes, also behind a right head and checksum, give a `WireError` or a message, nothing else."""
        for codec, datagram in ((PeerCodec(CLUSTER), data), (PeerCodec(CLUSTER), sealed(data))):
            self.assertRaises(WireError, codec.decode, datagram)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.sampled_from(SAMPLES), st.data())
    def test_mutatedJson(self, message: Message, data: st.DataObject) -> None:
        """JSON with any one value replaced, under a right checksum, decodes or is malformed."""
        body = msgspec.json.decode(PeerCodec(CLUSTER).encode(ME, message)[6:])
        key = data.draw(st.sampled_from(sorted(body["message"])))
        scalars = (
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40)
        )
        body["message"][key] = data.draw(scalars | st.lists(scalars, max_size=3))
        try:
            found = PeerCodec(CLUSTER).decode(sealed(msgspec.json.encode(body)))
        except WireError as error:
            self.assertEqual(error.reason, "malformed")
        else:
            PeerCodec(CLUSTER).encode(ME, found.message)
