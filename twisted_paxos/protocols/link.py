"""The TCP link between two nodes: a persistent connection for what no datagram holds.

Each node connects to each of its peers and sends on that connection only; what it receives
comes on the connections that the peers made. So a pair has two, and no handshake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.application.internet import ClientService
from twisted.internet.interfaces import IPushProducer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Envelope
from twisted_paxos.framing import FrameReceiver
from twisted_paxos.protocols.base import Receiver

log = Logger()

LINK_QUEUE_MAX_BYTES = 16 * limits.VALUE_MAX_BYTES
"""Frames that may wait for a slow or absent peer; beyond it, frames are dropped and sent again later."""

LINKS_MAX = 256
"""Incoming links of one node; more are closed at once."""

RECONNECT_MAX_S = 2.0

SEND_BYTES = 1 << 20
"""What is offered to the system at once, instead of Twisted's 128 KiB: frames are large here."""

STUCK_S = 2.0
"""A link on which frames have waited for this long is given up for a new one."""


class IncomingLink(FrameReceiver):
    """What a peer sends on the connection that it made."""

    transport: Any

    MAX_LENGTH = limits.FRAME_MAX_BYTES
    factory: IncomingLinkFactory

    def connectionMade(self) -> None:
        """A peer connected."""
        links = self.factory.links
        if len(links) >= LINKS_MAX:
            self.factory.receiver.drop("too_many_links", self.transport.getPeer())
            self.transport.abortConnection()
            return
        links.add(self)

    def connectionLost(self, reason: Any = None) -> None:
        """The connection is gone; the peer makes another."""
        self.factory.links.discard(self)

    def stringReceived(self, string: bytes) -> None:
        """One frame."""
        source = self.transport.getPeer()
        envelope = self.factory.receiver.decode(string, source)
        if envelope is None:
            # Whoever sends what is no message is no peer, or the stream is damaged.
            self.transport.loseConnection()
        else:
            self.factory.received(envelope)

    def lengthLimitExceeded(self, length: int) -> None:
        """A frame that is too long, or no frame at all."""
        self.factory.receiver.drop("oversized", self.transport.getPeer(), f"a frame of {length} bytes")
        self.transport.abortConnection()


class IncomingLinkFactory(Factory):
    """Accepts links.

    Args:
        receiver: decodes.
        received: takes the messages.
    """

    protocol: Any = IncomingLink
    noisy = False

    def __init__(self, receiver: Receiver, received: Callable[[Envelope], None]) -> None:
        self.receiver = receiver
        self.received = received
        self.links: set[IncomingLink] = set()

    def close(self) -> None:
        """End all links."""
        for link in list(self.links):
            link.transport.abortConnection()


@implementer(IPushProducer)
class OutgoingLink(FrameReceiver):
    """The connection that this node made to a peer; nothing is expected to come back on it."""

    transport: Any

    MAX_LENGTH = 1
    factory: _OutgoingFactory

    def connectionMade(self) -> None:
        """Connected: what waits can go."""
        self.transport.registerProducer(self, True)
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
            self.transport.SEND_LIMIT = SEND_BYTES
        self.factory.link.connected(self)

    def connectionLost(self, reason: Any = None) -> None:
        """Gone; the service connects again."""
        self.factory.link.disconnected(self)

    def stringReceived(self, string: bytes) -> None:
        """A peer has nothing to say here."""
        self.transport.abortConnection()

    def lengthLimitExceeded(self, length: int) -> None:
        """The same."""
        self.transport.abortConnection()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.factory.link.paused = True

    def resumeProducing(self) -> None:
        """It has room again."""
        self.factory.link.resume()

    def stopProducing(self) -> None:
        """The connection ends."""
        self.factory.link.paused = True


class _OutgoingFactory(Factory):
    protocol: Any = OutgoingLink
    noisy = False

    def __init__(self, link: PeerLink) -> None:
        self.link = link


class PeerLink:
    """The way to one peer for large messages; connects when first used and stays connected.

    Args:
        endpoint: where the peer listens.
        clock: the reactor.
        random: gives numbers in [0, 1), for the jitter of reconnecting.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, clock: IReactorTime, random: Callable[[], float]
    ) -> None:
        self.paused = True
        self.dropped = 0
        self._random = random
        self._protocol: OutgoingLink | None = None
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._clock = clock
        self._moved_s = clock.seconds()
        self._service = ClientService(
            endpoint, _OutgoingFactory(self), retryPolicy=self._retry_s, clock=clock
        )

    def _retry_s(self, failures: int) -> float:
        return min(0.05 * 2 ** min(failures, 10), RECONNECT_MAX_S) * (1 + self._random() / 4)

    def send(self, frame: bytes) -> bool:
        """Send, or queue until it can be sent; False when it had to be dropped."""
        if not self._service.running:
            self._service.startService()
        if self._queue_bytes + len(frame) > LINK_QUEUE_MAX_BYTES:
            self.dropped += 1
            return False
        if not self._queue:
            self._moved_s = self._clock.seconds()
        self._queue.append(frame)
        self._queue_bytes += len(frame)
        self._flush()
        return True

    @property
    def is_stuck(self) -> bool:
        """Whether frames wait and none has left for long: a new connection may do better.

        TCP finds out late that a path is dead, and as late that it works again.
        """
        return bool(self._queue) and self._clock.seconds() - self._moved_s > STUCK_S

    def _flush(self) -> None:
        if not self._queue or (not self.paused and self._protocol is not None):
            self._moved_s = self._clock.seconds()
        while self._queue and not self.paused and self._protocol is not None:
            frame = self._queue.popleft()
            self._queue_bytes -= len(frame)
            self._protocol.sendString(frame)

    def connected(self, protocol: OutgoingLink) -> None:
        """The connection is there."""
        self._protocol = protocol
        self.resume()

    def disconnected(self, protocol: OutgoingLink) -> None:
        """The connection is gone: what waited is old by the time that there is a new one."""
        if protocol is self._protocol:
            self._protocol = None
            self.paused = True
            self._queue.clear()
            self._queue_bytes = 0

    def resume(self) -> None:
        """There is room."""
        self.paused = False
        self._flush()

    def close(self) -> Any:
        """End it; fires when it is closed."""
        self._queue.clear()
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.abortConnection()
        return self._service.stopService()
