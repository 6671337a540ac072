"""Where blocking disk work runs, so that a slow disk never blocks the reactor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorCore, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_paxos.interfaces import IDiskExecutor

_Job: TypeAlias = tuple[Callable[[], object], "Deferred[Any]"]
_Outcome: TypeAlias = tuple["Deferred[Any]", object]


def attempt(job: _Job) -> _Outcome:
    """Run a job; its result, or the `Failure` that stands for what it raised."""
    work, done = job
    try:
        return done, work()
    except BaseException:  # a thread has nobody above it to raise to; the Deferred carries it
        return done, Failure()


def deliver(outcomes: list[_Outcome]) -> None:
    """Fire the Deferreds of jobs that have run, in order."""
    for done, result in outcomes:
        done.callback(result)


@implementer(IDiskExecutor)
class DiskThread:
    """One thread of its own that takes everything that waits at once (DESIGN.md, section 7).

    Results of one take come back with one `callFromThread`: under load, few wake-ups carry many
    results. The thread starts with the first work, so a process may fork (daemonise) before.

    Args:
        reactor: whose thread the results come back to. When it has shut down, the thread ends.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trigger: Any = None
        self._closed: Deferred[None] | None = None

    def run(self, work: Callable[[], object]) -> Deferred:
        """See `IDiskExecutor`. Fails with `RuntimeError` after `close`."""
        if self._closed is not None:
            return fail(RuntimeError("the disk thread is closed"))
        if self._thread is None:
            self._start()
        done: Deferred[Any] = Deferred()
        self._jobs.put((work, done))
        return done

    def close(self) -> Deferred[None]:
        """See `IDiskExecutor`."""
        if self._thread is None or self._closed is not None:
            self._closed = self._closed or succeed(None)
            return succeed(None)
        self._closed = Deferred()
        if self._trigger is not None:
            IReactorCore(self._reactor).removeSystemEventTrigger(self._trigger)
        self._jobs.put(None)
        return self._closed

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="paxos-disk", daemon=False)
        self._thread.start()
        if IReactorCore.providedBy(self._reactor):
            # A program that forgets to close storage must still be able to exit.
            core = IReactorCore(self._reactor)
            self._trigger = core.addSystemEventTrigger("after", "shutdown", self._jobs.put, None)

    def _loop(self) -> None:
        ended = False
        while not ended:
            jobs, ended = self._take()
            outcomes = [attempt(job) for job in jobs]
            if outcomes:
                self._reactor.callFromThread(deliver, outcomes)
        self._reactor.callFromThread(self._end)

    def _take(self) -> tuple[list[_Job], bool]:
        """Everything that waits, at least one; and whether it is the last."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get()
            while job is not None:
                jobs.append(job)
                job = self._jobs.get_nowait()
        except Empty:
            return jobs, False
        return jobs, True

    def _end(self) -> None:
        if self._closed is not None:
            self._closed.callback(None)


@implementer(IDiskExecutor)
class TurnExecutor:
    """Runs work on the reactor's thread in a later turn: for storage that never blocks, and for tests.

    Args:
        reactor: a reactor, or a `twisted.internet.task.Clock`.
        delay_s: how long work waits; what came in meanwhile runs with it, in order.
    """

    def __init__(self, reactor: IReactorTime, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._reactor = reactor
        self._jobs: list[_Job] = []
        self._turn: IDelayedCall | None = None
        self._closing: Deferred[None] | None = None

    def run(self, work: Callable[[], object]) -> Deferred:
        """See `IDiskExecutor`. Fails with `RuntimeError` after `close`."""
        if self._closing is not None:
            return fail(RuntimeError("the executor is closed"))
        done: Deferred[Any] = Deferred()
        self._jobs.append((work, done))
        self._schedule()
        return done

    def close(self) -> Deferred[None]:
        """See `IDiskExecutor`."""
        if self._closing is not None:
            return succeed(None)
        self._closing = Deferred()
        self._schedule()
        return self._closing

    def _schedule(self) -> None:
        if self._turn is None:
            self._turn = self._reactor.callLater(self.delay_s, self._run)

    def _run(self) -> None:
        self._turn = None
        jobs, self._jobs = self._jobs, []
        deliver([attempt(job) for job in jobs])
        if self._closing is not None and self._turn is None:
            self._closing.callback(None)
