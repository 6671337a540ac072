"""What a node does once for all that arrives together.

A datagram, or a frame of a link, is a turn; so is all that clients ask in one turn of the reactor. It
shares one proposal, one write and one look at the clock (DESIGN.md, section 3, group commit). What the disk
and the other nodes wait for comes first; applying runs beside the disk.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime


class Turn:
    """A context manager around whatever arrives; where it is left, the turn ends, if `plan` was called.

    Args:
        clock: the reactor.
        settle: what the turn leads to: proposals, and the write. What is asked for meanwhile belongs to it.
        after: what nobody else waits for. What is asked for meanwhile gets a turn of its own.
    """

    def __init__(self, clock: IReactorTime, settle: Callable[[], None], after: Callable[[], None]) -> None:
        self._clock = clock
        self._settle = settle
        self._after = after
        self._depth = 0
        self._planned = False
        self._wanted = False

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *exc_info: object) -> None:
        if self._depth > 1:
            self._depth -= 1
            return
        if not self._wanted:
            self._depth = 0
            return
        self._wanted = False
        try:
            self._settle()
        finally:
            self._depth = 0
            self._wanted = False
        self._after()

    def plan(self) -> None:
        """Something was asked for, or changed: this turn has an end; outside of one, it is the reactor's."""
        if self._depth:
            self._wanted = True
        elif not self._planned:
            self._planned = True
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        self._planned = False
        with self:
            self.plan()
