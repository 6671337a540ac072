"""The whole replicated state of a node: client sessions and the state machine behind them.

A slot is applied in one go: log time moves, then each command that its session has not seen is
applied by the state machine and its result remembered. A snapshot holds both.

    snapshot = header *session-piece *machine-piece     ; each piece as storage keeps it
    header   = JSON: {"format": 1, "slot", "log_time_ms", "sets": [...], "session_pieces"}

`sets` are the voting incarnations as of that slot (`core.quorum.Membership`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from twisted_paxos.core.messages import Command, Count, Slot, Uid, Value, Word
from twisted_paxos.statemachine.commands import Context, Result
from twisted_paxos.statemachine.machine import IStateMachine
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


class Applied(NamedTuple):
    """What one slot did.

    Attributes:
        results: of every command, in order.
        commands: those that were applied now, without repetitions and openings of sessions.
    """

    results: list[Result]
    commands: list[Command]


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

    @property
    def log_time_ms(self) -> int:
        """The highest time stamp of the log so far."""
        return self.sessions.log_time_ms

    @property
    def size_bytes(self) -> int:
        """How large the state machine says that it is, as ``size_bytes``; 0 for one that does not say."""
        size_bytes: int = getattr(self.machine, "size_bytes", 0)
        return size_bytes

    def apply(self, slot: int, value: Value) -> Applied:
        """Apply the value chosen in ``slot``, the next one."""
        assert slot == self.applied_upto + 1, "slots apply in order"
        sessions, machine = self.sessions, self.machine
        sessions.advance(value.time_ms)
        time_ms = sessions.log_time_ms
        machine.advance(Context(slot, -1, time_ms))
        results: list[Result] = []
        applied: list[Command] = []
        admit, remember, apply = sessions.admit, sessions.remember, machine.apply
        for index, command in enumerate(value.commands):
            result = admit(command, slot, index)
            if result is None:
                data = apply(command.payload, Context(slot, index, time_ms))
                result = remember(command, slot, index, data)
                applied.append(command)
            results.append(result)
        self.applied_upto = slot
        return Applied(results, applied)

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
