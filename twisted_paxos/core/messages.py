"""What nodes say to each other, typed and frozen, and what a slot holds.

On the wire each message is one JSON object with its name under ``type``
(`twisted_paxos.wire`); `docs/protocol.md` has the table of who sends what to whom.
Every message travels in an `Envelope`, which says who speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, Self, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.runs import client_runs

Count: TypeAlias = Annotated[int, Meta(ge=0, le=limits.NUMBER_MAX)]
"""A number on the wire: never negative, never more than storage can keep."""

Slot: TypeAlias = Annotated[int, Meta(ge=1, le=limits.NUMBER_MAX)]
"""A place in the log, from 1."""

Uid: TypeAlias = Annotated[str, Meta(max_length=limits.UID_MAX_CHARS)]
"""The id of a node."""

Word: TypeAlias = Annotated[str, Meta(max_length=64)]
"""A short random or derived name."""


class Command(Struct, frozen=True, array_like=True, gc=False):
    """One command of one client.

    Attributes:
        client: the session's id, as the log gave it; empty for commands without one.
        sequence: the client's number for it, from 1; a retry keeps it.
        floor: the client has the results of everything below this sequence number.
        payload: the command itself, any JSON (`twisted_paxos.statemachine.commands`).
    """

    client: Word
    sequence: Count
    floor: Count
    payload: Raw


class Numbered(Protocol):
    """A `Command`, whatever its payload is decoded as."""

    @property
    def client(self) -> str:
        """The session's id."""

    @property
    def sequence(self) -> int:
        """The client's number for it."""

    @property
    def floor(self) -> int:
        """Everything below is done with."""


class CommandRun(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Commands of one client whose numbers follow each other: what a slot holds.

    Attributes:
        client: see `Command`.
        sequence: the number of the first one.
        floor: the highest of theirs; of several commands never above ``sequence``, so that none of them
            is done with because of another.
        payloads: of each.
    """

    client: Word
    sequence: Count
    floor: Count
    payloads: Annotated[tuple[Raw, ...], Meta(min_length=1)]


class OfRun(Numbered, Protocol):
    """A `CommandRun`, whatever its payloads are decoded as; its number is that of the first command."""

    @property
    def payloads(self) -> Sequence[Any]:
        """The commands themselves."""


def sequences_of(run: OfRun) -> range:
    """The numbers of a run's commands."""
    return range(run.sequence, run.sequence + len(run.payloads))


def runs_of(commands: Sequence[Command]) -> tuple[CommandRun, ...]:
    """Runs of ``commands``, in their order, each as long as it can be."""
    if len(commands) == 1:
        one = commands[0]
        return (CommandRun(one.client, one.sequence, one.floor, (one.payload,)),)
    runs: list[CommandRun] = []
    for client, start, end in client_runs(commands):
        part = commands[start:end]
        first = part[0].sequence
        sequences = [command.sequence for command in part]
        floor = max([command.floor for command in part])
        if floor <= first and sequences == list(range(first, first + len(part))):
            # The usual case.
            runs.append(CommandRun(client, first, floor, tuple([command.payload for command in part])))
        else:
            runs += _cut(part)
    return tuple(runs)


def _cut(commands: Sequence[Command]) -> Iterator[CommandRun]:
    """`runs_of` for commands of one client, in steps as many as there are commands."""
    start = floor = 0
    for place in range(1, len(commands) + 1):
        first = commands[start].sequence
        floor = max(floor, commands[place - 1].floor)
        if place < len(commands):
            following = commands[place]
            follows = following.sequence == first + place - start
            if follows and max(floor, following.floor) <= first:
                continue
        payloads = tuple([command.payload for command in commands[start:place]])
        yield CommandRun(commands[start].client, first, floor, payloads)
        start, floor = place, 0


class Replace(Struct, frozen=True):
    """From ALPHA slots later on, incarnation ``new`` votes for ``uid`` in place of ``old``.

    It is void when ``old`` is not the voting incarnation at its place in the log.
    """

    uid: Uid
    old: Word
    new: Word


class Value(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one slot holds: a batch of commands, empty for a no-op, or a change of members.

    One with a field of another version is no value: to pass over it would be to apply something else.

    Attributes:
        replace: the change; it stands first, so that `is_change` need not decode the rest.
        time_ms: the leader's stamp; log time is the highest one so far along the log (a no-op has 0).
        runs: the commands, in the order in which they apply.
    """

    replace: Replace | None = None
    time_ms: Count
    runs: tuple[CommandRun, ...] = ()

    @classmethod
    def of(cls, time_ms: int, commands: Sequence[Command]) -> Self:
        """A batch of these commands."""
        return cls(time_ms=time_ms, runs=runs_of(commands))

    @property
    def commands(self) -> tuple[Command, ...]:
        """One by one; made when asked for."""
        return tuple(
            [
                Command(run.client, sequence, run.floor, payload)
                for run in self.runs
                for sequence, payload in enumerate(run.payloads, run.sequence)
            ]
        )


_encode = msgspec.json.Encoder().encode
_decode_value = msgspec.json.Decoder(Value).decode


def encode_value(time_ms: int, commands: Sequence[Command]) -> Raw:
    """The bytes of a slot's value; made once, never encoded again on its way."""
    return Raw(_encode(Value.of(time_ms, commands)))


_CHANGE = b'{"replace":'


def encode_change(time_ms: int, replace: Replace) -> Raw:
    """The bytes of a value that changes members."""
    return Raw(_encode(Value(time_ms=time_ms, replace=replace)))


def is_change(value: Raw) -> bool:
    """Whether a value changes members; cheap, whatever its size."""
    return bytes(memoryview(value)[: len(_CHANGE)]) == _CHANGE


def decode_value(value: Raw) -> Value:
    """The inverse of `encode_value`.

    Raises:
        msgspec.DecodeError: the bytes are no value.
    """
    return _decode_value(value)


class Entry(NamedTuple):
    """A value and the ballot under which it was accepted (or, once chosen, that or a later one)."""

    ballot: ProposalID
    value: Raw


class SlotEntry(Struct, frozen=True, array_like=True):
    """An `Entry` with its place in the log, as it travels and as storage returns it."""

    slot: Slot
    ballot: ProposalID
    value: Raw


class Prepare(Struct, frozen=True, tag="prepare"):
    """Phase 1a: asks acceptors to take no ballot below this one, for all slots.

    Attributes:
        ballot: the sender's new ballot.
        from_slot: the first slot that the sender does not know as chosen.
    """

    ballot: ProposalID
    from_slot: Slot


class Promise(Struct, frozen=True, tag="promise"):
    """Phase 1b, possibly in parts: only all parts of one ``promise_id`` are a promise.

    Attributes:
        ballot: the ballot promised to.
        promise_id: the acceptor's number for this answer.
        part, parts: which part this is, from 0, and of how many.
        chosen_upto: the acceptor knows every slot up to here as chosen and reports none of them.
        accepted: what it has accepted above that.
    """

    ballot: ProposalID
    promise_id: Count
    part: Count
    parts: Count
    chosen_upto: Count
    accepted: tuple[SlotEntry, ...] = ()


class Accept(Struct, frozen=True, tag="accept"):
    """Phase 2a: asks acceptors to accept ``value`` in ``slot``.

    Attributes:
        chosen_upto: every slot up to here was chosen at a ballot <= this one.
    """

    ballot: ProposalID
    slot: Slot
    value: Raw
    chosen_upto: Count


class Accepted(Struct, frozen=True, tag="accepted"):
    """Phase 2b, to the leader: the sender has durably accepted exactly these slots at exactly this ballot."""

    ballot: ProposalID
    slots: tuple[Slot, ...]


class Commit(Struct, frozen=True, tag="commit"):
    """The leader of ``ballot`` knows every slot up to ``chosen_upto`` as chosen, at ballots <= this one.

    An `Accept` and a `Heartbeat` say the same; this one leaves when somebody waits for it, or none
    of those comes soon, or to share what was chosen without the receiver.

    Attributes:
        entries: chosen slots, in order, whose Accepts did not go to the receiver.
    """

    ballot: ProposalID
    chosen_upto: Count
    entries: tuple[SlotEntry, ...] = ()


class Nack(Struct, frozen=True, tag="nack"):
    """A Prepare or Accept of ``ballot`` came too late: ``promised`` is higher."""

    ballot: ProposalID
    promised: ProposalID


class Status(Struct, frozen=True):
    """What a node says of itself in heartbeats.

    Attributes:
        ballot: its own ballot, NO_BALLOT since its start until it takes over.
        leading: it completed phase 1 of that ballot and has not given way since.
        leader: the ballot of the leader that it follows (its own when it leads).
        leader_works: it has heard that leader lately and the leader can make progress.
        promised: the highest ballot that its acceptor promised.
        voter: it is a full voting member; others never count.
        chosen_upto: it knows every slot up to here as chosen; a leader's counts
            only slots chosen at ballots <= ``ballot``.
        log_start: the lowest slot that it can still hand out.
        client: where its clients connect, for status tables; may be empty.
        voted, voted_upto: the highest ballot and slot of the Accepteds that this start has sent: its
            storage must have them for ever.
    """

    ballot: ProposalID = NO_BALLOT
    leading: bool = False
    leader: ProposalID = NO_BALLOT
    leader_works: bool = False
    promised: ProposalID = NO_BALLOT
    voter: bool = False
    chosen_upto: Count = 0
    log_start: Slot = 1
    client: str = ""
    voted: ProposalID = NO_BALLOT
    voted_upto: Count = 0


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """Asks for a `HeartbeatReply`; ``round`` is the sender's own count.

    Attributes:
        answers: node -> the round of its heartbeat that this one answers: rounds begin together, and
            two messages in one cost an idle cluster less.
    """

    round: Count
    status: Status
    answers: dict[Uid, Count] = {}


class HeartbeatReply(Struct, frozen=True, tag="heartbeat_reply"):
    """Answers the `Heartbeat` of this ``round``: both directions work."""

    round: Count
    status: Status


class Fetch(Struct, frozen=True, tag="fetch"):
    """Asks for chosen slots ``from_slot`` to ``upto_slot``, both included."""

    request_id: Count
    from_slot: Slot
    upto_slot: Slot


class Chosen(Struct, frozen=True, tag="chosen"):
    """Answers a `Fetch` with chosen slots without a gap, as many as fit.

    Attributes:
        entries: from the asked slot on; empty when none of them is here.
        chosen_upto: how far the sender knows.
        log_start: the lowest slot that the sender still has.
    """

    request_id: Count
    entries: tuple[SlotEntry, ...]
    chosen_upto: Count
    log_start: Slot


class FetchPiece(Struct, frozen=True, tag="fetch_piece"):
    """Asks for piece ``number``, from 0, of the snapshot of ``slot``; slot 0 means the newest."""

    request_id: Count
    slot: Count
    number: Count


class Piece(Struct, frozen=True, tag="piece"):
    """Answers a `FetchPiece`.

    Attributes:
        slot: of which snapshot it is.
        number, pieces: which piece, and of how many; ``pieces`` is 0 when that snapshot is not
            here (any more): then ``slot`` is that of the newest, 0 when there is none.
        data: the piece.
    """

    request_id: Count
    slot: Count
    number: Count
    pieces: Count
    data: bytes


class Forward(Struct, frozen=True, tag="forward"):
    """Commands of the sender's clients, for the leader to propose; makes one hop only."""

    forward_id: Count
    commands: tuple[Command, ...]


class ForwardReply(Struct, frozen=True, tag="forward_reply"):
    """Answers a `Forward`: the sender leads and has taken all of it, or it has taken none."""

    forward_id: Count
    taken: bool


class ReadRequest(Struct, frozen=True, tag="read_request"):
    """Asks the leader for the slot that a linearizable read must have applied.

    Attributes:
        read_id: the sender's number for it.
        start: the sender's boot_id: an answer to an earlier start must not fit.
    """

    read_id: Count
    start: Word = ""


class ReadAt(Struct, frozen=True, tag="read_at"):
    """Answers a `ReadRequest`: with ``slot`` applied, the read sees all that was answered before it."""

    read_id: Count
    slot: Count
    start: Word = ""


class Confirm(Struct, frozen=True, tag="confirm"):
    """Asks acceptors whether the leader of ``ballot`` is still theirs; ``nonce`` is its count."""

    ballot: ProposalID
    nonce: Count


class Confirmed(Struct, frozen=True, tag="confirmed"):
    """Answers a `Confirm`: at this moment the sender has promised nothing above ``ballot``."""

    ballot: ProposalID
    nonce: Count


class Join(Struct, frozen=True, tag="join"):
    """First formation: asks to record the sender's incarnation (DESIGN.md section 6).

    Attributes:
        nonce: only an answer to the sender's newest nonce counts.
    """

    nonce: Count


class Joined(Struct, frozen=True, tag="joined"):
    """Answers a `Join`.

    Attributes:
        formed: the sender knows the cluster as formed.
        members: then, the incarnations that founded it; else those that it has durably recorded.
    """

    nonce: Count
    formed: bool
    members: dict[Uid, Word]


class Admit(Struct, frozen=True, tag="admit"):
    """A node whose earlier life was lost asks the leader for a Replace; it has caught up.

    Attributes:
        old: the incarnation that votes for its id, as far as it knows.
        chosen_upto: how far it knows the log.
    """

    old: Word
    chosen_upto: Count


class AskDescent(Struct, frozen=True, tag="ask_descent"):
    """Asks a start that is not recorded yet what its storage comes from.

    Attributes:
        known: the boot_id of the latest start of that incarnation that is recorded; "" if none is.
    """

    known: Annotated[str, Meta(max_length=64)]


class Descent(Struct, frozen=True, tag="descent"):
    """Answers an `AskDescent`.

    Attributes:
        known: as it was asked.
        descends: the sender's storage went through that start, as far as it knows, or was made after it.
        kept: of so many starts, this one included, it knows the boot_ids.
        promised, upto: what the sender's storage held at this start: the promise, and the highest
            slot. Less than what it once reported means that it is an old copy.
    """

    known: Annotated[str, Meta(max_length=64)]
    descends: bool
    kept: Count
    promised: ProposalID
    upto: Count


class Refused(Struct, frozen=True, tag="refused"):
    """The receiver's storage is an old copy: it does not hold what it once reported.

    Attributes:
        incarnation, boot, boot_id: the start that was refused.
        reason: what is missing, for people.
    """

    incarnation: Word
    boot: Count
    boot_id: Word
    reason: Annotated[str, Meta(max_length=200)]


Message: TypeAlias = (
    Prepare
    | Promise
    | Accept
    | Accepted
    | Commit
    | Nack
    | Heartbeat
    | HeartbeatReply
    | Fetch
    | Chosen
    | FetchPiece
    | Piece
    | Forward
    | ForwardReply
    | Join
    | Joined
    | Admit
    | ReadRequest
    | ReadAt
    | Confirm
    | Confirmed
    | AskDescent
    | Descent
    | Refused
)


class Sender(NamedTuple):
    """Who speaks: one start of one incarnation of one node.

    Attributes:
        uid: the node's id.
        incarnation: one life of its directory; votes of any but the current one never count.
        boot: how often that directory was started, from 1.
        boot_id: random, tells two starts with the same count apart.
    """

    uid: Uid
    incarnation: Word
    boot: Count
    boot_id: Word


class Envelope(Struct, frozen=True):
    """A message with its sender, as it travels.

    Attributes:
        cluster: fingerprint of the configuration (ids and quorum); foreign ones are dropped.
        sender: who speaks.
        message: what it says.
    """

    cluster: str
    sender: Sender
    message: Message
