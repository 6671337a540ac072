"""Runs the reactor for one coroutine, like `twisted.internet.task.react`, but for a command line.

The differences: errors come back as exceptions instead of a printed traceback, Ctrl-C cancels
the coroutine, waits for its clean-up and is told by the exit status, and time is monotonic.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class _Run:
    """One coroutine on a reactor, from its start to the reactor's end."""

    def __init__(self, reactor: Any, work: Callable[[Any], Coroutine[Any, Any, int]]) -> None:
        self._reactor = reactor
        self._work = work
        self._running: Deferred[Any] | None = None
        self._finished: Deferred[None] = Deferred()
        self.outcome: int | Failure | None = None
        self.interrupted = False

    def start(self) -> None:
        """Start the coroutine; the reactor runs by now."""
        with contextlib.suppress(AttributeError, ValueError):
            # A closed terminal must not skip the clean-up. Twisted looks after SIGINT and SIGTERM.
            signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._stop))
        self._running = Deferred.fromCoroutine(self._work(self._reactor))
        self._running.addBoth(self._done)

    def _done(self, outcome: int | Failure) -> None:
        self.outcome = outcome
        self._finished.callback(None)
        self._stop()

    def _stop(self) -> None:
        if self._reactor.running:
            with contextlib.suppress(Exception):
                self._reactor.stop()

    def shutting_down(self) -> Deferred[None] | None:
        """Called before the reactor stops: cancel what still runs, and wait for its clean-up."""
        if self._running is None or self._finished.called:
            return None
        self.interrupted = True
        self._running.cancel()
        return self._finished


def run(work: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    """Run the reactor until ``work(reactor)`` is done; returns its exit status.

    Raises:
        KeyboardInterrupt: it was interrupted, and has cleaned up.
        Exception: whatever ``work`` raised.
    """
    from twisted.internet import reactor as the_reactor

    reactor: Any = the_reactor
    reactor.seconds = time.monotonic  # A step of the wall clock must not stall timers.
    job = _Run(reactor, work)
    reactor.callWhenRunning(job.start)
    reactor.addSystemEventTrigger("before", "shutdown", job.shutting_down)
    reactor.run()
    if job.interrupted or job.outcome is None:
        raise KeyboardInterrupt  # Whatever else came of it: it was cancelled.
    if isinstance(job.outcome, Failure):
        job.outcome.raiseException()
    return job.outcome
