"""The clients of the chaos tests: they write all the time, one command in flight each.

There is one writer for each node, which knows that node alone and gives each try a short time:
together they show when the cluster takes writes. One more, ``any``, is the native client as
users have it, with every node's address and its own time limits: it shows what they notice.

Beside them one prober for each node swaps and reads a key of the store there.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater

from twisted_paxos.client import Client, connect
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.chaos_history import History, Write
from twisted_paxos.testing.linearizability import EMPTY, Call

TRY_S: Final = 0.2
"""What one try of a node's own writer may take; then the next value is tried."""

PAUSE_S: Final = 0.002
"""Between two writes of one writer, so that the clients do not need the processors for themselves."""

PROBE_PAUSE_S: Final = 0.02
"""Between two calls of one prober: few, because the check is to be quick."""

RECONNECT_S: Final = 0.02
"""Between tries to reach a node that is not there."""

ANY: Final = "any"
"""The name of the writer that knows every node."""


class _Worker:
    """Does one thing after the other with a client of its own.

    Args:
        reactor: for time and connections.
        endpoints: the nodes that it knows, the first one first.
        pause_s: between two.
    """

    def __init__(self, reactor: Any, endpoints: Sequence[str], pause_s: float) -> None:
        self._reactor = reactor
        self._endpoints = list(endpoints)
        self._pause_s = pause_s
        self._client: Client | None = None
        self._stopping = False
        self._ended: Deferred[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._ended = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Begin nothing more; done when the last thing has its outcome."""
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
            assert self._client is not None
            await self._work(self._client)
            if self._pause_s:
                await deferLater(self._reactor, self._pause_s)
        if self._client is not None:
            await self._client.close()

    async def _work(self, client: Client) -> None:
        raise AssertionError("a worker has work")


class Writer(_Worker):
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
        super().__init__(reactor, endpoints, pause_s)
        self.name = name
        self.last_error: PaxosError | None = None
        self._history = history
        self._try_s = try_s
        self._filling = "x" * value_bytes

    async def _work(self, client: Client) -> None:
        value = f"{self.name}-{len(self._history.writes)}-{self._filling}"
        write = self._history.writes[value] = Write(self.name, time.monotonic())
        try:
            result = await client.propose(value, timeout_s=self._try_s)
        except PaxosError as error:
            self.last_error = error
            await deferLater(self._reactor, PAUSE_S)
            return
        write.acknowledged_s = time.monotonic()
        write.place = (result.slot, result.index)


class Prober(_Worker):
    """Swaps and reads a key of the store, in turn; see `linearizability`.

    Args:
        reactor: for time and connections.
        endpoint: of its node.
        key: the same for all probers of a repetition, and for no other.
        history: gets what it does.
    """

    def __init__(self, reactor: Any, endpoint: str, key: str, history: History) -> None:
        super().__init__(reactor, [endpoint], PROBE_PAUSE_S)
        self._key = key
        self._history = history
        self._number = 0

    async def _work(self, client: Client) -> None:
        self._number += 1
        writes = f"{id(self):x}.{self._number}" if self._number % 2 else ""
        start_s = time.monotonic()
        try:
            if writes:
                before = (await client.kv.put(self._key, writes, prev_kv=True, timeout_s=TRY_S)).prev_kv
            else:
                found = (await client.kv.get(self._key, timeout_s=TRY_S)).kvs
                before = found[0] if found else None
        except PaxosError:
            # A read without an answer says nothing; a swap may take effect at any later time.
            if writes:
                self._history.calls.append(Call(start_s, math.inf, writes, None))
            return
        gave = before.value.decode() if before is not None else EMPTY
        self._history.calls.append(Call(start_s, time.monotonic(), writes, gave))


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


async def stop_all(writers: Sequence[Writer | Prober]) -> None:
    """Stop them all."""
    await gatherResults([Deferred.fromCoroutine(writer.stop()) for writer in writers])
