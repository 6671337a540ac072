"""Node processes, without processes."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.client import NodeStatus
from twisted_paxos.testing import nodes
from twisted_paxos.testing.nodes import ClusterProcesses, NodeFailed, NodeProcess, free_ports, poll


class FakeProcess:
    """A spawned process."""

    pid = 4711

    def __init__(self) -> None:
        self.signals: list[str] = []
        self.gone = False

    def signalProcess(self, name: str) -> None:
        """See `IProcessTransport.signalProcess`."""
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)


class SpawningClock(Clock):
    """A reactor that spawns fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[tuple[Any, ...]] = []
        self.processes: list[FakeProcess] = []

    def spawnProcess(self, *arguments: Any) -> FakeProcess:
        """See `IReactorProcess.spawnProcess`."""
        self.spawned.append(arguments)
        self.processes.append(FakeProcess())
        return self.processes[-1]


class PortTests(SynchronousTestCase):
    """Free ports."""

    def test_taken_port(self) -> None:
        """A port that is taken, for TCP or UDP, is not free."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as taken:
                taken.bind(("127.0.0.1", 0))
                if kind == socket.SOCK_STREAM:
                    taken.listen()
                self.assertFalse(nodes._is_free(taken.getsockname()[1]))

    def test_different(self) -> None:
        """Ports are different from each other."""
        self.assertEqual(6, len(set(free_ports(6))))


class NodeProcessTests(SynchronousTestCase):
    """One node."""

    def setUp(self) -> None:
        """A started node."""
        self.reactor = SpawningClock()
        self.node = NodeProcess(self.reactor, "A", ["--peer=A=h:1"], Path("/somewhere"), "127.0.0.1:1")
        self.node.start()

    def end(self, reason: Exception) -> None:
        """The process ends."""
        self.node.processEnded(Failure(reason))

    def test_command(self) -> None:
        """It runs this Python's twistd in the directory, with this twisted_paxos to import."""
        _, executable, command, environment, directory = self.reactor.spawned[0]
        self.assertEqual([executable, "-m", "twisted_paxos", "--id", "A", "--peer=A=h:1"], command)
        self.assertEqual("/somewhere", directory)
        self.assertEqual("1", environment["PYTHONUNBUFFERED"])
        self.assertRaises(NodeFailed, self.node.start)

    def test_output(self) -> None:
        """Output is kept by lines, however it is cut; the last one needs no end."""
        seen: list[str] = []
        self.node.on_line = seen.append
        self.node.outReceived(b"one\ntw")
        self.node.errReceived(b"o\nthr\xff")
        self.end(ProcessDone(0))
        self.assertEqual(["one", "two", "thr\\xff"], seen)
        self.assertEqual(seen, list(self.node.lines))

    def test_kill(self) -> None:
        """SIGKILL, and done when the process has ended."""
        killing = self.node.kill()
        self.assertNoResult(killing)
        self.end(ProcessTerminated(None, signal.SIGKILL))
        self.successResultOf(killing)
        self.assertEqual((-signal.SIGKILL, False), (self.node.exit_status, self.node.running))

    def test_stop_in_time(self) -> None:
        """SIGTERM; no SIGKILL for one that ends in time."""
        stopping = self.node.stop()
        self.end(ProcessDone(0))
        self.successResultOf(stopping)
        self.reactor.advance(nodes.STOP_S)
        self.assertEqual(["TERM"], self.reactor.processes[0].signals)
        self.assertEqual([], self.reactor.getDelayedCalls())

    def test_stop_takes_too_long(self) -> None:
        """SIGKILL for one that does not end."""
        self.node.stop()
        self.reactor.advance(nodes.STOP_S)
        self.assertEqual(["TERM", "KILL"], self.reactor.processes[0].signals)

    def test_stop_of_what_does_not_run(self) -> None:
        """Stopping and killing what has ended is done at once."""
        self.end(ProcessTerminated(1, None))
        self.assertEqual(1, self.node.exit_status)
        self.successResultOf(self.node.stop())
        self.successResultOf(self.node.kill())

    def test_node_that_ends(self) -> None:
        """Who waits for a node that has ended is told at once, with its last line."""
        self.node.outReceived(b"paxos: no such option\n")
        self.end(ProcessTerminated(1, None))
        failure = self.failureResultOf(Deferred.fromCoroutine(self.node.wait_ready()), NodeFailed)
        self.assertIn("status 1: paxos: no such option", str(failure.value))

    def test_ready(self) -> None:
        """Ready is who has a leader and is not joining."""
        answers = [
            None,
            NodeStatus("A", "joining"),
            NodeStatus("A", "follower"),
            NodeStatus("A", "follower", leader="B"),
        ]

        async def status() -> NodeStatus | None:
            return answers.pop(0)

        self.patch(self.node, "status", status)
        waiting = Deferred.fromCoroutine(self.node.wait_ready())
        self.reactor.pump([nodes.POLL_S] * 2)
        self.assertNoResult(waiting)
        self.reactor.pump([nodes.POLL_S])
        self.assertEqual("B", self.successResultOf(waiting).leader)


class ClusterTests(SynchronousTestCase):
    """Several nodes."""

    def test_options(self) -> None:
        """Every node knows every peer, and has its own storage, client port and more options."""
        cluster = ClusterProcesses(
            SpawningClock(), Path("/d"), storages={"B": "sqlite:/d/b.db"}, options=["--heartbeat-ms", "50"]
        )
        cluster.start()
        a, b, c = (node.options for node in cluster.nodes.values())
        self.assertEqual(a[:3], c[:3])
        self.assertEqual(["--peer=A", "--peer=B", "--peer=C"], [option.rsplit("=", 1)[0] for option in a[:3]])
        self.assertIn("file:/d/data/A", a)
        self.assertIn("sqlite:/d/b.db", b)
        self.assertEqual(3, len(set(cluster.endpoints)))
        self.assertIn(f"tcp:{cluster.endpoints[2].split(':')[1]}:interface=127.0.0.1", c)
        self.assertEqual(["--heartbeat-ms", "50"], c[-2:])

    def test_poll_gives_up(self) -> None:
        """A condition that never holds ends with what was waited for."""
        clock = Clock()

        async def never() -> None:
            return None

        waiting = Deferred.fromCoroutine(poll(clock, "rain falls", never, 1.0))
        clock.pump([nodes.POLL_S] * 30)
        self.assertIn("rain falls", str(self.failureResultOf(waiting, NodeFailed).value))
