"""`core.runs`: what follows each other and belongs to one client."""

from __future__ import annotations

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.messages import Command
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
