"""One question to one node of ours over a blocking socket, without a reactor: for waiting on conditions."""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec
from msgspec import Raw

from twisted_paxos.errors import WireError
from twisted_paxos.statemachine.kvcommands import KvQuery, StoreQuery, StoreStatus, encode
from twisted_paxos.wire import client as wire

TIMEOUT_S = 1.0

_T = TypeVar("_T")


def frame(message: wire.Request) -> bytes:
    """A request as it is sent."""
    body = wire.encode(message)
    return struct.pack("!I", len(body)) + body


class Connection:
    """A blocking connection to the client port of a node; a context manager.

    Args:
        endpoint: ``host:port``.
        timeout_s: how long it waits for an answer.
    """

    def __init__(self, endpoint: str, timeout_s: float = TIMEOUT_S) -> None:
        host, _, port = endpoint.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout_s)
        self.send(wire.Hello())
        self.receive_kind(wire.Hello)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, request: wire.Request) -> None:
        """Send one request."""
        self._socket.sendall(frame(request))

    def receive(self) -> wire.Response:
        """The next answer, whatever it is.

        Raises:
            OSError: none came in time, or the node closed the connection.
            WireError: it is none.
        """
        return wire.decode_response(self._bytes(int.from_bytes(self._bytes(4), "big")))

    def receive_kind(self, kind: type[_T]) -> _T:
        """The next answer of this kind; others but failures are passed over.

        Raises:
            OSError: see `receive`; or it is a failure.
        """
        while True:
            response = self.receive()
            if isinstance(response, kind):
                return response
            if isinstance(response, wire.Failure):
                raise OSError(response.message)

    def _bytes(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            more = self._socket.recv(size_bytes - len(data))
            if not more:
                raise OSError("the node closed the connection")
            data += more
        return data


def ask(endpoint: str, query: KvQuery, serializable: bool = True) -> bytes | None:
    """The answer as JSON, or None when there is none within `TIMEOUT_S` seconds.

    Args:
        endpoint: ``host:port`` of a client port.
        query: for the key-value store.
        serializable: of this node as it is, without a majority.
    """
    try:
        with Connection(endpoint) as connection:
            connection.send(wire.Query(1, Raw(encode(query)), serializable))
            return bytes(connection.receive_kind(wire.Answer).data)
    except (OSError, WireError):
        return None


def revision(endpoint: str) -> int | None:
    """The revision that a node has applied; None when it does not answer."""
    answer = ask(endpoint, StoreQuery())
    return None if answer is None else msgspec.json.decode(answer, type=StoreStatus).revision
