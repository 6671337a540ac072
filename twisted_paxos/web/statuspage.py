"""The status page: one file, without anything from outside.

Its script and its style are allowed by their hashes, nothing else runs; it may connect to the
``/events`` of this node and of the others, so that it goes on when this node is gone.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from typing import Final
from urllib.parse import urlsplit

from twisted.web.http import Request
from twisted.web.resource import Resource

PAGE: Final = "status.html"
"""The file beside this module."""

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


def page_origins(nodes: Mapping[str, str]) -> frozenset[str]:
    """Origins of the pages that the nodes serve, for `EventsResource`.

    What is on this machine has three names.

    Args:
        nodes: URLs of the nodes' HTTP ports, by id.
    """
    found: set[str] = set()
    for url in nodes.values():
        scheme, place = urlsplit(url)[:2]
        host, _, port = place.rpartition(":")
        names = _LOOPBACK if host in _LOOPBACK else (host,)
        found.update(f"{scheme}://{name}:{port}" for name in names)
    return frozenset(found)


def content_policy(page: str, nodes: Mapping[str, str]) -> str:
    """The Content-Security-Policy of ``page``.

    Args:
        page: the HTML; what it has in ``script`` and ``style`` elements may run.
        nodes: URLs of the nodes' HTTP ports, by id.
    """
    scripts, styles = (_hashes(page, element) for element in ("script", "style"))
    connect = " ".join(["'self'", *sorted(nodes.values())])
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            f"style-src {styles}",
            f"connect-src {connect}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hashes(page: str, element: str) -> str:
    bodies = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = (hashlib.sha256(body.encode()).digest() for body in bodies)
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)


class StatusPageResource(Resource):
    """``/``: the page; it is the same on every node.

    Args:
        nodes: URLs of the nodes' HTTP ports, by id; the page tries to listen to each.
    """

    isLeaf = True

    def __init__(self, nodes: Mapping[str, str]) -> None:
        super().__init__()
        page = files("twisted_paxos.web").joinpath(PAGE).read_text("utf-8")
        self._page = page.encode()
        self._etag = b'"%s"' % hashlib.sha256(self._page).hexdigest()[:32].encode()
        self._headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": content_policy(page, nodes),
            "cross-origin-opener-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "cache-control": "no-cache",
        }

    def render_GET(self, request: Request) -> bytes:
        """The page, unless the browser has it already."""
        for name, value in self._headers.items():
            request.setHeader(name, value)
        return b"" if request.setETag(self._etag) else self._page
