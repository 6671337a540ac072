"""Waiting on the server's side for events of keys, as long as the node is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from twisted_paxos.errors import WatchCanceled
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest
from twisted_paxos.web.gateway import Gateway


class Waiter:
    """One watch, awaited; made by `watching`."""

    def __init__(self, gateway: Gateway, request: WatchRequest) -> None:
        self._gateway = gateway
        self._awake = False
        self._waking: IDelayedCall | None = None
        self._waiting: Deferred[None] | None = None
        self._error: Exception | None = None
        self._watch_id = gateway.store.watches.create(request, self._woken)
        gateway.follow(self)

    async def next(self) -> WatchBatch:
        """The next batch with events.

        Raises:
            WatchCanceled: history is compacted: read anew.
            Unavailable: the node has no leader that works.
            NodeStopped: it stops.
        """
        while True:
            if self._error is not None:
                raise self._error
            self._awake = False
            batch = self._gateway.store.watches.poll(self._watch_id)
            if batch is not None and batch.canceled:
                raise WatchCanceled(batch.cancel_reason, batch.compact_revision)
            if batch is not None and batch.events:
                return batch
            if not self._awake:
                self._waiting = Deferred()
                await self._waiting

    def close(self) -> None:
        """No more of it."""
        self._gateway.leave(self)
        self._gateway.store.watches.cancel(self._watch_id)
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None

    def end(self, error: Exception) -> None:
        """See `gateway.Follower`."""
        self._error = error
        self._wake()

    def _woken(self) -> None:
        """Called from within the store's `apply`: what waits goes on in a turn of its own."""
        self._awake = True
        if self._waking is None:
            self._waking = self._gateway.reactor.callLater(0, self._wake)

    def _wake(self) -> None:
        if self._waking is not None and self._waking.active():
            self._waking.cancel()
        self._waking = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)


@contextmanager
def watching(gateway: Gateway, request: WatchRequest) -> Iterator[Waiter]:
    """A watch, ended with the block."""
    waiter = Waiter(gateway, request)
    try:
        yield waiter
    finally:
        waiter.close()
