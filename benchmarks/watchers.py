"""Many watchers of one prefix, and one put after another: each waits until every watcher has its event.

Both systems are spoken to over one plain blocking connection that carries all watches and the puts, and
events are counted by their frames only: so the servers are measured, and not two clients.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator

from msgspec import Raw

from benchmarks import grpc, plain
from benchmarks.figures import Run, latencies
from benchmarks.load import key_of
from benchmarks.processes import BenchmarkError
from twisted_paxos.core.messages import Command
from twisted_paxos.statemachine.commands import OPEN_SESSION
from twisted_paxos.statemachine.kvcommands import Put, encode, prefix_end
from twisted_paxos.statemachine.watches import WatchRequest
from twisted_paxos.wire import client as wire

PREFIX = b"watched/"
VALUE = b"v" * 64
TIMEOUT_S = 30.0
READ_BYTES = 1 << 18

_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4
_WINDOW_MAX = (1 << 31) - 1
_WINDOW_FIRST = 65_535
"""What HTTP/2 lets each side send at first: all that is sent here stays below it."""


def figures_of(put: Callable[[int], None], watchers: int, puts: int) -> Run:
    """Do ``puts`` puts; ``put`` returns when all watchers have their event."""
    took_s = []
    put(0)
    for number in range(1, puts + 1):
        start_s = time.perf_counter()
        put(number)
        took_s.append(time.perf_counter() - start_s)
    events_per_s = round(watchers * puts / sum(took_s), 1)
    return {"operations": puts, "watchers": watchers, "rate_per_s": events_per_s, **latencies(took_s)}


# -- ours


def watch_ours(endpoint: str, watchers: int, puts: int) -> Run:
    """Events a second, and how long a put takes until all watchers have its event."""
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        frames = _frames(connection)
        send = lambda message: connection.sendall(plain.frame(message))  # noqa: E731
        session = "fan-out-of-watches"
        send(wire.Hello())
        send(wire.Submit(1, (Command(session, 0, 0, OPEN_SESSION),)))
        _count(frames, {b'"results"': 1})
        for number in range(watchers):
            send(wire.Watch(2 + number, WatchRequest(PREFIX, prefix_end(PREFIX))))
        _count(frames, {b'"watch_started"': watchers})

        def put(number: int) -> None:
            payload = Raw(encode(Put(PREFIX + key_of(number, 8), VALUE)))
            send(wire.Submit(1, (Command(session, number + 1, number + 1, payload),)))
            _count(frames, {b'"results"': 1, b'"watch_events"': watchers})

        return figures_of(put, watchers, puts)


def _frames(connection: socket.socket) -> Iterator[bytes]:
    """The kind of each frame: the beginning of its JSON."""
    data = b""
    while True:
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            data += _received(connection)
        at = 0
        while len(data) >= at + 4 and len(data) >= (end := at + 4 + int.from_bytes(data[at : at + 4], "big")):
            yield data[at + 4 : at + 40]
            at = end
        data = data[at:]


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(READ_BYTES)
    if not data:
        raise BenchmarkError("the server closed the connection")
    return data


def _count(frames: Iterator[bytes], wanted: dict[bytes, int]) -> None:
    """Read until so many frames of each kind have come; others are passed over."""
    while wanted:
        frame = next(frames)
        for kind in list(wanted):
            if kind in frame:
                wanted[kind] -= 1
                if not wanted[kind]:
                    del wanted[kind]
        if b'"failure"' in frame:
            raise BenchmarkError("the node refused to watch")


# -- etcd


def watch_etcd(address: str, watchers: int, puts: int) -> Run:
    """The same: all watches on one gRPC stream, each put on one of its own, one HTTP/2 connection."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Http2(connection, address)
        watch = stream.open(grpc.WATCH_PATH)
        for _ in range(watchers):
            stream.data(watch, grpc.watch_body(PREFIX, prefix_end(PREFIX)))
        stream.read_until(watch, watchers)

        def put(number: int) -> None:
            one = stream.open(grpc.PUT_PATH)
            body = grpc.put_body(PREFIX + key_of(number, 8), VALUE)
            stream.data(one, body, _END_STREAM)
            stream.read_until(watch, watchers, one)

        return figures_of(put, watchers, puts)


class Http2:
    """As much of an HTTP/2 client (RFC 9113, without TLS) as gRPC needs here.

    Args:
        connection: to the server.
        authority: told to it.
    """

    def __init__(self, connection: socket.socket, authority: str) -> None:
        self._connection = connection
        self._authority = authority
        self._next_stream = 1
        self._sent_bytes = 0
        self._data = b""
        self._messages: dict[int, bytes] = {}
        settings = struct.pack("!HI", _INITIAL_WINDOW, _WINDOW_MAX)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings))
        connection.sendall(_frame(_WINDOW, 0, 0, struct.pack("!I", _WINDOW_MAX - _WINDOW_FIRST)))

    def open(self, path: str) -> int:
        """Begin a request; its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": self._authority,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        # Each as a literal that is not indexed (RFC 7541, 6.2.2), lengths below 127.
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        self._connection.sendall(_frame(_HEADERS, _END_HEADERS, stream, block))
        return stream

    def data(self, stream: int, message: bytes, flags: int = 0) -> None:
        """Send a message."""
        self._sent_bytes += len(message)
        if self._sent_bytes > _WINDOW_FIRST:
            raise BenchmarkError("fewer watchers or puts: this is more than the server lets a client send")
        self._connection.sendall(_frame(_DATA, flags, stream, message))

    def read_until(self, stream: int, messages: int, ended: int = 0) -> None:
        """Read until ``messages`` came on ``stream``, and stream ``ended`` (if any) is over."""
        while messages > 0 or ended:
            kind, flags, of, payload = self._frame()
            if kind == _DATA and of == stream:
                messages -= self._complete(stream, payload)
            elif of == ended and ended and flags & _END_STREAM and kind in (_DATA, _HEADERS):
                ended = 0
            elif kind == _SETTINGS and not flags & _ACK:
                self._connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._connection.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _GOAWAY or (of == stream and flags & _END_STREAM and kind == _HEADERS):
                raise BenchmarkError("the server ended the watches")

    def _complete(self, stream: int, payload: bytes) -> int:
        """How many gRPC messages are complete with this."""
        data, count = self._messages.get(stream, b"") + payload, 0
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            data, count = data[end:], count + 1
        self._messages[stream] = data
        return count

    def _frame(self) -> tuple[int, int, int, bytes]:
        while len(self._data) < 9 or len(self._data) < 9 + int.from_bytes(self._data[:3], "big"):
            self._data += _received(self._connection)
        end = 9 + int.from_bytes(self._data[:3], "big")
        kind, flags, stream = struct.unpack("!BBI", self._data[3:9])
        payload, self._data = self._data[9:end], self._data[end:]
        return kind, flags, stream & _WINDOW_MAX, payload


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload
