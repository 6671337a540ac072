"""Sends sequences of requests to two servers over HTTP and compares what comes back.

One connection per server for plain requests, one more per stream, each read by a thread of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from twisted_paxos.testing.etcdanswers import Answer, comparable, split_revisions
from twisted_paxos.testing.etcddifferences import accepted
from twisted_paxos.testing.etcdrequests import Call, Place, Step, Stream, path_of, written
from twisted_paxos.testing.etcdservers import REQUEST_S, ServerFailed, Servers

STREAM_S: Final = 5.0
UNTIL_S: Final = 20.0
LOOK_S: Final = 0.02
QUIET_S: Final = 0.05
"""How long streams may take to become equal and a call to be answered as it should; how often is looked;
for how long equal streams must stay equal."""


class Difference(Struct, frozen=True):
    """One step to which the two gave different answers.

    Attributes:
        step: the request.
        sent: its body as sent to ours.
        theirs, ours: the comparable answers.
    """

    step: Step
    sent: str
    theirs: Answer
    ours: Answer

    def __str__(self) -> str:
        call = self.step.call if isinstance(self.step, Stream) else self.step
        lines = [f"{call.method} {path_of(call)} {self.sent}"]
        for name, answer in (("etcd", self.theirs), ("ours", self.ours)):
            documents = " ".join(json.dumps(document, default=repr) for document in answer.documents)
            lines.append(f"  {name}: {answer.status} {answer.content_type} {documents}")
        return "\n".join(lines)


class Peer:
    """One of the two sides.

    Args:
        servers: its cluster.
    """

    def __init__(self, servers: Servers) -> None:
        self.name = servers.name
        self.place = Place()
        self._addresses = servers.addresses
        self._connections: dict[str, http.client.HTTPConnection] = {}

    def body(self, call: Call) -> bytes:
        """What is sent."""
        if isinstance(call.body, bytes):
            return call.body
        return json.dumps(written(call.body, call.spelling, self.place)).encode()

    def connect(self, call: Call) -> http.client.HTTPConnection:
        """A new connection, the request sent."""
        address = self._addresses[call.node % len(self._addresses)]
        connection = http.client.HTTPConnection(address, timeout=REQUEST_S)
        connection.request(call.method, path_of(call), self.body(call), dict(call.headers))
        return connection

    def ask(self, call: Call) -> Answer:
        """Send a request and read its whole answer; status 0 if there is none."""
        address = self._addresses[call.node % len(self._addresses)]
        connection = self._connections.get(address)
        if connection is None:
            connection = http.client.HTTPConnection(address, timeout=REQUEST_S)
            self._connections[address] = connection
        try:
            connection.request(call.method, path_of(call), self.body(call), dict(call.headers))
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Answer(0, "", [type(error).__name__])
        content_type = answer.getheader("Content-Type") or ""
        return comparable(call, answer.status, content_type, decoded(said), self.place)

    def begin(self) -> None:
        """Remove all leases and keys; what is there from now on counts from this revision.

        Raises:
            ServerFailed: the server does not answer as it should.
        """
        # One that was not used for a while may be closed by now.
        self.close()
        everything = {"key": b"\0", "range_end": b"\0"}
        for lease in self._own("lease/leases", {}).get("leases", []):
            self._own("lease/revoke", {"ID": int(lease["ID"])})
        self._own("kv/deleterange", everything)
        base = int(self._own("kv/range", {**everything, "limit": 1})["header"]["revision"])
        self._own("kv/compaction", {"revision": base})
        for node in range(len(self._addresses)):
            # What a server says of itself without a read may lag behind: after one it does not.
            self._own("kv/range", {**everything, "limit": 1}, node)
        self.place = Place(base=base)

    def _own(self, path: str, body: dict[str, Any], node: int = 0) -> Any:
        call = Call(path, body, node=node)
        try:
            connection = self.connect(call)
            with contextlib.closing(connection):
                return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFailed(f"{self.name} does not answer {path}: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def decoded(said: bytes) -> list[Any]:
    """The JSON documents of a body, or its text; nothing for no body."""
    text = said.decode("utf-8", "backslashreplace")
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return [text]


class Reading:
    """A stream of one side: a thread that reads it to its end.

    Attributes:
        documents: what came so far, as it came.
        ended: whether the server ended it.
    """

    def __init__(self, peer: Peer, call: Call) -> None:
        self.documents: list[Any] = []
        self.ended = False
        self._peer = peer
        self._call = call
        self._connection = peer.connect(call)
        self._socket: socket.socket | None = self._connection.sock
        self._status, self._content_type = 0, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            answer = self._connection.getresponse()
            content_type = answer.getheader("Content-Type") or ""
            self._status, self._content_type = answer.status, content_type
            for line in answer:
                self.documents += decoded(line)
        self.ended = True

    def answer(self) -> Answer:
        """What came so far, comparable."""
        return comparable(
            self._call, self._status, self._content_type, list(self.documents), self._peer.place
        )

    def close(self) -> None:
        """Go away, whether or not the server has finished."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(REQUEST_S)
        self._connection.close()


class Exchange:
    """Runs sequences against both sides.

    Args:
        theirs, ours: the two sides.
        stream_s: how long streams may take to become equal.

    Attributes:
        compared: requests whose answers were compared, streams included.
        accepted: how often each accepted difference was met, by its name.
    """

    def __init__(self, theirs: Peer, ours: Peer, stream_s: float = STREAM_S) -> None:
        self.compared = 0
        self.accepted: Counter[str] = Counter()
        self._theirs, self._ours = theirs, ours
        self._stream_s = stream_s
        self._parted = False

    def run(self, sequence: Sequence[Step], first: int = 0) -> list[Difference]:
        """Both from the same beginning through all steps; what differed and is not accepted.

        Args:
            first: the node of ours that calls without another are sent to.
        """
        for peer in (self._theirs, self._ours):
            peer.begin()
        self._parted = False
        found: list[Difference] = []
        open_streams: list[tuple[Stream, Reading, Reading]] = []
        try:
            for step in sequence:
                step = self._placed(step, first)
                if isinstance(step, Stream):
                    open_streams.append((step, *self._open(step)))
                else:
                    found += self._ask(step)
                if self._parted:
                    return found
            for stream, theirs, ours in open_streams:
                found += self._settle(stream, theirs, ours)
        finally:
            for _, theirs, ours in open_streams:
                theirs.close()
                ours.close()
        return found

    @staticmethod
    def _placed(step: Step, first: int) -> Step:
        if isinstance(step, Stream):
            call = msgspec.structs.replace(step.call, node=step.call.node + first)
            return msgspec.structs.replace(step, call=call)
        return msgspec.structs.replace(step, node=step.node + first)

    def _ask(self, call: Call) -> list[Difference]:
        if call.until:
            answers = [_asked_until(peer, call) for peer in (self._theirs, self._ours)]
        else:
            answers = [self._theirs.ask(call), self._ours.ask(call)]
        return self._compare(call, call, answers[0], answers[1])

    def _compare(self, step: Step, call: Call, theirs: Answer, ours: Answer) -> list[Difference]:
        self.compared += 1
        if theirs == ours:
            return []
        reason = accepted(call, theirs, ours)
        if reason is not None:
            self.accepted[reason.name] += 1
            self._parted = self._parted or reason.parts
            return []
        sent = self._ours.body(call)[:2000].decode("utf-8", "backslashreplace")
        return [Difference(step, sent, theirs, ours)]

    def _open(self, step: Stream) -> tuple[Reading, Reading]:
        both = Reading(self._theirs, step.call), Reading(self._ours, step.call)
        if step.answers_first:
            _wait(lambda: all(one.documents or one.ended for one in both), self._stream_s)
        return both

    def _settle(self, step: Stream, theirs: Reading, ours: Reading) -> list[Difference]:
        """Equal, and equal still a little later; an answer that has to end has ended."""

        def same() -> bool:
            ended = theirs.ended == ours.ended and (step.close or ours.ended)
            return ended and theirs.answer() == ours.answer()

        if _wait(same, self._stream_s):
            time.sleep(QUIET_S)
        answers = [_with_end(reading) for reading in (theirs, ours)]
        split = split_revisions(ours.documents)
        if split:
            answers[1] = msgspec.structs.replace(answers[1], documents=[f"split: {split}"])
        return self._compare(step, step.call, answers[0], answers[1])

    def close(self) -> None:
        """Close all connections."""
        self._theirs.close()
        self._ours.close()


def _with_end(reading: Reading) -> Answer:
    answer = reading.answer()
    end = "ended" if reading.ended else "open"
    return Answer(answer.status, answer.content_type, [*answer.documents, end])


def _asked_until(peer: Peer, call: Call) -> Answer:
    """The first answer that contains ``until``, or the last one of all."""
    last: list[Answer] = []

    def answered() -> bool:
        last[:] = [peer.ask(call)]
        return call.until in json.dumps(last[0].documents, separators=(",", ":"))

    _wait(answered, UNTIL_S)
    return last[0]


def _wait(condition: Callable[[], bool], deadline_s: float) -> bool:
    """Whether the condition holds within the time."""
    return any(condition() for _ in _looks(deadline_s))


def _looks(deadline_s: float) -> Iterator[None]:
    end_s = time.monotonic() + deadline_s
    while True:
        yield
        if time.monotonic() >= end_s:
            return
        time.sleep(LOOK_S)
