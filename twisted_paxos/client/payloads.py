"""Values as payloads of commands, and back: for those who propose and those who read the log."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Raw, Struct

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command, SlotEntry, Value, decode_value
from twisted_paxos.errors import ValueTooLarge
from twisted_paxos.statemachine.commands import BinaryValue, decode_payload, encode_opaque


class Special(Struct, frozen=True):
    """A command that is no value of a user.

    Attributes:
        kind: its type on the wire, such as ``open_session``.
    """

    kind: str


class _Kind(Struct):
    type: str = ""


Payload: TypeAlias = str | bytes | Special
"""A proposed value, text or bytes, or a command of another kind."""


def encode_value(value: str | bytes) -> Raw:
    """The payload of ``value``, which is at most ``limits.VALUE_MAX_BYTES`` long.

    Raises:
        ValueTooLarge: it is longer.
    """
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if len(data) > limits.VALUE_MAX_BYTES:
        raise ValueTooLarge(
            f"a value of {len(data):,} bytes is over the limit of {limits.VALUE_MAX_BYTES:,}; split it"
        )
    payload = encode_opaque(data)
    if len(payload) > limits.PAYLOAD_MAX_BYTES:
        # Text full of control characters grows sixfold in JSON; base64 grows by a third at most.
        payload = Raw(msgspec.json.encode(BinaryValue(data)))
    return payload


def value_of(entry: SlotEntry) -> Value:
    """The batch of commands in ``entry``; one without commands is a no-op."""
    return decode_value(entry.value)


def payload_of(command: Command) -> Payload:
    """What ``command`` is; kinds that this version does not know keep their name."""
    try:
        payload = decode_payload(command.payload)
    except msgspec.ValidationError:
        return Special(_kind_of(command))
    if isinstance(payload, str):
        return payload
    if isinstance(payload, BinaryValue):
        return payload.data
    return Special(_kind_of(command))


def _kind_of(command: Command) -> str:
    try:
        kind = msgspec.json.decode(command.payload, type=_Kind).type
    except msgspec.DecodeError:
        kind = ""
    return kind or "unknown"
