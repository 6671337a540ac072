"""A client, nodes behind real client ports, and a network in memory between them."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.client import Client, connect
from twisted_paxos.protocols.clientport import ClientPort
from twisted_paxos.testing.fakenode import FakeNode

UIDS = ("A", "B", "C")
ENDPOINTS = [f"127.0.0.1:{5100 + number}" for number in range(len(UIDS))]


class End(StringTransport):
    """One end of a connection in memory; `Link` moves what it writes."""

    def __init__(self, protocol: Any) -> None:
        super().__init__(lenient=True)
        self.protocol = protocol
        self.told = False

    def take(self) -> bytes:
        """What was written since the last call; nothing of it after an abort."""
        data = self.value()
        self.clear()
        return b"" if self.disconnected else data

    def tell_lost(self) -> None:
        """The connection is gone."""
        if not self.told:
            self.told = True
            self.protocol.connectionLost(Failure(ConnectionDone()))


class Link:
    """A connection: two ends."""

    def __init__(self, number: int, server: Any, client: Any) -> None:
        self.number = number
        self.ends = (End(client), End(server))
        self.alive = True
        for end in self.ends:
            end.protocol.makeConnection(end)

    def move(self) -> bool:
        """Deliver what was written, to ends that read; tells whether anything happened."""
        moved = False
        for end, peer in (self.ends, self.ends[::-1]):
            if self.alive and peer.producerState == "producing" and (data := end.take()):
                moved = True
                if not peer.disconnecting:
                    peer.protocol.dataReceived(data)
        if self.alive and any(end.disconnecting and not end.value() for end in self.ends):
            self.cut()
            moved = True
        return moved

    def cut(self) -> None:
        """Break the connection; what is under way is lost."""
        self.alive = False
        for end in self.ends:
            end.disconnecting = True
            end.tell_lost()


class Network:
    """Carries TCP connections to client ports, in memory.

    Attributes:
        reactor: what clients and ports run on.
        ports: by port number; take one out and its connections are refused.
        silent: port numbers where connections are neither taken nor refused.
        attempts: port numbers of all connections tried.
        links: all connections.
    """

    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.ports: dict[int, ClientPort] = {}
        self.silent: set[int] = set()
        self.attempts: list[int] = []
        self._taken = 0
        self.links: list[Link] = []

    def run(self, seconds: float = 0.0, step_s: float = 0.01) -> None:
        """Let ``seconds`` pass, and everything happen that happens in them."""
        self._settle()
        for _ in range(round(seconds / step_s)):
            self.reactor.advance(step_s)
            self._settle()

    def _settle(self) -> None:
        for _ in range(1_000):
            before = self._taken
            self.reactor.advance(0)
            self._accept()
            moved = sum(link.move() for link in self.links)
            due = any(c.getTime() <= self.reactor.seconds() for c in self.reactor.getDelayedCalls())
            if not moved and not due and before == self._taken == len(self.reactor.tcpClients):
                return
        raise AssertionError("the conversation does not end")

    def _accept(self) -> None:
        for _, number, factory, *_ in self.reactor.tcpClients[self._taken :]:
            self._taken += 1
            self.attempts.append(number)
            if number in self.silent:
                continue
            if number not in self.ports:
                factory.clientConnectionFailed(None, Failure(ConnectionRefusedError(111)))
                continue
            self._link(number, factory)

    def _link(self, number: int, factory: Any) -> None:
        server = self.ports[number].buildProtocol(None)
        self.links.append(Link(number, server, factory.buildProtocol(None)))

    def kill(self, number: int) -> ClientPort:
        """The node at ``number`` dies: its connections break, and it takes none any more."""
        port = self.ports.pop(number)
        self.cut(number)
        return port

    def cut(self, number: int) -> None:
        """Break the connections to ``number``."""
        for link in self.links:
            if link.number == number and link.alive:
                link.cut()


class ClientCase(SynchronousTestCase):
    """Three fake nodes that share a log."""

    def setUp(self) -> None:
        """Start them."""
        self.network = Network()
        self.reactor = self.network.reactor
        self.nodes = [FakeNode(uid) for uid in UIDS]
        for number, node in enumerate(self.nodes):
            self.network.ports[5100 + number] = ClientPort(node.share(self.nodes[0]), self.reactor)

    def connect(self, **options: Any) -> Client:
        """A connected client."""
        connecting = connect(self.reactor, ENDPOINTS, rng=random.Random(1), **options)
        self.network.run()
        client: Client = self.successResultOf(connecting)
        self.addCleanup(client.close)
        return client

    def finish(self, waiting: Deferred[Any], seconds: float = 0.0) -> Any:
        """What ``waiting`` fires with by ``seconds`` from now."""
        self.network.run(seconds)
        return self.successResultOf(waiting)
