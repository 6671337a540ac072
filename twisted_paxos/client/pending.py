"""`Pending`: the commands of one session from the call to the outcome. Pure: no reactor, no clock.

A proposal waits in the queue until the window has room, gets its sequence number then, and stays
in flight until its result comes or its deadline passes. What must always hold:

* A sequence number is given once and never changes; so the cluster applies each command once.
* ``floor`` is the lowest sequence in flight: everything below it has its outcome.
* A proposal that was sent, and not refused, ends as a result or as "unknown", never as "not done".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, TypeAlias

from msgspec import Raw, Struct

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import (
    OutcomeUnknown,
    Overloaded,
    PaxosError,
    SessionExpired,
    Unavailable,
    ValueTooLarge,
)
from twisted_paxos.statemachine.commands import Result

WINDOW_COMMANDS: Final = 2_048
"""Commands in flight at once unless the caller says otherwise."""

WINDOW_BYTES: Final = 8 << 20
"""Payload bytes in flight at once; one command always may."""

SPAN_MAX: Final = limits.SESSION_RESULTS_MAX // 2
"""How far the newest sequence may be ahead of the oldest one in flight."""

QUEUE_MAX_COMMANDS: Final = 100_000
"""Commands that wait for room in the window; beyond, `Overloaded`."""

QUEUE_MAX_BYTES: Final = 64 << 20
"""The same limit in payload bytes."""

COMMAND_OVERHEAD_BYTES: Final = 64
"""What surrounds a payload in a frame, about."""

Outcome: TypeAlias = Result | PaxosError
"""What became of a proposed value."""


def _ignore(outcome: Outcome) -> None:
    """Takes the place of a ``finish`` that was called."""


class Proposal(Struct, eq=False):
    """One proposed value.

    Attributes:
        payload: what is proposed.
        deadline_s: on the caller's clock.
        number: its place in the queue's order.
        finish: told the outcome, once.
        command: what is sent; set when it has its sequence number.
        sends: how often it was sent without being refused: above 0 it may be applied.
        refused: a node was too busy to take it.
    """

    payload: Raw
    deadline_s: float
    number: int
    finish: Callable[[Outcome], None] = _ignore
    command: Command | None = None
    sends: int = 0
    refused: bool = False

    def end(self, outcome: Outcome) -> None:
        """Tell the outcome, once; also frees what ``finish`` holds."""
        finish, self.finish = self.finish, _ignore
        finish(outcome)


class Pending:
    """The queue and the window of one client.

    Args:
        session_id: of the first session.
        window: commands in flight at once.

    Attributes:
        session_id: of the present session.
        next_deadline_s: no proposal's deadline is before it.
    """

    def __init__(self, session_id: str, window: int = WINDOW_COMMANDS) -> None:
        self.session_id = session_id
        self.next_deadline_s = math.inf
        self._window = window
        self._queue: dict[int, Proposal] = {}
        self._queue_bytes = 0
        self._numbers = 0
        self._in_flight: dict[int, Proposal] = {}
        self._in_flight_bytes = 0
        self._next_sequence = 1
        self._floor = 1

    @property
    def in_flight(self) -> int:
        """Commands with a sequence number and no outcome."""
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """Proposals that wait for room in the window."""
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """Whether a patient caller should add more now; others may up to the hard limits."""
        return len(self._queue) < self._window and self._queue_bytes < WINDOW_BYTES

    @property
    def floor(self) -> int:
        """Every sequence below has its outcome."""
        # Amortised: each sequence is passed once. min() or next(iter()) would scan each time.
        while self._floor < self._next_sequence and self._floor not in self._in_flight:
            self._floor += 1
        return self._floor

    def add(self, payload: Raw, deadline_s: float) -> Proposal:
        """Queue a proposal; the caller sets its ``finish``.

        Raises:
            Overloaded: the queue is full.
        """
        size_bytes = len(payload)
        if len(self._queue) >= QUEUE_MAX_COMMANDS or self._queue_bytes + size_bytes > QUEUE_MAX_BYTES:
            raise Overloaded(f"{len(self._queue)} commands wait in this client already; wait for results")
        self._numbers += 1
        proposal = Proposal(payload, deadline_s, self._numbers)
        self._queue[self._numbers] = proposal
        self._queue_bytes += size_bytes
        if deadline_s < self.next_deadline_s:
            self.next_deadline_s = deadline_s
        return proposal

    def next_batch(self) -> tuple[Command, ...]:
        """The next commands to send, in one frame's size; empty when none wait or the window is full."""
        floor = self.floor
        in_flight, session_id, sequence = self._in_flight, self.session_id, self._next_sequence
        room = min(self._window - len(in_flight), floor + SPAN_MAX - sequence)
        batch: list[Command] = []
        batch_bytes = sent_bytes = 0
        for proposal in self._queue.values():
            size_bytes = len(proposal.payload)
            if len(batch) >= room or (batch and batch_bytes + size_bytes > limits.BATCH_TARGET_BYTES):
                break
            if self._in_flight_bytes + sent_bytes >= WINDOW_BYTES and in_flight:
                break
            batch_bytes += size_bytes + COMMAND_OVERHEAD_BYTES
            sent_bytes += size_bytes
            proposal.command = command = Command(session_id, sequence, floor, proposal.payload)
            proposal.sends = 1
            in_flight[sequence] = proposal
            sequence += 1
            batch.append(command)
        self._next_sequence = sequence
        self._in_flight_bytes += sent_bytes
        self._take_from_queue(len(batch), sent_bytes)
        return tuple(batch)

    def _take_from_queue(self, count: int, size_bytes: int) -> None:
        """The first ``count`` are in flight now."""
        queue = self._queue
        if count == len(queue):
            queue.clear()
        else:
            for number in list(islice(queue, count)):
                del queue[number]
        self._queue_bytes -= size_bytes

    def batches_to_resend(self, sequences: Sequence[int] | None = None) -> list[tuple[Command, ...]]:
        """Commands in flight (of ``sequences``, or all) once more, in frames' sizes, counted as sent."""
        batches: list[tuple[Command, ...]] = []
        batch: list[Command] = []
        batch_bytes = 0
        for sequence in sorted(self._in_flight if sequences is None else sequences):
            proposal = self._in_flight.get(sequence)
            if proposal is None or proposal.command is None:
                continue
            proposal.sends += 1
            if batch and batch_bytes + len(proposal.payload) > limits.BATCH_TARGET_BYTES:
                batches.append(tuple(batch))
                batch, batch_bytes = [], 0
            batch.append(proposal.command)
            batch_bytes += len(proposal.payload) + COMMAND_OVERHEAD_BYTES
        if batch:
            batches.append(tuple(batch))
        return batches

    def settle(self, results: Sequence[Result]) -> bool:
        """End the proposals that ``results`` are about; tells whether the session has expired."""
        expired = False
        session_id, pop = self.session_id, self._in_flight.pop
        for result in results:
            if result.client != session_id:
                continue
            if result.error:
                expired = self._settle_error(result) or expired
                continue
            proposal = pop(result.sequence, None)
            if proposal is not None:
                self._in_flight_bytes -= len(proposal.payload)
                proposal.end(result)
        return expired

    def _settle_error(self, result: Result) -> bool:
        if result.error == "session_expired":
            return True
        proposal = self._take(result.sequence)
        if proposal is not None and result.slot:
            proposal.end(ValueTooLarge("the command was applied, but its result is too large to be sent"))
        elif proposal is not None:
            # This copy was not applied; a node's own repetition of it may be, later.
            proposal.end(OutcomeUnknown(f"the cluster answered {result.error}; look with: paxosctl log"))
        return False

    def _take(self, sequence: int) -> Proposal | None:
        proposal = self._in_flight.pop(sequence, None)
        if proposal is not None:
            self._in_flight_bytes -= len(proposal.payload)
        return proposal

    def refused(self, commands: Sequence[Command]) -> list[int]:
        """A node took none of ``commands``; returns which of them still wait for a result."""
        sequences = []
        for command in commands:
            proposal = self._in_flight.get(command.sequence)
            if proposal is not None and proposal.command is command:
                proposal.sends -= 1
                proposal.refused = True
                sequences.append(command.sequence)
        return sequences

    def fail(self, sequences: Sequence[int], error: PaxosError) -> None:
        """End commands that a node refused for good; those also sent elsewhere end as unknown."""
        for sequence in sequences:
            proposal = self._take(sequence)
            if proposal is not None:
                proposal.end(_unknown(proposal) if proposal.sends else error)

    def abandon(self, proposal: Proposal) -> bool:
        """The caller waits no longer; tells whether it was sent, so that its outcome is unknown."""
        if self._queue.pop(proposal.number, None) is not None:
            self._queue_bytes -= len(proposal.payload)
            return False
        if proposal.command is not None and self._in_flight.get(proposal.command.sequence) is proposal:
            self._take(proposal.command.sequence)
        return proposal.sends > 0

    def expire(self, now_s: float, why_not_sent: str) -> None:
        """End every proposal whose deadline has passed, and find the next deadline."""
        next_deadline_s = math.inf
        overdue = []
        for proposal in [*self._in_flight.values(), *self._queue.values()]:
            if proposal.deadline_s <= now_s:
                overdue.append(proposal)
            else:
                next_deadline_s = min(next_deadline_s, proposal.deadline_s)
        self.next_deadline_s = next_deadline_s
        for proposal in overdue:
            self.abandon(proposal)
            proposal.end(_unfinished(proposal, why_not_sent))

    def new_session(self, session_id: str) -> None:
        """Go on under ``session_id``: what is in flight under the old one ends, what waits is kept."""
        lost = list(self._in_flight.values())
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self.session_id = session_id
        self._next_sequence = self._floor = 1
        for proposal in lost:
            proposal.end(SessionExpired("the cluster forgot this session; the value may be chosen or not"))

    def end_all(self, why_not_sent: str) -> None:
        """End everything: the client closes."""
        proposals = [*self._in_flight.values(), *self._queue.values()]
        self._in_flight.clear()
        self._queue.clear()
        self._in_flight_bytes = self._queue_bytes = 0
        for proposal in proposals:
            proposal.end(_unfinished(proposal, why_not_sent))


def _unknown(proposal: Proposal) -> OutcomeUnknown:
    return OutcomeUnknown("no result in time; the value may be chosen all the same, look with: paxosctl log")


def _unfinished(proposal: Proposal, why_not_sent: str) -> PaxosError:
    """How a proposal without a result ends."""
    if proposal.sends:
        return _unknown(proposal)
    if proposal.refused:
        return Overloaded("the nodes were too busy to take the command; it was not done, try again later")
    return Unavailable(why_not_sent)
