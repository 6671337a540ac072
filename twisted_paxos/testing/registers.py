"""A small state machine to test with: registers whose every write tells what it replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw
from zope.interface import implementer

from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.machine import IStateMachine

KEYS_PER_PIECE: Final = 2
"""Few, so that every snapshot has several pieces."""


class Write(NamedTuple):
    """What a payload says.

    Attributes:
        value: unique in a run.
        key: of the register.
    """

    value: str
    key: str


def encode_write(value: str, key: str, padding: int = 0) -> str:
    """The opaque value that writes ``value`` to ``key``, with so many more characters."""
    return f"{value} {key} {'.' * padding}"


def decode_write(payload: Raw) -> Write | None:
    """The inverse, from a command's payload; None for anything else."""
    try:
        value, key, _ = msgspec.json.decode(payload, type=str).split(" ")
    except (msgspec.DecodeError, ValueError):
        return None
    return Write(value, key)


@implementer(IStateMachine)
class Registers:
    """See `IStateMachine`.

    Attributes:
        values: by key.
    """

    deadline_ms: int | None = None

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, payload: Raw, context: Context) -> Raw:
        """Write, and tell the value before."""
        write = decode_write(payload)
        if write is None:
            return Raw(b'""')
        before = self.values.get(write.key, "")
        self.values[write.key] = write.value
        return Raw(msgspec.json.encode(before))

    def advance(self, context: Context) -> None:
        """Nothing depends on time."""

    def query(self, payload: Raw) -> Raw:
        """The value of a key, named by a JSON string."""
        return Raw(msgspec.json.encode(self.values.get(msgspec.json.decode(payload, type=str), "")))

    def snapshot(self) -> Iterator[bytes]:
        """A few keys per piece."""
        frozen = sorted(self.values.items())
        groups = [frozen[at : at + KEYS_PER_PIECE] for at in range(0, len(frozen), KEYS_PER_PIECE)]
        return (msgspec.json.encode(group) for group in groups)

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """See `IStateMachine.restore`."""
        values: dict[str, str] = {}
        for piece in pieces:
            try:
                values.update(msgspec.json.decode(piece, type=list[tuple[str, str]]))
            except msgspec.DecodeError as error:
                raise ValueError(f"no snapshot of registers: {error}") from None
            yield
        self.values = values
        yield

    def summary(self) -> bytes:
        """A digest of everything."""
        return hashlib.blake2b(repr(sorted(self.values.items())).encode(), digest_size=12).digest()
