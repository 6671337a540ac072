"""Endpoints, and connections to things that are no node."""

from __future__ import annotations

import struct

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.client.support import ClientCase
from twisted_paxos.client import ask_status, parse_endpoint
from twisted_paxos.client.connection import ClientConnection, open_connection
from twisted_paxos.core import limits
from twisted_paxos.errors import ConfigError, Unavailable
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.wire.client import Failure, Hello, Response, StatusReply, encode


class EndpointTests(SynchronousTestCase):
    """What may be written for an endpoint."""

    def test_kinds(self) -> None:
        """Plain addresses, names, IPv6 in brackets, and Twisted's own strings."""
        for text, kind in (
            ("127.0.0.1:5100", TCP4ClientEndpoint),
            (" 127.0.0.1:5100 ", TCP4ClientEndpoint),
            ("[::1]:5100", TCP6ClientEndpoint),
            ("node-a.example:5100", HostnameEndpoint),
            ("tcp:127.0.0.1:5100", TCP4ClientEndpoint),
            ("unix:/run/paxos/a.sock", UNIXClientEndpoint),
        ):
            with self.subTest(text=text):
                self.assertIsInstance(parse_endpoint(MemoryReactorClock(), text), kind)

    def test_mistakes(self) -> None:
        """What is no endpoint is one line that quotes it."""
        for text in (
            "",
            "foo",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "[fe80]:1",
            "::1",
            "tcp:",
            "a:b:c",
        ):
            with self.subTest(text=text):
                error = self.assertRaises(ConfigError, parse_endpoint, MemoryReactorClock(), text)
                self.assertIn(repr(text), str(error))
                self.assertNotIn("\n", str(error))


class ConnectionTests(SynchronousTestCase):
    """Frames from the other end."""

    def setUp(self) -> None:
        """A connection that has not heard anything yet."""
        self.responses: list[Response] = []
        self.lost: list[str] = []
        self.connection = ClientConnection(self.responses.append, self.lost.append)
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def hear(self, content: bytes) -> None:
        """The other end sends a frame."""
        self.connection.dataReceived(struct.pack("!I", len(content)) + content)

    def refusal(self) -> str:
        """Why there is no connection."""
        self.assertTrue(self.transport.disconnected)
        return str(self.failureResultOf(self.connection.greeted, Unavailable).value)

    def test_hello_first(self) -> None:
        """The client speaks first, and takes answers after the node's Hello."""
        self.assertIn(b'{"type":"hello"', self.transport.value())
        self.hear(encode(Hello(uid="A")))
        self.assertEqual("A", self.successResultOf(self.connection.greeted).uid)
        status = StatusReply(1, NodeStatus("A", "leader"))
        self.hear(encode(status))
        self.assertEqual([status], self.responses)

    def test_other_version(self) -> None:
        """A node of another version is refused with both versions in the text."""
        self.hear(encode(Hello(version=9)))
        self.assertIn("version 9, this program 1", self.refusal())

    def test_no_node(self) -> None:
        """A web server's answer, and any other bytes, are refused without waiting for more."""
        self.connection.dataReceived(b"HTTP/1.1 400 Bad Request\r\n")
        self.assertIn("is this a client port?", self.refusal())

    def test_answer_before_hello(self) -> None:
        """An answer without a Hello is refused."""
        self.hear(encode(StatusReply(1, NodeStatus("A", "leader"))))
        self.assertIn("did not say hello", self.refusal())

    def test_garbage_later(self) -> None:
        """Garbage after the Hello ends the connection once; what follows it is ignored."""
        self.hear(encode(Hello()))
        self.hear(b"{")
        self.hear(encode(Failure(1, "internal", "late")))
        self.connection.connectionLost()
        self.assertEqual(1, len(self.lost))
        self.assertEqual([], self.responses)

    def test_failure_of_the_connection(self) -> None:
        """A Failure with request 0 is why the connection ends."""
        self.hear(encode(Hello()))
        self.hear(encode(Failure(0, "overloaded", "too many clients")))
        self.assertEqual(["too many clients"], self.lost)

    def test_oversized(self) -> None:
        """A frame over the limit is refused at its length."""
        self.hear(encode(Hello()))
        self.connection.dataReceived(struct.pack("!I", limits.FRAME_MAX_BYTES + 1))
        self.assertIn("over the limit", self.lost[0])

    def test_close_is_quiet(self) -> None:
        """Closing it ourselves is no loss."""
        self.hear(encode(Hello()))
        self.connection.close()
        self.connection.connectionLost()
        self.assertEqual([], self.lost)


class OpenTests(ClientCase):
    """Opening connections, and the status over one."""

    def test_silent_server(self) -> None:
        """A server that does not answer is unavailable after the time limit."""
        self.network.silent.add(5100)
        opening = Deferred.fromCoroutine(
            open_connection(self.reactor, "127.0.0.1:5100", lambda _: None, lambda _: None, 2.0)
        )
        self.network.run(1.9)
        self.assertNoResult(opening)
        self.network.run(0.2)
        self.assertIn("no answer in time", str(self.failureResultOf(opening, Unavailable).value))

    def test_status(self) -> None:
        """The status, and no connection left behind."""
        status = self.finish(Deferred.fromCoroutine(ask_status(self.reactor, "127.0.0.1:5101")))
        self.assertEqual("B", status.uid)
        self.network.run()
        self.assertEqual(set(), self.network.ports[5101].connections)

    def test_status_of_a_node_that_dies(self) -> None:
        """A node that dies while it is asked is unavailable at once."""
        self.patch(self.nodes[0], "status", lambda: self.network.cut(5100) or NodeStatus("A", "leader"))
        asking = Deferred.fromCoroutine(ask_status(self.reactor, "127.0.0.1:5100"))
        self.network.run()
        self.failureResultOf(asking, Unavailable)
