"""Watches: every event once, in order, whole revisions, or a reason why not."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.statemachine.support import Store, reopened
from twisted_paxos.errors import Overloaded
from twisted_paxos.statemachine import watches
from twisted_paxos.statemachine.kvcommands import COMPACTED, LeaseGrant, Put, Txn, prefix_end
from twisted_paxos.statemachine.watches import EMPTY_RANGE, QUEUE_MAX_EVENTS, WatchBatch, WatchRequest


class Reader:
    """One watcher and what it got."""

    def __init__(self, store: Store, key: bytes, range_end: bytes = b"", **options: Any) -> None:
        self.hub = store.kv.watches
        self.woken = 0
        self.watch_id = self.hub.create(WatchRequest(key, range_end, **options), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def poll(self, limit_bytes: int = 1 << 20) -> WatchBatch | None:
        """One batch."""
        return self.hub.poll(self.watch_id, limit_bytes)

    def drain(self) -> list[tuple[str, bytes, int]]:
        """Everything, as (type, key, revision)."""
        events: list[tuple[str, bytes, int]] = []
        while True:
            woken = self.woken
            batch = self.poll()
            if batch is not None:
                assert not batch.canceled, batch
                events += [(event.type, event.kv.key, event.kv.mod_revision) for event in batch.events]
            elif woken == self.woken:
                return events


class WatchTests(SynchronousTestCase):
    """One watcher."""

    def setUp(self) -> None:
        """An empty store."""
        self.store = Store()

    def test_key(self) -> None:
        """Events of its key from now on, and of no other."""
        self.store.put(b"k")
        reader = Reader(self.store, b"k")
        self.store.put(b"k")
        self.store.put(b"kk")
        self.store.delete(b"k")
        self.assertEqual(reader.drain(), [("PUT", b"k", 3), ("DELETE", b"k", 5)])

    def test_ranges(self) -> None:
        """Prefix, from a key on, and any range."""
        readers = [
            Reader(self.store, b"b", prefix_end(b"b")),
            Reader(self.store, b"b", b"\0"),
            Reader(self.store, b"a", b"b1"),
        ]
        for key in (b"a", b"b", b"b1", b"c"):
            self.store.put(key)
        keys = [[key for _, key, _ in reader.drain()] for reader in readers]
        self.assertEqual(keys, [[b"b", b"b1"], [b"b", b"b1", b"c"], [b"a", b"b"]])

    def test_start_in_the_past_and_future(self) -> None:
        """History first, then what comes; a watch from a future revision gets nothing from before it."""
        for _ in range(4):
            self.store.put(b"k")
        past = Reader(self.store, b"k", start_revision=4)
        future = Reader(self.store, b"k", start_revision=8)
        for _ in range(4):
            self.store.put(b"k")
        self.assertEqual([revision for _, _, revision in past.drain()], [4, 5, 6, 7, 8, 9])
        self.assertEqual([revision for _, _, revision in future.drain()], [8, 9])

    def test_whole_revisions(self) -> None:
        """All events of a revision come in one batch, however small the limit."""
        reader = Reader(self.store, b"\0", b"\0")
        late = Reader(self.store, b"\0", b"\0", start_revision=1)
        for _ in range(3):
            self.store.do(Txn(success=tuple(Put(b"%d" % n, b"x" * 100) for n in range(5))))
        for each in (reader, late):
            for revision in (2, 3, 4):
                batch = each.poll(limit_bytes=1)
                self.assertEqual((batch.revision, len(batch.events)), (revision, 5))
            self.assertIsNone(each.poll())

    def test_filters_and_prev_kv(self) -> None:
        """Puts or deletions are left out; the version before is there where it was asked for."""
        noput = Reader(self.store, b"k", noput=True)
        nodelete = Reader(self.store, b"k", nodelete=True, prev_kv=True)
        self.store.put(b"k", b"1")
        self.store.put(b"k", b"2")
        self.store.delete(b"k")
        self.assertEqual(noput.drain(), [("DELETE", b"k", 4)])
        events = nodelete.poll().events
        self.assertEqual([event.prev_kv and event.prev_kv.value for event in events], [None, b"1"])

    def test_prev_kv_from_history(self) -> None:
        """A late watcher gets the version before too, unless that is compacted."""
        for n in range(4):
            self.store.put(b"k", b"%d" % n)
        self.store.compact(3)
        events = Reader(self.store, b"k", start_revision=3, prev_kv=True).poll().events
        self.assertEqual([event.prev_kv and event.prev_kv.value for event in events], [None, b"1", b"2"])

    def test_lease_expiry(self) -> None:
        """Keys that go with their lease are events like others."""
        lease = self.store.do(LeaseGrant(10)).id
        self.store.put(b"k", lease=lease)
        reader = Reader(self.store, b"k")
        self.store.advance(10_000)
        self.assertEqual(reader.drain(), [("DELETE", b"k", 3)])

    def test_woken_once(self) -> None:
        """It is woken when there is something after a time without, and not for every event."""
        reader = Reader(self.store, b"k")
        for _ in range(5):
            self.store.put(b"k")
        self.assertEqual(reader.woken, 1)
        reader.drain()
        self.store.put(b"k")
        self.assertEqual(reader.woken, 2)

    def test_cancel(self) -> None:
        """Nothing comes after a cancellation, and the index forgets it."""
        readers = [Reader(self.store, b"k"), Reader(self.store, b"k", b"\0")]
        self.store.put(b"k")
        for reader in readers:
            self.assertTrue(reader.hub.cancel(reader.watch_id))
            self.assertIsNone(reader.poll())
            self.assertFalse(reader.hub.cancel(reader.watch_id))
        hub = self.store.kv.watches
        self.assertEqual((len(hub), len(hub._by_key), len(hub._by_range)), (0, 0, 0))

    def test_empty_range(self) -> None:
        """A range that can contain nothing is cancelled with etcd's reason."""
        batch = Reader(self.store, b"b", b"a").poll()
        self.assertEqual((batch.canceled, batch.cancel_reason), (True, EMPTY_RANGE))

    def test_too_many(self) -> None:
        """There is a limit, and an error for it."""
        self.patch(watches, "WATCHERS_MAX", 2)
        for _ in range(2):
            Reader(self.store, b"k")
        with self.assertRaises(Overloaded):
            Reader(self.store, b"k")

    def test_lost_majority(self) -> None:
        """A node that cannot go on ends every watch with a reason, instead of leaving it silent."""
        reader = Reader(self.store, b"k")
        self.store.put(b"k")
        self.store.kv.watches.cancel_all("etcdserver: no leader")
        self.assertEqual(reader.woken, 1)
        batch = reader.poll()
        self.assertEqual((batch.canceled, batch.cancel_reason), (True, "etcdserver: no leader"))


class PeersFailuresTests(SynchronousTestCase):
    """Failures that were found in peers, as far as they concern this layer."""

    def setUp(self) -> None:
        """An empty store."""
        self.store = Store()

    def test_event_not_dropped_when_compacting_at_a_delete(self) -> None:
        """Compaction at the very revision of a deletion keeps its event, also over a restart."""
        self.store.put(b"k")
        self.store.delete(b"k")
        self.store.compact(3)
        self.store.sweep()
        for store in (self.store, reopened(self.store)):
            for range_end in (b"", b"\0"):
                reader = Reader(store, b"k", range_end, start_revision=3)
                self.assertEqual(reader.drain(), [("DELETE", b"k", 3)])

    def test_compacted_start_is_cancelled(self) -> None:
        """A start below what is compacted is no silence and no gap: it is cancelled with that revision."""
        for _ in range(5):
            self.store.put(b"k")
        self.store.compact(5)
        for range_end in (b"", b"\0"):
            reader = Reader(self.store, b"k", range_end, start_revision=4)
            self.assertEqual(reader.woken, 1)
            wanted = WatchBatch(reader.watch_id, 6, (), True, COMPACTED.message, 5)
            self.assertEqual(reader.poll(), wanted)
            self.assertIsNone(reader.poll())

    def test_events_not_lost_under_starvation(self) -> None:
        """A watcher that is not polled for long falls behind, and gets every event in the end."""
        readers = [Reader(self.store, b"k"), Reader(self.store, b"k", b"l")]
        for n in range(20 * QUEUE_MAX_EVENTS):
            self.store.put(b"k")
            if n % 1_000 == 0:
                readers[0].poll(limit_bytes=1)
        self.assertLessEqual(max(len(w.queue) for w in readers[0].hub.watchers.values()), QUEUE_MAX_EVENTS)
        revisions = [revision for _, _, revision in readers[1].drain()]
        self.assertEqual(revisions, list(range(2, 20 * QUEUE_MAX_EVENTS + 2)))
        self.assertEqual(readers[0].drain()[-1][2], self.store.kv.revision)
        self.assertTrue(all(w.synced for w in readers[0].hub.watchers.values()))

    def test_overflow_in_the_middle_of_a_revision(self) -> None:
        """Where a queue overflows inside one revision, that revision still comes whole and once."""
        self.store.kv.watches.queue_max_events = 3
        reader = Reader(self.store, b"\0", b"\0")
        self.store.put(b"first")
        self.store.do(Txn(success=tuple(Put(b"%d" % n) for n in range(5))))
        self.store.put(b"last")
        batches = [reader.poll(1) for _ in range(3)]
        self.assertEqual([len(batch.events) for batch in batches], [1, 5, 1])

    def test_overtaken_by_compaction(self) -> None:
        """A watcher that lags until its history is gone is told so, after what was still queued."""
        self.store.kv.watches.queue_max_events = 2
        reader = Reader(self.store, b"k")
        for _ in range(9):
            self.store.put(b"k")
        self.store.compact(8)
        self.assertEqual([event.kv.mod_revision for event in reader.poll().events], [2, 3])
        batch = reader.poll()
        self.assertEqual((batch.canceled, batch.compact_revision), (True, 8))

    def test_idle_watcher_survives_compaction(self) -> None:
        """A watcher of a quiet key has nothing to lose: compaction does not cancel it."""
        reader = Reader(self.store, b"quiet")
        for _ in range(50):
            self.store.put(b"busy")
        self.store.compact(self.store.kv.revision)
        self.store.sweep()
        self.store.put(b"quiet")
        self.assertEqual(reader.drain(), [("PUT", b"quiet", 52)])

    def test_progress_does_not_run_ahead(self) -> None:
        """Progress comes only after every event up to its revision, for synced and for late watchers."""
        self.store.put(b"k")
        late = Reader(self.store, b"k", start_revision=1, progress_notify=True)
        synced = Reader(self.store, b"k", progress_notify=True)
        self.store.put(b"k")
        for reader in (late, synced):
            reader.hub.request_progress(reader.watch_id)
        self.store.put(b"k")
        for reader, wanted in ((late, [2, 3, 4]), (synced, [3, 4])):
            seen = []
            while (batch := reader.poll(1)).events:
                seen += [event.kv.mod_revision for event in batch.events]
            self.assertEqual((seen, batch), (wanted, WatchBatch(reader.watch_id, 4)))
            self.assertIsNone(reader.poll())

    def test_batch_revision_does_not_run_ahead(self) -> None:
        """A batch names the last revision in it, not the store's: what follows is still to come."""
        late = Reader(self.store, b"k", start_revision=1)
        for _ in range(5):
            self.store.put(b"k", b"x" * 100)
        self.assertEqual([late.poll(1).revision for _ in range(5)], [2, 3, 4, 5, 6])

    def test_watch_does_not_go_back_in_time(self) -> None:
        """A member that jumps ahead by a snapshot goes on where its watchers were."""
        behind = reopened(self.store)
        readers = [Reader(behind, b"k"), Reader(behind, b"k", b"l"), Reader(behind, b"k", start_revision=6)]
        for store in (self.store, behind):
            store.put(b"k")
            store.put(b"k")
        first = readers[0].drain()
        for _ in range(4):
            self.store.put(b"k")
        for _ in behind.kv.restore(iter(list(self.store.kv.snapshot()))):
            pass
        behind.put(b"k")
        got = [[revision for _, _, revision in reader.drain()] for reader in readers]
        self.assertEqual([revision for _, _, revision in first], [2, 3])
        self.assertEqual(got, [[4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8], [6, 7, 8]])

    def test_jump_over_compacted_history(self) -> None:
        """A jump over revisions that the snapshot does not have cancels, and does not leave a gap."""
        behind = reopened(self.store)
        reader = Reader(behind, b"k")
        for _ in range(5):
            self.store.put(b"k")
        self.store.compact(4)
        for _ in behind.kv.restore(iter(list(self.store.kv.snapshot()))):
            pass
        batch = reader.poll()
        self.assertEqual((batch.canceled, batch.compact_revision), (True, 4))

    def test_no_duplicates_between_history_and_queue(self) -> None:
        """Events that come while a watcher catches up are not delivered from both sides."""
        self.store.kv.watches.scan_revisions = 2
        for _ in range(10):
            self.store.put(b"k")
        for range_end in (b"", b"l"):
            start = self.store.kv.revision - 8
            reader, seen = Reader(self.store, b"k", range_end, start_revision=start), []
            for _ in range(20):
                batch = reader.poll(1)
                seen += [event.kv.mod_revision for event in batch.events] if batch else []
                self.store.put(b"k")
            seen += [revision for _, _, revision in reader.drain()]
            self.assertEqual(seen, list(range(start, self.store.kv.revision + 1)))

    def test_catching_up_is_bounded(self) -> None:
        """A watcher without events in long history looks at a part per poll, and is woken for the rest."""
        for _ in range(100):
            self.store.put(b"busy")
        self.store.put(b"quiet")
        self.store.kv.watches.scan_revisions = 10
        reader = Reader(self.store, b"q", b"r", start_revision=1)
        polls = 0
        while (batch := reader.poll()) is None:
            polls += 1
            self.assertEqual(reader.woken, polls + 1)
        self.assertEqual((polls, [event.kv.key for event in batch.events]), (10, [b"quiet"]))
