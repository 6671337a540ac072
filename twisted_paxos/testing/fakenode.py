"""`FakeNode`: an `INode` without consensus, for tests of what talks to a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Raw
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Command, SlotEntry, encode_value
from twisted_paxos.errors import ValueTooLarge
from twisted_paxos.figures import NodeFigures
from twisted_paxos.interfaces import INode, IResultSink
from twisted_paxos.statemachine.commands import OPEN_SESSION, Context, NodeStatus, Result
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.watches import WatchHub


@implementer(INode)
class FakeNode:
    """Chooses what is submitted at once, in one slot per call; sessions, repeats and the store are a node's.

    Several fakes may share ``entries``, ``seen`` and ``machine``, as nodes of one cluster share a log.

    Attributes:
        entries: the log, from slot 1.
        seen: per session the results of what was applied, by sequence number.
        refuse: what `submit` raises next, when not None; it then takes nothing.
        leader_works: what its status says.
        hold: when set, `submit` keeps the commands in ``held`` until `release`.
        forgotten: the sinks that were taken back.
        machine: the key-value store.
        queries: what was asked.
        query_error: what `query` raises next, when not None.
        hold_queries: when set, queries wait in ``held_queries`` until `release_queries`.
        floors: per session the sequence number below which nothing is applied any more.
    """

    def __init__(self, uid: str = "A") -> None:
        self.uid = uid
        self.entries: list[SlotEntry] = []
        self.seen: dict[str, dict[int, Result]] = {}
        self.refuse: Exception | None = None
        self.hold = False
        self.leader_works = True
        self.held: list[tuple[Sequence[Command], IResultSink]] = []
        self.submitted: list[Command] = []
        self.forgotten: list[IResultSink] = []
        self.reads: list[int] = []
        self.listeners: list[Callable[[int], None]] = []
        self.machine = KeyValueStore()
        self.queries: list[Raw] = []
        self.query_error: Exception | None = None
        self.hold_queries = False
        self.held_queries: list[tuple[Raw, Deferred[Raw]]] = []
        self.floors: dict[str, int] = {}

    def share(self, other: FakeNode) -> FakeNode:
        """Have this node show and extend the same log as ``other``; returns this node."""
        self.entries, self.seen, self.machine = other.entries, other.seen, other.machine
        self.floors = other.floors
        return self

    @property
    def watches(self) -> WatchHub:
        """See `INode.watches`."""
        return self.machine.watches

    def advance(self, seconds: float) -> None:
        """Move log time on, as a leader's slots do: leases run out."""
        time_ms = self.machine.time_ms + round(1000 * seconds)
        self.machine.advance(Context(len(self.entries), -1, time_ms))

    def query(self, payload: Raw, serializable: bool = False) -> Deferred[Raw]:
        """See `INode.query`; raises ``query_error`` when that is set."""
        if self.query_error is not None:
            raise self.query_error
        self.queries.append(payload)
        if serializable or not self.hold_queries:
            return succeed(self.machine.query(payload))
        held: Deferred[Raw] = Deferred()
        self.held_queries.append((payload, held))
        return held

    def release_queries(self) -> None:
        """Answer what was held, and hold no more."""
        self.hold_queries = False
        held, self.held_queries = self.held_queries, []
        for payload, asking in held:
            if not asking.called:
                asking.callback(self.machine.query(payload))

    def submit(self, commands: Sequence[Command], sink: IResultSink) -> None:
        """See `INode.submit`; raises ``refuse`` when that is set."""
        if self.refuse is not None:
            raise self.refuse
        if any(len(command.payload) > limits.PAYLOAD_MAX_BYTES for command in commands):
            raise ValueTooLarge("a command is too large")
        self.submitted.extend(commands)
        if self.hold:
            self.held.append((commands, sink))
        else:
            self._apply(commands, sink)

    def release(self) -> None:
        """Choose and apply what was held, and hold no more."""
        self.hold = False
        held, self.held = self.held, []
        for commands, sink in held:
            self._apply(commands, sink)

    def _apply(self, commands: Sequence[Command], sink: IResultSink) -> None:
        slot = len(self.entries) + 1
        self.entries.append(SlotEntry(slot, ProposalID(1, self.uid), encode_value(slot, commands)))
        results = [self._result(command, slot, index) for index, command in enumerate(commands)]
        sink.applied(results)
        for listener in list(self.listeners):
            listener(slot)

    def _result(self, command: Command, slot: int, index: int) -> Result:
        if bytes(command.payload) == bytes(OPEN_SESSION):
            self.seen.setdefault(command.client, {})
            return Result(command.client, command.sequence, slot, index)
        applied = self.seen.get(command.client)
        if applied is None:
            return Result(command.client, command.sequence, 0, 0, "session_expired")
        floor = self.floors[command.client] = max(command.floor, self.floors.get(command.client, 0))
        if command.sequence not in applied:
            if command.sequence < floor:
                return Result(command.client, command.sequence, 0, 0, "already_answered")
            data = self.machine.apply(command.payload, Context(slot, index, self.machine.time_ms))
            applied[command.sequence] = Result(command.client, command.sequence, slot, index, "", data)
        return applied[command.sequence]

    def forget(self, sink: IResultSink) -> None:
        """See `INode.forget`."""
        self.forgotten.append(sink)
        self.held = [(commands, other) for commands, other in self.held if other is not sink]

    def figures(self) -> NodeFigures:
        """See `INode.figures`."""
        return NodeFigures(status=self.status(), voters=("A", "B", "C"), store=self.machine.status())

    def status(self) -> NodeStatus:
        """See `INode.status`."""
        ballot = ProposalID(1, self.uid)
        slots = len(self.entries)
        return NodeStatus(
            self.uid,
            "leader",
            self.uid,
            ballot,
            ballot,
            chosen_upto=slots,
            applied=slots,
            storage="memory:",
            leader_works=self.leader_works,
        )

    def read_log(self, from_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """See `INode.read_log`."""
        self.reads.append(from_slot)
        entries: list[SlotEntry] = []
        size_bytes = 0
        for entry in self.entries[from_slot - 1 :]:
            size_bytes += len(entry.value)
            if entries and size_bytes > limit_bytes:
                break
            entries.append(entry)
        return succeed(entries)

    def on_chosen(self, listener: Callable[[int], None]) -> Callable[[], None]:
        """See `INode.on_chosen`."""
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)
