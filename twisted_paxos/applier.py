"""Applies chosen slots, in order, once each, and tells whoever waits for a result.

Slots come from the learner as they are chosen; what was chosen before the start of this
process, or while it could not keep up, is read back from storage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Command, SlotEntry, decode_value
from twisted_paxos.errors import StorageDamaged
from twisted_paxos.interfaces import IAcceptorStorage
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.sessions import Sessions

log = Logger()

BACKLOG_MAX_BYTES = 16 << 20
"""Chosen slots kept in memory while earlier ones are read from storage; beyond it, they are read too."""

READ_BYTES = 1 << 20
"""How much is read from storage at once."""

RETRY_S = 0.05
"""When to look again for a chosen slot that storage does not have yet."""


class Applier:
    """Brings the state machine up to date.

    Args:
        clock: the reactor.
        storage: where earlier slots are.
        take_owner: gives whoever waits for a (client, sequence), once.
        applied: told (commands, log time in ms) after each slot.
        failed: told when a stored slot cannot be read or decoded.
        stored_upto: gives the last slot whose chosen value storage certainly has.
        log_start: the first slot to apply.

    Attributes:
        applied_upto: the last slot applied.
        sessions: the client sessions, part of the replicated state.
        listeners: called with (slot, ballot, time, commands that applied now) after each slot.
    """

    def __init__(
        self,
        clock: IReactorTime,
        storage: IAcceptorStorage,
        take_owner: Callable[[tuple[str, int]], Any],
        applied: Callable[[Sequence[Command], int], None],
        failed: Callable[[str | Failure], None],
        stored_upto: Callable[[], int],
        log_start: int,
    ) -> None:
        self.applied_upto = log_start - 1
        self.target = self.applied_upto
        self.sessions = Sessions()
        self.listeners: list[Callable[[int, ProposalID, Sequence[Command]], None]] = []
        self._clock = clock
        self._storage = storage
        self._take_owner = take_owner
        self._applied = applied
        self._failed = failed
        self._stored_upto = stored_upto
        self._backlog: deque[SlotEntry] = deque()
        self._backlog_bytes = 0
        self._reading = False
        self._stopped = False
        self._awaited: list[tuple[int, Deferred[None]]] = []

    def stop(self) -> None:
        """Apply nothing more."""
        self._stopped = True

    def start(self, chosen_upto: int) -> None:
        """Begin with what is chosen already."""
        self.target = max(self.target, chosen_upto)
        self._go_on()

    def chosen(self, entries: Sequence[SlotEntry]) -> None:
        """Slots were chosen, in order, without a gap."""
        self.target = max(self.target, entries[-1].slot)
        if entries[0].slot == self.applied_upto + 1 and not self._reading:
            results: dict[int, tuple[Any, list[Result]]] = {}
            for entry in entries:
                self._apply(entry, results)
            self._tell(results)
            return
        self._backlog.extend(entries)
        self._backlog_bytes += sum(len(entry.value) for entry in entries)
        if self._backlog_bytes > BACKLOG_MAX_BYTES:
            self._backlog.clear()
            self._backlog_bytes = 0
        self._go_on()

    def when_applied(self, slot: int) -> Deferred[None]:
        """Fires once ``slot`` was applied."""
        awaited: Deferred[None] = Deferred()
        self._awaited.append((slot, awaited))
        self._wake()
        return awaited

    def _wake(self) -> None:
        ready = [awaited for slot, awaited in self._awaited if slot <= self.applied_upto]
        if ready:
            self._awaited = [pair for pair in self._awaited if pair[0] > self.applied_upto]
            for awaited in ready:
                awaited.callback(None)

    def _go_on(self) -> None:
        if self._reading or self._stopped or self.applied_upto >= self.target:
            return
        while self._backlog and self._backlog[0].slot <= self.applied_upto:
            self._backlog_bytes -= len(self._backlog.popleft().value)
        if self._backlog and self._backlog[0].slot == self.applied_upto + 1:
            entries, self._backlog = list(self._backlog), deque()
            self._backlog_bytes = 0
            self.chosen(entries)
            return
        upto = self._backlog[0].slot - 1 if self._backlog else self.target
        upto = min(upto, self._stored_upto())
        self._reading = True
        if upto <= self.applied_upto:
            self._clock.callLater(RETRY_S, self._read, [])
            return
        reading = self._storage.read_chosen(self.applied_upto + 1, upto, READ_BYTES)
        reading.addCallback(self._read)
        reading.addErrback(self._read_failed)

    def _read(self, entries: list[SlotEntry]) -> None:
        self._reading = False
        if self._stopped:
            return
        results: dict[int, tuple[Any, list[Result]]] = {}
        for entry in entries:
            if entry.slot == self.applied_upto + 1:
                self._apply(entry, results)
        self._tell(results)
        # At the next turn: other work goes on in between.
        self._clock.callLater(0 if entries else RETRY_S, self._go_on)

    def _read_failed(self, failure: Failure) -> None:
        self._reading = False
        if not self._stopped:
            self._failed(failure)

    def _apply(self, entry: SlotEntry, results: dict[int, tuple[Any, list[Result]]]) -> None:
        assert entry.slot == self.applied_upto + 1, "slots apply in order"
        try:
            value = decode_value(entry.value)
        except msgspec.DecodeError as error:
            raise StorageDamaged(f"the value chosen in slot {entry.slot} is no value: {error}") from None
        self.sessions.advance(value.time_ms)
        now: list[Command] = []
        for index, command in enumerate(value.commands):
            result, applies = self.sessions.apply(command, entry.slot, index)
            if applies:
                now.append(command)
            owner = self._take_owner((command.client, command.sequence))
            if owner is not None:
                results.setdefault(id(owner), (owner, []))[1].append(result)
        self.applied_upto = entry.slot
        self._applied(value.commands, self.sessions.log_time_ms)
        for listener in self.listeners:
            listener(entry.slot, entry.ballot, now)

    def _tell(self, results: dict[int, tuple[Any, list[Result]]]) -> None:
        if self._awaited:
            self._wake()
        for owner, its in results.values():
            owner.applied(its)
