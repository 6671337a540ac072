"""Snapshots with real nodes: made, used at a restart, fetched by a node that is far behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.test_node import ClusterCase
from twisted_paxos import snapshots
from twisted_paxos.interfaces import ISnapshotStorage
from twisted_paxos.statemachine.kvcommands import Put, encode_command
from twisted_paxos.testing.cluster import SimulatedCluster


@implementer(ISnapshotStorage)
class _Disk:
    """Storage whose log is as large as the test says, and whose snapshots are written when it says."""

    log_bytes = 0
    snapshot_bytes = 1 << 19
    snapshot_slot = 0

    def __init__(self) -> None:
        self.slot = 0
        self.writing: list[Deferred[None]] = []
        self.pieces: list[bytes] = []

    def begin_snapshot(self, slot: int) -> Any:
        """Its own writer."""
        self.slot = slot
        return self

    def write(self, piece: Any) -> Deferred[None]:
        """Wait for the test."""
        self.pieces.append(piece)
        self.writing.append(Deferred())
        return self.writing[-1]

    def finish(self) -> Deferred[None]:
        """Done."""
        return succeed(None)

    def compact(self, upto_slot: int) -> Deferred[int]:
        """Done."""
        return succeed(upto_slot + 1)


class _State:
    """Three pieces, each large enough to be written by itself."""

    applied_upto = 7
    size_bytes = 0
    pieces: Sequence[bytes] = (bytes(snapshots.LARGE_GROUP_BYTES),) * 3

    def snapshot(self, sets: object) -> Iterator[bytes]:
        """See `ReplicatedState`."""
        yield from self.pieces


class PaceTests(SynchronousTestCase):
    """The log must not outgrow the snapshot that is to shorten it."""

    def setUp(self) -> None:
        """A snapshot whose first piece is being written; the log may grow by 800 kB meanwhile."""
        self.start(_State.pieces)

    def start(self, pieces: Sequence[bytes]) -> None:
        """Such a snapshot of these pieces."""
        self.clock = Clock()
        self.disk = _Disk()
        self.held: list[bool] = []
        self.state: Any = _State()
        self.state.pieces = pieces
        self.maker = snapshots.SnapshotMaker(
            self.clock,
            self.disk,
            self.state,
            lambda slot: (),
            lambda slot: None,
            lambda: 1 << 60,
            self.held.append,
            snapshots.Policy(100, 1_000_000, 5.0),
        )
        self.maker.make()

    def written(self) -> None:
        """A piece reached the disk; the next one is made."""
        self.disk.writing[-1].callback(None)
        self.clock.pump([0.0, 6.0, 0.0])

    def test_proposing_waits_for_the_snapshot(self) -> None:
        """Proposing is held while the log is ahead, and goes on with each piece and at the end."""
        self.disk.log_bytes = 390_000
        self.maker.applied()
        self.assertEqual(self.held, [])
        self.disk.log_bytes = 410_000
        self.maker.applied()
        self.maker.applied()
        self.assertEqual(self.held, [True])
        self.written()
        self.assertEqual(self.held, [True, False])
        self.disk.log_bytes = 900_000
        self.maker.applied()
        self.written()
        self.written()
        self.assertIsNone(self.maker.running)
        self.assertEqual(self.held, [True, False, True, False])

    def test_growth_of_the_state_costs_no_pause(self) -> None:
        """What the state grew by is in the log without harm, up to three quarters of the log's growth."""
        self.disk.log_bytes = 1_500_000
        self.state.size_bytes = 1_200_000
        self.maker.applied()
        self.assertEqual(self.held, [])
        self.state.size_bytes = 1_000_000
        self.disk.log_bytes = 1_550_000
        self.maker.applied()
        self.assertEqual(self.held, [True])
        self.state.size_bytes = 9_000_000
        self.maker.applied()
        self.assertEqual(self.held, [True, False])
        self.disk.log_bytes = 1_650_000
        self.maker.applied()
        self.assertEqual(self.held, [True, False, True])

    def test_next_one_when_the_log_outgrows_the_state(self) -> None:
        """The next snapshot is due by what the log grew by beyond the state, as the last one was written."""
        for _ in range(3):
            self.written()
        self.assertIsNone(self.maker.running)
        self.state.applied_upto, self.disk.snapshot_slot = 8, 8
        self.state.size_bytes = 10_000_000
        self.disk.log_bytes = 3_900_000
        self.state.applied_upto = 9
        self.maker.applied()
        self.assertIsNone(self.maker.running)
        self.disk.log_bytes = 4_100_000
        self.maker.applied()
        self.assertIsNotNone(self.maker.running)

    def test_small_groups_share_a_write_in_a_hurry(self) -> None:
        """While the log grows fast, what would be two pieces of storage is one."""
        self.start((bytes(snapshots.GROUP_BYTES),) * 8)
        self.disk.log_bytes = 500_000
        for _ in range(5):
            self.written()
        self.assertIsNone(self.maker.running)
        self.assertEqual([1, 2, 2, 2, 1], [len(each) // snapshots.GROUP_BYTES for each in self.disk.pieces])

    def test_pauses_only_while_the_log_is_short(self) -> None:
        """The next piece waits while there is time, and does not when the log has used half of its room."""
        self.disk.writing[-1].callback(None)
        self.clock.pump([0.0, 4.9])
        self.assertEqual(len(self.disk.writing), 1)
        self.clock.pump([0.2, 0.0])
        self.assertEqual(len(self.disk.writing), 2)
        self.disk.log_bytes = 790_000
        self.written()
        self.assertEqual(len(self.disk.writing), 3)


class SnapshotTests(ClusterCase):
    """A cluster that makes a snapshot every 100 slots."""

    def setUp(self) -> None:
        self.patch(snapshots, "KEEP_SLOTS", 10)
        self.cluster: SimulatedCluster = self.make(seed=2, snapshot_slots=100, segment_bytes=8 << 10)
        self.count = 0

    def write(self, count: int, uid: str = "") -> None:
        """Put some keys through a node that runs."""
        name = uid or next(name for name, node in self.cluster.nodes.items() if node.running)
        node = self.cluster.nodes[name].node
        assert node is not None
        for _ in range(count):
            self.count += 1
            put = Put(b"key %d" % (self.count % 40), b"value %d" % self.count)
            self.cluster.result(node.propose(encode_command(put)), 10)

    def states(self) -> list[tuple[Any, ...]]:
        """Per running node what its replicated state is, once all have applied the same slots."""
        nodes = [node.node for node in self.cluster.nodes.values() if node.node is not None]
        level = lambda: len({node.applier.applied_upto for node in nodes}) == 1  # noqa: E731
        self.assertTrue(self.cluster.run_until(level, 20), "they do not become level")
        return [(n.applier.applied_upto, n.machine.hash(), len(n.state.sessions)) for n in nodes]  # type: ignore[attr-defined]

    def test_logIsLetGo(self) -> None:
        """Snapshots come by themselves, old segments go, and a restart goes on from the newest one."""
        self.write(450)
        before = self.states()
        for node in self.cluster.nodes.values():
            assert node.node is not None
            self.assertGreaterEqual(node.node.storage.snapshot_slot, 400)
            self.assertGreater(node.node.replica.log.log_start, 300)
            node.crash(power_loss=True)
        self.cluster.start()
        self.assertTrue(self.cluster.run_until(lambda: bool(self.cluster.leaders()), 10))
        self.cluster.run(1)
        self.assertEqual(before, self.states())
        self.write(5)

    def behind(self) -> str:
        """Let a follower miss more than the log keeps."""
        self.write(20)
        uid = next(uid for uid in "ABC" if uid not in self.cluster.leaders())
        self.cluster.nodes[uid].crash()
        self.write(400)
        return uid

    def test_farBehind(self) -> None:
        """A node that needs slots that are gone everywhere fetches a snapshot, then the log, and is equal."""
        uid = self.behind()
        self.cluster.nodes[uid].start()
        self.assertEqual(1, len(set(self.states())))
        node = self.cluster.nodes[uid].node
        assert node is not None
        self.assertGreater(node.replica.log.log_start, 300)
        self.write(50)
        self.assertEqual(1, len(set(self.states())))

    def test_fetchedWhileRestoring(self) -> None:
        """A snapshot that comes while the node still reads its own older one is what counts in the end."""
        self.write(120)
        uid = self.behind()
        node = self.cluster.nodes[uid]
        opened: list[int] = []

        def slow_at_first(its_node: Any, storage: Any) -> None:
            open_snapshot = storage.open_snapshot

            def open_slowly() -> Any:
                reader = open_snapshot()
                opened.append(reader.slot)
                if its_node is node and len(opened) == 1:
                    read = reader.read
                    reader.read = lambda number: deferLater(its_node.reactor, 3.0, lambda: read(number))
                return reader

            if its_node is node:
                storage.open_snapshot = open_slowly

        self.cluster.on_storage.append(slow_at_first)
        node.start()
        self.cluster.run(4.0)
        self.assertEqual(1, len(set(self.states())))
        self.assertLess(opened[0], opened[-1], "nothing newer was fetched meanwhile")
        self.write(20)
        self.assertEqual(1, len(set(self.states())))

    def test_cutInBetween(self) -> None:
        """Links that break in the midst of the transfer, and a fetching node that dies in it, only delay."""
        self.patch(snapshots, "GROUP_BYTES", 200)
        uid = self.behind()
        host = self.cluster.nodes[uid].host
        self.cluster.nodes[uid].start()
        for _ in range(3):
            self.cluster.run(0.03)
            self.cluster.network.isolate(host)
            self.cluster.run(0.5)
            self.cluster.network.heal_all()
        self.cluster.nodes[uid].crash(power_loss=True)
        self.cluster.nodes[uid].start()
        self.assertEqual(1, len(set(self.states())))

    def test_wipedNodeNeedsTheVotersToo(self) -> None:
        """A wiped node gets state and voters from a snapshot, and votes again."""
        uid = self.behind()
        victim = self.cluster.nodes[uid]
        victim.disk.wipe()
        victim.start()

        def votes() -> bool:
            return victim.node is not None and victim.node.status().role in ("follower", "leader")

        self.assertTrue(self.cluster.run_until(votes, 20))
        self.assertEqual(1, len(set(self.states())))
        self.write(150)
        for node in self.cluster.nodes.values():
            node.crash()
        self.cluster.start()
        self.assertTrue(self.cluster.run_until(lambda: bool(self.cluster.leaders()), 10))
        self.write(5)
        self.assertEqual(1, len(set(self.states())))

    def test_damagedSnapshot(self) -> None:
        """A flipped bit in the snapshot, found when it is restored: a new incarnation, from the others."""
        self.write(150)
        victim = self.cluster.nodes[next(uid for uid in "ABC" if uid not in self.cluster.leaders())]
        assert victim.node is not None
        old = victim.node.replica.me.incarnation
        victim.crash()
        name = next(name for name in victim.disk.names() if name.startswith("snapshot-"))
        victim.disk.flip_bit(name, victim.disk.size(name) // 2, 4)
        victim.start()

        def votes() -> bool:
            node = victim.node
            return (
                node is not None
                and node.status().role in ("follower", "leader")
                and bool(node.applier.applied_upto)
            )

        self.cluster.run(3)
        self.assertTrue(self.cluster.run_until(votes, 20))
        self.assertNotEqual(old, victim.node.replica.me.incarnation)
        self.assertEqual(1, len(set(self.states())))
