"""What a simulated process binds and asks: UDP ports, TCP ports, names."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import InvalidAddressError, MessageLengthError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IListeningPort, IUDPTransport
from zope.interface import implementer

from twisted_paxos.addresses import is_ip
from twisted_paxos.testing.streams import Connection, tcp_address

if TYPE_CHECKING:
    from twisted_paxos.testing.network import SimulatedNetwork, SimulatedReactor

Address = tuple[str, int]

DATAGRAM_MAX_BYTES: Final = 65_507
RECEIVE_BUFFER_BYTES: Final = 212_992
"""What Linux gives a UDP socket unless asked for more."""


class SimulatedSocket:
    """What programs do to a port's socket before they use it."""

    def __init__(self) -> None:
        self._options: dict[tuple[int, int], Any] = {}
        self.receive_buffer_bytes = RECEIVE_BUFFER_BYTES

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Any option is taken; SO_RCVBUF sets how much a paused process can be sent."""
        self._options[level, option] = value
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            # As Linux: bounded by rmem_max, then doubled.
            self.receive_buffer_bytes = 2 * min(int(value), RECEIVE_BUFFER_BYTES)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """What was set, or 0; the true size for SO_RCVBUF."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            return self.receive_buffer_bytes
        return self._options.get((level, option), 0)


@implementer(IUDPTransport, IListeningPort)
class UDPPort:
    """A bound UDP port; the transport of a `DatagramProtocol`."""

    def __init__(self, reactor: SimulatedReactor, port: int, protocol: Any, max_packet_bytes: int) -> None:
        self.reactor = reactor
        self.port = port
        self.protocol = protocol
        self.socket = SimulatedSocket()
        self.connected = False
        self.writes_from_any_thread = True
        self.overflowed = 0
        self.maxPacketSize = max_packet_bytes
        self._source = (reactor.host, port)
        self._peer: Address | None = None
        self._broadcast = False
        self._waiting: deque[tuple[bytes, Address]] = deque()
        self._waiting_bytes = 0
        self._stopped: Deferred[None] | None = None

    def startListening(self) -> None:
        """Start the protocol."""
        self.connected = True
        self.protocol.makeConnection(self)

    def write(self, packet: bytes, addr: Address | None = None) -> None:
        """Send a datagram.

        Raises:
            MessageLengthError: it is larger than UDP allows.
            InvalidAddressError: the address is a name.
        """
        if len(packet) > DATAGRAM_MAX_BYTES:
            raise MessageLengthError("message too long")
        addr = addr or self._peer
        if addr is None:
            raise ValueError("an address is needed: the port is not connected")
        reactor = self.reactor
        network = reactor.network
        if not network.knows(addr[0]) and not is_ip(addr[0]):
            raise InvalidAddressError(addr[0], "write() only accepts IP addresses, not hostnames")
        if self.connected and not reactor.is_dead:
            network.send_datagram(self._source, addr, bytes(packet))

    def arrive(self, data: bytes, sender: Address) -> None:
        """A datagram reached this host's kernel."""
        if not self.reactor.is_paused:
            self._deliver(data, sender)
        elif self._waiting_bytes + len(data) > self.socket.receive_buffer_bytes:
            self.overflowed += 1
        else:
            self._waiting.append((data, sender))
            self._waiting_bytes += len(data)

    def drain(self) -> None:
        """The process runs again: read what piled up."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for data, sender in waiting:
            self.arrive(data, sender)

    def _deliver(self, data: bytes, sender: Address) -> None:
        if self.connected and (self._peer is None or sender == self._peer):
            fits = len(data) <= self.maxPacketSize
            self.protocol.datagramReceived(data if fits else data[: self.maxPacketSize], sender)

    def connect(self, host: str, port: int) -> None:
        """Send to, and hear from, this address only.

        Raises:
            InvalidAddressError: ``host`` is a name.
        """
        if not is_ip(host):
            raise InvalidAddressError(host, "not an IPv4 or IPv6 address.")
        self._peer = (host, port)

    def stopListening(self) -> Deferred[None]:
        """Unbind; fires when the protocol was told."""
        if self._stopped is None:
            self._stopped = Deferred()
            self.connected = False
            self.reactor.callLater(0, self._stop)
        return self._stopped

    loseConnection = stopListening

    def _stop(self) -> None:
        self.reactor.udp_ports.pop(self.port, None)
        self.protocol.doStop()
        if self._stopped is not None:
            self._stopped.callback(None)

    def getHost(self) -> IPv4Address | IPv6Address:
        """Where it is bound."""
        return (IPv6Address if ":" in self.reactor.host else IPv4Address)("UDP", *self._source)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """Remembered; there is no broadcast here."""
        self._broadcast = enabled

    def getBroadcastAllowed(self) -> bool:
        """What `setBroadcastAllowed` set."""
        return self._broadcast


@implementer(IListeningPort)
class TCPPort:
    """A listening TCP port."""

    def __init__(self, reactor: SimulatedReactor, port: int, factory: Any) -> None:
        self.reactor = reactor
        self.port = port
        self.factory = factory
        self._stopped: Deferred[None] | None = None

    def startListening(self) -> None:
        """Start the factory."""
        self.factory.doStart()

    def accept(self, connection: Connection) -> None:
        """A client connected."""
        protocol = None if self._stopped else self.factory.buildProtocol(connection.getPeer())
        if protocol is None:
            connection.abortConnection()
        else:
            connection.start(protocol)

    def stopListening(self) -> Deferred[None]:
        """Unbind; connections stay."""
        if self._stopped is None:
            self._stopped = Deferred()
            self.reactor.tcp_ports.pop(self.port, None)
            self.reactor.callLater(0, self._stop)
        return self._stopped

    loseConnection = stopListening

    def _stop(self) -> None:
        self.factory.doStop()
        if self._stopped is not None:
            self._stopped.callback(None)

    def getHost(self) -> IPv4Address | IPv6Address:
        """Where it is bound."""
        return tcp_address(self.reactor.host, self.port)


@implementer(IHostResolution)
class Resolution:
    """A name being resolved."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Too late: it is resolved at once."""


@implementer(IHostnameResolver)
class SimulatedResolver:
    """Knows IP addresses and the network's `SimulatedNetwork.names`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """As `IHostnameResolver`; an unknown name has no addresses."""
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        host = self.lookup(hostName)
        if host is not None:
            kind = IPv6Address if ":" in host else IPv4Address
            resolutionReceiver.addressResolved(
                kind("UDP" if transportSemantics == "UDP" else "TCP", host, portNumber)
            )
        resolutionReceiver.resolutionComplete()
        return resolution

    def lookup(self, name: str) -> str | None:
        """The address of ``name``."""
        return name if is_ip(name) else self._network.names.get(name)
