"""``/events``."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from twisted_paxos.figures import NodeFigures, Note
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.web.statusfeed import EVENTS_PER_S, IDLE_S, SLOW_S, EventsResource, StatusFeed

from .support import figures

TURN_S = 1 / EVENTS_PER_S
ORIGIN = "http://127.0.0.1:5201"


class Listener:
    """Remembers events."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.ended = False

    def write(self, data: bytes) -> None:
        """One or more events."""
        self.data.append(data)

    def end(self) -> None:
        """No more."""
        self.ended = True

    def events(self) -> list[tuple[str, Any]]:
        """All of them: (kind, content)."""
        return parsed(b"".join(self.data))


def parsed(data: bytes) -> list[tuple[str, Any]]:
    """Each event as a browser reads it."""
    found = []
    for block in data.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


class FeedCase(SynchronousTestCase):
    """A feed of a node whose figures the test sets."""

    def setUp(self) -> None:
        """Node A."""
        self.clock = Clock()
        self.shown = figures()
        self.asked = 0
        self.feed = StatusFeed(self.clock, self.figures, {"A": "http://127.0.0.1:5200"}, listeners_max=3)

    def figures(self) -> NodeFigures:
        """Those of now."""
        self.asked += 1
        return self.shown

    def chosen(self, slot: int) -> None:
        """The node has chosen up to ``slot``."""
        status = NodeStatus("A", "leader", "A", chosen_upto=slot, applied=slot)
        self.shown = figures(status=status)

    def listener(self) -> Listener:
        """One that is taken."""
        made = Listener()
        self.assertTrue(self.feed.add(made))
        return made


class FeedTests(FeedCase):
    """`StatusFeed`."""

    def test_first(self) -> None:
        """Whoever comes is told the nodes, how things are and what happened, at once."""
        (_, nodes), (_, status), (_, notes) = self.listener().events()
        self.assertEqual({"A": "http://127.0.0.1:5200"}, nodes)
        self.assertEqual(
            ("A", "leader", "3.A", 120), tuple(status[k] for k in ("uid", "role", "ballot", "chosen"))
        )
        self.assertEqual(
            {"reached": True, "leader": ""}, {k: status["peers"][0][k] for k in ("reached", "leader")}
        )
        self.assertEqual([{"number": 1, "at_s": 0.5, "kind": "leader", "text": "A leads, ballot 3.A"}], notes)

    def test_rate(self) -> None:
        """However often things change, there are at most five events a second."""
        listener = self.listener()
        for slot in range(1, 101):
            self.chosen(slot)
            self.clock.advance(0.01)
        events = listener.events()[3:]
        self.assertLessEqual(len(events), EVENTS_PER_S)
        self.assertGreaterEqual(len(events), EVENTS_PER_S - 1)

    def test_idle(self) -> None:
        """Without a change one event a second says that the node lives."""
        listener = self.listener()
        self.clock.pump([TURN_S] * round(10 * IDLE_S / TURN_S))
        self.assertIn(len(listener.events()) - 3, (9, 10, 11))

    def test_encoded_once(self) -> None:
        """All listeners get the same bytes, and the node is asked once."""
        listeners = [self.listener() for _ in range(3)]
        self.asked = 0
        self.chosen(200)
        self.clock.advance(TURN_S)
        self.assertEqual(1, self.asked)
        self.assertEqual(1, len({id(listener.data[-1]) for listener in listeners}))

    def test_notes(self) -> None:
        """What happens is told when it happens, and only then."""
        listener = self.listener()
        self.shown = figures(
            notes=(Note(1, 0.5, "leader", "A leads"), Note(2, 9.0, "lost", "B does not answer"))
        )
        self.clock.advance(TURN_S)
        self.clock.pump([TURN_S] * 20)
        told = [content for kind, content in listener.events() if kind == "notes"]
        self.assertEqual([1, 2], [len(notes) for notes in told])

    def test_bounded(self) -> None:
        """One more than fits is refused; one that goes makes room."""
        listeners = [self.listener() for _ in range(3)]
        self.assertFalse(self.feed.add(Listener()))
        self.feed.remove(listeners[0])
        self.listener()
        self.assertEqual(3, len(self.feed))

    def test_nobody_listens(self) -> None:
        """Without a listener nothing runs."""
        self.feed.remove(self.listener())
        self.clock.advance(TURN_S)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stop(self) -> None:
        """The end of the node ends all streams."""
        listener = self.listener()
        self.feed.stop()
        self.assertTrue(listener.ended)
        self.assertEqual([], self.clock.getDelayedCalls())


class AbortTransport(StringTransportWithDisconnection):
    """Notes that it was cut."""

    aborted = False

    def abortConnection(self) -> None:
        """Cut."""
        self.aborted = True


class ResourceTests(FeedCase):
    """`EventsResource` behind a Site."""

    def connect(self, *headers: str, method: str = "GET") -> AbortTransport:
        """Ask for the events."""
        root = Resource()
        root.putChild(b"events", EventsResource(self.feed, self.clock, frozenset({ORIGIN})))
        self.protocol = Site(root).buildProtocol(None)
        transport = AbortTransport()
        transport.protocol = self.protocol
        self.protocol.makeConnection(transport)
        lines = [f"{method} /events HTTP/1.0", "Host: x", *headers, "", ""]
        self.protocol.dataReceived("\r\n".join(lines).encode())
        return transport

    def test_stream(self) -> None:
        """Events come as they are made, and stop when the browser has gone."""
        transport = self.connect()
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"text/event-stream", head)
        self.assertTrue(body.startswith(b"retry: 1000\n"))
        transport.clear()
        self.chosen(777)
        self.clock.advance(TURN_S)
        self.assertEqual(777, parsed(transport.value())[0][1]["chosen"])
        transport.loseConnection()
        self.assertEqual(0, len(self.feed))

    def test_slow(self) -> None:
        """A browser that does not read is skipped, goes on when it reads again, and is cut in the end."""
        transport = self.connect()
        transport.clear()
        self.protocol._channel.pauseProducing()
        self.clock.pump([TURN_S] * 20)
        self.assertEqual(b"", transport.value())
        self.protocol._channel.resumeProducing()
        self.clock.pump([TURN_S] * 5)
        self.assertNotEqual(b"", transport.value())
        self.protocol._channel.pauseProducing()
        self.clock.pump([TURN_S] * round((SLOW_S + 2) / TURN_S))
        self.assertTrue(transport.aborted)
        self.assertEqual(0, len(self.feed))

    def test_too_many(self) -> None:
        """One more than fits gets 503 and a line."""
        for _ in range(3):
            self.connect()
        answer = self.connect().value()
        self.assertIn(b"503", answer.splitlines()[0])
        self.assertIn(b"Retry-After: 10", answer)

    def test_other_pages(self) -> None:
        """The other nodes' pages may listen, pages from anywhere else may not read it."""
        self.assertIn(
            f"Access-Control-Allow-Origin: {ORIGIN}".encode(), self.connect(f"Origin: {ORIGIN}").value()
        )
        self.assertNotIn(b"Access-Control", self.connect("Origin: http://evil.example").value())

    def test_head(self) -> None:
        """HEAD does not begin to listen."""
        self.connect(method="HEAD")
        self.assertEqual(0, len(self.feed))

    def test_end(self) -> None:
        """The end of the node ends the answer."""
        transport = self.connect()
        self.feed.stop()
        self.assertFalse(transport.connected)
