"""Where blocking disk work runs, so that a slow disk never blocks the reactor."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorCore,
    IReactorFDSet,
    IReactorFromThreads,
    IReactorTime,
    IReadDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_paxos.departure import Departure
from twisted_paxos.interfaces import IDiskExecutor
from twisted_paxos.storage.disk import IDisk

try:
    from twisted_paxos.storage._diskqueue import VERSION, DiskQueue
except ImportError:  # no compiler when it was installed
    VERSION = 0
if VERSION != 1:  # or one that an earlier installation left
    DiskQueue = None  # type: ignore[assignment,misc]

log = Logger()

_Job: TypeAlias = tuple[Callable[[], object], "Deferred[Any]"]
_Outcome: TypeAlias = tuple["Deferred[Any]", object]
_Failed: TypeAlias = Callable[[Exception], Exception]


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


def append(
    disk: IDisk, name: str, offset: int, data: bytes, then: Callable[[], None] | None, failed: _Failed
) -> None:
    """What `IDiskExecutor.append` does, on the thread of this call.

    Raises:
        Exception: what ``failed`` makes of whatever went wrong.
    """
    try:
        disk.write_at(name, offset, data)
        disk.sync(name)
    except Exception as error:
        raise failed(error) from error
    if then is not None:
        then()


class _Executor:
    """`IDiskExecutor.append` by way of `run`."""

    def run(self, work: Callable[[], object]) -> Deferred:
        """See `IDiskExecutor`."""
        raise AssertionError("each executor has its own")

    def append(
        self,
        disk: IDisk,
        name: str,
        offset: int,
        data: bytes,
        then: Callable[[], None] | None,
        failed: _Failed,
    ) -> Deferred[None]:
        """See `IDiskExecutor`."""
        return self.run(partial(append, disk, name, offset, data, then, failed))


@implementer(IDiskExecutor)
class DiskThread(_Executor):
    """One thread of its own that takes everything that waits at once (DESIGN.md, section 7).

    Results of one take come back with one `callFromThread`: under load, few wake-ups carry many
    results. The thread starts with the first work, so a process may fork (daemonise) before.

    Args:
        reactor: whose thread the results come back to. When it has shut down, the thread ends.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._jobs: Any = None
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
        self._jobs = self._open()
        thread = threading.Thread(target=self._loop, name="paxos-disk", daemon=False)
        thread.start()
        self._thread = thread
        if IReactorCore.providedBy(self._reactor):
            # A program that forgets to close storage must still be able to exit.
            core = IReactorCore(self._reactor)
            self._trigger = core.addSystemEventTrigger("after", "shutdown", self._jobs.put, None)

    def _open(self) -> Any:
        """The queue of jobs; None in it is the end."""
        return SimpleQueue()

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


@implementer(IReadDescriptor)
class NativeDiskThread(DiskThread):
    """A `DiskThread` whose appends run without the interpreter (``_diskqueue.c``).

    Write, sync and vote are one sequence of system calls: between them no thread waits for the
    interpreter's lock, which the reactor holds while it applies. Everything else is as in `DiskThread`.

    Args:
        reactor: likewise; it must provide `IReactorFDSet`.
    """

    def _open(self) -> Any:
        self._wake_fds = _pipe()
        IReactorFDSet(self._reactor).addReader(self)
        return DiskQueue(self._wake_fds[1])

    def append(
        self,
        disk: IDisk,
        name: str,
        offset: int,
        data: bytes,
        then: Callable[[], None] | None,
        failed: _Failed,
    ) -> Deferred[None]:
        """See `IDiskExecutor`."""
        datagram = then.datagram if isinstance(then, Departure) else None
        fd = disk.descriptor(name)
        if fd is None or (then is not None and datagram is None) or self._closed is not None:
            return super().append(disk, name, offset, data, then, failed)
        if self._thread is None:
            self._start()
        done: Deferred[None] = Deferred()
        try:
            self._jobs.append((done, then, failed), fd, offset, data, datagram)
        except (OSError, ValueError):
            # No descriptor left to keep the socket open, or an address that only Python's socket understands.
            return super().append(disk, name, offset, data, then, failed)
        return done

    def _loop(self) -> None:
        # A signal must not cut a sync short: a failed one is final. The other threads take them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            job, error = self._jobs.take()
            if job is None:
                break
            if error:
                done, _, failed = job
                job = partial(_raise, failed, error), done
            self._jobs.finish(attempt(job))
            job = None  # The next one may be long in coming, and this one large.
        self._jobs.finish(None)

    def fileno(self) -> int:
        """As Twisted asks for it."""
        return self._wake_fds[0]

    def logPrefix(self) -> str:
        """As Twisted asks for it."""
        return "paxos-disk"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has shut down: nobody waits any more."""

    def doRead(self) -> None:
        """Something ended."""
        _drain(self._wake_fds[0])
        for outcome, refused in self._jobs.ended():
            if outcome is None:
                self._end()
            elif refused < 0:
                deliver([outcome])
            else:
                done, then, _ = outcome
                if refused:
                    then.refused(refused)
                done.callback(None)

    def _end(self) -> None:
        IReactorFDSet(self._reactor).removeReader(self)
        assert self._thread is not None
        self._thread.join()  # at its end, but it may still be waking this one
        for fd in set(self._wake_fds):
            os.close(fd)
        super()._end()


def _raise(failed: _Failed, error: int) -> None:
    raise failed(OSError(error, os.strerror(error)))


def _pipe() -> tuple[int, int]:
    """Two descriptors, or twice the same: what is written to the second is read from the first."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    ends = os.pipe()
    for fd in ends:
        os.set_blocking(fd, False)
    return ends


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EINTR):
            raise


def disk_thread(reactor: Any) -> DiskThread:
    """The best there is for this reactor."""
    native = DiskQueue is not None and IReactorFDSet.providedBy(reactor)
    if native:
        return NativeDiskThread(reactor)
    log.info("the disk's thread works in Python, and takes more CPU: install again with a C compiler at hand")
    return DiskThread(reactor)


@implementer(IDiskExecutor)
class TurnExecutor(_Executor):
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
