"""The one place that performs effects, in one order: persist, then send, then apply.

Each reply is tied to the write that covers it. Writes go out one at a time; whatever is asked
for while one is under way waits and goes together in the next (group commit). So when a write
ends, exactly its own replies are released: never "flush, then send whatever is pending".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects, Readable, ReadChosen, Send, merge_accepted
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.messages import Accepted, Chosen, SlotEntry
from twisted_paxos.core.records import Record, SaveAccepted, SaveChosen
from twisted_paxos.errors import StorageFull, StorageUnreadable
from twisted_paxos.interfaces import IAcceptorStorage, IMessenger

log = Logger()

FULL_RETRY_S = 0.5
"""How long a write that found no room waits before it is tried again."""

NOTE_IDLE_S = 1.0
"""How far slots are chosen is written with the next records, or by itself after this long."""

READS_MAX = 64
"""Answers to Fetches that may be under way; more are dropped, and asked for again."""

RECORD_OVERHEAD_BYTES = 300
"""What a waiting record or reply takes in memory beyond its value, roughly."""

UNWRITTEN_MAX_BYTES = 2 * limits.WINDOW_MAX_BYTES
"""Values that may wait to be written; beyond it, messages that need a write are dropped."""


class EffectPerformer:
    """Performs what roles ask for.

    Args:
        uid: this node's id: messages to it are delivered here and never leave.
        clock: the reactor.
        storage: where records go.
        messenger: how messages leave.
        deliver: takes a message of this node to itself.
        apply: takes chosen slots, in order.
        readable: takes reads that are confirmed.
        behind: takes the id of a node that can only help with a snapshot.
        chosen_range: gives (chosen_upto, log_start) for answers to Fetches.
        stop: ends the node, with a reason: storage failed.
        lost: ends this incarnation, with a reason: its storage is not what it once was.
        stored_upto: every slot up to here was found chosen in storage.

    Attributes:
        waiting_since_s: since when the oldest unfinished write waits, or None.
        stored_upto: every slot up to here is chosen, and storage has its chosen value. Only this
            much may be read from storage or noted there: above it an older value may still stand.
        full: the storage has no room at present.
        voted, voted_upto: the highest ballot and slot of the Accepteds that left.
        syncs: how long writes took, from being given to storage to being durable, in seconds.
    """

    def __init__(
        self,
        uid: str,
        clock: IReactorTime,
        storage: IAcceptorStorage,
        messenger: IMessenger,
        deliver: Callable[[Any], Effects],
        apply: Callable[[Sequence[SlotEntry]], None],
        readable: Callable[[Readable], None],
        behind: Callable[[str], None],
        chosen_range: Callable[[], tuple[int, int]],
        stop: Callable[[str | Failure], None],
        lost: Callable[[str], None],
        stored_upto: int,
    ) -> None:
        self.waiting_since_s: float | None = None
        self.stored_upto = stored_upto
        self.full = False
        self.voted, self.voted_upto = NO_BALLOT, 0
        self.syncs = Histogram()
        self._chosen_upto = stored_upto
        self._covered_upto = stored_upto
        self._uid = uid
        self._clock = clock
        self._storage = storage
        self._messenger = messenger
        self._deliver = deliver
        self._apply = apply
        self._readable = readable
        self._behind = behind
        self._chosen_range = chosen_range
        self._stop = stop
        self._lost = lost
        self._stopped = False
        self._queue: deque[Effects] = deque()
        self._to_self: deque[Any] = deque()
        self._busy = False
        self._records: list[Record] = []
        self._replies: list[Send] = []
        self._unwritten_bytes = 0
        self._writing: list[Send] | None = None
        self._write_planned = False
        self._gathering = False
        self._note_planned = False
        self._reads = 0

    def perform(self, effects: Effects) -> None:
        """Do all of it, and all that follows from messages to this node itself."""
        self._queue.append(effects)
        if self._busy:
            return
        self._busy = True
        try:
            while not self._stopped and (self._queue or self._to_self):
                if self._queue:
                    self._perform(self._queue.popleft())
                else:
                    self._queue.append(self._deliver(self._to_self.popleft()))
        finally:
            self._busy = False

    def stop(self) -> None:
        """Do nothing more: nothing that has not left yet will leave."""
        self._stopped = True
        self._queue.clear()
        self._to_self.clear()

    @property
    def overfull(self) -> bool:
        """Whether so much waits to be written that nothing that needs a write may be taken."""
        return self._unwritten_bytes > UNWRITTEN_MAX_BYTES

    def _perform(self, effects: Effects) -> None:
        if effects.lost:
            self._lost(effects.lost)
            return
        if effects.records:
            self._records += effects.records
            self._unwritten_bytes += _size_bytes(effects.records)
            self._plan_write()
        if effects.replies:
            self._hold(effects.replies)
        for send in effects.sends:
            self._send(send)
        if effects.chosen:
            self._chosen_upto = effects.chosen[-1].slot
            if not self._records and self._writing is None:
                self._note_stored(self._chosen_upto)
            self._apply(effects.chosen)
        for read in effects.reads:
            self._read(read)
        if effects.behind:
            self._behind(effects.behind)
        for readable in effects.readable:
            self._readable(readable)

    # -- persist

    def _hold(self, replies: list[Send]) -> None:
        """Tie replies to the write that covers all that was asked for until now."""
        if self._records or self._writing is not None:
            self._unwritten_bytes += RECORD_OVERHEAD_BYTES * len(replies)
        if self._records:
            self._replies += replies
        elif self._writing is not None:
            self._writing += replies
        else:
            for reply in replies:
                self._send(reply)

    def _plan_write(self) -> None:
        if self.waiting_since_s is None:
            self.waiting_since_s = self._clock.seconds()
        if self._writing is None and not self._write_planned:
            # At the end of this turn: all that arrives in one turn shares one sync.
            self._write_planned = True
            if not self._gathering:
                self._clock.callLater(0, self._write)

    def gather(self) -> None:
        """Until `write_now`: what is asked for needs no turn of its own to be written."""
        self._gathering = True

    def write_now(self) -> None:
        """The turn is over: what it asked for need not wait for the next one."""
        self._gathering = False
        if self._write_planned:
            self._write()

    def _write(self) -> None:
        if self._stopped or self._writing is not None or not self._write_planned:
            return
        self._write_planned = False
        records, self._records = self._records, []
        self._writing, self._replies = self._replies, []
        self._covered_upto = self._chosen_upto
        self.waiting_since_s = self._clock.seconds()
        self._write_records(records)

    def _write_records(self, records: list[Record]) -> None:
        if self._stopped:
            return
        written = self._storage.write(records)
        written.addCallbacks(self._written, self._not_written, (records,), {}, (records,), {})
        written.addErrback(self._broken)

    def _written(self, _: object, records: list[Record]) -> None:
        released, self._writing = self._writing, None
        assert released is not None
        self._unwritten_bytes -= _size_bytes(records) + RECORD_OVERHEAD_BYTES * len(released)
        self._note_stored(self._covered_upto if self._records else self._chosen_upto)
        self.full = False
        self._observe_sync()
        self.waiting_since_s = None
        if self._records:
            self._write_planned = True
            self._write()
        effects = Effects(sends=merge_accepted(released))
        self.perform(effects)

    def _observe_sync(self) -> None:
        if self.waiting_since_s is not None:
            self.syncs.observe(self._clock.seconds() - self.waiting_since_s)

    def installed(self, slot: int) -> None:
        """A snapshot in storage stands for everything up to ``slot``."""
        self._chosen_upto = max(self._chosen_upto, slot)
        self._covered_upto = max(self._covered_upto, slot)
        self._note_stored(slot)

    def _note_stored(self, upto: int) -> None:
        """Everything that was asked for before ``upto`` was chosen is durable."""
        if upto > self.stored_upto:
            self.stored_upto = upto
            self._storage.note_chosen(upto)
            if not self._note_planned:
                self._note_planned = True
                self._clock.callLater(NOTE_IDLE_S, self._sync_note)

    def _sync_note(self) -> None:
        """With nothing to write, what was noted would wait for ever: nobody could tell it after a loss."""
        self._note_planned = False
        if not self._stopped and self._writing is None and not self._records:
            self._plan_write()

    def _not_written(self, failure: Failure, records: list[Record]) -> None:
        """No room: nothing of it is stored, and nothing that reports it leaves; try again."""
        failure.trap(StorageFull)
        if not self.full:
            log.error(
                "the disk is full: {error}; nothing is accepted until there is room",
                error=failure.getErrorMessage(),
            )
        self.full = True
        self._clock.callLater(FULL_RETRY_S, self._write_records, records)

    def _broken(self, failure: Failure) -> None:
        if not self._stopped:
            self._stop(failure)

    # -- send

    def _send(self, send: Send) -> None:
        if type(send.message) is Accepted:
            self.voted = max(self.voted, send.message.ballot)
            self.voted_upto = max(self.voted_upto, *send.message.slots)
        if send.to == EVERYONE:
            self._messenger.send(OTHERS, send.message)
            self._to_self.append(send.message)
        elif send.to == OTHERS:
            self._messenger.send(OTHERS, send.message)
        else:
            others = tuple(uid for uid in send.to if uid != self._uid)
            if others:
                self._messenger.send(others, send.message)
            if len(others) != len(send.to):
                self._to_self.append(send.message)

    # -- answers from storage

    def _read(self, read: ReadChosen) -> None:
        upto_slot = min(read.upto_slot, self.stored_upto)
        if self._reads >= READS_MAX or upto_slot < read.from_slot:
            chosen_upto, log_start = self._chosen_range()
            nothing = Chosen(read.request_id, (), chosen_upto, log_start)
            self._send(Send((read.to,), nothing))
            return
        self._reads += 1
        reading: Deferred[Any] = self._storage.read_chosen(read.from_slot, upto_slot, limits.FETCH_BYTES)
        reading.addBoth(self._read_done)
        reading.addErrback(self._unreadable, read)
        reading.addCallback(self._answer, read)
        reading.addErrback(self._broken)

    def _read_done(self, outcome: Any) -> Any:
        self._reads -= 1
        return outcome

    def _unreadable(self, failure: Failure, read: ReadChosen) -> list[SlotEntry]:
        """It was read for a peer only, which asks another one; what is stored may be good."""
        failure.trap(StorageUnreadable)
        log.warn(
            "slots from {slot} cannot be read: {error}", slot=read.from_slot, error=failure.getErrorMessage()
        )
        return []

    def _answer(self, entries: Sequence[SlotEntry], read: ReadChosen) -> None:
        chosen_upto, log_start = self._chosen_range()
        answer = Chosen(read.request_id, tuple(entries), chosen_upto, log_start)
        self.perform(Effects(sends=[Send((read.to,), answer)]))


def _size_bytes(records: Sequence[Record]) -> int:
    values = sum(len(r.value) for r in records if isinstance(r, (SaveAccepted, SaveChosen)))
    return values + RECORD_OVERHEAD_BYTES * len(records)
