"""A cluster of pure replicas without Twisted: the core's own test bench.

Everything that happens follows from the seed. Messages are lost, doubled, delayed, reordered and,
long after, replayed; disks stall; nodes pause, or crash at any point and come back with what was
synced. A `witness.Witness` checks all the time what must hold, and `DurableState` that a promise
never goes back.
"""

from __future__ import annotations

import heapq
import random as random_module
from collections.abc import Callable
from typing import Any

from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects, Readable, ReadChosen, Send
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
from twisted_paxos.testing.witness import Violation, Witness

__all__ = ["DurableState", "PureCluster", "PureNode", "Violation"]

FETCHED_SLOTS = 20
"""How many slots an answer to a Fetch holds."""

REPLAYED_MAX = 3_000
"""How many old messages are kept, to arrive again."""


class DurableState:
    """What one node has on its simulated disk."""

    def __init__(self, identity: Identity, witness: Witness | None = None) -> None:
        self.identity = identity
        self.witness = witness
        self.promised = NO_BALLOT
        self.log: dict[int, tuple[bool, Entry]] = {}
        self.chosen_upto = 0

    def write(self, record: Record) -> None:
        """Make one record durable."""
        if isinstance(record, SaveIdentity):
            self.identity = record.identity
            if self.witness is not None and record.identity.formed:
                self.witness.formed(record.identity.members)
        elif isinstance(record, SavePromise):
            if record.ballot < self.promised:
                raise Violation(f"{self.identity.uid}: promise {record.ballot} after {self.promised}")
            self.promised = record.ballot
        elif isinstance(record, SaveAccepted):
            if record.ballot != self.promised:
                raise Violation(f"{self.identity.uid}: accepted {record.ballot}, promised {self.promised}")
            self.log[record.slot] = (False, Entry(record.ballot, record.value))
            if self.witness is not None:
                life = (self.identity.uid, self.identity.incarnation)
                self.witness.voted(life, record.slot, record.ballot, record.value)
        else:
            # How far slots are chosen is noted apart, and later: as with the real providers.
            assert isinstance(record, SaveChosen)
            self.log[record.slot] = (True, Entry(record.ballot, record.value))

    def settle(self) -> None:
        """A slot learnt as chosen was written after all below it: those are chosen, and stored, too."""
        learnt = (slot for slot, (chosen, _) in self.log.items() if chosen)
        self.chosen_upto = max(self.chosen_upto, max(learnt, default=0))

    def recover(self, word: str) -> Recovered:
        """As storage would."""
        self.identity = self.identity.started(word)
        entries = {slot: entry for slot, (_, entry) in self.log.items() if slot > self.chosen_upto}
        return Recovered(self.identity, self.promised, self.chosen_upto, entries=entries)


class PureNode:
    """One replica with its durable state and its outgoing effects."""

    def __init__(self, cluster: PureCluster, uid: str) -> None:
        self.cluster = cluster
        self.uid = uid
        incarnation = f"{uid}-{cluster.random.getrandbits(32):08x}"
        self.disk = DurableState(Identity(uid, incarnation, "test"), cluster.witness)
        self.replica: Replica | None = None
        self.stopped = ""
        self.life = 0
        self.resume_s = 0.0
        self.applied: list[SlotEntry] = []
        self.results: list[tuple[str, int]] = []

    # -- life and death

    def wipe(self) -> None:
        """Everything on the disk is gone; the node is down."""
        assert self.replica is None
        incarnation = f"{self.uid}-{self.cluster.random.getrandbits(32):08x}"
        self.disk = DurableState(Identity(self.uid, incarnation, "test"), self.cluster.witness)

    def start(self) -> None:
        """Start, or start again with what was synced."""
        cluster = self.cluster
        self.life += 1
        self.resume_s = 0.0
        self.writing: list[Send] | None = None
        self.writing_since_s: float | None = None
        self.records: list[Record] = []
        self.replies: list[Send] = []
        self.reading: dict[int, int] = {}
        self.disk.settle()
        self.stored_upto = self.disk.chosen_upto
        cluster.witness.recovered(self.uid, self.disk.chosen_upto, self.disk.log)
        self.applied = [SlotEntry(s, *self.disk.log[s][1]) for s in range(1, self.disk.chosen_upto + 1)]
        settings = ReplicaSettings(self.uid, tuple(cluster.voters))
        recovered = self.disk.recover(f"{cluster.random.getrandbits(32):08x}")
        self.replica = Replica(settings, recovered, cluster.random.random, cluster.now_s)
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

    def pause(self, seconds: float) -> None:
        """As SIGSTOP, and SIGCONT after ``seconds``: what comes in between waits."""
        self.resume_s = self.cluster.now_s + seconds

    def tick(self) -> None:
        """Time passes; arms the next call."""
        assert self.replica is not None
        now_s = self.cluster.now_s
        self.replica.disk_waiting_since_s = self.writing_since_s
        self.perform(self.replica.tick(now_s))
        if self.replica is not None:
            delay_s = max(0.001, self.replica.deadline_s(now_s) - now_s)
            self.cluster.later(min(delay_s, 0.05), self.if_alive(self.tick))

    def if_alive(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call``, unless this life is over by then."""
        life = self.life

        def guarded() -> None:
            if life != self.life or self.replica is None:
                return
            if self.cluster.now_s < self.resume_s:
                self.cluster.later(self.resume_s - self.cluster.now_s, guarded)
            else:
                call()

        return guarded

    # -- effects

    def receive(self, sender: Sender, message: Any) -> None:
        """One message arrives."""
        assert self.replica is not None
        if self.disk.identity.boots.get(sender.incarnation) == (sender.boot, sender.boot_id):
            # Otherwise it is not listened to: that start of the sender is not recorded here yet.
            self.cluster.witness.delivered(self.replica.me, message)
        self.perform(self.replica.receive(sender, message, self.cluster.now_s))
        if self.replica is not None:
            self.perform(self.replica.flush(self.cluster.now_s))

    def submit(self, commands: list[Command]) -> None:
        """Commands of a client of this node."""
        assert self.replica is not None
        self.replica.submit(commands, self)
        self.perform(self.replica.flush(self.cluster.now_s))

    def read(self) -> None:
        """A linearizable read: it must see all that was applied anywhere by now."""
        assert self.replica is not None
        read_id, effects = self.replica.read(self.cluster.now_s)
        self.reading[read_id] = self.cluster.witness.applied_upto
        self.perform(effects)

    def confirmed(self, readable: Readable) -> None:
        """A read of this node may be answered, once that slot is applied."""
        assert self.replica is not None
        at_least = self.reading.pop(readable.read_id, 0)
        self.replica.reads.forget(readable.read_id)
        if readable.slot < at_least:
            raise Violation(f"{self.uid}: a read at slot {readable.slot} misses slot {at_least}")
        self.cluster.reads += 1

    def perform(self, effects: Effects) -> None:
        """Persist, then send, then apply."""
        if effects.lost:
            self.stopped = effects.lost
            self.crash()
            return
        self.records += effects.records
        if effects.records or effects.replies:
            self.hold(effects.replies)
        for send in effects.sends:
            self.send(send)
        for entry in effects.chosen:
            self.apply(entry)
        for read in effects.reads:
            self.answer(read)
        for readable in effects.readable:
            self.confirmed(readable)

    def hold(self, replies: list[Send]) -> None:
        """Tie replies to the write that covers them."""
        if replies and not self.records and self.writing is not None:
            self.writing += replies
        else:
            self.replies += replies
        if self.writing is None:
            self.write()

    def answer(self, read: ReadChosen) -> None:
        """Answer a Fetch with what is stored: never with a slot that a write under way will change."""
        assert self.replica is not None
        if self.writing is None:
            self.stored_upto = self.replica.log.chosen_upto
        slots = range(read.from_slot, min(read.upto_slot, self.stored_upto) + 1)[:FETCHED_SLOTS]
        entries = tuple(SlotEntry(slot, *self.disk.log[slot][1]) for slot in slots)
        self.send(Send((read.to,), Chosen(read.request_id, entries, self.replica.log.chosen_upto, 1)))

    def write(self) -> None:
        """Start a write of all that waits."""
        self.in_write, self.records = self.records, []
        self.writing, self.replies = self.replies, []
        self.noted = self.applied[-1].slot if self.applied else 0
        self.writing_since_s = self.cluster.now_s
        self.cluster.later(self.cluster.disk_delay_s(), self.if_alive(self.written))

    def written(self) -> None:
        """It is durable: its replies leave, and no others."""
        for record in self.in_write:
            self.disk.write(record)
        # What this write covers is stored now; the disk itself notes it one write later.
        self.disk.chosen_upto = max(self.disk.chosen_upto, self.stored_upto)
        self.stored_upto = max(self.stored_upto, self.noted)
        released, self.writing = self.writing, None
        self.writing_since_s = None
        if self.records or self.replies:
            self.write()
        for send in released or ():
            self.send(send)

    def send(self, send: Send) -> None:
        """Put a message on the network."""
        assert self.replica is not None
        me = self.replica.me
        self.cluster.witness.sent(me, self.disk.promised, self.disk.log, send.message)
        everyone = list(self.cluster.nodes)
        if send.to == EVERYONE:
            to = everyone
        elif send.to[:1] == OTHERS:
            to = [uid for uid in everyone if uid not in (self.uid, *send.to[1:])]
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
        self.cluster.witness.applied(self.uid, entry)
        assert entry.slot == len(self.applied) + 1, "in order, without a gap"
        self.applied.append(entry)
        value = decode_value(entry.value)
        for command in value.commands:
            key = (command.client, command.sequence)
            if self.replica.requests.applied(key) is not None:
                self.cluster.acknowledged.add(key)
        self.replica.applied(value.runs, value.time_ms)


class PureCluster:
    """Replicas, a network between them, and the checks.

    Args:
        seed: everything follows from it.
        size: number of voters.
        loss: share of messages lost.

    Attributes:
        loss: as given; can be changed at any time.
        replay: per message sent, the chance that some old one arrives again.
        stall: per write, the chance that the disk takes seconds.
        cut: the directions, (from, to), in which nothing passes.
        witness: knows what is truly chosen.
        reads: how many linearizable reads were confirmed.
        acknowledged: (client, sequence) of the commands whose results a client was told.
        elected: (seconds, id) of each time that a node came to lead.
    """

    def __init__(self, seed: int, size: int = 3, loss: float = 0.0) -> None:
        self.random = random_module.Random(seed)
        self.now_s = 0.0
        self.loss = loss
        self.replay = 0.0
        self.stall = 0.0
        self.delay_max_s = 0.005
        self.cut: set[tuple[str, str]] = set()
        self.elected: list[tuple[float, str]] = []
        self._leading: list[str] = []
        self._old: list[tuple[str, str, Sender, Any]] = []
        self.acknowledged: set[tuple[str, int]] = set()
        self.reads = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.voters = [chr(ord("A") + n) for n in range(size)]
        self.witness = Witness(self.voters)
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
            self._note_leaders()
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
            self._arrive_in(delay_s, source, to, sender, message)
        if self.replay:
            self._replay(source, to, sender, message)

    def _replay(self, source: str, to: str, sender: Sender, message: Any) -> None:
        """Keep a message, and now and then let an old one arrive again."""
        if len(self._old) < REPLAYED_MAX:
            self._old.append((source, to, sender, message))
        else:
            self._old[self.random.randrange(REPLAYED_MAX)] = (source, to, sender, message)
        if self.random.random() < self.replay:
            self._arrive_in(self.delay_max_s, *self.random.choice(self._old))

    def _arrive_in(self, delay_s: float, source: str, to: str, sender: Sender, message: Any) -> None:
        self.later(delay_s, lambda: self._arrive(source, to, sender, message))

    def _arrive(self, source: str, to: str, sender: Sender, message: Any) -> None:
        node = self.nodes[to]
        if node.replica is not None and (source, to) not in self.cut:
            node.if_alive(lambda: node.receive(sender, message))()

    def disk_delay_s(self) -> float:
        """How long the next write takes."""
        if self.stall and self.random.random() < self.stall:
            return self.random.uniform(0.5, 4.0)
        return self.random.expovariate(1 / 0.002)

    def isolate(self, uid: str) -> None:
        """Cut ``uid`` off from every other."""
        for other in self.voters:
            if other != uid:
                self.cut |= {(uid, other), (other, uid)}

    def connect_only(self, *pairs: str) -> None:
        """Cut every link but those of ``pairs``, written as two ids: ``"AB"``."""
        linked = {(pair[0], pair[1]) for pair in pairs} | {(pair[1], pair[0]) for pair in pairs}
        self.cut = {(a, b) for a in self.voters for b in self.voters if a != b and (a, b) not in linked}

    def _note_leaders(self) -> None:
        leading = self.leaders()
        if leading != self._leading:
            self.elected += [(self.now_s, uid) for uid in leading if uid not in self._leading]
            self._leading = leading

    def leaders(self) -> list[str]:
        """Who leads at present."""
        return [u for u, n in self.nodes.items() if n.replica is not None and n.replica.proposer.leading]
