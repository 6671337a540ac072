"""Datagrams and link frames between nodes.

    message  = version kind tag body
    version  = %x01
    kind     = "c" / "k"          ; how the tag was made
    tag      = 4OCTET / 16OCTET   ; c: CRC32C, big-endian; k: keyed BLAKE2b
    body     = one JSON object: {"cluster": ..., "sender": [...], "message": {"type": ...}}

The tag covers version, kind and body. A frame on a TCP link is the same behind four bytes of
big-endian length. `docs/protocol.md` has a worked example. Without a cluster key the tag only
tells damage; with one, whoever lacks the key cannot speak.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec
from crc32c import crc32c

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Envelope, Message, Sender
from twisted_paxos.errors import WireError

VERSION = 2
_CHECKED = bytes((VERSION,)) + b"c"
_KEYED = bytes((VERSION,)) + b"k"
_TAG_BYTES = {_CHECKED: 4, _KEYED: 16}

DATAGRAM_MAX_BYTES = 65_507
"""What IPv4 and UDP leave of 64 KiB."""


class PeerCodec:
    """Encodes one node's messages, decodes everybody's.

    Args:
        cluster: fingerprint of the configuration.
        key: the cluster key; with one, only tags made with it are accepted.
    """

    def __init__(self, cluster: str, key: bytes | None = None) -> None:
        self.cluster = cluster
        self._key = key
        self._head = _KEYED if key else _CHECKED
        self._head_crc = crc32c(self._head)
        self._tag_bytes = _TAG_BYTES[self._head]
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Envelope).decode

    def _tag(self, body: bytes | memoryview) -> bytes:
        if self._key is None:
            return crc32c(body, self._head_crc).to_bytes(4, "big")
        tag = hashlib.blake2b(self._head, key=self._key, digest_size=16)
        tag.update(body)
        return tag.digest()

    def encode(self, sender: Sender, message: Message) -> bytes:
        """The bytes of ``message``, the same for every receiver."""
        body = self._encode(Envelope(self.cluster, sender, message))
        return b"".join((self._head, self._tag(body), body))

    def decode(self, data: bytes) -> Envelope:
        """The message in ``data``.

        Raises:
            WireError: with one of the reasons ``oversized``, ``short``, ``version``,
                ``bad_tag``, ``malformed``, ``foreign_cluster``.
        """
        if len(data) > limits.FRAME_MAX_BYTES:
            raise WireError("oversized", f"{len(data)} bytes")
        start = 2 + self._tag_bytes
        if len(data) <= start:
            raise WireError("short", f"{len(data)} bytes")
        if data[0] != VERSION:
            raise WireError("version", f"{data[0]}, this program speaks {VERSION}")
        body = memoryview(data)[start:]
        if data[:2] != self._head or not hmac.compare_digest(self._tag(body), data[2:start]):
            raise WireError("bad_tag")
        try:
            envelope = self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError("malformed", str(error)) from None
        if envelope.cluster != self.cluster:
            raise WireError("foreign_cluster", f"{envelope.cluster!r}, this is {self.cluster!r}")
        return envelope
