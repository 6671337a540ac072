"""Every version of every key, in memory, until compaction.

A key's history is, by how long it is, a bare `KeyValue`, a tuple or a list: a million keys
with one version each cost no container, and short histories are not tracked by the cyclic
collector. Keys lie in a table that is split by hash, so that no single resize of a dictionary
is felt. The order of keys is two sorted lists: keys that live, from which the present is read and
counted without meeting deleted keys, and keys that are deleted and not yet compacted.

What must always hold:

* versions of a key are in the order of their revisions; only a deletion can share its revision with a put;
* ``compact(C)`` takes effect at once for every reader; memory is cleaned later, in bounded steps
  (`sweep`), which nothing can observe;
* every revision from the compacted one on is in the log, deletions at the compacted revision
  itself included: a watch that starts there misses nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import attrgetter
from typing import TypeAlias

from sortedcontainers import SortedList

from twisted_paxos.statemachine.kvcommands import KeyValue, Put
from twisted_paxos.statemachine.kvlimits import VERSION_OVERHEAD_BYTES
from twisted_paxos.statemachine.ranges import Bounds
from twisted_paxos.statemachine.revisions import RevisionLog

History: TypeAlias = KeyValue | tuple[KeyValue, ...] | list[KeyValue]

FIRST_REVISION = 1
"""The revision of an empty store, as in etcd."""

NEVER_COMPACTED = -1

_SHARDS = 64
_SHARD_MASK = _SHARDS - 1
_TUPLE_MAX = 8
_TRIM_FRACTION = 512
_SWEEP_RUN = 64
_mod_revision = attrgetter("mod_revision")


def version_bytes(kv: KeyValue) -> int:
    """What a version counts for in the size of the state."""
    return VERSION_OVERHEAD_BYTES + len(kv.key) + len(kv.value)


class Mvcc:
    """The versions of all keys.

    Changes are made with `put` and `delete` and take effect together, as one revision, with
    `commit`. Until then they are seen by reads of the present (a transaction reads its own
    writes), at ``revision + 1``.

    Attributes:
        revision: the last committed one.
        compact_revision: reads below it are refused by the callers; `NEVER_COMPACTED` at first.
        pending: the changes since the last commit.
        log: what each revision changed, from at least ``compact_revision`` on.
        size_bytes: of all versions that are not compacted; the same on every member.
        frozen: how many views are being read; nothing is swept as long as there is one.
    """

    __slots__ = (
        "_dead", "_freed_bytes", "_freed_compacted", "_live", "_offset", "_shards", "compact_revision",
        "frozen", "log", "pending", "revision", "size_bytes",
    )  # fmt: skip

    def __init__(self, revision: int = FIRST_REVISION, compact_revision: int = NEVER_COMPACTED) -> None:
        self.revision = revision
        self.compact_revision = compact_revision
        self.pending: list[KeyValue] = []
        self.log = RevisionLog(revision + 1)
        self.frozen = 0
        self._shards: list[dict[bytes, History]] = [{} for _ in range(_SHARDS)]
        self._live: SortedList[bytes] = SortedList()
        self._dead: SortedList[bytes] = SortedList()
        self.size_bytes = 0
        self._freed_bytes = 0  # by sweeping every revision so far
        self._freed_compacted = 0  # by sweeping those below compact_revision
        self._offset = 0  # how far the log's first revision is swept

    # ---------------------------------------------------------------- reading

    def __len__(self) -> int:
        """How many keys live."""
        return len(self._live)

    @property
    def history_bytes(self) -> int:
        """How much of that compacting at the present revision would free, about."""
        return self._freed_bytes - self._freed_compacted

    def get(self, key: bytes) -> KeyValue | None:
        """The present version of ``key``, None when it is absent."""
        history = self._shards[hash(key) & _SHARD_MASK].get(key)
        if history is None:
            return None
        last = history if type(history) is KeyValue else history[-1]  # type: ignore[index]
        return last if last.version else None

    def get_at(self, key: bytes, revision: int) -> KeyValue | None:
        """The version of ``key`` as of ``revision``, None where it was absent."""
        history = self._shards[hash(key) & _SHARD_MASK].get(key)
        if history is None:
            return None
        if type(history) is KeyValue:
            return history if history.mod_revision <= revision and history.version else None
        place = bisect_right(history, revision, key=_mod_revision)  # type: ignore[arg-type]
        if not place:
            return None
        kv = history[place - 1]  # type: ignore[index]
        return kv if kv.version else None

    def versions_at(self, keys: list[bytes], revision: int) -> list[KeyValue]:
        """What of ``keys`` was present as of ``revision``: `get_at` for many."""
        shards = self._shards
        found: list[KeyValue] = []
        for key in keys:
            history = shards[hash(key) & _SHARD_MASK].get(key)
            if type(history) is not KeyValue:
                kv = self.get_at(key, revision)
                if kv is not None:
                    found.append(kv)
            elif history.mod_revision <= revision and history.version:
                found.append(history)
        return found

    def versions_from(self, key: bytes, revision: int, count: int) -> list[KeyValue]:
        """Up to ``count`` versions of ``key``, deletions included, from ``revision`` on, in order."""
        history = self._shards[hash(key) & _SHARD_MASK].get(key)
        if history is None:
            return []
        if type(history) is KeyValue:
            return [history] if history.mod_revision >= revision else []
        place = bisect_right(history, revision - 1, key=_mod_revision)  # type: ignore[arg-type]
        return list(history[place : place + count])  # type: ignore[index]

    def scan(self, bounds: Bounds) -> Iterator[KeyValue]:
        """The present versions in ``bounds``, in the order of keys. No change may come in between."""
        shards = self._shards
        for key in self._live.irange(*bounds, inclusive=(True, False)):
            history = shards[hash(key) & _SHARD_MASK][key]
            yield history if type(history) is KeyValue else history[-1]  # type: ignore[index]

    def scan_at(self, bounds: Bounds, revision: int) -> Iterator[KeyValue]:
        """The versions in ``bounds`` as of ``revision``, in the order of keys. No change in between."""
        for key in self.keys_ever(bounds):
            kv = self.get_at(key, revision)
            if kv is not None:
                yield kv

    def count(self, bounds: Bounds) -> int:
        """How many keys live in ``bounds``; costs the same for any number of them."""
        start, end = bounds
        upto = len(self._live) if end is None else self._live.bisect_left(end)
        return max(0, upto - self._live.bisect_left(start))

    def keys_ever(self, bounds: Bounds) -> Iterator[bytes]:
        """Keys in ``bounds`` with any version, deleted ones included, in order. No change in between."""
        live = self._live.irange(*bounds, inclusive=(True, False))
        if not self._dead:
            return live
        return merge(live, self._dead.irange(*bounds, inclusive=(True, False)))

    # ---------------------------------------------------------------- changing

    def put(self, key: bytes, value: bytes, lease: int) -> KeyValue | None:
        """Set ``key`` as part of the next revision; returns the version before."""
        kv, before = self._version(key, value, lease, self.revision + 1)
        if before is not None:
            self._freed_bytes += VERSION_OVERHEAD_BYTES + len(kv.key) + len(before.value)
        self.pending.append(kv)
        self.size_bytes += VERSION_OVERHEAD_BYTES + len(key) + len(value)
        return before

    def put_all(self, puts: Sequence[Put]) -> tuple[list[KeyValue], list[KeyValue]]:
        """Set each key to its value, without a lease, as a revision of its own: `put` and `commit` for many.

        Returns:
            the new versions, and those versions before them that hung on a lease.
        """
        revision, freed_bytes, size_bytes = self.revision, self._freed_bytes, 0
        kvs: list[KeyValue] = []
        freed: list[int] = []
        leased: list[KeyValue] = []
        version = self._version
        for put in puts:
            key, value = put.key, put.value
            revision += 1
            kv, before = version(key, value, 0, revision)
            if before is not None:
                freed_bytes += VERSION_OVERHEAD_BYTES + len(key) + len(before.value)
                if before.lease:
                    leased.append(before)
            size_bytes += len(key) + len(value)
            kvs.append(kv)
            freed.append(freed_bytes)
        self.size_bytes += size_bytes + VERSION_OVERHEAD_BYTES * len(kvs)
        self.revision, self._freed_bytes = revision, freed_bytes
        self.log.extend(kvs, freed)
        return kvs, leased

    def _version(
        self, key: bytes, value: bytes, lease: int, revision: int
    ) -> tuple[KeyValue, KeyValue | None]:
        """Make the version of ``key`` that ``revision`` sets; and the one that it replaces, if any."""
        shard = self._shards[hash(key) & _SHARD_MASK]
        history = shard.get(key)
        if history is None:
            shard[key] = kv = KeyValue(key, revision, revision, 1, value, lease)
            self._live.add(key)
            return kv, None
        last: KeyValue = history if type(history) is KeyValue else history[-1]  # type: ignore[index]
        key = last.key  # one object for all versions
        before = last if last.version else None
        if before is not None:
            kv = KeyValue(key, last.create_revision, revision, last.version + 1, value, lease)
        else:
            kv = KeyValue(key, revision, revision, 1, value, lease)
            self._dead.remove(key)
            self._live.add(key)
        if type(history) is list:
            history.append(kv)
        else:
            shard[key] = _longer(history, kv)
        return kv, before

    def delete(self, key: bytes) -> KeyValue | None:
        """Delete ``key`` as part of the next revision; returns what it was, None when it was absent."""
        last = self.get(key)
        if last is None:
            return None
        key = last.key
        tombstone = KeyValue(key, 0, self.revision + 1, 0)
        shard = self._shards[hash(key) & _SHARD_MASK]
        shard[key] = _longer(shard[key], tombstone)
        self._live.remove(key)
        self._dead.add(key)
        self.pending.append(tombstone)
        size_bytes = version_bytes(tombstone)
        self.size_bytes += size_bytes
        self._freed_bytes += size_bytes + version_bytes(last)
        return last

    def commit(self) -> None:
        """Make what is pending the next revision. There must be something."""
        pending = self.pending
        self.log.append(pending[0] if len(pending) == 1 else tuple(pending), self._freed_bytes)
        pending.clear()
        self.revision += 1

    def load(self, kvs: list[KeyValue]) -> None:
        """Add versions of keys that are not in the log, in the order of keys, when restoring."""
        shards = self._shards
        for kv in kvs:
            key = kv.key
            shards[hash(key) & _SHARD_MASK][key] = kv
            self.size_bytes += VERSION_OVERHEAD_BYTES + len(key) + len(kv.value)
        self._live.update([kv.key for kv in kvs])

    def replay(self, kvs: list[KeyValue]) -> list[KeyValue | None]:
        """Do the changes of the next revision again, when restoring; returns the version before each.

        Raises:
            ValueError: they are not what the versions before them lead to.
        """
        before = [self.put(kv.key, kv.value, kv.lease) if kv.version else self.delete(kv.key) for kv in kvs]
        if not kvs or self.pending != kvs:
            raise ValueError(f"the changes of revision {self.revision + 1} do not follow")
        self.commit()
        return before

    # -------------------------------------------------------------- compaction

    def compact(self, revision: int) -> None:
        """Forget what was superseded before ``revision``: at once for readers, in memory by `sweep`.

        ``revision`` is above ``compact_revision`` and at most ``revision``.
        """
        assert self.compact_revision < revision <= self.revision
        self.compact_revision = revision
        # The running sum below the log's first revision is that of compactions before it.
        if revision > self.log.first:
            freed_bytes = self.log.freed_upto(revision - 1)
            self.size_bytes -= freed_bytes - self._freed_compacted
            self._freed_compacted = freed_bytes

    def revision_keeping(self, history_bytes: int) -> int:
        """The lowest revision at which compaction leaves at most ``history_bytes``, at most the present."""
        if self.history_bytes <= history_bytes:
            return self.compact_revision
        lowest = self.log.first_with_freed(self._freed_bytes - history_bytes)
        return min(lowest + 1, self.revision)

    def sweep(self, events_max: int) -> None:
        """Clean memory of what is compacted, ``events_max`` versions at most; not while a view is read."""
        log = self.log
        while events_max > 0 and not self.frozen and log.first < self.compact_revision:
            if not self._offset:
                kvs = log.first_singles(min(_SWEEP_RUN, events_max, self.compact_revision - log.first))
                if kvs:
                    self._forget_before_each(kvs)
                    log.forget_first(len(kvs))
                    events_max -= len(kvs)
                    continue
            entry = log.entry(log.first)
            upto = min(len(entry), self._offset + events_max)
            for kv in entry[self._offset : upto]:
                self._forget_before(kv)
            events_max -= upto - self._offset
            self._offset = upto
            if upto == len(entry):
                log.forget_first()
                self._offset = 0

    def _forget_before_each(self, kvs: list[KeyValue]) -> None:
        """`_forget_before` for each of ``kvs``, versions that follow each other."""
        keys = [kv.key for kv in kvs]
        if keys.count(keys[-1]) == len(keys):
            # A key that changes all the time: the last one superseded all that the others did, and them.
            self._forget_before(kvs[-1])
            return
        for kv in kvs:
            self._forget_before(kv)

    def _forget_before(self, kv: KeyValue) -> None:
        """Drop the versions that ``kv`` superseded, and ``kv`` itself when it is a deletion."""
        key = kv.key
        shard = self._shards[hash(key) & _SHARD_MASK]
        history = shard.get(key)
        if history is None or (history is kv and kv.version):
            return
        if type(history) is KeyValue:
            place, length = 0 if history.mod_revision > kv.mod_revision else 1, 1
        else:
            place = bisect_right(history, kv.mod_revision, key=_mod_revision)  # type: ignore[arg-type]
            length = len(history)  # type: ignore[arg-type]
        if kv.version:
            place -= 1
        if place <= 0:
            return
        if place == length:
            del shard[key]
            self._dead.remove(key)
        elif place * _TRIM_FRACTION >= length:
            # A key that changes all the time has a long list: not one by one, that moves all others.
            if length - place > _TUPLE_MAX:
                del history[:place]  # type: ignore[union-attr]
            else:
                left = tuple(history[place:])  # type: ignore[index]
                shard[key] = left[0] if len(left) == 1 else left


def _longer(history: History, kv: KeyValue) -> History:
    if type(history) is KeyValue:
        return (history, kv)
    if type(history) is tuple:
        return (*history, kv) if len(history) < _TUPLE_MAX else [*history, kv]
    history.append(kv)  # type: ignore[union-attr]
    return history
