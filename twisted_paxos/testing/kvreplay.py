"""What must have come of a log: every command of it, applied by the slow reference store and plain sessions.

The clients' histories of a simulated run are compared with this, so that a mistake of the real store, of
sessions, or of a snapshot in between shows, whatever else it does not disturb.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command, decode_value
from twisted_paxos.statemachine.commands import Context, decode_payload
from twisted_paxos.statemachine.kvcommands import KvCommand, KvResult
from twisted_paxos.testing.kvmachine import KvSizes
from twisted_paxos.testing.kvreference import ReferenceStore

_COMMANDS = KvCommand.__args__  # type: ignore[attr-defined]


class Effect(NamedTuple):
    """A command had its effect.

    Attributes:
        client, sequence: which.
        payload: of it.
        result: the store's; None for what is no command of the store.
    """

    client: str
    sequence: int
    payload: bytes
    result: KvResult | None


class _Session:
    """One client's."""

    def __init__(self, used_ms: int) -> None:
        self.used_ms = used_ms
        self.floor = 1
        self.known: set[int] = set()


class Replay:
    """Applies a log.

    Args:
        chosen: the values by slot, from 1 on.
        sizes: the limits that the nodes ran with.

    Attributes:
        store: the reference store at the end.
        effects: by place in the log.
        slot_of: revision -> the slot that made it.
        expired: lease id -> the slot at which it ran out.
        compacted: (slot, the lowest revision that can be read from then on), ascending.
        slots: how many.
    """

    def __init__(self, chosen: Mapping[int, Any], sizes: KvSizes) -> None:
        self.store = ReferenceStore(sizes.limits)
        self.effects: dict[tuple[int, int], Effect] = {}
        self.slot_of: dict[int, int] = {1: 0}
        self.expired: dict[int, int] = {}
        self.compacted: list[tuple[int, int]] = []
        self.slots = 0
        self._idle_ms = sizes.session_idle_ms
        self._sessions: dict[str, _Session] = {}
        self._time_ms = 0
        for slot in sorted(chosen):
            assert slot == self.slots + 1, f"slot {self.slots + 1} is not known"
            self._apply(slot, decode_value(chosen[slot]))
            self.slots = slot

    def _apply(self, slot: int, value: Any) -> None:
        self._time_ms = max(self._time_ms, value.time_ms)
        for client, session in list(self._sessions.items()):
            if session.used_ms + self._idle_ms <= self._time_ms:
                del self._sessions[client]
        before = set(self.store.leases)
        self.store.advance(Context(slot, -1, self._time_ms))
        self.expired.update(dict.fromkeys(before - set(self.store.leases), slot))
        for index, command in enumerate(value.commands):
            if self._admits(command):
                self._do(command, Context(slot, index, self._time_ms))
        for revision in range(max(self.slot_of) + 1, self.store.revision + 1):
            self.slot_of[revision] = slot
        if not self.compacted or self.compacted[-1][1] != self.store.compact_revision:
            self.compacted.append((slot, self.store.compact_revision))

    def _admits(self, command: Command) -> bool:
        """Whether a command has an effect here: not a repetition, not of a session that is not known."""
        session = self._sessions.get(command.client)
        if command.sequence == 0:
            if session is None and len(self._sessions) < limits.SESSIONS_MAX:
                self._sessions[command.client] = _Session(self._time_ms)
            return False
        if session is None:
            return False
        session.used_ms = self._time_ms
        session.floor = max(session.floor, command.floor)
        session.known = {number for number in session.known if number >= session.floor}
        if command.sequence in session.known or command.sequence < session.floor:
            return False
        if len(session.known) >= limits.SESSION_RESULTS_MAX:
            return False
        session.known.add(command.sequence)
        return True

    def _do(self, command: Command, context: Context) -> None:
        payload = bytes(command.payload)
        decoded: Any = None
        try:
            decoded = decode_payload(command.payload)
        except msgspec.DecodeError:
            decoded = None
        result = self.store.apply(decoded, context) if isinstance(decoded, _COMMANDS) else None
        effect = Effect(command.client, command.sequence, payload, result)
        self.effects[context.slot, context.index] = effect

    def compact_revision_at(self, slot: int) -> int:
        """The lowest revision that could be read after ``slot``."""
        return max((revision for at, revision in self.compacted if at <= slot), default=-1)
