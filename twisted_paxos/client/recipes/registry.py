"""`ServiceRegistry`: which instances of a service are there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twisted_paxos.client.client import Client
from twisted_paxos.client.keys import Key, to_bytes
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.recipes.place import TTL_S
from twisted_paxos.errors import PaxosError, WatchCanceled
from twisted_paxos.statemachine.kvcommands import KeyValue

log = Logger()

RETRY_S: Final = 1.0
"""How long after an attempt to register again that failed the next one comes."""


class Registration:
    """One instance of a service, registered until `close`; made by `ServiceRegistry.register`.

    When its lease is lost it registers itself again, as soon as the cluster can be reached.

    Attributes:
        key: where it is registered.
        value: what is registered.
    """

    def __init__(self, client: Client, key: bytes, value: bytes, ttl_s: int) -> None:
        self.key = key
        self.value = value
        self._client = client
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._again: Deferred[None] | None = None
        self._closed = False

    @property
    def registered(self) -> bool:
        """Whether it is certainly registered."""
        return self._lease is not None and self._lease.sure

    async def register(self) -> None:
        """Register, once."""
        lease = await Lease.grant(self._client, self._ttl_s)
        try:
            await self._client.kv.put(self.key, self.value, lease=lease.id)
        except BaseException:
            lease.revoke().addErrback(lambda _: None)  # It runs out by itself.
            raise
        self._lease = lease
        lease.on_lost(self._lost)

    def close(self) -> Deferred[None]:
        """Take the instance out. Fails with `PaxosError` when that must wait for its lease to run out."""
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.revoke()

    def _lost(self, why: str) -> None:
        log.warn("{key} is registered again: {why}", key=self.key, why=why)
        self._lease = None
        self._again = Deferred.fromCoroutine(self._register_again())
        self._again.addErrback(self._broken)

    async def _register_again(self) -> None:
        while not self._closed:
            try:
                await self.register()
                return
            except PaxosError as error:
                log.debug("{key} cannot be registered yet: {why}", key=self.key, why=str(error))
            await deferLater(self._client.reactor, RETRY_S)

    def _broken(self, failure: object) -> None:
        if not self._closed:
            log.error("{key} is not registered any more: {why}", key=self.key, why=str(failure))


class ServiceRegistry:
    """Services, their instances, and what each instance says of itself.

    Args:
        client: whose session it uses.
        prefix: keys are ``prefix/service/instance``.
    """

    def __init__(self, client: Client, prefix: Key = b"services") -> None:
        self._client = client
        self._prefix = to_bytes(prefix)

    def register(self, service: Key, instance: Key, value: Key, ttl_s: int = TTL_S) -> Deferred[Registration]:
        """Register ``instance`` of ``service`` with ``value``, its address say.

        An instance that is registered already is replaced.
        """
        key = self._prefix_of(service) + to_bytes(instance)
        registration = Registration(self._client, key, to_bytes(value), ttl_s)
        registering = Deferred.fromCoroutine(registration.register())
        return registering.addCallback(lambda _: registration)

    def instances(self, service: Key) -> Deferred[dict[bytes, bytes]]:
        """The instances that are registered, with their values."""
        prefix = self._prefix_of(service)
        reading = self._client.kv.get(prefix, prefix=True)
        return reading.addCallback(lambda found: _by_instance(prefix, found.kvs))

    async def watch(self, service: Key) -> AsyncIterator[dict[bytes, bytes]]:
        """The instances and their values, now and after each change; for ever."""
        prefix = self._prefix_of(service)
        while True:
            found = await self._client.kv.get(prefix, prefix=True)
            instances = _by_instance(prefix, found.kvs)
            yield dict(instances)
            start_revision = found.revision + 1
            async with self._client.kv.watch(prefix, prefix=True, start_revision=start_revision) as watch:
                try:
                    async for batch in watch:
                        for event in batch.events:
                            _change(instances, event.kv.key[len(prefix) :], event.kv)
                        yield dict(instances)
                except WatchCanceled as error:
                    if not error.compact_revision:
                        raise
                    continue
            return  # The client is closed.

    def _prefix_of(self, service: Key) -> bytes:
        return b"%s/%s/" % (self._prefix, to_bytes(service))


def _by_instance(prefix: bytes, kvs: tuple[KeyValue, ...]) -> dict[bytes, bytes]:
    return {kv.key[len(prefix) :]: kv.value for kv in kvs}


def _change(instances: dict[bytes, bytes], instance: bytes, kv: KeyValue) -> None:
    if kv.version:
        instances[instance] = kv.value
    else:
        instances.pop(instance, None)
