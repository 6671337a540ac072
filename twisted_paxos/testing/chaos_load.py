"""The clients of the chaos tests: they write all the time, one command in flight each.

There is one writer for each node, which knows that node alone and gives each try a short time:
together they show when the cluster takes writes. One more, ``any``, is the native client as
users have it, with every node's address and its own time limits: it shows what they notice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from twisted_paxos.client import Client, connect
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.chaos_history import History, Write

TRY_S: Final = 0.2
"""What one try of a node's own writer may take; then the next value is tried."""

PAUSE_S: Final = 0.002
"""Between two writes of one writer, so that the clients do not need the processors for themselves."""

RECONNECT_S: Final = 0.02
"""Between tries to reach a node that is not there."""

ANY: Final = "any"
"""The name of the writer that knows every node."""


class Writer:
    """Writes one value after the other.

    Args:
        reactor: for time and connections.
        name: of the writer; part of each value.
        endpoints: the nodes that it knows, the first one first.
        history: gets what it does.
        try_s: what one write may take; None: the client's own limit.
        pause_s: between two writes.
        value_bytes: size of each value, at least.

    Attributes:
        last_error: why its last failed write failed.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        endpoints: Sequence[str],
        history: History,
        try_s: float | None = TRY_S,
        pause_s: float = PAUSE_S,
        value_bytes: int = 0,
    ) -> None:
        self.name = name
        self.last_error: PaxosError | None = None
        self._reactor = reactor
        self._endpoints = list(endpoints)
        self._history = history
        self._try_s = try_s
        self._pause_s = pause_s
        self._filling = "x" * value_bytes
        self._client: Client | None = None
        self._stopping = False
        self._ended: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._ended = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Write nothing more; done when the last write has its outcome."""
        self._stopping = True
        if self._client is not None:
            # Its commands end at once, as unknown: nobody waits out a client's own time limit.
            self._client.close()
        if self._ended is not None:
            await self._ended

    async def _run(self) -> None:
        while not self._stopping and self._client is None:
            try:
                self._client = await connect(self._reactor, self._endpoints)
            except (PaxosError, CancelledError):
                await deferLater(self._reactor, RECONNECT_S)
        while not self._stopping:
            await self._write()
            if self._pause_s:
                await deferLater(self._reactor, self._pause_s)
        if self._client is not None:
            await self._client.close()

    async def _write(self) -> None:
        assert self._client is not None
        value = f"{self.name}-{len(self._history.writes)}-{self._filling}"
        write = self._history.writes[value] = Write(self.name, time.monotonic())
        try:
            result = await self._client.propose(value, timeout_s=self._try_s)
        except PaxosError as error:
            self.last_error = error
            await deferLater(self._reactor, PAUSE_S)
            return
        write.acknowledged_s = time.monotonic()
        write.place = (result.slot, result.index)


def writers_for(
    reactor: Any, endpoints: Mapping[str, str], first: str, history: History, value_bytes: int = 0
) -> list[Writer]:
    """One writer for each node of ``endpoints`` (by id), and `ANY`, which begins with node ``first``."""
    own = [
        Writer(reactor, uid, [endpoint], history, value_bytes=value_bytes)
        for uid, endpoint in endpoints.items()
    ]
    others = [endpoint for uid, endpoint in endpoints.items() if uid != first]
    random.shuffle(others)
    return [*own, Writer(reactor, ANY, [endpoints[first], *others], history, try_s=None)]


async def stop_all(writers: Sequence[Writer]) -> None:
    """Stop them all."""
    await gatherResults([Deferred.fromCoroutine(writer.stop()) for writer in writers])
