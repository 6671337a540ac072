"""The HTTP port: who may use it, and its bounds."""

from __future__ import annotations

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.web.sites import HttpClient, WebCase, b64
from twisted_paxos.web import http
from twisted_paxos.web.guard import Guard

PUT = b'{"key":"aw=="}'


class GuardTests(SynchronousTestCase):
    """Host and Origin."""

    def allows(
        self, host: str | None, origin: str | None = None, names: tuple[str, ...] = ("node-a",)
    ) -> bool:
        encode = lambda text: None if text is None else text.encode("ascii")  # noqa: E731
        return not Guard(names).refusal(encode(host), encode(origin))

    def test_hosts(self) -> None:
        """Addresses, localhost and own names are this node's; any other name may be an attacker's."""
        for host in (
            *("127.0.0.1:5200", "10.1.2.3", "[::1]:5200", "[::1]", "localhost", "LOCALHOST:5200"),
            *("localhost.:5200", "node-a:5200", "Node-A", None, ""),
        ):
            self.assertTrue(self.allows(host), host)
        foreign = (
            "evil.example",
            "evil.example:5200",
            "node-a.evil.example",
            "127.0.0.1.evil.example",
            "x@y",
            "[",
        )
        for host in foreign:
            self.assertFalse(self.allows(host), host)

    def test_origins(self) -> None:
        """Pages of this very host and port may ask; no other page, no sandbox, no file."""
        host = "127.0.0.1:5200"
        self.assertTrue(self.allows(host, "http://127.0.0.1:5200"))
        self.assertTrue(self.allows("node-a", "http://node-a"))
        self.assertTrue(self.allows("node-a", "http://node-a:80"))
        self.assertTrue(self.allows("node-a:443", "https://node-a"))
        foreign = ("http://evil.example", "http://127.0.0.1:8000", "http://127.0.0.1", "null", "", "file://")
        for origin in foreign:
            self.assertFalse(self.allows(host, origin), origin)
        self.assertFalse(self.allows(None, "http://127.0.0.1:5200"))

    def test_allowed_names(self) -> None:
        """Names can be added; a star stands for all, and for all origins."""
        self.assertTrue(self.allows("db.example:1", names=("DB.example",)))
        self.assertTrue(self.allows("evil.example", "http://other.example", names=("*",)))

    def test_bounded(self) -> None:
        """What strangers call the node is not remembered without end."""
        guard = Guard(())
        for number in range(5_000):
            guard.refusal(b"h%d.example" % number, None)
        self.assertTrue(len(guard._known) <= 1_000)


class RefusedTests(WebCase):
    """The guard at work."""

    def test_host(self) -> None:
        """A request under a foreign name changes nothing, whatever it asks for."""
        for path, method in (("/v3/kv/put", "POST"), ("/health", "GET"), ("/", "GET")):
            client = self.connect()
            client.send(path, PUT, method=method, headers={"Host": "evil.example"})
            reply = client.reply()
            self.assertEqual((403, 7), (reply.code, reply.json["code"]))
            self.assertIn("--http-allow-host", reply.json["message"])
        self.assertEqual([], self.node.submitted)
        self.assertEqual({"host": 3}, self.site.refused)

    def test_origin(self) -> None:
        """Nor does one from another site's page."""
        reply = self.call("kv/put", {"key": "aw=="}, headers={"Origin": "http://evil.example"})
        self.assertEqual(403, reply.code)
        self.assertEqual([], self.node.submitted)

    def test_allowed(self) -> None:
        """Names are given to the site."""
        site = self.make_site(self.node, host_names=["db.example"])
        client = HttpClient(site)
        client.send("/v3/kv/put", PUT, headers={"Host": "db.example"})
        self.assertEqual(200, client.reply().code)


class BoundsTests(WebCase):
    """Connections, bodies, disconnects."""

    def test_keep_alive(self) -> None:
        """One connection serves one request after the other, pipelined ones too."""
        client = self.connect()
        for _ in range(3):
            client.send("/v3/kv/put", PUT)
            self.assertEqual(200, client.reply().code)
        client.send("/v3/kv/put", PUT)
        client.send("/v3/kv/put", PUT)
        self.assertEqual(2, client.transport.value().count(b"200 OK"))

    def test_chunked_request(self) -> None:
        """A body in chunks is a body."""
        client = self.connect()
        head = b"POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.channel.dataReceived(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(PUT), PUT))
        self.assertEqual(200, client.reply().code)

    def test_huge_body(self) -> None:
        """A body far over the limit ends the connection before it is all there, and is not kept."""
        client = self.connect()
        client.channel.dataReceived(
            b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        )
        piece = bytes(1 << 20)
        for _ in range(http.BODY_READ_MAX_BYTES // len(piece) + 2):
            if client.closed:
                break
            client.channel.dataReceived(piece)
        self.assertTrue(client.transport.aborting)
        self.assertEqual({"body": 1}, self.site.refused)

    def test_slow_request(self) -> None:
        """A request that does not come to its end is closed."""
        client = self.connect()
        client.channel.dataReceived(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        self.clock.advance(http.IDLE_TIMEOUT_S + 1)
        self.assertTrue(client.closed)

    def test_too_many_connections(self) -> None:
        """Beyond the limit a client is told so and closed; far beyond, it is only closed."""
        self.patch(http, "CONNECTIONS_SPARE", 1)
        self.site.connections_max = 2
        first, _, third, fourth = (self.connect() for _ in range(4))
        self.assertTrue(fourth.transport.aborting)
        third.send("/v3/kv/put", PUT)
        reply = third.reply()
        self.assertEqual((429, "etcdserver: too many requests"), (reply.code, reply.json["message"]))
        self.assertTrue(third.closed)
        third.leave()
        fourth.leave()
        first.send("/v3/kv/put", PUT)
        self.assertEqual(200, first.reply().code)
        self.assertEqual(2, len(self.site.connections))

    def test_client_leaves_early(self) -> None:
        """A client that does not wait for its answer harms nobody; what it asked for is done."""
        self.node.hold = True
        client = self.connect()
        client.send("/v3/kv/put", PUT)
        client.leave()
        self.node.release()
        self.assertEqual("1", self.ask("kv/range", {"key": b64(b"k")})["count"])

    def test_http_1_0(self) -> None:
        """An old client is served, and its connection closed."""
        client = self.connect()
        client.channel.dataReceived(
            b"POST /v3/kv/put HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(PUT), PUT)
        )
        self.assertEqual(200, client.reply().code)
        self.assertTrue(client.closed)

    def test_no_access_log(self) -> None:
        """Requests leave no lines in the log."""
        events: list = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.call("kv/put", PUT)
        self.assertEqual([], events)
