"""The commands of this node's own clients, from their arrival until they are applied here.

They go to whoever leads: to this node's own proposer, or by one hop (`Forward`) to
another's. What was sent may be lost with a datagram or with a leader, so it is sent again;
each keeps its (client, sequence), by which the state machine applies it once (rule 9).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import NOTHING, Effects, Send
from twisted_paxos.core.messages import Command, Forward, ForwardReply
from twisted_paxos.core.proposer import COMMAND_OVERHEAD_BYTES
from twisted_paxos.core.timing import RetryTimer
from twisted_paxos.errors import Overloaded, PaxosError, ValueTooLarge

APPLY_WAIT_S = 2.0
"""What a leader took and did not get applied for this long is sent again."""

REFUSED_WAIT_S = 0.025
"""What was refused (no leader there, or a full one) waits this long."""

Key = tuple[str, int]


def check_payload(payload: Raw) -> None:
    """Raises `ValueTooLarge` when a command's payload is over the limit."""
    if len(payload) > limits.PAYLOAD_MAX_BYTES:
        limit = limits.VALUE_MAX_BYTES
        raise ValueTooLarge(f"a value of {len(payload):,} bytes; the limit is {limit:,}")


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
        owners: (client, sequence) -> whoever wants the result; in the order of arrival.
        refused: how many commands were not taken.
    """

    def __init__(self, random: Callable[[], float], first_id: int = 0) -> None:
        self.owners: dict[Key, Any] = {}
        self.refused = 0
        self._commands: dict[Key, Command] = {}
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
            ValueTooLarge: a payload is over the limit; none of them was taken.
        """
        try:
            self._check_room(commands)
        except PaxosError:
            self.refused += len(commands)
            raise
        for command in commands:
            key = (command.client, command.sequence)
            if key not in self._commands:
                self._commands[key] = command
                self._bytes += len(command.payload) + COMMAND_OVERHEAD_BYTES
                self._unsent.append(command)
            self.owners[key] = owner

    def _check_room(self, commands: Sequence[Command]) -> None:
        size = 0
        for command in commands:
            check_payload(command.payload)
            size += len(command.payload) + COMMAND_OVERHEAD_BYTES
        if len(self._commands) + len(commands) > limits.QUEUE_MAX_COMMANDS:
            raise Overloaded(f"{len(self._commands):,} commands wait already; try again later")
        if self._bytes + size > limits.QUEUE_MAX_BYTES:
            raise Overloaded(f"{self._bytes:,} bytes of commands wait already; try again later")

    def applied(self, key: Key) -> Any:
        """This command was applied here; returns its owner, or None when nobody waits for it."""
        command = self._commands.pop(key, None)
        if command is None:
            return None
        self._bytes -= len(command.payload) + COMMAND_OVERHEAD_BYTES
        return self.owners.pop(key)

    def owners_of(self, commands: Sequence[Command]) -> list[Any]:
        """`applied` for all commands of a slot; an empty list, quickly, when nobody waits for anything."""
        if not self._commands:
            return []
        applied = self.applied
        return [applied((command.client, command.sequence)) for command in commands]

    def forget(self, owner: Any) -> None:
        """Stop trying for what ``owner`` submitted."""
        for key in [key for key, its in self.owners.items() if its is owner]:
            self.applied(key)

    def __len__(self) -> int:
        return len(self._commands)

    # -- towards the leader

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
        commands = [c for c in self._unsent if (c.client, c.sequence) in self._commands]
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
        self._unsent = list(self._commands.values())
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
        if not self._commands:
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
            waiting = self._waiting(sent.commands)
            if waiting:
                effects.sends.append(self._forward(waiting, now_s, sent.tries + 1))
        while self._taken and now_s >= self._taken[0][0]:
            self._unsent += self._waiting(self._taken.popleft()[1])
        return effects

    def _waiting(self, commands: Iterable[Command]) -> tuple[Command, ...]:
        return tuple(c for c in commands if (c.client, c.sequence) in self._commands)


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
