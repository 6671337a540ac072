"""Locks: `Lock`, `ReadWriteLock`, `Semaphore`. First come, first served; each turn has a fencing token."""

from __future__ import annotations

from twisted_paxos.client.client import Client
from twisted_paxos.client.keys import Key
from twisted_paxos.client.kv import get
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.recipes.place import TTL_S, Blocker, Place
from twisted_paxos.statemachine.kvcommands import prefix_end


class Lock(Place):
    """One holder at a time.

    lock = Lock(client, "jobs/nightly")
    token = await lock.acquire()
    lock.lost.addCallback(stop_work)
    ...
    await lock.release()
    """


class _Reader(Place):
    """A reader waits only for the writers before it."""

    _kind = "r-"

    async def _blocker(self) -> Blocker | None:
        request = get(
            self.prefix + _Writer._kind.encode(),
            prefix=True,
            limit=1,
            sort_order="DESCEND",
            sort_target="CREATE",
            keys_only=True,
            max_create_revision=self.token,
        )
        writers = await self._kv.read(request)
        if writers.kvs:
            return Blocker(writers.kvs[0].key, b"", writers.revision)
        # No writer can come before it any more, as long as its key is there.
        own = await self._kv.get(self.key, keys_only=True)
        if not own.kvs or own.kvs[0].create_revision != self.token:
            raise self._gone()
        return None


class _Writer(Place):
    """A writer waits for everybody before it."""

    _kind = "w-"


class ReadWriteLock:
    """Many readers or one writer; who came first goes first, so neither kind starves.

    Args: as those of `Place`.

    Attributes:
        reader: a `Place` that is held together with other readers.
        writer: a `Place` that is held alone.
    """

    def __init__(self, client: Client, name: Key, *, ttl_s: int = TTL_S, lease: Lease | None = None) -> None:
        self.reader: Place = _Reader(client, name, ttl_s=ttl_s, lease=lease)
        self.writer: Place = _Writer(client, name, ttl_s=ttl_s, lease=lease)


class Semaphore(Place):
    """At most ``limit`` holders at a time.

    Args:
        limit: from 1; all users of one name must give the same.
    """

    def __init__(
        self, client: Client, name: Key, limit: int, *, ttl_s: int = TTL_S, lease: Lease | None = None
    ) -> None:
        if limit < 1:
            raise ValueError("a semaphore's limit is 1 or more")
        super().__init__(client, name, ttl_s=ttl_s, lease=lease)
        self._limit = limit

    async def _blocker(self) -> Blocker | None:
        request = get(
            self.prefix,
            prefix=True,
            sort_order="ASCEND",
            sort_target="CREATE",
            keys_only=True,
            max_create_revision=self.token,
        )
        found = await self._kv.read(request)
        keys = [kv.key for kv in found.kvs]
        if self.key not in keys:
            raise self._gone()
        if self.key in keys[: self._limit]:
            return None
        return Blocker(self.prefix, prefix_end(self.prefix), found.revision)
