"""``paxosctl lock`` and ``paxosctl elect`` as programs, with real commands under them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twisted_paxos.cli.lock import EXIT_LOST
from twisted_paxos.cli.values import EXIT_NO
from twisted_paxos.client import Client, connect
from twisted_paxos.testing.nodes import ClusterProcesses, environment, poll

from .support import PAXOSCTL, SLOW_S, ProcessCase, process_runs

HOLD = "echo $$ $PAXOS_FENCING_TOKEN > held; exec sleep 1000"
"""A command that tells its process id and its token, and stays."""


class Program(ProcessProtocol):
    """A paxosctl that runs until it ends or is ended.

    Attributes:
        output: everything that it said.
        status: its exit code, or minus the signal, once it has ended.
    """

    def __init__(self) -> None:
        self.output = b""
        self.status: int | None = None
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        """It says something."""
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """It has ended."""
        value = reason.value
        self.status = -value.signal if value.signal else value.exitCode  # type: ignore[union-attr]
        self.ended.callback(None)

    def send(self, name: str) -> None:
        """A signal."""
        try:
            self.transport.signalProcess(name)  # type: ignore[union-attr]
        except ProcessExitedAlready:
            return


class LockCase(ProcessCase):
    """A cluster, a client, and programs beside it."""

    async def begin(self) -> tuple[ClusterProcesses, Client]:
        """Start it."""
        cluster = await self.started(options=["--quiet"])
        client = await connect(self.reactor, cluster.endpoints)
        self.addCleanup(client.close)
        return cluster, client

    def run_ctl(self, cluster: ClusterProcesses, *arguments: str) -> Program:
        """A paxosctl, in the test's directory."""
        program = Program()
        command = [*PAXOSCTL, *arguments]
        variables = {**environment(), "PAXOSCTL_ENDPOINTS": ",".join(cluster.endpoints)}
        self.reactor.spawnProcess(program, command[0], command, variables, str(self.directory))
        self.addCleanup(self.end_program, program)
        return program

    async def end_program(self, program: Program) -> None:
        """Whatever it does."""
        program.send("KILL")
        if program.status is None:
            await program.ended

    async def held(self, program: Program, name: str = "held") -> tuple[int, int]:
        """Process id and token of the command that ``program`` runs under a lock, once it runs."""
        path = Path(self.directory, name)

        async def look() -> tuple[int, int] | None:
            self.assertIsNone(program.status, program.output)
            words = path.read_text().split() if path.exists() else []
            return (int(words[0]), int(words[1])) if len(words) == 2 else None

        pid, token = await poll(self.reactor, "the command runs under the lock", look, SLOW_S)
        path.unlink()
        self.addCleanup(kill_if_there, pid)
        return pid, token

    async def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for it."""

        async def look() -> bool | None:
            return True if condition() else None

        await poll(self.reactor, what, look, SLOW_S)


class LockTests(LockCase):
    """A command that runs as long as the lock is held."""

    async def test_lost(self) -> None:
        """When the lock's key is deleted, the command is ended, and the exit status says so."""
        cluster, client = await self.begin()
        program = self.run_ctl(cluster, "lock", "jobs/nightly", "--", "sh", "-c", HOLD)
        pid, token = await self.held(program)
        found = await client.kv.get("jobs/nightly/", prefix=True)
        self.assertEqual([token], [kv.create_revision for kv in found.kvs])
        await client.kv.delete("jobs/nightly/", prefix=True)
        await program.ended
        self.assertEqual(EXIT_LOST, program.status, program.output)
        self.assertIn(b"the lock is lost", program.output)
        self.assertFalse(process_runs(pid))

    async def test_cluster_lost(self) -> None:
        """When the cluster is gone for longer than the lease lives, the command is ended, too."""
        cluster, _ = await self.begin()
        program = self.run_ctl(cluster, "lock", "--ttl-s", "2", "l", "--", "sh", "-c", HOLD)
        pid, _ = await self.held(program)
        await cluster.kill()
        await program.ended
        self.assertEqual(EXIT_LOST, program.status, program.output)
        self.assertFalse(process_runs(pid))

    async def test_next_holder(self) -> None:
        """Who waits goes on with a higher token when the holder, killed, has left its lease to run out."""
        cluster, client = await self.begin()
        first = self.run_ctl(cluster, "lock", "--ttl-s", "2", "l", "--", "sh", "-c", HOLD)
        pid, token = await self.held(first)
        busy = await self.run_program(
            *PAXOSCTL,
            "--endpoints",
            ",".join(cluster.endpoints),
            "lock",
            "--wait-s",
            "0.2",
            "l",
            "--",
            "true",
        )
        self.assertEqual(EXIT_NO, busy.status, busy)
        waiting = await client.kv.get("l/", prefix=True, count_only=True)
        self.assertEqual(1, waiting.count, "one that gave up still stands in the queue")
        second = self.run_ctl(cluster, "lock", "--ttl-s", "2", "l", "--", "sh", "-c", HOLD)
        first.send("KILL")
        its_pid, its_token = await self.held(second)
        self.assertGreater(its_token, token)
        # SIGKILL leaves the first command alone in the world: only the token tells it apart.
        self.assertTrue(process_runs(pid))
        second.send("TERM")
        await second.ended
        await self.until("the second command has ended", lambda: not process_runs(its_pid))


class ElectionTests(LockCase):
    """Standing in an election from the command line."""

    async def test_succession(self) -> None:
        """The next candidate leads when the leader resigns; listeners are shown both."""
        cluster, client = await self.begin()
        listener = self.run_ctl(cluster, "elect", "services/s", "--listen")
        first = self.run_ctl(cluster, "elect", "services/s", "host-1")
        await self.until("the first is shown", lambda: b"host-1" in listener.output)
        second = self.run_ctl(cluster, "elect", "services/s", "host-2")

        async def two() -> bool | None:
            found = await client.kv.get("services/s/", prefix=True, count_only=True)
            return True if found.count == 2 else None

        await poll(self.reactor, "the second waits", two, SLOW_S)
        first.send("INT")
        await first.ended
        await self.until("the second is shown", lambda: b"host-2" in listener.output)
        second.send("INT")
        await second.ended
        found = await client.kv.get("services/s/", prefix=True, count_only=True)
        self.assertEqual(0, found.count)


def kill_if_there(pid: int) -> None:
    """For a command that its paxosctl left."""
    if process_runs(pid):
        os.kill(pid, signal.SIGKILL)
