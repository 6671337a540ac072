"""What is on the HTTP port, and what is not."""

from __future__ import annotations

from unittest import mock

from msgspec import structs
from twisted.web.resource import Resource

from tests.web.sites import WebCase
from twisted_paxos.web.gateway import REQUEST_TIMEOUT_S


class Front(Resource):
    """A page at ``/``."""

    def render_GET(self, request: object) -> bytes:
        """One word."""
        return b"front"


class NothingTests(WebCase):
    """Paths without a page."""

    def setUp(self) -> None:
        """There is one at ``/``."""
        super().setUp()
        self.site = self.make_site(self.node, pages=((b"", Front()),))

    def test_front(self) -> None:
        """The page at ``/`` is there."""
        self.assertEqual((200, b"front"), (self.get("/").code, self.get("/").body))

    def test_nothing(self) -> None:
        """Anywhere else is nothing, also behind a last slash, in etcd's words, whatever the method."""
        for path, text in (
            ("/nothing", b"404 page not found\n"),
            ("/nothing/", b"404 page not found\n"),
            ("/a/version", b"404 page not found\n"),
            ("/v3/", b"Not Found\n"),
            ("/v3/kv/range/", b"Not Found\n"),
            ("/v3beta/nothing", b"Not Found\n"),
        ):
            for method in ("GET", "POST"):
                reply = self.get(path, method=method)
                self.assertEqual((404, text), (reply.code, reply.body), path)
                self.assertEqual("text/plain; charset=utf-8", reply.headers["Content-Type"])


class MalformedTests(WebCase):
    """Which code a body that is no JSON has, as with etcd."""

    def test_streams(self) -> None:
        """Where one request is read it is an invalid argument; where many are, it is unknown."""
        for path, code in (("election/observe", 3), ("maintenance/snapshot", 3), ("watch", 2)):
            self.assertEqual(code, self.refusal(path, b"{")[1], path)


class TermTests(WebCase):
    """The term in headers."""

    def test_without_a_promise(self) -> None:
        """A voter that has promised nothing yet, the others did without it, tells the ballot it hears."""
        status = self.node.status()
        heard = type(status.ballot)(4, "B")
        nothing = type(status.ballot)(0, "")
        changed = structs.replace(status, ballot=heard, promised=nothing)
        self.node.status = lambda: changed  # type: ignore[method-assign]
        self.clock.advance(REQUEST_TIMEOUT_S)
        self.assertEqual("4", self.call("kv/put", {"key": "YQ=="}).json["header"]["raft_term"])


class HeadTests(WebCase):
    """Heads of good replies, which are made once a second."""

    def test_date_moves_on(self) -> None:
        """Status line, type, length and date are there, and the date is that of the second."""
        with mock.patch("twisted_paxos.web.http.datetimeToString", side_effect=[b"one", b"two"]):
            first, again = self.call("kv/range", {"key": "YQ=="}), self.call("kv/range", {"key": "YQ=="})
            self.clock.advance(1)
            later = self.call("kv/range", {"key": "YQ=="})
        self.assertEqual(["one", "one", "two"], [reply.headers["Date"] for reply in (first, again, later)])
        self.assertEqual({"Date", "Content-Type", "Content-Length"}, set(first.headers))
        self.assertEqual("application/json", first.headers["Content-Type"])

    def test_two_in_a_row(self) -> None:
        """One connection serves request after request."""
        client = self.connect()
        for _ in range(2):
            client.send("/v3/kv/range", b'{"key":"YQ=="}')
            self.clock.advance(0)
            self.assertEqual(200, client.reply().code)

    def test_last_request(self) -> None:
        """A client that wants the connection closed is told so, and it is."""
        client = self.connect()
        client.send("/v3/kv/range", b'{"key":"YQ=="}', headers={"Connection": "close"})
        self.clock.advance(0)
        reply = client.reply()
        self.assertEqual((200, "close"), (reply.code, reply.headers["Connection"].lower()))
        self.assertTrue(client.closed)

    def test_addresses(self) -> None:
        """A connection is asked for its addresses once, however many requests it brings."""
        client = self.connect()
        with mock.patch.object(client.transport, "getPeer", wraps=client.transport.getPeer) as asked:
            for _ in range(3):
                client.send("/v3/kv/range", b'{"key":"YQ=="}')
                self.clock.advance(0)
                client.reply()
        self.assertLessEqual(asked.call_count, 1)
