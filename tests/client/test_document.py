"""The example of docs/client-protocol.md, played against a client port."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.protocols.clientport import ClientPort
from twisted_paxos.testing.fakenode import FakeNode

DOCUMENT = Path(__file__).parents[2] / "docs" / "client-protocol.md"


class ExampleTests(SynchronousTestCase):
    """What the document says is what happens."""

    def setUp(self) -> None:
        """A node, and the conversation."""
        self.clock = Clock()
        self.protocol: Any = ClientPort(FakeNode(), self.clock, "fingerprint").buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)
        self.text = DOCUMENT.read_text("utf-8")

    def answer(self) -> bytes:
        """The next frame of the node."""
        self.clock.pump([0] * 4)
        data = self.transport.value()
        (length,) = struct.unpack("!I", data[:4])
        self.transport.clear()
        self.transport.write(data[4 + length :])
        return data[4 : 4 + length]

    def test_conversation(self) -> None:
        """Every answer is the one that the document shows, in short or in full."""
        lines = re.findall(r"^    ([CN])  (\{.*\})$", self.text, re.MULTILINE)
        self.assertGreater(len(lines), 10)
        for speaker, content in lines:
            if speaker == "C":
                self.protocol.dataReceived(struct.pack("!I", len(content)) + content.encode())
            else:
                self.assertShows(msgspec.json.decode(content), msgspec.json.decode(self.answer()))

    def assertShows(self, shown: dict[str, Any], answer: dict[str, Any]) -> None:
        """``answer`` is ``shown``; results may have more at their end, as the document says."""
        if answer["type"] == "results":
            lengths = map(len, shown["results"])
            answer["results"] = [r[:n] for r, n in zip(answer["results"], lengths, strict=True)]
        self.assertEqual(shown, answer)

    def test_first_bytes(self) -> None:
        """The bytes of the first frame are those of the first line."""
        (text,) = re.findall(r"^    ((?:[0-9a-f]{2} )+[0-9a-f]{2})$", self.text, re.MULTILINE)
        content = b'{"type":"hello","version":1}'
        self.assertEqual(struct.pack("!I", len(content)) + content, bytes.fromhex(text))
