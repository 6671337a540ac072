"""Addresses as people write them: ``host:port``, ``[IPv6]:port``, Twisted endpoint strings.

Pure functions on text: nothing is resolved or connected here.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from twisted_paxos.errors import ConfigError

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?", re.ASCII)
_TCP_KINDS = frozenset({"tcp", "tcp4", "tcp6"})
_ENDPOINT_KINDS: Final = _TCP_KINDS | {"ssl", "tls", "unix", "systemd", "stdio", "fd", "haproxy"}


class Address(NamedTuple):
    """Where something listens: a name or an IP address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this very machine: a loopback IP address, or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def parse_address(text: str, where: str) -> Address:
    """``host:port`` or ``[IPv6]:port``; ``where`` names the option or key in the error.

    Raises:
        ConfigError: it is neither, or the port is not from 1 to 65535.
    """
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]:")
        good = bool(bracket) and is_ip(host) and ":" in host
    else:
        host, _, port = text.rpartition(":")
        good = is_host(host) and ":" not in host
    if not good:
        raise ConfigError(f"{where}: {text[:80]!r} is no address: write host:port, or [IPv6]:port")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise ConfigError(f"{where}: the port of {text[:80]!r} must be a number from 1 to 65535")
    return Address(canonical_host(host), int(port))


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_host(host: str) -> bool:
    """Whether ``host`` is an IP address or can be a host's name."""
    return is_ip(host) or (bool(_HOST_NAME.fullmatch(host)) and len(host) <= 253 and not _looks_numeric(host))


def _looks_numeric(host: str) -> bool:
    """``1.2.3.400`` is a mistyped IP address, not a name: no top-level domain is a number."""
    return host.rstrip(".").rpartition(".")[2].isdigit()


def canonical_host(host: str) -> str:
    """One spelling per IP address, so that duplicates show."""
    return str(ipaddress.ip_address(host)) if is_ip(host) else host.lower()


def is_endpoint(text: str) -> bool:
    """Whether ``text`` starts as a Twisted endpoint string does: ``tcp:5100`` is no host named tcp."""
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind.lower() in _ENDPOINT_KINDS


def server_endpoint(address: Address, backlog: int | None = None) -> str:
    """A Twisted server endpoint string that listens on ``address``, whose host is an IP address.

    Args:
        backlog: connections that may wait to be accepted, where that is not Twisted's own number.
    """
    kind = "tcp6" if ":" in address.host else "tcp"
    waiting = "" if backlog is None else f":backlog={backlog}"
    return f"{kind}:{address.port}:interface={address.host.replace(':', chr(92) + ':')}{waiting}"


def default_bind(address: Address) -> Address:
    """What to bind for ``address``: an IP address as it is; behind a name there may be any: all are bound."""
    if is_ip(address.host):
        return address
    return Address("127.0.0.1" if is_loopback(address.host) else "0.0.0.0", address.port)


def parse_bind(text: str, address: Address) -> Address:
    """``--bind``: a host without a port keeps the port of ``address``, which others are told.

    Raises:
        ConfigError: it is no IP address.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if is_ip(bare):
        return Address(canonical_host(bare), address.port)
    bound = parse_address(text, "--bind")
    if not is_ip(bound.host):
        raise ConfigError(
            f"--bind: {text[:80]!r} must be an IP address of this machine, with or without a port"
        )
    return bound


def listening_endpoint(
    text: str | None, bind: Address, where: str, option: str, offset: int, backlog: int | None = None
) -> str:
    """The server endpoint string for ``text``, which is one, or ``host:port``, or None.

    Args:
        text: what was given.
        bind: None means ``offset`` ports above this address.
        where: names the option or key in errors.
        option: names the option that would help.
        backlog: see `server_endpoint`.

    Raises:
        ConfigError: it is none of the three, or there is no such port.
    """
    if text is None:
        port = bind.port + offset
        if port > 65_535:
            raise ConfigError(f"{option}: there is no port {offset} above {bind}: name one")
        return server_endpoint(Address(bind.host, port), backlog)
    if is_endpoint(text):
        return text
    if text.startswith("[") or text.count(":") == 1:
        address = parse_address(text, where)
        return server_endpoint(Address(default_bind(address).host, address.port), backlog)
    raise ConfigError(f"{where}: {text[:80]!r} is neither host:port nor an endpoint such as tcp:5100")


def told_client(endpoint: str, host: str) -> str:
    """What clients connect to when a node serves ``endpoint``; ``host`` is told for "all interfaces".

    ``host:port`` for plain TCP, else the endpoint string itself.
    """
    fields = [part.replace(chr(92), "") for part in re.split(r"(?<!\\):", endpoint)]
    if fields[0].lower() not in _TCP_KINDS:
        return endpoint
    options = dict(part.split("=", 1) for part in fields[1:] if "=" in part)
    port = options.get("port") or next((part for part in fields[1:] if "=" not in part), "")
    if not (port.isascii() and port.isdecimal()):
        return endpoint
    interface = options.get("interface", "")
    return str(Address(host if interface in {"", "0.0.0.0", "::"} else interface, int(port)))


def told_url(told: str) -> str:
    """The URL of what `told_client` tells: plain HTTP on ``host:port``; of endpoint strings what is known."""
    kind, _, rest = told.partition(":")
    if kind.lower() not in _ENDPOINT_KINDS:
        return f"http://{told}"
    if kind.lower() in {"ssl", "tls"}:
        interface = re.search(r"(?<!\\)interface=((?:[^:\\]|\\.)+)", rest)
        port = re.match(r"(?:port=)?([0-9]+)", rest)
        host = interface[1].replace(chr(92), "") if interface else "localhost"
        return f"https://{Address(host, int(port[1]))}" if port else "https://localhost"
    return f"unix://{rest}" if kind.lower() == "unix" else "http://localhost"
