"""What the micro benchmarks work on: the batch that a leader makes under load."""

from __future__ import annotations

from msgspec import Raw

from benchmarks.load import key_of
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Accept, Command, Sender, encode_value
from twisted_paxos.statemachine.kvcommands import Put, encode_command

BATCH = 230
"""Puts of 16-byte keys and 64-byte values in one value of 45 KB."""

CLIENT = "0123456789abcdef"
BALLOT = ProposalID(1, "A")
SENDER = Sender("A", "0011223344556677", 1, "8899aabbccddeeff")


def puts(first: int = 0, keys: int = 1) -> tuple[Command, ...]:
    """A batch of puts that goes on from command number ``first`` (from 0), over ``keys`` keys."""
    return tuple(
        Command(CLIENT, number + 1, max(1, first - BATCH), _put(number % keys))
        for number in range(first, first + BATCH)
    )


def _put(key: int) -> Raw:
    return encode_command(Put(key_of(key, 16), b"v" * 64))


def value() -> Raw:
    """A slot's value with one batch."""
    return encode_value(1, puts())


def accept() -> Accept:
    """An Accept of that value."""
    return Accept(BALLOT, 1, value(), 0)
