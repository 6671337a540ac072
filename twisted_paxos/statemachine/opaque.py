"""The state machine of a plain log: it keeps the values in the log and makes nothing of them."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Raw
from zope.interface import implementer

from twisted_paxos.statemachine.commands import NO_DATA, Context
from twisted_paxos.statemachine.machine import IStateMachine


@implementer(IStateMachine)
class OpaqueLog:
    """See `IStateMachine`; its state is empty."""

    deadline_ms: int | None = None

    def apply(self, payload: Raw, context: Context) -> Raw:
        """Nothing to do: a value's place in the log is all there is to it."""
        return NO_DATA

    def advance(self, context: Context) -> None:
        """Nothing depends on time."""

    def query(self, payload: Raw) -> Raw:
        """There is nothing to ask."""
        return NO_DATA

    def snapshot(self) -> Iterator[bytes]:
        """No pieces."""
        return iter(())

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Accept no pieces.

        Raises:
            ValueError: there are some.
        """
        for _ in pieces:
            raise ValueError("a snapshot of another state machine")
        yield
