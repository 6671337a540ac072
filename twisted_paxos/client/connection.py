"""One connection to one node's client port, and how its address is written.

The session on top of it, which changes nodes by itself, is `twisted_paxos.client.session`.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.core import limits
from twisted_paxos.errors import ConfigError, PaxosError, Unavailable, WireError
from twisted_paxos.framing import FrameReceiver
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.wire.client import (
    CLIENT_VERSION,
    Failure,
    GetStatus,
    Hello,
    Request,
    Response,
    StatusReply,
    decode_response,
    encode,
)

CONNECT_TIMEOUT_S: Final = 3.0
"""For the connection and the node's Hello together."""

BACKOFF_MIN_S: Final = 0.025
BACKOFF_MAX_S: Final = 1.0
"""The first and the longest pause after a whole round of nodes that did not take something."""

CANCELLED: Final = (CancelledError, ConnectingCancelledError)
"""A cancelled connection attempt of Twisted's fails with an error of its own."""

_HOST_PORT = re.compile(r"\[(?P<v6>[^\]]+)\]:(?P<v6_port>\d+)|(?P<host>[^:\[\]]+):(?P<port>\d+)")


def backoff_s(rounds: int, rng: random.Random) -> float:
    """The pause after ``rounds`` (from 1) fruitless rounds: doubling, bounded, with half of it jitter."""
    longest_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(rounds, 16))
    return longest_s * (0.5 + 0.5 * rng.random())


def parse_endpoint(reactor: Any, text: str) -> IStreamClientEndpoint:
    """Where to connect: ``host:port``, ``[v6]:port`` or a Twisted client endpoint string.

    Raises:
        ConfigError: it is none of them.
    """
    text = text.strip()
    match = _HOST_PORT.fullmatch(text)
    try:
        if match is None:
            return clientFromString(reactor, text)
        host, port = match["v6"] or match["host"], int(match["v6_port"] or match["port"])
    except (ValueError, TypeError, KeyError, LookupError) as error:
        raise ConfigError(f"not an endpoint: {text!r} ({error}); write HOST:PORT") from None
    if not 0 < port < 65_536:
        raise ConfigError(f"not an endpoint: {text!r}; a port is 1 to 65535")
    if match["v6"] is not None and not isIPv6Address(host):
        raise ConfigError(f"not an endpoint: {text!r}; in brackets goes an IPv6 address")
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port)
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port)
    return HostnameEndpoint(reactor, host, port)


class ClientConnection(FrameReceiver):
    """Frames to and from one node.

    Args:
        on_response: called with each answer but Hello.
        on_lost: called once, with one line on why, when a greeted connection is gone.

    Attributes:
        greeted: fires with the node's Hello; fails with `Unavailable` when none comes.
    """

    MAX_LENGTH = limits.FRAME_MAX_BYTES
    transport: Any

    def __init__(self, on_response: Callable[[Response], None], on_lost: Callable[[str], None]) -> None:
        super().__init__()
        self.greeted: Deferred[Hello] = Deferred()
        self._on_response = on_response
        self._on_lost = on_lost
        self._state = "new"
        self._why = ""

    def connectionMade(self) -> None:
        """Say Hello first."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.send(Hello())

    def send(self, request: Request) -> None:
        """Send one request; what is larger than a frame may be is the caller's mistake."""
        self.send_at_once(encode(request))

    def stringReceived(self, string: bytes) -> None:
        """One frame arrived."""
        if self._state == "closed":
            return
        try:
            response = decode_response(string)
        except WireError as error:
            self.drop(f"the node sent what is no answer ({error})")
            return
        if isinstance(response, Hello):
            self._hello(response)
        elif isinstance(response, Failure) and response.request_id == 0:
            self.drop(response.message)
        elif self._state == "greeted":
            self._on_response(response)
        else:
            self.drop("the node did not say hello; is this a client port?")

    def lengthLimitExceeded(self, length: int) -> None:
        """Whatever this is, it is no node of ours."""
        self.drop(f"a frame of {length} bytes is over the limit; is this a client port?")

    def _hello(self, hello: Hello) -> None:
        if hello.version != CLIENT_VERSION:
            self.drop(f"the node speaks client version {hello.version}, this program {CLIENT_VERSION}")
        elif self._state == "new":
            self._state = "greeted"
            self.greeted.callback(hello)

    def drop(self, why: str) -> None:
        """Cut the connection because of ``why``; what it still sends is ignored."""
        self._why = self._why or why
        if self.transport is not None:
            self.transport.abortConnection()
        self._closed()

    def close(self) -> None:
        """Close the connection without a word to ``on_lost``."""
        if self._state == "greeted":
            self._state = "closed"
        if self.transport is not None:
            self.transport.loseConnection()

    def abandon(self) -> None:
        """Cut a connection whose `greeted` nobody waits for any more."""
        self.greeted.addErrback(lambda _: None)
        self.drop("abandoned")

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        """The connection is gone."""
        self._why = self._why or "the node closed the connection"
        self._closed()

    def _closed(self) -> None:
        state, self._state = self._state, "closed"
        if state == "greeted":
            self._on_lost(self._why)
        elif state == "new":
            self.greeted.errback(Unavailable(self._why))


class _OneFactory(Factory):
    """Hands out the one connection that it was made with."""

    noisy = False

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._connection


async def open_connection(
    reactor: Any,
    endpoint: str,
    on_response: Callable[[Response], None],
    on_lost: Callable[[str], None],
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> ClientConnection:
    """Connect to ``endpoint`` and exchange Hellos, within ``timeout_s`` seconds.

    Raises:
        Unavailable: that did not work; the text says why.
        ConfigError: ``endpoint`` cannot be understood.
    """
    connection = ClientConnection(on_response, on_lost)
    where = parse_endpoint(reactor, endpoint)
    deadline_s = reactor.seconds() + timeout_s
    connecting = where.connect(_OneFactory(connection)).addTimeout(timeout_s, reactor, _timed_out)
    try:
        await connecting
        await connection.greeted.addTimeout(max(0.0, deadline_s - reactor.seconds()), reactor, _timed_out)
    except CANCELLED:
        connection.abandon()
        raise CancelledError from None
    except Exception as error:
        connection.abandon()
        raise Unavailable(f"{endpoint}: {_explain(error)}") from None
    return connection


def _timed_out(result: object, timeout_s: float) -> object:
    """`Deferred.addTimeout` calls this; plain TimeoutError would not say what to make of it."""
    if isinstance(result, TwistedFailure) and result.check(*CANCELLED):
        raise Unavailable("no answer in time")
    return result


def _explain(error: Exception) -> str:
    """Why a connection failed, in few words."""
    if isinstance(error, PaxosError):
        return str(error)
    if isinstance(error, (ConnectTimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, DNSLookupError):
        return "no such host"
    if isinstance(error, ConnectError):
        number = error.osError
        return os.strerror(number).lower() if isinstance(number, int) else str(error).strip().rstrip(".")
    return str(error) or type(error).__name__


async def ask_status(reactor: Any, endpoint: str, timeout_s: float = CONNECT_TIMEOUT_S) -> NodeStatus:
    """The status of the node at ``endpoint``, over a connection of its own.

    Raises:
        Unavailable: it did not answer within ``timeout_s`` seconds, or not with a status.
        ConfigError: ``endpoint`` cannot be understood.
    """
    answer: Deferred[NodeStatus] = Deferred()

    def got(response: Response) -> None:
        if answer.called:
            return
        if isinstance(response, StatusReply):
            answer.callback(response.status)
        elif isinstance(response, Failure):
            answer.errback(Unavailable(f"{endpoint}: {response.message}"))

    def lost(why: str) -> None:
        if not answer.called:
            answer.errback(Unavailable(f"{endpoint}: {why}"))

    connection = await open_connection(reactor, endpoint, got, lost, timeout_s)
    try:
        connection.send(GetStatus(1))
        answer.addTimeout(timeout_s, reactor, _timed_out)
        return await answer
    except Unavailable as error:
        text = str(error)
        raise Unavailable(text if text.startswith(endpoint) else f"{endpoint}: {text}") from None
    finally:
        connection.close()
