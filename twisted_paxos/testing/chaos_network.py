"""Network namespaces joined by a bridge, and cuts between them: the network of the chaos tests.

Each host is a namespace of its own with one address of 10.77.0.0/24; the bridge has a namespace
too, so nothing of this machine's own network is touched. A cut is a rule of nftables at the
receiving end: a link can be cut in one direction only. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import FirstError, gatherResults
from twisted.internet.utils import getProcessOutputAndValue

from twisted_paxos.errors import PaxosError

PREFIX: Final = "pxchaos-"
"""All our namespaces are called so; what an earlier run left is found by it."""

SWITCH: Final = "switch"
CLIENT: Final = "client"
"""The namespace of the bridge, and that of the program that writes."""

SUBNET: Final = "10.77.0."
CLIENT_HOST: Final = 2
FIRST_HOST: Final = 11
"""The last numbers of the client's address and of the first node's."""

NAMESPACES: Final = Path("/run/netns")
LOCK_PATH: Final = "/run/lock/paxos-chaos.lock"
CLONE_NEWNET: Final = 0x40000000
COMMAND_TIMEOUT_S: Final = 20.0
TOOLS: Final = {"ip": "iproute2", "nft": "nftables", "nsenter": "util-linux"}
"""Each program that is needed, and Debian's package of it."""


class ChaosError(PaxosError):
    """The network, a disk or a cluster of the chaos tests could not be set up."""


def why_not() -> str:
    """Why chaos tests cannot run here, in one line; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = {tool: package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        names, packages = ", ".join(missing), " ".join(missing.values())
        return f"{names} not found: apt-get install {packages}"
    return ""


def run(*command: str) -> str:
    """Run a short command and return its output.

    Raises:
        ChaosError: it failed, or took longer than `COMMAND_TIMEOUT_S`.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ChaosError(f"{' '.join(command)}: not within {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise ChaosError(f"{' '.join(command)}: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout


def inside(name: str) -> list[str]:
    """The command that runs another one in the namespace of host ``name``."""
    return [shutil.which("nsenter") or "nsenter", f"--net={NAMESPACES / (PREFIX + name)}", "--"]


def rules(cut: Iterable[str], loss: Iterable[str], loss_percent: int) -> str:
    """What nft is to load at a host: drop everything from the addresses ``cut``.

    Args:
        cut: addresses; everything from them is dropped.
        loss: addresses; a random part of what comes from them is dropped.
        loss_percent: how large a part.
    """
    lines = ["add table inet chaos", "delete table inet chaos", "table inet chaos {", "chain arriving {"]
    lines.append("type filter hook input priority 0; policy accept;")
    if cut := sorted(cut):
        lines.append(f"ip saddr {{ {', '.join(cut)} }} drop")
    if (loss := sorted(loss)) and loss_percent:
        lines.append(f"ip saddr {{ {', '.join(loss)} }} numgen random mod 100 < {loss_percent} drop")
    return "\n".join([*lines, "}", "}", ""])


class Network:
    """The hosts, once `build` has run.

    Args:
        names: of the nodes' hosts, each at most eight characters.
        reactor: runs nft.
    """

    def __init__(self, names: Sequence[str], reactor: Any) -> None:
        self.addresses = {name: f"{SUBNET}{FIRST_HOST + place}" for place, name in enumerate(names)}
        self._reactor = reactor
        self._lock: Any = None

    def lock(self) -> None:
        """Keep other runs away, as long as this object is there.

        Raises:
            ChaosError: another run is under way.
        """
        self._lock = open(LOCK_PATH, "w")  # noqa: SIM115 - closed with this object
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChaosError("chaos tests run already on this machine") from None

    def build(self) -> None:
        """Make all namespaces; those of an earlier run go first.

        Raises:
            ChaosError: a command failed.
        """
        remove_leftovers()
        run("ip", "netns", "add", PREFIX + SWITCH)
        switch = ["ip", "-n", PREFIX + SWITCH, "link"]
        run(*switch, "add", "bridge", "type", "bridge")
        run(*switch, "set", "bridge", "up")
        for name, address in {CLIENT: f"{SUBNET}{CLIENT_HOST}", **self.addresses}.items():
            self._add_host(name, address)

    def _add_host(self, name: str, address: str) -> None:
        space, end = PREFIX + name, f"to-{name}"
        run("ip", "netns", "add", space)
        run(
            *("ip", "-n", PREFIX + SWITCH, "link", "add", end, "type", "veth"),
            *("peer", "name", "eth0", "netns", space),
        )
        run("ip", "-n", PREFIX + SWITCH, "link", "set", end, "master", "bridge", "up")
        run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")

    def enter(self) -> None:
        """Make the client's namespace this thread's, and that of every thread begun after it.

        Raises:
            ChaosError: the system refuses.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        with open(NAMESPACES / (PREFIX + CLIENT)) as space:
            if libc.setns(space.fileno(), CLONE_NEWNET):
                raise ChaosError(f"cannot enter a namespace: {os.strerror(ctypes.get_errno())}")

    async def set(self, cut: Collection[tuple[str, str]] = (), loss_percent: int = 0) -> None:
        """Let exactly these faults be between the nodes.

        Args:
            cut: pairs (source, destination): nothing from the one reaches the other.
            loss_percent: of everything between two nodes, that much is lost at random.

        Raises:
            ChaosError: nft failed.
        """
        loading = [self._load(name, self._rules(name, cut, loss_percent)) for name in self.addresses]
        try:
            await gatherResults(loading, consumeErrors=True)
        except FirstError as error:
            raise ChaosError(error.subFailure.getErrorMessage()) from None

    def _rules(self, name: str, cut: Collection[tuple[str, str]], loss_percent: int) -> str:
        sources = [self.addresses[source] for source, destination in cut if destination == name]
        others = [address for other, address in self.addresses.items() if other != name]
        return rules(sources, others, loss_percent)

    def _load(self, name: str, text: str) -> Any:
        nft, *arguments = [*inside(name), "nft", "-f", "-"]
        loading = getProcessOutputAndValue(
            nft, arguments, os.environ, reactor=self._reactor, stdinBytes=text.encode("ascii")
        )

        def check(outcome: tuple[bytes, bytes, int]) -> None:
            if outcome[2]:
                raise ChaosError(f"nft failed: {outcome[1].decode('utf-8', 'replace').strip()}")

        return loading.addCallback(check)


def remove_leftovers() -> None:
    """Remove every namespace of ours, and end what still runs in them."""
    names = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]
    for name in names:
        if not name.startswith(PREFIX):
            continue
        for pid in run("ip", "netns", "pids", name).split():
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", name)


def links(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Both directions of each of the links ``pairs``."""
    return {direction for a, b in pairs for direction in ((a, b), (b, a))}


def all_but(names: Sequence[str], kept: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Both directions of every link between ``names`` but those that are ``kept``."""
    everything = {(a, b) for a in names for b in names if a != b}
    return everything - links(kept)
