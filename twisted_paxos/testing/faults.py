"""Makes the faults of a `Schedule` happen to a `SimulatedCluster`, and ends them all.

What a fault may do is bounded by what the design promises (DESIGN.md, section 6), so that whatever a
check finds is a fault of the program:

* damage happens to a stopped node only, and only while, with that node, the voting members that
  hold everything that they ever stored are still a majority: the others can repair it;
* the last write of a log is not damaged: it cannot be told from a torn one, the documented exception;
* an old copy of a directory comes back only when every other member has recorded a later start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, Final

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode
from twisted_paxos.testing.damage import DAMAGES, stored_identity
from twisted_paxos.testing.schedule import CLASSES, Fault, Schedule

RESTART_S: Final = 0.3
"""A node that stopped by itself is started again after this long."""

EFFECTS_MAX: Final = 60
"""A crash between two effects comes within so many of them."""

NEAR_S: Final = 0.000_1
FAR_S: Final = 0.000_3
"""How long a datagram takes when nothing is wrong."""

USURP_S: Final = 0.6
"""About how long a usurped leader is cut off: long enough for the next one to begin."""

UNHEARD_STARTS_MAX: Final = 20
"""An old copy is started at most so often before anybody hears of it."""

CLOCK_RATES: Final = (0.5, 0.9, 0.99, 1.01, 1.1, 2.0)
"""How fast a node's clock may run."""

COPIES_MAX: Final = 4
"""Old copies of a directory that are kept."""


class NodeFaults:
    """What is wrong with one node at present.

    Attributes:
        excuses: faults that allow the node to stop by itself, until its next start.
        whole_from: while damaged: it counts as whole again once it has stored every slot up to here.
        copies: old contents of its directory, and which start wrote them.
    """

    def __init__(self) -> None:
        self.excuses: list[str] = []
        self.whole_from: int | None = None
        self.copies: list[tuple[str, int, dict[str, bytes]]] = []
        self.holds = 0
        self.at_apply = 0


class Injector:
    """Injects faults.

    Args:
        cluster: the victim.
        schedule: what and when.
        tell: told a line for each thing that happens.
        highest_stored: gives the highest slot that a node ever stored.
        damaged: told the id of a node and the kind of damage that its disk took.
        clock_rates: how fast the clocks of nodes may run.

    Attributes:
        nodes: what is wrong with each.
        healed: no fault begins any more.
        jumps_s: when a clock jumped.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        schedule: Schedule,
        tell: Callable[[str], None],
        highest_stored: Callable[[str], int],
        damaged: Callable[[str, str], None],
        clock_rates: Sequence[float] = CLOCK_RATES,
    ) -> None:
        self.cluster = cluster
        self.schedule = schedule
        self.nodes = {uid: NodeFaults() for uid in cluster.nodes}
        self.healed = False
        self.jumps_s: list[float] = []
        self._clock_rates = clock_rates
        self._tell = tell
        self._highest_stored = highest_stored
        self._damaged = damaged
        self._weather: dict[str, int] = {}
        self._cuts: dict[tuple[str, str], int] = {}
        self._at_send: dict[str, tuple[int, Callable[[], None]]] = {}
        cluster.on_stop.append(self._stopped)
        self._kinds: dict[str, Callable[[Fault, Random], None]] = {
            **dict.fromkeys(CLASSES["network"], self._weather_fault),
            **dict.fromkeys(CLASSES["partition"], self._partition),
            **dict.fromkeys(CLASSES["damage"], self._damage),
            "lag": self._lag,
            "usurp": self._usurp,
            "kill": self._crash_one,
            "power": self._crash_one,
            "kill_all": self._crash_all,
            "power_all": self._crash_all,
            "pause": self._pause,
            "clock_rate": self._clock_rate,
            "clock_jump": self._clock_jump,
            "at_disk": self._at_disk,
            "at_send": self._crash_at_send,
            "at_apply": self._crash_at_apply,
            "slow": self._slow,
            "stall": self._stall,
            "fail_sync": self._bad_disk,
            "fail_read": self._bad_disk,
            "read_only": self._bad_disk,
            "full": self._full,
        }

    # -- time

    def arm(self) -> None:
        """Start the nodes, and plan every fault."""
        clock = self.cluster.clock
        for uid, start_s in zip(self.cluster.nodes, self.schedule.start_s, strict=True):
            clock.push(start_s, self.start, (uid,))
        for fault in self.schedule.faults:
            clock.push(fault.at_s, self._inject, (fault,))

    def _inject(self, fault: Fault) -> None:
        if not self.healed:
            self._kinds[fault.kind](fault, Random(fault.draw))

    def _later(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call unless everything healed before."""

        def guarded() -> None:
            if not self.healed:
                call(*args)

        self.cluster.clock.push(self.cluster.clock.now_s + delay_s, guarded)

    def heal(self) -> None:
        """End every fault, and start every node."""
        self.healed = True
        network = self.cluster.network
        network.faults(**dict.fromkeys(("loss", "duplicate", "reorder", "corrupt", "replay"), 0.0))
        network.faults(delay_min_s=NEAR_S, delay_max_s=FAR_S)
        network.heal_all()
        network.lets = None
        self._at_send.clear()
        for uid, node in self.cluster.nodes.items():
            self.nodes[uid].holds = self.nodes[uid].at_apply = 0
            self._heal_disk(node)
            node.clock_rate = 1.0
            if node.reactor is not None:
                node.reactor.resume()
            self.start(uid)

    def _heal_disk(self, node: SimulatedNode) -> None:
        disk = node.disk
        disk.fail_sync = disk.fail_read = disk.read_only = False
        disk.capacity_bytes = disk.stop_after = disk.on_stop = None
        node.sync_s = self.schedule.sizes.sync_s
        if node.executor is not None:
            node.executor.delay_s = node.sync_s
            node.executor.resume()

    # -- nodes that stop and start

    def start(self, uid: str) -> None:
        """Start a node that does not run, unless a fault keeps it down."""
        node, state = self.cluster.nodes[uid], self.nodes[uid]
        if node.running or state.holds:
            return
        if not state.copies or len(state.copies) < COPIES_MAX:
            self._keep_copy(node, state)
        disk = node.disk
        state.excuses = [k for k in ("fail_sync", "fail_read", "read_only") if getattr(disk, k)]
        if disk.capacity_bytes is not None or disk.stop_after is not None:
            state.excuses.append("full" if disk.stop_after is None else "at_disk")
        try:
            node.start()
        except PaxosError:
            return  # `_stopped` was told, and plans the next try.
        self._tell(f"{uid} starts")

    def _stopped(self, node: SimulatedNode) -> None:
        self._tell(f"{node.uid} stops: {node.stopped_with}")
        disk = node.disk
        disk.fail_sync = disk.fail_read = disk.read_only = False
        disk.capacity_bytes = None
        self.cluster.clock.push(self.cluster.clock.now_s + RESTART_S, self.start, (node.uid,))

    def _crash(self, node: SimulatedNode, power_loss: bool, down_s: float) -> None:
        """Kill it, and start it again after ``down_s``."""
        if not node.running:
            return
        self._tell(f"{node.uid} {'loses power' if power_loss else 'is killed'}")
        node.disk.on_stop = None
        self._at_send.pop(node.host, None)
        self.nodes[node.uid].at_apply = 0
        node.crash(power_loss)
        self._hold(node.uid, down_s)

    def _hold(self, uid: str, down_s: float) -> None:
        """Keep a node down for so long."""
        self.nodes[uid].holds += 1
        self._later(down_s, self._release, uid)

    def _release(self, uid: str) -> None:
        self.nodes[uid].holds -= 1
        self.start(uid)

    def _pick(self, random: Random, running: bool = True) -> SimulatedNode | None:
        """One node; leaders are hit more often, they matter more."""
        nodes = [node for node in self.cluster.nodes.values() if node.running or not running]
        leaders = [node for node in nodes if node.uid in self.cluster.leaders()]
        if leaders and random.random() < 0.3:
            return random.choice(leaders)
        return random.choice(nodes) if nodes else None

    def _crash_one(self, fault: Fault, random: Random) -> None:
        node = self._pick(random)
        if node is not None:
            self._crash(node, fault.kind == "power", fault.seconds)

    def _crash_all(self, fault: Fault, random: Random) -> None:
        down_s = min(fault.seconds, 1.0)
        for node in self.cluster.nodes.values():
            self._crash(node, fault.kind == "power_all", down_s * random.random())

    def _pause(self, fault: Fault, random: Random) -> None:
        node = self._pick(random)
        if node is not None and node.reactor is not None:
            self._tell(f"{node.uid} is paused for {fault.seconds:.3f} s")
            reactor = node.reactor
            reactor.pause()
            self._later(fault.seconds, reactor.resume)

    def _clock_rate(self, fault: Fault, random: Random) -> None:
        """From its next start on, a node's clock runs fast or slow and shows another time."""
        node = self._pick(random)
        if node is not None:
            node.clock_rate = random.choice(self._clock_rates)
            node.clock_offset_s = random.uniform(0.0, 1e6)
            self._crash(node, False, min(fault.seconds, 0.5))

    def _clock_jump(self, fault: Fault, random: Random) -> None:
        """A node's clock jumps ahead, as after the suspension of a machine."""
        node = self._pick(random)
        if node is not None and node.reactor is not None:
            self._tell(f"{node.uid}: its clock jumps by {fault.amount * 10:.3f} s")
            node.reactor.jump(fault.amount * 10)
            self.jumps_s.append(self.cluster.clock.now_s)

    # -- crashes between two effects

    def _at_disk(self, fault: Fault, random: Random) -> None:
        """The machine stops, or the process, at one of the next operations of the disk."""
        node = self._pick(random, running=False)
        if node is None:
            return
        disk, power_loss = node.disk, random.random() < 0.7
        if "at_disk" not in self.nodes[node.uid].excuses:
            self.nodes[node.uid].excuses.append("at_disk")
        disk.stop_after = disk.operations + random.randrange(EFFECTS_MAX)
        disk.on_stop = partial(self._crash, node, power_loss, fault.seconds)

    def _crash_at_send(self, fault: Fault, random: Random) -> None:
        """It crashes before one of the next datagrams leaves."""
        node = self._pick(random)
        if node is not None:
            crash = partial(self._crash, node, random.random() < 0.5, fault.seconds)
            self._at_send[node.host] = (random.randrange(EFFECTS_MAX), crash)
            self.cluster.network.lets = self._lets

    def _lets(self, host: str) -> bool:
        waiting = self._at_send.get(host)
        if waiting is None:
            return True
        count, crash = waiting
        if count:
            self._at_send[host] = (count - 1, crash)
            return True
        crash()
        return False

    def _crash_at_apply(self, fault: Fault, random: Random) -> None:
        """It crashes when it has applied one of the next slots."""
        node = self._pick(random)
        if node is not None:
            self.nodes[node.uid].at_apply = 1 + random.randrange(EFFECTS_MAX // 2)

    def applied(self, uid: str) -> None:
        """A node applied a slot."""
        state = self.nodes[uid]
        if state.at_apply:
            state.at_apply -= 1
            if not state.at_apply:
                self._crash(self.cluster.nodes[uid], False, 0.2)

    # -- the network

    def _weather_fault(self, fault: Fault, random: Random) -> None:
        self._weather[fault.kind] = self._weather.get(fault.kind, 0) + 1
        if fault.kind == "delay":
            low_s = random.choice((0.0, 0.01, 0.05)) * fault.amount
            self.cluster.network.faults(delay_min_s=low_s, delay_max_s=low_s + 0.1 * fault.amount)
        else:
            worst = {"loss": 0.6, "duplicate": 0.5, "reorder": 0.7, "corrupt": 0.1, "replay": 0.3}
            self.cluster.network.faults(**{fault.kind: worst[fault.kind] * fault.amount})
        self._later(2 * fault.seconds, self._weather_ends, fault.kind)

    def _weather_ends(self, kind: str) -> None:
        self._weather[kind] -= 1
        if self._weather[kind]:
            return
        if kind == "delay":
            self.cluster.network.faults(delay_min_s=NEAR_S, delay_max_s=FAR_S)
        else:
            self.cluster.network.faults(**{kind: 0.0})

    def _lag(self, fault: Fault, random: Random) -> None:
        """What one node is sent, or what it sends, is late: it acts on what is long over."""
        node = self._pick(random, running=False)
        if node is None:
            return
        delay_s = random.choice((0.1, 0.5, 1.5)) * fault.amount
        inwards = random.random() < 0.7
        self._tell(f"{node.uid}: what it {'is sent' if inwards else 'sends'} is {delay_s:.3f} s late")
        for other in self.cluster.nodes.values():
            if other is not node:
                ends = (other.host, node.host) if inwards else (node.host, other.host)
                link = self.cluster.network.link(*ends)
                link.set(delay_min_s=delay_s, delay_max_s=delay_s)
                self._later(2 * fault.seconds, partial(link.set, delay_min_s=NEAR_S, delay_max_s=FAR_S))

    def _partition(self, fault: Fault, random: Random) -> None:
        hosts = [node.host for node in self.cluster.nodes.values()]
        random.shuffle(hosts)
        pairs = _cut_pairs(fault.kind, hosts, random)
        self._tell(f"{fault.kind}: " + ", ".join(f"{a}>{b}" for a, b in pairs))
        self._cut(pairs)
        self._later(2 * fault.seconds, self._join, pairs)

    def _usurp(self, fault: Fault, random: Random) -> None:
        """Cut off whoever leads, and then whoever leads next: each leaves values behind that few have."""
        self._usurp_on(random, self.cluster.clock.now_s + 2 * fault.seconds + USURP_S)

    def _usurp_on(self, random: Random, until_s: float) -> None:
        leaders = self.cluster.leaders()
        if leaders:
            hosts = [node.host for node in self.cluster.nodes.values()]
            victim = self.cluster.nodes[random.choice(leaders)].host
            others = [host for host in hosts if host != victim]
            reached = others[random.randrange(len(others))] if len(hosts) > 3 else victim
            side = {victim, reached}
            pairs = [(a, b) for a in hosts for b in hosts if (a in side) != (b in side)]
            self._tell(f"usurp: {victim} reaches {reached} only")
            self._cut(pairs)
            self._later(random.uniform(0.5, 1.5) * USURP_S, self._join, pairs)
            if random.random() < 0.5:
                self._slow_down(random.choice(list(self.cluster.nodes.values())), random)
        if self.cluster.clock.now_s < until_s:
            self._later(random.uniform(0.2, 1.2) * USURP_S, self._usurp_on, random, until_s)

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> None:
        for pair in pairs:
            self._cuts[pair] = self._cuts.get(pair, 0) + 1
            self.cluster.network.cut(*pair, both=False)

    def _join(self, pairs: Sequence[tuple[str, str]]) -> None:
        for pair in pairs:
            self._cuts[pair] -= 1
            if not self._cuts[pair]:
                self.cluster.network.heal(*pair, both=False)

    # -- disks

    def _slow(self, fault: Fault, random: Random) -> None:
        node = self._pick(random, running=False)
        if node is not None:
            self._tell(f"{node.uid}: slow disk")
            self._set_sync_s(node, fault.amount**3)
            self._later(fault.seconds, self._set_sync_s, node, self.schedule.sizes.sync_s)

    def _slow_down(self, node: SimulatedNode, random: Random) -> None:
        """For a while, what this node decides is long under way to its disk."""
        self._set_sync_s(node, random.uniform(0.05, USURP_S))
        self._later(2 * USURP_S, self._set_sync_s, node, self.schedule.sizes.sync_s)

    def _set_sync_s(self, node: SimulatedNode, sync_s: float) -> None:
        node.sync_s = sync_s
        if node.executor is not None:
            node.executor.delay_s = sync_s

    def _stall(self, fault: Fault, random: Random) -> None:
        node = self._pick(random)
        if node is not None and node.executor is not None:
            self._tell(f"{node.uid}: its disk stands still for {2 * fault.seconds:.3f} s")
            node.executor.stall()
            self._later(2 * fault.seconds, self._unstall, node, node.executor)

    @staticmethod
    def _unstall(node: SimulatedNode, executor: Any) -> None:
        if node.executor is not None and node.executor is executor:
            node.executor.resume()

    def _bad_disk(self, fault: Fault, random: Random) -> None:
        """Errors until the node stops, or for a while."""
        node = self._pick(random, running=False)
        if node is not None:
            self._tell(f"{node.uid}: its disk: {fault.kind}")
            self.nodes[node.uid].excuses.append(fault.kind)
            setattr(node.disk, fault.kind, True)
            self._later(fault.seconds, setattr, node.disk, fault.kind, False)

    def _full(self, fault: Fault, random: Random) -> None:
        node = self._pick(random, running=False)
        if node is not None:
            self._tell(f"{node.uid}: its disk is full")
            self.nodes[node.uid].excuses.append(fault.kind)
            node.disk.capacity_bytes = node.disk.used_bytes + random.choice((0, 0, 4_096, 10_000))
            self._later(2 * fault.seconds, setattr, node.disk, "capacity_bytes", None)

    # -- damage

    def _keep_copy(self, node: SimulatedNode, state: NodeFaults) -> None:
        files = node.disk.snapshot()
        if files:
            identity = stored_identity(node)
            if identity is not None:
                state.copies.append((*identity, files))

    def _damage(self, fault: Fault, random: Random) -> None:
        node = self._pick(random, running=False)
        if node is None or not self._may_damage(node):
            return
        self._crash(node, random.random() < 0.3, fault.seconds)
        if not node.disk.exists():
            return
        damage = self._old_copy if fault.kind == "old_copy" else DAMAGES[fault.kind]
        what = damage(node, random)
        if what:
            state = self.nodes[node.uid]
            state.whole_from = max(self._highest_stored(node.uid), state.whole_from or 0)
            self._damaged(node.uid, fault.kind)
            self._tell(f"{node.uid}: {what}")

    def _may_damage(self, node: SimulatedNode) -> bool:
        """Whether what is whole without this node can repair it."""
        whole = self.whole_voters()
        if not self._formed() or node.disk.stop_after is not None or node.disk.capacity_bytes is not None:
            return False
        if node.observer or self.nodes[node.uid].whole_from is not None:
            return True
        return len(whole - {node.uid}) > len(self.cluster.voters) // 2

    def _formed(self) -> bool:
        """Whether every member knows the cluster as formed: before that, damage may end it for good."""
        return all(self._is_formed(self.cluster.nodes[uid]) for uid in self.cluster.voters)

    def _is_formed(self, node: SimulatedNode) -> bool:
        if node.node is not None and node.node.running and node.node.replica.formation.identity.formed:
            return node.node.performer.stored_upto > 0
        return bool(self.nodes[node.uid].copies) and self._highest_stored(node.uid) > 0

    def whole_voters(self) -> set[str]:
        """Ids of the voters that hold all that they ever stored, or have it again."""
        whole = set()
        for uid in self.cluster.voters:
            state, node = self.nodes[uid], self.cluster.nodes[uid].node
            if state.whole_from is not None and node is not None and node.running:
                replica = node.replica
                needed = max(state.whole_from, replica.membership.latest_from)
                if replica.acceptor.votes and node.performer.stored_upto >= needed:
                    state.whole_from = None
            if state.whole_from is None:
                whole.add(uid)
        return whole

    def _old_copy(self, node: SimulatedNode, random: Random) -> str:
        """An old copy of the directory is put back; see the module's docstring for when."""
        now = stored_identity(node)
        peers = [uid for uid in self.cluster.voters if uid != node.uid]
        if now is None or not all(self._has_recorded(peer, *now) for peer in peers):
            return ""
        copies = self.nodes[node.uid].copies
        old = [(start, copy) for life, start, copy in copies if life == now[0] and start < now[1]]
        if not old:
            return ""
        start, copy = random.choice(old)
        node.disk.restore(copy)
        if random.random() < 0.5:
            return "an old copy of its directory is put back"
        self._damaged(node.uid, "old_copy")  # before any start of it is looked at
        starts = min(now[1] - start + random.randrange(2), UNHEARD_STARTS_MAX)
        self._start_unheard(node, starts)
        return f"an old copy of its directory is put back, and started {starts} times unheard"

    def _start_unheard(self, node: SimulatedNode, times: int) -> None:
        """Start and kill it, while nothing that it sends arrives: it counts its starts all the same."""
        others = [other.host for other in self.cluster.nodes.values() if other is not node]
        pairs = [(node.host, host) for host in others]
        self._cut(pairs)
        for _ in range(times):
            with suppress(PaxosError):
                node.start()
            node.crash()
        self._join(pairs)

    def _has_recorded(self, uid: str, incarnation: str, boot: int) -> bool:
        node = self.cluster.nodes[uid].node
        if node is None or not node.running:
            return False
        return node.replica.formation._recorded.get(incarnation, (0, ""))[0] >= boot


def _cut_pairs(kind: str, hosts: list[str], random: Random) -> list[tuple[str, str]]:
    """The directions that a partition cuts; ``hosts`` are in random order."""
    pairs = [(a, b) for a in hosts for b in hosts if a != b]
    if kind == "isolate":
        return [(a, b) for a, b in pairs if hosts[0] in (a, b)]
    if kind == "oneway":
        if random.random() < 0.5:
            return [(hosts[0], hosts[1])]
        mute = random.random() < 0.5
        return [(a, b) for a, b in pairs if (a if mute else b) == hosts[0]]
    if kind == "partial":
        return [(hosts[0], hosts[1]), (hosts[1], hosts[0])]
    if kind == "chain":
        place = {host: number for number, host in enumerate(hosts)}
        return [(a, b) for a, b in pairs if abs(place[a] - place[b]) > 1]
    side = set(hosts[: random.randrange(1, len(hosts))])
    return [(a, b) for a, b in pairs if (a in side) != (b in side)]
