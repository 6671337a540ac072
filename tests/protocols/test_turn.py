"""`protocols.turn`: however much arrives, a turn ends once."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.protocols.turn import Turn


class TurnTests(SynchronousTestCase):
    """`Turn`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.order: list[str] = []
        self.turn = Turn(self.clock, lambda: self.order.append("settle"), lambda: self.order.append("after"))

    def test_endsWhereItIsLeft(self) -> None:
        """First what others wait for, then the rest; nested ones are the same turn."""
        with self.turn:
            with self.turn:
                self.turn.plan()
                self.order.append("message")
            self.order.append("another")
        self.assertEqual(self.order, ["message", "another", "settle", "after"])

    def test_plannedOnce(self) -> None:
        """Outside of a turn one is planned for the end of the reactor's, however often it is asked for."""
        for _ in range(3):
            self.turn.plan()
        self.assertEqual((self.order, len(self.clock.getDelayedCalls())), ([], 1))
        self.clock.advance(0)
        self.assertEqual(self.order, ["settle", "after"])

    def test_nothingAskedForNothingDone(self) -> None:
        """What changes nothing needs no end."""
        with self.turn:
            pass
        self.assertEqual((self.order, self.clock.getDelayedCalls()), ([], []))

    def test_insideNothingIsPlanned(self) -> None:
        """What is asked for in a turn, also while it is settled, belongs to it."""
        turn = Turn(self.clock, lambda: turn.plan(), lambda: None)
        with turn:
            turn.plan()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_afterwardsAnotherIsPlanned(self) -> None:
        """What applying leads to gets a turn of its own."""
        turn = Turn(self.clock, lambda: None, lambda: turn.plan())
        with turn:
            turn.plan()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_errorEndsItAsWell(self) -> None:
        """An error in the middle leaves nothing open."""
        with self.assertRaises(ZeroDivisionError), self.turn:
            self.turn.plan()
            raise ZeroDivisionError
        self.turn.plan()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.order, ["settle", "after"])
