"""Judges a run of real processes by its log: what clients were told, and what watchers were given.

The log is read back and its commands are done once more by a few lines that are easy to check: puts,
deletions, and swaps in the form that `SWAP` gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from twisted_paxos.client.kv import get, put, value
from twisted_paxos.core.messages import decode_value
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.commands import decode_payload
from twisted_paxos.statemachine.kvcommands import DeleteRange, Put, Txn


class PromiseBroken(PaxosError):
    """Something was applied twice, is missing, or was not shown to a watcher as it happened."""


def swap(key: bytes, expected: bytes, new: bytes) -> Txn:
    """Puts ``new`` if the key holds ``expected``, else reads it."""
    return Txn((value(key) == expected,), (put(key, new),), (get(key),))


class Told(NamedTuple):
    """What a client was told of one command.

    Attributes:
        payload: of the command, unique.
        place: where it was applied: slot, and place in that.
        revision: of the store, after it.
        succeeded: of a swap; True for others.
    """

    payload: bytes
    place: tuple[int, int]
    revision: int
    succeeded: bool


class Change(NamedTuple):
    """One change of one key; ``value`` is None for a deletion."""

    revision: int
    key: bytes
    value: bytes | None


class Done(NamedTuple):
    """What a command did: the store's revision after it, and whether a swap succeeded."""

    revision: int
    succeeded: bool


class Replayed:
    """The log, done once more.

    Args:
        log: (slot, value as bytes) of every slot, from 1.

    Attributes:
        done: by place in the log.
        payloads: of the commands by place.
        changes: in order.
        revision: the last one.

    Raises:
        PromiseBroken: a slot is missing, or a command is there twice as two.
    """

    def __init__(self, log: Iterable[tuple[int, bytes]]) -> None:
        self.done: dict[tuple[int, int], Done] = {}
        self.payloads: dict[tuple[int, int], bytes] = {}
        self.changes: list[Change] = []
        self.revision = 1
        self._now: dict[bytes, bytes] = {}
        self._seen: set[tuple[str, int]] = set()
        for number, (slot, raw) in enumerate(log, 1):
            if slot != number:
                raise PromiseBroken(f"the log has slot {slot} where {number} should be")
            for index, command in enumerate(decode_value(Raw(raw)).commands):
                # A repetition has the same number; it is in the log and was not applied again.
                if command.sequence and (command.client, command.sequence) not in self._seen:
                    self._seen.add((command.client, command.sequence))
                    self._do((slot, index), command.payload)
        twice = [payload for payload, times in Counter(self.payloads.values()).items() if times > 1]
        if twice:
            raise PromiseBroken(f"{twice[0]!r} was applied twice")

    def _do(self, place: tuple[int, int], payload: Raw) -> None:
        try:
            command: Any = decode_payload(payload)
        except msgspec.DecodeError:
            return
        succeeded = True
        if isinstance(command, Put):
            self._set(command.key, command.value)
        elif isinstance(command, DeleteRange):
            if command.key in self._now:
                self._set(command.key, None)
        elif isinstance(command, Txn):
            expected = command.compare[0]
            succeeded = self._now.get(expected.key) == expected.value
            if succeeded:
                new: Any = command.success[0]
                self._set(new.key, new.value)
        else:
            return
        self.payloads[place] = bytes(payload)
        self.done[place] = Done(self.revision, succeeded)

    def _set(self, key: bytes, new: bytes | None) -> None:
        self.revision += 1
        self.changes.append(Change(self.revision, key, new))
        if new is None:
            del self._now[key]
        else:
            self._now[key] = new


def judge_told(replayed: Replayed, told: Sequence[Told]) -> None:
    """Every acknowledged command is where it was said to be, and did what was said.

    Raises:
        PromiseBroken: one is not, or did something else.
    """
    for one in told:
        if replayed.payloads.get(one.place) != one.payload:
            raise PromiseBroken(f"{one.payload!r} was acknowledged at {one.place}, and is not there")
        done = replayed.done[one.place]
        if done != (one.revision, one.succeeded):
            raise PromiseBroken(f"{one.payload!r} gave {one.revision}, {one.succeeded}, and not {done}")


def judge_refused(replayed: Replayed, refused: Iterable[bytes]) -> None:
    """What was refused was never applied.

    Raises:
        PromiseBroken: it was.
    """
    applied = set(replayed.payloads.values())
    for payload in refused:
        if payload in applied:
            raise PromiseBroken(f"{payload!r} was refused, and applied")


def judge_watched(replayed: Replayed, who: str, given: Sequence[Change], batch_ends: Sequence[int]) -> None:
    """A watcher of everything was given every change once and in order, whole revisions together.

    Args:
        who: the watcher.
        given: all that it was given, in order.
        batch_ends: how many changes it had been given after each batch.

    Raises:
        PromiseBroken: it was not.
    """
    for number, (expected, found) in enumerate(zip(replayed.changes, given, strict=False)):
        if expected != found:
            raise PromiseBroken(f"{who} was given {found} as number {number}, and not {expected}")
    if len(given) != len(replayed.changes):
        raise PromiseBroken(f"{who} was given {len(given):,} events of {len(replayed.changes):,}")
    for end in batch_ends:
        if 0 < end < len(given) and given[end - 1].revision == given[end].revision:
            raise PromiseBroken(f"{who} was given revision {given[end].revision} in two batches")
