"""A node's linearizable reads: one question to the leader for all that begin in one turn."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from twisted_paxos.core.effects import Effects, Readable
from twisted_paxos.errors import NodeStopped, Overloaded

READS_WAITING_MAX = 100_000
"""Linearizable reads that may wait at a node."""


class NodeReads:
    """Reads from their beginning until the state machine has caught up with them.

    Args:
        read: begins a read of the replica at a time in seconds; see `core.replica.Replica.read`.
        when_applied: fires once a slot was applied here.
        forget: told when a read has ended.
    """

    def __init__(
        self,
        read: Callable[[float], tuple[int, Effects]],
        when_applied: Callable[[int], Deferred[None]],
        forget: Callable[[int], None],
    ) -> None:
        self._read = read
        self._when_applied = when_applied
        self._forget = forget
        self._new: list[Deferred[None]] = []
        self._asked: dict[int, list[Deferred[None]]] = {}
        self._waiting = 0

    def begin(self) -> Deferred[None]:
        """One more read; `ask` must follow in this turn or the next.

        Raises:
            Overloaded: too many wait already.
        """
        if self._waiting >= READS_WAITING_MAX:
            raise Overloaded(f"{self._waiting:,} reads wait already; try again later")
        self._waiting += 1
        waiting: Deferred[None] = Deferred()
        self._new.append(waiting)
        return waiting

    @property
    def asks(self) -> bool:
        """Whether `ask` has something to ask."""
        return bool(self._new)

    def ask(self, now_s: float) -> Effects:
        """One question for all that are new."""
        if not self._new:
            return Effects()
        reads, self._new = self._new, []
        read_id, effects = self._read(now_s)
        self._asked[read_id] = reads
        return effects

    def confirmed(self, readable: Readable) -> None:
        """The leader has answered: what had been answered before these reads is up to that slot."""
        if readable.read_id in self._asked:
            self._when_applied(readable.slot).addCallback(lambda _: self._answer(readable.read_id))

    def _answer(self, read_id: int) -> None:
        """What was confirmed is applied; of several confirmations the first to be applied will do."""
        reads = self._asked.pop(read_id, [])
        self._forget(read_id)
        self._waiting -= len(reads)
        for waiting in reads:
            if not waiting.called:
                waiting.callback(None)

    def stop(self) -> None:
        """None of them will be answered."""
        reads = [*self._new, *(read for reads in self._asked.values() for read in reads)]
        self._new, self._asked = [], {}
        for waiting in reads:
            if not waiting.called:
                waiting.errback(NodeStopped("the node stopped; ask another one"))
