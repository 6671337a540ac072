"""`ProposalStream`: values from a source of any length, each with its outcome told to a callback."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial

from twisted.internet.defer import Deferred

from twisted_paxos.client.pending import Outcome
from twisted_paxos.errors import PaxosError


class ProposalStream:
    """One ``Client.propose_many`` in progress.

    Args:
        add: proposes one value and has its outcome told; raises `PaxosError` for a bad one.
        room: returns when one more may be added; raises when there never will be room.
        on_outcome: told each value's number, from 0, and its outcome.
    """

    def __init__(
        self,
        add: Callable[[str | bytes, Callable[[Outcome], None]], None],
        room: Callable[[], Awaitable[None]],
        on_outcome: Callable[[int, Outcome], None],
    ) -> None:
        self._add = add
        self._room = room
        self._on_outcome = on_outcome
        self._started = 0
        self._finished = 0
        self._all_started = False
        self._stopped = False
        self._done: Deferred[None] = Deferred()

    async def run(self, values: Iterable[str | bytes] | AsyncIterable[str | bytes]) -> int:
        """Propose all of ``values``; their number, once each has its outcome."""
        try:
            if isinstance(values, AsyncIterable):
                async for value in values:
                    await self._start(value)
            else:
                for value in values:
                    await self._start(value)
            self._all_started = True
            self._check_done()
            await self._done
        finally:
            self._stopped = True
        return self._started

    async def _start(self, value: str | bytes) -> None:
        await self._room()
        if self._done.called:
            await self._done  # The callback failed; this raises its error.
        finish = partial(self._finish, self._started)
        self._started += 1
        try:
            self._add(value, finish)
        except PaxosError as error:
            finish(error)

    def _finish(self, number: int, outcome: Outcome) -> None:
        self._finished += 1
        if self._stopped:
            return
        try:
            self._on_outcome(number, outcome)
        except Exception:
            self._stopped = True
            self._done.errback()
            return
        self._check_done()

    def _check_done(self) -> None:
        if self._all_started and self._finished == self._started and not self._done.called:
            self._done.callback(None)
