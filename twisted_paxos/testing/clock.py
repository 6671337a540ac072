"""Simulated time on a heap: what `twisted.internet.task.Clock` does, for millions of events.

`task.Clock` sorts all its calls each time one is added, which is quadratic in a simulation.
It also jumps to the end of an advance before it runs what became due; here time moves from
event to event, so that whatever a call schedules is counted from its own moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

SAME_MOMENT_MAX_EVENTS: Final = 1_000_000
"""So many events without time moving on mean a loop that never ends."""

_CALLED: Final = -1
_CANCELLED: Final = -2


class EndlessLoop(RuntimeError):
    """Event after event, and time does not move on."""


class CallOwner(Protocol):
    """Who made a delayed call: a clock, or a node with a clock of its own."""

    def seconds(self) -> float:
        """The owner's time in seconds."""

    def push_call(self, call: SimulatedCall) -> int:
        """Schedule ``call`` for its ``due_s``; returns the serial number of the event."""


@implementer(IDelayedCall)
class SimulatedCall:
    """A delayed call; ``due_s`` is in its owner's time."""

    __slots__ = ("args", "due_s", "func", "kwargs", "owner", "serial")

    def __init__(
        self, owner: CallOwner, due_s: float, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> None:
        self.owner = owner
        self.due_s = due_s
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.serial = owner.push_call(self)

    def run(self) -> None:
        """Call it, once."""
        self.serial = _CALLED
        self.func(*self.args, **self.kwargs)

    def getTime(self) -> float:
        """When it is due, in its owner's seconds."""
        return self.due_s

    def cancel(self) -> None:
        """Do not call it.

        Raises:
            AlreadyCalled, AlreadyCancelled: too late.
        """
        self._check_active()
        self.serial = _CANCELLED

    def reset(self, secondsFromNow: float) -> None:
        """Call it ``secondsFromNow`` from now.

        Raises:
            AlreadyCalled, AlreadyCancelled: too late.
        """
        self._check_active()
        self.due_s = self.owner.seconds() + secondsFromNow
        self.serial = self.owner.push_call(self)

    def delay(self, secondsLater: float) -> None:
        """Call it ``secondsLater`` than planned.

        Raises:
            AlreadyCalled, AlreadyCancelled: too late.
        """
        self._check_active()
        self.due_s += secondsLater
        self.serial = self.owner.push_call(self)

    def active(self) -> bool:
        """Whether it is still to be called."""
        return self.serial >= 0

    def _check_active(self) -> None:
        if self.serial == _CALLED:
            raise AlreadyCalled
        if self.serial == _CANCELLED:
            raise AlreadyCancelled


@implementer(IReactorTime)
class SimulatedClock:
    """Time that passes only in `advance`. An exception of a call comes out of `advance`.

    Attributes:
        now_s: seconds since the start.
        events: how many events ran, for speed figures.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._serial = 0
        # (due, serial, function, arguments, call); without a call it cannot be cancelled.
        self._heap: list[tuple[float, int, Callable[..., Any], tuple, SimulatedCall | None]] = []

    def seconds(self) -> float:
        """Now."""
        return self.now_s

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        """As of a reactor; returns an `IDelayedCall`."""
        if delay < 0:
            raise ValueError(f"a delay of {delay} s is in the past")
        return SimulatedCall(self, self.now_s + delay, callable, args, kwargs)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """All calls to come that can be cancelled, in the order in which they are due."""
        return [
            call for _, serial, _, _, call in sorted(self._heap) if call is not None and call.serial == serial
        ]

    def push(
        self, due_s: float, func: Callable[..., Any], args: tuple = (), call: SimulatedCall | None = None
    ) -> int:
        """The cheap way to schedule ``func(*args)``, without a handle; returns its serial number."""
        self._serial = serial = self._serial + 1
        heappush(self._heap, (due_s, serial, func, args, call))
        return serial

    def push_call(self, call: SimulatedCall) -> int:
        """See `CallOwner`."""
        return self.push(call.due_s, call.run, (), call)

    def run_while(
        self, going: Callable[[], bool], until_s: float, same_moment_max: int | None = None
    ) -> bool:
        """Run events that are due by ``until_s`` while ``going()``, which is asked before each.

        Args:
            same_moment_max: so many events may run without time moving on; by default
                `SAME_MOMENT_MAX_EVENTS`.

        Returns:
            False when no event that is due by then is left; time is ``until_s`` then.

        Raises:
            EndlessLoop: time does not move on.
        """
        most = SAME_MOMENT_MAX_EVENTS if same_moment_max is None else same_moment_max
        heap, count = self._heap, 0
        while going():
            while heap and ((call := heap[0][4]) is not None and call.serial != heap[0][1]):
                heappop(heap)
            if not heap or heap[0][0] > until_s:
                self.now_s = until_s
                return False
            event = heappop(heap)
            if event[0] > self.now_s:
                self.now_s, count = event[0], 0
            elif (count := count + 1) > most:
                raise EndlessLoop(f"more than {most} events at {self.now_s} s: an endless loop")
            self.events += 1
            event[2](*event[3])
        return True

    def advance(self, amount: float) -> None:
        """Let ``amount`` seconds pass, running everything that becomes due.

        Raises:
            EndlessLoop: a million events ran without time moving on.
        """
        self.run_while(lambda: True, self.now_s + amount)

    def pump(self, timings: Iterable[float]) -> None:
        """Advance by each of ``timings``, in seconds."""
        for amount in timings:
            self.advance(amount)

    def run_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Run until ``condition()`` holds, asked after each event; False if it does not by then."""
        return self.run_while(lambda: not condition(), self.now_s + timeout_s) or condition()
