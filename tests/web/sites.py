"""A site on a fake node or a simulated one, and HTTP clients that talk to it without a network."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from http.client import HTTPResponse
from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.interfaces import INode
from twisted_paxos.testing.fakenode import FakeNode
from twisted_paxos.web.gateway import Identity, MemberInfo
from twisted_paxos.web.http import GatewaySite
from twisted_paxos.web.site import make_site

MEMBERS = (
    MemberInfo("A", "http://10.0.0.1:5000", "http://10.0.0.1:5200"),
    MemberInfo("B", "http://10.0.0.2:5000", "http://10.0.0.2:5200"),
    MemberInfo("C", "http://10.0.0.3:5000", "http://10.0.0.3:5200"),
)


def b64(data: bytes) -> str:
    """Bytes as JSON has them."""
    return b64encode(data).decode("ascii")


class Reply(NamedTuple):
    """One answer."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class _Socket:
    """What `HTTPResponse` reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        """All that was sent."""
        return io.BytesIO(self._data)


class PausableTransport(StringTransport):
    """A transport whose peer may stop reading.

    Attributes:
        aborting: the node cut the connection.
    """

    aborting = False

    def abortConnection(self) -> None:
        """The node cuts it."""
        self.aborting = True

    def pause(self) -> None:
        """It does."""
        self.producer.pauseProducing()

    def resume(self) -> None:
        """It reads again."""
        self.producer.resumeProducing()


class HttpClient:
    """One connection to a site."""

    def __init__(self, site: GatewaySite) -> None:
        self.transport = PausableTransport(peerAddress=IPv4Address("TCP", "10.0.9.9", 4000))
        self.channel: Any = site.buildProtocol(self.transport.getPeer())
        self.channel.makeConnection(self.transport)

    def send(
        self, path: str, body: bytes = b"", method: str = "POST", headers: dict[str, str] | None = None
    ) -> None:
        """Send a request."""
        lines = {"Host": "127.0.0.1:5200", "Content-Length": str(len(body)), **(headers or {})}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        self.channel.dataReceived(head.encode("ascii") + b"\r\n" + body)

    def reply(self) -> Reply:
        """The answer that is there, which is complete; the next request may follow."""
        response = HTTPResponse(_Socket(self.transport.value()))  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        self.transport.clear()
        return Reply(response.status, dict(response.getheaders()), body)

    def chunks(self) -> list[bytes]:
        """The chunks of a stream that came since the last time, without head and end."""
        data = self.transport.value()
        self.transport.clear()
        _, separator, rest = data.partition(b"\r\n\r\n")
        rest = rest if separator and data.startswith(b"HTTP/") else data
        found = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length:
                found.append(rest[:length])
            rest = rest[length + 2 :]
        return found

    def messages(self) -> list[Any]:
        """The same, decoded: each chunk must be one JSON document and a newline."""
        chunks = self.chunks()
        for chunk in chunks:
            assert chunk.endswith(b"\n") and chunk.count(b"\n") == 1, chunk
        return [json.loads(chunk) for chunk in chunks]

    def leave(self) -> None:
        """The connection is lost."""
        self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def closed(self) -> bool:
        """Whether the node closed it."""
        return bool(self.transport.disconnecting or self.transport.aborting)


class WebCase(SynchronousTestCase):
    """A site on a fake node.

    Attributes:
        node, clock, site: of this test.
    """

    def setUp(self) -> None:
        """A node with an empty store."""
        self.clock = Clock()
        self.node = FakeNode("A")
        self.site = self.make_site(self.node)
        self.gateway = self.site.gateway

    def make_site(self, node: INode, **options: Any) -> GatewaySite:
        """One more site."""
        return make_site(node, self.clock, Identity("00000000000000aa", MEMBERS), "s", **options)

    def connect(self) -> HttpClient:
        """One more client."""
        return HttpClient(self.site)

    def call(self, path: str, message: Any = None, **options: Any) -> Reply:
        """Send one request to ``/v3/path``; gives the reply."""
        client = self.connect()
        body = message if isinstance(message, bytes) else json.dumps(message or {}).encode()
        client.send(f"/v3/{path}", body, **options)
        self.clock.advance(0)
        reply = client.reply()
        client.leave()
        return reply

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """GET ``path``."""
        client = self.connect()
        client.send(path, method=method, headers=headers)
        return client.reply()

    def ask(self, path: str, message: Any = None) -> Any:
        """As `call`; gives the body of a reply that must be a good one, without its header."""
        reply = self.call(path, message)
        self.assertEqual(200, reply.code, reply.body)
        answer = reply.json
        answer.pop("header", None)
        return answer

    def refusal(self, path: str, message: Any = None) -> tuple[int, int, str]:
        """As `call`; gives HTTP status, code and text of a refusal."""
        reply = self.call(path, message)
        answer = reply.json
        self.assertEqual({"error", "message", "code"}, set(answer), answer)
        self.assertEqual(answer["error"], answer["message"])
        return reply.code, answer["code"], answer["message"]

    def stream(self, path: str, *messages: Any) -> HttpClient:
        """Open a stream."""
        client = self.connect()
        client.send(f"/v3/{path}", b"".join(json.dumps(message).encode() for message in messages))
        self.clock.advance(0)
        return client

    def put(self, key: bytes, value: bytes = b"v", **fields: Any) -> None:
        """Put a key."""
        self.ask("kv/put", {"key": b64(key), "value": b64(value), **fields})
