"""`protocols.link`: frames on TCP, and what comes of bad ones."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, sender
from twisted_paxos.core import limits
from twisted_paxos.core.messages import Accepted, Envelope, Fetch
from twisted_paxos.protocols import link as link_module
from twisted_paxos.protocols.base import Receiver
from twisted_paxos.protocols.link import IncomingLink, IncomingLinkFactory
from twisted_paxos.wire.peer import PeerCodec

CODEC = PeerCodec("cluster")


def frame(message: Any, codec: PeerCodec = CODEC) -> bytes:
    """A message as it is on a link."""
    data = codec.encode(sender("B"), message)
    return struct.pack(">I", len(data)) + data


class Transport(StringTransportWithDisconnection):
    """Ends at once, however it is told to."""

    def abortConnection(self) -> None:
        """As the reactor's transports."""
        self.loseConnection()


class IncomingLinkTests(SynchronousTestCase):
    """What a peer sends."""

    def setUp(self) -> None:
        self.receiver = Receiver(CODEC, Clock())
        self.came: list[Envelope] = []
        self.factory = IncomingLinkFactory(self.receiver, self.came.append)

    def connect(self) -> tuple[IncomingLink, Transport]:
        """A peer connects."""
        protocol = self.factory.buildProtocol(None)  # type: ignore[arg-type]
        transport = Transport()
        transport.protocol = protocol  # type: ignore[assignment]
        protocol.makeConnection(transport)
        return protocol, transport

    def test_framesInAnyPieces(self) -> None:
        """Frames come out whole, however the stream is cut."""
        protocol, _ = self.connect()
        stream = frame(Fetch(1, 2, 3)) + frame(Accepted(ballot("1.B"), (1, 2)))
        for position in range(len(stream)):
            protocol.dataReceived(stream[position : position + 1])
        self.assertEqual(
            [one.message for one in self.came], [Fetch(1, 2, 3), Accepted(ballot("1.B"), (1, 2))]
        )

    def test_whatIsNoMessageEndsTheLink(self) -> None:
        """Damage, foreign clusters and other protocols are counted, and the link is closed."""
        for data in (frame(Fetch(1, 2, 3))[:-1] + b"X", frame(Fetch(1, 2, 3), PeerCodec("other"))):
            protocol, transport = self.connect()
            protocol.dataReceived(data)
            self.assertFalse(transport.connected)
        self.assertEqual(self.receiver.dropped, {"bad_tag": 1, "foreign_cluster": 1})
        self.assertEqual((self.came, len(self.factory.links)), ([], 0))

    def test_tooLongAFrameIsNotReceived(self) -> None:
        """A length over the limit ends the link before anything of the frame is kept."""
        protocol, transport = self.connect()
        protocol.dataReceived(struct.pack(">I", limits.FRAME_MAX_BYTES + 1))
        self.assertFalse(transport.connected)
        self.assertEqual(self.receiver.dropped, {"oversized": 1})

    def test_httpIsNoFrame(self) -> None:
        """A browser that comes to this port is sent away."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertFalse(transport.connected)

    def test_linksAreBounded(self) -> None:
        """Beyond the limit new links are closed at once; closed ones make room."""
        self.patch(link_module, "LINKS_MAX", 2)
        links = [self.connect() for _ in range(3)]
        self.assertEqual([transport.connected for _, transport in links], [True, True, False])
        links[0][1].loseConnection()
        self.assertTrue(self.connect()[1].connected)

    def test_close(self) -> None:
        """All links end with the node."""
        transports = [self.connect()[1] for _ in range(2)]
        self.factory.close()
        self.assertEqual([transport.connected for transport in transports], [False, False])
