"""Bugs planted on purpose, one at a time: a simulator that does not find them proves nothing.

    python -m twisted_paxos.testing.mutants

Each mutant is a patch at run time that breaks one rule of DESIGN.md. The simulator runs seed after
seed with it until a check fails; a seed that fails without the mutant as well does not count. The table
goes to `docs/testing.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias
from unittest import mock

import click
import msgspec
from msgspec import Raw
from rich.console import Console

from twisted_paxos.core import limits, proposer
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.formation import Formation
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Command, Entry, ReadAt, encode_value
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.reads import Reads
from twisted_paxos.core.records import SaveAccepted, SaveChosen, SavePromise
from twisted_paxos.core.replica import Replica
from twisted_paxos.errors import ConfigError
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.reads import NodeReads
from twisted_paxos.snapshots import SnapshotMaker
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.sessions import Sessions
from twisted_paxos.storage import format as log_format
from twisted_paxos.storage import recovery
from twisted_paxos.storage.durable import DurableObjectHandler, encode_copy
from twisted_paxos.storage.recovery import Floor
from twisted_paxos.storage.wal import FileBackend
from twisted_paxos.testing.seeds import Wish, run_all, run_seed, workers
from twisted_paxos.testing.storage import SimulatedDisk

SEEDS_MAX: Final = 500
"""How many seeds a mutant may survive."""

Patch: TypeAlias = AbstractContextManager[Any]


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        name: its function's.
        rule: what it breaks, in DESIGN.md.
        what: one line.
        plant: makes the patches.
    """

    name: str
    rule: str
    what: str
    plant: Callable[[], Sequence[Patch]]


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(rule: str) -> Callable[[Callable[[], Sequence[Patch]]], Callable[[], Sequence[Patch]]]:
    """Register a function that makes patches; its docstring says what is wrong then."""

    def register(plant: Callable[[], Sequence[Patch]]) -> Callable[[], Sequence[Patch]]:
        what = (plant.__doc__ or "").split("\n")[0].rstrip(".")
        MUTANTS[plant.__name__] = Mutant(plant.__name__, rule, what, plant)
        return plant

    return register


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this lasts, the bug ``name`` is there; none for an empty name.

    Raises:
        ConfigError: there is no such mutant.
    """
    if name and name not in MUTANTS:
        raise ConfigError(f"{name!r} is no mutant; there are: {', '.join(MUTANTS)}")
    with ExitStack() as stack:
        for patch in MUTANTS[name].plant() if name else ():
            stack.enter_context(patch)
        yield


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> Patch:
    """Replace a method by ``around(original, self, *arguments)``."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *arguments, **named: around(original, *arguments, **named))


def _without(kind: type, effects: Effects) -> Effects:
    effects.records = [record for record in effects.records if not isinstance(record, kind)]
    return effects


class _OtherLimits:
    """`limits`, with some values changed, for one module."""

    def __init__(self, **changed: int) -> None:
        self._changed = changed

    def __getattr__(self, name: str) -> Any:
        return self._changed.get(name) or getattr(limits, name)


# -- rule 1


@mutant("3.1 persist, then send")
def promise_not_saved() -> Sequence[Patch]:
    """A Promise leaves without being saved."""
    return [
        _wrap(
            Acceptor,
            "on_prepare",
            lambda on_prepare, *arguments: _without(SavePromise, on_prepare(*arguments)),
        )
    ]


@mutant("3.1 persist, then send")
def accept_not_saved() -> Sequence[Patch]:
    """An Accepted leaves without its value being saved."""
    return [
        _wrap(
            Acceptor, "on_accept", lambda on_accept, *arguments: _without(SaveAccepted, on_accept(*arguments))
        )
    ]


@mutant("3.1 persist, then send")
def reply_before_sync() -> Sequence[Patch]:
    """Replies leave at once, before the sync that covers them."""

    def hold(_: Any, self: EffectPerformer, replies: list[Send]) -> None:
        for reply in replies:
            self._send(reply)

    return [_wrap(EffectPerformer, "_hold", hold)]


@mutant("3.1 tied to the write")
def flush_then_send_pending() -> Sequence[Patch]:
    """When a write ends, all that waits is sent, also what only the next write covers."""

    def written(original: Any, self: EffectPerformer, outcome: object, records: Any) -> None:
        assert self._writing is not None
        self._writing += self._replies
        self._replies = []
        original(self, outcome, records)

    return [_wrap(EffectPerformer, "_written", written)]


@mutant("3.1 ballots are not used again")
def ballot_used_again() -> Sequence[Patch]:
    """After a restart the first take-over uses the saved ballot instead of one above it."""

    def take_over(original: Any, self: Proposer, above: ProposalID, now_s: float) -> Effects:
        if self.ballot == NO_BALLOT and above.uid == self.uid and above.number > 1:
            above = ProposalID(above.number - 1, above.uid)
        return original(self, above, now_s)

    return [_wrap(Proposer, "take_over", take_over)]


@mutant("3.1 the ballot is durable first")
def prepare_before_sync() -> Sequence[Patch]:
    """A Prepare leaves before its ballot is durable."""

    def take_over(original: Any, self: Proposer, above: ProposalID, now_s: float) -> Effects:
        effects = original(self, above, now_s)
        effects.sends, effects.replies = effects.replies, []
        return effects

    return [_wrap(Proposer, "take_over", take_over)]


# -- rule 2


@mutant("3.2 a promise is complete")
def promise_cut_short() -> Sequence[Patch]:
    """The first entry of the first part of a Promise is taken for all of it."""

    def on_promise(original: Any, self: Proposer, sender: Any, message: Any, now_s: float) -> Effects:
        if message.part == 0:
            message = msgspec.structs.replace(message, parts=1, accepted=message.accepted[:1])
        return original(self, sender, message, now_s)

    return [_wrap(Proposer, "on_promise", on_promise)]


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

    return [_wrap(Acceptor, "_promise_parts", parts)]


@mutant("3.2, 6 the promise is saved before the vote")
def stale_promise_on_accept() -> Sequence[Patch]:
    """An Accept above the promise is taken without saving its ballot as promise."""
    return [
        _wrap(
            Acceptor, "on_accept", lambda on_accept, *arguments: _without(SavePromise, on_accept(*arguments))
        )
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

    return [_wrap(Proposer, "_recover", recover)]


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

    return [_wrap(Proposer, "_recover", recover)]


@mutant("3.3 no-ops for gaps")
def gap_skipped() -> Sequence[Patch]:
    """A new leader leaves slots empty that nobody reported."""
    noop = encode_value(0, ())

    def recover(original: Any, self: Proposer, base: int, now_s: float) -> None:
        original(self, base, now_s)
        kept = [(slot, value) for slot, value in self._recovered if value != noop]
        self._recovered.clear()
        self._recovered.extend(kept)

    return [_wrap(Proposer, "_recover", recover)]


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

    return [_wrap(Proposer, "_count_promises", count)]


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

    return [_wrap(Acceptor, "on_accept", on_accept)]


@mutant("3.4 gives way to a higher ballot")
def leader_goes_on() -> Sequence[Patch]:
    """A leader ignores every sign of a higher ballot but a Nack."""
    return [mock.patch.object(Replica, "_give_way_to", lambda self, ballot: self.election.saw(ballot))]


@mutant("3.4 the window alpha")
def proposes_beyond_alpha() -> Sequence[Patch]:
    """A leader proposes as far ahead as its pipeline takes."""
    return [mock.patch.object(proposer, "limits", _OtherLimits(ALPHA=1 << 30, PIPELINE_SLOTS=100))]


# -- rules 5 and 6


@mutant("3.5 a majority")
def majority_off_by_one() -> Sequence[Patch]:
    """One acceptor less than a majority is enough."""

    def init(original: Any, self: Membership, voters: Any, members: Any) -> None:
        original(self, voters, members)
        self.majority -= 1

    return [_wrap(Membership, "__init__", init)]


@mutant("3.5 one Accepted is never enough")
def one_accepted_is_enough() -> Sequence[Patch]:
    """A learner takes a slot for chosen with its first Accepted, as the seed did."""

    def on_accepted(original: Any, self: Learner, sender: Any, message: Any, now_s: float) -> Effects:
        majority, self.membership.majority = self.membership.majority, 1
        try:
            return original(self, sender, message, now_s)
        finally:
            self.membership.majority = majority

    return [_wrap(Learner, "on_accepted", on_accepted)]


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


@mutant("3.5 only the value of that ballot")
def any_entry_is_the_value() -> Sequence[Patch]:
    """A chosen slot is filled with whatever was accepted there, also at a lower ballot."""

    def mark(original: Any, self: Log, slot: int, ballot: ProposalID) -> None:
        own = self.entries.get(slot)
        original(self, slot, min(ballot, own.ballot) if own else ballot)

    return [_wrap(Log, "mark_chosen", mark)]


# -- rules 7 to 9, snapshots


@mutant("3.7 only chosen entries move")
def fetch_answers_unsynced() -> Sequence[Patch]:
    """An answer to a Fetch is read from storage before storage has the chosen value."""

    def read(original: Any, self: EffectPerformer, wanted: Any) -> None:
        stored, self.stored_upto = self.stored_upto, self._chosen_upto
        try:
            original(self, wanted)
        finally:
            self.stored_upto = stored

    return [_wrap(EffectPerformer, "_read", read)]


@mutant("3.7 chosen is noted when it is stored")
def chosen_noted_too_early() -> Sequence[Patch]:
    """How far slots are chosen is noted in storage before their values are there."""

    def perform(original: Any, self: EffectPerformer, effects: Effects) -> None:
        original(self, effects)
        if effects.chosen:
            self._storage.note_chosen(effects.chosen[-1].slot)

    return [_wrap(EffectPerformer, "_perform", perform)]


@mutant("3.7 a snapshot keeps what was accepted above")
def snapshot_drops_accepted() -> Sequence[Patch]:
    """Installing a snapshot forgets what was accepted above it."""

    def install(original: Any, self: Log, slot: int) -> None:
        original(self, slot)
        self.entries.clear()

    return [_wrap(Log, "install", install)]


@mutant("3 snapshots")
def snapshot_off_by_one() -> Sequence[Patch]:
    """A snapshot claims to be of one slot more than it holds."""

    def make(original: Any, self: SnapshotMaker) -> Any:
        self._state.applied_upto += 1
        try:
            return original(self)
        finally:
            self._state.applied_upto -= 1

    return [_wrap(SnapshotMaker, "make", make)]


@mutant("3 snapshots are synced as they go")
def snapshot_not_synced() -> Sequence[Patch]:
    """A snapshot takes the place of the log before it is on the disk."""
    return [_wrap(SimulatedDisk, "sync", partial(_sync_others, "snapshot", "draft"))]


def _sync_others(*arguments: Any) -> None:
    *prefixes, sync, disk, name = arguments
    if not name.startswith(tuple(prefixes)):
        sync(disk, name)


@mutant("3.9 commands once")
def repeated_command_applies() -> Sequence[Patch]:
    """A command that is tried again is applied again."""

    def remember(original: Any, self: Sessions, command: Command, slot: int, index: int, data: Raw) -> Result:
        result = original(self, command, slot, index, data)
        del self._sessions[command.client].results[command.sequence]
        return result

    return [_wrap(Sessions, "remember", remember)]


@mutant("5 results are part of the state")
def sessions_not_in_snapshot() -> Sequence[Patch]:
    """A snapshot leaves out the results of sessions."""

    def load(original: Any, self: Sessions, saved: Any) -> None:
        original(self, [msgspec.structs.replace(session, results=()) for session in saved])

    return [_wrap(Sessions, "load", load)]


# -- reads


@mutant("5 reads are confirmed")
def read_without_confirmation() -> Sequence[Patch]:
    """A leader answers reads without asking whether it still is one."""

    def on_request(self: Reads, sender: Any, message: Any, now_s: float) -> Effects:
        if not self._leads():
            return Effects()
        answer = ReadAt(message.read_id, self._proposer.highest_proposed)
        return Effects(sends=[Send((sender.uid,), answer)])

    return [mock.patch.object(Reads, "on_request", on_request)]


@mutant("5 the highest slot proposed")
def read_at_chosen_upto() -> Sequence[Patch]:
    """A read waits for what the leader knows as chosen, not for all that it proposed."""
    own = property(lambda self: self.log.chosen_upto)
    return [mock.patch.object(Proposer, "highest_proposed", own)]


@mutant("5 a read waits until its slot is applied")
def read_before_applied() -> Sequence[Patch]:
    """A read is answered when it is confirmed, whatever is applied here."""

    def confirmed(original: Any, self: NodeReads, readable: Any) -> None:
        original(self, readable._replace(slot=0))

    return [_wrap(NodeReads, "confirmed", confirmed)]


@mutant("5 a nonce issued after the arrival")
def read_joins_running_round() -> Sequence[Patch]:
    """A read is confirmed by a question that was asked before it arrived."""

    def on_request(original: Any, self: Reads, sender: Any, message: Any, now_s: float) -> Effects:
        effects = original(self, sender, message, now_s)
        if self._confirming and self._waiting:
            self._confirming += self._waiting
            self._waiting = []
        return effects

    return [_wrap(Reads, "on_request", on_request)]


# -- section 6: storage and members


@mutant("6 fdatasync")
def log_not_synced() -> Sequence[Patch]:
    """The log is written and reported without a sync."""
    return [_wrap(SimulatedDisk, "sync", partial(_sync_others, "log-"))]


@mutant("6 two copies of the promise")
def promise_in_one_copy() -> Sequence[Patch]:
    """The promise is written to the second copy only every other time."""

    def save(self: DurableObjectHandler[Any], value: Any) -> None:
        self._serial += 1
        data = encode_copy(self.name, self._serial, self._encode(value))
        for index in (0, 1) if self._serial % 2 else (0,):
            self._disk.write_at(f"{self.name}.{index}", 0, data)
            self._disk.sync(f"{self.name}.{index}")

    return [mock.patch.object(DurableObjectHandler, "save", save)]


@mutant("6 checksums")
def torn_record_accepted() -> Sequence[Patch]:
    """A record of the log is taken as it is, whatever its checksum."""

    def parse(data: memoryview, offset: int) -> Any:
        if offset + log_format.HEADER_BYTES > len(data):
            return None
        _, magic, kind, uid_bytes, _, length, segment, sequence, synced, slot, number = (
            log_format.RECORD_HEADER.unpack_from(data, offset)
        )
        end = offset + ((log_format.HEADER_BYTES + length + 7) & ~7)
        if magic != log_format.RECORD_MAGIC or end > len(data) or uid_bytes > length:
            return None
        return end, kind, uid_bytes, segment, sequence, synced, slot, number

    return [mock.patch.object(module, "parse_record", parse) for module in (log_format, recovery)]


@mutant("6 damage below a synced point")
def damage_taken_for_torn() -> Sequence[Patch]:
    """Whatever is bad in the last segment counts as torn, also below what was synced."""

    def examine(original: Any, disk: Any, promised: Any, floor: Any, *more: Any) -> Any:
        return original(disk, promised, Floor(), *more)

    def take_rest(original: Any, *arguments: Any) -> int:
        return 0

    return [
        _wrap(recovery, "synced_evidence", take_rest),
        mock.patch("twisted_paxos.storage.log.examine", partial(examine, recovery.examine)),
    ]


@mutant("6 a new incarnation does not vote")
def wiped_node_votes() -> Sequence[Patch]:
    """A node with a fresh directory votes at once, and its votes count for its id."""

    def votes_on(self: Membership, slot: int, sender: Any) -> bool:
        return sender.uid in self.voters

    def is_voter(self: Formation) -> bool:
        return self.membership.formed and self.me.uid in self.membership.voters

    def is_quorum(self: Membership, promises: Any, above_slot: int) -> bool:
        return len(promises) >= self.majority

    return [
        mock.patch.object(Membership, "votes_on", votes_on),
        mock.patch.object(Membership, "is_member", lambda self, sender: sender.uid in self.voters),
        mock.patch.object(Membership, "is_phase_1_quorum", is_quorum),
        mock.patch.object(Formation, "is_voter", property(is_voter)),
    ]


@mutant("6 an old copy is refused")
def old_copy_is_heard() -> Sequence[Patch]:
    """A start is listened to without looking at its number."""
    return [mock.patch.object(Formation, "admit", lambda self, sender, message: (True, Effects()))]


@mutant("6 Replace takes effect alpha slots later")
def replace_at_once() -> Sequence[Patch]:
    """A Replace holds from the next slot on, where values may be on their way already."""

    def replace(original: Any, self: Membership, uid: str, new: str, from_slot: int) -> None:
        original(self, uid, new, max(from_slot - limits.ALPHA + 1, self.latest_from))

    return [_wrap(Membership, "replace", replace)]


@mutant("6 a full disk refuses")
def full_disk_forgets() -> Sequence[Patch]:
    """A write for which there is no room is reported as stored."""

    def commit(original: Any, self: FileBackend, writes: Any, chosen_upto: int) -> Any:
        return [None for _ in original(self, writes, chosen_upto)]

    return [_wrap(FileBackend, "commit", commit)]


@mutant("6 what was learnt is stored")
def learnt_not_saved() -> Sequence[Patch]:
    """A slot that was fetched is not written down."""

    def advance(original: Any, self: Learner, now_s: float) -> Effects:
        return _without(SaveChosen, original(self, now_s))

    return [_wrap(Learner, "_advance", advance)]


# -- finding them


class Fate(NamedTuple):
    """What became of a mutant; ``seeds`` is 0 when it survived."""

    mutant: str
    seeds: int
    check: str
    what: str


def hunt(name: str, seeds_max: int = SEEDS_MAX) -> Fate:
    """Run seeds with the mutant until one fails that does not fail without it."""
    for seed in range(seeds_max):
        outcome = run_seed(Wish(seed, mutant=name, minimised=False)).outcome
        if outcome.check and not run_seed(Wish(seed, minimised=False)).outcome.check:
            return Fate(name, seed + 1, outcome.check, outcome.what)
    return Fate(name, 0, "", "")


def table(fates: Sequence[Fate]) -> list[str]:
    """The table of `docs/testing.md`."""
    lines = ["| mutant | rule | what is wrong | seeds | found by |", "|---|---|---|---|---|"]
    for fate in fates:
        found = MUTANTS[fate.mutant]
        seeds = str(fate.seeds) if fate.seeds else "not found"
        lines.append(f"| `{found.name}` | {found.rule} | {found.what} | {seeds} | {fate.check} |")
    return lines


@click.command(help="Find every planted bug with the simulator, and print the table.")
@click.argument("names", nargs=-1)
@click.option("--seeds", type=click.IntRange(1), default=SEEDS_MAX, show_default=True, help="To try at most.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; as many as there are cores.")
@click.option("--dask", default="", metavar="ADDRESS", help="Run on the Dask cluster of this scheduler.")
def main(names: tuple[str, ...], seeds: int, jobs: int | None, dask: str) -> None:
    """The command line."""
    console = Console()
    wanted = names or tuple(MUTANTS)
    unknown = [name for name in wanted if name not in MUTANTS]
    if unknown:
        raise click.ClickException(f"{unknown[0]!r} is no mutant; there are: {', '.join(MUTANTS)}")
    fates: dict[str, Fate] = {}
    try:
        with workers(jobs, dask) as (executor, count):
            for fate in run_all(executor, count, partial(hunt, seeds_max=seeds), wanted):
                fates[fate.mutant] = fate
                console.print(str(fate), markup=False, highlight=False, soft_wrap=True)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    for line in table([fates[name] for name in wanted]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if all(fate.seeds for fate in fates.values()) else 1)


if __name__ == "__main__":
    main()
