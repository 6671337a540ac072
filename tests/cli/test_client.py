"""propose, log and status, against fake nodes."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from twisted.internet.defer import Deferred

from tests.client.support import ENDPOINTS, ClientCase
from twisted_paxos.cli import client as commands
from twisted_paxos.cli.lines import LongLine
from twisted_paxos.cli.settings import Settings
from twisted_paxos.core import limits
from twisted_paxos.errors import Unavailable


class BrokenOutput(io.StringIO):
    """Standard output whose reader has gone away."""

    def flush(self) -> None:
        """Always fails."""
        raise BrokenPipeError


class CommandCase(ClientCase):
    """Runs the coroutines of commands."""

    def setUp(self) -> None:
        """Settings for the fake nodes."""
        super().setUp()
        self.settings = Settings(endpoints=tuple(ENDPOINTS), timeout_s=5.0)
        self.out = io.StringIO()
        self.err = io.StringIO()

    def start(self, work: Coroutine[Any, Any, int], seconds: float = 0.1) -> Deferred[int]:
        """Run ``work`` for a while."""
        with redirect_stdout(self.out), redirect_stderr(self.err):
            running = Deferred.fromCoroutine(work)
            self.network.run(seconds)
        return running

    def run_for(self, work: Coroutine[Any, Any, int], seconds: float = 0.1) -> int:
        """The exit status of ``work``."""
        return self.successResultOf(self.start(work, seconds))

    def rows(self) -> list[list[str]]:
        """Printed rows, cut at tabs."""
        return [line.split("\t") for line in self.out.getvalue().splitlines()]

    def documents(self) -> list[Any]:
        """Printed JSON documents."""
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


class ProposeTests(CommandCase):
    """Values from the command line."""

    def propose(self, *values: bytes, quiet: bool = False, seconds: float = 0.1) -> int:
        """Run the command."""
        return self.run_for(commands._propose_values(self.reactor, self.settings, values, quiet), seconds)

    def test_rows(self) -> None:
        """Slot, place in the slot, and value, in the order given."""
        self.assertEqual(0, self.propose(b"one", b"\xff\n"))
        self.assertEqual([["2", "0", "one"], ["2", "1", "\\xff\\n"]], self.rows())

    def test_quiet(self) -> None:
        """--quiet prints nothing when all is well."""
        self.assertEqual(0, self.propose(b"one", quiet=True))
        self.assertEqual("", self.out.getvalue() + self.err.getvalue())

    def test_json(self) -> None:
        """One document with all results."""
        self.settings.json = True
        self.propose(b"one", b"\xff")
        (document,) = self.documents()
        self.assertEqual(
            [{"slot": 2, "index": 0, "value": "one"}, {"slot": 2, "index": 1, "base64": "/w=="}],
            document["results"],
        )

    def test_failed_value(self) -> None:
        """A failed value is one line that names it, and exit status 1; the others are reported."""
        self.assertEqual(1, self.propose(b"ok", b"x" * (limits.VALUE_MAX_BYTES + 1)))
        self.assertEqual([["2", "0", "ok"]], self.rows())
        (line,) = self.err.getvalue().splitlines()
        self.assertTrue(line.startswith('paxosctl: value 2, "xxx'), line)

    def test_no_majority(self) -> None:
        """Nodes that take nothing end in one line that points to the status."""
        for node in self.nodes:
            node.hold = True
        self.assertEqual(1, self.propose(b"x", seconds=5.5))
        self.assertIn("paxosctl status", self.err.getvalue())
        self.assertEqual(1, self.err.getvalue().count("\n"))

    def test_no_node(self) -> None:
        """Without any node the command fails at once."""
        self.network.ports.clear()
        running = self.start(commands._propose_values(self.reactor, self.settings, [b"x"], False))
        self.assertIn("twistd -n paxos", str(self.failureResultOf(running, Unavailable).value))


class PipeTests(CommandCase):
    """Lines of standard input."""

    def setUp(self) -> None:
        """Standard input is a descriptor whose content does not matter: lines come from the test."""
        super().setUp()
        descriptor = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        stdin = io.StringIO()
        self.patch(stdin, "fileno", lambda: descriptor)
        self.patch(sys, "stdin", stdin)

    def pipe(self, lines: list[Any], quiet: bool = False, seconds: float = 0.1) -> Deferred[int]:
        """Run the command on ``lines``; a Deferred among them is waited for."""

        class FakeReader:
            def __init__(self, *_: Any) -> None:
                pass

            async def __aiter__(self) -> AsyncIterator[Any]:
                for line in lines:
                    yield (await line) if isinstance(line, Deferred) else line

        self.patch(commands, "LineReader", FakeReader)
        return self.start(commands._propose_lines(self.reactor, self.settings, quiet), seconds)

    def test_rows_and_summary(self) -> None:
        """A row for each line on standard output, a summary on standard error."""
        lines = [str(number).encode() for number in range(5_000)] + [b"", b"x" * 100]
        self.assertEqual(0, self.successResultOf(self.pipe(lines)))
        rows = self.rows()
        self.assertEqual(5_002, len(rows))
        self.assertEqual(["0", "4999", ""], [rows[0][2], rows[4_999][2], rows[5_000][2]])
        self.assertIn("... (100 bytes)", rows[5_001][2])
        self.assertIn("5,002 values chosen", self.err.getvalue())

    def test_quiet(self) -> None:
        """--quiet leaves only the summary."""
        self.successResultOf(self.pipe([b"a"], quiet=True))
        self.assertEqual("", self.out.getvalue())
        self.assertTrue(self.err.getvalue().startswith("1 value chosen"))

    def test_long_line(self) -> None:
        """A line over the limit is named, is not proposed, and makes the exit status 1; the others go on."""
        self.assertEqual(1, self.successResultOf(self.pipe([b"a", LongLine(2_000_000), b"b"])))
        self.assertEqual(["a", "b"], [row[2] for row in self.rows()])
        self.assertIn(
            "paxosctl: line 2: 2,000,000 bytes are over the limit of 1,048,576", self.err.getvalue()
        )
        self.assertIn("1 failed", self.err.getvalue())

    def test_json(self) -> None:
        """One document for each line, with its number, failures too."""
        self.settings.json = True
        self.successResultOf(self.pipe([LongLine(2_000_000), b"b" * 100]))
        failed, done = self.documents()
        self.assertEqual((1, "ValueTooLarge"), (failed["line"], failed["error"]))
        self.assertEqual((2, "b" * 100, 2), (done["line"], done["value"], done["slot"]))

    def test_rows_do_not_wait_for_input(self) -> None:
        """A row is out before the next line comes, even when output is a pipe."""
        flushed = []
        self.patch(self.out, "flush", lambda: flushed.append(self.out.getvalue()))
        later: Deferred[bytes] = Deferred()
        running = self.pipe([b"a", later])
        self.assertEqual(["2\t0\ta\n"], flushed)
        with redirect_stdout(self.out), redirect_stderr(self.err):
            later.callback(b"b")
            self.network.run()
        self.assertEqual(0, self.successResultOf(running))

    def test_cluster_goes_away(self) -> None:
        """After a failure that will not pass, no more lines are read; few lines tell of many failures."""
        for node in self.nodes:
            node.hold = True
        running = self.pipe([b"x"] * 20_000, seconds=10.5)
        self.assertEqual(1, self.successResultOf(running))
        errors = self.err.getvalue().splitlines()
        self.assertLess(len(errors), commands.ERRORS_SHOWN + 5)
        self.assertIn("stopped reading after line", self.err.getvalue())

    def test_closed_pipe(self) -> None:
        """When nobody reads the rows any more, no further line is proposed."""
        self.out = BrokenOutput()
        later: Deferred[bytes] = Deferred()
        running = self.pipe([b"a", later, b"c"])
        with redirect_stdout(self.out), redirect_stderr(self.err):
            later.callback(b"b")
            self.network.run()
        self.successResultOf(running)
        self.assertEqual([0, 1], [command.sequence for command in self.nodes[0].submitted])


class LogTests(CommandCase):
    """The log."""

    def setUp(self) -> None:
        """Three slots."""
        super().setUp()
        client = self.connect()
        for value in ("a", "b"):
            self.finish(client.propose(value))

    def log(self, from_slot: int = 1, follow: bool = False, limit: int | None = None) -> Deferred[int]:
        """Run the command."""
        return self.start(commands._print_log(self.reactor, self.settings, from_slot, follow, limit))

    def test_from_and_limit(self) -> None:
        """From a slot on, so many slots."""
        self.assertEqual(0, self.successResultOf(self.log(from_slot=2, limit=1)))
        self.assertEqual([["2", "1.A", "a"]], self.rows())

    def test_json(self) -> None:
        """One document for each slot."""
        self.settings.json = True
        self.successResultOf(self.log())
        self.assertEqual([1, 2, 3], [document["slot"] for document in self.documents()])

    def test_follow(self) -> None:
        """--follow goes on until it is cancelled, which closes its connection."""
        running = self.log(follow=True)
        self.assertNoResult(running)
        self.assertEqual(3, len(self.rows()))
        running.cancel()
        self.network.run()
        self.failureResultOf(running)
        self.assertEqual([], self.nodes[0].listeners)


class StatusTests(CommandCase):
    """The table of nodes."""

    def status(self, seconds: float = 0.1) -> int:
        """Run the command."""
        return self.run_for(commands._print_status(self.reactor, self.settings), seconds)

    def test_some_unreachable(self) -> None:
        """Nodes that do not answer are shown as such; one that does is enough for status 0."""
        del self.network.ports[5101]
        self.network.silent.add(5102)
        del self.network.ports[5102]
        self.assertEqual(0, self.status(3.2))
        text = self.out.getvalue()
        self.assertIn("127.0.0.1:5101 is unreachable: connection refused", text)
        self.assertIn("127.0.0.1:5102 is unreachable: no answer in time", text)
        self.assertIn("leader", text)

    def test_none(self) -> None:
        """With no node at all the exit status is 1, and a line says how to start one."""
        self.network.ports.clear()
        self.assertEqual(1, self.status())
        self.assertIn("twistd -n paxos", self.err.getvalue())

    def test_json(self) -> None:
        """One document with a list of nodes."""
        self.settings.json = True
        del self.network.ports[5102]
        self.status()
        (document,) = self.documents()
        self.assertEqual([True, True, False], [node["reachable"] for node in document["nodes"]])
