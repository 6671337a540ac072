"""Notices that a node does not serve its client: it is stopped, cut off, or has no leader.

A live node answers a status question at once, however slow its disk or its cluster is. So when a
result is late, the client asks; silence means that the node is stopped or unreachable, and
an answer says whether it has a leader that works. In both bad cases another node may serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted_paxos.statemachine.commands import NodeStatus

PING_AFTER_S: Final = 0.15
"""A result that takes longer makes the client ask how the node is; again after the same time."""

PATIENCE_MIN_S: Final = 0.15
PATIENCE_MAX_S: Final = 2.0
"""How long the answer may take; doubled each time that it was not enough, until there are results."""

LEADERLESS_MAX: Final = 2
"""So many answers in a row may say that there is no leader that works."""

LATE_S: Final = 1.0
"""A check that runs so much too late shows that this process slept: answers may wait unread."""


class Liveness:
    """Watches one connection after another.

    Args:
        reactor: time.
        ping: asks the node for its status.
        leave: cuts the connection, with the reason in one line.
    """

    def __init__(self, reactor: Any, ping: Callable[[], None], leave: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._ping = ping
        self._leave = leave
        self._patience_s = PATIENCE_MIN_S
        self._waiting_since_s: float | None = None
        self._pinged_s: float | None = None
        self._leaderless = 0
        self._due_s = 0.0
        self._timer: Any = None

    def connected(self) -> None:
        """A new connection: nothing is known of its node."""
        self.idle()
        self._leaderless = 0

    def sent(self) -> None:
        """Something was sent that will have a result."""
        if self._waiting_since_s is None:
            self._waiting_since_s = self._reactor.seconds()
            self._start(PING_AFTER_S)

    def heard(self, more: bool) -> None:
        """A result came; ``more`` are awaited."""
        self._patience_s = PATIENCE_MIN_S
        self._pinged_s = None
        self._leaderless = 0
        if more:
            self._waiting_since_s = self._reactor.seconds()
        else:
            self._waiting_since_s = None

    def idle(self) -> None:
        """Nothing is awaited any more, or there is no connection."""
        self._waiting_since_s = self._pinged_s = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def answered(self, status: NodeStatus) -> None:
        """The node said how it is."""
        if self._pinged_s is None:
            return
        self._pinged_s = None
        self._waiting_since_s = self._reactor.seconds()
        self._leaderless = 0 if status.leader_works else self._leaderless + 1
        if self._leaderless >= LEADERLESS_MAX:
            self._leaderless = 0
            self._leave("it has no leader that works")

    def _start(self, delay_s: float) -> None:
        if self._timer is None or not self._timer.active():
            self._due_s = self._reactor.seconds() + delay_s
            self._timer = self._reactor.callLater(delay_s, self._check)

    def _check(self) -> None:
        now_s: float = self._reactor.seconds()
        if self._waiting_since_s is None:
            return
        if now_s - self._due_s > LATE_S:
            self._waiting_since_s, self._pinged_s = now_s, None
        if self._pinged_s is not None and now_s - self._pinged_s >= self._patience_s:
            quiet_s = now_s - self._pinged_s
            self._patience_s = min(2 * self._patience_s, PATIENCE_MAX_S)
            self._leave(f"no answer for {quiet_s:.2f} s")
            return
        if self._pinged_s is None and now_s - self._waiting_since_s >= PING_AFTER_S:
            self._pinged_s = now_s
            self._ping()
        self._start(PING_AFTER_S / 3)
