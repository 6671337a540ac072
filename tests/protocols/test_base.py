"""`protocols.base` and the role protocols: bytes in, effects performed; each role alone on a port."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from random import Random
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.udp import Port
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import MEMBERS, ballot, command, sender, steady
from twisted_paxos.addresses import Address
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accept, Accepted, Fetch, Prepare, Sender, decode_value
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.protocols.acceptor import AcceptorProtocol
from twisted_paxos.protocols.base import (
    REPORT_INTERVAL_S,
    TURN_BYTES,
    NodeProtocol,
    Receiver,
    RoleProtocol,
)
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.protocols.learner import LearnerProtocol
from twisted_paxos.protocols.messenger import SocketMessenger
from twisted_paxos.protocols.proposer import MemberProtocol, ProposerProtocol
from twisted_paxos.protocols.turn import Turn
from twisted_paxos.storage.memory import MemoryStorage
from twisted_paxos.testing.network import SimulatedClock, SimulatedNetwork
from twisted_paxos.wire.peer import PeerCodec

CODEC = PeerCodec("cluster")
SOURCE = ("10.0.0.9", 5000)


class RecordingRole:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.heard: list[tuple[Sender, Any, float]] = []

    def receive(self, sender: Sender, message: Any, now_s: float) -> Effects:
        """Ask for one message to be sent."""
        self.heard.append((sender, message, now_s))
        return Effects(sends=[Send((sender.uid,), message)])


class ReceiverCase(SynchronousTestCase):
    """A receiver with a clock, and the warnings that it logs."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.receiver = Receiver(CODEC, self.clock)
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def warnings(self) -> int:
        """How many lines were logged."""
        return sum(event.get("log_namespace") == "twisted_paxos.protocols.base" for event in self.events)


class ReceiverTests(ReceiverCase):
    """`Receiver`."""

    def test_decodes(self) -> None:
        """A message of ours comes out, and is counted by type."""
        envelope = self.receiver.decode(CODEC.encode(sender("B"), Fetch(1, 2, 3)), SOURCE)
        assert envelope is not None
        self.assertEqual((envelope.sender, envelope.message), (sender("B"), Fetch(1, 2, 3)))
        self.assertEqual((self.receiver.received, self.receiver.dropped), ({"Fetch": 1}, {}))

    def test_malformedIsCountedByReason(self) -> None:
        """What is no message is dropped, counted under a fixed word, and never raises."""
        foreign = PeerCodec("other").encode(sender("B"), Fetch(1, 2, 3))
        for data in (b"", b"\x02" + b"x" * 20, b"\x01c" + b"x" * 20, foreign, foreign):
            self.assertIsNone(self.receiver.decode(data, SOURCE))
        self.assertEqual(
            self.receiver.dropped, {"short": 1, "version": 1, "bad_tag": 1, "foreign_cluster": 2}
        )

    def test_logsAtALimitedRate(self) -> None:
        """Ten thousand bad datagrams make one line, and one more after the interval."""
        for _ in range(10_000):
            self.receiver.decode(b"", SOURCE)
        self.assertEqual(self.warnings(), 1)
        self.clock.advance(REPORT_INTERVAL_S)
        self.receiver.decode(b"", SOURCE)
        self.assertEqual(self.warnings(), 2)

    def test_reasonsAreFew(self) -> None:
        """Random bytes do not make the table of reasons grow."""
        random = Random(1)
        for _ in range(2_000):
            self.receiver.decode(random.randbytes(random.randrange(80)), SOURCE)
        self.assertLessEqual(set(self.receiver.dropped), {"short", "version", "bad_tag", "malformed"})


class RoleProtocolTests(ReceiverCase):
    """`RoleProtocol` and `NodeProtocol`."""

    def protocol(self, kind: type[RoleProtocol]) -> tuple[RoleProtocol, RecordingRole, list[Effects]]:
        """A role protocol, its role, and what it has performed."""
        role = RecordingRole()
        performed: list[Effects] = []
        return kind(role, self.receiver, performed.append, self.clock), role, performed

    def test_handsMessagesToItsRole(self) -> None:
        """The role gets sender, message and time; what it asks for is performed."""
        protocol, role, performed = self.protocol(AcceptorProtocol)
        self.clock.advance(5)
        prepare = Prepare(ballot("1.B"), 1)
        protocol.datagramReceived(CODEC.encode(sender("B"), prepare), SOURCE)
        self.assertEqual(role.heard, [(sender("B"), prepare, 5)])
        self.assertEqual(performed[0].sends[0].message, prepare)

    def test_messagesForOthersAreDropped(self) -> None:
        """An acceptor alone on a port takes no Accepted."""
        protocol, role, _ = self.protocol(AcceptorProtocol)
        protocol.datagramReceived(CODEC.encode(sender("B"), Accepted(ballot("1.B"), (1,))), SOURCE)
        self.assertEqual((role.heard, self.receiver.dropped), ([], {"not_for_this_role": 1}))

    def test_oneRoleTakesEachType(self) -> None:
        """The roles of a node share out the messages, without overlap."""
        kinds = [AcceptorProtocol, ProposerProtocol, LearnerProtocol, MemberProtocol]
        taken = [kind for protocol in kinds for kind in protocol.takes]
        self.assertEqual(len(taken), len(set(taken)))
        twice = [self.protocol(AcceptorProtocol)[0] for _ in range(2)]
        self.assertRaises(
            AssertionError,
            NodeProtocol,
            twice,
            self.receiver,
            lambda *_: True,
            lambda transport: None,
            nullcontext(),
        )

    def test_nodePortDecodesOnceAndDispatches(self) -> None:
        """On a node's one port, each message reaches the role that takes its type."""
        acceptor, accepting, _ = self.protocol(AcceptorProtocol)
        learner, learning, _ = self.protocol(LearnerProtocol)
        node = NodeProtocol(
            [acceptor, learner], self.receiver, lambda *_: True, lambda transport: None, nullcontext()
        )
        for message in (Prepare(ballot("1.B"), 1), Accepted(ballot("1.B"), (1,))):
            node.datagramReceived(CODEC.encode(sender("B"), message), SOURCE)
        self.assertEqual((len(accepting.heard), len(learning.heard)), (1, 1))
        self.assertEqual(self.receiver.received, {"Prepare": 1, "Accepted": 1})

    def test_unknownSendersAreDropped(self) -> None:
        """Whom the messenger does not know is not listened to, and counted."""
        acceptor, role, _ = self.protocol(AcceptorProtocol)
        node = NodeProtocol(
            [acceptor], self.receiver, lambda *_: False, lambda transport: None, nullcontext()
        )
        node.datagramReceived(CODEC.encode(sender("X"), Prepare(ballot("1.X"), 1)), SOURCE)
        self.assertEqual((role.heard, self.receiver.dropped), ([], {"unknown_sender": 1}))


class TurnsTests(ReceiverCase):
    """`NodeProtocol`: what a datagram asks for leaves before the port looks for another."""

    def setUp(self) -> None:
        super().setUp()
        self.role = RecordingRole()
        self.ends: list[int] = []
        self.turn = Turn(self.clock, lambda: self.ends.append(len(self.role.heard)), lambda: None)
        self.node = NodeProtocol(
            [LearnerProtocol(self.role, self.receiver, lambda effects: self.turn.plan(), self.clock)],
            self.receiver,
            lambda *_: True,
            lambda transport: None,
            self.turn,
        )

    def test_eachDatagramIsATurn(self) -> None:
        """Its turn has ended when the port gets control back: nothing is planned for later."""
        for number in (1, 2, 3):
            self.node.datagramReceived(CODEC.encode(sender("B"), Fetch(number, 1, 1)), SOURCE)
        self.assertEqual((self.ends, self.clock.getDelayedCalls()), ([1, 2, 3], []))

    def test_floodLeavesOthersTheirTurn(self) -> None:
        """A port of the system reads a small part of its buffer, then others get their turn."""
        port = Port(0, self.node)
        port.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(port.socket.close)
        self.node.makeConnection(port)
        self.assertEqual(port.maxThroughput, TURN_BYTES)

    def test_whatIsNoMessageEndsNothing(self) -> None:
        """What is dropped begins no turn."""
        self.node.datagramReceived(b"nonsense", SOURCE)
        self.assertEqual((self.ends, self.clock.getDelayedCalls()), ([], []))


class Host:
    """One simulated host with one role on its port, and a performer of its own."""

    def __init__(
        self, network: SimulatedNetwork, uid: str, hosts: dict[str, Address], chosen: list[Any]
    ) -> None:
        reactor = network.reactor(hosts[uid].host)
        self.reactor = reactor
        codec = PeerCodec("alone")
        me = sender(uid)
        peers = {name: address for name, address in hosts.items() if name != uid}
        self.messenger = SocketMessenger(reactor, codec, me, peers, lambda ip: 1_400, steady)
        storage = MemoryStorage(uid, reactor)
        storage.recover(me.incarnation, "alone")
        self.turn = Turn(reactor, lambda: self.performer.write_now(), lambda: self.performer.apply_now())
        self.performer = EffectPerformer(
            uid,
            reactor,
            storage,
            self.messenger,
            lambda message: Effects(),
            chosen.extend,
            lambda readable: None,
            lambda uid: None,
            lambda: (0, 1),
            lambda reason: None,
            lambda reason: None,
            0,
            self.turn,
        )
        self.receiver = Receiver(codec, reactor)

    def listen(self, kind: type[RoleProtocol], role: Any, port: int) -> None:
        """Put the role on the port."""
        protocol = kind(role, self.receiver, self.performer.perform, self.reactor, self.messenger.attach)
        self.reactor.listenUDP(port, protocol)

    def listen_both(self, proposer: Proposer, learner: Learner, port: int) -> None:
        """A proposer, and the learner that the votes for it go to."""
        perform = self.performer.perform
        roles = (
            ProposerProtocol(proposer, self.receiver, perform, self.reactor),
            LearnerProtocol(learner, self.receiver, perform, self.reactor),
        )
        protocol = NodeProtocol(roles, self.receiver, self.messenger.heard, self.messenger.attach, self.turn)
        self.reactor.listenUDP(port, protocol)


class AloneTests(SynchronousTestCase):
    """The role protocols, each alone on a port of its own host."""

    def test_proposerThreeAcceptorsAndALearnerAgree(self) -> None:
        """A ProposerProtocol and three AcceptorProtocols agree on a value; two LearnerProtocols learn it."""
        clock = SimulatedClock()
        network = SimulatedNetwork(clock, Random(3))
        network.faults(loss=0.1)
        hosts = {uid: Address(f"10.0.0.{number}", 5000) for number, uid in enumerate("ABCPL", 1)}
        chosen: list[Any] = []
        membership = Membership("ABC", MEMBERS)
        learner_log = Log()
        for uid in "ABC":
            Host(network, uid, hosts, []).listen(AcceptorProtocol, Acceptor(Log()), 5000)
        host = Host(network, "L", hosts, chosen)
        host.listen(LearnerProtocol, Learner(learner_log, membership, steady), 5000)
        proposing = Host(network, "P", hosts, [])
        log = Log()
        counting = Learner(log, membership, steady)
        proposer = Proposer("P", log, membership, counting, steady)
        proposing.listen_both(proposer, counting, 5000)

        def step() -> None:
            effects = proposer.tick(clock.now_s)
            proposing.performer.perform(effects)

        proposing.performer.perform(proposer.take_over(NO_BALLOT, 0.0))
        for _ in range(50):
            clock.advance(0.05)
            step()
            if proposer.leading:
                break
        self.assertEqual(proposer.promises_received & set("ABC"), proposer.promises_received)
        self.assertGreaterEqual(len(proposer.promises_received), 2)
        proposer.enqueue([command(7)])
        proposal = proposer.advance(clock.now_s)
        accept = proposal.sends[0].message
        assert isinstance(accept, Accept)
        for its in (log, learner_log):
            its.put(1, accept.ballot, accept.value, saved=False)
        proposing.performer.perform(proposal)
        for _ in range(50):
            clock.advance(0.05)
            step()
            proposing.performer.perform(proposer.advance(clock.now_s))
        self.assertEqual([one.slot for one in chosen], [1])
        self.assertEqual(decode_value(chosen[0].value).commands, (command(7),))
