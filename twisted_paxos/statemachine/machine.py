"""`IStateMachine`: what an embedding program implements. Pure, so it stands here; `interfaces` has it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Raw
from zope.interface import Attribute, Interface

from twisted_paxos.statemachine.commands import Context


class IStateMachine(Interface):
    """A replicated state: the same commands in the same order give the same state and results anywhere.

    Deterministic by contract: `apply`, `advance` and `restore` use nothing but their arguments and
    the state; no clock, no randomness, no iteration over sets. All calls come on one thread.
    `twisted_paxos.testing.determinism` checks an implementation.
    """

    deadline_ms: int | None = Attribute(
        "The earliest log time in milliseconds at which `advance` has something to do; None: never."
        " The leader sees to it that log time gets there."
    )

    def apply(payload: Raw, context: Context) -> Raw:
        """Apply one command and return its result, as JSON.

        Called once per command, in log order. Must not raise: a command that cannot be done
        changes nothing and has an error as its result.
        """

    def advance(context: Context) -> None:
        """Log time is now ``context.time_ms``; called once per slot, before its commands."""

    def query(payload: Raw) -> Raw:
        """Answer a question about the state, as JSON; changes nothing. Must not raise.

        The caller sees to it that the state is fresh enough (`PersistentPaxosNode.query`).
        """

    def snapshot() -> Iterator[bytes]:
        """The state of this moment, in pieces of about 64 KiB at most, made one by one; some may be empty.

        A frozen view: `apply` and `advance` go on between two pieces and do not show in them.
        Only one snapshot is under way at a time; closing the iterator ends it early.
        """

    def restore(pieces: Iterator[bytes]) -> Iterator[None]:
        """Replace the state by what `snapshot` gave, of this or an earlier version.

        The present state stays until the end, when it is replaced at once, or for good when this
        raises. Takes at most one piece between two yields, so that the caller can read the next one and do
        other things; the state must not be used before it is exhausted.

        Raises:
            ValueError: the pieces are no snapshot of this machine.
        """


class ITypedMachine(IStateMachine):
    """A state machine that takes commands decoded and by the batch: a whole slot is decoded at once.

    A slot in which any payload does not fit `payload_type` is applied by `IStateMachine.apply`, one
    command after another. What is done, and each result, must be the same either way.
    """

    payload_type: Any = Attribute("What `msgspec` is to decode payloads as.")

    def apply_all(payloads: Sequence[Any], context: Context, size_bytes: int) -> Sequence[Raw]:
        """Apply commands of one slot, in order, and return the result of each.

        Args:
            payloads: one `payload_type` for each command.
            context: of the first command; the others have the indexes that follow.
            size_bytes: of the slot's whole value, as JSON: all that is in these payloads is no larger.

        What is no list may be a sequence that makes each result when it is asked for, the same each time;
        it is kept as a whole as long as a session remembers any of it, so it should be small.
        """
