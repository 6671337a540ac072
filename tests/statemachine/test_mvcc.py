"""Versions, their compaction, and what is kept of them."""

from __future__ import annotations

import gc
from itertools import pairwise
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.statemachine.support import Store, reopened
from twisted_paxos.statemachine import kvcommands as kvc
from twisted_paxos.statemachine.intervals import IntervalMap
from twisted_paxos.statemachine.kvcommands import KeyValue
from twisted_paxos.statemachine.kvlimits import SWEEP_EVENTS_MAX, VERSION_OVERHEAD_BYTES, KvLimits
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.ranges import Bounds, Coverage, bounds_of, within


def put(mvcc: Mvcc, key: bytes, value: bytes = b"v") -> None:
    """One put, one revision."""
    mvcc.put(key, value, 0)
    mvcc.commit()


def versions(mvcc: Mvcc) -> int:
    """How many versions are in memory."""
    histories = [history for shard in mvcc._shards for history in shard.values()]
    return sum(1 if isinstance(history, KeyValue) else len(history) for history in histories)


class MvccTests(SynchronousTestCase):
    """`Mvcc` alone."""

    def test_old_revisions_equal_a_replay(self) -> None:
        """What is read at each revision is what a replay up to it gives."""
        rng, mvcc, states = Random(5), Mvcc(), [{}, {}]
        for _ in range(600):
            state, key = dict(states[-1]), b"%d" % rng.randrange(12)
            if rng.random() < 0.3 and key in state:
                mvcc.delete(key)
                del state[key]
            else:
                state[key] = b"%d" % len(states)
                mvcc.put(key, state[key], 0)
            mvcc.commit()
            states.append(state)
            if len(states) == 300:
                mvcc.compact(150)
                mvcc.sweep(10_000)
        for revision in range(150, mvcc.revision + 1):
            read = {kv.key: kv.value for kv in mvcc.scan_at((b"", None), revision)}
            self.assertEqual(read, states[revision])
            self.assertEqual(list(read), sorted(read))

    def test_sweeping_frees_everything(self) -> None:
        """After compaction at the present only present versions, and those of its revision, are left."""
        mvcc = Mvcc()
        for n in range(5_000):
            put(mvcc, b"%d" % (n % 3))
        for key in (b"0", b"1"):
            mvcc.delete(key)
            mvcc.commit()
        mvcc.compact(mvcc.revision)
        mvcc.sweep(100_000)
        self.assertEqual(versions(mvcc), 3)  # 2, the deletion of 1, and what it deleted
        put(mvcc, b"x")
        mvcc.compact(mvcc.revision)
        mvcc.sweep(100_000)
        self.assertEqual((versions(mvcc), len(mvcc)), (2, 2))

    def test_sweeping_is_bounded(self) -> None:
        """One step looks at no more versions than it may, also inside one revision with many changes."""
        mvcc = Mvcc()
        for n in range(1_000):
            mvcc.put(b"%d" % n, b"v", 0)
        mvcc.commit()
        for n in range(1_000):
            mvcc.put(b"%d" % n, b"w", 0)
        mvcc.commit()
        put(mvcc, b"x")
        mvcc.compact(4)
        left = [versions(mvcc)]
        while left[-1] > 1_001:
            mvcc.sweep(100)
            left.append(versions(mvcc))
        self.assertEqual(len(left), 21)  # 10 steps over what was first there, then 100 a step
        self.assertLessEqual(max(a - b for a, b in pairwise(left)), 100)

    def test_sweeping_many_is_sweeping_each(self) -> None:
        """What is left after sweeping in one go is what is left one by one."""
        for seed in range(60):
            rng, many, each = Random(seed), Mvcc(), Mvcc()
            keys = rng.choice((1, 2, 12))
            for _ in range(rng.randrange(2, 60 * keys)):
                changes = rng.choice((1, 1, 1, 3)) if seed % 2 else 1
                doomed = rng.random() < 0.2
                for _ in range(changes):
                    key = b"%d" % rng.randrange(keys)
                    for mvcc in (many, each):
                        if doomed and mvcc.get(key):
                            mvcc.delete(key)
                        elif key not in [kv.key for kv in mvcc.pending]:
                            mvcc.put(key, b"v", 0)
                for mvcc in (many, each):
                    if mvcc.pending:
                        mvcc.commit()
                if rng.random() < 0.05 and many.revision > max(many.compact_revision, 1):
                    revision = rng.randrange(max(many.compact_revision, 1) + 1, many.revision + 1)
                    many.compact(revision)
                    each.compact(revision)
                    many.sweep(rng.randrange(1, 1_000))
                    for _ in range(1_000):
                        each.sweep(1)
            for mvcc, step in ((many, 1_000), (each, 1)):
                if mvcc.revision > max(mvcc.compact_revision, 1):
                    mvcc.compact(mvcc.revision)
                while mvcc.log.first < mvcc.compact_revision:
                    mvcc.sweep(step)
            self.assertEqual(many._shards, each._shards, f"seed {seed}")
            self.assertEqual(list(many._dead), list(each._dead))
            self.assertEqual((many.log.first, many.size_bytes), (each.log.first, each.size_bytes))

    def test_hot_key_memory(self) -> None:
        """A key that changes all the time keeps no more than a small part above what is not compacted."""
        mvcc = Mvcc()
        for n in range(20_000):
            put(mvcc, b"hot", b"%d" % n)
            if mvcc.revision > 1_002:
                mvcc.compact(mvcc.revision - 1_000)
            mvcc.sweep(10)
        self.assertLess(versions(mvcc), 1_010)
        self.assertEqual(mvcc.get_at(b"hot", mvcc.revision - 1_000), mvcc.log.entry(mvcc.revision - 1_000)[0])

    def test_size_equals_a_recount(self) -> None:
        """``size_bytes`` is what a member has that was restored with nothing but what can be read."""
        store = Store()
        for n in range(500):
            store.put(b"%d" % (n % 40), b"x" * (n % 50))
            if n % 7 == 0:
                store.delete(b"%d" % (n % 30))
        for revision in (2, 3, 100, 400):
            store.compact(revision)
            self.assertEqual(store.kv.size_bytes, reopened(store).kv.size_bytes)

    def test_few_objects_for_the_collector(self) -> None:
        """A key that is put once or twice adds no object that the cyclic collector has to visit."""
        mvcc = Mvcc()
        put(mvcc, b"warm")
        gc.collect()
        before = len(gc.get_objects())
        for n in range(20_000):
            put(mvcc, b"%d" % n)
        for n in range(1_000):
            put(mvcc, b"%d" % n)
        gc.collect()
        self.assertLess(len(gc.get_objects()) - before, 500)

    def test_count_without_reading(self) -> None:
        """Counting a range of the present is right with keys that were deleted in it."""
        mvcc = Mvcc()
        for n in range(100):
            put(mvcc, b"%02d" % n)
        for n in range(0, 100, 3):
            mvcc.delete(b"%02d" % n)
            mvcc.commit()
        for bounds in ((b"10", b"20"), (b"", None), (b"50", None), (b"9", b"1")):
            self.assertEqual(mvcc.count(bounds), len(list(mvcc.scan(bounds))))


class RetentionTests(SynchronousTestCase):
    """History goes by itself."""

    def test_by_revisions(self) -> None:
        """The latest ``keep_revisions`` can be read, older ones not."""
        store = Store(KvLimits(keep_revisions=10))
        for n in range(50):
            store.put(b"k", b"%d" % n)
            store.advance()
        self.assertEqual(store.kv.compact_revision, store.kv.revision - 9)
        self.assertEqual(store.values(store.kv.revision - 9), {b"k": b"40"})

    def test_by_age(self) -> None:
        """What was present ``keep_ms`` ago can be read; what was superseded long before cannot."""
        store = Store(KvLimits(keep_ms=64_000))
        for n in range(200):
            store.put(b"k", b"%d" % n)
            store.advance(1_000)
        oldest = store.kv.compact_revision
        self.assertIn(store.kv.revision - oldest, (64, 65, 66))

    def test_by_size(self) -> None:
        """Superseded versions take ``keep_bytes`` at most."""
        keep_bytes = 10 * (VERSION_OVERHEAD_BYTES + 101)
        store = Store(KvLimits(keep_bytes=keep_bytes))
        for _ in range(50):
            store.put(b"k", b"x" * 100)
            store.advance()
        # Ten superseded ones, that before the compacted revision included, and the present one.
        self.assertEqual(store.kv.revision - store.kv.compact_revision, 9)
        self.assertEqual(store.kv.size_bytes, keep_bytes + VERSION_OVERHEAD_BYTES + 101)

    def test_space_is_bounded_without_an_operator(self) -> None:
        """Overwriting a few keys for ever stays within the quota, on its own."""
        store = Store(KvLimits(quota_bytes=100_000))
        for n in range(2_000):
            self.assertIsInstance(store.put(b"%d" % (n % 5), b"x" * 500), kvc.PutResult)
            store.advance()
        self.assertLess(versions(store.kv._mvcc), 150)

    def test_compaction_errors(self) -> None:
        """Below or at what is compacted, and above the present, is refused."""
        store = Store()
        store.put(b"k")
        store.put(b"k")
        self.assertEqual(store.compact(4), kvc.FUTURE_REVISION)
        self.assertEqual(store.compact(2).revision, 3)
        self.assertEqual(store.compact(2), kvc.COMPACTED)
        self.assertEqual(store.kv.compact_revision, 2)

    def test_revision_does_not_go_back_during_compaction(self) -> None:
        """Revisions go up by one with every put, whatever is swept in between."""
        store = Store(KvLimits(keep_revisions=3))
        seen = []
        for n in range(3 * SWEEP_EVENTS_MAX):
            seen.append(store.put(b"%d" % (n % 50)).revision)
            if n % 500 == 0:
                store.advance()
        self.assertEqual(seen, list(range(2, len(seen) + 2)))


class RangesTests(SynchronousTestCase):
    """Ranges, unions of them, and the tree of them."""

    def random_bounds(self, rng: Random) -> Bounds:
        """Any bounds, empty ones too."""
        word = lambda: bytes(rng.choices(b"abc", k=rng.randrange(1, 4)))  # noqa: E731
        return bounds_of(word(), rng.choice((b"", b"\0", word(), word())))

    def test_coverage(self) -> None:
        """A union contains what any of its ranges contains, and is kept disjoint."""
        rng = Random(3)
        for _ in range(200):
            coverage, added = Coverage(), [self.random_bounds(rng) for _ in range(6)]
            for bounds in added:
                coverage.add(bounds)
            for _ in range(30):
                key = self.random_bounds(rng)[0]
                self.assertEqual(key in coverage, any(within(key, bounds) for bounds in added))
            kept = list(coverage)
            self.assertTrue(all(a[1] <= b[0] for a, b in pairwise(kept)))

    def test_intervals(self) -> None:
        """The tree finds exactly the ranges that a look at each one finds, through additions and removals."""
        rng, tree, there = Random(4), IntervalMap[Bounds](), set()
        for _ in range(2_000):
            bounds = self.random_bounds(rng)
            if bounds in there:
                there.remove(bounds)
                tree.remove(bounds)
            else:
                there.add(bounds)
                tree.add(bounds, bounds)
            key = self.random_bounds(rng)[0]
            self.assertEqual(
                sorted(map(repr, tree.containing(key))), sorted(repr(b) for b in there if within(key, b))
            )
        self.assertEqual(len(tree), len(there))

    def test_intervals_stay_flat(self) -> None:
        """Ranges that are added in order do not make a list of the tree."""
        tree: IntervalMap[int] = IntervalMap()
        for n in range(5_000):
            tree.add((b"%05d" % n, b"%05d" % (n + 1)), n)
        depth, level = 0, [tree._root]
        while level := [child for node in level for child in (node.left, node.right) if child]:
            depth += 1
        self.assertLess(depth, 60)
