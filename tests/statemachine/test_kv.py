"""The store's commands: etcd's results, errors and limits."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import msgspec
from msgspec import Raw, msgpack
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.statemachine.support import Store, reopened
from twisted_paxos.statemachine import kv
from twisted_paxos.statemachine import kvcommands as kvc
from twisted_paxos.statemachine.commands import Context, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import (
    Compare,
    DeleteRange,
    KeyValue,
    LeaseGrant,
    Put,
    Range,
    Txn,
    prefix_end,
)
from twisted_paxos.statemachine.kvlimits import TXN_DEPTH_MAX, VERSION_OVERHEAD_BYTES, KvLimits
from twisted_paxos.statemachine.kvsnapshot import Body, Changes
from twisted_paxos.statemachine.machine import IStateMachine, ITypedMachine
from twisted_paxos.statemachine.watches import WatchRequest

CONTEXT = Context(1, 0, 1)


class ContractTests(SynchronousTestCase):
    """The store as an `IStateMachine`."""

    def test_interface(self) -> None:
        """It is an `IStateMachine`."""
        self.assertTrue(verifyObject(IStateMachine, KeyValueStore()))
        self.assertTrue(verifyObject(ITypedMachine, KeyValueStore()))

    def test_queries(self) -> None:
        """Reads that do not go through the log: ranges, leases, status, and an error for anything else."""
        store = Store()
        lease = store.do(LeaseGrant(10)).id
        store.put(b"k", lease=lease)
        ask = lambda query: msgspec.json.decode(store.kv.query(Raw(kvc.encode(query))))  # noqa: E731
        self.assertEqual(ask(Range(b"k", count_only=True)), {"type": "range", "revision": 2, "count": 1})
        self.assertEqual(ask(kvc.LeaseQuery(lease, keys=True))["keys"], ["aw=="])
        self.assertEqual(ask(kvc.LeasesQuery()), [lease])
        self.assertEqual(ask(kvc.StoreQuery())["keys"], 1)
        self.assertEqual(ask(Put(b"k"))["type"], "error")
        self.assertEqual(store.kv.revision, 2)

    def test_a_query_has_a_largest_answer(self) -> None:
        """A range of too many bytes is refused before it is encoded; with a limit it is answered."""
        self.patch(kv, "ANSWER_MAX_BYTES", 25)
        store = Store()
        for key in (b"a", b"b", b"c"):
            store.put(key, b"123456789")
        ask = lambda query: msgspec.json.decode(store.kv.query(Raw(kvc.encode(query))))  # noqa: E731
        refused = ask(Range(b"a", b"z"))
        self.assertEqual((refused["type"], refused["code"]), ("error", kvc.RESOURCE_EXHAUSTED))
        self.assertEqual(len(ask(Range(b"a", b"z", limit=2))["kvs"]), 2)
        self.assertEqual(ask(Range(b"a", b"z", keys_only=True))["count"], 3)

    def test_history_grows_old_without_commands(self) -> None:
        """The store asks for the slots that age needs: an idle cluster lets go of history as well."""
        store = Store(KvLimits(keep_ms=64_000))
        store.put(b"a")
        store.advance()
        self.assertIsNone(store.kv.deadline_ms)
        for _ in range(3):
            store.put(b"a")
        slots = 0
        while (deadline_ms := store.kv.deadline_ms) is not None:
            store.advance(max(0, deadline_ms - store.time_ms))
            slots += 1
            self.assertLess(slots, 5)
        self.assertEqual(store.kv.compact_revision, store.kv.revision)
        self.assertLessEqual(store.time_ms, 1_000 + 2 * 64_000)

    def test_opaque_values_are_left_alone(self) -> None:
        """Values of the plain log give null and change nothing."""
        store = KeyValueStore()
        for value in ("text", b"\xff\xfe"):
            self.assertEqual(bytes(store.apply(encode_opaque(value), CONTEXT)), b"null")
        self.assertEqual(store.revision, 1)

    def test_malformed(self) -> None:
        """What cannot be decoded has one and the same error, however deep it is nested."""
        store = KeyValueStore()
        deep = b'{"type":"txn","success":[' * 50_000 + b"]}" * 50_000
        payloads = [b'{"type":"unknown"}', b'{"type":"put"}', b"[1]", b'{"type":"put","key":"a"}', b"", deep]
        for payload in payloads:
            self.assertEqual(kvc.decode_result(store.apply(Raw(payload), CONTEXT)), kvc.MALFORMED)

    def test_nested_too_deep(self) -> None:
        """One level over the limit is the same error as what cannot be decoded; the limit itself is fine."""
        store, txn = Store(), Txn(success=(Put(b"k"),))
        for _ in range(TXN_DEPTH_MAX - 1):
            txn = Txn(success=(txn,))
        self.assertTrue(store.do(txn).succeeded)
        self.assertEqual(store.do(Txn(success=(txn,))), kvc.MALFORMED)

    def test_plain_puts_are_no_others(self) -> None:
        """The short way of a plain put gives the results, state and errors of the long one."""
        short, long = Store(KvLimits(quota_bytes=2_000)), Store(KvLimits(quota_bytes=2_000))
        long.kv.watches.create(WatchRequest(b"k"), lambda: None)
        outcomes = []
        for store in (short, long):
            lease = store.do(LeaseGrant(10, id=5)).id
            done = [store.put(b"k", lease=lease), store.put(b"k", b"w"), store.put(b"")]
            store.delete(b"k")
            done += [store.put(key * 20, b"v" * 100) for key in (b"k", b"l", b"k", b"m", b"n", b"o", b"p")]
            outcomes.append((done, store.do(kvc.LeaseRevoke(5)), store.kv.hash(), store.kv.size_bytes))
        self.assertEqual(outcomes[0], outcomes[1])
        self.assertEqual(outcomes[0][0][-1], kvc.NO_SPACE)

    def test_int64(self) -> None:
        """Numbers that no snapshot could hold are refused on the way in."""
        payload = Raw(b'{"type":"lease_grant","ttl":5,"id":%d}' % (1 << 63))
        self.assertEqual(kvc.decode_result(KeyValueStore().apply(payload, CONTEXT)), kvc.MALFORMED)

    def test_base64(self) -> None:
        """Keys and values are base64 in the JSON of commands, and results come back the same way."""
        store = KeyValueStore()
        result = store.apply(Raw(b'{"type":"put","key":"a2V5","value":"AP8="}'), CONTEXT)
        self.assertEqual(bytes(result), b'{"type":"put","revision":2}')
        result = store.apply(Raw(b'{"type":"range","key":"a2V5"}'), CONTEXT)
        self.assertEqual(
            bytes(result), b'{"type":"range","revision":2,"kvs":[["a2V5",2,2,1,"AP8=",0]],"count":1}'
        )


class PutTests(SynchronousTestCase):
    """Puts and deletions."""

    def test_revisions_and_versions(self) -> None:
        """Each put makes one revision; a key that was deleted starts again at version 1."""
        store = Store()
        self.assertEqual(store.put(b"k", b"1").revision, 2)
        self.assertEqual(store.put(b"k", b"2").revision, 3)
        self.assertEqual(store.kv.range(Range(b"k")).kvs, (KeyValue(b"k", 2, 3, 2, b"2"),))
        self.assertEqual((store.delete(b"k").revision, store.delete(b"k").revision), (4, 4))
        store.put(b"k", b"3")
        self.assertEqual(store.kv.range(Range(b"k")).kvs, (KeyValue(b"k", 5, 5, 1, b"3"),))

    def test_prev_kv(self) -> None:
        """The version before comes back only where it was asked for and existed."""
        store = Store()
        self.assertIsNone(store.put(b"k", b"1", prev_kv=True).prev_kv)
        self.assertEqual(store.put(b"k", b"2", prev_kv=True).prev_kv, KeyValue(b"k", 2, 2, 1, b"1"))
        self.assertIsNone(store.put(b"k", b"3").prev_kv)

    def test_ignore_value_and_lease(self) -> None:
        """They keep what the key has, and need the key and the field empty."""
        store = Store()
        lease = store.do(LeaseGrant(60)).id
        self.assertEqual(store.do(Put(b"k", ignore_value=True)), kvc.KEY_NOT_FOUND)
        self.assertEqual(store.do(Put(b"k", b"v", ignore_lease=True)), kvc.KEY_NOT_FOUND)
        store.put(b"k", b"1", lease=lease)
        self.assertEqual(store.do(Put(b"k", b"v", ignore_value=True)), kvc.VALUE_PROVIDED)
        self.assertEqual(store.do(Put(b"k", b"v", lease, ignore_lease=True)), kvc.LEASE_PROVIDED)
        store.do(Put(b"k", b"2", ignore_lease=True))
        store.do(Put(b"k", ignore_value=True))
        self.assertEqual(store.kv.range(Range(b"k")).kvs, (KeyValue(b"k", 2, 4, 3, b"2", 0),))

    def test_errors(self) -> None:
        """Empty keys and unknown leases are etcd's errors and change nothing."""
        store = Store()
        self.assertEqual(store.put(b""), kvc.EMPTY_KEY)
        self.assertEqual(store.delete(b""), kvc.EMPTY_KEY)
        self.assertEqual(store.do(Range(b"")), kvc.EMPTY_KEY)
        self.assertEqual(store.put(b"k", lease=7), kvc.LEASE_NOT_FOUND)
        self.assertEqual(store.kv.revision, 1)

    def test_delete_range(self) -> None:
        """A range goes in one revision, in the order of keys."""
        store = Store()
        for key in (b"b1", b"b2", b"c", b"a"):
            store.put(key, key)
        result = store.do(DeleteRange(b"b", prefix_end(b"b"), prev_kv=True))
        self.assertEqual((result.revision, result.deleted), (6, 2))
        self.assertEqual([kv.key for kv in result.prev_kvs], [b"b1", b"b2"])
        self.assertEqual(store.values(), {b"a": b"a", b"c": b"c"})

    def test_prefix_end(self) -> None:
        """The end of a prefix, also where it ends in 0xff."""
        self.assertEqual(prefix_end(b"ab"), b"ac")
        self.assertEqual(prefix_end(b"a\xff\xff"), b"b")
        self.assertEqual(prefix_end(b"\xff"), b"\0")
        self.assertEqual(prefix_end(b""), b"\0")


class RangeTests(SynchronousTestCase):
    """Reads."""

    def setUp(self) -> None:
        """Revisions 2 to 5: a, b, c, and b again."""
        self.store = Store()
        for key, value in ((b"a", b"3"), (b"b", b"2"), (b"c", b"1"), (b"b", b"0")):
            self.store.put(key, value)

    def keys(self, **options: object) -> list[bytes]:
        """The keys of a read of everything."""
        return [kv.key for kv in self.store.kv.range(Range(b"\0", b"\0", **options)).kvs]

    def test_limit_and_count(self) -> None:
        """``count`` is of the whole range, ``more`` says that the limit cut."""
        result = self.store.kv.range(Range(b"a", b"\0", limit=2))
        self.assertEqual((len(result.kvs), result.more, result.count), (2, True, 3))
        result = self.store.kv.range(Range(b"a", b"\0", limit=3))
        self.assertEqual((len(result.kvs), result.more, result.count), (3, False, 3))
        self.assertEqual(self.store.kv.range(Range(b"a", b"c", count_only=True)).count, 2)

    def test_order(self) -> None:
        """Sorted by any target, either way."""
        self.assertEqual(self.keys(sort_order="DESCEND"), [b"c", b"b", b"a"])
        self.assertEqual(self.keys(sort_target="MOD", sort_order="ASCEND"), [b"a", b"c", b"b"])
        self.assertEqual(self.keys(sort_target="VALUE"), [b"b", b"c", b"a"])
        self.assertEqual(self.keys(sort_target="VERSION", sort_order="DESCEND", limit=1), [b"b"])

    def test_filters(self) -> None:
        """Bounds on revisions leave keys out but do not change the count."""
        self.assertEqual(self.keys(min_mod_revision=4), [b"b", b"c"])
        self.assertEqual(self.keys(max_mod_revision=4), [b"a", b"c"])
        self.assertEqual(self.keys(min_create_revision=3, max_create_revision=3), [b"b"])
        self.assertEqual(self.store.kv.range(Range(b"\0", b"\0", min_mod_revision=4)).count, 3)

    def test_keys_only(self) -> None:
        """Values are left out of the answer, and stay in the store."""
        result = self.store.kv.range(Range(b"a", keys_only=True))
        self.assertEqual(result.kvs, (KeyValue(b"a", 2, 2, 1),))
        self.assertEqual(self.store.values()[b"a"], b"3")

    def test_revisions(self) -> None:
        """An old revision shows what was; a future or compacted one is an error."""
        self.assertEqual(self.store.values(3), {b"a": b"3", b"b": b"2"})
        self.assertEqual(self.store.kv.range(Range(b"a", revision=6)), kvc.FUTURE_REVISION)
        self.store.compact(4)
        self.assertEqual(self.store.kv.range(Range(b"a", revision=3)), kvc.COMPACTED)
        self.assertEqual(self.store.values(4), {b"a": b"3", b"b": b"2", b"c": b"1"})

    def test_empty_range(self) -> None:
        """An end below the start selects nothing."""
        self.assertEqual(self.store.kv.range(Range(b"b", b"a")), kvc.RangeResult(5))


class TxnTests(SynchronousTestCase):
    """Transactions."""

    def test_order_of_refusals(self) -> None:
        """What a put lacks is said before what a read cannot have, wherever they stand."""
        store = Store()
        reads, puts = Range(b"a", revision=99), Put(b"a", ignore_value=True)
        for operations in ((reads, puts), (puts, reads), (Txn(success=(reads,)), Txn(success=(puts,)))):
            self.assertEqual(store.do(Txn(success=operations)), kvc.KEY_NOT_FOUND)
        self.assertEqual(store.do(Txn(success=(reads, Put(b"a", lease=7)))), kvc.LEASE_NOT_FOUND)

    def test_negative_revision(self) -> None:
        """A revision below 0 is compacted inside a transaction, and the present outside of one."""
        store = Store()
        store.do(Put(b"a", b"1"))
        read = Range(b"a", revision=-1)
        self.assertEqual(store.do(Txn(success=(read,))).responses[0].count, 1)
        store.do(kvc.Compact(2))
        self.assertEqual(store.do(Txn(success=(read,))), kvc.COMPACTED)
        self.assertEqual(store.do(read).count, 1)

    def test_one_revision(self) -> None:
        """All its changes make one revision; it sees its own, and a reading one makes none."""
        store = Store()
        txn = Txn(success=(Range(b"a"), Put(b"a", b"1"), Range(b"a"), DeleteRange(b"b"), Put(b"c", b"2")))
        result = store.do(txn)
        self.assertEqual((result.revision, store.kv.revision), (2, 2))
        self.assertEqual([r.revision for r in result.responses], [1, 2, 2, 2, 2])
        self.assertEqual([r.count for r in (result.responses[0], result.responses[2])], [0, 1])
        self.assertEqual(store.do(Txn(success=(Range(b"a"),))).revision, 2)

    def test_compares(self) -> None:
        """Every compare must hold; an absent key has version 0, and no value to compare with."""
        store = Store()
        store.put(b"k", b"5")
        holds = lambda *compares: store.do(Txn(compare=compares)).succeeded  # noqa: E731
        self.assertTrue(holds(Compare(b"k", target="VALUE", value=b"5"), Compare(b"x")))
        self.assertFalse(holds(Compare(b"k", target="VALUE", value=b"5"), Compare(b"x", version=1)))
        self.assertFalse(holds(Compare(b"x", target="VALUE", result="NOT_EQUAL", value=b"5")))
        self.assertTrue(holds(Compare(b"k", target="MOD", result="LESS", mod_revision=3)))
        self.assertTrue(holds(Compare(b"k", target="CREATE", result="GREATER", create_revision=1)))
        self.assertTrue(holds(Compare(b"k", target="LEASE", lease=0)))

    def test_compare_range(self) -> None:
        """With a range, it must hold for every key in it."""
        store = Store()
        store.put(b"a1")
        store.put(b"a2")
        one = Compare(b"a", b"b", "VERSION", "EQUAL", version=1)
        self.assertTrue(store.do(Txn(compare=(one,))).succeeded)
        store.put(b"a2")
        self.assertFalse(store.do(Txn(compare=(one,))).succeeded)

    def test_nested_compare_sees_the_state_before(self) -> None:
        """A nested transaction is decided before the outer one's puts, as in etcd."""
        store = Store()
        nested = Txn((Compare(b"k", version=0),), (Put(b"n", b"absent"),), (Put(b"n", b"present"),))
        store.do(Txn(success=(Put(b"k"), nested)))
        self.assertEqual(store.values()[b"n"], b"absent")

    def test_duplicate_keys(self) -> None:
        """A key put twice, or put and deleted, is refused at any depth; two branches exclude each other."""
        store = Store()
        put, nested = Put(b"k"), Txn(success=(Put(b"k"),), failure=(Put(b"k"),))
        refused = [
            (put, put),
            (put, DeleteRange(b"a", b"z")),
            (put, DeleteRange(b"a", b"\0")),
            (put, nested),
            (nested, nested),
            (DeleteRange(b"k"), nested),
            (Txn(success=(DeleteRange(b"a", b"l"),)), Txn(failure=(put,))),
        ]
        for operations in refused:
            self.assertEqual(store.do(Txn(success=operations)), kvc.DUPLICATE_KEY)
            self.assertEqual(store.do(Txn(failure=operations)), kvc.DUPLICATE_KEY)
        self.assertEqual(store.kv.revision, 1)
        self.assertEqual(store.do(Txn(success=(nested, DeleteRange(b"l", b"z")))).revision, 2)

    def test_put_then_deleted_in_one_revision(self) -> None:
        """A nested put before a nested deletion passes, as in etcd: both are events of one revision."""
        store = Store()
        txn = Txn(success=(Txn(success=(Put(b"k"),)), Txn(success=(DeleteRange(b"k"),))))
        self.assertEqual(store.do(txn).responses[1].responses[0].deleted, 1)
        self.assertEqual((store.values(), store.kv.revision), ({}, 2))
        other = reopened(store)
        self.assertEqual(other.kv.hash(), store.kv.hash())

    def test_refused_as_a_whole(self) -> None:
        """One operation that cannot be done, in the branch that is taken, and nothing is done."""
        store = Store()
        bad = [
            (Put(b"x", ignore_value=True), kvc.KEY_NOT_FOUND),
            (Put(b"x", lease=9), kvc.LEASE_NOT_FOUND),
            (Range(b"x", revision=9), kvc.FUTURE_REVISION),
            (Put(b""), kvc.EMPTY_KEY),
        ]
        for operation, error in bad:
            self.assertEqual(store.do(Txn(success=(Put(b"a"), operation))), error)
        self.assertEqual(store.kv.revision, 1)
        self.assertEqual(store.do(Txn(success=(Put(b"a"),), failure=(bad[1][0],))).revision, 2)

    def test_compacted_read_makes_no_members_differ(self) -> None:
        """A transaction that reads a compacted revision is refused, on a restored member too."""
        store = Store()
        for _ in range(5):
            store.put(b"k")
        store.compact(5)
        other = reopened(store)
        txn = Txn(success=(Put(b"a"), Range(b"k", revision=4)))
        self.assertEqual(store.do(txn), kvc.COMPACTED)
        self.assertEqual(other.do(txn), kvc.COMPACTED)
        self.assertEqual(store.kv.hash(), other.kv.hash())


class LimitTests(SynchronousTestCase):
    """What is too much."""

    def test_request_size(self) -> None:
        """Keys and values count, not their base64; one byte over the limit is refused."""
        store = Store(KvLimits(request_max_bytes=1_000))
        self.assertEqual(store.put(b"k", b"x" * 999).revision, 2)
        self.assertEqual(store.put(b"k", b"x" * 1_000), kvc.REQUEST_TOO_LARGE)
        txn = Txn((Compare(b"k" * 500),), (Put(b"k", b"x" * 499),), (Range(b"z"),))
        self.assertEqual(store.do(txn), kvc.REQUEST_TOO_LARGE)

    def test_default_request_size(self) -> None:
        """1.5 MiB, as in etcd."""
        store = Store()
        self.assertEqual(store.put(b"k", b"x" * (3 * 512 * 1024 - 1)).revision, 2)
        self.assertEqual(store.put(b"k", b"x" * (3 * 512 * 1024)), kvc.REQUEST_TOO_LARGE)

    def test_operations(self) -> None:
        """128 of a kind, 129 are too many; what is nested has what the level above left."""
        store = Store()
        puts = tuple(Put(b"%d" % n) for n in range(129))
        self.assertEqual(store.do(Txn(success=puts)), kvc.TOO_MANY_OPS)
        self.assertEqual(store.do(Txn(failure=puts)), kvc.TOO_MANY_OPS)
        self.assertTrue(store.do(Txn(success=puts[:128])).succeeded)
        self.assertEqual(store.do(Txn(success=(Txn(success=puts[:128]),))), kvc.TOO_MANY_OPS)

    def test_quota(self) -> None:
        """Over the quota puts and grants are refused; deletions and compaction work and make room."""
        store = Store(KvLimits(quota_bytes=10 * (VERSION_OVERHEAD_BYTES + 100), keep_revisions=100))
        for n in range(9):
            store.put(b"%d" % n, b"x" * 99)
        self.assertEqual(store.put(b"more", b"x" * 400), kvc.NO_SPACE)
        self.assertEqual(store.do(Txn(success=(Put(b"more", b"x" * 400),))), kvc.NO_SPACE)
        self.assertEqual(store.do(LeaseGrant(10)), kvc.NO_SPACE)
        self.assertEqual(store.do(Txn(success=(DeleteRange(b"0", b"5"),))).responses[0].deleted, 5)
        self.assertEqual(store.put(b"more", b"x" * 400), kvc.NO_SPACE)
        store.compact(store.kv.revision)
        self.assertEqual(
            store.put(b"more", b"x" * 400), kvc.NO_SPACE
        )  # the revision compacted at is readable
        store.delete(b"8")
        store.compact(store.kv.revision)
        self.assertEqual(store.put(b"more", b"x" * 400).revision, 13)

    def test_size_does_not_wait_for_sweeping(self) -> None:
        """A member in the middle of a snapshot cannot clean its memory, yet it has the same size."""
        one, two = Store(), Store()
        under_way = two.kv.snapshot()
        for store in (one, two):
            for n in range(100):
                store.put(b"%d" % (n % 7))
            store.compact(80)
            store.sweep()
        self.assertEqual(one.kv.size_bytes, two.kv.size_bytes)
        under_way.close()
        two.sweep()
        self.assertEqual(one.kv.hash(), two.kv.hash())


def changes_of(data: bytes) -> list[list[KeyValue]]:
    """The records of each frame of changes in a snapshot."""
    frames = []
    while data:
        length = 4 + int.from_bytes(data[:4], "big")
        body = msgpack.decode(data[4:length], type=Body)
        if isinstance(body, Changes):
            frames.append(body.kvs)
        data = data[length:]
    return frames


class SnapshotTests(SynchronousTestCase):
    """`KeyValueStore.snapshot` and `restore`; the model's tests try many more states."""

    def filled(self) -> Store:
        """Some keys, history, leases, a compaction."""
        store = Store()
        lease = store.do(LeaseGrant(30)).id
        for n in range(300):
            store.put(b"k%03d" % (n % 120), b"v" * n, lease=lease if n % 9 == 0 else 0)
        store.delete(b"k00", b"k05")
        store.compact(150)
        return store

    def test_two_snapshots_close_together(self) -> None:
        """Both are of their own moment, though read at the same time while changes go on."""
        store = self.filled()
        first_hash, first = store.kv.hash(), store.kv.snapshot(step=10)
        pieces_one = [next(first), next(first)]
        store.put(b"k001", b"between")
        second_hash, second = store.kv.hash(), store.kv.snapshot(step=10)
        pieces_two = []
        for n, piece in enumerate(second):
            pieces_two.append(piece)
            pieces_one.append(next(first, b""))
            store.delete(b"k%03d" % n)
            store.compact(store.kv.revision)
            store.advance()
        pieces_one += first
        for pieces, wanted in ((pieces_one, first_hash), (pieces_two, second_hash)):
            other = Store()
            for _ in other.kv.restore(iter(pieces)):
                pass
            self.assertEqual(other.kv.hash(), wanted)

    def test_pieces_of_any_length(self) -> None:
        """Reading does not depend on where the stream is cut."""
        store = self.filled()
        data = b"".join(store.kv.snapshot())
        for length in (1, 3, 1000, len(data)):
            other, taken = Store(), []
            pieces = (data[n : n + length] for n in range(0, len(data), length))
            for _ in other.kv.restore(taken.append(piece) or piece for piece in pieces):
                self.assertLessEqual(len(taken), 1)  # the caller can do something between any two
                taken.clear()
            self.assertEqual(other.kv.hash(), store.kv.hash())

    def test_large_values_in_small_pieces(self) -> None:
        """No piece is above 64 KiB, whatever the values."""
        store = Store()
        store.put(b"k", b"x" * 1_000_000)
        self.assertLessEqual(max(map(len, store.kv.snapshot())), 65_536)
        self.assertEqual(reopened(store).values(), store.values())

    def test_frames_end_by_the_versions_alone(self) -> None:
        """A frame ends at so many records or bytes, in whatever stretches they were found."""
        step = 7
        ends = {"records": 0, "bytes": 0}
        for seed in range(40):
            random = Random(seed)
            store = Store()
            for _ in range(120):
                key, fate = b"k%d" % random.randrange(20), random.random()
                if fate < 0.1:
                    store.delete(b"k", b"k%d" % random.randrange(20))
                elif fate < 0.2:
                    store.do(Txn((), tuple(Put(b"t%d" % n, key) for n in range(random.randrange(1, 20)))))
                else:
                    store.put(key, b"v" * random.choice((5, 5, 5, 30_000, 70_000)))
            if seed % 2:
                store.compact(random.randrange(2, store.kv.revision))
            for kvs, following in pairwise(changes_of(b"".join(store.kv.snapshot(step)))):
                sizes = [len(kv.key) + len(kv.value) for kv in kvs]
                why = "bytes" if sum(sizes) >= 65_536 else "records"
                ends[why] += bool(following)
                self.assertLess(sum(sizes[:-1]), 65_536)
                self.assertTrue(len(kvs) == step or why == "bytes", f"seed {seed}")
                self.assertLessEqual(len(kvs), step)
        self.assertGreater(min(ends.values()), 100)

    def test_damage(self) -> None:
        """A snapshot that is cut off, changed, or something else is refused, and the state stays."""
        store, other = self.filled(), Store()
        other.put(b"mine")
        data = b"".join(store.kv.snapshot())
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        head_only = msgpack.encode(["end", 0])
        bad = [b"", data[:-1], data[:1000], bytes(changed), data + b"x", b"\xff" * 100, b"\0\0\0\1\xc0"]
        bad += [len(head_only).to_bytes(4, "big") + head_only, data + data]
        for pieces in bad:
            with self.assertRaises(ValueError):
                for _ in other.kv.restore(iter((pieces,))):
                    pass
        self.assertEqual(other.values(), {b"mine": b"v"})

    def test_revision_after_restore(self) -> None:
        """The revision does not go back over a compaction and a restart from a snapshot."""
        store = self.filled()
        store.delete(b"\0", b"\0")
        store.compact(store.kv.revision)
        store.sweep()
        other = reopened(store)
        self.assertEqual(other.kv.revision, store.kv.revision)
        self.assertEqual(other.put(b"k").revision, store.put(b"k").revision)
