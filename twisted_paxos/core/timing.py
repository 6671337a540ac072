"""How long to wait for an answer before asking again.

Smoothed round trip and its variation (Jacobson, "Congestion Avoidance and Control", 1988;
RFC 6298), samples of first tries only (Karn), doubling per try, with jitter so that nodes
do not stay in step.
"""

from __future__ import annotations

from collections.abc import Callable

RETRY_MIN_S = 0.010
RETRY_MAX_S = 0.3
RETRY_FIRST_S = 0.050


class RetryTimer:
    """The time to wait, learnt from how long answers take.

    Args:
        random: gives numbers in [0, 1), for jitter.
    """

    __slots__ = ("_random", "_smoothed_s", "_variation_s")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._smoothed_s = 0.0
        self._variation_s = 0.0

    def sample(self, took_s: float) -> None:
        """Note that a first try was answered after ``took_s``."""
        if self._smoothed_s == 0.0:
            self._smoothed_s, self._variation_s = took_s, took_s / 2
            return
        self._variation_s += (abs(took_s - self._smoothed_s) - self._variation_s) / 4
        self._smoothed_s += (took_s - self._smoothed_s) / 8

    def wait_s(self, tries: int) -> float:
        """How long to wait after try number ``tries`` (from 1), with up to a quarter of jitter."""
        base_s = self._smoothed_s + 4 * self._variation_s if self._smoothed_s else RETRY_FIRST_S
        backed_off_s = max(base_s, RETRY_MIN_S) * (1 << min(tries - 1, 10))
        return min(backed_off_s, RETRY_MAX_S) * (1 + self._random() / 4)
