"""`SocketMessenger`: a datagram for what fits in one, the peer link for what does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import InvalidAddressError
from twisted.internet.interfaces import IAddress, IHostResolution, IReactorTime, IResolutionReceiver
from twisted.internet.udp import Port
from twisted.logger import Logger
from zope.interface import implementer

from twisted_paxos.addresses import Address, is_ip
from twisted_paxos.core.effects import OTHERS
from twisted_paxos.core.messages import Message, Sender
from twisted_paxos.departure import Departure
from twisted_paxos.interfaces import IMessenger
from twisted_paxos.protocols.link import PeerLink
from twisted_paxos.wire.peer import PeerCodec

log = Logger()

OBSERVERS_MAX = 16
"""Nodes outside the configuration that are sent what is chosen."""

OBSERVER_SILENT_S = 30.0
"""An observer that was not heard for this long is forgotten."""

RESOLVE_INTERVAL_S = 30.0
"""How often names of peers are looked up again."""


class _Peer:
    """Where one node is.

    Attributes:
        address: as configured, or as seen for an observer.
        ip: what a datagram needs; None until the name is resolved.
        datagram_max_bytes: on the way to that ip.
        boot_id: of its latest start that was heard.
        heard_s: when it was last heard.
        link: for large messages; made when first needed.
    """

    __slots__ = ("address", "boot_id", "datagram_max_bytes", "heard_s", "ip", "link")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.ip: str | None = None
        self.boot_id = ""
        self.datagram_max_bytes = 0
        self.heard_s = float("-inf")
        self.link: PeerLink | None = None


@implementer(IResolutionReceiver)
class _Resolution:
    """Takes the first address of a name that the bound socket can send to."""

    def __init__(self, transport: Any, done: Callable[[str | None], None]) -> None:
        self._ipv6 = ":" in transport.getHost().host
        self._done = done
        self._ip: str | None = None

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """The look-up started."""

    def addressResolved(self, address: IAddress) -> None:
        """One of the addresses."""
        ip = getattr(address, "host", "")
        if self._ip is None and (":" in ip) == self._ipv6:
            self._ip = ip

    def resolutionComplete(self) -> None:
        """That was all."""
        self._done(self._ip)


@implementer(IMessenger)
class SocketMessenger:
    """Sends messages of one node to the others.

    Args:
        reactor: time, TCP, and names.
        codec: encodes; once per message, the same bytes for all receivers.
        me: how this node signs.
        peers: address of each other configured node; hosts may be names.
        datagram_limit: the largest datagram in bytes for an IP address.
        random: gives numbers in [0, 1), for jitter.

    Attributes:
        sent: datagrams and frames sent, by message type.
        sent_bytes: their size together.
        failed: datagrams that the system refused.
    """

    def __init__(
        self,
        reactor: Any,
        codec: PeerCodec,
        me: Sender,
        peers: Mapping[str, Address],
        datagram_limit: Callable[[str], int],
        random: Callable[[], float],
    ) -> None:
        self.sent: dict[str, int] = {}
        self.sent_bytes = 0
        self.failed = 0
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._codec = codec
        self._me = me
        self._datagram_limit = datagram_limit
        self._random = random
        self._configured = frozenset(peers)
        self._peers = {uid: _Peer(address) for uid, address in sorted(peers.items())}
        self._transport: Any = None
        self._send_to: Callable[[bytes, tuple[str | None, int]], object]
        self._any_thread = False
        self._socket: Any = None
        self._resolving: Any = None
        self._closed = False

    # -- peers

    def attach(self, transport: Any) -> None:
        """The UDP port is bound: datagrams leave through it."""
        self._transport = transport
        # A `Port` checks for each datagram anew, three times, that an address is one; peers' are.
        # And a thread may use its socket.
        real = isinstance(transport, Port)
        self._send_to = transport.socket.sendto if real else transport.write
        self._socket = transport.socket if real else None
        self._any_thread = real or getattr(transport, "writes_from_any_thread", False)
        self._resolve_all()

    def heard(self, sender: Sender, addr: tuple[Any, ...] | None) -> bool:
        """Note who spoke; False for strangers that there is no room for, or who came by link only."""
        peer = self._peers.get(sender.uid)
        if peer is not None and peer.boot_id != sender.boot_id:
            # A connection to an earlier start may be dead without a word.
            peer.boot_id = sender.boot_id
            self._drop_link(peer)
        if sender.uid in self._configured or sender.uid == self._me.uid:
            return sender.uid != self._me.uid
        if peer is None:
            if addr is None or not self._room_for_observer():
                return False
            peer = self._peers[sender.uid] = _Peer(Address("", 0))
        peer.heard_s = self._clock.seconds()
        if addr is not None and (peer.address.host, peer.address.port) != tuple(addr[:2]):
            # An observer is where its datagrams come from: it may have no fixed address.
            peer.address = Address(str(addr[0]), int(addr[1]))
            self._set_ip(peer, peer.address.host)
            self._drop_link(peer)
        return True

    def _room_for_observer(self) -> bool:
        since_s = self._clock.seconds() - OBSERVER_SILENT_S
        observers = [uid for uid in self._peers if uid not in self._configured]
        for uid in observers:
            if self._peers[uid].heard_s < since_s:
                self._drop_link(self._peers.pop(uid))
        return sum(uid not in self._configured for uid in self._peers) < OBSERVERS_MAX

    def _others(self, but: Sequence[str]) -> list[str]:
        """Everybody to be told, observers only while they are heard."""
        to = [uid for uid in self._peers if uid not in but]
        if len(self._peers) == len(self._configured):
            return to
        since_s = self._clock.seconds() - OBSERVER_SILENT_S
        return [uid for uid in to if uid in self._configured or self._peers[uid].heard_s >= since_s]

    def _set_ip(self, peer: _Peer, ip: str) -> None:
        peer.ip = ip
        peer.datagram_max_bytes = self._datagram_limit(ip)

    def _resolve_all(self) -> None:
        named = False
        for uid in sorted(self._configured):
            peer = self._peers[uid]
            if is_ip(peer.address.host):
                self._set_ip(peer, peer.address.host)
            else:
                named = True
                self._resolve(uid, peer)
        if named and not self._closed:
            self._resolving = self._clock.callLater(RESOLVE_INTERVAL_S, self._resolve_all)

    def _resolve(self, uid: str, peer: _Peer) -> None:
        self._reactor.nameResolver.resolveHostName(
            _Resolution(self._transport, lambda ip: self._resolved(uid, peer, ip)), peer.address.host
        )

    def _resolved(self, uid: str, peer: _Peer, ip: str | None) -> None:
        if ip is None:
            if peer.ip is None:
                log.warn(
                    "cannot find an address of node {uid}, {host}; trying again",
                    uid=uid,
                    host=peer.address.host,
                )
        elif ip != peer.ip:
            log.info("node {uid} is at {ip}, port {port}", uid=uid, ip=ip, port=peer.address.port)
            self._set_ip(peer, ip)
            self._drop_link(peer)

    # -- sending

    def send(self, uids: Sequence[str], message: Message) -> None:
        """See `IMessenger.send`."""
        if self._transport is None or self._closed:
            return
        to = self._others(uids[1:]) if tuple(uids[:1]) == OTHERS else uids
        if not to:
            return
        data = self._codec.encode(self._me, message)
        count = 0
        for uid in to:
            peer = self._peers.get(uid)
            if peer is None or peer.ip is None:
                continue
            count += 1
            if len(data) <= peer.datagram_max_bytes:
                self._send_datagram(peer, data)
            else:
                self._send_frame(peer, data)
        self._count(message, count, len(data))

    def _count(self, message: Message, count: int, size_bytes: int) -> None:
        name = type(message).__name__
        self.sent[name] = self.sent.get(name, 0) + count
        self.sent_bytes += size_bytes * count

    def prepare(self, uid: str, message: Message) -> Departure | None:
        """See `IMessenger.prepare`."""
        peer = self._peers.get(uid)
        if not self._any_thread or self._closed or peer is None or peer.ip is None:
            return None
        data = self._codec.encode(self._me, message)
        if len(data) > peer.datagram_max_bytes:
            return None
        self._count(message, 1, len(data))
        port = peer.address.port
        native = (self._socket, peer.ip, port, data) if self._socket is not None else None
        return Departure(partial(self._send_datagram, peer, data), native, partial(self._refused, peer))

    def _send_datagram(self, peer: _Peer, data: bytes) -> None:
        try:
            self._send_to(data, (peer.ip, peer.address.port))
        except (OSError, InvalidAddressError) as error:
            self._not_sent(peer, error)

    def _refused(self, peer: _Peer, error: int) -> None:
        self._not_sent(peer, OSError(error, os.strerror(error)))

    def _not_sent(self, peer: _Peer, error: Exception) -> None:
        # A full socket buffer or a missing route is a lost datagram: it is sent again.
        self.failed += 1
        if self.failed & (self.failed - 1) == 0:
            log.warn(
                "cannot send to {host}: {error} ({count} times so far)",
                host=str(peer.address),
                error=str(error),
                count=self.failed,
            )

    def _send_frame(self, peer: _Peer, data: bytes) -> None:
        if peer.link is not None and peer.link.is_stuck:
            self._drop_link(peer)
        if peer.link is None:
            assert peer.ip is not None
            kind = TCP6ClientEndpoint if ":" in peer.ip else TCP4ClientEndpoint
            endpoint = kind(self._reactor, peer.ip, peer.address.port)
            peer.link = PeerLink(endpoint, self._clock, self._random)
        peer.link.send(data)

    def _drop_link(self, peer: _Peer) -> None:
        if peer.link is not None:
            peer.link.close()
            peer.link = None

    def close(self) -> Deferred[Any]:
        """Send nothing more; fires when the links are closed."""
        self._closed = True
        if self._resolving is not None and self._resolving.active():
            self._resolving.cancel()
        closing = [peer.link.close() for peer in self._peers.values() if peer.link is not None]
        return gatherResults([ending for ending in closing if ending is not None])
