"""`twisted_paxos.client.liveness`: when a client leaves a node."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.client.liveness import LATE_S, PATIENCE_MAX_S, PATIENCE_MIN_S, PING_AFTER_S, Liveness
from twisted_paxos.statemachine.commands import NodeStatus

WORKS = NodeStatus("A", "follower")
LEADERLESS = NodeStatus("A", "follower", leader_works=False)


class LivenessTests(SynchronousTestCase):
    """One connection, seen through its pings."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pings: list[float] = []
        self.left: list[str] = []
        self.liveness = Liveness(
            self.clock, lambda: self.pings.append(self.clock.seconds()), self.left.append
        )
        self.liveness.connected()

    def ping(self) -> None:
        """What the client would send."""
        self.pings.append(self.clock.seconds())

    def run_for(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    def test_result_in_time(self) -> None:
        """Whoever answers in time is never asked."""
        for _ in range(10):
            self.liveness.sent()
            self.run_for(PING_AFTER_S / 2)
            self.liveness.heard(more=False)
        self.run_for(5)
        self.assertEqual(([], []), (self.pings, self.left))

    def test_late_result(self) -> None:
        """A late result makes it ask; a good answer keeps the node, and it asks again later."""
        self.liveness.sent()
        for _ in range(20):
            before = len(self.pings)
            self.run_for(PING_AFTER_S + 0.1)
            self.assertEqual(before + 1, len(self.pings))
            self.liveness.answered(WORKS)
        self.assertEqual([], self.left)

    def test_silence(self) -> None:
        """A node that answers nothing is left within a third of a second."""
        self.liveness.sent()
        self.run_for(PING_AFTER_S + PATIENCE_MIN_S + 0.12)
        self.assertEqual(1, len(self.left))
        self.assertIn("no answer", self.left[0])

    def test_commands_that_expire(self) -> None:
        """Sending on and on, with nothing ever coming back, is no sign of life."""
        for _ in range(5):
            self.liveness.sent()
            self.run_for(0.1)
        self.assertEqual(1, len(self.left))

    def test_leaderless(self) -> None:
        """One bad answer may be an election; the second in a row ends it."""
        self.liveness.sent()
        self.run_for(PING_AFTER_S + 0.1)
        self.liveness.answered(LEADERLESS)
        self.assertEqual([], self.left)
        self.run_for(PING_AFTER_S + 0.1)
        self.liveness.answered(LEADERLESS)
        self.assertEqual(["it has no leader that works"], self.left)

    def test_patience_grows(self) -> None:
        """Where every node is slow, the client waits longer each time, up to a limit."""
        waits = []
        for _ in range(8):
            self.liveness.connected()
            self.liveness.sent()
            started_s, seen = self.clock.seconds(), len(self.left)
            while len(self.left) == seen:
                self.clock.advance(0.01)
            waits.append(self.clock.seconds() - started_s)
        rounded = [round(wait_s, 6) for wait_s in waits]
        self.assertEqual(sorted(rounded), rounded)
        self.assertTrue(PATIENCE_MAX_S < waits[-1] < PATIENCE_MAX_S + 0.5, waits)

    def test_own_sleep(self) -> None:
        """A client that was stopped itself does not blame the node."""
        self.liveness.sent()
        self.run_for(PING_AFTER_S + 0.1)
        self.clock.advance(LATE_S + 5)
        self.run_for(PING_AFTER_S / 2)
        self.assertEqual([], self.left)

    def test_idle(self) -> None:
        """Nothing awaited, nothing left running."""
        self.liveness.sent()
        self.liveness.idle()
        self.assertEqual([], self.clock.getDelayedCalls())
