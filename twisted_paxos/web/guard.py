"""Who may use the HTTP port from a browser.

A page anywhere can have its reader's browser post to a port on that reader's machine, and by DNS rebinding
even read the answers under a name of its own. So a request's Host must be one that is really this node's,
and a request that a page sent (a browser adds Origin) must come from a page of that same host.
Programs send no Origin, and use addresses or the node's name: they are not held up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from twisted_paxos.addresses import is_ip

_KNOWN_MAX: Final = 1_000
"""How many Host headers are remembered with what became of them."""


class Guard:
    """Checks Host and Origin.

    Args:
        names: host names that are this node's; ``*`` allows every name, and every origin.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower().rstrip(".") for name in names} | {"localhost"}
        self._anyone = "*" in self._names
        self._known: dict[bytes | None, bool] = {}

    def refusal(self, host: bytes | None, origin: bytes | None) -> str:
        """Why a request with these headers is refused; empty: it is not."""
        if self._anyone:
            return ""
        allowed = self._known.get(host)
        if allowed is None:
            allowed = self._allows(host)
            if len(self._known) < _KNOWN_MAX:
                self._known[host] = allowed
        if not allowed:
            return "the Host header names no host of this node; --http-allow-host allows it"
        if origin is not None and not self._same(host, origin):
            return "requests from pages of other sites are refused; --http-allow-host '*' allows them"
        return ""

    def _allows(self, host: bytes | None) -> bool:
        if not host:
            return True  # HTTP/1.0: no browser
        name = _host_of(b"//" + host)
        return name is not None and (is_ip(name) or name.rstrip(".") in self._names)

    @staticmethod
    def _same(host: bytes | None, origin: bytes) -> bool:
        scheme, separator, rest = origin.lower().partition(b"://")
        default = {b"http": b":80", b"https": b":443"}.get(scheme)
        if not separator or default is None or host is None:
            return False
        return rest.removesuffix(default) == host.lower().removesuffix(default)


def _host_of(url: bytes) -> str | None:
    try:
        return urlsplit(url.decode("ascii")).hostname
    except ValueError:
        return None
