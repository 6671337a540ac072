"""A node whose storage was lost, set back or damaged: it comes back as a new incarnation, and votes again."""

from __future__ import annotations

import shutil
from pathlib import Path

from msgspec import Raw

from twisted_paxos.client import NodeStatus
from twisted_paxos.core import limits
from twisted_paxos.core.messages import decode_value
from twisted_paxos.testing.nodes import ClusterProcesses, NodeProcess, poll

from .support import SLOW_S, ProcessCase, data_directory


class RepairTests(ProcessCase):
    """The one repair path, on real disks."""

    async def away(self) -> tuple[ClusterProcesses, NodeProcess, NodeStatus]:
        """A cluster with values, one follower of which has ended; and how that one was."""
        cluster = await self.started(options=["--quiet"])
        await self.propose(cluster.endpoints, [f"first {number}" for number in range(20)])
        leader = await cluster.leader()
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        before = await follower.wait_ready(SLOW_S)
        await follower.stop()
        return cluster, follower, before

    async def assert_votes_again(
        self, cluster: ClusterProcesses, node: NodeProcess, before: NodeStatus, values: list[str]
    ) -> None:
        """The node is a new incarnation, has the log, and with one other a majority."""

        async def voting() -> NodeStatus | None:
            status = await node.status()
            voting = status is not None and status.role in ("follower", "leader", "candidate")
            return status if voting and status.incarnation != before.incarnation else None

        await poll(self.reactor, f"node {node.uid} votes as a new incarnation", voting, SLOW_S)
        await self.assert_logs_equal(list(cluster.nodes.values()), values)
        await self.wait_for_line(node, f"node {node.uid} votes again, as the new incarnation")
        await poll(self.reactor, "the change of members governs", lambda: self.governs(cluster), SLOW_S)
        third = next(other for other in cluster.nodes.values() if other is not node)
        await third.kill()
        rest = [other.endpoint for other in cluster.nodes.values() if other is not third]
        await self.propose(rest, ["by the new incarnation's vote"])

    async def governs(self, cluster: ClusterProcesses) -> bool | None:
        """Whether all nodes are `ALPHA` slots past its Replace, where the new incarnation counts."""
        statuses = [await node.status() for node in cluster.nodes.values()]
        applied = min(status.applied if status is not None else 0 for status in statuses)
        log = await self.log_of(next(iter(cluster.nodes.values())))
        changes = [slot for slot, value in log if decode_value(Raw(value)).replace is not None]
        return True if changes and applied >= max(changes) + limits.ALPHA - 1 else None

    async def test_wiped(self) -> None:
        """An empty directory where there was one before."""
        cluster, node, before = await self.away()
        shutil.rmtree(data_directory(self, node.uid))
        await self.propose(others_of(cluster, node), ["meanwhile"])
        node.start()
        await self.assert_votes_again(cluster, node, before, ["first 19", "meanwhile"])
        await self.wait_for_line(node, "the cluster knows an earlier life of node")

    async def test_old_copy(self) -> None:
        """A copy of its directory from an earlier time."""
        cluster, node, before = await self.away()
        copy = Path(self.directory, "copy")
        shutil.copytree(data_directory(self, node.uid), copy)
        node.start()
        await node.wait_ready(SLOW_S)
        await self.propose(cluster.endpoints, ["after the copy"])
        await node.stop()
        shutil.rmtree(data_directory(self, node.uid))
        shutil.copytree(copy, data_directory(self, node.uid))
        node.start()
        await self.assert_votes_again(cluster, node, before, ["first 19", "after the copy"])
        await self.wait_for_line(node, "comes back as a new one")

    async def test_flipped_bit(self) -> None:
        """One bit of its log is not what it was."""
        cluster, node, before = await self.away()
        segment = max(data_directory(self, node.uid).glob("*.wal"), key=lambda path: path.stat().st_size)
        content = bytearray(segment.read_bytes())
        place = content.index(b"first 3")
        content[place] ^= 1
        segment.write_bytes(content)
        node.start()
        await self.assert_votes_again(cluster, node, before, ["first 3", "first 19"])
        await self.wait_for_line(node, "It comes back without a vote")


def others_of(cluster: ClusterProcesses, node: NodeProcess) -> list[str]:
    """Client ports of all nodes but ``node``."""
    return [other.endpoint for other in cluster.nodes.values() if other is not node]
