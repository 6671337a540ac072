"""Applies chosen slots, in order, once each, and tells whoever waits for a result.

Slots come from the learner as they are chosen; what was chosen before the start of this
process, or while it could not keep up, is read back from storage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.messages import OfRun, SlotEntry
from twisted_paxos.errors import StorageDamaged
from twisted_paxos.interfaces import IAcceptorStorage
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.replicated import Applied, ReplicatedState

log = Logger()

BACKLOG_MAX_BYTES = 16 << 20
"""Chosen slots kept in memory while earlier ones are read from storage; beyond it, they are read too."""

READ_BYTES = 1 << 18
"""How much is read from storage, and applied in one go, at once."""

PART_BYTES = 1 << 16
"""Slots of so many bytes are applied before it is told what they did."""

RETRY_S = 0.05
"""When to look again for a chosen slot that storage does not have yet."""


class Applier:
    """Brings the replicated state up to date.

    Args:
        clock: the reactor.
        storage: where earlier slots are.
        state: what slots are applied to.
        owners_of: gives whoever waits for each of a slot's commands (or None), once; an empty
            list when nobody waits for any.
        applied: told of each slot, and what it did, once whoever waits has the results.
        failed: told when a stored slot cannot be read or decoded.
        stored_upto: gives the last slot whose chosen value storage certainly has.

    Attributes:
        target: the last slot known as chosen.
        listeners: called with each slot, and what it did, before the next one is applied.
        paused: nothing is applied, because a snapshot is about to replace the state.
        is_applying: slots are being applied, or what they did is being told.
        applies: how long batches of slots took to apply, in seconds.
        commands: how many commands applied.
        failed_commands: how many were chosen and could not be applied.
    """

    def __init__(
        self,
        clock: IReactorTime,
        storage: IAcceptorStorage,
        state: ReplicatedState,
        owners_of: Callable[[Sequence[OfRun]], Sequence[Any]],
        applied: Callable[[SlotEntry, Applied], None],
        failed: Callable[[str | Failure], None],
        stored_upto: Callable[[], int],
    ) -> None:
        self.state = state
        self.target = 0
        self.paused = True
        self.is_applying = False
        self.applies = Histogram()
        self.commands = 0
        self.failed_commands = 0
        self.listeners: list[Callable[[SlotEntry, Applied], None]] = []
        self._clock = clock
        self._storage = storage
        self._owners_of = owners_of
        self._applied = applied
        self._failed = failed
        self._stored_upto = stored_upto
        self._backlog: deque[SlotEntry] = deque()
        self._backlog_bytes = 0
        self._reading = False
        self._stopped = False
        self._awaited: list[tuple[int, Deferred[None]]] = []

    @property
    def applied_upto(self) -> int:
        """The last slot applied."""
        return self.state.applied_upto

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a slot to be applied."""
        return bool(self._awaited)

    def stop(self) -> None:
        """Apply nothing more."""
        self._stopped = True

    def pause(self) -> None:
        """Apply nothing until `resume`."""
        self.paused = True

    def resume(self, chosen_upto: int) -> None:
        """Go on, with the state as it is now, up to ``chosen_upto`` at least."""
        self.paused = False
        self.target = max(self.target, chosen_upto)
        self._wake()
        self._go_on()

    def chosen(self, entries: Sequence[SlotEntry]) -> None:
        """Slots were chosen, in order, without a gap."""
        if entries[-1].slot > self.target:
            self.target = entries[-1].slot
        if entries[0].slot == self.state.applied_upto + 1 and not (self._reading or self.paused):
            self._apply_all(entries)
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
        if self.paused:
            return
        ready = [awaited for slot, awaited in self._awaited if slot <= self.applied_upto]
        if ready:
            self._awaited = [pair for pair in self._awaited if pair[0] > self.applied_upto]
            for awaited in ready:
                awaited.callback(None)

    def _go_on(self) -> None:
        if self._reading or self._stopped or self.paused or self.applied_upto >= self.target:
            return
        while self._backlog and self._backlog[0].slot <= self.applied_upto:
            self._backlog_bytes -= len(self._backlog.popleft().value)
        if self._backlog and self._backlog[0].slot == self.applied_upto + 1:
            entries, self._backlog = list(self._backlog), deque()
            self._backlog_bytes = 0
            self._apply_all(entries)
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
        if self._stopped or self.paused:
            return
        self._apply_all([entry for entry in entries if entry.slot > self.applied_upto])
        # At the next turn: other work goes on in between.
        self._clock.callLater(0 if entries else RETRY_S, self._go_on_later)

    def _go_on_later(self) -> None:
        """Nobody stands above a call of the reactor's: what fails in it is told from here."""
        try:
            self._go_on()
        except Exception:
            self._failed(Failure())

    def _read_failed(self, failure: Failure) -> None:
        self._reading = False
        if not self._stopped:
            self._failed(failure)

    def _apply_all(self, entries: Sequence[SlotEntry]) -> None:
        self.is_applying = True
        try:
            for part in _parts(entries):
                if self._stopped:
                    return
                self._apply_part(part)
        finally:
            self.is_applying = False

    def _apply_part(self, entries: Sequence[SlotEntry]) -> None:
        """Apply; whoever waits for a result hears first, and all else that follows comes after."""
        results: dict[int, tuple[Any, list[Result]]] = {}
        started_s = self._clock.seconds()
        done = [(entry, self._apply(entry, results)) for entry in entries]
        self.applies.observe(self._clock.seconds() - started_s)
        for owner, its in results.values():
            try:
                owner.applied(its)
            except Exception:
                log.failure("telling results failed")
        if self._awaited:
            self._wake()
        for entry, applied in done:
            self.commands += applied.count
            self.failed_commands += applied.failed
            self._applied(entry, applied)

    def _apply(self, entry: SlotEntry, results: dict[int, tuple[Any, list[Result]]]) -> Applied:
        try:
            applied = self.state.apply_encoded(entry.slot, entry.value)
        except msgspec.DecodeError as error:
            raise StorageDamaged(f"the value chosen in slot {entry.slot} is no value: {error}") from None
        owners = self._owners_of(applied.runs)
        if owners:
            _share_out(owners, applied.results, results)
        for listener in self.listeners:
            listener(entry, applied)
        return applied


def _parts(entries: Sequence[SlotEntry]) -> Iterator[Sequence[SlotEntry]]:
    """``entries`` in parts that are not large: what they did is kept until all of a part is told."""
    start = size_bytes = 0
    for place, entry in enumerate(entries):
        size_bytes += len(entry.value)
        if size_bytes >= PART_BYTES:
            yield entries[start : place + 1]
            start, size_bytes = place + 1, 0
    if start < len(entries):
        yield entries[start:]


def _share_out(
    owners: Sequence[Any], results: list[Result], shares: dict[int, tuple[Any, list[Result]]]
) -> None:
    """Add each result to its owner's share."""
    first = owners[0]
    if owners.count(first) == len(owners):
        # The usual case: a slot, or all that is one's own in it, comes from one connection.
        if first is not None:
            shares.setdefault(id(first), (first, []))[1].extend(results)
        return
    for owner, result in zip(owners, results, strict=True):
        if owner is not None:
            shares.setdefault(id(owner), (owner, []))[1].append(result)
