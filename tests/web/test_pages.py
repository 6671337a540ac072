"""The pages together, behind the node's HTTP port."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.testing.fakenode import FakeNode
from twisted_paxos.web.gateway import Identity, MemberInfo
from twisted_paxos.web.pages import StatusPages
from twisted_paxos.web.site import make_site

from .test_statuspage import ask

NODES = {"A": "http://127.0.0.1:5200", "B": "http://127.0.0.1:5201"}


class PagesCase(SynchronousTestCase):
    """Node A's port."""

    def setUp(self) -> None:
        """Its site."""
        self.clock = Clock()
        node = FakeNode()
        self.pages = StatusPages(self.clock, node.figures, NODES)
        identity = Identity("00ff", [MemberInfo(uid, "http://x:1", url) for uid, url in NODES.items()])
        self.site = make_site(
            node, self.clock, identity, "session", ("a.example",), pages=self.pages.resources
        )

    def get(self, path: str, *headers: str) -> bytes:
        """The whole answer to one request, as far as it came."""
        transport = StringTransportWithDisconnection()
        protocol = self.site.buildProtocol(None)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        lines = [f"GET {path} HTTP/1.1", *(headers or ("Host: 127.0.0.1:5200",)), "", ""]
        protocol.dataReceived("\r\n".join(lines).encode())
        return transport.value()


class PagesTests(PagesCase):
    """What is where."""

    def test_paths(self) -> None:
        """The page, the events and the metrics have their paths, beside the JSON API's."""
        for path, part in (
            ("/", b"<title>twisted_paxos</title>"),
            ("/events", b"event: status"),
            ("/metrics", b"paxos_is_leader 1.0"),
        ):
            answer = self.get(path)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer[:100])
            self.assertIn(part, answer)

    def test_foreign_hosts(self) -> None:
        """A name that is not this node's gets none of them: no page elsewhere can read them by rebinding."""
        for path in ("/", "/events", "/metrics"):
            self.assertTrue(self.get(path, "Host: evil.example").startswith(b"HTTP/1.1 403 "), path)
            self.assertTrue(self.get(path, "Host: a.example").startswith(b"HTTP/1.1 200 "), path)

    def test_foreign_origins(self) -> None:
        """Other nodes' pages may read the events, and nothing else; pages of strangers nothing."""
        other, stranger = "Origin: http://127.0.0.1:5201", "Origin: http://evil.example"
        host = "Host: 127.0.0.1:5200"
        self.assertIn(b"Access-Control-Allow-Origin: http://127.0.0.1:5201", self.get("/events", host, other))
        self.assertNotIn(b"Access-Control-Allow-Origin", self.get("/events", host, stranger))
        for origin in (other, stranger):
            self.assertTrue(self.get("/metrics", host, origin).startswith(b"HTTP/1.1 403 "))

    def test_odd_urls(self) -> None:
        """What is no plain URL does not get into the page's policy."""
        nodes = {**NODES, "C": "unix:///run/x", "D": "http://d:5200; script-src *", "E": "https://[::1]:5200"}
        pages = StatusPages(self.clock, FakeNode().figures, nodes)
        _, headers, _ = ask(dict(pages.resources)[b""])
        self.assertIn(
            "connect-src 'self' http://127.0.0.1:5200 http://127.0.0.1:5201 https://[::1]:5200;",
            headers["content-security-policy"],
        )

    def test_stop(self) -> None:
        """Once stopped nothing runs any more."""
        self.pages.start()
        self.get("/events")
        self.pages.stop()
        pending = [
            call for call in self.clock.getDelayedCalls() if call.func.__module__.startswith("twisted_paxos")
        ]
        self.assertEqual([], pending)
