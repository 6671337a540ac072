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
from twisted_paxos.departure import Departure
from twisted_paxos.errors import StorageFull, StorageUnreadable
from twisted_paxos.interfaces import IAcceptorStorage, IMessenger
from twisted_paxos.protocols.turn import Turn

log = Logger()

FULL_RETRY_S = 0.5
"""How long a write that found no room waits before it is tried again."""

NOTE_IDLE_S = 1.0
"""How far slots are chosen is written with the next records, or by itself after this long."""

APPLY_WAIT_S = 0.005
"""What nobody here waits for is applied after the write that is under way, or after this long."""

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
        turn: whose end is to call `write_now`, then `apply_now`.

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
        turn: Turn,
    ) -> None:
        self.waiting_since_s: float | None = None
        self.stored_upto = stored_upto
        self.full = False
        self.voted, self.voted_upto = NO_BALLOT, 0
        self.syncs = Histogram()
        self._chosen_upto = stored_upto
        self._covered_upto = stored_upto
        self._uid = uid
        self._me = (uid,)
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
        self._records_bytes = 0
        self._unwritten_bytes = 0  # without those of `_records`
        self._writing: list[Send] | None = None
        self._write_planned = False
        self._to_apply: list[SlotEntry] = []
        self._voted_next: Accepted | None = None
        self._departing: Departure | None = None
        self._note_planned = False
        self._reads = 0
        self._turn = turn

    def perform(self, effects: Effects) -> None:
        """Do it, and what follows from messages to this node itself; the turn's end writes and applies."""
        if self._busy:
            self._queue.append(effects)
            return
        self._busy = True
        try:
            if not self._stopped:
                self._perform(effects)
            while not self._stopped and (self._queue or self._to_self):
                if self._queue:
                    self._perform(self._queue.popleft())
                else:
                    self._queue.append(self._deliver(self._to_self.popleft()))
        except Exception:
            # Half of it is done: whatever is said next may not be true.
            self._broken(Failure())
        finally:
            self._busy = False

    def stop(self) -> None:
        """Do nothing more: nothing that has not left yet will leave."""
        self._stopped = True
        if self._departing is not None:
            self._departing.withdraw()
        self._queue.clear()
        self._to_self.clear()

    @property
    def has_records(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._records)

    @property
    def overfull(self) -> bool:
        """Whether so much waits to be written that nothing that needs a write may be taken."""
        return self._unwritten_bytes + self._records_bytes > UNWRITTEN_MAX_BYTES

    def _perform(self, effects: Effects) -> None:
        if effects.lost:
            self._lost(effects.lost)
            return
        if effects.records:
            self._records += effects.records
            self._records_bytes += _size_bytes(effects.records)
            self._plan_write()
        if effects.replies:
            self._hold(effects.replies)
        for send in effects.sends:
            self._send(send)
        if effects.chosen:
            self._chosen_upto = effects.chosen[-1].slot
            if not self._records and self._writing is None:
                self._note_stored(self._chosen_upto)
            self._to_apply += effects.chosen
            self._turn.plan()
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
            self._write_planned = True
            self._turn.plan()

    def write_now(self) -> None:
        """The turn ends: all that arrived in it shares one sync."""
        if not self._write_planned or self._stopped or self._writing is not None:
            return
        self._write_planned = False
        records, self._records = self._records, []
        size_bytes, self._records_bytes = self._records_bytes, 0
        self._unwritten_bytes += size_bytes
        held, self._replies = self._replies, []
        count = len(held)
        replies = merge_accepted(held)
        vote = self._prepare_vote(replies)
        # What was joined, or leaves from the disk's thread, is not released later: count it no more.
        self._unwritten_bytes -= RECORD_OVERHEAD_BYTES * (count - len(replies))
        self._covered_upto = self._chosen_upto
        self.waiting_since_s = self._clock.seconds()
        self._writing = replies
        self._write_records(records, size_bytes, vote)

    def _prepare_vote(self, replies: list[Send]) -> Departure | None:
        """Take the vote for another node out of ``replies``: the disk's thread itself sends it, once synced.

        The leader waits for nothing else; so it does not wait until this node's reactor has its turn.
        """
        for place, (to, message) in enumerate(replies):
            if type(message) is Accepted and to[:1] not in (EVERYONE, OTHERS, (self._uid,)):
                send = self._messenger.prepare(to[0], message)
                if send is None:
                    return None
                del replies[place]
                self._voted_next, self._departing = message, send
                return send
        return None

    def apply_now(self, urgent: bool = True) -> None:
        """Apply what is known as chosen; when it is not urgent, after the write that the leader waits for.

        Applying and the disk's thread share one interpreter: the write would wait for it.
        """
        if self._stopped or not self._to_apply:
            return
        since_s = self.waiting_since_s
        if urgent or since_s is None or self._clock.seconds() - since_s > APPLY_WAIT_S:
            entries, self._to_apply = self._to_apply, []
            self._apply(entries)

    def _write_records(self, records: list[Record], size_bytes: int, vote: Departure | None) -> None:
        if self._stopped:
            return
        try:
            written = self._storage.write(records, vote)
        except Exception:
            self._broken(Failure())
            return
        again = (records, size_bytes, vote)
        written.addCallbacks(self._written, self._not_written, (size_bytes,), {}, again, {})
        written.addErrback(self._broken)

    def _written(self, _: object, size_bytes: int) -> None:
        with self._turn:
            try:
                self._release(size_bytes)
            except Exception:
                self._broken(Failure())  # Before the turn ends: that would go on as if all was well.

    def _release(self, size_bytes: int) -> None:
        released, self._writing = self._writing, None
        assert released is not None
        vote, self._voted_next, self._departing = self._voted_next, None, None
        if vote is not None:
            self._note_vote(vote)
        self._unwritten_bytes -= size_bytes + RECORD_OVERHEAD_BYTES * len(released)
        self._note_stored(self._covered_upto if self._records else self._chosen_upto)
        self.full = False
        self._observe_sync()
        self.waiting_since_s = None
        if released:
            self.perform(Effects(sends=merge_accepted(released)))
        if self._to_apply:
            self._turn.plan()
        if self._records:
            self.apply_now()
            self._write_planned = True
            self.write_now()

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
        if self._stopped:
            return
        if self._writing is not None or self._records:
            self._clock.callLater(NOTE_IDLE_S, self._sync_note)
        else:
            self._note_planned = False
            self._plan_write()

    def _not_written(
        self, failure: Failure, records: list[Record], size_bytes: int, vote: Departure | None
    ) -> None:
        """No room: nothing of it is stored, and nothing that reports it leaves; try again."""
        failure.trap(StorageFull)
        if not self.full:
            log.error(
                "the disk is full: {error}; nothing is accepted until there is room",
                error=failure.getErrorMessage(),
            )
        self.full = True
        self._clock.callLater(FULL_RETRY_S, self._write_records, records, size_bytes, vote)

    def _broken(self, failure: Failure) -> None:
        if not self._stopped:
            self._stop(failure)

    # -- send

    def _send(self, send: Send) -> None:
        if type(send.message) is Accepted:
            self._note_vote(send.message)
        if send.to == EVERYONE:
            self._messenger.send(OTHERS, send.message)
            self._to_self.append(send.message)
        elif send.to == self._me:
            self._to_self.append(send.message)
        elif send.to[:1] == OTHERS:
            self._messenger.send(send.to, send.message)
        else:
            others = tuple([uid for uid in send.to if uid != self._uid])
            if others:
                self._messenger.send(others, send.message)
            if len(others) != len(send.to):
                self._to_self.append(send.message)

    def _note_vote(self, vote: Accepted) -> None:
        if vote.ballot > self.voted:
            self.voted = vote.ballot
        for slot in vote.slots:
            if slot > self.voted_upto:
                self.voted_upto = slot

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
    values = sum([len(r.value) for r in records if isinstance(r, (SaveAccepted, SaveChosen))])
    return values + RECORD_OVERHEAD_BYTES * len(records)
