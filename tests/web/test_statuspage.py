"""The status page: its headers, and that it asks for nothing from outside."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from twisted_paxos.web.statuspage import StatusPageResource, content_policy, page_origins

NODES = {"A": "http://127.0.0.1:5200", "B": "https://b.example:5200"}


def ask(resource: Resource, *headers: str, method: str = "GET") -> tuple[bytes, dict[str, str], bytes]:
    """The status line, the headers and the body of one answer."""
    root = Resource()
    root.putChild(b"", resource)
    transport = StringTransportWithDisconnection()
    protocol = Site(root).buildProtocol(None)
    transport.protocol = protocol
    protocol.makeConnection(transport)
    lines = [f"{method} / HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    protocol.dataReceived("\r\n".join(lines).encode())
    head, _, body = transport.value().partition(b"\r\n\r\n")
    status, *pairs = head.decode().split("\r\n")
    return status.encode(), {name.lower(): value for name, value in (p.split(": ", 1) for p in pairs)}, body


class PageTests(SynchronousTestCase):
    """``/``."""

    def setUp(self) -> None:
        """The page, as it is served."""
        self.resource = StatusPageResource(NODES)
        self.status, self.headers, self.body = ask(self.resource)
        self.page = self.body.decode()

    def test_policy(self) -> None:
        """Only the page's own script and style may run, and it may connect to the nodes alone."""
        policy = dict(part.split(" ", 1) for part in self.headers["content-security-policy"].split("; "))
        self.assertEqual("'none'", policy["default-src"])
        for directive, element in (("script-src", "script"), ("style-src", "style")):
            body = self.page.split(f"<{element}>")[1].split(f"</{element}>")[0]
            digest = b64encode(hashlib.sha256(body.encode()).digest()).decode()
            self.assertEqual(f"'sha256-{digest}'", policy[directive])
        self.assertEqual("'self' http://127.0.0.1:5200 https://b.example:5200", policy["connect-src"])
        for directive in ("base-uri", "form-action", "frame-ancestors"):
            self.assertEqual("'none'", policy[directive])
        self.assertNotIn("unsafe", self.headers["content-security-policy"])

    def test_self_contained(self) -> None:
        """Nothing is loaded from anywhere: no addresses but those of XML names, no attributes with code."""
        found = set(re.findall(r"\b(?:https?:)?//[\w.-]+\.[\w/.-]+", self.page))
        self.assertEqual({"http://www.w3.org/2000/svg"}, found)
        self.assertNotRegex(self.page, r"\son\w+=|\sstyle=|javascript:|@import|\burl\(")

    def test_no_markup_from_data(self) -> None:
        """What nodes say becomes text, never markup or code."""
        self.assertNotRegex(
            self.page, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\("
        )

    def test_headers(self) -> None:
        """It is HTML, is not framed, not sniffed, and asked for again each time."""
        self.assertEqual("text/html; charset=utf-8", self.headers["content-type"])
        self.assertEqual("nosniff", self.headers["x-content-type-options"])
        self.assertEqual("DENY", self.headers["x-frame-options"])
        self.assertEqual("no-cache", self.headers["cache-control"])

    def test_unchanged(self) -> None:
        """A browser that has the page is told so."""
        status, headers, body = ask(self.resource, f"If-None-Match: {self.headers['etag']}")
        self.assertEqual((b"HTTP/1.1 304 Not Modified", b""), (status, body))
        self.assertIn("content-security-policy", headers)

    def test_for_everybody(self) -> None:
        """Language, title, labels, dark mode, less motion and a way past the head are there."""
        for part in (
            *('<html lang="en-GB">', "<title>", 'name="viewport"', "prefers-color-scheme: dark"),
            *("prefers-reduced-motion: reduce", 'role="status"', "<caption", 'class="skip', "<noscript>"),
        ):
            self.assertIn(part, self.page)

    def test_planted(self) -> None:
        """A script that is changed gets another hash."""
        first = content_policy("<script>1</script><style></style>", {})
        self.assertNotEqual(first, content_policy("<script>2</script><style></style>", {}))


class OriginTests(SynchronousTestCase):
    """Whose pages may listen."""

    def test_origins(self) -> None:
        """This machine has three names, others have one."""
        self.assertEqual(
            {
                "http://127.0.0.1:5200",
                "http://localhost:5200",
                "http://[::1]:5200",
                "https://b.example:5200",
            },
            page_origins(NODES),
        )
