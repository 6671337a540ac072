"""`Place`: a place in the queue of those who want something; locks and elections are made of it.

As in etcd's concurrency package, each contender makes a key of its own below a common prefix, hung
on its lease. The revision that created the key is its number in the queue, and its **fencing token**:
later holders have higher ones, so a resource that refuses a token lower than one it has seen is safe
from holders that were paused. What must always hold:

* Whose turn it is follows from one linearizable read that also shows that the own key is there.
* `held` is true only while the lease is sure, by this process's own monotonic clock, at that moment.
* A place that is given up, or not known to be taken, leaves no key behind for longer than its lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.client.client import Client
from twisted_paxos.client.keys import Key, to_bytes
from twisted_paxos.client.kv import create_revision, delete, get, put, version
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.watches import Watch
from twisted_paxos.errors import KeyValueError, LeaseLost, NotAcquired, PaxosError, WatchCanceled
from twisted_paxos.statemachine.kvcommands import LEASE_NOT_FOUND, RangeResult

log = Logger()

TTL_S: Final = 10
"""How long a dead holder keeps others waiting, unless the caller says otherwise."""


class Blocker(NamedTuple):
    """What stands before a place: when something of it is deleted after ``revision``, look again."""

    key: bytes
    range_end: bytes
    revision: int


class Place:
    """One contender; the base of locks and elections. It can be taken again after it was given up.

    Args:
        client: whose session and reactor it uses.
        name: of what is wanted; keys go below ``name/``.
        ttl_s: time to live of its own lease.
        lease: a lease to share instead; it is not revoked here.

    Attributes:
        name: as given, in bytes.
        token: the fencing token; 0 while there is none.
        key: its key, while it has one.
        lost: of the present turn: fires, once, with one line on why, when what is held may not be held
            any more. Never fires after `release`.
    """

    _kind = ""

    def __init__(self, client: Client, name: Key, *, ttl_s: int = TTL_S, lease: Lease | None = None) -> None:
        self.name = to_bytes(name)
        self.token = 0
        self.key = b""
        self.lost: Deferred[str] = Deferred()
        self._client = client
        self._kv = client.kv
        self._ttl_s = ttl_s
        self._shared = lease
        self._lease: Lease | None = None
        self._state = "free"
        self._watch: Watch | None = None
        self._forget_lease: Callable[[], None] = _nothing
        self._removal: Deferred[Any] | None = None

    @property
    def prefix(self) -> bytes:
        """What the keys of all contenders begin with."""
        return self.name + b"/"

    @property
    def held(self) -> bool:
        """Whether it is certainly held at this moment: look just before each use of what it guards."""
        return self._state == "held" and self._lease is not None and self._lease.sure

    def acquire(self, timeout_s: float | None = None) -> Deferred[int]:
        """Wait for the turn; fires with the fencing token.

        Cancelling it gives the place up.

        Fails with:
            NotAcquired: it was not its turn within ``timeout_s`` seconds.
            LeaseLost: its lease was lost while it waited.
            PaxosError: the cluster could not be reached; see `KeyValues`.
        """
        return self._acquire(b"", timeout_s)

    def release(self) -> Deferred[None]:
        """Give it up; done also if it was lost, or is not held.

        After an `acquire` that failed, it is done when the cluster has been told so: until then the place
        in the queue keeps others waiting, at most until its lease has run out. A program that ends at
        once should wait for it.

        Fails with `PaxosError` when the cluster could not be told: others then wait until the lease has
        run out. With a shared lease, call it again.
        """
        return Deferred.fromCoroutine(self._release())

    async def __aenter__(self) -> Place:
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.release()
        except PaxosError as error:
            log.warn("{name} runs out by itself: {why}", name=self.name, why=str(error))

    # -- the turn ------------------------------------------------------------------------------

    def _acquire(self, value: bytes, timeout_s: float | None) -> Deferred[int]:
        done = Deferred.fromCoroutine(self._take(value))
        if timeout_s is not None:
            done.addTimeout(timeout_s, self._client.reactor, self._too_late)
        return done

    def _too_late(self, result: object, timeout_s: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError, PaxosError):
            raise NotAcquired(f"{self.name.decode(errors='replace')} was not free within {timeout_s:g} s")
        return result

    async def _take(self, value: bytes) -> int:
        if self._state not in ("free", "lost"):
            raise RuntimeError(f"{self.name!r} is {self._state} already; use one object for each turn")
        self._state = "waiting"
        self.token = 0
        self.key = b""
        self._lease = None
        self.lost = Deferred()
        try:
            await self._enter(value)
            await self._wait_for_turn()
        except BaseException:
            self._give_up()
            raise
        self._state = "held"
        self._guard()
        return self.token

    async def _enter(self, value: bytes) -> None:
        """Take a place at the end of the queue."""
        lease = self._lease = self._shared or await Lease.grant(self._client, self._ttl_s)
        suffix = f"-{self._client.unique_id()}" if self._shared else ""
        self.key = self.prefix + f"{self._kind}{lease.id:x}{suffix}".encode()
        self._forget_lease = lease.on_lost(self._lease_lost)
        try:
            created = await self._kv.txn(
                [version(self.key) == 0], [put(self.key, value, lease=lease.id)], [get(self.key)]
            )
        except KeyValueError as error:
            if error.message == LEASE_NOT_FOUND.message:
                raise LeaseLost(f"lease {lease.id:x} has expired, or was revoked") from None
            raise
        found = created.responses[0]
        self.token = found.kvs[0].create_revision if isinstance(found, RangeResult) else created.revision

    async def _wait_for_turn(self) -> None:
        while True:
            self._check_lease()
            blocker = await self._blocker()
            if blocker is None:
                self._check_lease()
                return
            await self._wait_for_deletion(blocker)

    async def _blocker(self) -> Blocker | None:
        """What it has to wait for; None: it is its turn.

        Raises:
            LeaseLost: its key is not there any more.
        """
        request = get(
            self.prefix,
            prefix=True,
            limit=2,
            sort_order="DESCEND",
            sort_target="CREATE",
            keys_only=True,
            max_create_revision=self.token,
        )
        found = await self._kv.read(request)
        if not found.kvs or found.kvs[0].key != self.key:
            raise self._gone()
        return Blocker(found.kvs[1].key, b"", found.revision) if len(found.kvs) > 1 else None

    async def _wait_for_deletion(self, blocker: Blocker) -> None:
        key, range_end, revision = blocker
        self._watch = self._kv.watch(key, range_end=range_end, start_revision=revision + 1, noput=True)
        try:
            await first_event(self._watch)
        finally:
            self._close_watch()

    def _check_lease(self) -> None:
        assert self._lease is not None
        self._lease.check()

    def _gone(self) -> LeaseLost:
        return LeaseLost(f"the key {self.key.decode(errors='replace')} is gone; its lease has expired")

    # -- while it is held ----------------------------------------------------------------------

    def _guard(self) -> None:
        """Notice when the key is deleted although the lease lives."""
        guarding = Deferred.fromCoroutine(self._watch_key(self.lost))
        guarding.addErrback(self._guard_failed, self.lost)

    async def _watch_key(self, turn: Deferred[str]) -> None:
        start_revision = self.token + 1
        while self.lost is turn and self._state == "held":
            self._watch = self._kv.watch(self.key, start_revision=start_revision, noput=True)
            try:
                deleted = await first_event(self._watch)
                if self.lost is not turn or self._state != "held":
                    return
                if not deleted:
                    found = await self._kv.get(self.key, keys_only=True)
                    start_revision = found.revision + 1
                    if found.kvs and found.kvs[0].create_revision == self.token:
                        continue
            finally:
                if self.lost is turn:
                    self._close_watch()
            if self.lost is turn:
                self._lose("its key was deleted")

    def _guard_failed(self, failure: Failure, turn: Deferred[str]) -> None:
        """The key cannot be watched; the lease still guards the turn."""
        if self.lost is turn and self._state == "held":
            log.debug("{key} cannot be watched: {why}", key=self.key, why=failure.getErrorMessage())

    def _lease_lost(self, why: str) -> None:
        if self._state == "held":
            self._lose(why)
        else:
            self._close_watch()  # Whoever waits looks at the lease next.

    def _lose(self, why: str) -> None:
        if self._state != "held":
            return
        self._state = "lost"
        self._leave_lease()
        if self._lease is not None and self._lease is not self._shared and self._lease.sure:
            self._lease.revoke().addErrback(lambda _: None)  # It runs out by itself.
        self.lost.callback(why)

    # -- the end -------------------------------------------------------------------------------

    async def _release(self) -> None:
        if self._state in ("held", "leaving"):
            self._state = "leaving"
            self._leave_lease()
            await self._remove()
            self._state = "free"
        elif self._removal is not None:
            await self._removal

    def _leave_lease(self) -> None:
        self._close_watch()
        self._forget_lease()
        self._forget_lease = _nothing

    def _remove(self) -> Deferred[Any]:
        """Delete the key. A command of this client that is sent later settles a put that has no result."""
        if self._lease is None:
            return succeed(None)
        if self._lease is not self._shared:
            return self._lease.revoke()
        owned = [create_revision(self.key) == self.token] if self.token else []
        return self._kv.txn(owned, [delete(self.key)])

    def _give_up(self) -> None:
        """The wait ended without a turn; only `release` waits for the cluster to be told."""
        self._leave_lease()
        self._removal = self._remove()
        self._removal.addErrback(self._not_told)
        self._state = "free"
        self.token = 0

    def _not_told(self, failure: Failure) -> None:
        failure.trap(PaxosError, CancelledError)
        why = failure.getErrorMessage()
        log.info("The place for {name} ends with its lease: {why}", name=self.name, why=why)

    def _close_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()


async def first_event(watch: Watch) -> bool:
    """Wait for the first event; False: history is compacted, or the watch was closed: look again.

    Raises:
        WatchCanceled: it cannot be watched.
    """
    try:
        async for batch in watch:
            if batch.events:
                return True
    except WatchCanceled as error:
        if not error.compact_revision:
            raise
    return False


def _nothing(*_: Any) -> None:
    """Takes the place of what is not needed any more."""
