"""One node of the exploration: the real pure roles, wired together without a clock, and what it stores."""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import Any, Final, NamedTuple

from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import Effects, joined
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Command,
    Commit,
    Entry,
    Nack,
    Prepare,
    Promise,
    Sender,
    SlotEntry,
    decode_value,
)
from twisted_paxos.core.proposer import Phase, Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import SaveAccepted, SaveChosen, SavePromise
from twisted_paxos.statemachine.commands import encode_opaque

NOW_S: Final = 0.0
"""Time stands still: nothing that is explored depends on it."""


class Envelope(NamedTuple):
    """A message in the network.

    Attributes:
        sender: who sent it.
        to: who may take it; empty for everybody.
        message: what it says.
        votes: with an Accepted: (slot, ballot, value) of each vote that it reports, for the checks.
    """

    sender: str
    to: str
    message: Any
    votes: tuple[tuple[int, ProposalID, bytes], ...] = ()


def _copied(value: Any) -> Any:
    """Containers anew, what is in them too; everything else is immutable or shared."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, deque)):
        return type(value)(_copied(item) for item in value)
    return set(value) if isinstance(value, set) else value


def _clone(role: Any, **others: Any) -> Any:
    """A copy of a role, with other roles in the place of those that it knows."""
    new = copy(role)
    for name, value in vars(role).items():
        setattr(new, name, others[name] if name in others else _copied(value))
    return new


class Node:
    """One node: its roles, and what it has stored.

    Args:
        uid: its id.
        voters: all ids.
        proposes: it has a proposer.
    """

    def __init__(self, uid: str, voters: tuple[str, ...], proposes: bool) -> None:
        self.uid = uid
        self.proposes = proposes
        self.membership = Membership(voters, {voter: voter for voter in voters})
        self.promised = NO_BALLOT
        self.stored: dict[int, Entry] = {}
        self.learnt_upto = 0
        self.chosen: tuple[bytes, ...] = ()
        self._make_roles(0)

    def _make_roles(self, chosen_upto: int) -> None:
        entries = {slot: entry for slot, entry in self.stored.items() if slot > chosen_upto}
        self.log = Log(chosen_upto, 1, entries)
        self.acceptor = Acceptor(self.log, self.promised)
        self.learner = Learner(self.log, self.membership, lambda: 0.5)
        self.proposer = Proposer(self.uid, self.log, self.membership, self.learner, lambda: 0.5)

    def clone(self) -> Node:
        """A copy that can go another way."""
        new = copy(self)
        new.stored = dict(self.stored)
        new.log = _clone(self.log)
        new.acceptor = _clone(self.acceptor, log=new.log)
        shared = {"log": new.log, "membership": self.membership}
        new.learner = _clone(self.learner, _timer=self.learner._timer, **shared)
        clock = copy(self.proposer.clock)
        new.proposer = _clone(
            self.proposer,
            learner=new.learner,
            clock=clock,
            _timer=self.proposer._timer,
            _spreading=_clone(self.proposer._spreading),
            _in_flight={slot: copy(proposal) for slot, proposal in self.proposer._in_flight.items()},
            **shared,
        )
        return new

    def key(self) -> tuple[Any, ...]:
        """Everything that what it does next can depend on, in a form that can be compared."""
        log, proposer = self.log, self.proposer
        votes = sorted(
            (slot, ballot, tuple(sorted(voters)))
            for slot, ballots in self.learner._votes.items()
            for ballot, voters in ballots.items()
        )
        return (
            self.promised,
            self.acceptor.promised,
            tuple(sorted((slot, entry.ballot, bytes(entry.value)) for slot, entry in self.stored.items())),
            tuple(sorted((slot, entry.ballot, bytes(entry.value)) for slot, entry in log.entries.items())),
            tuple(sorted(log.unsaved)),
            tuple(sorted(log._chosen_at.items())),
            self.learnt_upto,
            self.chosen,
            tuple(votes),
            *self._proposer_key(proposer),
        )

    @staticmethod
    def _proposer_key(proposer: Proposer) -> tuple[Any, ...]:
        promises = sorted(
            (uid, tuple((p.chosen_upto, _entries_key(p.accepted)) for p in parts))
            for uid, (_, parts) in proposer._promises.items()
        )
        return (
            proposer.phase.value,
            proposer.ballot,
            tuple(sorted(proposer.promises_received)),
            tuple(promises),
            -1 if proposer._base is None else proposer._base,
            tuple((slot, bytes(value)) for slot, value in proposer._recovered),
            tuple(sorted((slot, bytes(flight.value)) for slot, flight in proposer._in_flight.items())),
            proposer._next_slot,
        )

    # -- steps

    def receive(self, sender: Sender, message: Any) -> Effects:
        """Take a message, as `Replica` does; a new leader proposes in the first free slot at once."""
        led = self.proposer.leading
        effects = joined(self._receive(sender, message), self.proposer.advance(NOW_S))
        if self.proposer.leading and not led and self.proposer._next_slot == 1:
            effects = joined(effects, self.propose())
        return effects

    def _receive(self, sender: Sender, message: Any) -> Effects:
        if isinstance(message, Prepare):
            effects = self.acceptor.on_prepare(sender, message)
            if self.acceptor.promised == message.ballot:
                self._give_way(sender, message.ballot)
        elif isinstance(message, Accept):
            effects = self.acceptor.on_accept(sender, message)
            self._give_way(sender, message.ballot)
            if sender.uid != self.uid:
                effects = joined(effects, self._claimed(sender, message.chosen_upto, message.ballot))
        elif isinstance(message, Accepted):
            self._give_way(sender, message.ballot)
            effects = self.learner.on_accepted(sender, message, NOW_S)
        elif isinstance(message, Promise):
            effects = self.proposer.on_promise(sender, message, NOW_S)
        elif isinstance(message, Nack):
            effects = self.proposer.on_nack(message)
        elif isinstance(message, Commit):
            self._give_way(sender, message.ballot)
            effects = self.learner.on_commit(sender, message, NOW_S)
        else:
            for entry in message.entries:
                self._give_way(sender, entry.ballot)
            effects = self.learner.on_chosen(sender, message, NOW_S)
        return effects

    def _give_way(self, sender: Sender, ballot: ProposalID) -> None:
        if ballot > self.proposer.ballot and self.proposer.phase is not Phase.IDLE:
            self.proposer.give_way()

    def _claimed(self, sender: Sender, chosen_upto: int, ballot: ProposalID) -> Effects:
        return self.learner.on_chosen_upto(sender.uid, chosen_upto, ballot, NOW_S)

    def take_over(self) -> Effects:
        """As if the election had said so."""
        effects = self.proposer.take_over(self.acceptor.promised, NOW_S)
        self.acceptor.promised = self.proposer.ballot
        return effects

    def propose(self) -> Effects:
        """A client's command; each ballot has its own."""
        ballot, slot = self.proposer.ballot, self.proposer._next_slot
        command = Command(str(ballot), slot, 0, encode_opaque(f"{ballot} {slot}"))
        self.proposer.enqueue([command])
        return self.proposer.advance(NOW_S)

    def crash(self, noted: bool) -> None:
        """Stop, and start again with what is stored; how far slots are chosen may not be noted yet."""
        # What is learnt is stored in order: every slot up to the highest one is chosen.
        upto = self.log.chosen_upto if noted else self.learnt_upto
        self._make_roles(upto)
        self.chosen = self.chosen[:upto]

    def persist(self, effects: Effects) -> None:
        """Everything that is asked for is stored at once."""
        for record in effects.records:
            if isinstance(record, SavePromise):
                assert record.ballot >= self.promised, "the promise went back"
                self.promised = record.ballot
            elif isinstance(record, SaveAccepted):
                assert record.ballot <= self.promised, "a vote above the stored promise"
                self.stored[record.slot] = Entry(record.ballot, record.value)
            elif isinstance(record, SaveChosen):
                self.stored[record.slot] = Entry(record.ballot, record.value)
                self.learnt_upto = max(self.learnt_upto, record.slot)
        self.chosen += tuple(bytes(entry.value) for entry in effects.chosen)


def _entries_key(entries: tuple[SlotEntry, ...]) -> tuple[Any, ...]:
    return tuple((entry.slot, entry.ballot, bytes(entry.value)) for entry in entries)


def is_dead(node: Node, envelope: Envelope) -> bool:
    """Whether a message can make no difference to a node any more, whatever comes."""
    message = envelope.message
    if envelope.sender == node.uid or envelope.to not in ("", node.uid):
        return True
    if isinstance(message, Promise):
        return message.ballot != node.proposer.ballot or node.proposer.phase is not Phase.PREPARING
    if isinstance(message, Prepare):
        return message.ballot < node.acceptor.promised
    if isinstance(message, Accept):
        return message.ballot < node.acceptor.promised and message.chosen_upto == 0
    return False


def _show_entries(entries: tuple[SlotEntry, ...]) -> list[str]:
    return [f"{e.slot}@{e.ballot} {bytes(e.value).decode()}" for e in entries]


def show(envelope: Envelope) -> str:
    """A message in one line."""
    message = envelope.message
    if isinstance(message, Accept):
        commands = [bytes(c.payload).decode() for c in decode_value(message.value).commands] or ["no-op"]
        what = (
            f"Accept {message.ballot} slot {message.slot} {' '.join(commands)} chosen {message.chosen_upto}"
        )
    elif isinstance(message, Accepted):
        what = f"Accepted {message.ballot} slots {message.slots}"
    elif isinstance(message, Promise):
        entries = _show_entries(message.accepted)
        what = f"Promise {message.ballot} chosen {message.chosen_upto} accepted {entries}"
    elif isinstance(message, Prepare):
        what = f"Prepare {message.ballot}"
    elif isinstance(message, Nack):
        what = f"Nack {message.ballot} promised {message.promised}"
    elif isinstance(message, Commit):
        what = f"Commit {message.ballot} chosen {message.chosen_upto} {_show_entries(message.entries)}"
    else:
        what = f"Chosen {_show_entries(message.entries)}"
    return f"{envelope.sender}: {what}"
