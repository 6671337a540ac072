"""One question to one node of ours over a blocking socket, without a reactor: for waiting on conditions."""

from __future__ import annotations

import socket
import struct

import msgspec
from msgspec import Raw

from twisted_paxos.errors import WireError
from twisted_paxos.statemachine.kvcommands import KvQuery, StoreQuery, StoreStatus, encode
from twisted_paxos.wire import client as wire

TIMEOUT_S = 1.0


def frame(message: wire.Request) -> bytes:
    """A request as it is sent."""
    body = wire.encode(message)
    return struct.pack("!I", len(body)) + body


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        more = connection.recv(size_bytes - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def ask(endpoint: str, query: KvQuery, serializable: bool = True) -> bytes | None:
    """The answer as JSON, or None when there is none within `TIMEOUT_S` seconds.

    Args:
        endpoint: ``host:port`` of a client port.
        query: for the key-value store.
        serializable: of this node as it is, without a majority.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
            connection.sendall(frame(wire.Hello()) + frame(wire.Query(1, Raw(encode(query)), serializable)))
            while True:
                size_bytes = int.from_bytes(_receive(connection, 4), "big")
                response = wire.decode_response(_receive(connection, size_bytes))
                if isinstance(response, wire.Answer):
                    return bytes(response.data)
                if isinstance(response, wire.Failure):
                    return None
    except (OSError, WireError):
        return None


def revision(endpoint: str) -> int | None:
    """The revision that a node has applied; None when it does not answer."""
    answer = ask(endpoint, StoreQuery())
    return None if answer is None else msgspec.json.decode(answer, type=StoreStatus).revision
