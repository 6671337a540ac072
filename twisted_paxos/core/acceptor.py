"""The acceptor: promises ballots, accepts values (Paxos Made Simple, section 2.2).

Must always hold:
    * ``promised`` never goes back, and no entry has a ballot above it;
    * Promise and Accepted leave only as ``replies``: after a sync that covers what they report;
    * an Accept is taken at ballot >= promised and never below; what is known as chosen stays.
"""

from __future__ import annotations

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accept, Accepted, Message, Nack, Prepare, Promise, Sender, SlotEntry
from twisted_paxos.core.records import SaveAccepted, SavePromise


class Acceptor:
    """One acceptor's state and decisions.

    Args:
        log: shared with the node's learner.
        promised: as recovered from storage.
        votes: False for observers and for nodes that are not (yet) members: such a node
            keeps the values that it hears for its learner, and answers nothing.
        uid: the node's id.
    """

    takes = (Prepare, Accept)

    def __init__(self, log: Log, promised: ProposalID = NO_BALLOT, votes: bool = True, uid: str = "") -> None:
        assert all(e.ballot <= promised for s, e in log.entries.items() if s not in log.unsaved)
        self.log = log
        self.promised = promised
        self.votes = votes
        self._uid = uid
        self._promise_id = 0

    def receive(self, sender: Sender, message: Message, now_s: float) -> Effects:
        """Decide on a Prepare or an Accept."""
        if isinstance(message, Prepare):
            return self.on_prepare(sender, message)
        assert isinstance(message, Accept)
        return self.on_accept(sender, message)

    def on_prepare(self, sender: Sender, message: Prepare) -> Effects:
        """Phase 1b: promise, again if the ballot is the promised one, or say which is higher."""
        if not self.votes:
            return Effects()
        if message.ballot < self.promised:
            return self._nack(sender, message.ballot)
        effects = Effects()
        if message.ballot > self.promised:
            self.promised = message.ballot
            effects.records.append(SavePromise(message.ballot))
        effects.replies += [Send((sender.uid,), part) for part in self._promise_parts(message.ballot)]
        return effects

    def on_accept(self, sender: Sender, message: Accept) -> Effects:
        """Phase 2b: accept, unless a higher ballot was promised."""
        ballot, slot = message.ballot, message.slot
        if not self.votes:
            self._overhear(message)
            return Effects()
        if ballot < self.promised:
            return self._nack(sender, ballot)
        effects = Effects()
        if not self._in_window(message):
            return effects
        if ballot > self.promised:
            self.promised = ballot
            effects.records.append(SavePromise(ballot))
        if slot > self.log.chosen_upto:
            known = self.log.entries.get(slot)
            if known is None or known.ballot != ballot or slot in self.log.unsaved:
                self.log.put(slot, ballot, message.value, saved=True)
                effects.records.append(SaveAccepted(slot, ballot, message.value))
            else:
                assert known.value == message.value, f"two values at {ballot} in slot {slot}"
        effects.replies.append(Send((ballot.uid,), Accepted(ballot, (slot,))))
        return effects

    def _in_window(self, message: Accept) -> bool:
        """Whether there is room to hold it; what is chosen here already needs none."""
        log = self.log
        if message.slot <= log.chosen_upto:
            return message.slot >= log.log_start
        if message.slot > log.chosen_upto + limits.WINDOW_SLOTS:
            return False
        # The next slot to be chosen is always taken: else a full window would never drain. So is what this
        # node proposes: votes go to it alone, and were it to fetch the value, nobody would know it as chosen.
        fits = log.bytes + len(message.value) <= limits.WINDOW_MAX_BYTES
        return fits or message.ballot.uid == self._uid or message.slot == log.chosen_upto + 1

    def _overhear(self, message: Accept) -> None:
        """Without a vote: keep the value, so that it need not be fetched once it is chosen."""
        if message.slot > self.log.chosen_upto and self._in_window(message):
            known = self.log.entries.get(message.slot)
            if known is None or known.ballot < message.ballot:
                self.log.put(message.slot, message.ballot, message.value, saved=False)

    def _nack(self, sender: Sender, ballot: ProposalID) -> Effects:
        return Effects(sends=[Send((sender.uid,), Nack(ballot, self.promised))])

    def _promise_parts(self, ballot: ProposalID) -> list[Promise]:
        """The promise, cut so that each part fits a frame."""
        groups: list[list[SlotEntry]] = [[]]
        room = limits.FETCH_BYTES
        for slot in sorted(self.log.entries):
            if slot in self.log.unsaved:
                continue
            entry = self.log.entries[slot]
            if groups[-1] and len(entry.value) > room:
                groups.append([])
                room = limits.FETCH_BYTES
            groups[-1].append(SlotEntry(slot, entry.ballot, entry.value))
            room -= len(entry.value)
        self._promise_id += 1
        return [
            Promise(ballot, self._promise_id, part, len(groups), self.log.chosen_upto, tuple(group))
            for part, group in enumerate(groups)
        ]
