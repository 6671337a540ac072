"""`core.timing`: how long to wait."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.timing import (
    LARGE_BYTES,
    LARGE_BYTES_PER_S,
    LARGE_TRIES_MAX,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    RetryTimer,
)


class RetryTimerTests(SynchronousTestCase):
    """`RetryTimer`."""

    def test_firstWaitIsFixed(self) -> None:
        """Before anything is known it waits the first time-out, in seconds."""
        self.assertEqual(RetryTimer(lambda: 0.0).wait_s(1), RETRY_FIRST_S)

    def test_learnsTheRoundTrip(self) -> None:
        """A steady round trip of 40 ms brings the wait near it, never below."""
        timer = RetryTimer(lambda: 0.0)
        for _ in range(50):
            timer.sample(0.040)
        self.assertGreaterEqual(timer.wait_s(1), 0.040)
        self.assertLess(timer.wait_s(1), 0.050)

    def test_doublesPerTry(self) -> None:
        """Each try waits twice as long, up to the limit."""
        timer = RetryTimer(lambda: 0.0)
        self.assertEqual([timer.wait_s(n) / RETRY_FIRST_S for n in (1, 2, 3)], [1, 2, 4])
        self.assertEqual(timer.wait_s(1000), RETRY_MAX_S)

    def test_neverBelowTheMinimum(self) -> None:
        """A very fast network does not make it spin."""
        timer = RetryTimer(lambda: 0.0)
        timer.sample(0.000_01)
        self.assertEqual(timer.wait_s(1), RETRY_MIN_S)

    def test_jitterIsAtMostAQuarter(self) -> None:
        """Chance lengthens the wait by up to a quarter, and never shortens it."""
        self.assertEqual(RetryTimer(lambda: 1.0).wait_s(1), 1.25 * RETRY_FIRST_S)

    def test_largeMessagesHaveTime(self) -> None:
        """What goes by TCP waits for as long as a slow path takes to carry it, a few times that at most."""
        timer = RetryTimer(lambda: 0.0)
        self.assertEqual(timer.wait_s(1, LARGE_BYTES), RETRY_FIRST_S)
        self.assertAlmostEqual(timer.wait_s(1, LARGE_BYTES_PER_S), RETRY_FIRST_S + 1.0)
        self.assertAlmostEqual(timer.wait_s(100, LARGE_BYTES_PER_S), RETRY_MAX_S + LARGE_TRIES_MAX)
