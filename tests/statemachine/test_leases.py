"""Leases, whose time is the log's."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.statemachine.support import Store, reopened
from twisted_paxos.statemachine import kvcommands as kvc
from twisted_paxos.statemachine.kvcommands import LeaseGrant, LeaseKeepAlive, LeaseRevoke
from twisted_paxos.statemachine.kvlimits import EXPIRED_KEYS_PER_SLOT, EXPIRED_LEASES_PER_SLOT, KvLimits


class LeaseTests(SynchronousTestCase):
    """Grant, keep alive, revoke, expire."""

    def setUp(self) -> None:
        """An empty store."""
        self.store = Store()

    def grant(self, ttl_s: int, lease_id: int = 0) -> int:
        """A new lease's id."""
        return self.store.do(LeaseGrant(ttl_s, lease_id)).id

    def test_grant(self) -> None:
        """An id is taken as given, or picked, a new one each time; short leases are made longer."""
        self.assertEqual(self.store.do(LeaseGrant(60, 7)), kvc.LeaseGrantResult(1, 7, 60))
        self.assertEqual(self.store.do(LeaseGrant(60, 7)), kvc.LEASE_EXISTS)
        self.assertEqual(self.store.do(LeaseGrant(0, 8)).ttl, 2)
        self.assertEqual(self.store.do(LeaseGrant(9_000_000_001)), kvc.TTL_TOO_LARGE)
        self.assertEqual(len({self.grant(60), self.grant(60), 7, 8}), 4)

    def test_picked_id_is_the_same_everywhere(self) -> None:
        """A restored member picks what the first one picks, also where the first choice is taken."""
        taken = self.grant(60, (2 << 20))
        other = reopened(self.store)
        picked = self.grant(60)
        self.assertNotEqual(picked, taken)
        self.assertEqual(other.do(LeaseGrant(60)).id, picked)

    def test_expiry(self) -> None:
        """Its keys go when log time reaches the deadline, in one revision, not a millisecond earlier."""
        lease = self.grant(10)
        for key in (b"b", b"a"):
            self.store.put(key, lease=lease)
        self.store.put(b"c")
        self.assertEqual(self.store.kv.deadline_ms, self.store.time_ms + 10_000)
        self.store.advance(9_999)
        self.assertEqual(len(self.store.values()), 3)
        self.store.advance(1)
        self.assertEqual((list(self.store.values()), self.store.kv.revision), ([b"c"], 5))
        self.assertEqual([kv.key for kv in self.store.kv._mvcc.log.entry(5)], [b"a", b"b"])
        self.assertEqual(self.store.kv.leases(), [])

    def test_keep_alive(self) -> None:
        """It starts the time again; for a lease that is gone it says so with 0."""
        lease = self.grant(10)
        self.store.advance(9_000)
        self.assertEqual(self.store.do(LeaseKeepAlive(lease)).ttl, 10)
        self.store.advance(9_000)
        self.assertEqual(self.store.kv.lease_time_to_live(lease).ttl, 1)
        self.store.advance(1_000)
        self.assertEqual(self.store.do(LeaseKeepAlive(lease)).ttl, 0)
        self.assertEqual(self.store.kv.lease_time_to_live(lease).ttl, -1)

    def test_over_before_it_is_cleaned_up(self) -> None:
        """From its deadline on a lease takes no keys and cannot be revived, slot or no slot."""
        lease = self.grant(10)
        self.store.time_ms += 10_000
        self.assertEqual(self.store.put(b"k", lease=lease), kvc.LEASE_NOT_FOUND)
        self.assertEqual(self.store.do(LeaseKeepAlive(lease)).ttl, 0)

    def test_no_time_no_expiry(self) -> None:
        """Two holders of one lock after a pause: while log time stands still, the first lease stands."""
        lease = self.grant(5)
        self.store.put(b"lock", b"first", lease=lease)
        for _ in range(1_000):
            self.store.advance()
        self.assertEqual(self.store.values(), {b"lock": b"first"})

    def test_revoke(self) -> None:
        """It deletes the keys at once; a second time it is not found."""
        lease = self.grant(10)
        self.store.put(b"a", lease=lease)
        self.assertEqual(self.store.do(LeaseRevoke(lease)).revision, 3)
        self.assertEqual(self.store.values(), {})
        self.assertEqual(self.store.do(LeaseRevoke(lease)), kvc.LEASE_NOT_FOUND)

    def test_moving_keys(self) -> None:
        """A key hangs on the lease of its last put only."""
        one, two = self.grant(10), self.grant(20)
        self.store.put(b"a", lease=one)
        self.store.put(b"b", lease=one)
        self.store.put(b"c", lease=one)
        self.store.put(b"a", lease=two)
        self.store.put(b"b")
        self.store.delete(b"c")
        self.assertEqual(self.store.kv.lease_time_to_live(one, keys=True).keys, ())
        self.assertEqual(self.store.kv.lease_time_to_live(two, keys=True).keys, (b"a",))
        self.store.advance(10_000)
        self.assertEqual(list(self.store.values()), [b"a", b"b"])

    def test_after_restore(self) -> None:
        """Leases, their time and their keys come through a snapshot."""
        one, two = self.grant(10), self.grant(20)
        self.store.put(b"a", lease=one)
        self.store.put(b"b", lease=two)
        self.store.compact(3)
        self.store.put(b"a2", lease=one)
        self.store.advance(3_000)
        other = reopened(self.store)
        self.assertEqual(other.kv.leases(), sorted((one, two)))
        self.assertEqual(other.kv.lease_time_to_live(one, True), self.store.kv.lease_time_to_live(one, True))
        other.advance(7_000)
        self.assertEqual(list(other.values()), [b"b"])

    def test_ten_thousand_at_once(self) -> None:
        """Leases that end together go over many slots, a bounded number each, and all of them in the end."""
        for n in range(10_000):
            self.store.do(LeaseGrant(10, n + 1))
            self.store.put(b"%05d" % n, lease=n + 1)
        self.store.time_ms += 10_000
        left, slots, now_ms = 10_000, 0, self.store.time_ms
        while (self.store.kv.deadline_ms or now_ms + 1) <= now_ms:
            self.store.advance()
            self.assertLessEqual(left - len(self.store.kv), EXPIRED_LEASES_PER_SLOT)
            left, slots = len(self.store.kv), slots + 1
        self.assertEqual((left, slots), (0, 10_000 // EXPIRED_LEASES_PER_SLOT))

    def test_many_keys_a_lease(self) -> None:
        """Leases with many keys each stop a slot's work after the one that passes the limit."""
        for lease in (1, 2):
            self.store.do(LeaseGrant(10, lease))
            for n in range(EXPIRED_KEYS_PER_SLOT):
                self.store.put(b"%d/%d" % (lease, n), lease=lease)
        self.store.advance(10_000)
        self.assertEqual(len(self.store.kv), EXPIRED_KEYS_PER_SLOT)

    def test_too_many(self) -> None:
        """There is a limit, with its own error."""
        store = Store(KvLimits(leases_max=2))
        for _ in range(2):
            store.do(LeaseGrant(10))
        self.assertEqual(store.do(LeaseGrant(10)), kvc.TOO_MANY_LEASES)

    def test_heap_is_bounded(self) -> None:
        """Leases that are granted and revoked for ever leave nothing behind."""
        self.grant(1_000)
        for _ in range(2_000):
            self.store.do(LeaseRevoke(self.grant(1_000)))
        self.assertLess(len(self.store.kv._leases._heap), 100)
