"""The simulated network: clock, datagrams, streams, faults, crashes."""

from __future__ import annotations

import socket
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, clientFromString, connectProtocol
from twisted.internet.error import (
    AlreadyCalled,
    AlreadyCancelled,
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    InvalidAddressError,
    MessageLengthError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IConnector,
    IConsumer,
    IDelayedCall,
    IHostnameResolver,
    IListeningPort,
    IPushProducer,
    IReactorCore,
    IReactorFromThreads,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUDP,
    ITCPTransport,
    IUDPTransport,
)
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_paxos.testing.network import MemoryReactorUDP, SimulatedClock, SimulatedNetwork, SimulatedReactor
from twisted_paxos.testing.streams import GIVE_UP_S, WINDOW_MAX_BYTES

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Datagrams(DatagramProtocol):
    """Keeps what it receives, with the time."""

    def __init__(self, reactor: Any = None) -> None:
        self.reactor = reactor
        self.received: list[bytes] = []
        self.senders: list[tuple[str, int]] = []
        self.is_stopped = False

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.received.append(datagram)
        self.senders.append(addr)

    def stopProtocol(self) -> None:
        self.is_stopped = True


class Stream(Protocol):
    """Keeps what it receives, and why it ended."""

    def __init__(self) -> None:
        self.received = b""
        self.reason: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.reason = reason.value


class Producer:
    """Counts how often it was told to pause and to resume."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class ClockTests(SynchronousTestCase):
    """`SimulatedClock` and its calls."""

    def test_order(self) -> None:
        """Calls run in the order of their times, equal ones in the order in which they were made."""
        clock, seen = SimulatedClock(), []
        for delay_s, name in [(2, "c"), (1, "a"), (1, "b"), (5, "never")]:
            clock.callLater(delay_s, lambda name=name: seen.append((name, clock.seconds())))
        clock.advance(3)
        self.assertEqual(seen, [("a", 1), ("b", 1), ("c", 2)])
        self.assertEqual(clock.seconds(), 3)

    def test_calls_count_from_their_own_moment(self) -> None:
        """A call made by a call is due from that one's time, not from the end of the advance."""
        clock, seen = SimulatedClock(), []
        clock.callLater(1, lambda: clock.callLater(1, lambda: seen.append(clock.seconds())))
        clock.advance(10)
        self.assertEqual(seen, [2])

    def test_cancel_reset_delay(self) -> None:
        """A cancelled call does not run, a reset one only at its new time, and both say so."""
        clock, seen = SimulatedClock(), []
        cancelled = clock.callLater(1, seen.append, "cancelled")
        reset = clock.callLater(1, seen.append, "reset")
        delayed = clock.callLater(1, seen.append, "delayed")
        cancelled.cancel()
        reset.reset(2)
        delayed.delay(2)
        self.assertEqual(clock.getDelayedCalls(), [reset, delayed])
        clock.advance(1.5)
        self.assertEqual(seen, [])
        clock.advance(2)
        self.assertEqual(seen, ["reset", "delayed"])
        self.assertFalse(reset.active())
        self.assertRaises(AlreadyCalled, reset.cancel)
        self.assertRaises(AlreadyCancelled, cancelled.cancel)

    def test_exception_comes_out(self) -> None:
        """An exception of a call ends the advance, and the next advance goes on behind it."""
        clock, seen = SimulatedClock(), []
        clock.callLater(1, lambda: 1 // 0)
        clock.callLater(2, seen.append, "next")
        self.assertRaises(ZeroDivisionError, clock.advance, 5)
        clock.advance(5)
        self.assertEqual(seen, ["next"])

    def test_endless_loop(self) -> None:
        """Calls that schedule each other without a delay are noticed."""
        clock = SimulatedClock()

        def again() -> None:
            clock.callLater(0, again)

        again()
        self.patch(__import__("twisted_paxos.testing.clock", fromlist=["_"]), "SAME_MOMENT_MAX_EVENTS", 100)
        self.assertRaises(RuntimeError, clock.advance, 1)

    def test_run_until(self) -> None:
        """It stops right at the event that made the condition true, or at the timeout."""
        clock, seen = SimulatedClock(), []
        clock.callLater(1, seen.append, 1)
        self.assertTrue(clock.run_until(lambda: bool(seen), 5))
        self.assertEqual(clock.seconds(), 1)
        self.assertFalse(clock.run_until(lambda: len(seen) > 1, 5))
        self.assertEqual(clock.seconds(), 6)

    def test_past(self) -> None:
        """A negative delay is refused."""
        self.assertRaises(ValueError, SimulatedClock().callLater, -1, lambda: None)


class NetworkCase(SynchronousTestCase):
    """Three hosts with a datagram protocol each."""

    def setUp(self) -> None:
        self.clock = SimulatedClock()
        self.network = SimulatedNetwork(self.clock, Random(1))
        self.reactors = {host: self.network.reactor(host) for host in (A, B, C)}
        self.protocols = {host: self.bind(reactor) for host, reactor in self.reactors.items()}

    def bind(self, reactor: SimulatedReactor) -> Datagrams:
        protocol = Datagrams(reactor)
        reactor.listenUDP(5000, protocol, maxPacketSize=65_536)
        return protocol

    def send(self, data: bytes, source: str = A, destination: str = B) -> None:
        self.protocols[source].transport.write(data, (destination, 5000))

    def received(self, host: str = B) -> list[bytes]:
        self.clock.advance(1)
        return self.protocols[host].received


class DatagramTests(NetworkCase):
    """UDP without and with faults."""

    def test_arrives(self) -> None:
        """A datagram arrives once, unchanged, with its sender's address, and later than it was sent."""
        self.send(b"hello")
        self.assertEqual(self.protocols[B].received, [])
        self.assertEqual(self.received(), [b"hello"])
        self.assertEqual(self.protocols[B].senders, [(A, 5000)])

    def test_no_port(self) -> None:
        """What is sent to a port that nobody has bound is counted and gone."""
        self.protocols[A].transport.write(b"x", (B, 6000))
        self.protocols[A].transport.write(b"x", ("10.0.0.99", 5000))
        self.assertEqual(self.received(), [])
        self.assertEqual(self.network.unreachable, 2)

    def test_loopback(self) -> None:
        """127.0.0.1 is the sender itself."""
        self.send(b"x", A, "127.0.0.1")
        self.assertEqual(self.received(A), [b"x"])
        self.assertEqual(self.protocols[A].senders, [("127.0.0.1", 5000)])

    def test_bad_writes(self) -> None:
        """Names and datagrams over UDP's limit are refused as Twisted refuses them."""
        self.assertRaises(InvalidAddressError, self.send, b"x", A, "host.example")
        self.assertRaises(MessageLengthError, self.send, bytes(65_508))

    def test_loss_is_directional(self) -> None:
        """A link that loses everything one way still carries the other way."""
        self.network.link(A, B).set(loss=1.0)
        self.send(b"lost")
        self.send(b"back", B, A)
        self.assertEqual(self.received(), [])
        self.assertEqual(self.received(A), [b"back"])
        self.assertEqual(self.network.link(A, B).dropped, {"loss": 1})

    def test_some_loss(self) -> None:
        """Half the datagrams get lost at a loss of a half."""
        self.network.faults(loss=0.5)
        for _ in range(1000):
            self.send(b"x")
        self.assertTrue(400 < len(self.received()) < 600)

    def test_duplicate(self) -> None:
        """Each arrives twice."""
        self.network.faults(duplicate=1.0)
        self.send(b"x")
        self.assertEqual(self.received(), [b"x", b"x"])

    def test_order(self) -> None:
        """Whatever the delays, nothing overtakes unless reordering is on; then something does."""
        self.network.faults(delay_min_s=0.0, delay_max_s=0.1)
        sent = [b"%d" % number for number in range(50)]
        for data in sent:
            self.send(data)
        self.assertEqual(self.received(), sent)
        self.network.faults(reorder=0.3)
        for data in sent:
            self.send(data)
        again = self.received()[50:]
        self.assertNotEqual(again, sent)
        self.assertEqual(sorted(again), sorted(sent))

    def test_corrupt(self) -> None:
        """Exactly one bit is flipped."""
        self.network.faults(corrupt=1.0)
        self.send(bytes(100))
        (data,) = self.received()
        self.assertEqual(sum(byte.bit_count() for byte in data), 1)

    def test_replay(self) -> None:
        """Datagrams from long ago arrive again, with the address that they came from."""
        self.network.faults(replay=1.0)
        self.send(b"old")
        self.clock.advance(100)
        self.send(b"new")
        self.assertEqual(sorted(self.received()), [b"new", b"old", b"old"])
        self.assertEqual(set(self.protocols[B].senders), {(A, 5000)})

    def test_replay_history_is_bounded_and_keeps_old_ones(self) -> None:
        """Of many datagrams a bounded sample is kept, and early ones are still in it."""
        self.network.faults(replay=1e-9)
        for number in range(1000):
            self.send(b"%d" % number)
        history = [int(data) for data, _, _ in self.network.link(A, B)._history]
        self.assertEqual(len(history), 256)
        self.assertTrue(min(history) < 200)
        self.assertTrue(max(history) > 800)

    def test_size_limit(self) -> None:
        """A datagram over the link's limit vanishes without an error."""
        self.network.link(A, B).set(datagram_max_bytes=1400)
        self.send(bytes(1400))
        self.send(bytes(1401))
        self.assertEqual(self.received(), [bytes(1400)])
        self.assertEqual(self.network.link(A, B).dropped, {"oversize": 1})

    def test_max_packet_size(self) -> None:
        """A port reads no more of a datagram than it was told to."""
        short = Datagrams()
        self.reactors[B].listenUDP(6000, short, maxPacketSize=10)
        self.protocols[A].transport.write(bytes(100), (B, 6000))
        self.clock.advance(1)
        self.assertEqual(short.received, [bytes(10)])

    def test_cut_and_heal(self) -> None:
        """A cut one way stops that way only; healing brings it back."""
        self.network.cut(A, B, both=False)
        self.send(b"1")
        self.send(b"2", B, A)
        self.assertEqual((self.received(B), self.received(A)), ([], [b"2"]))
        self.network.heal(A, B)
        self.send(b"3")
        self.assertEqual(self.received(B), [b"3"])

    def test_partition(self) -> None:
        """Groups cannot reach each other; the next partition heals what it does not cut."""
        self.network.partition([A], [B, C])
        self.send(b"1")
        self.send(b"2", C, B)
        self.network.partition([A, B], [C])
        self.send(b"3")
        self.send(b"4", C, B)
        self.assertEqual(self.received(), [b"2", b"3"])

    def test_isolate(self) -> None:
        """An isolated host reaches nobody until all is healed."""
        self.network.isolate(A)
        self.send(b"1", A, B)
        self.send(b"2", B, A)
        self.send(b"3", C, B)
        self.network.heal_all()
        self.send(b"4", A, B)
        self.assertEqual((sorted(self.received(B)), self.received(A)), ([b"3", b"4"], []))

    def test_faults_hold_for_new_links(self) -> None:
        """Faults set for all links hold for those used first afterwards, but not within a host."""
        network = SimulatedNetwork(SimulatedClock(), Random(0))
        network.faults(loss=1.0)
        self.assertEqual((network.link(A, B).loss, network.link(A, A).loss), (1.0, 0.0))
        self.assertRaises(TypeError, network.faults, los=1.0)
        self.assertRaises(TypeError, network.link(A, B).set, sent=3)

    def test_bind_errors(self) -> None:
        """A taken port and another host's interface cannot be bound; a stopped port can be again."""
        reactor = self.reactors[A]
        self.assertRaises(CannotListenError, reactor.listenUDP, 5000, Datagrams())
        self.assertRaises(CannotListenError, reactor.listenUDP, 5001, Datagrams(), interface=B)
        self.successResultOf(self.stop_port(self.protocols[A]))
        self.assertTrue(self.protocols[A].is_stopped)
        reactor.listenUDP(5000, Datagrams(), interface=A)
        self.assertNotEqual(
            reactor.listenUDP(0, Datagrams()).getHost().port, reactor.listenUDP(0, Datagrams()).getHost().port
        )

    def stop_port(self, protocol: Datagrams) -> Deferred[None]:
        stopped = protocol.transport.stopListening()
        self.clock.advance(0)
        return stopped

    def test_trace(self) -> None:
        """Every datagram is shown to the trace, lost ones too."""
        seen: list[Any] = []
        self.network.trace = lambda *args: seen.append(args)
        self.network.cut(A, B)
        self.send(b"x")
        self.assertEqual(seen, [(0.0, A, B, b"x")])


class ProcessTests(NetworkCase):
    """Crash, pause, clocks, shutdown."""

    def test_crash(self) -> None:
        """After a crash no timer and no datagram reaches the process, and what it still does is void."""
        seen: list[str] = []
        self.reactors[B].callLater(1, seen.append, "timer")
        self.reactors[B].callFromThread(seen.append, "thread")
        self.send(b"x")
        self.reactors[B].crash()
        self.reactors[B].callLater(0, seen.append, "later")
        self.send(b"ghost", B, A)
        self.assertEqual((self.received(B), self.received(A), seen), ([], [], []))
        self.assertFalse(self.protocols[B].is_stopped)
        self.assertEqual(self.reactors[B].getDelayedCalls(), [])

    def test_restart(self) -> None:
        """A crashed host's next process binds the same port and gets what is still on its way."""
        self.assertRaises(ValueError, self.network.reactor, B)
        self.send(b"x")
        self.reactors[B].crash()
        self.protocols[B] = self.bind(self.network.reactor(B))
        self.assertEqual(self.received(B), [b"x"])

    def test_pause(self) -> None:
        """A paused process runs nothing; timers and datagrams come when it is resumed."""
        seen: list[float] = []
        self.reactors[B].callLater(0.5, lambda: seen.append(self.clock.seconds()))
        self.reactors[B].pause()
        self.send(b"x")
        self.assertEqual((self.received(B), seen), ([], []))
        self.reactors[B].resume()
        self.clock.advance(0)
        self.assertEqual((self.protocols[B].received, seen), ([b"x"], [1.0]))

    def test_pause_overflow(self) -> None:
        """What the receive buffer does not hold is lost; SO_RCVBUF makes it larger, up to a limit."""
        self.reactors[B].pause()
        for _ in range(10):
            self.send(bytes(45_000))
        self.clock.advance(1)
        self.reactors[B].resume()
        self.assertEqual(len(self.received(B)), 4)
        sock = self.protocols[B].transport.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100 << 20)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), 425_984)

    def test_cancelled_while_paused(self) -> None:
        """Of two timers that fell due during a pause, the first may cancel the second."""
        seen: list[str] = []
        reactor = self.reactors[A]
        second = reactor.callLater(0.2, seen.append, "second")
        reactor.callLater(0.1, second.cancel)
        reactor.pause()
        self.clock.advance(1)
        reactor.resume()
        self.clock.advance(1)
        self.assertEqual(seen, [])

    def test_clock_offset_and_rate(self) -> None:
        """A host's clock may be off and too fast; delays are counted on it and never come early."""
        self.reactors[A].crash()
        reactor = self.network.reactor(A, offset_s=1000.0, rate=1.1)
        seen: list[tuple[float, float]] = []
        due_s = reactor.seconds() + 11
        reactor.callLater(11, lambda: seen.append((reactor.seconds(), self.clock.seconds())))
        self.clock.advance(20)
        ((own_s, world_s),) = seen
        self.assertTrue(due_s < own_s < due_s + 2e-6)
        self.assertAlmostEqual(world_s, 10.0, 5)

    def test_looping_call(self) -> None:
        """Twisted's LoopingCall runs on a host's clock, as often as that clock says."""
        self.reactors[A].crash()
        reactor = self.network.reactor(A, offset_s=0.3, rate=0.7)
        ticks: list[None] = []
        loop = LoopingCall(ticks.append, None)
        loop.clock = reactor
        loop.start(0.1)
        self.clock.advance(10.01)
        self.assertEqual(len(ticks), 71)

    def test_stop(self) -> None:
        """Stopping runs the triggers in their phases, waits for those before, then ends the process."""
        reactor, seen, wait = self.reactors[A], [], Deferred()
        reactor.addSystemEventTrigger("after", "shutdown", seen.append, "after")
        reactor.addSystemEventTrigger("before", "shutdown", lambda: wait)
        gone = reactor.addSystemEventTrigger("before", "shutdown", seen.append, "removed")
        reactor.removeSystemEventTrigger(gone)
        reactor.addSystemEventTrigger("during", "shutdown", seen.append, "during")
        reactor.callWhenRunning(seen.append, "running")
        reactor.stop()
        self.assertEqual((seen, reactor.is_dead), (["running"], False))
        wait.callback(None)
        self.assertEqual((seen, reactor.is_dead), (["running", "during", "after"], True))

    def test_resolve(self) -> None:
        """Names of the network and addresses resolve, others fail."""
        self.network.names["b.example"] = B
        reactor = self.reactors[A]
        self.assertEqual(self.successResultOf(reactor.resolve("b.example")), B)
        self.assertEqual(self.successResultOf(reactor.resolve(C)), C)
        self.failureResultOf(reactor.resolve("nobody.example"), DNSLookupError)

    def test_interfaces(self) -> None:
        """Everything provides what it says."""
        reactor = self.reactors[A]
        for interface in (
            IReactorTime,
            IReactorUDP,
            IReactorTCP,
            IReactorCore,
            IReactorFromThreads,
            IReactorPluggableNameResolver,
        ):
            verifyObject(interface, reactor)
        verifyObject(IUDPTransport, self.protocols[A].transport)
        verifyObject(IListeningPort, self.protocols[A].transport)
        verifyObject(IListeningPort, reactor.listenTCP(1, Factory()))
        verifyObject(IDelayedCall, reactor.callLater(1, lambda: None))
        verifyObject(IReactorTime, self.clock)
        verifyObject(IHostnameResolver, reactor.nameResolver)
        verifyObject(IConnector, reactor.connectTCP(B, 1, ClientFactory()))


class StreamCase(SynchronousTestCase):
    """A server on B, and a client on A."""

    def setUp(self) -> None:
        self.clock = SimulatedClock()
        self.network = SimulatedNetwork(self.clock, Random(1))
        self.client_reactor = self.network.reactor(A)
        self.server_reactor = self.network.reactor(B)
        self.servers: list[Stream] = []
        self.listen(self.server_reactor)

    def listen(self, reactor: SimulatedReactor) -> None:
        def build(address: Any) -> Stream:
            self.servers.append(Stream())
            return self.servers[-1]

        factory = Factory()
        factory.buildProtocol = build
        self.port = self.successResultOf(TCP4ServerEndpoint(reactor, 5000, interface=B).listen(factory))

    def connecting(self, endpoint: str = f"tcp:{B}:5000") -> Deferred[Stream]:
        return connectProtocol(clientFromString(self.client_reactor, endpoint), Stream())

    def connect(self) -> tuple[Stream, Stream]:
        connecting = self.connecting()
        self.clock.advance(0.1)
        return self.successResultOf(connecting), self.servers[-1]


class StreamTests(StreamCase):
    """TCP without and with faults."""

    def test_both_ways(self) -> None:
        """Twisted's endpoints connect, and bytes arrive in order, both ways."""
        client, server = self.connect()
        client.transport.write(b"he")
        client.transport.writeSequence([b"l", b"lo"])
        server.transport.write(b"world")
        self.clock.advance(0.1)
        self.assertEqual((server.received, client.received), (b"hello", b"world"))
        self.assertEqual(client.transport.getPeer().host, B)
        self.assertEqual(server.transport.getPeer().host, A)
        verifyObject(ITCPTransport, client.transport)
        verifyObject(IConsumer, client.transport)
        verifyObject(IPushProducer, client.transport)

    def test_name(self) -> None:
        """A client may connect to a name; an unknown one fails."""
        self.network.names["b.example"] = B
        known, unknown = self.connecting("tcp:b.example:5000"), self.connecting("tcp:c.example:5000")
        self.clock.advance(0.1)
        self.successResultOf(known)
        self.failureResultOf(unknown, DNSLookupError)

    def test_large(self) -> None:
        """More than the window passes, whole and in order."""
        client, server = self.connect()
        data = Random(0).randbytes(3 * WINDOW_MAX_BYTES + 17)
        client.transport.write(data)
        self.clock.advance(1)
        self.assertEqual(server.received, data)

    def test_loss_delays(self) -> None:
        """A lossy link delays a stream, and loses nothing of it."""
        client, server = self.connect()
        self.network.faults(loss=0.3)
        data = Random(0).randbytes(300_000)
        client.transport.write(data)
        self.clock.advance(0.1)
        self.assertTrue(len(server.received) < len(data))
        self.clock.advance(100)
        self.assertEqual(server.received, data)

    def test_close(self) -> None:
        """loseConnection sends what is written first; both ends see a clean end."""
        client, server = self.connect()
        client.transport.write(bytes(1_000_000))
        client.transport.loseConnection()
        self.assertTrue(client.transport.disconnecting)
        self.clock.advance(1)
        self.assertEqual(len(server.received), 1_000_000)
        self.assertIsInstance(client.reason, ConnectionDone)
        self.assertIsInstance(server.reason, ConnectionDone)

    def test_abort(self) -> None:
        """abortConnection throws away what is written, and the peer sees a reset."""
        client, server = self.connect()
        client.transport.write(b"x")
        client.transport.abortConnection()
        self.clock.advance(1)
        self.assertEqual(server.received, b"")
        self.assertIsInstance(client.reason, ConnectionAborted)
        self.assertIsInstance(server.reason, ConnectionLost)

    def test_refused(self) -> None:
        """Where nobody listens, or no longer, a connection is refused at once."""
        first = self.connecting(f"tcp:{B}:6000")
        stopped = self.port.stopListening()
        second = self.connecting()
        self.clock.advance(0.1)
        self.failureResultOf(first, ConnectionRefusedError)
        self.failureResultOf(second, ConnectionRefusedError)
        self.successResultOf(stopped)

    def test_timeout(self) -> None:
        """Behind a cut, and to a host that is not there, a connection times out."""
        self.network.cut(A, B)
        first, second = self.connecting(), self.connecting("tcp:10.9.9.9:5000")
        self.clock.advance(29)
        self.assertNoResult(first)
        self.clock.advance(2)
        self.failureResultOf(first, TimeoutError)
        self.failureResultOf(second, TimeoutError)

    def test_connects_after_healing(self) -> None:
        """An attempt behind a cut succeeds when the cut heals in time, and only once."""
        self.network.cut(A, B)
        connecting = self.connecting()
        self.clock.advance(2)
        self.network.heal(A, B)
        self.clock.advance(5)
        self.successResultOf(connecting)
        self.assertEqual(len(self.servers), 1)

    def test_cancel(self) -> None:
        """A cancelled attempt leaves no connection behind."""
        connecting = self.connecting()
        connecting.cancel()
        self.failureResultOf(connecting)
        self.clock.advance(1)
        self.assertEqual(self.client_reactor.connections + self.server_reactor.connections, [])

    def test_half_dead(self) -> None:
        """Behind a cut neither end notices anything; after healing the bytes arrive, late."""
        client, server = self.connect()
        self.network.cut(A, B)
        client.transport.write(b"late")
        self.clock.advance(10)
        self.assertEqual((server.received, client.reason, server.reason), (b"", None, None))
        self.network.heal(A, B)
        self.clock.advance(10)
        self.assertEqual(server.received, b"late")

    def test_gives_up(self) -> None:
        """A cut that lasts ends the connection of the one that sends."""
        client, server = self.connect()
        self.network.cut(A, B)
        client.transport.write(b"x")
        self.clock.advance(GIVE_UP_S + 10)
        self.assertIsInstance(client.reason, TCPTimedOutError)
        self.assertIsNone(server.reason)

    def test_one_way_cut_fills_the_window(self) -> None:
        """Without a way back for acknowledgements no more than the window arrives."""
        client, server = self.connect()
        self.network.cut(B, A, both=False)
        client.transport.write(bytes(2 * WINDOW_MAX_BYTES))
        self.clock.advance(5)
        self.assertEqual(len(server.received), WINDOW_MAX_BYTES)
        self.network.heal_all()
        self.clock.advance(5)
        self.assertEqual(len(server.received), 2 * WINDOW_MAX_BYTES)

    def test_peer_killed(self) -> None:
        """When a process is killed its kernel closes its streams; it hears nothing of that itself."""
        client, server = self.connect()
        self.server_reactor.crash()
        self.clock.advance(1)
        self.assertIsInstance(client.reason, ConnectionDone)
        self.assertIsNone(server.reason)

    def test_peer_without_power(self) -> None:
        """After a loss of power the peer notices nothing until the host is back, then it is reset."""
        client, _ = self.connect()
        self.server_reactor.crash(power_loss=True)
        client.transport.write(b"x")
        self.clock.advance(5)
        self.assertIsNone(client.reason)
        self.network.reactor(B)
        self.clock.advance(10)
        self.assertIsInstance(client.reason, ConnectionLost)

    def test_paused_server(self) -> None:
        """A paused process' kernel accepts connections and a window of bytes; the process sees them later."""
        self.server_reactor.pause()
        connecting = self.connecting()
        self.clock.advance(0.1)
        client = self.successResultOf(connecting)
        client.transport.write(bytes(2 * WINDOW_MAX_BYTES))
        self.clock.advance(1)
        self.assertEqual(self.servers, [])
        self.server_reactor.resume()
        self.clock.advance(1)
        self.assertEqual(len(self.servers[0].received), 2 * WINDOW_MAX_BYTES)

    def test_producer(self) -> None:
        """A reader that pauses makes the writer's producer pause; reading on resumes it."""
        client, server = self.connect()
        producer = Producer()
        client.transport.registerProducer(producer, True)
        server.transport.pauseProducing()
        client.transport.write(bytes(WINDOW_MAX_BYTES))
        self.clock.advance(1)
        client.transport.write(bytes(100_000))
        self.clock.advance(1)
        self.assertEqual((producer.calls[-1], server.received), ("pause", b""))
        server.transport.resumeProducing()
        self.clock.advance(1)
        self.assertEqual((producer.calls[-1], len(server.received)), ("resume", WINDOW_MAX_BYTES + 100_000))

    def test_pull_producer(self) -> None:
        """A pull producer is asked each time that everything was sent; closing waits until it is done."""
        client, server = self.connect()
        pieces = [b"a", b"b", b"c"]

        class Pull:
            def resumeProducing(self) -> None:
                client.transport.write(pieces.pop(0))
                if not pieces:
                    client.transport.unregisterProducer()

            def stopProducing(self) -> None:
                raise AssertionError("it was done")

        client.transport.registerProducer(Pull(), False)
        client.transport.loseConnection()
        self.clock.advance(1)
        self.assertEqual((server.received, type(server.reason)), (b"abc", ConnectionDone))

    def test_write_wants_bytes(self) -> None:
        """Text is refused, as by Twisted."""
        client, _ = self.connect()
        self.assertRaises(TypeError, client.transport.write, "text")


class DeterminismTests(SynchronousTestCase):
    """One seed, one run."""

    def run_once(self, seed: int) -> list[Any]:
        """A noisy run of three hosts that answer each other; returns all that happened."""
        clock = SimulatedClock()
        network = SimulatedNetwork(clock, Random(seed))
        network.faults(loss=0.1, duplicate=0.1, reorder=0.3, corrupt=0.05, replay=0.1, delay_max_s=0.01)
        seen: list[Any] = []

        class Gossip(DatagramProtocol):
            def __init__(self, reactor: SimulatedReactor) -> None:
                self.reactor = reactor

            def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
                seen.append((clock.seconds(), self.reactor.host, addr, datagram))
                if len(datagram) < 12:
                    for host in (A, B, C):
                        self.transport.write(datagram + b"!", (host, 5000))

        for host in (A, B, C):
            reactor = network.reactor(host)
            reactor.listenUDP(5000, protocol := Gossip(reactor))
            reactor.callLater(0.01, protocol.transport.write, host.encode(), (B, 5000))
        clock.advance(0.5)
        return seen

    def test_same_seed(self) -> None:
        """Two runs with one seed are equal in every event and time; another seed gives another run."""
        first = self.run_once(5)
        self.assertTrue(len(first) > 100)
        self.assertEqual(first, self.run_once(5))
        self.assertNotEqual(first, self.run_once(6))


class MemoryReactorTests(SynchronousTestCase):
    """`MemoryReactorUDP`."""

    def test_udp(self) -> None:
        """A bound protocol's writes are kept; a port is taken until it is stopped."""
        reactor, protocol = MemoryReactorUDP(), Datagrams()
        port = reactor.listenUDP(5000, protocol, "127.0.0.1")
        protocol.transport.write(b"x", ("127.0.0.1", 5001))
        self.assertEqual(reactor.udp_ports[5000].written, [(b"x", ("127.0.0.1", 5001))])
        self.assertRaises(CannotListenError, reactor.listenUDP, 5000, Datagrams())
        self.assertRaises(InvalidAddressError, protocol.transport.write, b"x", ("name", 1))
        self.successResultOf(port.stopListening())
        self.assertTrue(protocol.is_stopped)
        reactor.listenUDP(5000, Datagrams())

    def test_interfaces(self) -> None:
        """It is a UDP, TCP and time reactor; its ports are UDP transports."""
        reactor = MemoryReactorUDP()
        for interface in (IReactorUDP, IReactorTCP, IReactorTime):
            verifyObject(interface, reactor)
        verifyObject(IUDPTransport, reactor.listenUDP(0, Datagrams()))
