"""How late the reactor is: what blocks it shows here before anything else suffers."""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from twisted_paxos.core.histogram import Histogram

INTERVAL_S: Final = 0.25


class ReactorDelay:
    """Measures how late a periodic call is.

    Args:
        clock: the reactor.

    Attributes:
        delays: what was measured, in seconds.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.delays = Histogram()
        self._clock = clock
        self._call: Any = None

    def start(self) -> None:
        """Measure from now on."""
        if self._call is None:
            self._plan()

    def stop(self) -> None:
        """Measure no more."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _plan(self) -> None:
        due_s = self._clock.seconds() + INTERVAL_S
        self._call = self._clock.callLater(INTERVAL_S, self._measure, due_s)

    def _measure(self, due_s: float) -> None:
        self.delays.observe(max(0.0, self._clock.seconds() - due_s))
        self._plan()
