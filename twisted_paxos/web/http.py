"""twisted.web for the JSON API: requests that go straight to their endpoint, bounded in every direction.

* A body larger than `BODY_MAX_BYTES` is not kept; one much larger ends the connection.
* A connection that neither sends nor waits for anything for `IDLE_TIMEOUT_S` is closed. A request in
  progress is never idle; a stream whose client stops reading is dropped after `streams.STALL_MAX_S`.
* A peer that is gone without a word is found by TCP's keepalive.
* Over the limit of connections, a request is answered with an error, and the connection is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString, parse_qs
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from twisted_paxos.core import limits
from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import REQUEST_TOO_LARGE
from twisted_paxos.web.endpoints import Streaming, Unary, endpoints
from twisted_paxos.web.errors import (
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    TOO_MANY_REQUESTS,
    Status,
    status_of,
)
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.guard import Guard
from twisted_paxos.web.pages import EVENTS_PATH
from twisted_paxos.web.replies import ErrorReply, encode
from twisted_paxos.web.streams import Stream

log = Logger()

BODY_MAX_BYTES: Final = 2 * limits.PAYLOAD_MAX_BYTES
"""The largest body: what the largest command may need, with room for names and white space."""

BODY_READ_MAX_BYTES: Final = 4 * BODY_MAX_BYTES
"""Of a larger body so much is read, and forgotten, so that its sender gets an answer."""

CONNECTIONS_MAX: Final = 20_000
"""Clients connected at once."""

CONNECTIONS_SPARE: Final = 100
"""So many more are told that they are too many; beyond, they are closed without a word."""

IDLE_TIMEOUT_S: Final = 60

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_PROBE_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""A silent peer is asked after so long, then every so often, so many times."""

JSON_TYPE: Final = [b"application/json"]
_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: %s\r\nContent-Length: "

OPEN_PATHS: Final = frozenset({EVENTS_PATH})
"""Pages of other origins may ask for these: the answers say which of them may read it, and change nothing."""


class GatewaySite(Site):
    """The HTTP port of a node.

    Args:
        gateway: answers the JSON API.
        root: every other path.
        guard: who may use it.
        reactor: for time limits.
        connections_max: clients connected at once.

    Attributes:
        connections: how many there are.
        refused: requests and connections that were refused, by reason.
    """

    noisy = False
    displayTracebacks = False

    def __init__(
        self,
        gateway: Gateway,
        root: IResource,
        guard: Guard,
        reactor: Any,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        super().__init__(root, requestFactory=GatewayRequest, timeout=IDLE_TIMEOUT_S, reactor=reactor)
        self.gateway = gateway
        self.guard = guard
        self.endpoints = endpoints()
        self.connections: set[GatewayChannel] = set()
        self.connections_max = connections_max
        self.refused: dict[str, int] = {}
        self.protocol: Any = GatewayChannel
        self._date = (-1, b"")
        self._head = (b"", b"")

    def count(self, reason: str) -> None:
        """Count something refused for ``reason``."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def log(self, request: Any) -> None:
        """No line for each request."""

    def date(self) -> bytes:
        """The Date header, made once a second."""
        second = int(self.gateway.reactor.seconds())
        if second != self._date[0]:
            self._date = (second, datetimeToString())
        return self._date[1]

    def json_head(self) -> bytes:
        """How a good reply begins, up to its length: the same for all of one second."""
        date = self.date()
        if date != self._head[0]:
            self._head = (date, _JSON_HEAD % date)
        return self._head[1]

    def close_all(self) -> None:
        """End what lasts, and close every connection, what was written is still sent: the node stops."""
        self.gateway.stop()
        for channel in list(self.connections):
            channel.loseConnection()


class GatewayChannel(HTTPChannel):
    """One connection.

    Attributes:
        blocked: the client does not take what is sent.
    """

    blocked = False

    site: Any  # a GatewaySite
    transport: Any
    _addresses: tuple[Any, Any] | None = None

    def getPeer(self) -> Any:
        """The client's address; each request asks for it, so the system is asked once only."""
        return self._both()[0]

    def getHost(self) -> Any:
        """This end's address; see `getPeer`."""
        return self._both()[1]

    def _both(self) -> tuple[Any, Any]:
        if self._addresses is None:
            self._addresses = (self.transport.getPeer(), self.transport.getHost())
        return self._addresses

    def connectionMade(self) -> None:
        """One more; beyond the limit, it is only told so."""
        site = self.site
        if len(site.connections) >= site.connections_max + CONNECTIONS_SPARE:
            site.count("connections")
            self.transport.abortConnection()
            return
        site.connections.add(self)
        super().connectionMade()
        if ITCPTransport.providedBy(self.transport):
            _set_keepalive(self.transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """One less."""
        self.site.connections.discard(self)
        super().connectionLost(reason)

    def pauseProducing(self) -> None:
        """What was sent waits for the client."""
        self.blocked = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """The client has taken it."""
        self.blocked = False
        super().resumeProducing()

    @property
    def surplus(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self.site.connections) > self.site.connections_max


def _set_keepalive(transport: Any) -> None:
    transport.setTcpKeepAlive(True)
    get_handle = getattr(transport, "getHandle", None)
    if get_handle is None:
        return
    options = (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_PROBE_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    )
    for name, value in options:
        option = getattr(socket, name, None)  # not every system has all of them
        if option is not None:
            get_handle().setsockopt(socket.IPPROTO_TCP, option, value)


class GatewayRequest(Request):
    """One request; those of the JSON API do not go by way of resources.

    Attributes:
        on_lost: called when the connection is lost before the reply is finished.
    """

    channel: Any  # a GatewayChannel
    content: Any
    site: Any  # a GatewaySite, once it is processed
    on_lost: Callable[[], None] | None = None
    _body_bytes = 0

    def gotLength(self, length: int | None) -> None:
        """A body begins: it is kept in memory, and so bounded."""
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(data)
        if self._body_bytes <= BODY_MAX_BYTES:
            self.content.write(data)
        elif self._body_bytes > BODY_READ_MAX_BYTES:
            self.site = self.channel.site
            self.drop("body")

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All is here. The body is JSON whatever its type says: it is never taken for a form."""
        self.method, self.uri, self.clientproto = command, path, version
        self.path, _, query = path.partition(b"?")
        self.args = parse_qs(query, True) if query else {}
        self.process()

    def process(self) -> None:
        """Answer."""
        site = self.site = self.channel.site
        get = self.requestHeaders.getRawHeaders
        origins = get(b"Origin")
        hosts = get(b"Host")
        origin = origins[0] if origins and self.path not in OPEN_PATHS else None
        refusal = site.guard.refusal(hosts[0] if hosts else None, origin)
        if refusal:
            site.count("host")
            self.refuse(Status(PERMISSION_DENIED, refusal))
        elif self.channel.surplus:
            site.count("connections")
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            self.channel.persistent = False
            self.refuse(Status(RESOURCE_EXHAUSTED, TOO_MANY_REQUESTS))
        else:
            endpoint = site.endpoints.get(self.path)
            if endpoint is None:
                super().process()
            elif self.method != b"POST":
                self.reply_text(405, b"Method Not Allowed\n")
            else:
                self._serve(endpoint)

    def _serve(self, endpoint: Unary | Streaming) -> None:
        try:
            if self._body_bytes > BODY_MAX_BYTES:
                raise KeyValueError(REQUEST_TOO_LARGE.code, REQUEST_TOO_LARGE.message)
            if isinstance(endpoint, Unary):
                self._serve_unary(endpoint)
            else:
                self._serve_stream(endpoint)
        except Exception:
            self.fail(Failure())

    def _serve_stream(self, endpoint: Streaming) -> None:
        gateway = self.site.gateway
        stream = Stream(self, gateway.reactor)
        try:
            endpoint.serve(gateway, stream, endpoint.messages(self.body()))
        except Exception:
            stream.fail(Failure())

    def _serve_unary(self, endpoint: Unary) -> None:
        serving = endpoint.serve(self.site.gateway, endpoint.reader.read(self.body()))
        if not isinstance(serving, Deferred):
            self.reply(serving)
            return
        if endpoint.lasts:
            self.on_lost = serving.cancel
        serving.addCallback(self.reply).addErrback(self.fail)

    def body(self) -> bytes:
        """What was sent."""
        body: bytes = self.content.getvalue()
        return body

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        super().connectionLost(reason)
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    # -- replies

    def reply(self, message: Struct) -> None:
        """Send a reply, the whole of it."""
        body = encode(message)
        if self._is_plain():
            # By way of Headers this takes a tenth of all the time of a request.
            self.on_lost = None
            self.startedWriting = 1
            self.channel.writeSequence((self.site.json_head(), b"%d\r\n\r\n" % len(body), body))
            self.finish()
        else:
            self.reply_bytes(body, JSON_TYPE)

    def _is_plain(self) -> bool:
        """Whether a reply has the headers of most: nothing is wrong, and the connection stays."""
        return (
            self.code == 200
            and self.clientproto == b"HTTP/1.1"
            and not (self._disconnected or self.finished or self.startedWriting)
            and self.channel.persistent
        )

    def reply_text(self, code: int, text: bytes) -> None:
        """Send a line of text."""
        self.setResponseCode(code)
        self.reply_bytes(text, [b"text/plain; charset=utf-8"])

    def reply_bytes(self, body: bytes, content_type: list[bytes]) -> None:
        """Send a body."""
        self.on_lost = None
        if self._disconnected or self.finished:
            return
        headers = self.responseHeaders
        headers.setRawHeaders(b"Content-Type", content_type)
        headers.setRawHeaders(b"Date", [self.channel.site.date()])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        self.write(body)
        self.finish()

    def begin_stream(self) -> None:
        """A reply that lasts begins."""
        self.responseHeaders.setRawHeaders(b"Content-Type", JSON_TYPE)
        self.responseHeaders.setRawHeaders(b"Date", [self.site.date()])

    def drop(self, reason: str) -> None:
        """Cut the connection of a client that does not do its part."""
        self.site.count(reason)
        self.channel.transport.abortConnection()

    def fail(self, failure: Failure) -> None:
        """Send what became of the request instead of a reply."""
        if not self._disconnected:
            self.refuse(status_of(failure))

    def refuse(self, status: Status) -> None:
        """Send an error."""
        self.setResponseCode(status.http.value, status.http.phrase.encode("ascii"))
        self.reply(ErrorReply(status.message, status.message, status.code))
