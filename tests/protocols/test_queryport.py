"""Queries of clients, frame by frame."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from tests.protocols.test_clientport import ClientPortCase, commands
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import NodeStopped, Overloaded
from twisted_paxos.protocols import clientport, queryport
from twisted_paxos.statemachine.commands import Context, Result
from twisted_paxos.statemachine.kvcommands import (
    Put,
    Range,
    RangeResult,
    decode_result,
    encode,
    encode_command,
)
from twisted_paxos.wire.client import Answer, Query, Results, Submit

EVERYTHING = Range(b"\0", b"\0")


def query(request_id: int, request: Range = EVERYTHING, serializable: bool = False) -> Query:
    """A read."""
    return Query(request_id, Raw(encode(request)), serializable)


class QueryTests(ClientPortCase):
    """Question and answer."""

    def put(self, key: bytes, value: bytes = b"v") -> None:
        """Change the store."""
        self.node.machine.apply(encode_command(Put(key, value)), Context(1, 0, 0))

    def test_answer(self) -> None:
        """The answer carries the request's number and what the state machine said."""
        self.put(b"k")
        self.say(query(7))
        (answer,) = self.answers()
        assert isinstance(answer, Answer)
        result = decode_result(answer.data)
        assert isinstance(result, RangeResult)
        self.assertEqual((7, [b"k"]), (answer.request_id, [kv.key for kv in result.kvs]))

    def test_serializable_does_not_wait(self) -> None:
        """A serializable query is answered although no leader confirms anything."""
        self.node.hold_queries = True
        self.say(query(1), query(2, serializable=True))
        self.assertEqual([2], [answer.request_id for answer in self.answers()])
        self.node.release_queries()
        self.assertEqual([1], [answer.request_id for answer in self.answers()])

    def test_timeout(self) -> None:
        """A query that nobody confirms fails as unavailable after its time, and is counted."""
        self.node.hold_queries = True
        self.say(query(1))
        self.clock.advance(3)
        self.say(query(2))
        self.clock.advance(queryport.QUERY_TIMEOUT_S - 3)
        self.assertEqual([(1, "unavailable")], [(a.request_id, a.code) for a in self.answers()])
        self.clock.advance(3)
        self.assertEqual([(2, "unavailable")], [(a.request_id, a.code) for a in self.answers()])
        self.assertEqual({"query_timeout": 2}, self.port.dropped)

    def test_answered_in_time_does_not_time_out(self) -> None:
        """The time limit of an answered query passes without a word, those behind it keep theirs."""
        self.node.hold_queries = True
        self.say(query(1))
        self.node.release_queries()
        self.assertEqual(1, len(self.answers()))
        self.clock.advance(3)
        self.node.hold_queries = True
        self.say(query(2))
        self.clock.advance(3)
        self.assertEqual([], self.answers())
        self.clock.advance(3)
        self.assertEqual([2], [answer.request_id for answer in self.answers()])

    def test_node_refuses(self) -> None:
        """Overloaded and NodeStopped have their codes."""
        for error, code in ((Overloaded("full"), "overloaded"), (NodeStopped("stops"), "unavailable")):
            self.node.query_error = error
            self.say(query(1))
            (answer,) = self.answers()
            self.assertEqual((1, code), (answer.request_id, answer.code))

    def test_limit(self) -> None:
        """Beyond the limit of a connection a query is overloaded; the others go on."""
        self.patch(queryport, "QUERIES_MAX", 2)
        self.node.hold_queries = True
        self.say(query(1), query(2), query(3))
        (answer,) = self.answers()
        self.assertEqual((3, "overloaded"), (answer.request_id, answer.code))
        self.node.release_queries()
        self.assertEqual([1, 2], [answer.request_id for answer in self.answers()])

    def test_number_in_use(self) -> None:
        """Two queries under way have two numbers."""
        self.node.hold_queries = True
        self.say(query(1), query(1))
        (answer,) = self.answers()
        self.assertEqual((1, "bad_request"), (answer.request_id, answer.code))

    def test_too_large_answer(self) -> None:
        """An answer that fits no frame is refused, with what to do."""
        self.patch(queryport, "ANSWER_MAX_BYTES", 100)
        self.put(b"k", b"x" * 200)
        self.say(query(1))
        (answer,) = self.answers()
        self.assertEqual((1, "value_too_large"), (answer.request_id, answer.code))
        self.assertIn("limit", answer.message)

    def test_connection_lost(self) -> None:
        """A lost connection forgets its queries, and leaves no timer behind."""
        self.node.hold_queries = True
        self.say(query(1), query(2))
        self.protocol.connectionLost()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.node.release_queries()
        self.assertEqual([], self.frames())


class LargeResultTests(ClientPortCase):
    """Results with data."""

    def test_frames_by_size(self) -> None:
        """Results with much data are spread over frames."""
        self.patch(clientport, "RESULTS_BYTES", 1_000)
        data = Raw(msgspec.json.encode("x" * 600))
        self.say(Submit(1, commands(0, 1, 2)))
        self.answers()
        self.protocol.applied([Result("s", number, 1, number, "", data) for number in range(3)])
        frames = [frame for frame in self.answers() if isinstance(frame, Results)]
        self.assertEqual([1, 1, 1], [len(frame.results) for frame in frames])

    def test_too_large_for_a_frame(self) -> None:
        """A result that fits no frame says where it was applied, and why its data is missing."""
        self.patch(clientport, "ANSWER_MAX_BYTES", 100)
        self.say(Submit(1, (Command("s", 1, 1, Raw(b'"x"')),)))
        self.answers()
        self.protocol.applied([Result("s", 1, 9, 0, "", Raw(msgspec.json.encode("x" * 600)))])
        (frame,) = self.answers()
        assert isinstance(frame, Results)
        self.assertEqual(
            [("s", 1, 9, "result_too_large")],
            [(r.client, r.sequence, r.slot, r.error) for r in frame.results],
        )
