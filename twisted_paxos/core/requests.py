"""The commands of this node's own clients, from their arrival until they are applied here.

They go to whoever leads: to this node's own proposer, or by one hop (`Forward`) to
another's. What was sent may be lost with a datagram or with a leader, so it is sent again;
each keeps its (client, sequence), by which the state machine applies it once (rule 9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import NOTHING, Effects, Send
from twisted_paxos.core.messages import Command, Forward, ForwardReply, OfRun, sequences_of
from twisted_paxos.core.proposer import COMMAND_OVERHEAD_BYTES
from twisted_paxos.core.runs import client_runs
from twisted_paxos.core.timing import RetryTimer
from twisted_paxos.errors import Overloaded, PaxosError, ValueTooLarge

APPLY_WAIT_S = 2.0
"""What a leader took and did not get applied for this long is sent again."""

REFUSED_WAIT_S = 0.025
"""What was refused (no leader there, or a full one) waits this long."""

Key = tuple[str, int]


_FLAT_BYTES = 400
"""What is smaller has no 200 levels: each takes two bytes at least."""

_SPARE = b"[" * limits.PAYLOAD_SPARE_LEVELS, b"]" * limits.PAYLOAD_SPARE_LEVELS
_skip = msgspec.json.Decoder(Raw).decode


def check_payload(payload: Raw) -> None:
    """Raises `ValueTooLarge` when a command's payload is over the limit, or nested too deeply."""
    if len(payload) <= _FLAT_BYTES:
        return
    if len(payload) > limits.PAYLOAD_MAX_BYTES:
        limit = limits.VALUE_MAX_BYTES
        raise ValueTooLarge(f"a value of {len(payload):,} bytes; the limit is {limit:,}")
    data = bytes(payload)
    if data.find(b"[") < 0 and data.find(b"{", 1) < 0:
        return  # The usual case: looking for the first is ten times as fast as counting.
    if data.count(b"[") + data.count(b"{") <= _FLAT_BYTES // 2:
        return
    try:
        _skip(data.join(_SPARE))
    except RecursionError:
        raise ValueTooLarge("a value that is nested too deeply") from None


_Waiting: TypeAlias = tuple[Command, Any]
"""A command, and whoever wants its result."""

_NOTHING = (None, None)


class _Sent(NamedTuple):
    """One Forward that was not answered yet."""

    commands: tuple[Command, ...]
    sent_s: float
    retry_at_s: float
    tries: int


class Requests:
    """Commands waiting to be applied.

    Args:
        random: gives numbers in [0, 1), for jitter.
        first_id: the numbers of Forwards begin above it.

    Attributes:
        refused: how many commands were not taken.
    """

    def __init__(self, random: Callable[[], float], first_id: int = 0) -> None:
        self.refused = 0
        self._waiting: dict[str, dict[int, _Waiting]] = {}  # by client and sequence, in the order of arrival
        self._count = 0
        self._bytes = 0
        self._unsent: list[Command] = []
        self._not_before_s = 0.0
        self._leader = NO_BALLOT
        self._timer = RetryTimer(random)
        self._forward_id = first_id
        self._forwards: dict[int, _Sent] = {}
        self._taken: deque[tuple[float, tuple[Command, ...]]] = deque()

    # -- in and out

    def submit(self, commands: Sequence[Command], owner: Any) -> None:
        """Take ``commands``; a repetition only changes the owner.

        Raises:
            Overloaded: too much waits; none of them was taken.
            ValueTooLarge: a payload is over the limit, or nested too deeply; none of them was taken.
        """
        try:
            self._check_room(commands)
        except PaxosError:
            self.refused += len(commands)
            raise
        for client, start, end in client_runs(commands):
            waiting = self._waiting.get(client)
            if waiting is None:
                waiting = self._waiting[client] = {}
            if end - start == 1:
                self._take_one(waiting, commands[start], owner)
            else:
                self._take(waiting, commands[start:end], owner)

    def _take_one(self, waiting: dict[int, _Waiting], command: Command, owner: Any) -> None:
        known = waiting.get(command.sequence)
        waiting[command.sequence] = (known[0] if known else command, owner)
        if known is None:
            self._count += 1
            self._bytes += len(command.payload) + COMMAND_OVERHEAD_BYTES
            self._unsent.append(command)

    def _take(self, waiting: dict[int, _Waiting], commands: Sequence[Command], owner: Any) -> None:
        """Take commands of one client."""
        sequences = [command.sequence for command in commands]
        if len(set(sequences)) != len(sequences) or not waiting.keys().isdisjoint(sequences):
            for command in commands:
                self._take_one(waiting, command, owner)
            return
        waiting.update(zip(sequences, zip(commands, repeat(owner)), strict=False))
        self._count += len(commands)
        self._bytes += _size_bytes(commands)
        self._unsent += commands

    def _check_room(self, commands: Sequence[Command]) -> None:
        size_bytes = _size_bytes(commands)
        if size_bytes > _FLAT_BYTES:
            for command in commands:
                if len(command.payload) > _FLAT_BYTES:
                    check_payload(command.payload)
        if self._count + len(commands) > limits.QUEUE_MAX_COMMANDS:
            raise Overloaded(f"{self._count:,} commands wait already; try again later")
        if self._bytes + size_bytes > limits.QUEUE_MAX_BYTES:
            raise Overloaded(f"{self._bytes:,} bytes of commands wait already; try again later")

    def applied(self, key: Key) -> Any:
        """This command was applied here; returns its owner, or None when nobody waits for it."""
        client, sequence = key
        waiting = self._waiting.get(client)
        found = waiting.pop(sequence, None) if waiting else None
        if found is None:
            return None
        self._count -= 1
        self._bytes -= len(found[0].payload) + COMMAND_OVERHEAD_BYTES
        if not waiting:
            del self._waiting[client]
        return found[1]

    def _pop(self, client: str, sequences: Sequence[int]) -> list[Any]:
        """Let go of commands of one client; the owner of each, None for those that are not here."""
        waiting = self._waiting.get(client)
        if waiting is None:
            return [None] * len(sequences)
        pop = waiting.pop
        gone = [pop(sequence, _NOTHING) for sequence in sequences]
        commands = [command for command, _ in gone if command is not None]
        self._count -= len(commands)
        self._bytes -= _size_bytes(commands)
        if not waiting:
            del self._waiting[client]
        return [owner for _, owner in gone]

    def owners_of(self, runs: Sequence[OfRun]) -> list[Any]:
        """`applied` for all commands of a slot; an empty list, quickly, when nobody waits for anything."""
        if not self._count:
            return []
        owners: list[Any] = []
        for run in runs:
            if len(run.payloads) == 1:
                owners.append(self.applied((run.client, run.sequence)))
            else:
                owners += self._pop(run.client, sequences_of(run))
        return owners

    def forget_taken(self) -> None:
        """Let go of what a leader took and is applied here."""
        while self._taken and not self._waits(self._taken[0][1]):
            self._taken.popleft()

    def forget(self, owner: Any) -> None:
        """Stop trying for what ``owner`` submitted."""
        for client, waiting in list(self._waiting.items()):
            self._pop(client, [sequence for sequence, (_, its) in waiting.items() if its is owner])

    def __len__(self) -> int:
        return self._count

    # -- towards the leader

    @property
    def has_unsent(self) -> bool:
        """Whether something has not gone to a leader yet."""
        return bool(self._unsent)

    def pump(
        self, leader: ProposalID, uid: str, enqueue: Callable[[Sequence[Command]], bool], now_s: float
    ) -> Effects:
        """Pass on what waits.

        Args:
            leader: the ballot of the leader to turn to; NO_BALLOT when there is none.
            uid: this node's id.
            enqueue: takes commands when this node leads.
        """
        if leader != self._leader:
            self._leader = leader
            self._send_again_all()
        if not self._unsent or leader == NO_BALLOT or now_s < self._not_before_s:
            return NOTHING
        effects = Effects()
        commands = self._still_waiting(self._unsent)
        self._unsent = []
        if leader.uid == uid:
            if enqueue(commands):
                self._taken.append((now_s + APPLY_WAIT_S, tuple(commands)))
            else:
                self._unsent = commands
                self._not_before_s = now_s + REFUSED_WAIT_S
        else:
            for batch in _batches(commands):
                effects.sends.append(self._forward(batch, now_s, 1))
        return effects

    def _send_again_all(self) -> None:
        self._forwards.clear()
        self._taken.clear()
        self._unsent = [command for waiting in self._waiting.values() for command, _ in waiting.values()]
        self._not_before_s = 0.0

    def _forward(self, commands: tuple[Command, ...], now_s: float, tries: int) -> Send:
        self._forward_id += 1
        size_bytes = sum(len(command.payload) for command in commands)
        retry_at_s = now_s + self._timer.wait_s(tries, size_bytes)
        self._forwards[self._forward_id] = _Sent(commands, now_s, retry_at_s, tries)
        return Send((self._leader.uid,), Forward(self._forward_id, commands))

    def on_reply(self, uid: str, message: ForwardReply, now_s: float) -> None:
        """The leader took a Forward, or it did not."""
        sent = self._forwards.get(message.forward_id)
        if sent is None or uid != self._leader.uid:
            return
        del self._forwards[message.forward_id]
        if sent.tries == 1:
            self._timer.sample(now_s - sent.sent_s)
        if message.taken:
            self._taken.append((now_s + APPLY_WAIT_S, sent.commands))
        else:
            self._unsent = [*sent.commands, *self._unsent]
            self._not_before_s = now_s + REFUSED_WAIT_S

    # -- time

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        if not self._count:
            return None
        deadline_s = float("inf")
        for sent in self._forwards.values():
            deadline_s = min(deadline_s, sent.retry_at_s)
        if self._taken:
            deadline_s = min(deadline_s, self._taken[0][0])
        if self._unsent and self._not_before_s:
            deadline_s = min(deadline_s, self._not_before_s)
        return deadline_s

    def tick(self, now_s: float) -> Effects:
        """Send again what was not answered, or was taken and not applied for long."""
        effects = Effects()
        for forward_id in [n for n, sent in self._forwards.items() if now_s >= sent.retry_at_s]:
            sent = self._forwards.pop(forward_id)
            waiting = tuple(self._still_waiting(sent.commands))
            if waiting:
                effects.sends.append(self._forward(waiting, now_s, sent.tries + 1))
        while self._taken and now_s >= self._taken[0][0]:
            self._unsent += self._still_waiting(self._taken.popleft()[1])
        return effects

    def _still_waiting(self, commands: Sequence[Command]) -> list[Command]:
        """Those of ``commands`` that are not applied here, nor forgotten."""
        still: list[Command] = []
        for client, start, end in client_runs(commands):
            waiting = self._waiting.get(client, ())
            still += [command for command in commands[start:end] if command.sequence in waiting]
        return still

    def _waits(self, commands: Sequence[Command]) -> bool:
        """Whether any of ``commands`` is still to be applied here."""
        for command in commands:  # noqa: SIM110 - a generator costs more than the one look it usually takes
            if command.sequence in self._waiting.get(command.client, ()):
                return True
        return False


def _size_bytes(commands: Sequence[Command]) -> int:
    if len(commands) == 1:
        return len(commands[0].payload) + COMMAND_OVERHEAD_BYTES
    return sum([len(command.payload) for command in commands]) + COMMAND_OVERHEAD_BYTES * len(commands)


def _batches(commands: Sequence[Command]) -> list[tuple[Command, ...]]:
    """Cut into pieces that fit a datagram, where a single command does not need more."""
    batches: list[tuple[Command, ...]] = []
    batch: list[Command] = []
    size = 0
    for command in commands:
        cost = len(command.payload) + COMMAND_OVERHEAD_BYTES
        if batch and size + cost > limits.BATCH_TARGET_BYTES:
            batches.append(tuple(batch))
            batch, size = [], 0
        batch.append(command)
        size += cost
    if batch:
        batches.append(tuple(batch))
    return batches
