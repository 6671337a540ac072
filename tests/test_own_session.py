"""The session of what is part of a node."""

from __future__ import annotations

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos import own_session
from twisted_paxos.errors import NodeStopped, Overloaded, SessionExpired
from twisted_paxos.own_session import RENEW_AFTER_S, OwnSession
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.testing.fakenode import FakeNode

VALUE = Raw(b'"value"')


class OwnSessionTests(SynchronousTestCase):
    """Commands on a fake node."""

    def setUp(self) -> None:
        """A session that nobody used yet."""
        self.clock = Clock()
        self.node = FakeNode()
        self.session = OwnSession(self.node, "name", self.clock.seconds)

    def propose(self) -> Deferred[Result]:
        """One command."""
        return self.session.propose(VALUE)

    def clients(self) -> list[str]:
        """The session of each command that went out."""
        return [command.client for command in self.node.submitted]

    def test_opened_when_needed(self) -> None:
        """The first command opens it; the next one only uses it."""
        self.assertEqual([], self.node.submitted)
        self.successResultOf(self.propose())
        self.successResultOf(self.propose())
        self.assertEqual([0, 1, 2], [command.sequence for command in self.node.submitted])

    def test_held_until_open(self) -> None:
        """Commands go out when the session is open, in order, and not too many wait."""
        self.patch(own_session, "OWN_HELD_MAX", 2)
        self.node.hold = True
        first, second = self.propose(), self.propose()
        self.assertRaises(Overloaded, self.propose)
        self.node.release()
        self.assertEqual([1, 2], [self.successResultOf(done).sequence for done in (first, second)])
        self.assertEqual([0, 1, 2], [command.sequence for command in self.node.submitted])

    def test_floor(self) -> None:
        """Commands tell from where on results are still waited for."""
        self.successResultOf(self.propose())
        self.node.hold = True
        for _ in range(3):
            self.propose()
        self.assertEqual([1, 2, 2, 2], [command.floor for command in self.node.submitted[1:]])
        self.node.release()
        self.successResultOf(self.propose())
        self.assertEqual(5, self.node.submitted[-1].floor)

    def test_renewed_after_rest(self) -> None:
        """After a long rest a new session is opened, before the cluster forgets the old one."""
        self.successResultOf(self.propose())
        self.clock.advance(RENEW_AFTER_S + 1)
        self.successResultOf(self.propose())
        self.assertEqual(["name.1", "name.1", "name.2", "name.2"], self.clients())

    def test_not_renewed_while_waiting(self) -> None:
        """As long as a result is waited for, the session stays."""
        self.successResultOf(self.propose())
        self.node.hold = True
        waiting = self.propose()
        self.clock.advance(RENEW_AFTER_S + 1)
        later = self.propose()
        self.node.release()
        self.successResultOf(waiting)
        self.successResultOf(later)
        self.assertEqual({"name.1"}, set(self.clients()))

    def test_expired(self) -> None:
        """A command of a forgotten session fails; the next one has a new session."""
        self.successResultOf(self.propose())
        self.node.seen.clear()
        self.failureResultOf(self.propose(), SessionExpired)
        self.successResultOf(self.propose())
        self.assertEqual("name.2", self.clients()[-1])

    def test_refused(self) -> None:
        """What the node does not take leaves nothing behind, the opening included."""
        self.node.refuse = Overloaded("busy")
        self.assertRaises(Overloaded, self.propose)
        self.node.refuse = None
        self.successResultOf(self.propose())

    def test_session_refused(self) -> None:
        """Where the cluster has too many sessions, what waits fails, and the next command tries again."""
        self.node.hold = True
        waiting = self.propose()
        self.session.applied([Result("name.1", 0, 0, 0, "too_many_sessions")])
        self.failureResultOf(waiting, Overloaded)
        self.node.held.clear()
        self.node.hold = False
        self.successResultOf(self.propose())

    def test_refused_after_opening(self) -> None:
        """What the node does not take once the session is open fails."""
        self.node.hold = True
        waiting = self.propose()
        self.node.refuse = Overloaded("busy")
        self.node.release()
        self.failureResultOf(waiting, Overloaded)

    def test_stop(self) -> None:
        """What waits when the node stops fails."""
        self.node.hold = True
        waiting = self.propose()
        self.session.stop()
        self.failureResultOf(waiting, NodeStopped)
