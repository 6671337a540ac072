"""The client port, frame by frame."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import NodeStopped, Overloaded, StorageDamaged, ValueTooLarge
from twisted_paxos.interfaces import INode, IResultSink
from twisted_paxos.protocols import clientport, logport
from twisted_paxos.protocols.clientport import ClientPort, ClientPortProtocol
from twisted_paxos.statemachine.commands import OPEN_SESSION, NodeStatus, Result, encode_opaque
from twisted_paxos.testing.fakenode import FakeNode
from twisted_paxos.wire.client import (
    CLIENT_VERSION,
    Failure,
    GetStatus,
    Hello,
    LogEntries,
    ReadLog,
    Request,
    Response,
    Results,
    StatusReply,
    Submit,
    decode_response,
    encode,
)

SESSION = "0123456789abcdef"


def frame(content: bytes) -> bytes:
    """``content`` with its length before it."""
    return struct.pack("!I", len(content)) + content


def commands(*sequences: int, client: str = SESSION) -> tuple[Command, ...]:
    """Commands of a session, with their sequence number as value; 0 opens the session."""
    return tuple(
        Command(client, sequence, 0, encode_opaque(str(sequence)) if sequence else OPEN_SESSION)
        for sequence in sequences
    )


class ClientPortCase(SynchronousTestCase):
    """A port with a fake node, and one client that has said Hello."""

    def setUp(self) -> None:
        """Connect the client."""
        self.clock = Clock()
        self.node = FakeNode()
        self.port = ClientPort(self.node, self.clock, "fingerprint", connections_max=2)
        self.protocol, self.transport = self.connect()
        self.say(Hello())
        self.answers()

    def connect(self) -> tuple[ClientPortProtocol, StringTransport]:
        """One more connection."""
        protocol: Any = self.port.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def say(self, *requests: Request) -> None:
        """The client sends ``requests`` in one segment."""
        self.protocol.dataReceived(b"".join(frame(encode(request)) for request in requests))

    def frames(self, transport: StringTransport | None = None) -> list[Response]:
        """What was written since the last call, without waiting for the turn's end."""
        transport = transport or self.transport
        data = transport.value()
        transport.clear()
        found = []
        while data:
            (length,) = struct.unpack("!I", data[:4])
            found.append(decode_response(data[4 : 4 + length]))
            data = data[4 + length :]
        return found

    def answers(self) -> list[Response]:
        """What is written until nothing more comes without time passing."""
        found = self.frames()
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)
            found += self.frames()
        return found


class ConnectionTests(ClientPortCase):
    """Hello, limits, and what is no request."""

    def test_interfaces(self) -> None:
        """The fake node and a connection provide the interfaces between which the port stands."""
        verifyObject(INode, self.node)
        verifyObject(IResultSink, self.protocol)

    def test_hello(self) -> None:
        """The node opens with its version, id and cluster."""
        _, transport = self.connect()
        self.assertEqual([Hello(CLIENT_VERSION, "A", "fingerprint")], self.frames(transport))

    def test_hello_must_come_first(self) -> None:
        """A request before Hello is refused and the connection closed."""
        self.protocol, self.transport = self.connect()
        self.frames()
        self.say(GetStatus(1))
        (answer,) = self.frames()
        self.assertEqual((0, "bad_request"), (answer.request_id, answer.code))
        self.assertTrue(self.transport.disconnecting)

    def test_silent_client(self) -> None:
        """Who says nothing is closed after the time limit, and counted."""
        _, transport = self.connect()
        self.clock.advance(clientport.HELLO_TIMEOUT_S)
        self.assertTrue(transport.disconnecting)
        self.assertEqual({"no_hello": 1}, self.port.dropped)

    def test_other_version(self) -> None:
        """A client of another version is told which one the node speaks."""
        self.protocol, self.transport = self.connect()
        self.frames()
        self.say(Hello(version=7))
        (answer,) = self.frames()
        self.assertIn("speaks 1", answer.message)
        self.assertEqual({"version": 1}, self.port.dropped)

    def test_malformed_frames(self) -> None:
        """Whatever is no request gets one Failure for the connection, is counted, and ends it."""
        contents = (b"", b"{", b"\xff", b"[]", b'{"type":"no_such"}', b'{"type":"submit"}')
        for number, content in enumerate(contents, 1):
            with self.subTest(content=content):
                self.protocol.connectionLost()
                self.protocol, self.transport = self.connect()
                self.frames()
                self.protocol.dataReceived(frame(content) * 2)
                (answer,) = self.frames()
                self.assertEqual((0, "bad_request"), (answer.request_id, answer.code))
                self.assertTrue(self.transport.disconnecting)
                self.assertEqual(number, self.port.dropped["malformed"])

    def test_oversized_frame(self) -> None:
        """A frame over the limit is refused at its length, before any of it is buffered."""
        self.protocol.dataReceived(struct.pack("!I", limits.FRAME_MAX_BYTES + 1))
        (answer,) = self.frames()
        self.assertIn("over the limit", answer.message)
        self.assertEqual({"oversized": 1}, self.port.dropped)

    def test_too_many_connections(self) -> None:
        """One connection over the limit is told so; when another ends, there is room again."""
        self.connect()
        _, refused = self.connect()
        (answer,) = self.frames(refused)
        self.assertEqual((0, "overloaded"), (answer.request_id, answer.code))
        self.assertTrue(refused.disconnecting)
        self.protocol.connectionLost()
        _, transport = self.connect()
        self.assertIsInstance(self.frames(transport)[0], Hello)

    def test_closed_connection_is_cut_in_the_end(self) -> None:
        """A closed connection whose client takes no bytes is aborted after a while."""
        self.protocol.close()
        self.assertFalse(self.transport.disconnected)
        self.clock.advance(clientport.CLOSE_TIMEOUT_S)
        self.assertTrue(self.transport.disconnected)

    def test_no_timer_survives(self) -> None:
        """A lost connection leaves no delayed call and nothing in the port."""
        self.say(Submit(1, commands(0)))
        self.protocol.connectionLost()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(set(), self.port.connections)

    def test_close_all(self) -> None:
        """A stopping node closes every connection after what was written."""
        self.port.close_all()
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)


class SubmitTests(ClientPortCase):
    """Commands and their results."""

    def test_results_that_come_together_share_a_frame(self) -> None:
        """What is applied at one time leaves at once, in one frame, with all results in order."""
        self.say(Submit(1, commands(0)), Submit(2, commands(1, 2, 3)))
        answers = self.frames()
        self.assertEqual([Results, Results], [type(answer) for answer in answers])
        self.assertEqual([[0], [1, 2, 3]], [[one.sequence for one in answer.results] for answer in answers])
        self.assertEqual([(2, 0), (2, 1), (2, 2)], [(r.slot, r.index) for r in answers[1].results])

    def test_results_of_several_submits_share_a_frame(self) -> None:
        """Three Submits, applied at one time: one Results frame with all results in order."""
        self.node.hold = True
        self.say(Submit(1, commands(0)), Submit(2, commands(1, 2)), Submit(3, commands(3)))
        self.assertEqual([], self.frames())
        places = ((0, 1, 0), (1, 2, 0), (2, 2, 1), (3, 3, 0))
        self.protocol.applied([Result(SESSION, number, slot, index) for number, slot, index in places])
        (answer,) = self.frames()
        self.assertEqual([0, 1, 2, 3], [result.sequence for result in answer.results])
        self.assertEqual([(2, 0), (2, 1)], [(r.slot, r.index) for r in answer.results[1:3]])
        self.assertEqual(0, len(self.protocol._pending))

    def test_many_results_are_split(self) -> None:
        """More results than a frame may hold leave in several."""
        self.patch(clientport, "RESULTS_PER_FRAME", 2)
        self.say(Submit(1, commands(0, 1, 2, 3, 4)))
        self.assertEqual([2, 2, 1], [len(answer.results) for answer in self.answers()])

    def test_refusals(self) -> None:
        """What the node raises becomes a Failure with its code, for that request only."""
        for error, code in (
            (Overloaded("full"), "overloaded"),
            (ValueTooLarge("big"), "value_too_large"),
            (NodeStopped("stopped"), "unavailable"),
            (StorageDamaged("bad"), "internal"),
        ):
            self.node.refuse = error
            self.say(Submit(7, commands(1)))
            self.assertEqual([Failure(7, code, str(error))], self.answers())
        self.assertFalse(self.transport.disconnecting)

    def test_unforeseen_error(self) -> None:
        """An error that nobody foresaw is logged, and told without its details."""
        self.node.refuse = ZeroDivisionError("secret")
        self.say(Submit(7, commands(1)))
        (answer,) = self.answers()
        self.assertEqual("internal", answer.code)
        self.assertNotIn("secret", answer.message)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_commands_without_client(self) -> None:
        """A command without a client id could be applied twice; it never reaches the node."""
        self.say(Submit(1, commands(1) + commands(2, client="")))
        (answer,) = self.answers()
        self.assertEqual((1, "bad_request"), (answer.request_id, answer.code))
        self.assertEqual([], self.node.submitted)

    def test_commands_in_progress(self) -> None:
        """A connection has a limit of commands in progress; results make room, repeats cost none."""
        self.patch(clientport, "COMMANDS_IN_PROGRESS_MAX", 2)
        self.node.hold = True
        self.say(Submit(1, commands(0, 1)), Submit(2, commands(1)), Submit(3, commands(2)))
        (answer,) = self.answers()
        self.assertEqual((3, "overloaded"), (answer.request_id, answer.code))
        self.node.release()
        self.answers()
        self.say(Submit(4, commands(2, 3)))
        self.assertIsInstance(self.answers()[0], Results)

    def test_refused_commands_are_not_in_progress(self) -> None:
        """A refused Submit does not count against the limit."""
        self.patch(clientport, "COMMANDS_IN_PROGRESS_MAX", 1)
        self.node.refuse = Overloaded("full")
        self.say(Submit(1, commands(1)))
        self.node.refuse = None
        self.say(Submit(2, commands(0)))
        self.assertEqual([Failure, Results], [type(answer) for answer in self.answers()])

    def test_lost_connection_forgets(self) -> None:
        """The node is told to forget a client that went away with commands in progress, once."""
        self.node.hold = True
        self.say(Submit(1, commands(0)))
        self.protocol.connectionLost()
        self.assertEqual([self.protocol], self.node.forgotten)
        self.assertEqual([], self.node.held)

    def test_late_results(self) -> None:
        """Results that come after the connection went away are dropped without a word."""
        self.protocol.connectionLost()
        self.protocol.applied([])
        self.assertEqual([], self.clock.getDelayedCalls())


class FlowTests(ClientPortCase):
    """A client that reads slowly, or not at all."""

    def test_slow_client_is_not_read(self) -> None:
        """While its answers wait, a client's requests are left where they are."""
        self.protocol.pauseProducing()
        self.assertEqual("paused", self.transport.producerState)
        self.say(GetStatus(1))
        self.assertEqual([], self.answers())
        self.protocol.resumeProducing()
        self.assertEqual(1, self.answers()[0].request_id)

    def test_client_that_never_reads(self) -> None:
        """Answers wait up to the limit; beyond it the connection is cut and counted."""
        self.patch(clientport, "BACKLOG_MAX_BYTES", 300)
        self.node.hold = True
        for number in range(8):
            self.say(Submit(number, commands(number)))
        self.protocol.pauseProducing()
        cut = []
        for submitted in self.node.held:
            self.node._apply(*submitted)
            self.clock.advance(0)
            cut.append(self.transport.disconnected)
        self.assertEqual((False, True), (cut[0], cut[-1]))
        self.assertEqual({"slow_reader": 1}, self.port.dropped)

    def test_backlog_starts_anew(self) -> None:
        """What was written in an earlier pause does not count in the next."""
        self.patch(clientport, "BACKLOG_MAX_BYTES", 150)
        self.say(Submit(1, commands(0)))
        self.answers()
        for number in range(1, 6):
            self.say(Submit(number, commands(number)))
            self.protocol.pauseProducing()
            self.clock.advance(0)
            self.protocol.resumeProducing()
        self.assertFalse(self.transport.disconnected)

    def test_log_read_stops_while_paused(self) -> None:
        """A log stream asks the node for nothing while its client does not read, then goes on."""
        self.patch(logport, "READ_CHUNK_BYTES", 1)
        for number in range(5):
            self.node._apply(commands(number), self.protocol)
        self.answers()
        self.say(ReadLog(9, 1))
        self.protocol.pauseProducing()
        reads = len(self.node.reads)
        for _ in range(3):
            self.clock.advance(0)
        self.assertEqual(reads, len(self.node.reads))
        before = self.frames()
        self.protocol.resumeProducing()
        slots = [entry.slot for answer in before + self.answers() for entry in answer.entries]
        self.assertEqual([1, 2, 3, 4, 5], slots)


class ReadLogTests(ClientPortCase):
    """Reading and following the log."""

    def setUp(self) -> None:
        """Three slots are chosen."""
        super().setUp()
        for number in range(3):
            self.node._apply(commands(number), self.protocol)
        self.answers()

    def slots(self) -> list[int]:
        """Slots of the answers that wait."""
        return [entry.slot for answer in self.answers() for entry in answer.entries]

    def test_read(self) -> None:
        """All that is chosen now, and the last frame says that it is the last."""
        self.say(ReadLog(5, 2))
        (answer,) = self.answers()
        self.assertEqual(LogEntries(5, tuple(self.node.entries[1:]), True), answer)

    def test_read_in_chunks(self) -> None:
        """A long log comes in several frames, none of the slots twice."""
        self.patch(logport, "READ_CHUNK_BYTES", 1)
        self.say(ReadLog(5, 1))
        answers = self.answers()
        self.assertEqual([1, 2, 3], [entry.slot for answer in answers for entry in answer.entries])
        self.assertEqual([False, False, True], [answer.last for answer in answers])

    def test_end_of_the_moment(self) -> None:
        """A plain read ends where the log ended when it was asked, however fast the log grows."""
        self.patch(logport, "READ_CHUNK_BYTES", 1)
        self.say(ReadLog(5, 1))
        self.node._apply(commands(3), self.protocol)
        answers = [answer for answer in self.answers() if isinstance(answer, LogEntries)]
        self.assertEqual([1, 2, 3], [entry.slot for answer in answers for entry in answer.entries])

    def test_nothing_there(self) -> None:
        """Reading beyond the end gives one empty frame."""
        self.say(ReadLog(5, 9))
        self.assertEqual([LogEntries(5, (), True)], self.answers())

    def test_follow(self) -> None:
        """With follow, slots come as they are chosen, and no frame is the last."""
        self.say(ReadLog(5, 3, follow=True))
        self.assertEqual([3], self.slots())
        self.node._apply(commands(3), FakeSink())
        self.node._apply(commands(4), FakeSink())
        answers = self.answers()
        self.assertEqual([4, 5], [entry.slot for answer in answers for entry in answer.entries])
        self.assertFalse(any(answer.last for answer in answers))

    def test_follow_ends_with_the_connection(self) -> None:
        """A lost connection takes its listeners out of the node."""
        self.say(ReadLog(5, 1, follow=True), ReadLog(6, 1, follow=True))
        self.assertEqual(2, len(self.node.listeners))
        self.protocol.connectionLost()
        self.assertEqual([], self.node.listeners)

    def test_chosen_while_the_node_reads(self) -> None:
        """A slot that is chosen while an earlier read is under way is not missed."""
        waiting: list[Deferred[Any]] = []

        def read_log(from_slot: int, limit_bytes: int) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.node, "read_log", read_log)
        self.say(ReadLog(5, 4, follow=True))
        self.node._apply(commands(3), FakeSink())
        waiting[0].callback([])
        self.clock.advance(0)
        waiting[1].callback(self.node.entries[3:])
        self.assertEqual([4], [entry.slot for entry in self.frames()[0].entries])

    def test_chosen_and_not_yet_readable(self) -> None:
        """A chosen slot that storage cannot give back yet is asked for again, not left out."""
        for follow in (False, True):
            with self.subTest(follow=follow):
                entries, self.node.entries = self.node.entries, self.node.entries[:2]
                self.patch(self.node, "status", lambda: NodeStatus("A", "leader", chosen_upto=3))
                self.say(ReadLog(5, 1, follow))
                self.assertEqual([1, 2], self.slots())
                self.node.entries = entries
                self.clock.advance(logport.READ_RETRY_S)
                self.assertEqual([3], self.slots())

    def test_chosen_and_never_readable(self) -> None:
        """A slot that cannot be read in the end is a failure, not the end of the log."""
        self.patch(logport, "READ_RETRIES_MAX", 3)
        self.patch(self.node, "status", lambda: NodeStatus("A", "leader", chosen_upto=9))
        self.say(ReadLog(5, 4))
        self.clock.pump([logport.READ_RETRY_S] * 4)
        (answer,) = self.answers()
        self.assertEqual((5, "unavailable"), (answer.request_id, answer.code))

    def test_failing_read(self) -> None:
        """A node that cannot read its log says so; the connection stays."""
        self.patch(self.node, "read_log", lambda *_: fail(StorageDamaged("slot 2 cannot be read")))
        self.say(ReadLog(5, 1, follow=True))
        self.assertEqual([Failure(5, "internal", "slot 2 cannot be read")], self.answers())
        self.assertEqual([], self.node.listeners)
        self.assertFalse(self.transport.disconnecting)

    def test_bad_reads(self) -> None:
        """Slot 0 does not exist, and the number of reads at once is limited."""
        self.patch(clientport, "READS_MAX", 1)
        self.say(ReadLog(1, -1), ReadLog(2, 1, follow=True), ReadLog(3, 1))
        codes = {answer.request_id: answer.code for answer in self.answers() if isinstance(answer, Failure)}
        self.assertEqual({1: "bad_request", 3: "overloaded"}, codes)

    def test_status(self) -> None:
        """The status comes back under the request's number."""
        self.say(GetStatus(8))
        self.assertEqual([StatusReply(8, self.node.status())], self.answers())


class FakeSink:
    """Takes results and forgets them."""

    def applied(self, results: Any) -> None:
        """See `IResultSink.applied`."""


class FuzzTests(SynchronousTestCase):
    """Mutated frames."""

    def test_mutations(self) -> None:
        """Whatever one byte of a conversation becomes, nothing is raised and nothing stays behind."""
        conversation = b"".join(
            frame(encode(request)) for request in (Hello(), Submit(1, commands(0, 1)), ReadLog(2, 1, True))
        )
        for position in range(len(conversation)):
            for byte in (0, 0x22, 0x7D, 0xFF):
                clock, node = Clock(), FakeNode()
                protocol: Any = ClientPort(node, clock).buildProtocol(None)
                protocol.makeConnection(StringTransport())
                mutated = bytearray(conversation)
                mutated[position] = byte
                protocol.dataReceived(bytes(mutated))
                clock.advance(0)
                protocol.connectionLost()
                self.assertEqual([], node.listeners)

    def test_frames_are_json(self) -> None:
        """A frame is readable as plain JSON with its name under ``type``."""
        self.assertEqual(
            {"type": "read_log", "request_id": 1, "from_slot": 2, "follow": True},
            msgspec.json.decode(encode(ReadLog(1, 2, True))),
        )
