"""The judge of real clusters finds what was lost, done twice, or shown wrongly."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.messages import Command, encode_value
from twisted_paxos.statemachine.kvcommands import DeleteRange, KvCommand, Put, encode_command
from twisted_paxos.testing.killsjudge import (
    Change,
    PromiseBroken,
    Replayed,
    Told,
    judge_refused,
    judge_told,
    judge_watched,
    swap,
)

PUT = Put(b"k", b"v1")
SWAP = swap(b"k", b"v1", b"v2")
FAILED = swap(b"k", b"v1", b"v3")
DELETE = DeleteRange(b"k", b"k\0004")


def log_of(*commands: tuple[int, KvCommand]) -> list[tuple[int, bytes]]:
    """A log with one command of one client, with its number, in each slot."""
    slots = []
    for slot, (sequence, command) in enumerate(commands, 1):
        its = Command("client", sequence, 1, encode_command(command))
        slots.append((slot, bytes(encode_value(0, [its]))))
    return slots


class JudgeTests(SynchronousTestCase):
    """One log, and what might be said of it."""

    def setUp(self) -> None:
        """Four commands, one of them tried twice."""
        self.log = log_of((1, PUT), (2, SWAP), (2, SWAP), (3, FAILED), (4, DELETE))
        self.replayed = Replayed(self.log)
        self.changes = [Change(2, b"k", b"v1"), Change(3, b"k", b"v2"), Change(4, b"k", None)]

    def broken(self, part: str, judge: Any, *arguments: Any) -> None:
        """The judge says so."""
        error = self.assertRaises(PromiseBroken, judge, *arguments)
        self.assertIn(part, str(error))

    def told(self, command: KvCommand, slot: int, revision: int, succeeded: bool = True) -> Told:
        """What a client was told."""
        return Told(bytes(encode_command(command)), (slot, 0), revision, succeeded)

    def test_replay(self) -> None:
        """Repetitions count once; a swap needs its value."""
        self.assertEqual(self.changes, self.replayed.changes)
        self.assertEqual(4, self.replayed.revision)
        self.assertEqual((3, False), self.replayed.done[4, 0])

    def test_gap(self) -> None:
        """A slot that is missing."""
        self.broken("slot 2", Replayed, self.log[1:])

    def test_twice(self) -> None:
        """One command under two numbers."""
        self.broken("applied twice", Replayed, log_of((1, PUT), (2, PUT)))

    def test_told(self) -> None:
        """Acknowledged where it is not, or with another result."""
        judge_told(self.replayed, [self.told(PUT, 1, 2), self.told(FAILED, 4, 3, False)])
        self.broken("is not there", judge_told, self.replayed, [self.told(PUT, 2, 2)])
        self.broken("gave 3, True", judge_told, self.replayed, [self.told(FAILED, 4, 3)])

    def test_refused(self) -> None:
        """Refused, and done all the same."""
        judge_refused(self.replayed, [bytes(encode_command(Put(b"k", b"other")))])
        self.broken("was refused", judge_refused, self.replayed, [bytes(encode_command(PUT))])

    def test_watched(self) -> None:
        """Lost, twice, out of order, split."""
        judge_watched(self.replayed, "w", self.changes, [1, 3])
        first, second, third = self.changes
        for given in ([first, third], [first, first, second, third], [second, first, third]):
            self.broken("as number", judge_watched, self.replayed, "w", given, [])
        self.broken("2 events of 3", judge_watched, self.replayed, "w", [first, second], [])
        self.replayed.changes[1:2] = [Change(3, b"j", b"v"), second]
        self.broken("in two batches", judge_watched, self.replayed, "w", self.replayed.changes, [2, 4])
