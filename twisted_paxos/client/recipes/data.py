"""Small shared data: `Barrier`, `Counter`, `Queue`."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from twisted_paxos.client.client import Client
from twisted_paxos.client.keys import Key, to_bytes
from twisted_paxos.client.kv import delete, get, mod_revision, put, version
from twisted_paxos.client.recipes.place import first_event
from twisted_paxos.errors import NotAcquired, PaxosError
from twisted_paxos.statemachine.kvcommands import KeyValue, RangeResult


class Barrier:
    """Holds everybody who waits until it is released.

    Args:
        client: whose session it uses.
        name: its key.
    """

    def __init__(self, client: Client, name: Key) -> None:
        self.name = to_bytes(name)
        self._client = client
        self._kv = client.kv

    def hold(self, lease: int = 0) -> Deferred[bool]:
        """Set it up; fires with False when it was up already. It goes with ``lease``, when one is given."""
        doing = self._kv.txn([version(self.name) == 0], [put(self.name, b"", lease=lease)])
        return doing.addCallback(lambda done: done.succeeded)

    def release(self) -> Deferred[None]:
        """Let all go on; done also if it is not up."""
        return self._kv.delete(self.name).addCallback(lambda _: None)

    def wait(self, timeout_s: float | None = None) -> Deferred[None]:
        """Fires when it is not up.

        Fails with `NotAcquired` when it is still up after ``timeout_s`` seconds.
        """
        done = Deferred.fromCoroutine(self._wait())
        if timeout_s is not None:
            done.addTimeout(timeout_s, self._client.reactor, _too_late)
        return done

    async def _wait(self) -> None:
        while True:
            found = await self._kv.get(self.name, keys_only=True)
            if not found.kvs:
                return
            start_revision = found.revision + 1
            async with self._kv.watch(self.name, start_revision=start_revision, noput=True) as watch:
                await first_event(watch)


class Counter:
    """A number that many change; each change counts exactly once.

    Args:
        client: whose session it uses.
        name: its key; its value is the number in decimal digits.
    """

    def __init__(self, client: Client, name: Key) -> None:
        self.name = to_bytes(name)
        self._kv = client.kv

    def get(self) -> Deferred[int]:
        """The number; 0 when it was never changed."""
        return self._kv.get(self.name).addCallback(lambda found: self._number(found.kvs))

    def add(self, amount: int = 1) -> Deferred[int]:
        """Add ``amount``; fires with the number after that.

        Fails with `OutcomeUnknown` when it was sent and has no result: then it counts once or not at all.
        """
        return Deferred.fromCoroutine(self._add(amount))

    async def _add(self, amount: int) -> int:
        kvs = (await self._kv.get(self.name)).kvs
        while True:
            # Each round that does not succeed shows that another one's did.
            number = self._number(kvs) + amount
            seen = kvs[0].mod_revision if kvs else 0
            done = await self._kv.txn(
                [mod_revision(self.name) == seen], [put(self.name, str(number))], [get(self.name)]
            )
            if done.succeeded:
                return number
            found = done.responses[0]
            assert isinstance(found, RangeResult)
            kvs = found.kvs

    def _number(self, kvs: tuple[KeyValue, ...]) -> int:
        try:
            return int(kvs[0].value) if kvs else 0
        except ValueError:
            name = self.name.decode(errors="replace")
            raise PaxosError(f"the key {name} is no counter: its value is no number") from None


class Queue:
    """Values in the order in which they were put; each is taken at most once.

    Args:
        client: whose session it uses.
        name: values go to keys below ``name/``.
    """

    def __init__(self, client: Client, name: Key) -> None:
        self.name = to_bytes(name)
        self._client = client
        self._kv = client.kv

    @property
    def prefix(self) -> bytes:
        """What the keys of all values begin with."""
        return self.name + b"/"

    def put(self, value: Key) -> Deferred[bytes]:
        """Add ``value`` at the end; fires with its key."""
        key = self.prefix + self._client.unique_id().encode()
        return self._kv.put(key, value).addCallback(lambda _: key)

    def take(self, timeout_s: float | None = None) -> Deferred[bytes]:
        """Take the first value, waiting until there is one.

        Fails with:
            NotAcquired: there was none within ``timeout_s`` seconds.
            OutcomeUnknown: the cluster did not answer in time; a value may have been taken and is then lost.
        """
        done = Deferred.fromCoroutine(self._take())
        if timeout_s is not None:
            done.addTimeout(timeout_s, self._client.reactor, _too_late)
        return done

    def size(self) -> Deferred[int]:
        """How many values there are."""
        return self._kv.get(self.prefix, prefix=True, count_only=True).addCallback(lambda found: found.count)

    async def _take(self) -> bytes:
        first = get(self.prefix, prefix=True, limit=1, sort_order="ASCEND", sort_target="CREATE")
        while True:
            found = await self._kv.read(first)
            if found.kvs:
                kv = found.kvs[0]
                done = await self._kv.txn([mod_revision(kv.key) == kv.mod_revision], [delete(kv.key)])
                if done.succeeded:
                    return kv.value
                continue  # Another one took it.
            start_revision = found.revision + 1
            async with self._kv.watch(
                self.prefix, prefix=True, start_revision=start_revision, nodelete=True
            ) as watch:
                await first_event(watch)


def _too_late(result: object, timeout_s: float) -> object:
    if isinstance(result, Failure) and result.check(CancelledError):
        raise NotAcquired(f"nothing came within {timeout_s:g} s")
    return result
