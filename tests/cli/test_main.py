"""The command line itself: options, errors, exit statuses."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos import cli
from twisted_paxos.cli import client as commands
from twisted_paxos.cli import running
from twisted_paxos.cli.settings import DEFAULT_ENDPOINTS, Settings
from twisted_paxos.errors import Unavailable


def paxosctl(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = cli.run_cli(arguments)
    return status, out.getvalue(), err.getvalue()


class OptionTests(SynchronousTestCase):
    """The common options."""

    def settings(self, *arguments: str) -> Settings:
        """What ``status`` is called with."""
        seen: list[Settings] = []

        async def status(reactor: Any, settings: Settings) -> int:
            seen.append(settings)
            return 0

        self.patch(commands, "_print_status", status)
        self.patch(commands, "run", lambda work: Deferred.fromCoroutine(work(None)).result)
        self.assertEqual((0, "", ""), paxosctl(*arguments))
        return seen[0]

    def test_defaults(self) -> None:
        """The built-in cluster."""
        self.assertEqual(Settings(DEFAULT_ENDPOINTS, False, 30.0), self.settings("status"))

    def test_before_and_after(self) -> None:
        """Each option may stand before the command or after it."""
        wanted = Settings(("a:1", "b:2"), True, 2.5)
        options = ("--endpoints", "a:1, b:2", "--json", "--timeout-s", "2.5")
        self.assertEqual(wanted, self.settings(*options, "status"))
        self.assertEqual(wanted, self.settings("status", *options))

    def test_environment(self) -> None:
        """PAXOSCTL_ENDPOINTS is the default; an option before the command wins over it."""
        import os

        self.patch(os, "environ", {**os.environ, "PAXOSCTL_ENDPOINTS": "e:9"})
        self.assertEqual(("e:9",), self.settings("status").endpoints)
        self.assertEqual(("a:1",), self.settings("--endpoints", "a:1", "status").endpoints)
        self.assertEqual(("a:1",), self.settings("status", "--endpoints", "a:1").endpoints)

    def test_mistakes(self) -> None:
        """Mistakes of usage are one line with the way to help, and exit status 2."""
        for arguments in (
            ("frob",),
            ("propose",),
            ("status", "--frob"),
            ("--timeout-s", "0", "status"),
            ("--timeout-s", "x", "status"),
            ("--endpoints", " , ", "status"),
            ("log", "--from", "-1"),
            ("log", "--limit", "-1"),
        ):
            status, out, err = paxosctl(*arguments)
            self.assertEqual((2, ""), (status, out), arguments)
            self.assertRegex(err, r"\Apaxosctl: [^\n]* --help\n\Z")

    def test_help(self) -> None:
        """Help lists every command; without a command it is shown with exit status 2."""
        status, out, _ = paxosctl("--help")
        self.assertEqual(0, status)
        for name in cli.COMMANDS:
            self.assertIn(f"  {name} ", out)
        self.assertEqual(2, paxosctl()[0])

    def test_light_import(self) -> None:
        """Starting takes neither Twisted's reactor nor rich: each call pays only for what it uses."""
        code = "import sys, twisted_paxos.cli; print([m for m in ('rich', 'twisted') if m in sys.modules])"
        root = str(Path(cli.__file__).parents[2])
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
        )
        self.assertEqual("[]\n", found.stdout)


class ErrorTests(SynchronousTestCase):
    """Errors of commands."""

    def status_that_raises(self, error: BaseException) -> tuple[int, str, str]:
        """What comes of ``error`` in a command."""

        def run(work: Any) -> int:
            raise error

        self.patch(commands, "run", run)
        return paxosctl("status")

    def test_one_line(self) -> None:
        """Expected errors are one line, whatever line ends their text has, and status 1."""
        self.assertEqual((1, "", "paxosctl: no node\n"), self.status_that_raises(Unavailable("no\nnode")))
        self.assertEqual((1, "", "paxosctl: disk\n"), self.status_that_raises(OSError("disk")))

    def test_interrupted(self) -> None:
        """Ctrl-C is status 130 without a traceback."""
        status, _, err = self.status_that_raises(KeyboardInterrupt())
        self.assertEqual((130, ""), (status, err.strip()))

    def test_closed_pipe(self) -> None:
        """A closed pipe is quiet."""
        self.addCleanup(setattr, sys, "stdout", sys.stdout)
        self.assertEqual((141, "", ""), self.status_that_raises(BrokenPipeError()))

    def test_inspect_nothing(self) -> None:
        """Inspecting what is not there is one line."""
        status, out, err = paxosctl("inspect", "/no/such/directory")
        self.assertEqual((1, ""), (status, out))
        self.assertRegex(err, r"\Apaxosctl: [^\n]*/no/such/directory[^\n]*\n\Z")

    def test_demo_that_fails(self) -> None:
        """A failed demo shows the last lines of the nodes before its own line."""
        from twisted_paxos.cli import demo

        def run(work: Any) -> int:
            raise demo.DemoFailed("the demo failed: x", ["A: last words"])

        self.patch(running, "run", run)
        self.assertEqual((1, "", "A: last words\npaxosctl: the demo failed: x\n"), paxosctl("demo"))


class FakeReactor:
    """What `running` needs of a reactor."""

    def __init__(self) -> None:
        self.running = True
        self.stops = 0

    def stop(self) -> None:
        """Counted."""
        self.stops += 1


class RunTests(SynchronousTestCase):
    """One coroutine on a reactor."""

    def setUp(self) -> None:
        """Signal handlers stay as they were."""
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.reactor = FakeReactor()
        self.pause: Deferred[int] = Deferred()
        self.cleaned: Deferred[None] = Deferred()

    async def work(self, reactor: Any) -> int:
        """Waits for ``pause``, and cleans up as long as ``cleaned`` takes."""
        try:
            return await self.pause
        finally:
            await self.cleaned

    def test_result(self) -> None:
        """The status comes out, and the reactor is stopped once."""
        job = running._Run(self.reactor, self.work)
        job.start()
        self.cleaned.callback(None)
        self.pause.callback(7)
        self.assertEqual((7, 1, False), (job.outcome, self.reactor.stops, job.interrupted))
        self.assertIsNone(job.shutting_down())

    def test_interrupt(self) -> None:
        """A shutdown cancels the work and waits for its clean-up."""
        job = running._Run(self.reactor, self.work)
        job.start()
        waiting = job.shutting_down()
        assert waiting is not None
        self.assertNoResult(waiting)
        self.cleaned.callback(None)
        self.successResultOf(waiting)
        self.assertTrue(job.interrupted)
        job.outcome.trap(CancelledError)
