"""How nodes start, refuse to start, and stop: options, files, ports, daemons."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from twisted_paxos.client import ask_status, connect
from twisted_paxos.errors import OutcomeUnknown, Unavailable
from twisted_paxos.testing.nodes import NodeProcess, free_ports, poll

from .support import SLOW_S, STOPPED, TWISTD, Ended, ProcessCase, process_runs


class StopTests(ProcessCase):
    """One node is a cluster too: enough to start and stop."""

    async def test_stop_and_second_start(self) -> None:
        """A second start of an id says so; SIGTERM stops cleanly, and the node starts again."""
        cluster = await self.started("A")
        node = cluster.nodes["A"]
        await self.propose(cluster.endpoints, ["kept"])
        again = self.node("A", node.options, node.endpoint)
        again.start()
        await again.ended()
        line = again.lines[-1]
        self.assertEqual((1, ["paxos: node A runs already"]), (again.exit_status, [line.partition(" (")[0]]))
        self.assertNotIn("Traceback", "\n".join(again.lines))
        await node.stop()
        self.assertIn(node.exit_status, STOPPED)
        self.assertFalse((self.directory / "paxos-A.pid").exists())
        address = cluster.peer_address("A")
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_INET, kind) as taker:
                taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taker.bind(address)
        node.start()
        await node.wait_ready(SLOW_S)
        await self.assert_logs_equal([node], ["kept"])

    async def test_second_start_without_pid_file(self) -> None:
        """Where pid files differ, the lock on the storage keeps the second process away."""
        cluster = await self.started("A")
        node = cluster.nodes["A"]
        ports = free_ports(2)
        ended = await self.run_program(
            *(*TWISTD, "-n", "--pidfile", "other.pid", "paxos", "--id", "A"),
            *(f"--peer=A=127.0.0.1:{ports[0]}", f"--client=127.0.0.1:{ports[1]}", "--http=none"),
        )
        self.assert_one_line(ended, "runs already")
        self.assertTrue(node.running)

    async def test_short_form(self) -> None:
        """``python -m twisted_paxos A`` is ``twistd -n paxos --id A``."""
        ports = free_ports(2)
        options = [f"--peer=A=127.0.0.1:{ports[0]}", f"--client=127.0.0.1:{ports[1]}", "--http=none"]

        node = self.node("A", options, f"127.0.0.1:{ports[1]}", bare_id=True)
        node.start()
        await node.wait_ready(SLOW_S)
        await self.propose([node.endpoint], ["short"])

    async def test_log_json(self) -> None:
        """With ``--log-json`` each line on the terminal, or in the log file, is one JSON object."""
        ports = free_ports(2)
        options = [f"--peer=A=127.0.0.1:{ports[0]}", f"--client=127.0.0.1:{ports[1]}", "--log-json"]
        node = self.node("A", options, f"127.0.0.1:{ports[1]}")
        node.start()
        await node.wait_ready(SLOW_S)
        await self.propose([node.endpoint], ["in JSON"])
        await self.wait_for_line(node, "in JSON")
        await node.stop()
        self.assert_json_log(node.lines)
        log_file = self.directory / "json.log"
        command = [*TWISTD, "-n", "--logfile", str(log_file), "paxos", "--id", "A", *options]
        running = NodeCommand(self.reactor, self.directory, command, node.endpoint)
        self._nodes.append(running)
        running.start()
        await running.wait_ready(SLOW_S)
        await running.stop()
        self.assert_json_log(log_file.read_text().splitlines())

    def assert_json_log(self, lines: Iterable[str]) -> None:
        """All are JSON, from twistd's first to its last, and ours are among them."""
        texts = [json.loads(line)["text"] for line in lines]
        for part in ("starting up", "node A is ready", "Server Shut Down"):
            self.assertTrue(any(part in text for text in texts), (part, texts))


class NodeCommand(NodeProcess):
    """A node that is started by a whole command line."""

    def __init__(self, reactor: Any, directory: Path, command: list[str], endpoint: str) -> None:
        super().__init__(reactor, "A", [], directory, endpoint)
        self._command = command

    def command(self) -> list[str]:
        """As given."""
        return self._command


class RefusalTests(ProcessCase):
    """What a node cannot be started with: one line, exit status 1, no traceback."""

    def refused(self, *options: str) -> Deferred[Ended]:
        """How ``twistd -n paxos`` with ``options`` ended."""
        command = self.run_program(*TWISTD, "-n", "--pidfile", f"{len(self._started)}.pid", "paxos", *options)
        self._started.append(options)
        return Deferred.fromCoroutine(command)

    def setUp(self) -> None:
        """Nothing started."""
        super().setUp()
        self._started: list[tuple[str, ...]] = []

    async def test_options_and_files(self) -> None:
        """Bad options and files, a busy port, and storage of another node and of another cluster."""
        (self.directory / "bad.toml").write_text("[nodes.A]\nport = 1\n")
        (self.directory / "short.key").write_text("secret")
        (self.directory / "file").write_text("this is no directory")
        cluster = await self.started("A")
        await cluster.nodes["A"].stop()
        ports = free_ports(3)
        alone = (f"--peer=A=127.0.0.1:{ports[0]}", f"--client=127.0.0.1:{ports[1]}", "--http=none")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken, socket.socket() as taken_too:
            taken.bind(("127.0.0.1", 0))
            taken_too.bind(("127.0.0.1", 0))
            taken_too.listen()
            busy, busy_too = taken.getsockname()[1], taken_too.getsockname()[1]
            cases = {
                "--id is missing": [],
                "--heartbeat-ms": ["--id", "A", "--heartbeat-ms", "soon"],
                "bad.toml": ["--id", "A", "--cluster", "bad.toml"],
                "absent.toml": ["--id", "A", "--cluster", "absent.toml"],
                "short.key": ["--id", "A", *alone, "--cluster-key", "short.key"],
                "no-such-option": ["--id", "A", "--no-such-option"],
                "floppy": ["--id", "A", *alone, "--storage", "floppy:A"],
                str(busy): ["--id", "A", f"--peer=A=127.0.0.1:{busy}", "--storage", "file:busy"],
                str(busy_too): [
                    *("--id", "A", alone[0], "--storage", "file:busy-too"),
                    f"--client=127.0.0.1:{busy_too}",
                    "--http=none",
                ],
                "file": ["--id", "A", *alone, "--storage", "file:file"],
                "belongs to node 'A'": [
                    *("--id", "B", f"--peer=B=127.0.0.1:{ports[0]}", alone[1]),
                    *("--storage", "file:paxos_data/A"),
                ],
                "was made for cluster": [
                    *("--id", "A", *alone, f"--peer=B=127.0.0.1:{ports[2]}"),
                    *("--storage", "file:paxos_data/A"),
                ],
            }
            for part, options in cases.items():
                self.assert_one_line(await self.refused(*options), part)


class DaemonTests(ProcessCase):
    """``twistd paxos`` without ``-n``."""

    async def test_daemon(self) -> None:
        """It has its own pid file and log file, serves, and stops by the pid file."""
        ports = free_ports(2)
        endpoint = f"127.0.0.1:{ports[1]}"
        started = await self.run_program(
            *(
                *TWISTD,
                "paxos",
                "--id",
                "A",
                f"--peer=A=127.0.0.1:{ports[0]}",
                f"--client={endpoint}",
                "--http=none",
            )
        )
        self.assertEqual(0, started.status, started.errors)
        pid_file = self.directory / "paxos-A.pid"
        pid = int(pid_file.read_text())
        self.addCleanup(kill_if_there, pid)

        async def ready() -> bool | None:
            try:
                status = await ask_status(self.reactor, endpoint)
            except Unavailable:
                return None
            return True if status.role == "leader" else None

        await poll(self.reactor, "the daemon leads", ready, SLOW_S)
        await self.propose([endpoint], ["by a daemon"])
        self.assertIn("node A is ready", (self.directory / "paxos-A.log").read_text())
        os.kill(pid, signal.SIGTERM)

        async def gone() -> bool | None:
            return True if not process_runs(pid) and not pid_file.exists() else None

        await poll(self.reactor, "the daemon is gone", gone, SLOW_S)

    async def test_refusal(self) -> None:
        """A daemon that cannot start says so to whoever started it, in one line."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            ended = await self.run_program(*TWISTD, "paxos", "--id", "A", f"--peer=A=127.0.0.1:{port}")
        self.assertEqual(1, ended.status)
        self.assertIn(str(port), ended.errors)
        self.assertNotIn("Traceback", ended.errors)


def kill_if_there(pid: int) -> None:
    """For a daemon that a failed test left."""
    if process_runs(pid):
        os.kill(pid, signal.SIGKILL)


class ClusterFileTests(ProcessCase):
    """Who the members are, and how they are reached."""

    async def test_cluster_file_ipv6_observer(self) -> None:
        """A cluster file with IPv6 addresses and an observer, which learns, answers, and has no vote."""
        if not has_ipv6_loopback():
            self.skipTest("this machine has no ::1")
        ports = free_ports(8)
        lines = []
        for place, uid in enumerate("ABCD"):
            lines += [
                f"[nodes.{uid}]",
                f'peer = "[::1]:{ports[place]}"',
                f'client = "[::1]:{ports[place + 4]}"',
            ]
        (self.directory / "cluster.toml").write_text("\n".join([*lines, "observer = true", ""]))
        nodes = {
            uid: self.node(uid, ["--cluster", "cluster.toml"], f"[::1]:{ports[place + 4]}")
            for place, uid in enumerate("ABCD")
        }
        for node in nodes.values():
            node.start()
        statuses = {uid: await node.wait_ready(SLOW_S) for uid, node in nodes.items()}
        self.assertEqual("observer", statuses["D"].role)
        await self.propose([nodes["D"].endpoint], ["through an observer"])
        await self.assert_logs_equal(list(nodes.values()), ["through an observer"])
        # C and D would be two of three, if D's vote counted.
        for uid in "AB":
            await nodes[uid].kill()
        client = await connect(self.reactor, [nodes["C"].endpoint])
        self.addCleanup(client.close)
        with self.assertRaises((OutcomeUnknown, Unavailable)):
            await client.propose("without a majority", timeout_s=1.0)

    async def test_wrong_key(self) -> None:
        """A node with another key is not heard; the others go on, and count what they drop."""
        (self.directory / "key").write_bytes(b"k" * 32)
        (self.directory / "other").write_bytes(b"o" * 32)
        for name in ("key", "other"):
            (self.directory / name).chmod(0o600)
        cluster = self.cluster(options=["--cluster-key", "key", "--quiet"])
        cluster.start()
        await cluster.wait_ready(SLOW_S)
        leader = await cluster.leader()
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await follower.stop()
        stranger = self.node(
            follower.uid,
            [re.sub("^key$", "other", option) for option in follower.options],
            follower.endpoint,
        )
        stranger.start()
        others = [node for node in cluster.nodes.values() if node is not follower]
        await self.propose([node.endpoint for node in others], ["without the stranger"])

        async def dropped() -> bool | None:
            statuses = [await node.status() for node in others]
            return True if all(s is not None and sum(s.dropped.values()) > 0 for s in statuses) else None

        await poll(self.reactor, "the others drop what the stranger sends", dropped, SLOW_S)
        status = await poll(self.reactor, "the stranger answers", stranger.status, SLOW_S)
        self.assertEqual("", status.leader)
        self.assertLess(status.applied, (await others[0].wait_ready()).applied)


def has_ipv6_loopback() -> bool:
    """Whether ::1 can be bound."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
