"""Simulated TCP: ordered bytes with delay, back-pressure, refusal, reset, and half-dead peers.

A `Connection` is one end, as a protocol's transport sees it; a `Pipe` is one direction between
two ends, as the network sees it. What a cut link or a loss swallows is sent again after a
timeout that doubles, as TCP does it, so a stream recovers late after a partition heals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import (
    IConnector,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted_paxos.testing.network import SimulatedReactor

SEGMENT_MAX_BYTES: Final = 16 << 10
WINDOW_MAX_BYTES: Final = 256 << 10
"""Bytes on their way or unread, kernel buffers of both sides together."""

BUFFER_MAX_BYTES: Final = 64 << 10
"""A transport with more than this unsent pauses its producer, as Twisted's does."""

RETRANSMIT_MIN_S: Final = 0.2
RETRANSMIT_MAX_S: Final = 5.0
GIVE_UP_S: Final = 120.0
"""A segment that does not arrive for so long ends the connection."""

SYN_RETRY_S: Final = 1.0

_FIN: Final = b""
"""The segment that ends a stream; data segments are never empty."""


def tcp_address(host: str, port: int) -> IPv4Address | IPv6Address:
    """Twisted's address object for a TCP host and port."""
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


class Pipe:
    """One direction of a connection: what it is given arrives in order, or not at all."""

    def __init__(self, sender: Connection, receiver: Connection) -> None:
        self.sender = sender
        self.receiver = receiver
        self.in_flight_bytes = 0
        self._network = sender.reactor.network
        self._forward = self._network.link(sender.reactor.host, receiver.reactor.host)
        self._backward = self._network.link(receiver.reactor.host, sender.reactor.host)
        self._queue: deque[bytes] = deque()
        self._last_arrival_s = 0.0
        self._retry_s = RETRANSMIT_MIN_S
        self._waiting_s: float | None = None

    def put(self, segment: bytes) -> None:
        """Send ``segment``; an empty one is the end of the stream."""
        self.in_flight_bytes += len(segment)
        self._queue.append(segment)
        if self._waiting_s is None:
            self._pump()

    def clear(self) -> None:
        """Forget what is not sent yet: the host went down, or the connection was reset."""
        self._queue.clear()

    def _pump(self) -> None:
        clock, random, forward = self._network.clock, self._network.random, self._forward
        while self._queue:
            blocked = forward.is_cut or self._network.is_down(forward.destination)
            if blocked or (forward.loss and random.random() < forward.loss):
                self._wait()
                return
            self._waiting_s, self._retry_s = None, RETRANSMIT_MIN_S
            due_s = max(clock.now_s + forward.delay_s(random), self._last_arrival_s)
            self._last_arrival_s = due_s
            clock.push(due_s, self.receiver.arrive, (self._queue.popleft(),))
        self._waiting_s = None

    def _wait(self) -> None:
        """The head of the queue got lost: try again later, each time after twice as long."""
        clock = self._network.clock
        if self._waiting_s is None:
            self._waiting_s = clock.now_s
        if clock.now_s - self._waiting_s > GIVE_UP_S:
            self._queue.clear()
            self.sender.reactor.gate(self.sender.lose, (TCPTimedOutError(),))
            return
        clock.push(clock.now_s + self._retry_s, self._pump)
        self._retry_s = min(2 * self._retry_s, RETRANSMIT_MAX_S)

    def acknowledge(self, size_bytes: int) -> None:
        """The receiver has read; tell the sender, as soon as a way back exists."""
        clock, backward = self._network.clock, self._backward
        if backward.is_cut or self._network.is_down(backward.destination):
            clock.push(clock.now_s + RETRANSMIT_MIN_S, self.acknowledge, (size_bytes,))
        else:
            due_s = clock.now_s + backward.delay_s(self._network.random)
            clock.push(due_s, self._acknowledged, (size_bytes,))

    def _acknowledged(self, size_bytes: int) -> None:
        self.in_flight_bytes -= size_bytes
        self.sender.reactor.gate(self.sender.flush)

    def probe(self) -> None:
        """What the receiver's host had not read when it lost power is sent again until it answers."""
        clock = self._network.clock
        if not self.sender.connected or not self.in_flight_bytes:
            return
        if self._forward.is_cut or self._network.is_down(self._forward.destination):
            clock.push(clock.now_s + RETRANSMIT_MIN_S, self.probe)
        else:
            self.receiver.arrive(b"?")

    def reset(self, insist: bool = False) -> None:
        """Send a RST: it overtakes data, and may get lost.

        Args:
            insist: it answers a segment, which its sender would repeat until the RST arrives.
        """
        clock = self._network.clock
        if not self._forward.is_cut:
            due_s = clock.now_s + self._forward.delay_s(self._network.random)
            clock.push(due_s, self.receiver.reset)
        elif insist and self.receiver.connected:
            clock.push(clock.now_s + RETRANSMIT_MIN_S, self.reset, (True,))


@implementer(ITCPTransport, IConsumer, IPushProducer)
class Connection:
    """One end of a stream; a protocol's transport."""

    def __init__(self, reactor: SimulatedReactor, port: int, peer_host: str, peer_port: int) -> None:
        self.reactor = reactor
        self.connected = True
        self.disconnecting = False
        self.protocol: Any = None
        self.connector: Connector | None = None
        self._host = tcp_address(reactor.host, port)
        self._peer = tcp_address(peer_host, peer_port)
        self._outgoing: Pipe
        self._incoming: Pipe
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._unread: deque[bytes] = deque()
        self._reading = True
        self._flush_planned = False
        self._write_closed = False
        self._aborting = False
        self._producer: Any = None
        self._streaming = False
        self._producer_paused = False
        self._no_delay = False
        self._keep_alive = False
        reactor.connections.append(self)

    def join(self, other: Connection) -> None:
        """Make ``self`` and ``other`` the two ends of one stream."""
        self._outgoing, other._outgoing = Pipe(self, other), Pipe(other, self)
        self._incoming, other._incoming = other._outgoing, self._outgoing

    # What protocols call.

    def write(self, data: bytes) -> None:
        """Send ``data`` at the end of this turn."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError("data must be bytes")
        if data and self.connected and not self._write_closed:
            self._unsent.append(bytes(data))
            self._unsent_bytes += len(data)
            self._plan_flush()
            self._pause_producer()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send all of ``data``."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close once everything is sent and no producer is left."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._plan_flush()

    def loseWriteConnection(self) -> None:
        """Close this direction once everything is sent."""
        if self.connected and not self._write_closed:
            self._write_closed = True
            self._plan_flush()

    def abortConnection(self) -> None:
        """Close at once; the peer sees a reset."""
        if self.connected:
            self.disconnecting = self._aborting = True
            self._unsent.clear()
            self._outgoing.clear()
            self._outgoing.reset()
            self.reactor.callLater(0, self.lose, ConnectionAborted())

    def getPeer(self) -> IPv4Address | IPv6Address:
        """The other end's address."""
        return self._peer

    def getHost(self) -> IPv4Address | IPv6Address:
        """This end's address."""
        return self._host

    def getTcpNoDelay(self) -> bool:
        """What `setTcpNoDelay` set."""
        return self._no_delay

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Remembered; makes no difference here."""
        self._no_delay = enabled

    def getTcpKeepAlive(self) -> bool:
        """What `setTcpKeepAlive` set."""
        return self._keep_alive

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Remembered; makes no difference here."""
        self._keep_alive = enabled

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As `IConsumer`.

        Raises:
            RuntimeError: there is a producer already.
        """
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._producer_paused = producer, streaming, False
        if not streaming:
            producer.resumeProducing()
        else:
            self._pause_producer()

    def unregisterProducer(self) -> None:
        """As `IConsumer`."""
        self._producer = None
        if self.connected:
            self._plan_flush()

    def pauseProducing(self) -> None:
        """Read nothing more; the sender's window fills."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Read again."""
        if self.connected and not self._reading:
            self._reading = True
            self.reactor.callLater(0, self._read)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    # What the network calls.

    def start(self, protocol: Any) -> None:
        """Give the stream to ``protocol``."""
        self.protocol = protocol
        protocol.makeConnection(self)
        self._read()

    def flush(self) -> None:
        """Hand to the network what its window takes, then see who waits for that."""
        self._flush_planned = False
        if not self.connected or self._aborting:
            return
        room = WINDOW_MAX_BYTES - self._outgoing.in_flight_bytes
        if self._unsent and room > 0:
            data = b"".join(self._unsent)
            for at in range(0, min(room, len(data)), SEGMENT_MAX_BYTES):
                self._outgoing.put(data[at : min(at + SEGMENT_MAX_BYTES, room)])
            rest = data[room:]
            self._unsent, self._unsent_bytes = ([rest] if rest else []), len(rest)
        if not self._unsent:
            self._drained()

    def arrive(self, segment: bytes) -> None:
        """A segment reached this host: its kernel takes it, dead or alive."""
        if not self.connected:
            if segment:
                self._outgoing.reset(insist=True)
            return
        self._unread.append(segment)
        self.reactor.gate(self._read)

    def reset(self) -> None:
        """A RST reached this host."""
        self.reactor.gate(self.lose, (ConnectionLost("reset by the peer"),))

    def lose(self, reason: Exception) -> None:
        """Close this end and tell its protocol why."""
        if not self.connected:
            return
        self._detach()
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.stopProducing()
        failure = Failure(reason)
        if self.protocol is not None:
            self.protocol.connectionLost(failure)
        if self.connector is not None:
            self.connector.lost(failure)

    def die(self, silently: bool) -> None:
        """The process is gone: its kernel closes the stream, or is gone as well."""
        if self.connected:
            self._detach()
            if silently:
                self._outgoing.clear()
                self._incoming.probe()
            else:
                self._outgoing.put(_FIN)

    def _detach(self) -> None:
        self.connected = False
        self.disconnecting = True
        self._unread.clear()
        self._unsent.clear()
        self.reactor.connections.remove(self)

    def _read(self) -> None:
        while self._unread and self._reading and self.connected and self.protocol is not None:
            segment = self._unread.popleft()
            if not segment:
                self._end_of_stream()
                return
            self._incoming.acknowledge(len(segment))
            self.protocol.dataReceived(segment)

    def _end_of_stream(self) -> None:
        if IHalfCloseableProtocol.providedBy(self.protocol) and not self._write_closed:
            self.protocol.readConnectionLost()
        else:
            self.lose(ConnectionDone())

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self.reactor.callLater(0, self.flush)

    def _pause_producer(self) -> None:
        too_much = self._unsent_bytes > BUFFER_MAX_BYTES
        if too_much and self._producer is not None and self._streaming and not self._producer_paused:
            self._producer_paused = True
            self._producer.pauseProducing()

    def _drained(self) -> None:
        if self._producer is not None:
            if not self._streaming or self._producer_paused:
                self._producer_paused = False
                self._producer.resumeProducing()
        elif self.disconnecting:
            self._outgoing.put(_FIN)
            self.lose(ConnectionDone())
        elif self._write_closed:
            self._outgoing.put(_FIN)


@implementer(IConnector)
class Connector:
    """An attempt to connect, and the connection that comes of it."""

    def __init__(
        self, reactor: SimulatedReactor, host: str | None, port: int, factory: Any, timeout_s: float | None
    ) -> None:
        self._reactor = reactor
        self._is_known = host is not None
        self._address = (host or "0.0.0.0", port)
        self._factory = factory
        self._timeout_s = timeout_s
        self._timeout: Any = None
        self._state = "disconnected"
        self._attempt = 0
        self._connection: Connection | None = None
        self._started = False

    def connect(self) -> None:
        """Try.

        Raises:
            RuntimeError: it is connecting or connected already.
        """
        if self._state != "disconnected":
            raise RuntimeError("a connection attempt or a connection is there already")
        self._state = "connecting"
        self._attempt += 1
        if not self._started:
            self._started = True
            self._factory.doStart()
        self._factory.startedConnecting(self)
        if self._state != "connecting":
            return
        if self._timeout_s is not None:
            self._timeout = self._reactor.callLater(self._timeout_s, self.fail, TimeoutError())
        if self._is_known:
            self._send_syn(self._attempt, SYN_RETRY_S)
        else:
            self._reactor.callLater(0, self.fail, DNSLookupError("the name is unknown"))

    def stopConnecting(self) -> None:
        """Give up.

        Raises:
            RuntimeError: it is not connecting.
        """
        if self._state != "connecting":
            raise RuntimeError("there is no connection attempt")
        self.fail(UserError())

    def disconnect(self) -> None:
        """Give up, or close."""
        if self._state == "connecting":
            self.stopConnecting()
        elif self._connection is not None:
            self._connection.loseConnection()

    def getDestination(self) -> IPv4Address | IPv6Address:
        """Where it connects to."""
        return tcp_address(*self._address)

    def fail(self, reason: Exception) -> None:
        """The attempt came to nothing."""
        if self._state == "connecting":
            self._disconnected()
            self._factory.clientConnectionFailed(self, Failure(reason))
            self._stop_factory()

    def lost(self, reason: Failure) -> None:
        """The connection ended."""
        self._disconnected()
        self._factory.clientConnectionLost(self, reason)
        self._stop_factory()

    def _disconnected(self) -> None:
        self._state = "disconnected"
        self._connection = None
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()

    def _stop_factory(self) -> None:
        # The factory may have called connect() again just now.
        if self._state == "disconnected" and self._started:
            self._started = False
            self._factory.doStop()

    def _is_current(self, attempt: int) -> bool:
        return self._state == "connecting" and attempt == self._attempt and not self._reactor.is_dead

    def _send_syn(self, attempt: int, retry_s: float) -> None:
        if not self._is_current(attempt):
            return
        network, host = self._reactor.network, network_host(self._reactor.host, self._address[0])
        clock, link = network.clock, network.link(self._reactor.host, host)
        lost = link.is_cut or network.is_down(host) or (link.loss and network.random.random() < link.loss)
        if lost:
            clock.push(clock.now_s + retry_s, self._send_syn, (attempt, 2 * retry_s))
        else:
            due_s = clock.now_s + link.delay_s(network.random)
            clock.push(due_s, self._syn_arrived, (attempt, host, retry_s))

    def _syn_arrived(self, attempt: int, host: str, retry_s: float) -> None:
        """At the server's kernel: a listening socket takes it even while its process stands still."""
        network = self._reactor.network
        clock, back = network.clock, network.link(host, self._reactor.host)
        if back.is_cut or not self._is_current(attempt):
            clock.push(clock.now_s + retry_s, self._send_syn, (attempt, 2 * retry_s))
            return
        due_s = clock.now_s + back.delay_s(network.random)
        server = network.process(host)
        port = None if server is None else server.tcp_ports.get(self._address[1])
        if server is None or port is None:
            clock.push(due_s, self._reactor.gate, (self._refused, (attempt,)))
            return
        own_port = self._reactor.free_port()
        ours = Connection(self._reactor, own_port, *self._address)
        theirs = Connection(server, self._address[1], self._reactor.host, own_port)
        ours.join(theirs)
        server.gate(port.accept, (theirs,))
        clock.push(due_s, self._reactor.gate, (self._established, (attempt, ours)))

    def _refused(self, attempt: int) -> None:
        if self._is_current(attempt):
            self.fail(ConnectionRefusedError())

    def _established(self, attempt: int, connection: Connection) -> None:
        if not self._is_current(attempt):
            connection.abortConnection()
            return
        protocol = self._factory.buildProtocol(connection.getPeer())
        if protocol is None:
            connection.abortConnection()
            self.fail(UserError())
            return
        self._state, self._connection, connection.connector = "connected", connection, self
        self._timeout = self._timeout.cancel() if self._timeout is not None else None
        connection.start(protocol)


def network_host(own_host: str, host: str) -> str:
    """The host that a name or address means from ``own_host``: loopback is always oneself."""
    return own_host if host in ("127.0.0.1", "::1", "localhost", "") else host
