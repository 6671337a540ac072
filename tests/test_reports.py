"""`reports`: a line for what has changed, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, sender
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.reports import WAITING_AFTER_S, WAITING_INTERVAL_S, Reports


class ReportsTests(SynchronousTestCase):
    """`Reports` of a replica that the test changes."""

    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.formation: Any = SimpleNamespace(
            needs_replace=False, waiting_for=(), identity=SimpleNamespace(lost=False)
        )
        self.replica: Any = SimpleNamespace(me=sender("A"), leader=NO_BALLOT, formation=self.formation)
        self.reports = Reports(self.replica, 100.0)

    def lines(self, now_s: float = 100.0) -> list[str]:
        """What a look at this time logs."""
        self.events.clear()
        self.reports.look(now_s)
        ours = [event for event in self.events if event.get("log_namespace") == "twisted_paxos.reports"]
        return [formatEvent(event) for event in ours]

    def test_leader(self) -> None:
        """A new leader, and the same one with another ballot; not that there is none."""
        self.assertEqual([], self.lines())
        for text in ("3.B", "7.B"):
            self.replica.leader = ballot(text)
            self.assertEqual([f"B leads, ballot {text}"], self.lines())
            self.assertEqual([], self.lines())
        self.replica.leader = NO_BALLOT
        self.assertEqual([], self.lines())

    def test_newIncarnation(self) -> None:
        """That the cluster knows an earlier life, and that this one votes in its place: once each."""
        self.formation.needs_replace = True
        (line,) = self.lines()
        self.assertIn("the cluster knows an earlier life of node A", line)
        self.assertEqual([], self.lines())
        self.formation.needs_replace = False
        self.assertEqual(
            [f"node A votes again, as the new incarnation {sender('A').incarnation}"], self.lines()
        )
        self.assertEqual([], self.lines())

    def test_waiting(self) -> None:
        """For whom it waits is said after a moment, then now and then, as long as it does."""
        self.formation.waiting_for = ("B", "C")
        since_s = 100.0 + WAITING_AFTER_S
        self.assertEqual([], self.lines(since_s))
        (line,) = self.lines(since_s + 0.1)
        self.assertEqual("no vote yet (first start): waiting for B, C; start them, or check --peer", line)
        self.assertEqual([], self.lines(since_s + WAITING_INTERVAL_S))
        self.formation.identity.lost = True
        (line,) = self.lines(since_s + WAITING_INTERVAL_S + 0.2)
        self.assertIn("its storage was lost", line)
        self.formation.waiting_for = ()
        self.assertEqual([], self.lines(since_s + 3 * WAITING_INTERVAL_S))
