"""`protocols.messenger`: datagrams, links for what is larger, and who is where."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest.mock import patch

from msgspec import Raw
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.core.transcript import ballot, sender, steady
from twisted_paxos.addresses import Address
from twisted_paxos.core.effects import OTHERS
from twisted_paxos.core.messages import Accept, Envelope, Fetch
from twisted_paxos.interfaces import IMessenger
from twisted_paxos.protocols.base import Receiver
from twisted_paxos.protocols.link import LINK_QUEUE_MAX_BYTES, IncomingLinkFactory
from twisted_paxos.protocols.messenger import (
    OBSERVER_SILENT_S,
    OBSERVERS_MAX,
    RESOLVE_INTERVAL_S,
    SocketMessenger,
)
from twisted_paxos.testing.network import SimulatedClock, SimulatedNetwork
from twisted_paxos.wire.peer import PeerCodec

CODEC = PeerCodec("cluster")
HOSTS = {"A": "10.0.0.1", "B": "10.0.0.2", "C": "10.0.0.3", "O": "10.0.0.9"}
PORT = 5000
DATAGRAM_BYTES = 1_400


def large(size_bytes: int) -> Accept:
    """A message of about this size."""
    return Accept(ballot("1.A"), 1, Raw(b'{"time_ms":0,"x":"' + b"x" * size_bytes + b'"}'), 0)


class Port(DatagramProtocol):
    """A node's UDP port: attaches its messenger, keeps what comes."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def startProtocol(self) -> None:
        """Bound."""
        self.node.messenger.attach(self.transport)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Something came."""
        envelope = self.node.receiver.decode(datagram, addr)
        if envelope is not None and self.node.messenger.heard(envelope.sender, addr):
            self.node.by_datagram.append(envelope.message)


class Node:
    """A messenger with its port and its links, and what came over each."""

    def __init__(self, network: SimulatedNetwork, uid: str, peers: dict[str, str]) -> None:
        self.uid = uid
        self.reactor = network.reactor(HOSTS[uid])
        self.receiver = Receiver(CODEC, self.reactor)
        self.by_datagram: list[Any] = []
        self.by_link: list[Any] = []
        addresses = {name: Address(host, PORT) for name, host in peers.items() if name != uid}
        self.messenger = SocketMessenger(
            self.reactor, CODEC, sender(uid), addresses, lambda ip: DATAGRAM_BYTES, steady
        )
        self.port = Port(self)
        self.reactor.listenUDP(PORT, self.port)
        self.links = IncomingLinkFactory(self.receiver, self.came_by_link)
        self.reactor.listenTCP(PORT, self.links)

    def came_by_link(self, envelope: Envelope) -> None:
        """A frame."""
        self.by_link.append(envelope.message)


class MessengerCase(SynchronousTestCase):
    """A, B and C, who know each other by address."""

    def setUp(self) -> None:
        self.clock = SimulatedClock()
        self.network = SimulatedNetwork(self.clock, Random(1))
        members = {uid: HOSTS[uid] for uid in "ABC"}
        self.a, self.b, self.c = (Node(self.network, uid, members) for uid in "ABC")

    def send(self, uids: tuple[str, ...], message: Any, seconds: float = 1.0) -> None:
        """A sends, and time passes."""
        self.a.messenger.send(uids, message)
        self.clock.advance(seconds)


class SendingTests(MessengerCase):
    """Which way a message goes."""

    def test_keepsItsInterface(self) -> None:
        """It provides `IMessenger`."""
        verifyObject(IMessenger, self.a.messenger)

    def test_smallGoesByDatagram(self) -> None:
        """What fits a datagram is one, to each receiver."""
        self.send(("B", "C"), Fetch(1, 2, 3))
        self.assertEqual((self.b.by_datagram, self.c.by_datagram), ([Fetch(1, 2, 3)], [Fetch(1, 2, 3)]))
        self.assertEqual(self.a.messenger.sent, {"Fetch": 2})

    def test_largeGoesByLink(self) -> None:
        """What does not fit comes whole, in order, over one connection."""
        for size_bytes in (DATAGRAM_BYTES, 1 << 20, 2_000):
            self.a.messenger.send(("B",), large(size_bytes))
        self.clock.advance(5)
        self.assertEqual(self.b.by_datagram, [])
        self.assertEqual(self.b.by_link, [large(DATAGRAM_BYTES), large(1 << 20), large(2_000)])
        self.assertEqual(len(self.b.links.links), 1)

    def test_encodesOnce(self) -> None:
        """One message to many receivers is encoded once."""
        with patch.object(CODEC, "encode", wraps=CODEC.encode) as encode:
            self.send(OTHERS, Fetch(1, 2, 3))
        self.assertEqual(encode.call_count, 1)

    def test_othersIsEverybodyElse(self) -> None:
        """To all others: to each configured node, not to itself."""
        self.send(OTHERS, Fetch(1, 2, 3))
        self.assertEqual([len(node.by_datagram) for node in (self.a, self.b, self.c)], [0, 1, 1])

    def test_unknownIdsAreIgnored(self) -> None:
        """Nothing is raised for an id that nobody has."""
        self.send(("X", "A"), Fetch(1, 2, 3))
        self.assertEqual(self.a.messenger.sent, {"Fetch": 0})

    def test_beforeThePortIsBoundNothingIsSent(self) -> None:
        """A messenger without a port drops, as a network would."""
        messenger = SocketMessenger(self.a.reactor, CODEC, sender("A"), {}, lambda ip: 1_400, steady)
        messenger.send(("B",), Fetch(1, 2, 3))
        self.assertEqual(messenger.sent, {})

    def test_systemErrorsAreLostDatagrams(self) -> None:
        """A full buffer or a missing route is counted, and raises nothing."""
        with patch.object(self.a.port.transport, "write", side_effect=OSError("no route")):
            self.a.messenger.attach(self.a.port.transport)
            self.send(("B",), Fetch(1, 2, 3))
        self.assertEqual(self.a.messenger.failed, 1)

    def test_linkComesBack(self) -> None:
        """A link that broke is made again; what is sent then arrives."""
        self.send(("B",), large(5_000))
        for link in list(self.b.links.links):
            link.transport.abortConnection()
        self.clock.advance(5)
        self.send(("B",), large(6_000), 5)
        self.assertEqual(self.b.by_link, [large(5_000), large(6_000)])

    def test_linkQueueIsBounded(self) -> None:
        """To a peer that is not there, frames are dropped beyond the limit; nothing grows."""
        self.network.isolate(HOSTS["B"])
        for _ in range(2 * LINK_QUEUE_MAX_BYTES // (1 << 20)):
            self.a.messenger.send(("B",), large(1 << 20))
        link = self.a.messenger._peers["B"].link
        assert link is not None
        self.assertLessEqual(link._queue_bytes, LINK_QUEUE_MAX_BYTES)
        self.assertGreater(link.dropped, 0)

    def test_closedSendsNothing(self) -> None:
        """After `close` nothing leaves, and its links are gone."""
        self.send(("B",), large(5_000))
        closed = self.a.messenger.close()
        self.clock.advance(5)
        self.successResultOf(closed)
        self.assertEqual(len(self.b.links.links), 0)
        self.send(("B", "C"), Fetch(1, 2, 3))
        self.assertEqual(self.c.by_datagram, [])


class PreparingTests(MessengerCase):
    """`SocketMessenger.prepare`: encoded now, sent by whoever calls what it returns."""

    def test_sendsWhatItEncoded(self) -> None:
        """Nothing leaves before the call; with each call the same bytes do, encoded once."""
        with patch.object(CODEC, "encode", wraps=CODEC.encode) as encode:
            send = self.a.messenger.prepare("B", Fetch(1, 2, 3))
            assert send is not None
            self.clock.advance(1)
            self.assertEqual(self.b.by_datagram, [])
            send()
            send()
            self.clock.advance(1)
        self.assertEqual(self.b.by_datagram, [Fetch(1, 2, 3), Fetch(1, 2, 3)])
        self.assertEqual((encode.call_count, self.a.messenger.sent), (1, {"Fetch": 1}))

    def check_not_prepared(self, uid: str, message: Any) -> None:
        """It is for `send`: nothing is counted, and nothing left."""
        self.assertIsNone(self.a.messenger.prepare(uid, message))
        self.clock.advance(5)
        self.assertEqual((self.a.messenger.sent, self.a.messenger.sent_bytes), ({}, 0))
        self.assertEqual((self.b.by_datagram, self.b.by_link), ([], []))

    def test_unknownPeer(self) -> None:
        """Not for an id that nobody has, its own one, or a name that is not resolved yet."""
        self.check_not_prepared("X", Fetch(1, 2, 3))
        self.check_not_prepared("A", Fetch(1, 2, 3))
        self.a.messenger._peers["B"].ip = None
        self.check_not_prepared("B", Fetch(1, 2, 3))

    def test_tooLargeForADatagram(self) -> None:
        """What would need a link, which only the reactor's thread may use, is not prepared."""
        self.check_not_prepared("B", large(DATAGRAM_BYTES))

    def test_largestDatagram(self) -> None:
        """The limit itself is no larger than the limit."""
        message = large(100)
        self.a.messenger._peers["B"].datagram_max_bytes = len(CODEC.encode(sender("A"), message))
        self.assertIsNotNone(self.a.messenger.prepare("B", message))
        self.assertIsNone(self.a.messenger.prepare("B", large(101)))

    def test_closed(self) -> None:
        """After `close` nothing is prepared."""
        self.successResultOf(self.a.messenger.close())
        self.check_not_prepared("B", Fetch(1, 2, 3))

    def test_transportOfTheReactorsThread(self) -> None:
        """Before the port is bound, or where only the reactor's thread may use it, nothing is prepared."""
        self.a.port.transport.writes_from_any_thread = False
        self.a.messenger.attach(self.a.port.transport)
        self.check_not_prepared("B", Fetch(1, 2, 3))
        addresses = {"B": Address(HOSTS["B"], PORT)}
        unbound = SocketMessenger(self.a.reactor, CODEC, sender("A"), addresses, lambda ip: 1_400, steady)
        self.assertIsNone(unbound.prepare("B", Fetch(1, 2, 3)))

    def test_errorsAreLostDatagrams(self) -> None:
        """What the system refuses is counted, also in the thread that sends it."""
        send = self.a.messenger.prepare("B", Fetch(1, 2, 3))
        assert send is not None
        self.patch(self.a.messenger, "_send_to", self.refuse)
        send()
        self.assertEqual(self.a.messenger.failed, 1)

    def refuse(self, data: bytes, addr: Any) -> None:
        """As a socket without a route."""
        raise OSError("no route")


class PeersTests(MessengerCase):
    """Who is where."""

    def test_observersAreToldWhileTheyAreHeard(self) -> None:
        """A node outside the configuration that speaks is sent everything, until it falls silent."""
        observer = Node(self.network, "O", {uid: HOSTS[uid] for uid in "ABC"})
        observer.messenger.send(("A",), Fetch(1, 2, 3))
        self.clock.advance(1)
        self.send(OTHERS, Fetch(4, 5, 6))
        self.assertEqual(observer.by_datagram, [Fetch(4, 5, 6)])
        self.clock.advance(OBSERVER_SILENT_S)
        self.send(OTHERS, Fetch(7, 8, 9))
        self.assertEqual(observer.by_datagram, [Fetch(4, 5, 6)])

    def test_observersAreBounded(self) -> None:
        """Strangers beyond the limit are not listened to; silent ones make room."""
        heard = [
            self.a.messenger.heard(sender(f"O{number}"), ("10.1.0.1", number))
            for number in range(1, OBSERVERS_MAX + 3)
        ]
        self.assertEqual(heard, [True] * OBSERVERS_MAX + [False] * 2)
        self.clock.advance(OBSERVER_SILENT_S + 1)
        self.assertTrue(self.a.messenger.heard(sender("late"), ("10.1.0.1", 1)))

    def test_strangersByLinkAreNotKnown(self) -> None:
        """Who has no address cannot be answered: a stranger that comes by link only is dropped."""
        self.assertFalse(self.a.messenger.heard(sender("X"), None))

    def test_ownVoiceIsNotHeard(self) -> None:
        """A datagram that claims to be from this very node is dropped."""
        self.assertFalse(self.a.messenger.heard(sender("A"), (HOSTS["B"], PORT)))

    def test_membersStayWhereTheyAreConfigured(self) -> None:
        """A member's address is the configured one, wherever a datagram in its name came from."""
        self.assertTrue(self.a.messenger.heard(sender("B"), ("10.6.6.6", 666)))
        self.send(("B",), Fetch(1, 2, 3))
        self.assertEqual(self.b.by_datagram, [Fetch(1, 2, 3)])


class NamesTests(SynchronousTestCase):
    """Peers given by name."""

    def test_namesAreResolvedAndResolvedAgain(self) -> None:
        """A name is looked up at the start, again while it is unknown, and followed when it moves."""
        clock = SimulatedClock()
        network = SimulatedNetwork(clock, Random(1))
        a = Node(network, "A", {"A": HOSTS["A"], "B": "b.example"})
        b = Node(network, "B", {"A": HOSTS["A"], "B": HOSTS["B"]})
        c = Node(network, "C", {"A": HOSTS["A"], "C": HOSTS["C"]})
        for host, expected in ((None, (0, 0)), (HOSTS["B"], (1, 0)), (HOSTS["C"], (1, 1))):
            if host is not None:
                network.names["b.example"] = host
            clock.advance(RESOLVE_INTERVAL_S)
            a.messenger.send(("B",), Fetch(1, 2, 3))
            clock.advance(1)
            self.assertEqual((len(b.by_datagram), len(c.by_datagram)), expected)
