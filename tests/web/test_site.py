"""What is on the HTTP port, and what is not."""

from __future__ import annotations

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
