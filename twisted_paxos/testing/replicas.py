"""A cluster of pure replicas without Twisted: the core's own test bench.

Everything that happens follows from the seed. Messages are lost, doubled, delayed and reordered;
nodes crash at any point and come back with what was synced. `PureCluster` checks all the
time that a slot never has two chosen values and that a promise never goes back.
"""

from __future__ import annotations

import heapq
import random as random_module
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects, Send
from twisted_paxos.core.messages import Chosen, Command, Entry, Sender, SlotEntry, decode_value
from twisted_paxos.core.records import (
    Identity,
    Record,
    Recovered,
    SaveAccepted,
    SaveChosen,
    SaveIdentity,
    SavePromise,
)
from twisted_paxos.core.replica import Replica, ReplicaSettings


class Violation(AssertionError):
    """Something that must never happen."""


class DurableState:
    """What one node has on its simulated disk."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.promised = NO_BALLOT
        self.log: dict[int, tuple[bool, Entry]] = {}
        self.chosen_upto = 0

    def write(self, record: Record) -> None:
        """Make one record durable."""
        if isinstance(record, SaveIdentity):
            self.identity = record.identity
        elif isinstance(record, SavePromise):
            if record.ballot < self.promised:
                raise Violation(f"{self.identity.uid}: promise {record.ballot} after {self.promised}")
            self.promised = record.ballot
        elif isinstance(record, SaveAccepted):
            if record.ballot > self.promised:
                raise Violation(f"{self.identity.uid}: accepted {record.ballot} above {self.promised}")
            self.log[record.slot] = (False, Entry(record.ballot, record.value))
        else:
            assert isinstance(record, SaveChosen)
            self.log[record.slot] = (True, Entry(record.ballot, record.value))
            self.chosen_upto = max(self.chosen_upto, record.slot)

    def recover(self) -> Recovered:
        """As storage would."""
        boot = self.identity.boot + 1
        fields = {name: getattr(self.identity, name) for name in self.identity.__struct_fields__}
        self.identity = Identity(**{**fields, "boot": boot})
        entries = {slot: entry for slot, (_, entry) in self.log.items() if slot > self.chosen_upto}
        return Recovered(self.identity, self.promised, self.chosen_upto, 1, entries)


class PureNode:
    """One replica with its durable state and its outgoing effects."""

    def __init__(self, cluster: PureCluster, uid: str) -> None:
        self.cluster = cluster
        self.uid = uid
        incarnation = f"{uid}-{cluster.random.getrandbits(32):08x}"
        self.disk = DurableState(Identity(uid, incarnation, "test"))
        self.replica: Replica | None = None
        self.life = 0
        self.applied: list[SlotEntry] = []
        self.results: list[tuple[str, int]] = []

    # -- life and death

    def start(self) -> None:
        """Start, or start again with what was synced."""
        cluster = self.cluster
        self.life += 1
        self.writing: list[Send] | None = None
        self.records: list[Record] = []
        self.replies: list[Send] = []
        self.applied = [SlotEntry(s, *self.disk.log[s][1]) for s in range(1, self.disk.chosen_upto + 1)]
        settings = ReplicaSettings(self.uid, tuple(cluster.voters))
        boot_id = f"{cluster.random.getrandbits(32):08x}"
        self.replica = Replica(
            settings, self.disk.recover(), boot_id, cluster.random.random, cluster.now_s
        )
        self.tick()

    def crash(self) -> None:
        """Stop at once; a part of what was being written may have reached the disk."""
        if self.replica is None:
            return
        if self.writing is not None:
            for record in self.in_write[: self.cluster.random.randrange(len(self.in_write) + 1)]:
                self.disk.write(record)
        self.replica = None
        self.life += 1

    def tick(self) -> None:
        """Time passes; arms the next call."""
        assert self.replica is not None
        now_s = self.cluster.now_s
        self.replica.disk_waiting_since_s = None
        self.perform(self.replica.tick(now_s))
        if self.replica is not None:
            delay_s = max(0.001, self.replica.deadline_s(now_s) - now_s)
            self.cluster.later(min(delay_s, 0.05), self.if_alive(self.tick))

    def if_alive(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call``, unless this life is over by then."""
        life = self.life
        return lambda: call() if life == self.life and self.replica is not None else None

    # -- effects

    def receive(self, sender: Sender, message: Any) -> None:
        """One message arrives."""
        assert self.replica is not None
        self.perform(self.replica.receive(sender, message, self.cluster.now_s))

    def submit(self, commands: list[Command]) -> None:
        """Commands of a client of this node."""
        assert self.replica is not None
        self.replica.submit(commands, self)
        self.perform(self.replica.flush(self.cluster.now_s))

    def perform(self, effects: Effects) -> None:
        """Persist, then send, then apply."""
        if effects.records or effects.replies:
            self.records += effects.records
            if effects.replies and not self.records and self.writing is not None:
                self.writing += effects.replies
            else:
                self.replies += effects.replies
            if self.writing is None:
                self.write()
        for send in effects.sends:
            self.send(send)
        for entry in effects.chosen:
            self.apply(entry)
        for read in effects.reads:
            entries = [SlotEntry(s, *self.disk.log[s][1]) for s in self.stored(read.from_slot, read.upto_slot)]
            assert self.replica is not None
            answer = Chosen(read.request_id, tuple(entries[:20]), self.replica.log.chosen_upto, 1)
            self.send(Send((read.to,), answer))

    def stored(self, from_slot: int, upto_slot: int) -> list[int]:
        """The slots from there on that are on disk, without a gap."""
        slots = []
        for slot in range(from_slot, upto_slot + 1):
            if slot not in self.disk.log:
                break
            slots.append(slot)
        return slots

    def write(self) -> None:
        """Start a write of all that waits."""
        self.in_write, self.records = self.records, []
        self.writing, self.replies = self.replies, []
        self.noted = self.applied[-1].slot if self.applied else 0
        self.cluster.later(self.cluster.random.expovariate(1 / 0.002), self.if_alive(self.written))

    def written(self) -> None:
        """It is durable: its replies leave, and no others."""
        for record in self.in_write:
            self.disk.write(record)
        stored = self.stored_upto(self.noted)
        self.disk.chosen_upto = max(self.disk.chosen_upto, stored)
        released, self.writing = self.writing, None
        if self.records or self.replies:
            self.write()
        for send in released or ():
            self.send(send)

    def stored_upto(self, noted: int) -> int:
        """How far the noted chosen_upto is on disk."""
        slot = self.disk.chosen_upto
        while slot < noted and slot + 1 in self.disk.log:
            slot += 1
        return slot

    def send(self, send: Send) -> None:
        """Put a message on the network."""
        assert self.replica is not None
        me = self.replica.me
        everyone = [uid for uid in self.cluster.nodes]
        if send.to == EVERYONE:
            to = everyone
        elif send.to == OTHERS:
            to = [uid for uid in everyone if uid != self.uid]
        else:
            to = list(send.to)
        for uid in to:
            if uid == self.uid:
                self.cluster.later(0.0, self.if_alive(lambda: self.receive(me, send.message)))
            else:
                self.cluster.transmit(self.uid, uid, me, send.message)

    def apply(self, entry: SlotEntry) -> None:
        """A slot is chosen and applied."""
        assert self.replica is not None
        self.cluster.check_chosen(self.uid, entry)
        assert entry.slot == len(self.applied) + 1, "in order, without a gap"
        self.applied.append(entry)
        value = decode_value(entry.value)
        for command in value.commands:
            key = (command.client, command.sequence)
            if self.replica.requests.applied(key) is not None:
                self.cluster.acknowledged.add(key)
        self.replica.applied(value.commands, value.time_ms)


class PureCluster:
    """Replicas, a network between them, and the checks.

    Args:
        seed: everything follows from it.
        size: number of voters.
        loss: share of messages lost.
    """

    def __init__(self, seed: int, size: int = 3, loss: float = 0.0) -> None:
        self.random = random_module.Random(seed)
        self.now_s = 0.0
        self.loss = loss
        self.delay_max_s = 0.005
        self.cut: set[tuple[str, str]] = set()
        self.chosen: dict[int, Raw] = {}
        self.chosen_ballots: dict[int, ProposalID] = {}
        self.acknowledged: set[tuple[str, int]] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.voters = [chr(ord("A") + n) for n in range(size)]
        self.nodes = {uid: PureNode(self, uid) for uid in self.voters}
        self.messages = 0

    def start(self) -> None:
        """Start every node."""
        for node in self.nodes.values():
            node.start()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have ``call`` called."""
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._count, call))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; ends early, with True, when ``until`` holds."""
        end_s = self.now_s + seconds
        while self._events and self._events[0][0] <= end_s:
            self.now_s, _, call = heapq.heappop(self._events)
            call()
            if until is not None and until():
                return True
        self.now_s = end_s
        return False

    def transmit(self, source: str, to: str, sender: Sender, message: Any) -> None:
        """One message on its way: lost, doubled, late."""
        self.messages += 1
        copies = 0 if self.random.random() < self.loss else 1
        if self.loss and self.random.random() < 0.05:
            copies += 1
        for _ in range(copies):
            late = self.loss > 0 and self.random.random() < 0.02
            delay_s = self.random.uniform(0.0001, 1.0 if late else self.delay_max_s)
            self.later(delay_s, lambda: self._arrive(source, to, sender, message))

    def _arrive(self, source: str, to: str, sender: Sender, message: Any) -> None:
        node = self.nodes[to]
        if node.replica is not None and (source, to) not in self.cut:
            node.receive(sender, message)

    def check_chosen(self, uid: str, entry: SlotEntry) -> None:
        """One value per slot, for ever."""
        known = self.chosen.setdefault(entry.slot, entry.value)
        if known != entry.value:
            raise Violation(f"{uid}: slot {entry.slot} has {bytes(entry.value)!r} and {bytes(known)!r}")

    def leaders(self) -> list[str]:
        """Who leads at present."""
        return [u for u, n in self.nodes.items() if n.replica is not None and n.replica.proposer.leading]
