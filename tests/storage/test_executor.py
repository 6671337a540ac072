"""`DiskThread` and the executors that need no thread."""

from __future__ import annotations

import threading
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.storage.threads import WAIT_S, ThreadReactor
from twisted_paxos.interfaces import IDiskExecutor
from twisted_paxos.storage.executor import DiskThread, TurnExecutor
from twisted_paxos.testing.storage import ImmediateExecutor


class DiskThreadTests(SynchronousTestCase):
    """One thread, in order, few wake-ups."""

    def setUp(self) -> None:
        """A thread, closed when the test is over."""
        self.reactor = ThreadReactor()
        self.thread = DiskThread(self.reactor)
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close and join."""
        self.thread.close()
        if self.thread._thread is not None:
            self.thread._thread.join(WAIT_S)
            self.assertFalse(self.thread._thread.is_alive())

    def test_interface(self) -> None:
        """It provides `IDiskExecutor`."""
        verifyClass(IDiskExecutor, DiskThread)
        verifyObject(IDiskExecutor, self.thread)

    def test_runs_elsewhere_and_comes_back(self) -> None:
        """Work runs on another thread, the same each time; its result comes back on the reactor's."""
        results: list[Any] = []
        for _ in range(2):
            self.thread.run(threading.get_ident).addCallback(results.append)
            self.assertEqual(len(results) % 2, len(results))
            self.reactor.turn()
        self.assertEqual(len(results), 2)
        self.assertEqual(results[0], results[1])
        self.assertNotEqual(results[0], threading.get_ident())

    def test_takes_everything_that_waits(self) -> None:
        """What waits while work runs is taken together, in order, and comes back with one call."""
        started, gate = threading.Event(), threading.Event()
        order: list[int] = []

        def block() -> None:
            started.set()
            gate.wait(WAIT_S)

        self.thread.run(block)
        self.assertTrue(started.wait(WAIT_S))
        for number in range(50):
            self.thread.run(lambda number=number: number).addCallback(order.append)
        gate.set()
        self.reactor.turn()
        self.assertEqual(order, [])
        self.reactor.turn()
        self.assertEqual(order, list(range(50)))
        self.assertTrue(self.reactor.asked.empty())

    def test_failure(self) -> None:
        """What the work raises is what the Deferred fails with; the thread goes on."""
        failing = self.thread.run(lambda: 1 // 0)
        self.reactor.turn()
        self.failureResultOf(failing, ZeroDivisionError)
        working = self.thread.run(lambda: 5)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(working), 5)

    def test_close_waits_for_work(self) -> None:
        """`close` fires after all work; then no more is taken."""
        order: list[str] = []
        self.thread.run(lambda: None).addCallback(lambda _: order.append("work"))
        self.thread.close().addCallback(lambda _: order.append("closed"))
        while len(order) < 2:
            self.reactor.turn()
        self.assertEqual(order, ["work", "closed"])
        self.failureResultOf(self.thread.run(lambda: None), RuntimeError)
        self.assertEqual(self.reactor.triggers, {})

    def test_close_unused(self) -> None:
        """Without work there is no thread, and closing is immediate, twice too."""
        self.assertIsNone(self.successResultOf(self.thread.close()))
        self.assertIsNone(self.successResultOf(self.thread.close()))
        self.assertIsNone(self.thread._thread)

    def test_ends_with_the_reactor(self) -> None:
        """A program that forgets to close can still exit: the reactor's shutdown ends the thread."""
        self.thread.run(lambda: None)
        self.reactor.turn()
        self.assertFalse(self.thread._thread.daemon)
        self.reactor.triggers["after", "shutdown"]()
        self.thread._thread.join(WAIT_S)
        self.assertFalse(self.thread._thread.is_alive())


class TurnExecutorTests(SynchronousTestCase):
    """The executor on the reactor's thread."""

    make = TurnExecutor

    def setUp(self) -> None:
        """A clock, and an executor that takes a second."""
        self.clock = Clock()
        self.executor = self.make(self.clock, 1.0)

    def test_interface(self) -> None:
        """It provides `IDiskExecutor`."""
        verifyClass(IDiskExecutor, self.make)
        verifyObject(IDiskExecutor, self.executor)

    def test_later_and_in_order(self) -> None:
        """Nothing runs inside `run`; what waits runs together after the delay."""
        order: list[object] = []
        for number in range(3):
            self.executor.run(lambda number=number: order.append(number)).addCallback(
                lambda _: order.append("done")
            )
        self.clock.advance(0.9)
        self.assertEqual(order, [])
        self.clock.advance(0.1)
        self.assertEqual(order, [0, 1, 2, "done", "done", "done"])

    def test_close(self) -> None:
        """`close` fires once, after what was given before, also when it is called from a result."""
        order: list[str] = []

        def close(_: object) -> None:
            self.executor.close().addCallback(lambda _: order.append("closed"))

        self.executor.run(lambda: order.append("work")).addCallback(close)
        self.clock.advance(1.0)
        self.assertEqual(order, ["work"])
        self.clock.advance(1.0)
        self.assertEqual(order, ["work", "closed"])
        self.failureResultOf(self.executor.run(lambda: None), RuntimeError)


class ImmediateExecutorTests(TurnExecutorTests):
    """The same, and what tests do to it."""

    make = ImmediateExecutor

    def test_stall_and_resume(self) -> None:
        """A stalled disk does nothing until it is resumed."""
        done = self.executor.run(lambda: 3)
        self.executor.stall()
        self.clock.advance(100)
        self.assertNoResult(done)
        self.executor.resume()
        self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(done), 3)

    def test_abandon(self) -> None:
        """What a dead process had waiting never runs."""
        ran: list[int] = []
        done = self.executor.run(lambda: ran.append(1))
        self.executor.abandon()
        self.clock.advance(100)
        self.assertNoResult(done)
        self.assertEqual(ran, [])
