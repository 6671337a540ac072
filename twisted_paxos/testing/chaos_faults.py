"""The faults of the chaos tests: what is done to whom, and how it is undone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from twisted_paxos.client import NodeStatus
from twisted_paxos.testing.chaos_cluster import ChaosCluster
from twisted_paxos.testing.chaos_history import ChaosFailed
from twisted_paxos.testing.chaos_network import all_but, links
from twisted_paxos.testing.nodes import poll

FLAP_S: Final = 0.7
"""A follower that comes and goes is away and back for so long."""

OUTDATED_S: Final = 0.5
"""How long the node that must take over is cut off first, so that its log is behind."""

STUTTER_S: Final = 0.1
STUTTER_PAUSE_S: Final = 0.03
"""A slow disk: how long each sync waits at most, and how long it then works."""


class Scene(NamedTuple):
    """Where a fault happens.

    Attributes:
        reactor: for time.
        cluster: the nodes.
        leader: the id of the node that leads before the fault.
    """

    reactor: Any
    cluster: ChaosCluster
    leader: str


Heal = Callable[[], Awaitable[object]]
Inflict = Callable[[Scene], Awaitable[Heal]]


class Fault(NamedTuple):
    """A fault.

    Attributes:
        name: for ``--faults``.
        title: for people.
        inflict: does it; what it returns undoes it.
        etcd: what etcd 3.4 does under the same fault: longest time without a write, median / worst.
        nodes: how many nodes it needs; 0: any number.
        lasts_s: from its beginning to its healing.
        disk: what disks the nodes need, see `chaos_cluster.Disk`.
        loss_percent: it is a measurement of throughput under so much loss.
        goal_s: median and worst that are to be reached.
        value_bytes: size of the values written meanwhile.
        fresh: each repetition has a cluster of its own, because its log grows fast.
        times_max: how often it is inflicted at most, because it takes long.
    """

    name: str
    title: str
    inflict: Inflict
    etcd: str = ""
    nodes: int = 0
    lasts_s: float = 4.0
    disk: str = "plain"
    loss_percent: int = 0
    goal_s: tuple[float, float] | None = None
    value_bytes: int = 0
    times_max: int = 1_000
    fresh: bool = False


async def _killed(scene: Scene) -> Heal:
    node = scene.cluster.nodes[scene.leader]
    await node.kill()

    async def heal() -> None:
        node.start()
        await node.wait_ready()

    return heal


async def _stopped(scene: Scene) -> Heal:
    node = scene.cluster.nodes[scene.leader]
    node.signal("STOP")

    async def heal() -> None:
        node.signal("CONT")

    return heal


def _cut(links_of: Callable[[Scene], set[tuple[str, str]]]) -> Inflict:
    """A fault that is nothing but links cut."""

    async def inflict(scene: Scene) -> Heal:
        await scene.cluster.network.set(links_of(scene))
        return scene.cluster.network.set

    return inflict


def _isolation(scene: Scene) -> set[tuple[str, str]]:
    return links((scene.leader, other) for other in scene.cluster.others(scene.leader))


def _unheard(scene: Scene) -> set[tuple[str, str]]:
    return {(scene.leader, other) for other in scene.cluster.others(scene.leader)}


def _deaf(scene: Scene) -> set[tuple[str, str]]:
    return {(other, scene.leader) for other in scene.cluster.others(scene.leader)}


def _chain(scene: Scene) -> set[tuple[str, str]]:
    return links([(scene.leader, scene.cluster.others(scene.leader)[0])])


def _quorum_loss(scene: Scene) -> set[tuple[str, str]]:
    """Everybody, the leader too, has a link to one node only, which has a link to each."""
    hub = scene.cluster.others(scene.leader)[0]
    return all_but(list(scene.cluster.nodes), ((hub, other) for other in scene.cluster.others(hub)))


async def _constrained(scene: Scene) -> Heal:
    """The leader is gone, and the one node with links to a majority has an outdated log."""
    cluster = scene.cluster
    hub = cluster.others(scene.leader)[0]
    await cluster.network.set(links((hub, other) for other in cluster.others(hub)))
    await deferLater(scene.reactor, OUTDATED_S)
    kept = ((hub, other) for other in cluster.others(hub, scene.leader))
    await cluster.network.set(all_but(list(cluster.nodes), kept))
    return cluster.network.set


async def _flaps(scene: Scene) -> Heal:
    """A follower comes and goes; the leader must stay."""
    cluster = scene.cluster
    follower = cluster.others(scene.leader)[0]
    before = await _status(scene)
    cut = links((follower, other) for other in cluster.others(follower))
    going = True

    async def flap() -> None:
        while going:
            await cluster.network.set(cut)
            await deferLater(scene.reactor, FLAP_S)
            await cluster.network.set()
            await deferLater(scene.reactor, FLAP_S)

    flapping = Deferred.fromCoroutine(flap())

    async def heal() -> None:
        nonlocal going
        going = False
        await flapping
        after = await _status(scene)
        if (after.role, after.ballot) != ("leader", before.ballot):
            raise ChaosFailed(f"a follower that came and went moved the leader: {before} became {after}")

    return heal


async def _status(scene: Scene) -> NodeStatus:
    node = scene.cluster.nodes[scene.leader]
    return await poll(scene.reactor, f"node {scene.leader} answers", node.status)


async def _all_killed(scene: Scene) -> Heal:
    await scene.cluster.kill()
    scene.cluster.start()
    await scene.cluster.wait_ready()
    return scene.cluster.network.set


def _loss(percent: int) -> Inflict:
    async def inflict(scene: Scene) -> Heal:
        await scene.cluster.network.set(loss_percent=percent)
        return scene.cluster.network.set

    return inflict


async def _all_full(scene: Scene) -> Heal:
    for disk in scene.cluster.disks.values():
        disk.fill()

    async def heal() -> None:
        for disk in scene.cluster.disks.values():
            disk.make_room()

    return heal


async def _stalled(scene: Scene) -> Heal:
    disk = scene.cluster.disks[scene.leader]
    await disk.freeze(scene.reactor)

    async def heal() -> None:
        await disk.thaw(scene.reactor)

    return heal


async def _slow(scene: Scene) -> Heal:
    disk = scene.cluster.disks[scene.leader]
    going = True

    async def stutter() -> None:
        while going:
            await disk.freeze(scene.reactor)
            await deferLater(scene.reactor, STUTTER_S)
            await disk.thaw(scene.reactor)
            await deferLater(scene.reactor, STUTTER_PAUSE_S)

    stuttering = Deferred.fromCoroutine(stutter())

    async def heal() -> None:
        nonlocal going
        going = False
        await stuttering

    return heal


LEADER_GOAL_S: Final = (0.5, 1.0)
PARTIAL_GOAL_S: Final = (2.0, 2.0)

FAULTS: Final = (
    Fault("kill", "leader killed (-9)", _killed, "1.5 / 5.3 s", goal_s=LEADER_GOAL_S),
    Fault("stop", "leader stopped (SIGSTOP)", _stopped, "1.4 s", goal_s=LEADER_GOAL_S),
    Fault("stop-minute", "leader stopped for a minute", _stopped, lasts_s=60.0, times_max=2),
    Fault("isolate", "leader isolated", _cut(_isolation), "1.5 / 2.7 s, healed 1.3 s", goal_s=LEADER_GOAL_S),
    Fault("unheard", "leader unheard (one-way cut)", _cut(_unheard), "1.4 / 2.7 s, healed 3 s"),
    Fault("deaf", "leader deaf (one-way cut)", _cut(_deaf), "1.4 / 2.7 s, healed 3 s"),
    Fault("quorum-loss", "quorum loss", _cut(_quorum_loss), "6.0 / 9.4 s", 5, goal_s=PARTIAL_GOAL_S),
    Fault("constrained", "constrained election", _constrained, "never", 5, goal_s=PARTIAL_GOAL_S),
    Fault("chained", "chained", _cut(_chain), "0.03 s, healed 2.4 s", 3, goal_s=PARTIAL_GOAL_S),
    Fault("flaps", "a follower comes and goes", _flaps),
    Fault("restart", "all killed and restarted", _all_killed, "0.7 / 2.8 s", lasts_s=2.0),
    Fault("loss-10", "10 % loss", _loss(10), "49 writes/s", loss_percent=10),
    Fault("loss-30", "30 % loss", _loss(30), "0.7 writes/s", loss_percent=30),
    Fault("full-disk", "all disks full", _all_full, disk="small", value_bytes=100_000, fresh=True),
    Fault("stalled-disk", "leader's disk stalls", _stalled, "keeps the leader", lasts_s=6.0, disk="own"),
    Fault("slow-disk", "leader's disk is slow (100 ms)", _slow, disk="own"),
)
"""All of them, in the order in which they run."""
