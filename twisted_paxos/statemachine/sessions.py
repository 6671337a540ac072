"""Client sessions: a command that is tried again applies once and gets its first result.

Part of the replicated state (Ongaro's thesis, section 6.3): a session is registered through
the log, remembers the results that its client may still ask for, and expires by log time, so
every node forgets the same sessions at the same slot. An unknown session is an error and is
never created silently: its earlier commands could have been applied already.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat, starmap
from operator import itemgetter

from msgspec import Raw, Struct

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Count, Numbered, Slot, Word
from twisted_paxos.statemachine.commands import Result

SESSION_IDLE_MS = 3_600_000
"""A session that sent nothing for this much log time is forgotten."""

EXPIRED = "session_expired"
REPEATED = "already_answered"
FULL = "session_full"
TOO_MANY = "too_many_sessions"


class SavedSession(Struct, frozen=True, array_like=True):
    """A session as a snapshot holds it; results are (sequence, slot, index, data)."""

    client: Word
    floor: Count
    used_ms: Count
    results: tuple[tuple[Count, Slot, Count, Raw], ...]


class _Session:
    """One client's: everything below ``floor`` was answered, ``results`` holds what was applied above.

    A result is where it was applied (slot and index), and where its data is (some data, and the place in
    them): as few are ever asked for again, what a machine can make when asked is not made before.
    """

    __slots__ = ("floor", "results", "used_ms")

    def __init__(self, used_ms: int) -> None:
        self.floor = 1
        self.results: dict[int, tuple[int, int, Sequence[Raw], int]] = {}
        self.used_ms = used_ms


class Sessions:
    """Every open session, in the order of last use.

    Attributes:
        log_time_ms: the highest time stamp of the log so far.
    """

    def __init__(self, idle_ms: int = SESSION_IDLE_MS, log_time_ms: int = 0) -> None:
        self.log_time_ms = log_time_ms
        self._idle_ms = idle_ms
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._frozen: dict[str, SavedSession] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def advance(self, time_ms: int) -> None:
        """Move log time on, never back, and forget the sessions that it leaves behind."""
        if time_ms > self.log_time_ms:
            self.log_time_ms = time_ms
        used_after_ms = self.log_time_ms - self._idle_ms
        left: list[tuple[str, _Session]] = []
        for client, session in self._sessions.items():
            if session.used_ms > used_after_ms:
                break
            left.append((client, session))
        for client, session in left:
            self._freeze(client, session)
            del self._sessions[client]

    def admit(self, command: Numbered, slot: int, index: int) -> Result | None:
        """What becomes of ``command``.

        Returns:
            its result, for a repetition, for an error, and for the opening of a session; None
            when it is to be applied now: `remember` then takes its result.
        """
        client, sequence = command.client, command.sequence
        session = self._sessions.get(client)
        if sequence == 0:
            return self._open(client, session, slot, index)
        if session is None:
            return Result(client, sequence, 0, 0, EXPIRED)
        if self._frozen is not None:
            self._freeze(client, session)
        session.used_ms = self.log_time_ms
        self._sessions.move_to_end(client)
        if command.floor > session.floor:
            self._raise_floor(session, command.floor)
        first = session.results.get(sequence)
        if first is not None:
            return Result(client, sequence, first[0], first[1], "", first[2][first[3]])
        if sequence < session.floor:
            return Result(client, sequence, 0, 0, REPEATED)
        if len(session.results) >= limits.SESSION_RESULTS_MAX:
            return Result(client, sequence, 0, 0, FULL)
        return None

    def remember(self, command: Numbered, slot: int, index: int, data: Raw) -> None:
        """A command that was admitted has been applied, and this is its result."""
        self._sessions[command.client].results[command.sequence] = (slot, index, (data,), 0)

    def admit_run(self, client: str, floor: int, sequences: range) -> bool:
        """Whether all of these commands of one client are to be applied now: the usual case, in few steps.

        Args:
            client: whose they are.
            floor: of each of them.
            sequences: their numbers, one after another.

        Returns:
            True as if `admit` had been called for each of them and had given None each time; False: call it.
        """
        session = self._sessions.get(client)
        if session is None:
            return False
        results = session.results
        if sequences.start < max(floor, session.floor, 1) or not results.keys().isdisjoint(sequences):
            return False
        # Counted before the floor makes room: where that matters, `admit` looks at each.
        if len(results) + len(sequences) > limits.SESSION_RESULTS_MAX:
            return False
        if self._frozen is not None:
            self._freeze(client, session)
        session.used_ms = self.log_time_ms
        self._sessions.move_to_end(client)
        if floor > session.floor:
            self._raise_floor(session, floor)
        return True

    def remember_run(self, client: str, sequences: range, slot: int, index: int, data: Sequence[Raw]) -> None:
        """The results of commands that `admit_run` admitted, and that were applied from ``index`` on.

        A list is taken apart, so that nothing is kept for longer than it has to be; see `ITypedMachine`.
        """
        count = len(data)
        whole = not isinstance(data, list)
        sources: Iterable[Sequence[Raw]] = repeat(data) if whole else zip(data, strict=False)
        places: Iterable[int] = range(count) if whole else repeat(0)
        kept = zip(repeat(slot), range(index, index + count), sources, places, strict=False)
        self._sessions[client].results.update(zip(sequences, kept, strict=True))

    def _open(self, client: str, session: _Session | None, slot: int, index: int) -> Result:
        if session is None:
            if len(self._sessions) >= limits.SESSIONS_MAX:
                return Result(client, 0, 0, 0, TOO_MANY)
            self._sessions[client] = _Session(self.log_time_ms)
        return Result(client, 0, slot, index)

    @staticmethod
    def _raise_floor(session: _Session, floor: int) -> None:
        """Forget what the client has; results arrive nearly in order, so this stays short."""
        results = session.results
        if floor - session.floor > 2 * len(results):
            session.results = {number: result for number, result in results.items() if number >= floor}
        else:
            deque(map(results.pop, range(session.floor, floor), repeat(None)), maxlen=0)
        session.floor = floor

    # -- snapshots

    def snapshot(self, group_size: int) -> tuple[int, Iterator[list[SavedSession]]]:
        """How many groups there are, and the groups; frozen: what changes meanwhile is kept aside."""
        clients = list(self._sessions)
        self._frozen = {}
        groups = [clients[start : start + group_size] for start in range(0, len(clients), group_size)]
        return len(groups), self._groups(groups)

    def saved(self) -> Iterator[SavedSession]:
        """Each session as it is now, in the order of last use."""
        return starmap(_saved, self._sessions.items())

    def _groups(self, groups: list[list[str]]) -> Iterator[list[SavedSession]]:
        for group in groups:
            frozen = self._frozen
            assert frozen is not None, "the snapshot was ended"
            yield [frozen.pop(c) if c in frozen else _saved(c, self._sessions[c]) for c in group]
            # What was given is done with: it may change now without being kept aside.

    def _freeze(self, client: str, session: _Session) -> None:
        if self._frozen is not None and client not in self._frozen:
            self._frozen[client] = _saved(client, session)

    def end_snapshot(self) -> None:
        """Keep nothing aside any more."""
        self._frozen = None

    def load(self, saved: Sequence[SavedSession]) -> None:
        """Add sessions of a snapshot, in its order."""
        for entry in saved:
            session = self._sessions[entry.client] = _Session(entry.used_ms)
            session.floor = entry.floor
            session.results = {
                number: (slot, index, (data,), 0) for number, slot, index, data in entry.results
            }


def _saved(client: str, session: _Session) -> SavedSession:
    results = tuple(
        (number, slot, index, data[place])
        for number, (slot, index, data, place) in sorted(session.results.items(), key=_number)
    )
    return SavedSession(client, session.floor, session.used_ms, results)


_number = itemgetter(0)
