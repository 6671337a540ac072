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

LARGE_BYTES = 60_000
LARGE_BYTES_PER_S = 4_000_000
LARGE_TRIES_MAX = 4
"""What no datagram holds goes by TCP, which itself repeats what is lost. Sent once more while it is
still on its way it only takes the room of what is behind it: so it has the time that a slow path needs,
and up to so many times as much when that was not enough.
"""


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

    def wait_s(self, tries: int, size_bytes: int = 0) -> float:
        """How long to wait after try number ``tries`` (from 1), with up to a quarter of jitter.

        Args:
            size_bytes: of what was sent; matters when it is large.
        """
        base_s = self._smoothed_s + 4 * self._variation_s if self._smoothed_s else RETRY_FIRST_S
        if base_s < RETRY_MIN_S:
            base_s = RETRY_MIN_S
        if tries > 1:
            base_s *= 1 << min(tries - 1, 10)
        if base_s > RETRY_MAX_S:
            base_s = RETRY_MAX_S
        if is_large(size_bytes):
            base_s += min(tries, LARGE_TRIES_MAX) * size_bytes / LARGE_BYTES_PER_S
        return base_s * (1 + self._random() / 4)


def is_large(size_bytes: int) -> bool:
    """Whether a message of this size goes by TCP, so that its time says nothing about a datagram's."""
    return size_bytes > LARGE_BYTES
