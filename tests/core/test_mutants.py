"""The bench must notice: rules of the core are broken on purpose, one at a time.

Each mutant is a plausible fault. The bench has to find it within a bounded number of seeds; were it
too kind to find one, its silence in `test_random_runs` would mean little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tests.core.runs import RandomRun, Weather
from tests.core.test_formation import FirstFormationTests
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import Effects
from twisted_paxos.core.formation import Formation
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.messages import Entry, encode_value
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import SaveAccepted, SavePromise
from twisted_paxos.testing.replicas import PureNode

SEEDS = 60
RUNS = (
    (3, Weather(seconds=6.0, loss=0.5, replay=0.0, commands=0.7, writes_per_s=60.0)),
    (5, Weather(seconds=10.0, loss=0.15, replay=0.03, commands=0.8)),
    (5, Weather(loss=0.2, replay=0.2, stall=0.01)),
)
"""Sizes and weathers, in turn for each seed: different faults show in different ones."""

Mutant = contextlib.AbstractContextManager[Any]


def majority_off_by_one() -> Mutant:
    """Half of the acceptors are taken for a majority (three nodes: one is enough)."""
    init = Membership.__init__

    def broken(self: Membership, voters: Any, members: Any) -> None:
        init(self, voters, members)
        self.majority -= 1

    return patch.object(Membership, "__init__", broken)


def ignores_accepted_values() -> Mutant:
    """A new leader starts above base as if nothing had been accepted there."""
    recover = Proposer._recover

    def broken(self: Proposer, base: int, now_s: float) -> None:
        self._promises = {
            uid: (life, [msgspec.structs.replace(part, accepted=()) for part in parts])
            for uid, (life, parts) in self._promises.items()
        }
        recover(self, base, now_s)

    return patch.object(Proposer, "_recover", broken)


def takes_lowest_ballot() -> Mutant:
    """Of several accepted values a new leader takes that of the lowest ballot."""
    recover = Proposer._recover

    def broken(self: Proposer, base: int, now_s: float) -> None:
        recover(self, base, now_s)
        lowest: dict[int, Entry] = {}
        for _, parts in self._promises.values():
            for one in (one for part in parts for one in part.accepted if one.slot > base):
                if one.slot not in lowest or one.ballot < lowest[one.slot].ballot:
                    lowest[one.slot] = Entry(one.ballot, one.value)
        recovered = [
            (slot, lowest[slot].value if slot in lowest else value) for slot, value in self._recovered
        ]
        self._recovered.clear()
        self._recovered.extend(recovered)

    return patch.object(Proposer, "_recover", broken)


def gap_skipped() -> Mutant:
    """A new leader leaves slots open that nobody reported."""
    recover = Proposer._recover
    noop = encode_value(0, ())

    def broken(self: Proposer, base: int, now_s: float) -> None:
        recover(self, base, now_s)
        recovered = [(slot, value) for slot, value in self._recovered if value != noop]
        self._recovered.clear()
        self._recovered.extend(recovered)

    return patch.object(Proposer, "_recover", broken)


def base_ignored() -> Mutant:
    """A new leader takes its own chosen_upto for the base: absence below the others' means "free"."""
    count = Proposer._count_promises

    def broken(self: Proposer, now_s: float) -> Effects:
        own = self.log.chosen_upto
        self._promises = {
            uid: (
                life,
                [msgspec.structs.replace(part, chosen_upto=min(own, part.chosen_upto)) for part in parts],
            )
            for uid, (life, parts) in self._promises.items()
        }
        return count(self, now_s)

    return patch.object(Proposer, "_count_promises", broken)


def promise_not_saved() -> Mutant:
    """An acceptor answers a Prepare without saving its promise."""
    on_prepare = Acceptor.on_prepare

    def broken(self: Acceptor, sender: Any, message: Any) -> Effects:
        effects = on_prepare(self, sender, message)
        if effects.records:
            effects.records = [one for one in effects.records if not isinstance(one, SavePromise)]
        return effects

    return patch.object(Acceptor, "on_prepare", broken)


def accept_not_saved() -> Mutant:
    """An acceptor answers an Accept without saving the value."""
    on_accept = Acceptor.on_accept

    def broken(self: Acceptor, sender: Any, message: Any) -> Effects:
        effects = on_accept(self, sender, message)
        if effects.records:
            effects.records = [one for one in effects.records if not isinstance(one, SaveAccepted)]
        return effects

    return patch.object(Acceptor, "on_accept", broken)


def reply_before_sync() -> Mutant:
    """Replies leave at once, their writes follow."""
    perform = PureNode.perform

    def broken(self: PureNode, effects: Effects) -> None:
        if effects.replies:
            effects.sends, effects.replies = effects.sends + effects.replies, []
        perform(self, effects)

    return patch.object(PureNode, "perform", broken)


def flushes_what_is_pending() -> Mutant:
    """When a write ends, everything that waits is sent, also what the next write covers."""
    written = PureNode.written

    def broken(self: PureNode) -> None:
        assert self.writing is not None
        self.writing += self.replies
        self.replies = []
        written(self)

    return patch.object(PureNode, "written", broken)


def adds_up_ballots() -> Mutant:
    """Votes for a slot count together, whatever their ballots."""

    def broken(self: Learner, slot: int, ballot: ProposalID) -> set[str]:
        return self._votes.setdefault(slot, {}).setdefault(NO_BALLOT, set())

    return patch.object(Learner, "_ballot_votes", broken)


def accepts_below_its_promise() -> Mutant:
    """An acceptor takes Accepts of any ballot."""
    on_accept = Acceptor.on_accept

    def broken(self: Acceptor, sender: Any, message: Any) -> Effects:
        promised = self.promised
        self.promised = min(promised, message.ballot)
        effects = on_accept(self, sender, message)
        self.promised = max(promised, self.promised)
        return effects

    return patch.object(Acceptor, "on_accept", broken)


def believes_an_old_chosen_upto() -> Mutant:
    """A receiver takes its entry for the chosen one, at whatever ballot it accepted it."""

    def broken(
        self: Learner, source: str, chosen_upto: int, leader: ProposalID | None, now_s: float
    ) -> Effects:
        if chosen_upto <= self.log.chosen_upto:
            return Effects()
        self._want(source, chosen_upto, now_s)
        for slot in range(self.log.chosen_upto + 1, min(chosen_upto, self.log.highest) + 1):
            if slot in self.log.entries:
                self.log.mark_chosen(slot, self.log.entries[slot].ballot)
        return self._advance(now_s)

    return patch.object(Learner, "on_chosen_upto", broken)


def ballot_used_again() -> Mutant:
    """After a restart the first take-over uses the ballot that is saved, not one above it."""
    take_over = Proposer.take_over

    def broken(self: Proposer, above: ProposalID, now_s: float) -> Effects:
        if self.ballot == NO_BALLOT and above.uid == self.uid and above.number > 1:
            above = ProposalID(above.number - 1, above.uid)
        return take_over(self, above, now_s)

    return patch.object(Proposer, "take_over", broken)


def promise_in_parts_cut_short() -> Mutant:
    """The first part of a promise is taken for all of it."""
    on_promise = Proposer.on_promise

    def broken(self: Proposer, sender: Any, message: Any, now_s: float) -> Effects:
        if message.part == 0:
            message = msgspec.structs.replace(message, parts=1, accepted=message.accepted[:1])
        return on_promise(self, sender, message, now_s)

    return patch.object(Proposer, "on_promise", broken)


def promise_leaves_out_unsynced() -> Mutant:
    """A promise reports what is on the disk, without the accepts that are still being written."""
    parts = Acceptor._promise_parts

    def broken(self: Acceptor, ballot: ProposalID) -> Any:
        newest = max(self.log.entries, default=0)
        held, self.log.unsaved = self.log.unsaved, self.log.unsaved | {newest}
        try:
            return parts(self, ballot)
        finally:
            self.log.unsaved = held

    return patch.object(Acceptor, "_promise_parts", broken)


def formation_looks_at_itself_only() -> Mutant:
    """A node counts an answer that names its own incarnation, whatever it says of the others."""
    on_joined = Formation.on_joined

    def broken(self: Formation, sender: Any, message: Any) -> Effects:
        own = self.identity.members
        if not message.formed and message.members.get(self.me.uid) == self.me.incarnation:
            message = msgspec.structs.replace(message, members=own)
        return on_joined(self, sender, message)

    return patch.object(Formation, "on_joined", broken)


class MutantTests(SynchronousTestCase):
    """Each of them is found."""

    def found(self, mutant: Mutant, seeds: int = SEEDS) -> str:
        """What the bench says of a mutant, at the first seed at which it says anything."""
        with mutant:
            for seed in range(seeds):
                for size, weather in RUNS:
                    try:
                        RandomRun(seed, size, weather).run()
                    except AssertionError as error:
                        return f"seed {seed}: {error or 'an assertion of the core'}"
        return ""

    def test_nothingIsFoundInTheRealThing(self) -> None:
        """Without a mutant nothing is found: what is found below is the mutants' doing."""
        self.assertEqual(self.found(contextlib.nullcontext(), seeds=20), "")


class FormationMutantTests(SynchronousTestCase):
    """The random wipes of `FirstFormationTests` notice as well."""

    def test_formationLooksAtItselfOnly(self) -> None:
        """Counting answers that name other founders splits the cluster, and is found."""
        wipes = FirstFormationTests()
        with formation_looks_at_itself_only():
            self.assertRaises(AssertionError, wipes.test_formedNodesAgreeThoughAMemberWasWipedMeanwhile)
            self.assertRaises(AssertionError, wipes.test_randomWipesNeverSplitTheFounders)


def _tests() -> Iterator[tuple[str, Any]]:
    mutants = [
        majority_off_by_one,
        ignores_accepted_values,
        takes_lowest_ballot,
        gap_skipped,
        base_ignored,
        promise_not_saved,
        accept_not_saved,
        reply_before_sync,
        flushes_what_is_pending,
        adds_up_ballots,
        accepts_below_its_promise,
        believes_an_old_chosen_upto,
        ballot_used_again,
        promise_in_parts_cut_short,
        promise_leaves_out_unsynced,
    ]
    for mutant in mutants:

        def test(self: MutantTests, mutant: Any = mutant) -> None:
            self.assertNotEqual(self.found(mutant()), "", f"{mutant.__name__}: not found in {SEEDS} seeds")

        test.__doc__ = mutant.__doc__
        words = mutant.__name__.split("_")
        yield "test_" + words[0] + "".join(word.capitalize() for word in words[1:]), test


for _name, _test in _tests():
    setattr(MutantTests, _name, _test)
