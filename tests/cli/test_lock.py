"""paxosctl lock and elect, against nodes in memory and processes that are none."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from tests.cli.test_client import CommandCase
from twisted_paxos.cli import keys, lock
from twisted_paxos.client import Client
from twisted_paxos.client.recipes import Election, Lock


class Process:
    """A process that does nothing but take signals.

    Attributes:
        arguments: how it was started.
        signals: what it got.
        ends_on: the signal at which it ends.
    """

    def __init__(self, protocol: Any, arguments: list[bytes], environment: dict[str, str]) -> None:
        self.protocol = protocol
        self.arguments = arguments
        self.environment = environment
        self.signals: list[str] = []
        self.ends_on = "TERM"

    def signalProcess(self, name: str) -> None:
        """Note it."""
        self.signals.append(name)
        if name == self.ends_on:
            self.end(ProcessTerminated(signal=15 if name == "TERM" else 9))

    def end(self, reason: Exception) -> None:
        """It ends."""
        self.protocol.processEnded(Failure(reason))


class LockCase(CommandCase):
    """A command under a lock."""

    def setUp(self) -> None:
        """Processes are fakes."""
        super().setUp()
        self.processes: list[Process] = []
        self.reactor.spawnProcess = self.spawn
        self.holder = self.connect(timeout_s=5.0)

    def spawn(self, protocol: Any, executable: bytes, args: Any, env: Any, childFDs: Any) -> Process:
        """Takes the place of the reactor's."""
        self.assertEqual({0: 0, 1: 1, 2: 2}, childFDs)
        self.processes.append(Process(protocol, args, env))
        return self.processes[-1]

    def lock(self, wait_s: float | None = None, ttl_s: int = 3) -> Deferred[int]:
        """Start ``paxosctl lock job -- work x``."""

        async def work(client: Client) -> int:
            return await lock._lock(client, b"job", ["work", "x"], ttl_s, wait_s)

        return self.start(keys.with_client(self.reactor, self.settings, work))

    def pass_time(self, seconds: float) -> None:
        """Here and in the log."""
        with redirect_stdout(self.out), redirect_stderr(self.err):
            for _ in range(round(seconds / 0.1)):
                self.nodes[0].advance(0.1)
                self.network.run(0.1, step_s=0.05)


class LockTests(LockCase):
    """The command's life."""

    def test_runs(self) -> None:
        """It runs with the fencing token in its environment; its exit status is passed on."""
        running = self.lock()
        (process,) = self.processes
        self.assertEqual([b"work", b"x"], process.arguments)
        found = self.finish(self.holder.kv.get("job/", prefix=True))
        self.assertEqual(str(found.kvs[0].create_revision), process.environment["PAXOS_FENCING_TOKEN"])
        self.assertEqual("job", process.environment["PAXOS_LOCK_NAME"])
        self.pass_time(10)
        self.assertNoResult(running)
        process.end(ProcessTerminated(exitCode=7))
        self.pass_time(0.1)
        self.assertEqual(7, self.successResultOf(running))
        self.assertEqual(0, self.finish(self.holder.kv.get("job/", prefix=True)).count)
        self.assertEqual([], process.signals)

    def test_ended_by_a_signal(self) -> None:
        """A command that ended by a signal has the status that a shell gives it."""
        running = self.lock()
        self.processes[0].end(ProcessTerminated(signal=9))
        self.pass_time(0.1)
        self.assertEqual(137, self.successResultOf(running))

    def test_waits(self) -> None:
        """Nothing runs before the lock is free; with a limit, status 4."""
        other = Lock(self.holder, "job")
        self.finish(other.acquire(), 0.05)
        running = self.lock()
        late = self.lock(wait_s=1.0)
        self.pass_time(1.5)
        self.assertEqual(([], 4), (self.processes, self.successResultOf(late)))
        self.finish(other.release(), 0.1)
        self.assertEqual(1, len(self.processes))
        self.processes[0].end(ProcessDone(0))
        self.pass_time(0.1)
        self.assertEqual(0, self.successResultOf(running))

    def test_lost(self) -> None:
        """When the lock is lost the command gets SIGTERM; the status is 5."""
        running = self.lock()
        self.holder.kv.delete("job/", prefix=True)
        self.pass_time(0.1)
        self.assertEqual(["TERM"], self.processes[0].signals)
        self.assertEqual(5, self.successResultOf(running))
        self.assertIn("the lock is lost", self.err.getvalue())

    def test_lost_and_stubborn(self) -> None:
        """A command that does not end on SIGTERM gets SIGKILL."""
        running = self.lock()
        self.processes[0].ends_on = "KILL"
        self.holder.kv.delete("job/", prefix=True)
        self.pass_time(lock.TERM_S - 0.5)
        self.assertEqual(["TERM"], self.processes[0].signals)
        self.assertNoResult(running)
        self.pass_time(1.0)
        self.assertEqual(["TERM", "KILL"], self.processes[0].signals)
        self.assertEqual(5, self.successResultOf(running))

    def test_cluster_lost(self) -> None:
        """Without the cluster the command is ended before its lease runs out there."""
        running = self.lock()
        for number in (5100, 5101, 5102):
            self.network.kill(number)
        ttl_s = 3.0
        while not self.processes[0].signals:
            self.assertGreater(ttl_s, 0)
            ttl_s -= 0.1
            self.pass_time(0.1)
        self.pass_time(6)
        self.assertEqual(5, self.successResultOf(running))

    def test_interrupted(self) -> None:
        """Ctrl-C ends the command first, then lets the lock go."""
        running = self.lock()
        self.processes[0].ends_on = "KILL"
        running.addErrback(lambda failure: failure)
        running.cancel()
        self.pass_time(1.0)
        self.assertEqual(1, self.finish(self.holder.kv.get("job/", prefix=True)).count)
        self.pass_time(lock.TERM_S)
        self.failureResultOf(running)
        self.assertEqual(0, self.finish(self.holder.kv.get("job/", prefix=True)).count)


class ElectTests(LockCase):
    """paxosctl elect."""

    def elect(self, value: bytes, wait_s: float | None = None) -> Deferred[int]:
        """Stand in the election."""

        async def work(client: Client) -> int:
            return await lock._lead(client, Election(client, b"e", ttl_s=3), value, self.settings, wait_s)

        return self.start(keys.with_client(self.reactor, self.settings, work))

    def test_leads(self) -> None:
        """The first leads and says so; the next one does not within its time, or when the first is gone."""
        first = self.elect(b"one")
        self.assertEqual([["2", "one"]], self.rows())
        late = self.elect(b"late", wait_s=0.5)
        self.pass_time(1)
        self.assertEqual(4, self.successResultOf(late))
        self.assertEqual(1, self.finish(self.holder.kv.get("e/", prefix=True)).count)
        second = self.elect(b"two")
        self.holder.kv.delete("e/", prefix=True)
        self.pass_time(0.2)
        self.assertEqual(5, self.successResultOf(first))
        self.assertIn("leads no more", self.err.getvalue())
        second.addErrback(lambda failure: None)
        second.cancel()
        self.pass_time(0.2)

    def test_listen(self) -> None:
        """Each leader, with its token."""

        async def work(client: Client) -> int:
            return await lock._listen(Election(client, b"e"), self.settings)

        listening = self.start(keys.with_client(self.reactor, self.settings, work))
        listening.addErrback(lambda failure: None)
        with redirect_stdout(self.out):
            election = Election(self.holder, "e")
            token = self.finish(election.campaign("x"), 0.1)
            self.finish(election.proclaim("y"), 0.1)
        self.assertEqual([[str(token), "x"], [str(token), "y"]], self.rows())
        listening.cancel()
        self.network.run(0.1)
