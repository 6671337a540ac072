"""Watches: every event of a range of keys from a revision on, once, in order, whole revisions together.

A watcher is either **synced**: it has everything up to the present in its queue, which each
commit adds to; or it is **behind**: it reads the history of `Mvcc` from a revision on, in
bounded steps, until it has caught up. A queue that overflows makes its watcher fall behind, so nothing
is lost and no queue grows; only where compaction overtakes it, history is gone, and the watcher is
cancelled with that as its reason. So a watcher is never silent while there is something to tell.

It is pull-based: `WatchHub` calls a watcher's ``wake`` when there is something to poll after a
time without, and the caller polls when it can take more. ``wake`` is called from within `apply`
and `poll`: it must only note or schedule.

The hub is no part of the replicated state: which watchers there are differs from node to node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Final

from msgspec import Struct

from twisted_paxos.errors import Overloaded
from twisted_paxos.statemachine.intervals import IntervalMap
from twisted_paxos.statemachine.kvcommands import COMPACTED, Event, KeyValue
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.ranges import Bounds, bounds_of, within

WATCHERS_MAX: Final = 100_000
"""Watchers of one node; beyond it, creating one is refused."""

QUEUE_MAX_EVENTS: Final = 256
"""Events that wait for one synced watcher; beyond it, the watcher falls behind and reads history."""

QUEUE_MAX_BYTES: Final = 4 << 20
"""The same limit in bytes of keys and values."""

SCAN_REVISIONS: Final = 2_000
"""How many revisions of history one poll looks at."""

BATCH_BYTES: Final = 256 << 10
"""Where a batch stops, unless the caller says otherwise; one revision is never cut."""

EMPTY_RANGE: Final = "mvcc: watcher range is empty"


class WatchRequest(Struct, frozen=True, omit_defaults=True):
    """What to watch.

    Attributes:
        key, range_end: which keys.
        start_revision: the first revision of interest; 0: after the present.
        noput, nodelete: leave out such events.
        prev_kv: events carry the version before.
        progress_notify: the caller may ask for progress (`WatchHub.request_progress`) from time to time.
    """

    key: bytes
    range_end: bytes = b""
    start_revision: int = 0
    noput: bool = False
    nodelete: bool = False
    prev_kv: bool = False
    progress_notify: bool = False


class WatchBatch(Struct, frozen=True, omit_defaults=True):
    """What a poll gives.

    Attributes:
        watch_id: whose.
        revision: the watcher has now seen everything of interest up to this one, it included.
        events: all of every revision that it contains; empty for progress and cancellation.
        canceled: the watcher is gone; this is the last batch.
        cancel_reason: why.
        compact_revision: with a cancellation: history below it is gone; read anew and watch from there.
    """

    watch_id: int
    revision: int
    events: tuple[Event, ...] = ()
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0


class Watcher:
    """One watcher's bookkeeping; `WatchHub` alone changes it.

    Attributes:
        watch_id: its number.
        request: what it watches.
        synced: whether it has a queue or is behind.
    """

    __slots__ = (
        "awake", "behind_from", "bounds", "min_revision", "progress", "queue", "queue_bytes", "reason",
        "request", "wake", "watch_id",
    )  # fmt: skip

    def __init__(self, watch_id: int, request: WatchRequest, wake: Callable[[], None]) -> None:
        self.watch_id = watch_id
        self.request = request
        self.wake = wake
        self.bounds: Bounds = bounds_of(request.key, request.range_end)
        self.min_revision = 0
        self.behind_from = 0  # the revision from which to read history; 0: synced
        self.queue: deque[Event] = deque()
        self.queue_bytes = 0
        self.awake = False
        self.progress = False
        self.reason = ""

    @property
    def synced(self) -> bool:
        """Whether what it has not seen is in its queue."""
        return not self.behind_from

    def wants(self, kv: KeyValue) -> bool:
        """Whether the event is not filtered out; the key is in its range already."""
        request = self.request
        filtered = request.noput if kv.version else request.nodelete
        return kv.mod_revision >= self.min_revision and not filtered


class WatchHub:
    """All watchers of one node, and an index of them by key and range.

    Attributes:
        watchers: by watch id.
        queue_max_events: events that wait for one synced watcher.
        scan_revisions: how many revisions of history one poll looks at.
    """

    def __init__(self, mvcc: Mvcc) -> None:
        self.watchers: dict[int, Watcher] = {}
        self._mvcc = mvcc
        self.queue_max_events = QUEUE_MAX_EVENTS
        self.scan_revisions = SCAN_REVISIONS
        self._ids = count(1)
        self._by_key: dict[bytes, dict[int, Watcher]] = {}
        self._by_range: IntervalMap[dict[int, Watcher]] = IntervalMap()

    def __len__(self) -> int:
        return len(self.watchers)

    @property
    def revision(self) -> int:
        """The store's last revision at this node."""
        return self._mvcc.revision

    # -------------------------------------------------------- for the callers

    def create(self, request: WatchRequest, wake: Callable[[], None]) -> int:
        """Start watching; returns the watch id.

        A start that is compacted already is answered by the first poll, with a cancellation.

        Raises:
            Overloaded: there are `WATCHERS_MAX` watchers.
        """
        if len(self.watchers) >= WATCHERS_MAX:
            raise Overloaded(f"there are {WATCHERS_MAX:,} watchers already; close some first")
        watcher = Watcher(next(self._ids), request, wake)
        self.watchers[watcher.watch_id] = watcher
        present = self._mvcc.revision
        start = request.start_revision if request.start_revision > 0 else present + 1
        watcher.min_revision = start
        end = watcher.bounds[1]
        if not request.key or (end is not None and end <= request.key):
            watcher.reason = EMPTY_RANGE
            self._wake(watcher)
            return watcher.watch_id
        self._index(watcher)
        if start <= present:
            watcher.behind_from = start
            self._wake(watcher)
        return watcher.watch_id

    def cancel(self, watch_id: int) -> bool:
        """Stop watching: nothing of it is delivered after this. False: there is no such watcher."""
        watcher = self.watchers.pop(watch_id, None)
        if watcher is None:
            return False
        if watcher.reason != EMPTY_RANGE:
            self._unindex(watcher)
        return True

    def cancel_all(self, reason: str) -> None:
        """Have every watcher's next poll say that it is cancelled, and why."""
        for watcher in self.watchers.values():
            watcher.reason = watcher.reason or reason
            watcher.queue.clear()
            self._wake(watcher)

    def request_progress(self, watch_id: int) -> None:
        """Have a batch without events follow once everything up to the present is delivered."""
        watcher = self.watchers.get(watch_id)
        if watcher is not None:
            watcher.progress = True
            self._wake(watcher)

    def poll(self, watch_id: int, limit_bytes: int = BATCH_BYTES) -> WatchBatch | None:
        """What comes next: whole revisions of up to ``limit_bytes`` (one at least); None: nothing now.

        After None, ``wake`` is called when it is worth to poll again, possibly before this returns. After a
        batch the caller polls again when it can, without being woken. Unknown ids have nothing to tell.
        """
        watcher = self.watchers.get(watch_id)
        if watcher is None:
            return None
        if watcher.reason:
            return self._end(watcher, watcher.reason)
        if watcher.queue:
            return self._from_queue(watcher, limit_bytes)
        watcher.awake = False
        if watcher.behind_from:
            batch = self._from_history(watcher, limit_bytes)
            if batch is not None:
                watcher.awake = not batch.canceled
                return batch
            if watcher.behind_from:
                self._wake(watcher)
                return None
        if watcher.progress:
            watcher.progress = False
            watcher.awake = True
            return WatchBatch(watch_id, self._mvcc.revision)
        return None

    # ----------------------------------------------------------- for the store

    def committed(self, changes: Iterable[KeyValue]) -> None:
        """A revision was committed, with these changes in this order."""
        for kv in changes:
            exact = self._by_key.get(kv.key)
            if exact is not None:
                self._offer(kv, exact)
            if self._by_range:
                for watchers in self._by_range.containing(kv.key):
                    self._offer(kv, watchers)

    def moved(self, mvcc: Mvcc) -> None:
        """The store was restored: every watcher goes on, through history, from where it was."""
        following = self._mvcc.revision + 1
        self._mvcc = mvcc
        for watcher in self.watchers.values():
            if watcher.synced:
                # Everything before is delivered or in its queue; it never goes back in time.
                watcher.min_revision = max(watcher.min_revision, following)
                watcher.behind_from = watcher.min_revision if watcher.min_revision <= mvcc.revision else 0
            if watcher.behind_from:
                self._wake(watcher)

    # ---------------------------------------------------------------- delivery

    def _offer(self, kv: KeyValue, watchers: dict[int, Watcher]) -> None:
        plain: Event | None = None
        for watcher in watchers.values():
            if watcher.behind_from or not watcher.wants(kv):
                continue
            if watcher.request.prev_kv:
                event = Event(kv, self._before(kv))
            else:
                event = plain = plain or Event(kv)
            self._enqueue(watcher, event)

    def _enqueue(self, watcher: Watcher, event: Event) -> None:
        queue, kv = watcher.queue, event.kv
        watcher.queue_bytes += len(kv.key) + len(kv.value)
        if not queue:
            watcher.queue_bytes = len(kv.key) + len(kv.value)
        if len(queue) >= self.queue_max_events or (watcher.queue_bytes > QUEUE_MAX_BYTES and queue):
            # From this revision on it reads history; what is queued of it goes, so that it comes whole.
            watcher.behind_from = kv.mod_revision
            while queue and queue[-1].kv.mod_revision == kv.mod_revision:
                queue.pop()
        else:
            queue.append(event)
        self._wake(watcher)

    @staticmethod
    def _wake(watcher: Watcher) -> None:
        if not watcher.awake:
            watcher.awake = True
            watcher.wake()

    def _from_queue(self, watcher: Watcher, limit_bytes: int) -> WatchBatch:
        queue = watcher.queue
        events: list[Event] = []
        size_bytes = 0
        while queue and (size_bytes < limit_bytes or queue[0].kv.mod_revision == events[-1].kv.mod_revision):
            event = queue.popleft()
            events.append(event)
            size_bytes += len(event.kv.key) + len(event.kv.value)
        watcher.queue_bytes -= size_bytes
        return self._batch(watcher, events)

    def _from_history(self, watcher: Watcher, limit_bytes: int) -> WatchBatch | None:
        """A batch from history, or None when this step found nothing; then ``behind_from`` has moved on."""
        if watcher.behind_from < self._mvcc.compact_revision:
            return self._end(watcher, COMPACTED.message, self._mvcc.compact_revision)
        kvs, following = self._history(watcher)
        events: list[Event] = []
        size_bytes = 0
        for kv in kvs:
            if size_bytes >= limit_bytes and kv.mod_revision != events[-1].kv.mod_revision:
                following = kv.mod_revision
                break
            events.append(Event(kv, self._before(kv)) if watcher.request.prev_kv else Event(kv))
            size_bytes += len(kv.key) + len(kv.value)
        watcher.behind_from = following
        return self._batch(watcher, events) if events else None

    def _history(self, watcher: Watcher) -> tuple[Iterator[KeyValue], int]:
        """One step of history: the changes that the watcher wants, and where the next begins, 0: none."""
        mvcc, behind_from = self._mvcc, watcher.behind_from
        if not watcher.request.range_end:
            # One key's versions are at hand: no need to look at every revision.
            kvs = mvcc.versions_from(watcher.request.key, behind_from, self.scan_revisions)
            following = kvs[-1].mod_revision if len(kvs) == self.scan_revisions else 0
            return (kv for kv in kvs if kv.mod_revision != following and watcher.wants(kv)), following
        behind_from = max(behind_from, mvcc.log.first)  # the empty store's revision is in no log
        upto = min(mvcc.revision, behind_from + self.scan_revisions - 1)
        changes = (kv for revision in range(behind_from, upto + 1) for kv in mvcc.log.entry(revision))
        wanted = (kv for kv in changes if within(kv.key, watcher.bounds) and watcher.wants(kv))
        return wanted, upto + 1 if upto < mvcc.revision else 0

    def _before(self, kv: KeyValue) -> KeyValue | None:
        """The version as of the revision before that of ``kv``; None: there was none, or it is compacted."""
        revision = kv.mod_revision - 1
        return None if revision < self._mvcc.compact_revision else self._mvcc.get_at(kv.key, revision)

    @staticmethod
    def _batch(watcher: Watcher, events: list[Event]) -> WatchBatch:
        return WatchBatch(watcher.watch_id, events[-1].kv.mod_revision, tuple(events))

    def _end(self, watcher: Watcher, reason: str, compact_revision: int = 0) -> WatchBatch:
        self.cancel(watcher.watch_id)
        revision = self._mvcc.revision
        return WatchBatch(watcher.watch_id, revision, (), True, reason, compact_revision)

    # ------------------------------------------------------------------- index

    def _index(self, watcher: Watcher) -> None:
        if not watcher.request.range_end:
            self._by_key.setdefault(watcher.request.key, {})[watcher.watch_id] = watcher
            return
        watchers = self._by_range.get(watcher.bounds)
        if watchers is None:
            watchers = {}
            self._by_range.add(watcher.bounds, watchers)
        watchers[watcher.watch_id] = watcher

    def _unindex(self, watcher: Watcher) -> None:
        if not watcher.request.range_end:
            exact = self._by_key[watcher.request.key]
            del exact[watcher.watch_id]
            if not exact:
                del self._by_key[watcher.request.key]
            return
        watchers = self._by_range.get(watcher.bounds)
        assert watchers is not None
        del watchers[watcher.watch_id]
        if not watchers:
            self._by_range.remove(watcher.bounds)
