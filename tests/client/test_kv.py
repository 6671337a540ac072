"""The key-value store through the client, against nodes in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.client.support import ClientCase
from twisted_paxos.client.kv import create_revision, delete, get, lease_of, mod_revision, put, value, version
from twisted_paxos.errors import KeyValueError, OutcomeUnknown, Overloaded, Unavailable, ValueTooLarge
from twisted_paxos.protocols import queryport
from twisted_paxos.statemachine.kvcommands import Compare, Txn


class KvCase(ClientCase):
    """A connected client."""

    def setUp(self) -> None:
        """Connect it."""
        super().setUp()
        self.client = self.connect(timeout_s=5.0)
        self.kv = self.client.kv

    def fails(self, waiting: Deferred[Any], kind: type[Exception], seconds: float = 0.0) -> Any:
        """The error with which ``waiting`` fails."""
        self.network.run(seconds)
        return self.failureResultOf(waiting, kind).value


class StoreTests(KvCase):
    """Each method, and how refusals are told."""

    def test_put_get_delete(self) -> None:
        """Text and bytes are keys and values; every byte comes back."""
        self.assertEqual(2, self.finish(self.kv.put("é", b"\x00\xff")).revision)
        found = self.finish(self.kv.get("é".encode()))
        self.assertEqual([b"\x00\xff"], [kv.value for kv in found.kvs])
        previous = self.finish(self.kv.put("é", "2", prev_kv=True)).prev_kv
        self.assertEqual((b"\x00\xff", 1), (previous.value, previous.version))
        gone = self.finish(self.kv.delete("é", prev_kv=True))
        self.assertEqual((1, b"2"), (gone.deleted, gone.prev_kvs[0].value))
        self.assertEqual((), self.finish(self.kv.get("é")).kvs)

    def test_ranges(self) -> None:
        """Prefix, range end, from-key, limit, order, keys and count only, an older revision."""
        for key in ("a", "b1", "b2", "c"):
            self.finish(self.kv.put(key, key))

        def keys(*arguments: Any, **options: Any) -> list[str]:
            return [kv.key.decode() for kv in self.finish(self.kv.get(*arguments, **options)).kvs]

        self.assertEqual(["b1", "b2"], keys("b", prefix=True))
        self.assertEqual(["a", "b1", "b2", "c"], keys("", prefix=True))
        self.assertEqual(["b1"], keys("b1", range_end="b2"))
        self.assertEqual(["b2", "c"], keys("b2", from_key=True))
        self.assertEqual(["c", "b2"], keys("", prefix=True, limit=2, sort_order="DESCEND"))
        self.assertEqual(["a"], keys("", prefix=True, revision=2))
        self.assertEqual(["b1"], keys("", prefix=True, min_create_revision=3, max_create_revision=3))
        counted = self.finish(self.kv.get("b", prefix=True, count_only=True))
        self.assertEqual((2, ()), (counted.count, counted.kvs))
        bare = self.finish(self.kv.get("b", prefix=True, keys_only=True, limit=1))
        self.assertEqual((b"", True), (bare.kvs[0].value, bare.more))
        with self.assertRaises(ValueError):
            self.kv.get("a", prefix=True, from_key=True)

    def test_txn(self) -> None:
        """Comparisons are written with operators; the branch that is taken tells its results."""
        self.finish(self.kv.put("k", "v"))
        done = self.finish(
            self.kv.txn(
                [value("k") == "v", version("k") > 0, create_revision("k") < 9, lease_of("k") == 0],
                [put("k", "w"), get("", prefix=True), delete("nothing")],
            )
        )
        self.assertTrue(done.succeeded)
        self.assertEqual([3, 3, 3], [response.revision for response in done.responses])
        done = self.finish(self.kv.txn([mod_revision("k") != 3], [], [get("k"), Txn(success=(get("k"),))]))
        self.assertFalse(done.succeeded)
        self.assertEqual(b"w", done.responses[0].kvs[0].value)
        self.assertEqual(b"w", done.responses[1].responses[0].kvs[0].value)

    def test_comparisons(self) -> None:
        """What the operators make, and what they refuse."""
        self.assertEqual(Compare(b"k", b"l", "MOD", "LESS", mod_revision=7), mod_revision("k", "l") < 7)
        self.assertEqual(Compare(b"k", target="VALUE", result="NOT_EQUAL", value=b"v"), value("k") != b"v")
        for wrong in (lambda: value("k") == 1, lambda: version("k") == "1"):
            self.assertRaises(TypeError, wrong)
        self.fails(self.kv.txn([True]), TypeError)  # type: ignore[list-item]

    def test_refusals(self) -> None:
        """What the store refuses is a KeyValueError with etcd's text and code."""
        future = self.fails(self.kv.get("k", revision=99), KeyValueError)
        self.assertEqual(
            (11, "etcdserver: mvcc: required revision is a future revision"), (future.code, str(future))
        )
        missing = self.fails(self.kv.put("k", lease=77), KeyValueError)
        self.assertEqual((5, "etcdserver: requested lease not found"), (missing.code, missing.message))
        self.fails(self.kv.put(""), KeyValueError)
        self.fails(self.kv.compact(99), KeyValueError)
        self.fails(self.kv.lease_revoke(77), KeyValueError)

    def test_leases(self) -> None:
        """Grant, keys, time to live, keep-alive, the list, revocation, expiry."""
        lease = self.finish(self.kv.lease_grant(10)).id
        self.finish(self.kv.put("k", "v", lease=lease))
        self.nodes[0].advance(4)
        left = self.finish(self.kv.lease_time_to_live(lease, keys=True))
        self.assertEqual((6, 10, (b"k",)), (left.ttl, left.granted_ttl, left.keys))
        self.assertEqual(10, self.finish(self.kv.lease_keep_alive(lease)).ttl)
        self.assertEqual([lease], self.finish(self.kv.leases()))
        self.nodes[0].advance(11)
        self.assertEqual(0, self.finish(self.kv.lease_keep_alive(lease)).ttl)
        self.assertEqual(-1, self.finish(self.kv.lease_time_to_live(lease)).ttl)
        self.assertEqual((), self.finish(self.kv.get("k")).kvs)
        other = self.finish(self.kv.lease_grant(10, 5)).id
        self.assertEqual(5, other)
        self.finish(self.kv.lease_revoke(5))

    def test_status_and_revision(self) -> None:
        """The store's status; the client knows the highest revision that it has seen."""
        self.finish(self.kv.put("k", "v"))
        status = self.finish(self.kv.status())
        self.assertEqual((2, 1), (status.revision, status.keys))
        self.assertEqual(2, self.kv.revision)

    def test_too_large(self) -> None:
        """A value over the limit fails at once, and nothing is sent."""
        self.fails(self.kv.put("k", b"x" * (2 << 20)), ValueTooLarge)
        self.assertEqual(0, self.client.in_flight)

    def test_too_large_result(self) -> None:
        """A transaction whose result fits no frame was applied, and says so."""
        from twisted_paxos.protocols import clientport

        self.patch(clientport, "ANSWER_MAX_BYTES", 100)
        self.finish(self.kv.put("k", "x" * 200))
        error = self.fails(self.kv.txn([], [put("l", "1"), get("k")]), ValueTooLarge)
        self.assertIn("was applied", str(error))
        self.assertEqual(1, self.finish(self.kv.get("l")).count)


class ReadTests(KvCase):
    """Reads over failures."""

    def test_fail_over(self) -> None:
        """A read whose node dies is asked of the next one."""
        self.finish(self.kv.put("k", "v"))
        self.nodes[0].hold_queries = True
        reading = self.kv.get("k")
        self.network.run(0.05)
        self.network.kill(5100)
        self.assertEqual(b"v", self.finish(reading, 0.5).kvs[0].value)

    def test_silent_node(self) -> None:
        """A read at a node that does not answer is asked elsewhere, long before its time is over."""
        self.finish(self.kv.get("k"))
        self.nodes[0].hold_queries = True
        self.nodes[0].leader_works = False
        reading = self.kv.get("k")
        self.finish(reading, 1.5)
        self.assertEqual("127.0.0.1:5101", self.client.endpoint)

    def test_unavailable_at_one_node(self) -> None:
        """A node that says unavailable is left for the next one."""
        self.finish(self.kv.get("k"))
        self.nodes[0].query_error = Unavailable("no leader")
        self.finish(self.kv.get("k"), 0.5)

    def test_overloaded(self) -> None:
        """An overloaded node is asked again after a pause."""
        self.finish(self.kv.get("k"))
        self.nodes[0].query_error = Overloaded("full")
        reading = self.kv.get("k")
        self.network.run(0.2)
        self.assertNoResult(reading)
        self.nodes[0].query_error = None
        self.finish(reading, 1.0)

    def test_timeout(self) -> None:
        """A read without an answer fails when its time is over, with the reason."""
        for node in self.nodes:
            node.hold_queries = True
        reading = self.kv.get("k", timeout_s=1.0)
        self.network.run(0.9)
        self.assertNoResult(reading)
        self.assertIn("no answer in time", str(self.fails(reading, Unavailable, 0.2)))

    def test_answer_too_large(self) -> None:
        """An answer that fits no frame says what to do."""
        self.patch(queryport, "ANSWER_MAX_BYTES", 100)
        self.finish(self.kv.put("k", "x" * 200))
        self.assertIn("limit", str(self.fails(self.kv.get("k"), ValueTooLarge)))

    def test_cancel(self) -> None:
        """A cancelled read ends at once; its late answer changes nothing."""
        self.nodes[0].hold_queries = True
        reading = self.kv.get("k")
        self.network.run(0.01)
        reading.cancel()
        self.failureResultOf(reading)
        self.nodes[0].release_queries()
        self.finish(self.kv.get("k"))

    def test_close(self) -> None:
        """A closed client fails what waits, and takes nothing more."""
        self.nodes[0].hold_queries = True
        reading = self.kv.get("k")
        self.network.run(0.01)
        self.client.close()
        self.fails(reading, Unavailable)
        self.fails(self.kv.get("k"), Unavailable)

    def test_quiet_when_idle(self) -> None:
        """A client that waits for nothing asks nothing: a cancelled read is not pinged for."""
        self.nodes[0].hold_queries = True
        reading = self.kv.get("k")
        self.network.run(0.05)
        reading.cancel()
        self.failureResultOf(reading)
        self.network.run(1.0)
        self.assertFalse(self.client._liveness._timer.active())


class WriteTests(KvCase):
    """What a caller is told of writes."""

    def test_cancelled(self) -> None:
        """A write cancelled after it was sent says that its outcome is unknown."""
        self.finish(self.kv.put("k", "1"))
        self.nodes[0].hold = True
        writing = self.kv.put("k", "2")
        self.network.run(0.01)
        writing.cancel()
        self.failureResultOf(writing, OutcomeUnknown)

    def test_retry_applies_once(self) -> None:
        """A put whose answer is lost is sent again and counts once; its result is the first one."""
        self.finish(self.kv.put("k", "1"))
        self.nodes[0].hold = True
        writing = self.kv.put("k", "2")
        self.network.run(0.01)
        # The node applies it, but the connection breaks before the answer is out.
        commands = [command for held, _ in self.nodes[0].held for command in held]
        self.nodes[1].submit(commands, _Nobody())
        self.network.kill(5100)
        self.assertEqual(3, self.finish(writing, 1.0).revision)
        found = self.finish(self.kv.get("k"))
        self.assertEqual((2, 3), (found.kvs[0].version, found.revision))


class _Nobody:
    """A sink without a client."""

    def applied(self, results: Any) -> None:
        """Nobody is told."""
