"""Leases, on log time.

Time comes in as an argument, always the log's: a lease runs out at the same slot on every
member, and none runs out while no leader moves log time on. A lease whose time is over
is gone at once for everybody who asks; its keys go with the next slots, a bounded number at a
time, so that ten thousand leases that end together cause no pause.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

from msgspec import Struct

from twisted_paxos.statemachine.kvcommands import (
    INT64_MAX,
    LEASE_EXISTS,
    LEASE_NOT_FOUND,
    TOO_MANY_LEASES,
    TTL_TOO_LARGE,
    Int64,
    KvError,
    LeaseTimeToLive,
)
from twisted_paxos.statemachine.kvlimits import LEASE_COST_BYTES, KvLimits

TTL_MAX_S = 9_000_000_000
"""etcd's bound."""

_INDEX_BITS = 20


class Lease(Struct, frozen=True, array_like=True, gc=False):
    """One lease; replaced, never changed, so that a snapshot can hold on to it.

    Attributes:
        id: positive in practice, any but 0.
        ttl_s: what it was granted, in seconds.
        deadline_ms: log time at which it runs out.
    """

    id: Int64
    ttl_s: Int64
    deadline_ms: Int64


class Leases:
    """All leases, and which keys hang on them."""

    __slots__ = ("_heap", "_keys", "_leases", "_leases_max", "_ttl_min_s")

    def __init__(self, limits: KvLimits) -> None:
        self._ttl_min_s = limits.lease_ttl_min_s
        self._leases_max = limits.leases_max
        self._leases: dict[int, Lease] = {}
        self._keys: dict[int, dict[bytes, None]] = {}  # only of leases that have any; a dict keeps order
        # One (deadline, id) a lease; the deadline is the true one or earlier, put right when it comes up.
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def size_bytes(self) -> int:
        """What leases count for in the size of the state."""
        return LEASE_COST_BYTES * len(self._leases)

    @property
    def deadline_ms(self) -> int | None:
        """The earliest log time at which one runs out."""
        heap = self._heap
        while heap:
            deadline_ms, lease_id = heap[0]
            lease = self._leases.get(lease_id)
            if lease is None:
                heappop(heap)
            elif lease.deadline_ms > deadline_ms:
                heapreplace(heap, (lease.deadline_ms, lease_id))
            else:
                return deadline_ms
        return None

    def alive(self, lease_id: int, time_ms: int) -> bool:
        """Whether there is such a lease and its time is not over."""
        lease = self._leases.get(lease_id)
        return lease is not None and lease.deadline_ms > time_ms

    def grant(self, lease_id: int, ttl_s: int, time_ms: int, slot: int, index: int) -> Lease | KvError:
        """Open a lease; id 0 has one picked that follows from the command's place in the log."""
        if ttl_s > TTL_MAX_S:
            return TTL_TOO_LARGE
        if lease_id in self._leases:
            return LEASE_EXISTS
        if len(self._leases) >= self._leases_max:
            return TOO_MANY_LEASES
        if not lease_id:
            lease_id = ((slot << _INDEX_BITS) + index) & INT64_MAX
            while not lease_id or lease_id in self._leases:
                lease_id += 1
        ttl_s = max(ttl_s, self._ttl_min_s)
        lease = Lease(lease_id, ttl_s, time_ms + ttl_s * 1000)
        self.add(lease)
        return lease

    def add(self, lease: Lease) -> None:
        """Take in a lease as it is, when restoring."""
        self._leases[lease.id] = lease
        heappush(self._heap, (lease.deadline_ms, lease.id))

    def keep_alive(self, lease_id: int, time_ms: int) -> int:
        """Start its time again; returns its time to live in seconds, 0 when it is gone."""
        if not self.alive(lease_id, time_ms):
            return 0
        ttl_s = self._leases[lease_id].ttl_s
        self._leases[lease_id] = Lease(lease_id, ttl_s, time_ms + ttl_s * 1000)
        return ttl_s

    def remove(self, lease_id: int) -> list[bytes] | KvError:
        """Take a lease out; returns the keys that hung on it, sorted."""
        if self._leases.pop(lease_id, None) is None:
            return LEASE_NOT_FOUND
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._leases):
            self._heap = sorted((lease.deadline_ms, lease.id) for lease in self._leases.values())
        return sorted(self._keys.pop(lease_id, ()))

    def next_expired(self, time_ms: int) -> int | None:
        """Id of the lease that ran out first, by time and then id; None when none has."""
        deadline_ms = self.deadline_ms
        if deadline_ms is None or deadline_ms > time_ms:
            return None
        return self._heap[0][1]

    def attach(self, lease_id: int, key: bytes) -> None:
        """``key`` hangs on the lease from now on."""
        self._keys.setdefault(lease_id, {})[key] = None

    def detach(self, lease_id: int, key: bytes) -> None:
        """``key`` does not hang on the lease any more; the lease may be gone already."""
        keys = self._keys.get(lease_id)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._keys[lease_id]

    def time_to_live(self, lease_id: int, time_ms: int, with_keys: bool, revision: int) -> LeaseTimeToLive:
        """How long it has left at log time ``time_ms``, rounded down to seconds."""
        if not self.alive(lease_id, time_ms):
            return LeaseTimeToLive(revision, lease_id)
        lease = self._leases[lease_id]
        keys = tuple(sorted(self._keys.get(lease_id, ()))) if with_keys else ()
        left_s = (lease.deadline_ms - time_ms) // 1000
        return LeaseTimeToLive(revision, lease_id, left_s, lease.ttl_s, keys)

    def ids(self, time_ms: int) -> list[int]:
        """Ids of the leases whose time is not over, sorted."""
        return sorted(lease.id for lease in self._leases.values() if lease.deadline_ms > time_ms)

    def records(self) -> list[Lease]:
        """Every lease, as of now; in the order of ids only once sorted."""
        return list(self._leases.values())
