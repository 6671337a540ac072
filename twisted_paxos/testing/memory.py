"""Twisted's `MemoryReactorClock` with UDP, for unit tests of datagram protocols."""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, InvalidAddressError, MessageLengthError
from twisted.internet.interfaces import IListeningPort, IReactorUDP, IUDPTransport
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from twisted_paxos.addresses import is_ip


class MemorySocket:
    """Takes every socket option."""

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Nothing to set."""

    def getsockopt(self, level: int, option: int, size: int = 0) -> int:
        """Always 0."""
        return 0


@implementer(IUDPTransport, IListeningPort)
class MemoryUDPPort:
    """A UDP port that remembers what was written.

    Attributes:
        protocol: what listens here; call its ``datagramReceived`` for what arrives.
        written: each (datagram, address) that it sent.
    """

    def __init__(self, port: int, protocol: Any, interface: str, max_packet_bytes: int) -> None:
        self.protocol = protocol
        self.written: list[tuple[bytes, tuple[str, int] | None]] = []
        self.socket = MemorySocket()
        self.connected = False
        self.writes_from_any_thread = True
        self.maxPacketSize = max_packet_bytes
        self._address = (interface or "0.0.0.0", port)
        self._peer: tuple[str, int] | None = None
        self._broadcast = False

    def startListening(self) -> None:
        """Start the protocol."""
        self.connected = True
        self.protocol.makeConnection(self)

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """Remember a datagram.

        Raises:
            MessageLengthError: it is larger than UDP allows.
            InvalidAddressError: the address is a name.
        """
        if len(packet) > 65_507:
            raise MessageLengthError("message too long")
        if addr is not None and not is_ip(addr[0]):
            raise InvalidAddressError(addr[0], "write() only accepts IP addresses, not hostnames")
        self.written.append((bytes(packet), addr or self._peer))

    def connect(self, host: str, port: int) -> None:
        """Send to this address only."""
        self._peer = (host, port)

    def stopListening(self) -> Deferred[None]:
        """Tell the protocol."""
        if self.connected:
            self.connected = False
            self.protocol.doStop()
        return succeed(None)

    def getHost(self) -> IPv4Address | IPv6Address:
        """Where it is bound."""
        return (IPv6Address if ":" in self._address[0] else IPv4Address)("UDP", *self._address)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """Remembered."""
        self._broadcast = enabled

    def getBroadcastAllowed(self) -> bool:
        """What `setBroadcastAllowed` set."""
        return self._broadcast


@implementer(IReactorUDP)
class MemoryReactorUDP(MemoryReactorClock):
    """`MemoryReactorClock`, which has no UDP, with ``listenUDP``.

    Attributes:
        udp_ports: the bound `MemoryUDPPort` by port number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.udp_ports: dict[int, MemoryUDPPort] = {}

    def listenUDP(
        self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192
    ) -> MemoryUDPPort:
        """As `IReactorUDP`.

        Raises:
            CannotListenError: the port is taken.
        """
        number = port or 49_152 + len(self.udp_ports)
        bound = self.udp_ports.get(number)
        if bound is not None and bound.connected:
            raise CannotListenError(interface, port, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
        bound = self.udp_ports[number] = MemoryUDPPort(number, protocol, interface, maxPacketSize)
        bound.startListening()
        return bound
