"""A reactor for tests of the disk's thread: it turns when the test says so."""

from __future__ import annotations

import queue
import select
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorCore, IReactorFDSet, IReactorTime
from twisted.internet.task import Clock
from zope.interface import implementer

WAIT_S = 30.0
"""How long a test waits for the thread before it fails."""


@implementer(IReactorTime, IReactorCore, IReactorFDSet)
class ThreadReactor(Clock):
    """A reactor whose thread is the test's: it does what a thread asked for when it is told to turn.

    Attributes:
        asked: what came from other threads.
        readers: what waits to read.
        triggers: what is to be called at an event.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: queue.Queue[Callable[[], object]] = queue.Queue()
        self.readers: list[Any] = []
        self.triggers: dict[object, Callable[[], object]] = {}

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        """As Twisted's."""
        self.asked.put(lambda: call(*args))

    def addReader(self, reader: Any) -> None:
        """As Twisted's."""
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        """As Twisted's."""
        self.readers.remove(reader)

    def addSystemEventTrigger(
        self, phase: str, event: str, call: Callable[..., object], *args: Any
    ) -> object:
        """As Twisted's."""
        key = (phase, event)
        self.triggers[key] = lambda: call(*args)
        return key

    def removeSystemEventTrigger(self, key: object) -> None:
        """As Twisted's."""
        del self.triggers[key]

    def read(self, within_s: float = WAIT_S) -> bool:
        """Let those read that can, once one can; False when none can in time."""
        ready, _, _ = select.select(self.readers, [], [], within_s)
        for reader in ready:
            reader.doRead()
        return bool(ready)

    def turn(self) -> None:
        """Run one call from a thread, once there is one."""
        self.asked.get(timeout=WAIT_S)()

    def advance(self, amount: float) -> None:
        """As `Clock`'s, and what threads brought by then."""
        super().advance(amount)
        self.read(0.01)
