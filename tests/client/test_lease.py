"""A lease that keeps itself alive, and when it says that it is lost."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.client.support import ClientCase
from twisted_paxos.client.lease import DRIFT_SHARE, RENEW_SHARE, Lease
from twisted_paxos.errors import LeaseLost

TTL_S = 6


class LeaseTests(ClientCase):
    """Against nodes in memory, whose log time goes with the clock."""

    def setUp(self) -> None:
        """A lease."""
        super().setUp()
        self.client = self.connect(timeout_s=5.0)
        self.lease: Lease = self.finish(self.client.lease(TTL_S))
        self.addCleanup(self.lease.abandon)
        self.heard: list[str] = []
        self.lease.on_lost(self.heard.append)

    def pass_time(self, seconds: float, nodes: bool = True) -> None:
        """Let time pass here, and in the log."""
        steps = round(seconds / 0.1)
        for _ in range(steps):
            if nodes:
                self.nodes[0].advance(0.1)
            self.network.run(0.1, step_s=0.05)

    def left_s(self) -> int:
        """What the store says the lease has left."""
        return self.nodes[0].machine.lease_time_to_live(self.lease.id).ttl

    def cut_off(self) -> None:
        """No node can be reached."""
        for number in list(self.network.ports):
            self.network.kill(number)

    def test_renews(self) -> None:
        """It lives on, renewed at a third of its time."""
        self.pass_time(TTL_S * 5)
        self.assertTrue(self.lease.sure)
        self.assertGreaterEqual(self.left_s(), TTL_S * (1 - RENEW_SHARE) - 1)
        self.assertEqual([], self.heard)

    def test_lost_in_time(self) -> None:
        """Cut off, it says that it is lost before the store ends it."""
        self.pass_time(1)
        self.cut_off()
        while not self.heard:
            self.assertGreaterEqual(self.left_s(), 0, "the store ended it before its holder knew")
            self.pass_time(0.1)
        self.assertFalse(self.lease.sure)
        self.assertIn("renewed in time", self.successResultOf(self.lease.lost))
        self.assertRaises(LeaseLost, self.lease.check)
        self.assertEqual(0.0, self.lease.remaining_s)

    def test_counts_from_when_it_was_sent(self) -> None:
        """A keep-alive that is answered late does not make it sure for longer than from its sending."""
        self.pass_time(0.5)
        self.nodes[0].hold = True
        sent_s = self.reactor.seconds()
        while not self.nodes[0].held:
            sent_s = self.reactor.seconds()
            self.pass_time(0.1)
        self.pass_time(1.5)
        self.nodes[0].release()
        self.network.run(0.05)
        self.assertLessEqual(self.lease._deadline_s, sent_s + 0.11 + TTL_S * (1 - DRIFT_SHARE))
        self.assertTrue(self.lease.sure)

    def test_after_a_pause(self) -> None:
        """When the process was stopped, it is not sure from the first moment on, before any timer runs."""
        now_s = self.reactor.seconds()
        self.patch(self.client, "monotonic_s", lambda: now_s + TTL_S)
        self.assertFalse(self.lease.sure)
        self.assertEqual([], self.heard)
        self.network.run(TTL_S)
        self.assertEqual(1, len(self.heard))

    def test_clock_set_back(self) -> None:
        """A step of the reactor's clock does not make it sure for longer: its own clock is monotonic."""
        self.cut_off()
        start_s = self.reactor.seconds()
        ahead_s = [0.0]
        self.patch(self.client, "monotonic_s", lambda: start_s + ahead_s[0])
        ahead_s[0] = TTL_S - 0.5
        self.assertTrue(self.lease.sure)
        ahead_s[0] = TTL_S
        self.assertFalse(self.lease.sure)

    def test_revoked_by_others(self) -> None:
        """A lease that was revoked is lost with its next renewal."""
        self.finish(self.client.kv.lease_revoke(self.lease.id))
        self.pass_time(TTL_S * RENEW_SHARE + 0.5)
        self.assertEqual(1, len(self.heard))
        self.assertIn("revoked", self.heard[0])

    def test_revoke(self) -> None:
        """Given back, its keys are gone, and it never says that it is lost."""
        self.finish(self.client.kv.put("k", lease=self.lease.id))
        self.finish(self.lease.revoke())
        self.assertEqual(0, self.finish(self.client.kv.get("k")).count)
        self.pass_time(TTL_S * 2)
        self.assertNoResult(self.lease.lost)
        self.assertEqual([], self.heard)
        self.finish(self.lease.revoke())

    def test_fail_over(self) -> None:
        """The loss of its node does not end it."""
        self.pass_time(1)
        self.network.kill(5100)
        self.pass_time(TTL_S * 2)
        self.assertTrue(self.lease.sure)

    def test_granted_too_late(self) -> None:
        """A grant that takes longer than the lease lives is an error."""
        self.nodes[0].hold = True
        granting = self.client.lease(2, timeout_s=30)
        self.network.run(2.5)
        self.nodes[0].release()
        self.network.run(0.1)
        self.failureResultOf(granting, LeaseLost)

    def test_listeners(self) -> None:
        """A listener that was taken away hears nothing; a late one hears at once."""
        other: list[Any] = []
        self.lease.on_lost(other.append)()
        self.cut_off()
        self.pass_time(TTL_S + 0.5)
        self.lease.on_lost(self.heard.append)
        self.assertEqual(([], 2), (other, len(self.heard)))
        self.assertIsInstance(self.lease.lost, Deferred)
