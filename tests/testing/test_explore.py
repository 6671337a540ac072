"""Exhaustive exploration of the pure roles."""

from __future__ import annotations

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.testing.explore import Bounds, explore, main
from twisted_paxos.testing.mutants import planted

FOUND = (
    "new_leader_ignores_accepted",
    "accepts_below_promise",
    "majority_off_by_one",
    "one_accepted_is_enough",
    "promise_not_saved",
)
"""Mutants that two ballots in one slot, and one crash, are enough for."""


class ExploreTests(SynchronousTestCase):
    """The real roles, and broken ones."""

    def test_complete(self) -> None:
        """Every run of two ballots in one slot is seen, and none disagrees."""
        found = explore(Bounds(slots=1, ballots=2))
        self.assertEqual(("", True), (found.violation, found.complete))
        self.assertGreater(found.states, 1_000)

    def test_crash(self) -> None:
        """Nor with a crash at any point, as far as the bound on states goes."""
        found = explore(Bounds(slots=1, ballots=2, crashes=1, states=20_000))
        self.assertEqual("", found.violation)
        self.assertGreaterEqual(found.states, 20_000)

    def test_two_slots(self) -> None:
        """Nor in two slots."""
        self.assertEqual("", explore(Bounds(slots=2, ballots=2, states=20_000)).violation)

    def test_repeats(self) -> None:
        """The search takes the same way each time."""
        bounds = Bounds(ballots=2, states=2_000)
        self.assertEqual(explore(bounds)._replace(seconds=0), explore(bounds)._replace(seconds=0))

    def test_mutants(self) -> None:
        """Broken roles are found, with the way to the violation."""
        for name in FOUND:
            with planted(name):
                found = explore(Bounds(slots=1, ballots=2, crashes=1))
            self.assertNotEqual("", found.violation, name)
            self.assertTrue(found.trace, name)

    def test_command(self) -> None:
        """The command says how many states there were, and fails with what it found."""
        good = CliRunner().invoke(main, ["--ballots", "1"])
        self.assertEqual(0, good.exit_code, good.output)
        self.assertIn("all of them", good.output)
        bad = CliRunner().invoke(main, ["--ballots", "2", "--mutant", "new_leader_ignores_accepted"])
        self.assertEqual(1, bad.exit_code)
        self.assertIn("takes over", bad.output)
        self.assertEqual(1, CliRunner().invoke(main, ["--mutant", "none_such"]).exit_code)
