"""Storage whose writes end when the test says so, and a messenger that remembers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_paxos.core.effects import OTHERS
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.core.records import Record, Recovered, SaveAccepted, SaveChosen
from twisted_paxos.departure import Departure
from twisted_paxos.interfaces import IAcceptorStorage, IMessenger


@implementer(IAcceptorStorage)
class HeldStorage:
    """Keeps what was written once its Deferred was fired.

    Attributes:
        writes: (records, Deferred) of each write, in order.
        noted: the highest chosen_upto noted.
        log: slot -> entry, of the writes that were done.
        reads: (Deferred, entries) of each read that is held.
    """

    description = "held:"
    log_bytes = 0

    def __init__(self) -> None:
        self.writes: list[tuple[list[Record], Deferred[None]]] = []
        self.thens: list[Callable[[], None] | None] = []
        self.noted = 0
        self.log: dict[int, SlotEntry] = {}
        self.hold_reads = False
        self.reads: list[tuple[Deferred[list[SlotEntry]], list[SlotEntry]]] = []
        self._done = 0

    def recover(self, fresh_incarnation: str, cluster: str, lost: bool = False) -> Recovered:
        """Not used here."""
        raise AssertionError("the test builds what it needs")

    def write(self, records: Sequence[Record], then: Callable[[], None] | None = None) -> Deferred[None]:
        """Hold it."""
        done: Deferred[None] = Deferred()
        self.thens.append(then)
        self.writes.append((list(records), done))
        return done

    def finish(self, error: Exception | None = None) -> None:
        """The oldest write that is held ends: stored, or failed."""
        then = self.thens[self._done]
        records, done = self.writes[self._done]
        self._done += 1
        if error is not None:
            done.errback(error)
            return
        for record in records:
            if isinstance(record, (SaveAccepted, SaveChosen)):
                self.log[record.slot] = SlotEntry(record.slot, record.ballot, record.value)
        if then is not None:
            then()
        done.callback(None)

    @property
    def held(self) -> int:
        """How many writes have not ended."""
        return len(self.writes) - self._done

    def note_chosen(self, chosen_upto: int) -> None:
        """Remember it."""
        self.noted = max(self.noted, chosen_upto)

    def read_chosen(self, from_slot: int, upto_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """What is stored at this moment, old values included."""
        found = []
        for slot in range(from_slot, upto_slot + 1):
            if slot not in self.log:
                break
            found.append(self.log[slot])
        reading: Deferred[list[SlotEntry]] = Deferred()
        self.reads.append((reading, found))
        if not self.hold_reads:
            self.release_read()
        return reading

    def release_read(self) -> None:
        """The oldest held read ends."""
        reading, found = self.reads.pop(0)
        reading.callback(found)

    def close(self) -> Deferred[None]:
        """Nothing is open."""
        closed: Deferred[None] = Deferred()
        closed.callback(None)
        return closed

    def set_aside(self) -> str:
        """Not used here."""
        return self.description


@implementer(IMessenger)
class RememberingMessenger:
    """Keeps (to, message) of everything that left."""

    def __init__(self) -> None:
        self.left: list[tuple[tuple[str, ...], Any]] = []

    def send(self, uids: Sequence[str], message: Any) -> None:
        """Remember it; ``*`` stands for all others."""
        self.left.append((("*",) if tuple(uids) == OTHERS else tuple(uids), message))

    def prepare(self, uid: str, message: Any) -> Departure | None:
        """Remember it once it is sent."""
        return Departure(lambda: self.left.append(((uid,), message)))
