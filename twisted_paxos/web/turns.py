"""Streams take turns: however many have something to send at once, nothing else is delayed by it."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

TURN_S: Final = 0.005
"""How long one turn of the reactor sends."""


class Sender(Protocol):
    """What takes turns."""

    def take_turn(self) -> None:
        """Send one message, or a few that belong together."""


class Turns:
    """Senders that have something to send, in the order in which they got it."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._ready: deque[Sender] = deque()
        self._call: IDelayedCall | None = None

    def add(self, sender: Sender) -> None:
        """``sender`` has something to send, and does not wait for its turn already."""
        self._ready.append(sender)
        self._plan()

    def _plan(self) -> None:
        if self._call is None:
            self._call = self._reactor.callLater(0, self._run)

    def _run(self) -> None:
        self._call = None
        end_s = self._reactor.seconds() + TURN_S
        # Those that come to have something meanwhile wait for the next turn.
        for _ in range(len(self._ready)):
            self._ready.popleft().take_turn()
            if self._reactor.seconds() >= end_s:
                break
        if self._ready:
            self._plan()

    def stop(self) -> None:
        """Nothing more is sent."""
        self._ready.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None
