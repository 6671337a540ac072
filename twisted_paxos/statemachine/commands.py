"""What a command's payload can be, and what comes back once it was applied.

A payload is JSON inside the command. A JSON **string** is an opaque value: the log keeps
it, nothing interprets it. Bytes that are no UTF-8 text travel as `BinaryValue`. Everything
else is an object with its kind under ``type``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import msgspec
from msgspec import Raw, Struct

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.statemachine.kvcommands import KvCommand

_encode = msgspec.json.Encoder().encode


class BinaryValue(Struct, frozen=True, tag="binary"):
    """An opaque value that is not text; base64 on the wire."""

    data: bytes


class OpenSession(Struct, frozen=True, tag="open_session"):
    """Registers the command's ``client`` as a session; its sequence is 0. Twice is once."""


Payload = Union[str, BinaryValue, OpenSession, KvCommand]

OPEN_SESSION = Raw(_encode(OpenSession()))


def encode_opaque(value: bytes | str) -> Raw:
    """The payload of an opaque value: text as a JSON string, other bytes as `BinaryValue`."""
    if isinstance(value, str):
        return Raw(_encode(value))
    try:
        return Raw(_encode(value.decode("utf-8")))
    except UnicodeDecodeError:
        return Raw(_encode(BinaryValue(value)))


decode_payload: Callable[[Raw], Payload] = msgspec.json.Decoder(Payload).decode
"""The typed payload.

Raises:
    msgspec.ValidationError: a kind that this version does not know.
"""


class Context(Struct, frozen=True, gc=False):
    """Where and when a command applies.

    Attributes:
        slot: its place in the log.
        index: its place in that slot's batch, from 0; -1 for `IStateMachine.advance`.
        time_ms: log time, the same on every node.
    """

    slot: int
    index: int
    time_ms: int


NO_DATA = Raw(b"null")
"""The result data of a command that has none."""


class Result(Struct, frozen=True, array_like=True, gc=False):
    """What became of one command.

    Attributes:
        client, sequence: which command.
        slot: where it was applied; a repeated command has the slot of its first time. 0 if it was not.
        index: its place in that slot's batch, from 0.
        error: empty, or a fixed word such as ``session_expired``: it was not applied and never will be.
        data: what the state machine returned, as JSON.
    """

    client: str
    sequence: int
    slot: int
    index: int
    error: str = ""
    data: Raw = NO_DATA


class NodeStatus(Struct, frozen=True):
    """One node, as `paxosctl status` shows it.

    Attributes:
        uid: the node's id.
        role: ``leader``, ``candidate``, ``follower``, ``observer`` or ``joining``.
        leader: id of the leader that it follows, empty when it knows none.
        ballot: that leader's ballot.
        promised: the highest ballot that its acceptor promised.
        chosen_upto: it knows every slot up to here as chosen.
        applied: it has applied every slot up to here.
        storage: what and where, e.g. ``file:paxos_data/A``.
        log_bytes: size of its log in bytes.
        uptime_s: seconds since its start.
        incarnation: of its storage.
        boot: how often that was started.
        client: where clients connect.
        waiting_for: members that it must hear from before it can vote (first formation).
        dropped: datagrams and frames dropped, by reason.
        version: of the program.
        leader_works: the leader was heard lately and can make progress.
        log_start: the lowest slot that its log still has.
    """

    uid: str
    role: str
    leader: str = ""
    ballot: ProposalID = NO_BALLOT
    promised: ProposalID = NO_BALLOT
    chosen_upto: int = 0
    applied: int = 0
    storage: str = ""
    log_bytes: int = 0
    uptime_s: float = 0.0
    incarnation: str = ""
    boot: int = 0
    client: str = ""
    waiting_for: tuple[str, ...] = ()
    dropped: dict[str, int] = {}
    version: str = ""
    leader_works: bool = True
    log_start: int = 1
