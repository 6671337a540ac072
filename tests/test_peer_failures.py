"""What tests of other systems have found, each with a test here: a cluster of real nodes and clients.

Several of them have a test at the level of the store as well (``tests/statemachine``).
"""

from __future__ import annotations

from typing import Any

from tests.simulated import ClusterCase, Follower
from twisted_paxos.client import Client
from twisted_paxos.client.kv import delete, get, put
from twisted_paxos.client.recipes import Counter, Lock
from twisted_paxos.errors import KeyValueError, PaxosError


class SingleNodeTests(ClusterCase):
    """A cluster of one."""

    SIZE = 1

    def test_single_node_acknowledged_write_lost(self) -> None:
        """What one node alone acknowledged is there after a loss of power at that moment."""
        client = self.client()
        for number in range(10):
            self.do(client.kv.put("k", str(number)))
            node = self.cluster.nodes["A"]
            node.crash(power_loss=True)
            node.start()
            found = self.do(client.kv.get("k"))
            self.assertEqual(str(number).encode(), found.kvs[0].value)


class CrashTests(ClusterCase):
    """Members that end at any moment."""

    def options(self) -> dict[str, Any]:
        """Segments so small that they change all the time."""
        return {"segment_bytes": 4_096}

    async def load(self, client: Client, acknowledged: dict[bytes, int], count: int) -> None:
        """Writes to some keys; what was acknowledged last, by key."""
        for number in range(count):
            key = b"k%d" % (number % 5)
            try:
                await client.kv.put(key, b"%d" % number)
                acknowledged[key] = number
            except PaxosError:
                pass
            await self.pause(client, 0.01)

    def test_revision_diverges_after_a_crash_under_load(self) -> None:
        """Members that lose power under load have the same revision and the same store in the end."""
        client = self.client()
        acknowledged: dict[bytes, int] = {}
        loading = self.begin(self.load(client, acknowledged, 400))
        for turn in range(8):
            self.cluster.run(0.4)
            node = self.cluster.nodes["ABC"[turn % 3]]
            node.crash(power_loss=True)
            self.cluster.run(0.3)
            node.start()
        self.do(loading)
        self.assertMembersEqual()
        found = self.do(client.kv.get("k", prefix=True))
        self.assertEqual(acknowledged, {kv.key: int(kv.value) for kv in found.kvs})

    def test_log_does_not_open_after_a_crash_in_the_middle_of_a_segment_change(self) -> None:
        """All members lose power at once, again and again, while segments change: each starts again."""
        client = self.client()
        acknowledged: dict[bytes, int] = {}
        for _ in range(8):
            loading = self.begin(self.load(client, acknowledged, 30))
            self.cluster.run(0.05 + self.random.random() * 0.3)
            for node in self.cluster.nodes.values():
                node.crash(power_loss=True)
            self.cluster.start()
            self.do(loading)
            self.assertEqual({""}, {node.stopped_with for node in self.cluster.nodes.values()})
        found = self.do(client.kv.get("k", prefix=True))
        self.assertEqual(acknowledged, {kv.key: int(kv.value) for kv in found.kvs})
        self.assertMembersEqual()

    def test_revision_goes_back_during_compaction(self) -> None:
        """Revisions only go up, while history is compacted and leaders end."""
        client = self.client()
        revisions: list[int] = []

        async def write() -> None:
            for number in range(200):
                revisions.append((await client.kv.put("k", str(number))).revision)
                if number % 5 == 0:
                    await client.kv.compact(revisions[-1])
                revisions.append((await client.kv.get("k")).revision)
                await self.pause(client, 0.01)

        writing = self.begin(write())
        for _ in range(3):
            self.cluster.run(0.5)
            self.crash_leader()
        self.do(writing)
        self.assertEqual(sorted(revisions), revisions)
        self.assertEqual(400, len(revisions))

    def test_transaction_that_reads_a_compacted_revision_makes_members_differ(self) -> None:
        """A transaction with such a read is refused as a whole, by every member alike."""
        client = self.client()
        for number in range(6):
            self.do(client.kv.put("k", str(number)))
        self.do(client.kv.compact(5))
        refused = client.kv.txn([], [put("l", "1"), get("k", revision=2)])
        with self.assertRaises(KeyValueError):
            self.do(refused)
        follower = next(node for node in self.cluster.nodes.values() if node is not self.leader)
        follower.crash()
        self.do(client.kv.put("m", "1"))
        follower.start()
        self.assertMembersEqual()
        self.assertEqual(0, self.do(client.kv.get("l")).count)

    def test_clients_own_retry_applied_twice(self) -> None:
        """Additions that are tried again over crashes and lost answers count once each."""
        clients = [self.client() for _ in range(3)]
        added: list[int] = []

        async def add(client: Client) -> None:
            counter = Counter(client, "sum")
            for _ in range(30):
                added.append(await counter.add(1))
                await self.pause(client, 0.02)

        adding = [self.begin(add(client)) for client in clients]
        for _ in range(4):
            self.cluster.run(0.3)
            self.cluster.network.faults(loss=0.1, duplicate=0.1)
            self.crash_leader()
            self.cluster.network.faults(loss=0.0, duplicate=0.0)
        for job in adding:
            self.do(job)
        self.assertEqual(list(range(1, 91)), sorted(added))
        self.assertEqual(90, self.do(Counter(clients[0], "sum").get()))


class WatchFailureTests(ClusterCase):
    """What watchers see while nodes end and networks part."""

    def setUp(self) -> None:
        """A writer, and a watcher."""
        super().setUp()
        self.writer = self.client()
        self.written: list[int] = []
        self.seen = Follower()

    def follow(self, *uids: str, **options: Any) -> None:
        """Watch all keys, by the nodes named."""
        self.watcher = self.client(*uids)
        self.begin(self.seen.follow(self.watcher.kv.watch("", prefix=True, start_revision=1, **options)))

    async def write(self, count: int, pause_s: float = 0.02) -> None:
        """Puts, deletions and transactions; the revision of each."""
        for number in range(count):
            if number % 7 == 3:
                result: Any = await self.writer.kv.txn([], [put("a", str(number)), put("b"), delete("c")])
            elif number % 7 == 5:
                result = await self.writer.kv.delete("", prefix=True)
            else:
                result = await self.writer.kv.put("abc"[number % 3], str(number))
            self.written.append(result.revision)
            await self.pause(self.writer, pause_s)

    def assertSeenOnce(self) -> None:
        """Every revision was seen, once, whole, in order."""
        self.cluster.run(5)
        order = [revision for batch in self.seen.batches for revision in batch]
        self.assertEqual(sorted(order), order, "in order")
        firsts = [min(batch) for batch in self.seen.batches]
        lasts = [max(batch) for batch in self.seen.batches]
        self.assertTrue(all(last < first for last, first in zip(lasts, firsts[1:], strict=False)), "whole")
        self.assertEqual(sorted(set(self.written)), sorted(set(order)))
        self.assertEqual(len(self.seen.events), len(set(self.seen.events)), "once")

    def test_duplicate_events(self) -> None:
        """Over 20 crashes of the leader a watcher sees every event once, in order, whole revisions."""
        self.follow()
        writing = self.begin(self.write(800))
        for _ in range(20):
            self.cluster.run(0.6)
            self.crash_leader(down_s=0.4)
        self.do(writing, 120)
        self.assertSeenOnce()

    def test_watch_goes_back_in_time_after_a_partition(self) -> None:
        """A watcher whose node is cut off goes on at another one, forward only; so it does back again."""
        self.follow("A", "B", "C")
        writing = self.begin(self.write(500))
        for uid in "ABCAB":
            self.cluster.run(0.5)
            self.cluster.network.isolate(self.cluster.nodes[uid].host)
            self.cluster.run(1.5)
            self.cluster.network.heal_all()
        self.do(writing, 120)
        self.assertSeenOnce()

    def test_watch_is_not_silent_at_a_node_without_a_majority(self) -> None:
        """A node that is parted from the others, but not from its watcher, sends the watcher away."""
        self.follow("A", "B", "C")
        self.cluster.run(0.5)
        others = self.cluster.hosts("BC")
        for host in others:
            self.cluster.network.cut(self.cluster.nodes["A"].host, host)
        self.do(self.begin(self.write(20)), 30)
        self.cluster.run(6)
        self.assertSeenOnce()

    def test_progress_runs_ahead_of_events(self) -> None:
        """Progress never tells of a revision whose events come later."""
        self.follow(progress_notify=True)
        writing = self.begin(self.write(300))
        for _ in range(4):
            self.cluster.run(1.2)
            self.crash_leader()
        self.do(writing)
        self.assertSeenOnce()
        self.assertGreater(len(self.seen.progress), 3)
        for progress, last_before in self.seen.progress:
            later = [event[0] for event in self.seen.events if event[0] > last_before]
            self.assertTrue(not later or min(later) > progress, (progress, last_before))

    def test_events_lost_under_starvation(self) -> None:
        """A watcher that is stopped for a while, and one of a long history, miss nothing."""
        self.follow()
        writing = self.begin(self.write(300, pause_s=0.005))
        self.cluster.run(0.3)
        self.watcher.reactor.pause()
        self.cluster.run(4)
        self.watcher.reactor.resume()
        self.do(writing)
        self.assertSeenOnce()
        late = Follower()
        self.begin(late.follow(self.client().kv.watch("", prefix=True, start_revision=1)))
        self.cluster.run(3)
        self.assertEqual(self.seen.events, late.events)

    def test_event_dropped_when_compacting_at_a_delete(self) -> None:
        """A watcher from the revision of a deletion gets it, though history is compacted right there."""
        self.do(self.writer.kv.put("k", "1"))
        deleted = self.do(self.writer.kv.delete("k")).revision
        self.do(self.writer.kv.compact(deleted))
        seen = Follower()
        self.begin(seen.follow(self.writer.kv.watch("k", start_revision=deleted)))
        self.cluster.run(1)
        self.assertEqual([(deleted, "DELETE", b"k", b"")], seen.events)

    def test_watch_from_a_future_revision(self) -> None:
        """It waits for that revision, also over a crash of its node, and sees nothing before it."""
        seen = Follower()
        watcher = self.client()
        self.begin(seen.follow(watcher.kv.watch("", prefix=True, start_revision=10)))
        writing = self.begin(self.write(12, pause_s=0.2))
        self.cluster.run(1)
        self.crash_leader()
        self.do(writing)
        self.cluster.run(3)
        self.assertEqual(
            [r for r in sorted(set(self.written)) if r >= 10], sorted({e[0] for e in seen.events})
        )


class PauseTests(ClusterCase):
    """Processes that are stopped and go on (SIGSTOP)."""

    def test_stale_read_after_the_process_was_paused(self) -> None:
        """A leader that was stopped does not answer a read with what it had before."""
        client = self.client()
        self.do(client.kv.put("k", "old"))
        stopped = self.leader
        reader = self.client(stopped.uid)
        self.do(reader.kv.get("k"))
        assert stopped.reactor is not None
        stopped.reactor.pause()
        reading = reader.kv.get("k")
        self.cluster.run(0.2)
        self.do(client.kv.put("k", "new"))
        later = reader.kv.get("k")
        stopped.reactor.resume()
        self.assertEqual(b"new", self.do(later).kvs[0].value)
        self.assertIn(self.do(reading).kvs[0].value, (b"old", b"new"))
        self.assertEqual(b"new", self.do(reader.kv.get("k")).kvs[0].value)

    def test_two_holders_of_one_lock_after_a_pause(self) -> None:
        """A holder that was stopped for longer than its lease knows at once that it holds nothing."""
        one, two = self.client(), self.client()
        first, second = Lock(one, "l", ttl_s=2), Lock(two, "l", ttl_s=2)
        token = self.do(first.acquire())
        reactor: Any = one.reactor
        reactor.pause()
        self.assertGreater(self.do(second.acquire()), token)
        self.assertTrue(second.held)
        self.assertFalse(first.held, "before any of its timers or messages had a turn")
        reactor.resume()
        self.cluster.run(1)
        self.assertTrue(first.lost.called)
        self.assertEqual((False, True), (first.held, second.held))

    def test_paused_leader_expires_no_lease(self) -> None:
        """A leader that was stopped for long does not end the leases of those who could not reach it."""
        holder = self.client()
        lock = Lock(holder, "l", ttl_s=6)
        token = self.do(lock.acquire())
        for node in list(self.cluster.nodes.values()):
            if node.reactor is not None:
                node.reactor.pause()
        self.cluster.run(30)
        for node in self.cluster.nodes.values():
            if node.reactor is not None:
                node.reactor.resume()
        self.cluster.run(1)
        found = self.do(self.client().kv.get("l/", prefix=True))
        self.assertEqual([token], [kv.create_revision for kv in found.kvs])
