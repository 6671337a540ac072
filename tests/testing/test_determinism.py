"""The checker of state machines, on good ones and on bad ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twisted_paxos.statemachine.commands import Context, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import Compact, DeleteRange, LeaseGrant, Put, Txn, encode_command
from twisted_paxos.statemachine.machine import IStateMachine, ITypedMachine
from twisted_paxos.testing.determinism import NotDeterministic, check_determinism

COMMANDS = [Raw(msgspec.json.encode(word)) for word in ("one", "two", "three", "four", "two", "five")]


@implementer(IStateMachine)
class Words:
    """A good machine: the set of words that it was told; answers how many there are."""

    deadline_ms: int | None = None

    def __init__(self) -> None:
        self.words: dict[str, None] = {}

    def apply(self, payload: Raw, context: Context) -> Raw:
        """One more word."""
        self.words[msgspec.json.decode(payload)] = None
        return Raw(b"%d" % len(self.words))

    def advance(self, context: Context) -> None:
        """Nothing depends on time."""

    def query(self, payload: Raw) -> Raw:
        """How many words there are."""
        return Raw(b"%d" % len(self.words))

    def snapshot(self) -> Iterator[bytes]:
        """The words, one a piece."""
        return iter([word.encode() + b"\n" for word in self.words])

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Those words."""
        self.words = dict.fromkeys(b"".join(pieces).decode().splitlines())
        yield


@implementer(ITypedMachine)
class Hasty(Words):
    """Bad: of words that come at once it answers for the last one only."""

    payload_type: Any = str

    def apply_all(self, payloads: Sequence[str], context: Context, size_bytes: int) -> list[Raw]:
        """All words."""
        self.words.update(dict.fromkeys(payloads))
        return [Raw(b"%d" % len(self.words))] * len(payloads)


class Counting(Words):
    """Bad: its results depend on how many machines there were before."""

    made = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.made)

    def apply(self, payload: Raw, context: Context) -> Raw:
        """The number of the machine."""
        return Raw(b"%d" % self.number)


class Forgetful(Words):
    """Bad: a snapshot leaves a word out."""

    def snapshot(self) -> Iterator[bytes]:
        """All but the first."""
        return itertools.islice(super().snapshot(), 1, None)


class Thawing(Words):
    """Bad: a snapshot shows what comes after its start."""

    def snapshot(self) -> Iterator[bytes]:
        """The words of the moment at which each piece is made."""
        for place in itertools.count():
            if place >= len(self.words):
                return
            yield list(self.words)[place].encode() + b"\n"


class Unordered(Words):
    """Bad: its results depend on the order of a set."""

    def apply(self, payload: Raw, context: Context) -> Raw:
        """The words, in the order of a set of them."""
        super().apply(payload, context)
        return Raw(msgspec.json.encode(list(frozenset(self.words))))


class Untimely(Words):
    """Bad: a restored one has another deadline."""

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Sets a deadline that the first one does not have."""
        self.deadline_ms = 5
        return super().restore(pieces)


class DeterminismTests(SynchronousTestCase):
    """`check_determinism`."""

    def assert_fails(self, machine: type[Words], words: str, child: bool = False) -> None:
        """It fails, and the message has ``words`` in it."""
        error = self.assertRaises(NotDeterministic, check_determinism, machine, COMMANDS, child=child)
        self.assertIn(words, str(error))

    def test_good(self) -> None:
        """A good machine passes, also in a process with another hash seed."""
        trace = check_determinism(Words, COMMANDS)
        self.assertEqual(trace.results, [b"1", b"2", b"3", b"4", b"4", b"5"])

    def test_results_differ(self) -> None:
        """Results that differ between runs: the message names the command and both results."""
        self.assert_fails(Counting, 'command 1 of 6, "one", gives')

    def test_several_at_once(self) -> None:
        """What commands do at once is what they do one after another."""
        self.assert_fails(Hasty, "a run with several commands at once")

    def test_snapshot_forgets(self) -> None:
        """State that does not come through a snapshot shows in the first result that needs it."""
        self.assert_fails(Forgetful, "a run through a snapshot in the middle")

    def test_snapshot_thaws(self) -> None:
        """A snapshot that shows later commands is none of its moment."""
        self.assert_fails(Thawing, "begun before some commands")

    def test_deadline(self) -> None:
        """The deadline belongs to the state."""
        self.assert_fails(Untimely, "deadline_ms is None before a snapshot and 5 after")

    def test_hash_order(self) -> None:
        """The order of a set of strings is the same in one process, and is found out by the child."""
        commands = [Raw(msgspec.json.encode(f"word {n}")) for n in range(20)]
        check_determinism(Unordered, commands, child=False)
        error = self.assertRaises(NotDeterministic, check_determinism, Unordered, commands)
        self.assertIn("a process with another hash seed", str(error))

    def test_not_importable(self) -> None:
        """What another process cannot import is refused before anything runs."""
        error = self.assertRaises(ValueError, check_determinism, lambda: Words(), COMMANDS)
        self.assertIn("child=False", str(error))

    def test_key_value_store(self) -> None:
        """The key-value store passes, with leases that expire, compaction and opaque values."""
        commands = [encode_opaque("text")]
        for n in range(150):
            commands += [
                encode_command(LeaseGrant(3)),
                encode_command(LeaseGrant(5, n + 1)),
                encode_command(Put(b"k%d" % (n % 9), b"%d" % n, n + 1 if n % 2 else 0, prev_kv=True)),
                encode_command(Txn(success=(Put(b"a%d" % n), DeleteRange(b"k", b"k5")))),
                encode_command(Compact(n)),
            ]
        check_determinism(KeyValueStore, commands, step_ms=1_000)
