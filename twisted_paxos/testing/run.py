"""One simulated run of a whole cluster of real nodes: faults, then none, then the final checks."""

from __future__ import annotations

import gc
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, Final, NamedTuple
from unittest import mock

from msgspec import Raw

from twisted_paxos import applier, snapshots
from twisted_paxos.core import limits
from twisted_paxos.core.messages import Accept, Chosen, Command, Commit, Forward, Promise, SlotEntry
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.snapshots import Policy
from twisted_paxos.testing.checks import Checks, LogWatch
from twisted_paxos.testing.clock import SAME_MOMENT_MAX_EVENTS, EndlessLoop
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode
from twisted_paxos.testing.faults import CLOCK_RATES, Injector
from twisted_paxos.testing.kvload import DRAINED_MAX_S, KV_CLOCK_RATES, UNATTENDED_MAX_S, KvLoad
from twisted_paxos.testing.kvmachine import patched_kv_sizes
from twisted_paxos.testing.registers import Registers
from twisted_paxos.testing.schedule import Schedule
from twisted_paxos.testing.taps import Taps
from twisted_paxos.testing.workload import Workload

HEAL_MAX_S: Final = 12.0
"""After faults end: so long until writes are acknowledged again and every voter votes."""

SETTLE_MAX_S: Final = 8.0
"""After the clients end: so long until every node has applied the same."""

READ_MAX_S: Final = 5.0
"""So long may a piece of a log take to be read."""

COMPACTION_MAX_S: Final = 1.0
"""So long may it take between letting go of slots and saying so."""

TRACE_MAX_LINES: Final = 200_000
"""The last lines of a trace that are kept."""


SUMMARY_MAX_CHARS: Final = 250
"""Of a message in a trace."""


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        seed: which.
        check: the check that failed; empty when none did.
        what: what it found.
        digest: of everything that happened: equal for equal runs.
        simulated_s, events: how much happened.
        writes, reads: operations that were acknowledged.
        trace: lines for people, when asked for.
    """

    seed: int
    check: str
    what: str
    digest: str
    simulated_s: float
    events: int
    writes: int
    reads: int
    trace: tuple[str, ...] = ()


class Trace:
    """What happened, as lines and as a digest.

    Args:
        cluster: for the time.
        keep: keep the lines.
    """

    def __init__(self, cluster: SimulatedCluster, keep: bool) -> None:
        self._clock = cluster.clock
        self._digest = hashlib.blake2b(digest_size=16)
        self._keep = keep
        self.lines: deque[str] = deque(maxlen=TRACE_MAX_LINES)

    def tell(self, line: str) -> None:
        """Something other than a message."""
        line = f"{self._clock.now_s:10.6f}  {line}"
        self._digest.update(line.encode())
        if self._keep:
            self.lines.append(line)

    def sent(self, uid: str, to: Sequence[str], message: Any) -> None:
        """A message leaves a node."""
        self._digest.update(f"{self._clock.now_s}{uid}{type(message).__name__}".encode())
        if self._keep:
            self.lines.append(f"{self._clock.now_s:10.6f}  {uid} > {','.join(to):<6} {summary(message)}")

    @property
    def digest(self) -> str:
        """Of everything so far."""
        return self._digest.hexdigest()


def summary(message: Any) -> str:
    """A message in one line, values left out."""
    if isinstance(message, Accept):
        size = len(message.value)
        return f"Accept {message.ballot} slot {message.slot} ({size} bytes) chosen {message.chosen_upto}"
    if isinstance(message, Promise):
        slots = _slots(message.accepted)
        part = f"{message.part + 1}/{message.parts}"
        return f"Promise {message.ballot} {part} chosen {message.chosen_upto} accepted {slots}"
    if isinstance(message, Chosen):
        return f"Chosen {_slots(message.entries)} of {message.chosen_upto} from {message.log_start}"
    if isinstance(message, Commit):
        return f"Commit {message.ballot} chosen {message.chosen_upto} shares {_slots(message.entries)}"
    if isinstance(message, Forward):
        return f"Forward {message.forward_id} {[f'{c.client[:4]} {c.sequence}' for c in message.commands]}"
    return repr(message)[:SUMMARY_MAX_CHARS]


def _slots(entries: Sequence[SlotEntry]) -> str:
    return " ".join(f"{entry.slot}@{entry.ballot}" for entry in entries) or "none"


class Run:
    """A run of ``schedule``.

    Args:
        schedule: what happens.
        keep_trace: keep readable lines.
    """

    def __init__(self, schedule: Schedule, keep_trace: bool = False) -> None:
        sizes = schedule.sizes
        self.schedule = schedule
        self._random = Random(f"run {schedule.seed}")
        key = b"simulated cluster key" if sizes.key else None
        self.cluster = SimulatedCluster(
            Random(f"cluster {schedule.seed}"),
            schedule.size,
            key,
            sizes.observers,
            sizes.segment_bytes,
            sizes.datagram_max_bytes,
        )
        self.trace = Trace(self.cluster, keep_trace)
        self.workload = Workload(self.cluster, self._random, sizes.value_max_bytes)
        self.kv = None if schedule.load == "registers" else KvLoad(self.cluster, schedule.seed, self._report)
        more = self.kv.checks(self._chosen) if self.kv is not None else ()
        self.checks = Checks(self.cluster.voters, self.cluster.nodes, self._sent, self._may_stop, more)
        self.injector = Injector(
            self.cluster,
            schedule,
            self.trace.tell,
            lambda uid: self.checks.disks[uid].highest,
            self._damaged,
            CLOCK_RATES if self.kv is None else KV_CLOCK_RATES,
        )
        if self.kv is not None:
            self.kv.history.jumps_s = self.injector.jumps_s
        policy = Policy(sizes.snapshot_slots, sizes.snapshot_log_bytes)
        machine = Registers if self.kv is None else self.kv.machine
        self.taps = Taps(self.cluster, self.checks, self.trace.sent, self.injector.applied, policy, machine)
        self.cluster.on_stop.append(self._stopped)
        for node in self.cluster.nodes.values():
            node.sync_s = sizes.sync_s

    def _report(self, check: str, what: str) -> None:
        self.checks.report(check, what)

    def _chosen(self) -> dict[int, Raw]:
        witness = self.checks.witness
        return {slot: witness.chosen[slot] for slot in range(1, witness.chosen_upto + 1)}

    def _sent(self, command: Command) -> bool:
        return self.workload.sent(command) or (self.kv is not None and self.kv.sent(command))

    def _may_stop(self, uid: str) -> bool:
        return bool(self.injector.nodes[uid].excuses)

    def _damaged(self, uid: str, kind: str) -> None:
        disk = self.checks.disks[uid]
        disk.damaged = True
        disk.older_copy = disk.older_copy or kind == "old_copy"

    def _stopped(self, node: SimulatedNode) -> None:
        self.checks.stopped(node.uid, node.stopped_with)

    def run(self) -> Outcome:
        """All of it."""
        with ExitStack() as stack:
            stack.enter_context(without_gc())
            stack.enter_context(LogWatch(self.checks.report))
            stack.enter_context(patched_sizes(self.schedule))
            stack.enter_context(self.taps.attached())
            if self.kv is not None:
                stack.enter_context(patched_kv_sizes(self.kv.sizes))
                stack.callback(self.kv.close)
            self._all_phases()
        return self._outcome()

    def _all_phases(self) -> None:
        self.injector.arm()
        if self.schedule.load != "kv":
            self.workload.start()
        if self.kv is not None:
            self.kv.start()
        if not self._advance(self.schedule.faulty_s):
            return
        self.injector.heal()
        if self.kv is not None:
            self.kv.heal()
        self.trace.tell("everything heals")
        if not (self._progresses() and self._winds_down()):
            return
        self._power_loss()
        if self._agree("after the power loss of all nodes"):
            self._read_logs()
            self._watches_end()
            self.checks.compare_states(
                (self.taps.lives[uid], node.node.state)
                for uid, node in self.cluster.nodes.items()
                if node.node is not None
            )
            self.checks.finish(self.workload.ops)

    # -- time

    def _advance(self, seconds: float) -> bool:
        """Let time pass; False when a check failed."""
        until_s = self.cluster.clock.now_s + seconds
        self._run_until(lambda: False, until_s)
        return self.checks.violation is None

    def _run_until(self, done: Callable[[], bool], until_s: float) -> bool:
        """Let time pass until ``done()``; False when it is not by then, or a check failed."""
        clock, checks = self.cluster.clock, self.checks
        try:
            if not clock.run_while(
                lambda: checks.violation is None and not done(), until_s, SAME_MOMENT_MAX_EVENTS // 10
            ):
                return done()
        except EndlessLoop as error:
            checks.report("progress", str(error))
        except Exception as error:
            checks.report("exception", f"{type(error).__name__}: {error}")
        return checks.violation is None

    # -- after the faults

    def _progresses(self) -> bool:
        """Writes are acknowledged again, every voter votes, and then all nodes apply the same."""
        clock = self.cluster.clock
        healed_s = clock.now_s
        before = len(self.workload.ops)

        def alive() -> bool:
            ops = self.workload.ops[before:]
            written = any(op.outcome == "done" and not op.is_read for op in ops)
            if self.kv is not None and self.kv.written(healed_s):
                written = True
            return written and all(self._votes(uid) for uid in self.cluster.voters)

        if not self._run_until(alive, healed_s + HEAL_MAX_S):
            self._no_progress("no write was acknowledged, or not every voter votes")
            return False
        self.workload.running = False
        if self.kv is not None:
            self.kv.stop()
        return self._agree("after the faults")

    def _winds_down(self) -> bool:
        """Leases that nobody keeps alive end, and watches give what is left."""
        kv, clock = self.kv, self.cluster.clock
        if kv is None:
            return True
        if not self._run_until(lambda: not kv.leases_left(), clock.now_s + UNATTENDED_MAX_S):
            leases = ", ".join(f"{lease:x}" for lease in kv.leases_left())
            self.checks.report("kv lease", f"nobody keeps leases {leases} alive, and they are there")
        return self._watches_end()

    def _watches_end(self) -> bool:
        """Every watch that goes on has given everything, and nothing more comes."""
        kv, until_s = self.kv, self.cluster.clock.now_s + DRAINED_MAX_S
        if kv is None:
            return True
        if not self._run_until(lambda: self._settled() and not kv.watches_left(), until_s):
            left = "; ".join(f"{watching} at {watching.next_revision}" for watching in kv.watches_left())
            self.checks.report("kv watch", f"not everything is given after {DRAINED_MAX_S} s: {left}")
        return self.checks.violation is None

    def _votes(self, uid: str) -> bool:
        node = self.cluster.nodes[uid].node
        return node is not None and bool(node.running) and node.replica.acceptor.votes

    def _agree(self, when: str) -> bool:
        """Every node applies the same slots, and no operation is without its outcome."""
        # With the smallest limits each slot of the log is a read of its own, on a disk that may be slow.
        reads_s = self.checks.witness.chosen_upto * self.schedule.sizes.sync_s
        if self._run_until(self._settled, self.cluster.clock.now_s + SETTLE_MAX_S + reads_s):
            return True
        self._no_progress(f"not all nodes have applied the same {when}")
        return False

    def _settled(self) -> bool:
        nodes = [node.node for node in self.cluster.nodes.values()]
        if any(node is None or not node.running for node in nodes):
            return False
        applied = {node.applier.applied_upto for node in nodes if node is not None}
        waiting = self.workload.open_ops() or (self.kv is not None and self.kv.open_requests())
        return applied == {self.checks.witness.chosen_upto} and not waiting

    def _no_progress(self, what: str) -> None:
        states = []
        for uid, node in self.cluster.nodes.items():
            if node.node is None:
                states.append(f"{uid} is down ({node.stopped_with})")
                continue
            status: Any = node.node.status()
            upto = f"chosen {status.chosen_upto}, applied {status.applied}"
            states.append(f"{uid} {status.role} of {status.ballot}, {upto}")
        open_ops = ", ".join(map(str, self.workload.open_ops()[:3]))
        chosen = self.checks.witness.chosen_upto
        self.checks.report("progress", f"{what}: {'; '.join(states)}; truly chosen: {chosen}; {open_ops}")

    def _power_loss(self) -> None:
        """All nodes at once lose what they had not synced, and start again."""
        self.trace.tell("all nodes lose power")
        for node in self.cluster.nodes.values():
            node.crash(power_loss=True)
        for uid in self.cluster.nodes:
            self.injector.start(uid)

    def _read_logs(self) -> None:
        """Read back every node's log; `OneValue` looks at what comes."""
        for uid, node in self.cluster.nodes.items():
            if node.node is not None and not self._read_log(node.node):
                self.checks.report("one value", f"{uid} cannot read back its log")

    def _read_log(self, node: PersistentPaxosNode) -> bool:
        slot = 1
        while self.checks.violation is None:
            slot = max(slot, node.replica.log.log_start)
            if slot > node.performer.stored_upto:
                return True
            read: list[Any] = []
            node.read_log(slot, 1 << 20).addBoth(read.append)
            self._run_until(lambda: bool(read), self.cluster.clock.now_s + READ_MAX_S)  # noqa: B023
            if not read or not isinstance(read[0], list):
                return False
            if not read[0]:
                # A compaction may be under way: slots go before the node is told so.
                self._advance(COMPACTION_MAX_S)
                if slot >= node.replica.log.log_start:
                    return False
            slot += len(read[0])
        return True

    def _outcome(self) -> Outcome:
        check, what = self.checks.violation or ("", "")
        if check:
            self.trace.tell(f"VIOLATION {check}: {what}")
        done = [op.is_read for op in self.workload.ops if op.outcome == "done"]
        if self.kv is not None:
            done += [request.is_read for request in self.kv.history.requests if request.outcome == "done"]
        reads = sum(done)
        clock = self.cluster.clock
        return Outcome(
            self.schedule.seed,
            check,
            what,
            self.trace.digest,
            clock.now_s,
            clock.events,
            len(done) - reads,
            reads,
            tuple(self.trace.lines),
        )


@contextmanager
def patched_sizes(schedule: Schedule) -> Iterator[None]:
    """The limits of a run, for as long as it lasts."""
    sizes = schedule.sizes
    with ExitStack() as stack:
        for module, values in ((limits, sizes.limits), (applier, sizes.applier)):
            for name, value in values.items():
                stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch.object(snapshots, "KEEP_SLOTS", sizes.keep_slots))
        yield


@contextmanager
def without_gc() -> Iterator[None]:
    """A run is short: garbage is collected after it, when what that does can disturb no other run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        if was_enabled:
            gc.enable()
