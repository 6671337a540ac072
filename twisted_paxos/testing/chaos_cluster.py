"""A cluster of real nodes, each in a network namespace of its own, and disks that fill up or stall."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool

from twisted_paxos.client import NodeStatus, SlotEntry, connect
from twisted_paxos.testing.chaos_history import ChaosFailed, History
from twisted_paxos.testing.chaos_network import ChaosError, Network, inside, run
from twisted_paxos.testing.nodes import KEEP_LOG, ClusterProcesses, NodeProcess, poll

PEER_PORT: Final = 5000
CLIENT_PORT: Final = 5100
"""The same on every node: each has an address of its own."""

SETTLE_S: Final = 30.0
"""How long all nodes may take to agree again after a fault."""

LOG_S: Final = 120.0
"""How long one node may take to give the part of its log that is new; it can be hundreds of MB."""

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878
"""Requests to the kernel: every write to this file system waits, until the second one."""

DISK_BYTES: Final = 384 << 20
"""Size of the small disks."""


class Disk:
    """One node's disk: a plain directory, or a file system of its own that can be filled or stalled.

    Args:
        directory: where it is mounted.
        kind: ``plain``, ``small`` (a tmpfs) or ``own`` (ext4 in a file, which can be frozen).
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self._kind = kind
        self._mounted = False
        self._frozen = False

    def mount(self) -> None:
        """Make it.

        Raises:
            ChaosError: that did not work.
        """
        self.directory.mkdir(parents=True)
        if self._kind == "small":
            run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "paxos-chaos", str(self.directory))
        elif self._kind == "own":
            image = self.directory.with_suffix(".image")
            with open(image, "wb") as file:
                file.truncate(DISK_BYTES)
            run("mkfs.ext4", "-q", str(image))
            run("mount", "-o", "loop", str(image), str(self.directory))
        self._mounted = self._kind != "plain"

    def unmount(self) -> None:
        """Take it away, whatever state it is in."""
        self._thaw()
        if self._mounted:
            with contextlib.suppress(ChaosError):
                run("umount", "--lazy", str(self.directory))
            self._mounted = False

    def fill(self) -> None:
        """Leave no room."""
        with open(self._filling, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def make_room(self) -> None:
        """Undo `fill`."""
        self._filling.unlink()

    @property
    def _filling(self) -> Path:
        return self.directory / "filling"

    def freeze(self, reactor: Any) -> Deferred[None]:
        """Let every write and sync wait; fires when it is so."""
        return deferToThreadPool(reactor, reactor.getThreadPool(), self._freeze)

    def thaw(self, reactor: Any) -> Deferred[None]:
        """Undo `freeze`."""
        return deferToThreadPool(reactor, reactor.getThreadPool(), self._thaw)

    def _freeze(self) -> None:
        self._frozen = True
        _request(self.directory, FIFREEZE)

    def _thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            _request(self.directory, FITHAW)


class ChaosCluster(ClusterProcesses):
    """Nodes in the namespaces of a `Network`.

    Args:
        reactor: spawns them.
        directory: their files go below it.
        network: built already; one node for each of its hosts.
        disk: see `Disk`.

    Attributes:
        history: what clients did, and the log as far as it was compared.
        disks: by node.
    """

    def __init__(self, reactor: Any, directory: Path, network: Network, disk: str = "plain") -> None:
        self._reactor = reactor
        self.history = History()
        self.network = network
        self.nodes: dict[str, NodeProcess] = {}
        self.disks: dict[str, Disk] = {}
        peers = [f"--peer={uid}={address}:{PEER_PORT}" for uid, address in network.addresses.items()]
        for uid, address in network.addresses.items():
            self.disks[uid] = Disk(directory / uid, disk)
            options = [*peers, "--storage", f"file:{directory / uid / 'data'}", "--quiet", *KEEP_LOG]
            endpoint = f"{address}:{CLIENT_PORT}"
            self.nodes[uid] = NodeProcess(reactor, uid, options, directory, endpoint, inside(uid))

    def mount(self) -> None:
        """Make the disks.

        Raises:
            ChaosError: that did not work.
        """
        for disk in self.disks.values():
            disk.mount()

    async def close(self) -> None:
        """End every node and take the disks away."""
        for uid, disk in self.disks.items():
            self.nodes[uid].signal("CONT")
            # A process that waits for a frozen disk cannot be killed.
            await disk.thaw(self._reactor)
        await self.kill()
        for disk in self.disks.values():
            disk.unmount()

    def others(self, *uids: str) -> list[str]:
        """The ids of all nodes but ``uids``."""
        return [uid for uid in self.nodes if uid not in uids]

    async def settle(self) -> None:
        """Wait until all nodes agree again, then compare their logs and what was acknowledged.

        Raises:
            ChaosFailed: a promise to users was broken.
            NodeFailed: they did not agree in time.
        """
        await poll(self._reactor, "all nodes have applied the same slots", self._level, SETTLE_S)
        logs: list[list[SlotEntry]] = [await self._read_log(node) for node in self.nodes.values()]
        for node, log in zip(self.nodes.values(), logs, strict=True):
            shortest = min(len(log), len(logs[0]))
            if [_entry(entry) for entry in log[:shortest]] != [_entry(e) for e in logs[0][:shortest]]:
                raise ChaosFailed(f"the log of {node.uid} differs from that of {next(iter(self.nodes))}")
        longest = max(logs, key=len)
        self.history.read(longest)
        self.history.check()

    async def _level(self) -> bool | None:
        statuses: list[NodeStatus] = []
        for node in self.nodes.values():
            status = await node.status()
            if status is None:
                return None
            statuses.append(status)
        return True if len({status.applied for status in statuses}) == 1 else None

    async def _read_log(self, node: NodeProcess) -> list[SlotEntry]:
        reading = Deferred.fromCoroutine(self._entries(node)).addTimeout(LOG_S, self._reactor)
        try:
            return await reading
        except DeferredTimeout:
            raise ChaosFailed(f"node {node.uid} did not give its log within {LOG_S:g} s") from None

    async def _entries(self, node: NodeProcess) -> list[SlotEntry]:
        client = await connect(self._reactor, [node.endpoint])
        try:
            return [entry async for entry in client.read_log(self.history.read_upto + 1)]
        finally:
            await client.close()


def _entry(entry: SlotEntry) -> tuple[int, bytes]:
    return entry.slot, bytes(entry.value)


DIRECTORY_PREFIX: Final = "paxos-chaos-"
"""Of the directory below the system's temporary one that has all files of a run."""


def remove_disks() -> None:
    """Unmount and delete what an earlier run left; only while no other run is under way."""
    top = Path(tempfile.gettempdir())
    for line in Path("/proc/mounts").read_text().splitlines():
        place = Path(line.split()[1])
        if place.is_relative_to(top) and place.relative_to(top).parts[0].startswith(DIRECTORY_PREFIX):
            with contextlib.suppress(OSError):
                _request(place, FITHAW)
            run("umount", "--lazy", str(place))
    for directory in top.glob(DIRECTORY_PREFIX + "*"):
        shutil.rmtree(directory, ignore_errors=True)


def _request(directory: Path, request: int) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def why_no_own_disk() -> str:
    """Why there can be no disk of its own to freeze; empty when there can."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 not found: apt-get install e2fsprogs"
    free = subprocess.run(["losetup", "--find"], capture_output=True)
    return "" if free.returncode == 0 else "there is no loop device"
