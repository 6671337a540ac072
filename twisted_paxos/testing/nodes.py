"""Real node processes, for the demo and for tests that kill them.

Each is ``twistd -n paxos`` of the Python that runs this, in a directory of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import site
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twisted_paxos.client import NodeStatus, ask_status
from twisted_paxos.errors import PaxosError, Unavailable

PORTS: Final = range(15_000, 30_000)
"""Where free ports are looked for: below those that systems give to outgoing connections."""

OUTPUT_LINES: Final = 2_000
"""Lines of output kept of each process, the newest ones."""

POLL_S: Final = 0.05
READY_S: Final = 20.0
STOP_S: Final = 5.0
"""How often a condition is looked at; how long a node may take to be ready, and to stop."""

KEEP_LOG: Final = ("--snapshot-slots=999999999", "--snapshot-log-mb=1000000")
"""Options of a node whose whole log is to be read afterwards: snapshots would shorten it."""

_T = TypeVar("_T")


class NodeFailed(PaxosError):
    """A node process did not do what it should; the text ends with its last line of output."""


def free_ports(count: int, rng: random.Random | None = None) -> list[int]:
    """``count`` ports of 127.0.0.1 that are free for both TCP and UDP at this moment."""
    rng = rng or random.SystemRandom()
    found: list[int] = []
    for port in rng.sample(PORTS, len(PORTS)):
        if _is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise NodeFailed("there are no free ports")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


async def poll(
    reactor: Any, what: str, condition: Callable[[], Awaitable[_T | None]], deadline_s: float = READY_S
) -> _T:
    """Wait until ``condition`` gives something other than None, and return that.

    Raises:
        NodeFailed: it did not within ``deadline_s`` seconds; the text says that of ``what``.
    """
    end_s = reactor.seconds() + deadline_s
    while True:
        outcome = await condition()
        if outcome is not None:
            return outcome
        if reactor.seconds() >= end_s:
            raise NodeFailed(f"{what}: not within {deadline_s:g} s")
        await deferLater(reactor, POLL_S)


def environment() -> dict[str, str]:
    """This process's environment, in which the child finds the same twisted_paxos."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    root = str(Path(__file__).resolve().parents[2])
    if root not in [*site.getsitepackages(), site.getusersitepackages()]:
        paths = [root, variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return variables


_environment = environment


class NodeProcess(ProcessProtocol):
    """One node, over several starts.

    Args:
        reactor: spawns the process.
        uid: the node's id.
        options: options of ``twistd paxos`` behind ``--id``.
        directory: where it runs.
        endpoint: of its client port, as clients write it.
        prefix: a command that runs the node as its argument, such as one that enters a namespace.

    Attributes:
        options: of its next start.
        lines: the newest lines of its output, of all starts.
        exit_status: of the last process that ended: its exit code, or minus the signal.
        on_line: called with each line of output.
    """

    def __init__(
        self,
        reactor: Any,
        uid: str,
        options: Sequence[str],
        directory: Path,
        endpoint: str,
        prefix: Sequence[str] = (),
    ) -> None:
        self.uid = uid
        self.endpoint = endpoint
        self.lines: deque[str] = deque(maxlen=OUTPUT_LINES)
        self.exit_status: int | None = None
        self.on_line: Callable[[str], None] | None = None
        self._reactor = reactor
        self.options = list(options)
        self._prefix = list(prefix)
        self._directory = directory
        self._process: Any = None
        self._rest = b""
        self._waiting: list[Deferred[None]] = []

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Spawn the process; `wait_ready` tells when it serves."""
        if self._process is not None:
            raise NodeFailed(f"node {self.uid} runs already")
        command = [*self._prefix, *self.command()]
        self.exit_status = None
        self._process = self._reactor.spawnProcess(
            self, command[0], command, environment(), str(self._directory)
        )

    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "twisted_paxos", "--id", self.uid, *self.options]

    def signal(self, name: str) -> None:
        """Send signal ``KILL``, ``TERM``, ``STOP`` or ``CONT``; nothing if it has ended."""
        if self._process is not None:
            # Twisted knows only some signals by name.
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess(signal.SIGCONT if name == "CONT" else name)

    def kill(self) -> Deferred[None]:
        """SIGKILL; fires when the process has ended."""
        self.signal("KILL")
        return self.ended()

    def stop(self) -> Deferred[None]:
        """SIGTERM, and SIGKILL if it takes longer than `STOP_S`; fires when the process has ended."""
        self.signal("TERM")
        if self._process is not None:
            killing = self._reactor.callLater(STOP_S, self.signal, "KILL")
            return self.ended().addBoth(lambda _: killing.cancel() if killing.active() else None)
        return self.ended()

    def ended(self) -> Deferred[None]:
        """Fires when there is no process."""
        done: Deferred[None] = Deferred()
        if self._process is None:
            done.callback(None)
        else:
            self._waiting.append(done)
        return done

    async def status(self) -> NodeStatus | None:
        """What its client port says; None when it does not answer.

        Raises:
            NodeFailed: there is no process.
        """
        if self._process is None:
            last = self.lines[-1] if self.lines else "no output"
            raise NodeFailed(f"node {self.uid} ended with status {self.exit_status}: {last}")
        try:
            return await ask_status(self._reactor, self.endpoint, timeout_s=1.0)
        except Unavailable:
            return None

    async def wait_ready(self, deadline_s: float = READY_S) -> NodeStatus:
        """Wait until it follows a leader, or is one.

        Raises:
            NodeFailed: it has ended, or is not ready in time.
        """

        async def ready() -> NodeStatus | None:
            status = await self.status()
            return status if status is not None and status.leader and status.role != "joining" else None

        return await poll(self._reactor, f"node {self.uid} is ready", ready, deadline_s)

    # -- called by the reactor ---------------------------------------------------------------

    def outReceived(self, data: bytes) -> None:
        """Some output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            self.lines.append(text)
            if self.on_line is not None:
                self.on_line(text)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """The process is gone, and so are its pipes."""
        value: Any = reason.value
        ended_well = isinstance(value, ProcessDone)
        self.exit_status = 0 if ended_well else -value.signal if value.signal else value.exitCode
        self._process = None
        if self._rest:
            self.outReceived(b"\n")
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)


class ClusterProcesses:
    """A cluster of node processes on free ports of 127.0.0.1.

    Args:
        reactor: spawns them.
        directory: each node's files go below it.
        uids: the nodes.
        storages: per node what follows ``--storage``; default ``file:`` in the directory.
        options: more options for all of them.

    Attributes:
        nodes: by id.
    """

    def __init__(
        self,
        reactor: Any,
        directory: Path,
        uids: Iterable[str] = ("A", "B", "C"),
        storages: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._reactor = reactor
        uids = list(uids)
        ports = free_ports(2 * len(uids))
        peers = [f"--peer={uid}=127.0.0.1:{port}" for uid, port in zip(uids, ports, strict=False)]
        self.nodes: dict[str, NodeProcess] = {}
        self._peer_ports = dict(zip(uids, ports, strict=False))
        for uid, port in zip(uids, ports[len(uids) :], strict=True):
            storage = (storages or {}).get(uid) or f"file:{directory / 'data' / uid}"
            client = f"tcp:{port}:interface=127.0.0.1"
            arguments = [*peers, "--storage", storage, "--client", client, "--http", "none", *options]
            self.nodes[uid] = NodeProcess(reactor, uid, arguments, directory, f"127.0.0.1:{port}")

    @property
    def endpoints(self) -> list[str]:
        """Client ports of all nodes."""
        return [node.endpoint for node in self.nodes.values()]

    def peer_address(self, uid: str) -> tuple[str, int]:
        """Where node ``uid`` listens for its peers."""
        return "127.0.0.1", self._peer_ports[uid]

    def start(self) -> None:
        """Spawn every node that does not run."""
        for node in self.nodes.values():
            if not node.running:
                node.start()

    async def wait_ready(self, deadline_s: float = READY_S) -> list[NodeStatus]:
        """Wait until every running node has a leader.

        Raises:
            NodeFailed: one ended, or is not ready in time.
        """
        return [await node.wait_ready(deadline_s) for node in self.nodes.values() if node.running]

    async def leader(self, deadline_s: float = READY_S) -> NodeProcess:
        """Wait until a running node says that it leads, and return it.

        Raises:
            NodeFailed: none does in time.
        """

        async def leading() -> NodeProcess | None:
            for node in self.nodes.values():
                status = await node.status() if node.running else None
                if status is not None and status.role == "leader":
                    return node
            return None

        return await poll(self._reactor, "a node leads", leading, deadline_s)

    def stop(self) -> Deferred[Any]:
        """Stop every node; fires when no process is left."""
        return gatherResults([node.stop() for node in self.nodes.values()])

    def kill(self) -> Deferred[Any]:
        """SIGKILL every node at once; fires when no process is left."""
        return gatherResults([node.kill() for node in self.nodes.values()])
