"""`LogReader`: an async iterator over the chosen log, which changes nodes by itself."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from twisted_paxos.client.connection import ClientConnection, backoff_s, open_connection
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.errors import Unavailable
from twisted_paxos.wire.client import Failure, LogEntries, ReadLog, Response

RECONNECT_S: Final = 30.0
"""After a first success, how long it tries to reach a node again before it gives up."""

BUFFER_ENTRIES: Final = 256
"""Entries read ahead; beyond, it stops reading from the node."""


class LogReader:
    """Yields `SlotEntry` in the order of slots, none left out. One user, one iteration.

    Args:
        reactor: for connections and time.
        endpoints: where nodes can be reached; each is tried in turn.
        from_slot: the first slot wanted, from 1; 0: the first one that is still stored.
        follow: wait for more at the end, for ever.
        rng: for jitter.

    Iteration raises:
        Unavailable: no node can be reached, or none has the slots any more.
    """

    def __init__(
        self,
        reactor: Any,
        endpoints: Sequence[str],
        from_slot: int = 1,
        follow: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoints = list(endpoints)
        self._next_endpoint = 0
        self._next_slot = from_slot
        self._follow = follow
        self._rng = rng or random.Random()
        self._entries: deque[SlotEntry] = deque()
        self._ended = False
        self._error: Unavailable | None = None
        self._connection: ClientConnection | None = None
        self._reached = False
        self._waiter: Deferred[None] | None = None

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> SlotEntry:
        while not self._entries:
            if self._error is not None:
                raise self._error
            if self._ended:
                self._disconnect()
                raise StopAsyncIteration
            if self._connection is None:
                await self._connect()
            else:
                await self._more()
        return self._entries.popleft()

    @property
    def buffered(self) -> int:
        """Entries that can be had without waiting."""
        return len(self._entries)

    def close(self) -> None:
        """End the stream; a pending wait ends the iteration."""
        self._ended = True
        self._entries.clear()
        self._disconnect()
        self._wake()

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    async def _connect(self) -> None:
        """Connect to the next node that answers."""
        give_up_s = self._reactor.seconds() + (RECONNECT_S if self._reached else 0.0)
        attempts = 0
        why = ""
        while not self._ended:
            endpoint = self._endpoints[self._next_endpoint % len(self._endpoints)]
            self._next_endpoint += 1
            try:
                connection = await open_connection(self._reactor, endpoint, self._got, self._lost)
            except Unavailable as error:
                attempts += 1
                why = f"{why}; {error}" if why and attempts <= len(self._endpoints) else str(error)
            else:
                self._start(connection)
                return
            if attempts % len(self._endpoints) == 0:
                if self._reactor.seconds() >= give_up_s:
                    raise Unavailable(f"no node answers ({why}); are they running?")
                await deferLater(self._reactor, backoff_s(attempts // len(self._endpoints), self._rng))

    def _start(self, connection: ClientConnection) -> None:
        if self._ended:
            connection.close()
            return
        self._connection = connection
        self._reached = True
        connection.send(ReadLog(1, self._next_slot, self._follow))

    async def _more(self) -> None:
        """Wait for more entries, the end, or the loss of the connection."""
        connection = self._connection
        if connection is not None and connection.paused:
            # Not from here: this may run inside the connection's own dataReceived.
            self._reactor.callLater(0, self._resume, connection)
        self._waiter = Deferred()
        await self._waiter

    def _resume(self, connection: ClientConnection) -> None:
        if connection is self._connection and connection.paused:
            connection.resumeProducing()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)

    def _got(self, response: Response) -> None:
        if self._ended:
            return
        if isinstance(response, LogEntries):
            self._append(response.entries)
            self._ended = self._ended or response.last
        elif isinstance(response, Failure):
            if response.code == "bad_request":
                self._error = Unavailable(response.message)
            elif self._connection is not None:
                self._connection.drop(response.message)
        self._wake()

    def _append(self, entries: Sequence[SlotEntry]) -> None:
        if entries and self._next_slot == 0:
            self._next_slot = entries[0].slot
        for entry in entries:
            if entry.slot > self._next_slot:
                why = f"slot {self._next_slot} is not stored any more; read from slot {entry.slot} on"
                self._error = Unavailable(why)
                return
            if entry.slot == self._next_slot:
                self._entries.append(entry)
                self._next_slot += 1
        if len(self._entries) >= BUFFER_ENTRIES and self._connection is not None:
            self._connection.pauseProducing()

    def _lost(self, why: str) -> None:
        self._connection = None
        self._wake()
