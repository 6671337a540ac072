"""The simulator finds planted bugs; `python -m twisted_paxos.testing.mutants` finds all of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.errors import ConfigError
from twisted_paxos.testing.mutants import MUTANTS, Fate, hunt, planted, table

QUICK = {
    "promise_not_saved": ("rule 1",),
    "reply_before_sync": ("rule 1",),
    "proposes_beyond_alpha": ("rule 4",),
    "one_accepted_is_enough": ("one value", "rule 6"),
    "snapshot_off_by_one": ("state", "rules", "progress"),
}
"""Mutants of different rules that show soon, and the checks that may find them first."""


class MutantTests(SynchronousTestCase):
    """Planting and finding."""

    def test_quick_ones(self) -> None:
        """Each is found within a few seeds, by the check of its rule."""
        for name, checks in QUICK.items():
            fate = hunt(name, 5)
            self.assertIn(fate.check, checks, f"{name}: {fate}")

    def test_planted(self) -> None:
        """A mutant is there while it is planted, and gone afterwards, also after an error."""
        original = Acceptor.on_prepare
        try:
            with planted("promise_not_saved"):
                self.assertIsNot(original, Acceptor.on_prepare)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        self.assertIs(original, Acceptor.on_prepare)

    def test_unknown(self) -> None:
        """There is no mutant of another name."""

        def use() -> None:
            with planted("none_such"):
                self.fail("there is none")

        self.assertRaises(ConfigError, use)

    def test_all_can_be_planted(self) -> None:
        """What they patch is there; there are enough of them, each with its rule and description."""
        self.assertGreaterEqual(len(MUTANTS), 20)
        for name, mutant in MUTANTS.items():
            self.assertTrue(mutant.rule and mutant.what, name)
            with planted(name):
                pass

    def test_table(self) -> None:
        """The table for the document."""
        lines = table([Fate("promise_not_saved", 3, "rule 1", "x"), Fate("gap_skipped", 0, "", "")])
        self.assertIn("| 3 | rule 1 |", lines[2])
        self.assertIn("| not found |", lines[3])
