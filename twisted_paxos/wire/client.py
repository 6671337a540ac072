"""The client port's messages: length-prefixed JSON frames over any stream.

Each frame is four bytes of big-endian length, then one JSON object with its name under
``type``. Both sides open with `Hello`. A client numbers its requests; answers carry that
number. `Submit` is answered by `Results` (possibly several, each with some of the commands,
identified by client and sequence) or, when nothing of it was taken, by `Failure`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Raw, Struct

from twisted_paxos.core.messages import Command, SlotEntry
from twisted_paxos.errors import WireError
from twisted_paxos.statemachine.commands import NodeStatus, Result
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest

CLIENT_VERSION = 1


class Hello(Struct, frozen=True, tag="hello"):
    """The first frame of both sides; a node fills in who it is."""

    version: int = CLIENT_VERSION
    uid: str = ""
    cluster: str = ""


class Submit(Struct, frozen=True, tag="submit"):
    """Commands to be proposed; a retry sends the same (client, sequence) again."""

    request_id: int
    commands: tuple[Command, ...]


class ReadLog(Struct, frozen=True, tag="read_log"):
    """Chosen entries from ``from_slot`` to the end of the moment, or, with ``follow``, for ever.

    Where the log does not go back as far (slot 0 never is there), the answer begins with what it has.
    """

    request_id: int
    from_slot: int
    follow: bool = False


class GetStatus(Struct, frozen=True, tag="get_status"):
    """Asks for the node's `NodeStatus`."""

    request_id: int


class Query(Struct, frozen=True, tag="query"):
    """Asks the state machine; answered by `Answer`.

    Attributes:
        payload: the question (`twisted_paxos.statemachine.kvcommands.KvQuery` for the key-value store).
        serializable: answer from what this node has applied, which may be old.
    """

    request_id: int
    payload: Raw
    serializable: bool = False


class Watch(Struct, frozen=True, tag="watch"):
    """Starts a watch, answered by `WatchStarted` and then `WatchEvents`, all with this number."""

    request_id: int
    request: WatchRequest


class StopWatch(Struct, frozen=True, tag="stop_watch"):
    """Ends the watch that was started with this number; nothing follows."""

    request_id: int


class Answer(Struct, frozen=True, tag="answer"):
    """The state machine's answer to a `Query`."""

    request_id: int
    data: Raw


class WatchStarted(Struct, frozen=True, tag="watch_started"):
    """The watch is there; ``revision`` is the store's present one at this node."""

    request_id: int
    revision: int


class WatchEvents(Struct, frozen=True, tag="watch_events"):
    """What a watch has to tell; after a batch that is ``canceled`` it is gone.

    Attributes:
        more: the rest of this batch follows in the next frame of this watch: one revision may be larger
            than a frame.
    """

    request_id: int
    batch: WatchBatch
    more: bool = False


class WatchProgress(Struct, frozen=True, tag="watch_progress"):
    """Every watch of this connection has been told everything up to ``revision``.

    Sent every second to a connection with watches, so that silence means trouble.

    Attributes:
        behind: the watches, by request number, of which that is not true: more is on its way to them.
    """

    revision: int
    behind: tuple[int, ...] = ()


class Results(Struct, frozen=True, tag="results"):
    """What became of some submitted commands."""

    results: tuple[Result, ...]


class LogEntries(Struct, frozen=True, tag="log_entries"):
    """Part of the answer to `ReadLog`; ``last`` ends it (never sent with ``follow``)."""

    request_id: int
    entries: tuple[SlotEntry, ...]
    last: bool


class StatusReply(Struct, frozen=True, tag="status"):
    """The answer to `GetStatus`."""

    request_id: int
    status: NodeStatus


class Failure(Struct, frozen=True, tag="failure"):
    """A request that was not done, and why.

    Attributes:
        request_id: which one; 0 for the whole connection, which is then closed.
        code: ``overloaded``, ``value_too_large``, ``bad_request``, ``unavailable`` or ``internal``.
        message: one line for people.
    """

    request_id: int
    code: str
    message: str


Request: TypeAlias = Hello | Submit | ReadLog | GetStatus | Query | Watch | StopWatch
Response: TypeAlias = (
    Hello | Results | LogEntries | StatusReply | Answer | WatchStarted | WatchEvents | WatchProgress | Failure
)

encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_response = msgspec.json.Decoder(Response).decode


def decode_request(frame: bytes) -> Request:
    """One request.

    Raises:
        WireError: it is none.
    """
    try:
        return _decode_request(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("malformed", str(error)) from None


def decode_response(frame: bytes) -> Response:
    """One response.

    Raises:
        WireError: it is none.
    """
    try:
        return _decode_response(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("malformed", str(error)) from None
