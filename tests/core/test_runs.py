"""`core.runs`: what follows each other and belongs to one client."""

from __future__ import annotations

from random import Random
from typing import Any

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.messages import Command, decode_value, encode_value, runs_of
from twisted_paxos.core.runs import Names, client_runs


def commands(*names: str) -> list[Command]:
    """Such as ``a1``: client and number."""
    return [Command(name[0], int(name[1:]), 1, Raw(b"0")) for name in names]


class RunsTests(SynchronousTestCase):
    """Runs and names."""

    def test_runs(self) -> None:
        """Each run is as long as it can be, and all of them together are everything."""
        for letters, wanted in (
            ("", []),
            ("a", [("a", 0, 1)]),
            ("aaa", [("a", 0, 3)]),
            ("aab", [("a", 0, 2), ("b", 2, 3)]),
            ("abba", [("a", 0, 1), ("b", 1, 3), ("a", 3, 4)]),
        ):
            self.assertEqual(list(client_runs(commands(*[f"{letter}1" for letter in letters]))), wanted)

    def test_names(self) -> None:
        """A name is in or not, whatever came together with it; the count is right."""
        names = Names()
        names.add(commands("a1", "a2", "b1", "a2"))
        self.assertEqual(len(names), 3)
        self.assertEqual(names.add(commands("a1", "a3", "b2", "c1", "b1")), commands("a3", "b2", "c1"))
        self.assertEqual((len(names), names.add(commands("b2", "a1", "a3"))), (6, []))
        names.discard(commands("a1", "a3", "a9", "b1", "b1", "b2", "c1"))
        self.assertEqual(len(names), 1)
        self.assertEqual(names.add(commands("a1", "a2", "b1")), commands("a1", "b1"))
        names.clear()
        self.assertEqual((len(names), names.add(commands("a2")), len(names)), (0, commands("a2"), 1))

    def test_runsOfAValue(self) -> None:
        """Numbers that follow each other share a run, but no floor ends a command that stands before it."""
        floored = [
            Command("a", number, floor, Raw(b"0")) for number, floor in ((4, 2), (5, 4), (6, 5), (7, 5))
        ]
        for given, wanted in (
            ([], []),
            (commands("a1"), [("a", 1, 1, 1)]),
            (commands("a1", "a2", "a3"), [("a", 1, 1, 3)]),
            (commands("a1", "a3", "a4", "a4"), [("a", 1, 1, 1), ("a", 3, 1, 2), ("a", 4, 1, 1)]),
            (commands("a2", "b3", "b4", "a3"), [("a", 2, 1, 1), ("b", 3, 1, 2), ("a", 3, 1, 1)]),
            (floored, [("a", 4, 4, 2), ("a", 6, 5, 2)]),
            ([Command("a", 1, 9, Raw(b"0")), *commands("a2")], [("a", 1, 9, 1), ("a", 2, 1, 1)]),
        ):
            runs = [(run.client, run.sequence, run.floor, len(run.payloads)) for run in runs_of(given)]
            self.assertEqual(runs, wanted)

    def test_valuesComeBack(self) -> None:
        """Encoded and decoded, every command is there, with no lower floor, and none that ends another."""
        for seed in range(300):
            random, given, number = Random(seed), [], 1
            for place in range(random.randrange(1, 40)):
                number = number + 1 if random.random() < 0.8 else random.randrange(40)
                floor = max(0, number - random.choice((0, 1, 3, 10, -2)))
                given.append(Command(random.choice("aaaab"), number, floor, Raw(b"%d" % place)))
            back = decode_value(encode_value(5, given)).commands
            self.assertEqual(
                [(one.client, one.sequence, bytes(one.payload)) for one in back],
                [(one.client, one.sequence, bytes(one.payload)) for one in given],
            )
            for before, after in zip(given, back, strict=True):
                self.assertGreaterEqual(after.floor, before.floor)
                self.assertTrue(after.floor == before.floor or after.floor <= after.sequence)
            for run in runs_of(given):
                self.assertTrue(len(run.payloads) == 1 or run.floor <= run.sequence)
            self.assertEqual(decode_value(encode_value(5, back)).commands, back)

    def test_runsOfAnything(self) -> None:
        """However the numbers are chosen, a command is looked at a few times, not once for every other."""
        looks = [0]

        class Looked:
            """A command that counts how often its number is read."""

            client, floor, payload = "a", 1, Raw(b"0")

            def __init__(self, number: int) -> None:
                self._number = number

            @property
            def sequence(self) -> int:
                looks[0] += 1
                return self._number

        gaps: Any = [Looked(2 * number + 1) for number in range(2_000)]
        self.assertEqual(len(runs_of(gaps)), 2_000)
        self.assertLess(looks[0], 10 * len(gaps))
