"""The whole replicated state of a node: client sessions and the state machine behind them.

A slot is applied in one go: log time moves, then each command that its session has not seen is
applied by the state machine and its result remembered. A snapshot holds both.

    snapshot = header *session-piece *machine-piece     ; each piece as storage keeps it
    header   = JSON: {"format": 1, "slot", "log_time_ms", "sets": [...], "session_pieces"}

`sets` are the voting incarnations as of that slot (`core.quorum.Membership`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, repeat
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from twisted_paxos.core.messages import (
    Command,
    Count,
    Numbered,
    OfRun,
    Slot,
    Uid,
    Value,
    Word,
    decode_value,
    sequences_of,
)
from twisted_paxos.statemachine.commands import Context, Result
from twisted_paxos.statemachine.machine import IStateMachine, ITypedMachine
from twisted_paxos.statemachine.sessions import SavedSession, Sessions

FORMAT = 1
SESSIONS_PER_PIECE = 200

Sets = tuple[tuple[Slot, dict[Uid, Word]], ...]


class Header(Struct, frozen=True):
    """The first piece of a snapshot."""

    format: int
    slot: Count
    log_time_ms: Count
    sets: Sets
    session_pieces: Count


P = TypeVar("P")


class TypedRun(Struct, Generic[P], frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A `CommandRun` whose payloads are decoded as well."""

    client: Word
    sequence: Count
    floor: Count
    payloads: Annotated[list[P], Meta(min_length=1)]


class TypedValue(Struct, Generic[P], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `Value` of such runs, without a change of members."""

    time_ms: Count
    runs: tuple[TypedRun[P], ...] = ()


class Name(NamedTuple):
    """Which command, without its payload."""

    client: str
    sequence: int
    floor: int


class Run(NamedTuple):
    """Commands of one client that followed each other, and were all applied.

    Attributes:
        slot, first: where the first one was applied.
        client, sequences: which they were.
        data: what the state machine returned for each.
    """

    slot: int
    first: int
    client: str
    sequences: range
    data: Sequence[Raw]


class Applied:
    """What one slot did.

    Args:
        runs: the slot's commands, whatever their payloads are decoded as.
        as_logged: gives them as they stand in the log.
        parts: what became of them, in order.
        places: the indexes of those that were applied now.

    Attributes:
        runs: as given.
    """

    __slots__ = ("_as_logged", "_parts", "_places", "runs")

    def __init__(
        self,
        runs: Sequence[OfRun],
        as_logged: Callable[[], Sequence[Command]],
        parts: Sequence[Run | Result],
        places: Sequence[range],
    ) -> None:
        self.runs = runs
        self._as_logged = as_logged
        self._parts = parts
        self._places = places

    @property
    def count(self) -> int:
        """How many commands were applied now, without repetitions and openings of sessions."""
        return sum([len(place) for place in self._places])

    @property
    def failed(self) -> int:
        """How many will never be applied."""
        return sum([1 for part in self._parts if type(part) is Result and part.error])

    @property
    def commands(self) -> list[Command]:
        """The commands that were applied now; made when asked for."""
        logged = self._as_logged()
        return [logged[index] for place in self._places for index in place]

    @property
    def results(self) -> list[Result]:
        """Of every command, in order; made when asked for."""
        results: list[Result] = []
        for part in self._parts:
            if isinstance(part, Result):
                results.append(part)
                continue
            client, slot, indexes = repeat(part.client), repeat(part.slot), count(part.first)
            results += map(Result, client, part.sequences, slot, indexes, repeat(""), part.data)
        return results


class ReplicatedState:
    """Applies slots; makes and takes snapshots.

    Args:
        machine: the user's state machine, empty.

    Attributes:
        applied_upto: the last slot applied.
        machine: as given.
        sessions: the client sessions.
    """

    def __init__(self, machine: IStateMachine) -> None:
        self.machine = machine
        self.sessions = Sessions()
        self.applied_upto = 0
        self._decode_typed: Callable[[Raw], TypedValue[Any]] | None = None
        if ITypedMachine.providedBy(machine):
            typed: Any = machine
            self._decode_typed = msgspec.json.Decoder(TypedValue[typed.payload_type]).decode
            self._apply_typed = typed.apply_all

    @property
    def log_time_ms(self) -> int:
        """The highest time stamp of the log so far."""
        return self.sessions.log_time_ms

    def apply_encoded(self, slot: int, encoded: Raw) -> Applied:
        """Apply the value chosen in ``slot``, the next one.

        Raises:
            msgspec.DecodeError: the bytes are no value.
        """
        if self._decode_typed is not None:
            try:
                value = self._decode_typed(encoded)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                # What one payload is wrong with is the business of that command alone.
                return self.apply(slot, decode_value(encoded))
            do = partial(self._apply_typed, size_bytes=len(encoded))
            done = self._apply(slot, value.time_ms, value.runs, do)
            return Applied(value.runs, lambda: decode_value(encoded).commands, *done)
        return self.apply(slot, decode_value(encoded))

    @property
    def size_bytes(self) -> int:
        """How large the state machine says that it is, as ``size_bytes``; 0 for one that does not say."""
        size_bytes: int = getattr(self.machine, "size_bytes", 0)
        return size_bytes

    def apply(self, slot: int, value: Value) -> Applied:
        """`apply_encoded` for a value that is decoded already."""
        done = self._apply(slot, value.time_ms, value.runs, self._one_by_one)
        return Applied(value.runs, lambda: value.commands, *done)

    def _one_by_one(self, payloads: Sequence[Raw], context: Context) -> list[Raw]:
        slot, index, time_ms = context.slot, context.index, context.time_ms
        apply = self.machine.apply
        return [
            apply(payload, Context(slot, place, time_ms)) for place, payload in enumerate(payloads, index)
        ]

    def _apply(
        self,
        slot: int,
        time_ms: int,
        runs: Sequence[OfRun],
        do: Callable[[Sequence[Any], Context], Sequence[Raw]],
    ) -> tuple[list[Run | Result], list[range]]:
        """The parts and the places of an `Applied`."""
        assert slot == self.applied_upto + 1, "slots apply in order"
        sessions = self.sessions
        sessions.advance(time_ms)
        time_ms = sessions.log_time_ms
        self.machine.advance(Context(slot, -1, time_ms))
        parts: list[Run | Result] = []
        places: list[range] = []
        start = 0
        for run in runs:
            client, payloads, sequences = run.client, run.payloads, sequences_of(run)
            end = start + len(payloads)
            if end - start > 1 and sessions.admit_run(client, run.floor, sequences):
                data = do(payloads, Context(slot, start, time_ms))
                sessions.remember_run(client, sequences, slot, start, data)
                parts.append(Run(slot, start, client, sequences, data))
                places.append(range(start, end))
                start = end
                continue
            for index, sequence in enumerate(sequences, start):
                name = Name(client, sequence, run.floor) if end - start > 1 else run
                result = sessions.admit(name, slot, index)
                if result is None:
                    payload = payloads[index - start]
                    result = self._apply_one(name, payload, Context(slot, index, time_ms), do)
                    places.append(range(index, index + 1))
                parts.append(result)
            start = end
        self.applied_upto = slot
        return parts, places

    def _apply_one(
        self,
        name: Numbered,
        payload: Any,
        context: Context,
        do: Callable[[Sequence[Any], Context], Sequence[Raw]],
    ) -> Result:
        data = do((payload,), context)[0]
        self.sessions.remember(name, context.slot, context.index, data)
        return Result(name.client, name.sequence, context.slot, context.index, "", data)

    # -- snapshots

    def snapshot(self, sets: Sets) -> Iterator[bytes]:
        """The state of this moment, in pieces, frozen while slots go on being applied."""
        session_pieces, sessions = self.sessions.snapshot(SESSIONS_PER_PIECE)
        header = Header(FORMAT, self.applied_upto, self.log_time_ms, sets, session_pieces)
        # Made now: a generator would start only when first asked, at a later state.
        return self._pieces(header, sessions, self.machine.snapshot())

    def _pieces(
        self, header: Header, sessions: Iterator[list[SavedSession]], machine: Iterator[bytes]
    ) -> Iterator[bytes]:
        try:
            yield msgspec.json.encode(header)
            for group in sessions:
                yield msgspec.json.encode(group)
            yield from machine
        finally:
            self.sessions.end_snapshot()
            close = getattr(machine, "close", None)
            if close is not None:
                close()

    def restore(self, pieces: Iterator[bytes]) -> Iterator[Any]:
        """Take the state from a snapshot; yields at least once between two pieces.

        The present state stays until the end, when it is replaced at once. The last thing
        yielded is the `Header`.

        Raises:
            ValueError: the pieces are no snapshot of this state machine.
        """
        try:
            header = msgspec.json.decode(next(pieces), type=Header)
            if header.format != FORMAT:
                raise ValueError(f"snapshot format {header.format}; this program reads {FORMAT}")
            yield None
            sessions = Sessions(log_time_ms=header.log_time_ms)
            for _ in range(header.session_pieces):
                sessions.load(msgspec.json.decode(next(pieces), type=list[SavedSession]))
                yield None
        except (msgspec.DecodeError, StopIteration) as error:
            raise ValueError(f"not a snapshot: {error!r}") from None
        yield from self.machine.restore(pieces)
        self.sessions, self.applied_upto = sessions, header.slot
        yield header


def committed_sets(sets: Sequence[tuple[int, dict[str, str]]], slot: int, alpha: int) -> Sets:
    """Those of the known sets that the log up to ``slot`` has decided."""
    return tuple((from_slot, dict(members)) for from_slot, members in sets if from_slot <= slot + alpha)
