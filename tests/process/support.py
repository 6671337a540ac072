"""What tests with real processes share: a directory, clusters, programs, and an end to all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from twisted_paxos.client import Result, connect
from twisted_paxos.testing.nodes import ClusterProcesses, NodeProcess, _environment, poll

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
PAXOSCTL = (sys.executable, "-c", "import sys; from twisted_paxos.cli import main; main()")

STOPPED = (0, -15)
"""How a node ends on SIGTERM: twistd stops its services, then ends by that same signal."""

SLOW_S = 60.0
"""Longer than anything here takes on a loaded machine; every wait ends when its condition holds."""


class Ended(NamedTuple):
    """A program that has ended."""

    status: int
    output: str
    errors: str


class ProcessCase(TestCase):
    """A test in a directory of its own; whatever it starts is gone when it ends."""

    timeout = 120

    def setUp(self) -> None:
        """An empty directory."""
        self.reactor: Any = reactor
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir(parents=True)
        self._nodes: list[NodeProcess] = []

    def tearDown(self) -> Deferred[Any]:
        """Kill what is left."""
        for node in self._nodes:
            node.signal("CONT")
        return gatherResults([node.kill() for node in self._nodes])

    def cluster(
        self,
        uids: str = "ABC",
        storages: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> ClusterProcesses:
        """A cluster of this test, not started; storage is the default one unless it is said."""
        defaults = {uid: f"file:paxos_data/{uid}" for uid in uids}
        made = ClusterProcesses(self.reactor, self.directory, uids, {**defaults, **(storages or {})}, options)
        self._nodes += made.nodes.values()
        return made

    def node(self, uid: str, options: Sequence[str], endpoint: str, bare_id: bool = False) -> NodeProcess:
        """One more node, not started; ``bare_id``: by ``python -m twisted_paxos ID``."""
        made = (ShortForm if bare_id else NodeProcess)(self.reactor, uid, options, self.directory, endpoint)
        self._nodes.append(made)
        return made

    async def started(
        self,
        uids: str = "ABC",
        storages: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> ClusterProcesses:
        """A cluster that is ready."""
        made = self.cluster(uids, storages, options)
        made.start()
        await made.wait_ready(SLOW_S)
        return made

    async def run_program(self, *command: str, stdin: bytes = b"") -> Ended:
        """Run a program in the test's directory to its end."""
        executable, *arguments = command
        output, errors, status = await getProcessOutputAndValue(
            executable, arguments, _environment(), str(self.directory), self.reactor, stdin or None
        )
        return Ended(status, output.decode(), errors.decode())

    async def propose(self, endpoints: Sequence[str], values: Sequence[str | bytes]) -> list[Result]:
        """Have ``values`` chosen, all of them."""
        client = await connect(self.reactor, endpoints)
        try:
            return await gatherResults(
                [client.propose(value, timeout_s=SLOW_S) for value in values], consumeErrors=True
            )
        finally:
            await client.close()

    async def log_of(self, node: NodeProcess) -> list[tuple[int, bytes]]:
        """The chosen log as ``node`` has it."""
        client = await connect(self.reactor, [node.endpoint])
        try:
            return [(entry.slot, bytes(entry.value)) async for entry in client.read_log()]
        finally:
            await client.close()

    async def assert_logs_equal(self, nodes: Sequence[NodeProcess], values: Sequence[str] = ()) -> None:
        """All nodes come to have the same log, and every one of ``values`` is in it."""

        async def level() -> bool | None:
            statuses = [await node.status() for node in nodes]
            applied = {status.applied for status in statuses if status is not None}
            return True if None not in statuses and len(applied) == 1 else None

        await poll(self.reactor, "all nodes have applied the same slots", level, SLOW_S)
        logs = [await self.log_of(node) for node in nodes]
        # A change of members lets the leader write on by itself: one may be read a little later.
        shortest = min(len(log) for log in logs)
        for log in logs[1:]:
            self.assertEqual(logs[0][:shortest], log[:shortest])
        text = b"".join(value for _, value in logs[0][:shortest])
        self.assertEqual([], [value for value in values if f'"{value}"'.encode() not in text])

    async def wait_for_line(self, node: NodeProcess, part: str) -> str:
        """The first line of output that contains ``part``, once there is one."""

        async def look() -> str | None:
            return next((line for line in node.lines if part in line), None)

        return await poll(self.reactor, f"node {node.uid} says {part!r}", look, SLOW_S)

    def assert_one_line(self, ended: Ended, part: str) -> None:
        """The program failed with exit status 1, and said why in one line that contains ``part``."""
        lines = [line for line in (ended.output + ended.errors).splitlines() if line.startswith("paxos: ")]
        self.assertEqual((1, 1), (ended.status, len(lines)), ended)
        self.assertIn(part, lines[0])
        self.assertNotIn("Traceback", ended.output + ended.errors)


class ShortForm(NodeProcess):
    """A node that is started as the seed was."""

    def command(self) -> list[str]:
        """The id alone, no ``--id``."""
        return [sys.executable, "-m", "twisted_paxos", self.uid, *self.options]


def chosen_lines(node: NodeProcess) -> list[str]:
    """What ``node`` printed of chosen values, without the time and the logger's name."""
    return [line.partition("chosen: ")[2] for line in node.lines if "chosen: " in line]


def data_directory(case: ProcessCase, uid: str) -> Path:
    """Where the default storage of ``uid`` is."""
    return case.directory / "paxos_data" / uid


def process_runs(pid: int) -> bool:
    """Whether there is such a process, one that has not merely ended and waits to be noticed."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
