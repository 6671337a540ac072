"""What the clients of a simulated run do with the key-value store: one coroutine for each kind of use.

Each goes on until the load ends, through errors of any kind: a refusal, an unknown outcome and a lost
lease are all part of it. Values are unique in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from random import Random
from typing import Any, Final

from twisted_paxos.client.kv import delete, get, put, value
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.recipes import Election, Lock
from twisted_paxos.client.recipes.place import Place
from twisted_paxos.client.watches import Watch
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.kvcommands import Put, Range, Txn, encode_command, prefix_end
from twisted_paxos.statemachine.watches import WatchRequest
from twisted_paxos.testing.kvhistory import Grant, KvHistory, Seen, Use, Watching
from twisted_paxos.testing.kvhosts import KvHost

CELLS: Final = 3
"""Keys below ``r/``: single registers, by put, compare-and-swap and read."""

BRANCHES: Final = 4
"""Keys below ``t/``: changed by transactions, deleted and read as a range."""

ACQUIRE_S: Final = 3.0
LEASE_KEYS: Final = 2
WATCHES_MAX: Final = 3
"""Of one process at a time."""


class Actors:
    """Makes the coroutines.

    Args:
        random: the chance of them.
        history: takes what they see beyond requests and watches.
        places: gives every place of every living process.

    Attributes:
        running: they go on.
    """

    def __init__(
        self, random: Random, history: KvHistory, places: Callable[[], list[tuple[KvHost, Place]]]
    ) -> None:
        self.running = True
        self._random = random
        self._history = history
        self._places = places
        self._serials: Iterator[int] = count(1)

    def draw(self) -> list[Callable[[KvHost], Coroutine[Any, Any, None]]]:
        """Some of them for one process: one that writes at least."""
        kinds = [self.tree, self.leases, self.locks, self.election, self.watches]
        drawn = [kind for kind in kinds if self._random.random() < 0.6]
        return [self.cells, *drawn]

    def _value(self) -> bytes:
        return b"v%d" % next(self._serials)

    async def _rest(self, host: KvHost, mean_s: float) -> None:
        await host.sleep(self._random.expovariate(1 / mean_s))

    # -- single keys

    async def cells(self, host: KvHost) -> None:
        """Registers: put, compare-and-swap, read."""
        known: dict[bytes, bytes] = {}
        while self.running:
            await self._rest(host, 0.25)
            key = b"r/%d" % self._random.randrange(CELLS)
            try:
                await self._cell(host, key, known)
            except PaxosError:
                known.pop(key, None)

    async def _cell(self, host: KvHost, key: bytes, known: dict[bytes, bytes]) -> None:
        random, kv = self._random, _client(host).kv
        kind = random.random()
        if kind < 0.3:
            new = self._value()
            await _client(host).command(encode_command(Put(key, new, prev_kv=True)))
            known[key] = new
        elif kind < 0.65:
            new = self._value()
            swap = [value(key) == known.get(key, b"v0")]
            done = await kv.txn(swap, [put(key, new)], [get(key)])
            if done.succeeded:
                known[key] = new
            elif done.responses[0].kvs:
                known[key] = done.responses[0].kvs[0].value
        else:
            found = await kv.get(key, serializable=kind > 0.9)
            if found.kvs:
                known[key] = found.kvs[0].value

    # -- transactions, ranges, compaction

    async def tree(self, host: KvHost) -> None:
        """Keys that change together, deletions, reads of ranges and of the past, compaction."""
        while self.running:
            await self._rest(host, 0.2)
            try:
                await self._branch(host)
            except PaxosError:
                continue

    async def _branch(self, host: KvHost) -> None:
        random, kv = self._random, _client(host).kv
        kind = random.random()
        keys = [b"t/%d" % n for n in sorted(random.sample(range(BRANCHES), 2))]
        if kind < 0.35:
            await kv.txn((), [put(key, self._value()) for key in keys])
        elif kind < 0.45:
            await self._nested(host, keys)
        elif kind < 0.55:
            await kv.delete(keys[0], prev_kv=random.random() < 0.5)
        elif kind < 0.6:
            await kv.delete(b"t/", prefix=True)
        elif kind < 0.7:
            revision = max(1, kv.revision - random.choice((0, 2, 10, 40)))
            await kv.get(b"t/", prefix=True, revision=revision, serializable=random.random() < 0.3)
        elif kind < 0.74:
            await kv.compact(max(1, kv.revision - random.choice((0, 3, 20))))
        elif kind < 0.8:
            await kv.get(b"t/", prefix=True, serializable=True)
        else:
            order: Any = random.choice(("NONE", "ASCEND", "DESCEND"))
            target: Any = random.choice(("KEY", "MOD", "CREATE", "VERSION", "VALUE"))
            await kv.get(
                b"t/", prefix=True, sort_order=order, sort_target=target, limit=random.choice((0, 2))
            )

    async def _nested(self, host: KvHost, keys: list[bytes]) -> None:
        """Moves a value from one key to another, if the first is there, in one of two ways."""
        inner = Txn(
            (value(keys[1]) != self._value(),),
            (put(keys[1], self._value()), Range(b"t/", prefix_end(b"t/"))),
            (put(keys[1], self._value()),),
        )
        await _client(host).kv.txn(
            [value(keys[0]) > b""], [delete(keys[0], prev_kv=True), inner], [get(keys[1])]
        )

    # -- leases

    async def leases(self, host: KvHost) -> None:
        """Leases that are kept alive, then revoked, or left to themselves."""
        held = host.leases
        while self.running:
            try:
                lease = await _client(host).lease(self._random.choice((1, 1, 2, 3)))
            except PaxosError:
                await self._rest(host, 0.5)
                continue
            held.append(lease)
            await self._use_lease(host, lease)
            held.remove(lease)

    async def _use_lease(self, host: KvHost, lease: Lease) -> None:
        random, kv = self._random, _client(host).kv
        for _ in range(random.choice((1, 5, 20))):
            key = b"l/%d" % random.randrange(LEASE_KEYS) if random.random() < 0.5 else b"l/%x" % lease.id
            kind = random.random()
            try:
                if kind < 0.5:
                    await kv.put(key, self._value(), lease=lease.id)
                elif kind < 0.6:
                    await kv.delete(key)
                elif kind < 0.7:
                    await kv.put(key, self._value())
                elif kind < 0.8:
                    await kv.lease_time_to_live(lease.id, keys=True)
                elif kind < 0.9:
                    # Also when it is over by now: that must not bring it back.
                    await kv.lease_keep_alive(lease.id)
                else:
                    await kv.get(b"l/", prefix=True)
            except PaxosError:
                pass
            await self._rest(host, 0.3)
            if not (self.running and lease.sure):
                break
        if random.random() < 0.5:
            lease.abandon()
            return
        try:
            await lease.revoke()
        except PaxosError:
            return

    # -- locks and elections

    async def locks(self, host: KvHost) -> None:
        """Turns at one lock."""
        await self._contend(host, lambda ttl_s: Lock(_client(host), "lock", ttl_s=ttl_s))

    async def election(self, host: KvHost) -> None:
        """Turns at leading, and an observer."""
        host.begin(self._observe(host))
        await self._contend(host, lambda ttl_s: Election(_client(host), "election", ttl_s=ttl_s))

    async def _contend(self, host: KvHost, make: Callable[[int], Place]) -> None:
        places = host.places
        while self.running:
            place = make(self._random.choice((1, 2)))
            places.append(place)
            try:
                await self._turn(host, place)
            except PaxosError:
                await self._rest(host, 0.2)
            places.remove(place)
            await self._rest(host, 0.1)

    async def _turn(self, host: KvHost, place: Place) -> None:
        random = self._random
        if isinstance(place, Election):
            token = await place.campaign(self._value(), timeout_s=ACQUIRE_S)
        else:
            token = await place.acquire(timeout_s=ACQUIRE_S)
        name = place.name.decode()
        self._history.grants.append(Grant(host.now_s, name, place.key, token, place.held))
        key = place.key
        for _ in range(random.choice((1, 3, 25))):
            looked = random.random() < 0.8
            if not self.running or (looked and not place.held):
                break
            self._use(host, place, key, token, looked)
            if isinstance(place, Election) and random.random() < 0.2 and not await self._proclaims(place):
                break
            await self._rest(host, 0.08)
        await place.release()

    async def _proclaims(self, place: Election) -> bool:
        """Whether that could be told; who cannot tell gives the turn back, and does not just keep it."""
        try:
            await place.proclaim(self._value())
        except PaxosError:
            return False
        return True

    def _use(self, host: KvHost, place: Place, key: bytes, token: int, looked: bool) -> None:
        """Use what is guarded; who else believes to hold it is noted: those whose process runs."""
        others = tuple(
            (other.token, _sure_s(other))
            for its_host, other in self._places()
            if other is not place and other.name == place.name and its_host.running and other.held
        )
        use = Use(place.name.decode(), host.now_s, key, token, looked, others, _sure_s(place))
        self._history.uses.append(use)

    async def _observe(self, host: KvHost) -> None:
        observed, name = Election(_client(host), "election"), host.name
        while self.running:
            try:
                async for leader in observed.observe():
                    seen = Seen(host.now_s, name, "election", leader.create_revision)
                    self._history.seen.append(seen)
            except PaxosError:
                await self._rest(host, 0.3)

    # -- watches

    async def watches(self, host: KvHost) -> None:
        """A few watches at a time, from the present, the past or the future; each is followed on its own."""
        going: list[tuple[Watching, Watch]] = []
        while self.running:
            going = [pair for pair in going if not pair[0].ended]
            if len(going) < WATCHES_MAX:
                begun = host.watch(self._draw_watch(host))
                going.append(begun)
                host.begin(self._follow(host, *begun))
            elif self._random.random() < 0.15:
                _, watch = going.pop(0)
                watch.close()
            await self._rest(host, 0.8)

    def _draw_watch(self, host: KvHost) -> WatchRequest:
        random, revision = self._random, _client(host).kv.revision
        key, end = random.choice(
            (
                (b"t/", prefix_end(b"t/")),
                (b"t/1", b""),
                (b"r/0", b""),
                (b"l/", prefix_end(b"l/")),
                (b"\0", b"\0"),
            )
        )
        start = random.choice(
            (0, 0, revision + 1, max(1, revision - 15), max(1, revision - 3), 1, revision + 4)
        )
        return WatchRequest(
            key,
            end,
            start,
            noput=random.random() < 0.1,
            nodelete=random.random() < 0.1,
            prev_kv=random.random() < 0.3,
            progress_notify=random.random() < 0.3,
        )

    async def _follow(self, host: KvHost, watching: Watching, watch: Watch) -> None:
        """Take what it gives, now and then slowly; where history was compacted, go on behind that."""
        slow = self._random.random() < 0.3

        def between_s() -> float:
            return self._random.choice((0.0, 0.3)) if slow and self.running else 0.0

        while True:
            await host.follow(watching, watch, between_s)
            if not watching.compact_revision or not self.running:
                return
            asked = watching.request
            again = WatchRequest(
                asked.key,
                asked.range_end,
                watching.compact_revision,
                asked.noput,
                asked.nodelete,
                asked.prev_kv,
                asked.progress_notify,
            )
            watching, watch = host.watch(again)


def _client(host: KvHost) -> Any:
    assert host.client is not None
    return host.client


def _sure_s(place: Place) -> float:
    return place._lease.remaining_s if place._lease is not None else 0.0
