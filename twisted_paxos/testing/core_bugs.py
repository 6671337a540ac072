"""Planted bugs that break rules 1 to 6 of DESIGN.md, section 3: the algorithm itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import msgspec

from twisted_paxos.core import proposer
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Entry, encode_value
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import SaveAccepted, SavePromise
from twisted_paxos.core.replica import Replica
from twisted_paxos.core.spreading import Spreading
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.testing.planting import OtherLimits, Patch, mutant, without, wrap

# -- rule 1


@mutant("3.1 persist, then send")
def promise_not_saved() -> Sequence[Patch]:
    """A Promise leaves without being saved."""
    return [
        wrap(
            Acceptor,
            "on_prepare",
            lambda on_prepare, *arguments: without(SavePromise, on_prepare(*arguments)),
        )
    ]


@mutant("3.1 persist, then send")
def accept_not_saved() -> Sequence[Patch]:
    """An Accepted leaves without its value being saved."""
    return [
        wrap(
            Acceptor, "on_accept", lambda on_accept, *arguments: without(SaveAccepted, on_accept(*arguments))
        )
    ]


@mutant("3.1 persist, then send")
def reply_before_sync() -> Sequence[Patch]:
    """Replies leave at once, before the sync that covers them."""

    def hold(_: Any, self: EffectPerformer, replies: list[Send]) -> None:
        for reply in replies:
            self._send(reply)

    return [wrap(EffectPerformer, "_hold", hold)]


@mutant("3.1 tied to the write")
def flush_then_send_pending() -> Sequence[Patch]:
    """When a write ends, all that waits is sent, also what only the next write covers."""

    def written(original: Any, self: EffectPerformer, outcome: object, records: Any) -> None:
        assert self._writing is not None
        self._writing += self._replies
        self._replies = []
        original(self, outcome, records)

    return [wrap(EffectPerformer, "_written", written)]


@mutant("3.1 ballots are not used again")
def ballot_used_again() -> Sequence[Patch]:
    """After a restart the first take-over uses the saved ballot instead of one above it."""

    def take_over(original: Any, self: Proposer, above: ProposalID, now_s: float) -> Effects:
        if self.ballot == NO_BALLOT and above.uid == self.uid and above.number > 1:
            above = ProposalID(above.number - 1, above.uid)
        return original(self, above, now_s)

    return [wrap(Proposer, "take_over", take_over)]


@mutant("3.1 the ballot is durable first")
def prepare_before_sync() -> Sequence[Patch]:
    """A Prepare leaves before its ballot is durable."""

    def take_over(original: Any, self: Proposer, above: ProposalID, now_s: float) -> Effects:
        effects = original(self, above, now_s)
        if effects.replies:
            effects.sends, effects.replies = effects.replies, []
        return effects

    return [wrap(Proposer, "take_over", take_over)]


# -- rule 2


@mutant("3.2 a promise is complete")
def promise_cut_short() -> Sequence[Patch]:
    """The first entry of the first part of a Promise is taken for all of it."""

    def on_promise(original: Any, self: Proposer, sender: Any, message: Any, now_s: float) -> Effects:
        if message.part == 0:
            message = msgspec.structs.replace(message, parts=1, accepted=message.accepted[:1])
        return original(self, sender, message, now_s)

    return [wrap(Proposer, "on_promise", on_promise)]


@mutant("3.2 accepts not yet synced included")
def promise_leaves_out_newest() -> Sequence[Patch]:
    """A Promise leaves out the newest entry, as if only what is synced counted."""

    def parts(original: Any, self: Acceptor, ballot: ProposalID) -> Any:
        held = self.log.unsaved
        self.log.unsaved = held | {max(self.log.entries, default=0)}
        try:
            return original(self, ballot)
        finally:
            self.log.unsaved = held

    return [wrap(Acceptor, "_promise_parts", parts)]


@mutant("3.2, 6 the promise is saved before the vote")
def stale_promise_on_accept() -> Sequence[Patch]:
    """An Accept above the promise is taken without saving its ballot as promise."""
    return [
        wrap(Acceptor, "on_accept", lambda on_accept, *arguments: without(SavePromise, on_accept(*arguments)))
    ]


# -- rule 3


@mutant("3.3 re-propose what was accepted")
def new_leader_ignores_accepted() -> Sequence[Patch]:
    """A new leader proposes as if nothing had been accepted above base."""

    def recover(original: Any, self: Proposer, base: int, now_s: float) -> None:
        self._promises = {
            uid: (life, [msgspec.structs.replace(part, accepted=()) for part in parts])
            for uid, (life, parts) in self._promises.items()
        }
        original(self, base, now_s)

    return [wrap(Proposer, "_recover", recover)]


@mutant("3.3 the highest ballot")
def new_leader_takes_lowest_ballot() -> Sequence[Patch]:
    """Of several accepted values a new leader takes that of the lowest ballot."""

    def recover(original: Any, self: Proposer, base: int, now_s: float) -> None:
        original(self, base, now_s)
        lowest: dict[int, Entry] = {}
        for _, parts in self._promises.values():
            for one in (one for part in parts for one in part.accepted):
                if one.slot not in lowest or one.ballot < lowest[one.slot].ballot:
                    lowest[one.slot] = Entry(one.ballot, one.value)
        for place, (slot, value) in enumerate(self._recovered):
            self._recovered[place] = (slot, lowest[slot].value if slot in lowest else value)

    return [wrap(Proposer, "_recover", recover)]


@mutant("3.3 no-ops for gaps")
def gap_skipped() -> Sequence[Patch]:
    """A new leader leaves slots empty that nobody reported."""
    noop = encode_value(0, ())

    def recover(original: Any, self: Proposer, base: int, now_s: float) -> None:
        original(self, base, now_s)
        kept = [(slot, value) for slot, value in self._recovered if value != noop]
        self._recovered.clear()
        self._recovered.extend(kept)

    return [wrap(Proposer, "_recover", recover)]


@mutant("3.3 base is the highest reported")
def base_from_own_log() -> Sequence[Patch]:
    """A new leader takes its own chosen_upto for the base: absence below the others' means free."""

    def count(original: Any, self: Proposer, now_s: float) -> Effects:
        own = self.log.chosen_upto
        self._promises = {
            uid: (life, [msgspec.structs.replace(p, chosen_upto=min(own, p.chosen_upto)) for p in parts])
            for uid, (life, parts) in self._promises.items()
        }
        return original(self, now_s)

    return [wrap(Proposer, "_count_promises", count)]


# -- rule 4


@mutant("3.4 ballot >= promised")
def accepts_below_promise() -> Sequence[Patch]:
    """An acceptor takes Accepts of any ballot."""

    def on_accept(original: Any, self: Acceptor, sender: Any, message: Any) -> Effects:
        promised = self.promised
        self.promised = min(promised, message.ballot)
        effects = original(self, sender, message)
        self.promised = max(promised, self.promised)
        return effects

    return [wrap(Acceptor, "on_accept", on_accept)]


@mutant("3.4 gives way to a higher ballot")
def leader_goes_on() -> Sequence[Patch]:
    """A leader ignores every sign of a higher ballot but a Nack."""
    return [mock.patch.object(Replica, "_give_way_to", lambda self, ballot: self.election.saw(ballot))]


@mutant("3.4 the window alpha")
def proposes_beyond_alpha() -> Sequence[Patch]:
    """A leader proposes as far ahead as its pipeline takes."""
    return [mock.patch.object(proposer, "limits", OtherLimits(ALPHA=1 << 30, PIPELINE_SLOTS=100))]


# -- rules 5 and 6


@mutant("3.5 a majority")
def majority_off_by_one() -> Sequence[Patch]:
    """One acceptor less than a majority is enough."""

    def init(original: Any, self: Membership, voters: Any, members: Any) -> None:
        original(self, voters, members)
        self.majority -= 1

    return [wrap(Membership, "__init__", init)]


@mutant("3.5 one Accepted is never enough")
def one_accepted_is_enough() -> Sequence[Patch]:
    """A learner takes a slot for chosen with its first Accepted, as the seed did."""

    def on_accepted(original: Any, self: Learner, sender: Any, message: Any, now_s: float) -> Effects:
        majority, self.membership.majority = self.membership.majority, 1
        try:
            return original(self, sender, message, now_s)
        finally:
            self.membership.majority = majority

    return [wrap(Learner, "on_accepted", on_accepted)]


@mutant("3.5 never add up ballots")
def adds_up_ballots() -> Sequence[Patch]:
    """Votes for a slot count together, whatever their ballots."""

    def votes(self: Learner, slot: int, ballot: ProposalID) -> set[str]:
        return self._votes.setdefault(slot, {}).setdefault(NO_BALLOT, set())

    return [mock.patch.object(Learner, "_ballot_votes", votes)]


@mutant("3.6 chosen_upto under a ballot")
def chosen_upto_of_old_ballot() -> Sequence[Patch]:
    """A receiver marks its own entry as chosen, at whatever ballot it accepted it."""

    def on_chosen_upto(self: Learner, source: str, upto: int, leader: Any, now_s: float) -> Effects:
        if upto <= self.log.chosen_upto:
            return Effects()
        self._want(source, upto, now_s)
        for slot in range(self.log.chosen_upto + 1, min(upto, self.log.highest) + 1):
            if slot in self.log.entries:
                self.log.mark_chosen(slot, self.log.entries[slot].ballot)
        return self._advance(now_s)

    return [mock.patch.object(Learner, "on_chosen_upto", on_chosen_upto)]


@mutant("3.6 what is shared is chosen")
def unchosen_is_shared() -> Sequence[Patch]:
    """A leader shares as chosen whatever it proposed to some and not to all."""

    def tell(original: Any, self: Spreading, ballot: ProposalID, upto: int, *rest: Any) -> Effects:
        return original(self, ballot, max([upto, *self._spared]), *rest)

    return [wrap(Spreading, "tell", tell)]


@mutant("3.5 only the value of that ballot")
def any_entry_is_the_value() -> Sequence[Patch]:
    """A chosen slot is filled with whatever was accepted there, also at a lower ballot."""

    def mark(original: Any, self: Log, slot: int, ballot: ProposalID) -> None:
        own = self.entries.get(slot)
        original(self, slot, min(ballot, own.ballot) if own else ballot)

    return [wrap(Log, "mark_chosen", mark)]
