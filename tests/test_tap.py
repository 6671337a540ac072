"""``twistd paxos``: options, file names, and how a process ends that cannot start or go on."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos import __main__ as short_form
from twisted_paxos import tap
from twisted_paxos.config import build_config
from twisted_paxos.errors import StorageDamaged, StorageFailed, StorageLocked


class Ended(BaseException):
    """Stands for the end of the process; the argument is its status."""


class FakeNode(Service):
    """A node that starts as it is told to."""

    def __init__(self, start: Any = None) -> None:
        self.start = start
        self.failed: Deferred[None] = Deferred()

    def startService(self) -> Any:
        super().startService()
        if isinstance(self.start, Exception):
            raise self.start
        return self.start


class TapCase(SynchronousTestCase):
    """An empty current directory, and a standard error that can be read."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        before = Path.cwd()
        os.chdir(directory)
        self.addCleanup(os.chdir, before)
        self.errors = io.StringIO()
        self.patch(sys, "__stderr__", self.errors)

    def twistd(self, *arguments: str) -> ServerOptions:
        """twistd's options, and with them ours, parsed from a command line."""
        options = ServerOptions()
        options.parseOptions(arguments)
        return options

    def refused(self, *arguments: str) -> str:
        """The line with which a command line ends."""
        error = self.assertRaises(SystemExit, self.twistd, "-n", "paxos", *arguments)
        self.assertTrue(error.code.startswith("paxos: "), error.code)
        self.assertNotIn("\n", error.code)
        return error.code


class OptionsTests(TapCase):
    """Parsing."""

    def test_config(self) -> None:
        """Every option reaches the configuration."""
        Path("key").write_bytes(b"0123456789abcdef")
        options = self.twistd(
            *("-n", "paxos", "--id", "D", "--observer", "--storage", "memory:", "--client", "tcp:9"),
            *("--peer", "A=10.0.0.1:7000", "--peer", "D=10.0.0.4:7000", "--bind", "0.0.0.0"),
            *("--heartbeat-ms", "50", "--disk-stall-ms", "700", "--datagram-max-bytes", "900"),
            *("--cluster-key", "key", "--http", "tcp:8"),
            *("--http-allow-host", "a.example", "--http-allow-host", "b.example"),
        ).subOptions
        expected = build_config(
            "D",
            peers=["A=10.0.0.1:7000", "D=10.0.0.4:7000"],
            observer=True,
            storage="memory:",
            client="tcp:9",
            bind="0.0.0.0",
            heartbeat_ms=50,
            disk_stall_ms=700,
            datagram_max_bytes=900,
            cluster_key="key",
            http="tcp:8",
            http_allow_hosts=["a.example", "b.example"],
        )
        self.assertEqual(options.config, expected)

    def test_cluster_file(self) -> None:
        """--cluster is read."""
        Path("c.toml").write_text('[nodes.X]\npeer = "127.0.0.1:7000"')
        self.assertEqual(self.twistd("paxos", "--id", "X", "--cluster", "c.toml").subOptions.config.uid, "X")

    def test_errors(self) -> None:
        """Every mistake is one line: an option's value, a missing or unknown option, an argument."""
        self.assertIn("--id is missing", self.refused())
        self.assertIn("--id", self.refused("--id"))
        self.assertIn("'' is no node id", self.refused("--id", ""))
        self.assertIn("--nonsense", self.refused("--nonsense"))
        self.assertIn("unexpected argument 'value'", self.refused("--id", "A", "value"))
        self.assertIn("--peer", self.refused("--id", "A", "--peer", "x"))
        self.assertIn("/nowhere", self.refused("--id", "A", "--cluster", "/nowhere"))
        self.assertIn("--heartbeat-ms", self.refused("--id", "A", "--heartbeat-ms", "1"))

    def test_print_chosen(self) -> None:
        """Chosen values are logged in the foreground only, and not with --quiet."""
        for arguments, expected in [
            (("-n", "paxos", "--id", "A"), True),
            (("-n", "paxos", "--id", "A", "--quiet"), False),
            (("paxos", "--id", "A"), False),
        ]:
            self.assertEqual(self.twistd(*arguments).subOptions.config.print_chosen, expected, arguments)

    def test_alone(self) -> None:
        """The options can be used without twistd."""
        options = tap.Options()
        options.parseOptions(["--id", "A"])
        self.assertEqual((options.config, options.pid_file), (build_config("A"), None))

    def test_help(self) -> None:
        """Each option's help fits its line, and nothing is without help."""
        text = tap.Options().getUsage(width=100)
        for name in ("--id=", "--peer=", "--observer", "--storage=", "--quiet"):
            self.assertIn(name, text)


class FileNameTests(TapCase):
    """The pid file and the log file."""

    def test_foreground(self) -> None:
        """Each node has its own pid file, so three start in one directory; the log is the terminal."""
        options = self.twistd("-n", "paxos", "--id", "A")
        self.assertEqual((options["pidfile"], options["logfile"]), (os.path.abspath("paxos-A.pid"), None))

    def test_daemon(self) -> None:
        """A daemon has its own log file as well, wherever it changes to."""
        options = self.twistd("paxos", "--id", "A")
        self.assertEqual(options["logfile"], os.path.abspath("paxos-A.log"))

    def test_twistds_options_win(self) -> None:
        """--pidfile and --logfile keep their meaning; an empty --pidfile is none."""
        options = self.twistd("--pidfile", "my.pid", "--logfile", "my.log", "paxos", "--id", "A")
        self.assertEqual((options["pidfile"], options["logfile"]), (os.path.abspath("my.pid"), "my.log"))
        self.assertEqual(options.subOptions.pid_file, os.path.abspath("my.pid"))
        options = self.twistd("--pidfile", "", "paxos", "--id", "A")
        self.assertEqual((options["pidfile"], options.subOptions.pid_file), ("", None))


class PidFileTests(TapCase):
    """A node that runs, and one that was killed."""

    def test_running(self) -> None:
        """While a process holds the lock, a second start is refused in one line with the pid."""
        Path("paxos-A.pid").write_text("123")
        with open("paxos-A.pid") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            message = self.refused("--id", "A")
        self.assertEqual(message, "paxos: node A runs already (pid 123, paxos-A.pid)")
        self.assertTrue(Path("paxos-A.pid").exists())

    def test_stale(self) -> None:
        """A pid file without a lock is removed, even if its pid is that of a living process."""
        for content in (str(os.getpid()), "99999999", ""):
            Path("paxos-A.pid").write_text(content)
            self.twistd("-n", "paxos", "--id", "A")
            self.assertFalse(Path("paxos-A.pid").exists())

    def test_other_node(self) -> None:
        """Another node's pid file is no hindrance."""
        Path("paxos-B.pid").write_text("123")
        with open("paxos-B.pid") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.twistd("-n", "paxos", "--id", "A")

    def test_no_pid_file(self) -> None:
        """A file that is none of ours is not removed."""
        Path("notes").write_text("text")
        error = self.assertRaises(SystemExit, self.twistd, "--pidfile", "notes", "paxos", "--id", "A")
        self.assertIn("is no pid file", error.code)
        self.assertEqual(Path("notes").read_text(), "text")

    def test_unusable(self) -> None:
        """A pid file that cannot be opened is an error in one line."""
        Path("paxos-A.pid").mkdir()
        self.assertIn("cannot use the pid file", self.refused("--id", "A"))

    def test_locked_while_running(self) -> None:
        """A started node holds its pid file, so that the next start is refused."""
        Path("paxos-A.pid").write_text("77")
        process = tap.NodeProcess(
            MemoryReactorClock(), FakeNode(), build_config("A"), os.path.abspath("paxos-A.pid"), {}
        )
        process.privilegedStartService()
        self.assertIn("runs already (pid 77", self.refused("--id", "A"))


class ProcessCase(TapCase):
    """A process whose end is recorded instead of happening."""

    def setUp(self) -> None:
        super().setUp()
        self.at_exit: list[Any] = []
        self.ended: list[int] = []
        self.patch(atexit, "register", lambda *call: self.at_exit.append(call))
        self.patch(tap, "_exit_now", self.end)
        self.reactor = MemoryReactorClock()
        self.reactor.running = False
        self.pid_file = Path("paxos-A.pid").resolve()
        self.pid_file.write_text("1")

    def end(self, status: int) -> None:
        self.ended.append(status)
        raise Ended(status)

    def process(self, node: FakeNode, **twistd: Any) -> tap.NodeProcess:
        """The service of a process."""
        made = tap.NodeProcess(self.reactor, node, build_config("A"), str(self.pid_file), twistd)
        made.privilegedStartService()
        return made


class StartTests(ProcessCase):
    """A start that fails."""

    def assert_refused(self, node: FakeNode, line: str, **twistd: Any) -> None:
        process = self.process(node, **twistd)
        with contextlib.suppress(Ended):
            process.startService()
        self.assertEqual(self.ended, [1])
        self.assertEqual(self.errors.getvalue(), f"paxos: {line}\n")
        self.assertFalse(self.pid_file.exists())

    def test_raises(self) -> None:
        """An error of startService is one line and status 1, and the pid file goes."""
        self.assert_refused(FakeNode(StorageLocked("somebody has it")), "somebody has it", nodaemon=True)

    def test_fails(self) -> None:
        """A Deferred that has failed already is the same."""
        failed = fail(StorageDamaged("byte 7 is bad"))
        self.assert_refused(FakeNode(failed), "byte 7 is bad", nodaemon=True)
        # In a real process nothing comes after the end; here it is an error inside the Deferred.
        self.failureResultOf(failed, Ended)

    def test_busy_port(self) -> None:
        """A busy port is named, with the options that choose another."""
        busy = CannotListenError("127.0.0.1", 5000, OSError(98, "Address already in use"))
        self.assert_refused(
            FakeNode(busy),
            "cannot listen on 127.0.0.1:5000: Address already in use; "
            "--client, --http, --peer and --cluster choose other ports",
            nodaemon=True,
        )

    def test_our_mistake(self) -> None:
        """An unexpected error is one line on the terminal, and a traceback in the log."""
        self.assert_refused(FakeNode(KeyError("x")), "internal error: KeyError('x')", nodaemon=True)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_daemon(self) -> None:
        """A daemon tells its waiting parent, within what that reads."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        self.assert_refused(FakeNode(StorageLocked("é" + "x" * 200)), "é" + "x" * 200, statusPipe=writing)
        told = os.read(reading, 1000)
        self.assertEqual(told[:8], b"1 \\xe9xx")
        self.assertEqual(len(told), 100)

    def test_second_process(self) -> None:
        """Of two that start at once the one without the lock ends, and leaves the other's pid file."""
        first = self.process(FakeNode())
        error = self.assertRaises(Ended, self.process, FakeNode())
        self.assertEqual(error.args, (1,))
        self.assertIn("node A runs already", self.errors.getvalue())
        self.assertTrue(self.pid_file.exists())
        first.startService()
        self.assertTrue(first.running)

    def test_starts(self) -> None:
        """A good start ends nothing; warnings of the configuration are logged."""
        process = self.process(FakeNode(Deferred()))
        process.startService()
        self.assertEqual((self.errors.getvalue(), self.at_exit), ("", []))
        self.assertTrue(process.running)


class FailureTests(ProcessCase):
    """A node that runs and then cannot go on."""

    def start(self, node: FakeNode) -> tap.NodeProcess:
        process = self.process(node, nodaemon=True)
        process.startService()
        self.reactor.running = True
        return process

    def assert_stopped(self, line: str) -> None:
        self.assertEqual(self.errors.getvalue(), f"paxos: {line}\n")
        self.assertTrue(self.reactor.hasStopped)
        self.assertEqual(self.at_exit, [(self.end, 1)])

    def test_start_fails_later(self) -> None:
        """A start that fails later stops the reactor; the status is set for the end of the process."""
        node = FakeNode(Deferred())
        self.start(node)
        node.start.errback(CannotListenError("", 5100, OSError(98, "Address already in use")))
        hint = "--client, --http, --peer and --cluster choose other ports"
        self.assert_stopped(f"cannot listen on *:5100: Address already in use; {hint}")

    def test_failed(self) -> None:
        """The node's ``failed`` does the same."""
        node = FakeNode()
        self.start(node)
        node.failed.errback(StorageFailed("the disk does not answer"))
        self.assert_stopped("the disk does not answer")

    def test_mistake(self) -> None:
        """An unexpected error is logged with its traceback."""
        node = FakeNode()
        self.start(node)
        node.failed.errback(ZeroDivisionError("x"))
        self.assert_stopped("internal error: ZeroDivisionError('x')")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_after_the_stop(self) -> None:
        """What fails because the node was stopped is no failure."""
        node = FakeNode()
        process = self.start(node)
        process.stopService()
        node.failed.errback(StorageFailed("closed"))
        self.assertEqual((self.errors.getvalue(), self.at_exit), ("", []))


class MakeServiceTests(TapCase):
    """`tap.makeService`."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = MemoryReactorClock()
        from twisted.internet import reactor

        self.assertIsNot(reactor, self.reactor)
        self.patch(sys.modules["twisted.internet"], "reactor", self.reactor)

    def options(self, *arguments: str) -> tap.Options:
        return self.twistd("-n", "paxos", "--id", "A", "--storage", "memory:", *arguments).subOptions

    def test_monotonic(self) -> None:
        """The reactor's clock no longer follows the wall clock."""
        import time

        service = tap.makeService(self.options())
        self.assertTrue(IService.providedBy(service))
        self.assertIs(self.reactor.seconds, time.monotonic)

    def test_touches_nothing(self) -> None:
        """Making a service opens no port and makes no file: privileges are dropped only later."""
        options = self.twistd("-n", "paxos", "--id", "A").subOptions
        tap.makeService(options)
        self.assertEqual((self.reactor.tcpServers, self.reactor.getDelayedCalls()), ([], []))
        self.assertEqual(os.listdir(), [])

    def test_bad_endpoint(self) -> None:
        """An endpoint string that Twisted does not take ends in one line."""
        for endpoint in ("tcp:x", "tcp:", "tcp6:x", "ssl:1:privateKey=/nowhere"):
            error = self.assertRaises(SystemExit, tap.makeService, self.options("--client", endpoint))
            self.assertIn("--client", error.code)
            self.assertNotIn("\n", error.code)
            error = self.assertRaises(SystemExit, tap.makeService, self.options("--http", endpoint))
            self.assertIn("--http", error.code)

    def test_file_limit(self) -> None:
        """The process may have as many open files as it is allowed to, and never fewer than before."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1_000), hard))
        tap.raise_file_limit()
        expected = min(tap.FILES_WANTED, hard) if hard != resource.RLIM_INFINITY else tap.FILES_WANTED
        self.assertEqual((expected, hard), resource.getrlimit(resource.RLIMIT_NOFILE))

    def test_bad_storage(self) -> None:
        """So does storage of a kind that nobody provides."""
        options = self.twistd("-n", "paxos", "--id", "A", "--storage", "floppy:a").subOptions
        error = self.assertRaises(SystemExit, tap.makeService, options)
        self.assertIn("floppy", error.code)


class ShortFormTests(SynchronousTestCase):
    """``python -m twisted_paxos A``."""

    def test_arguments(self) -> None:
        """The id comes first; the rest is twistd paxos' own; options alone are passed on."""
        self.assertEqual(short_form.twistd_arguments(["A", "-q"]), ["-n", "paxos", "--id", "A", "-q"])
        self.assertEqual(short_form.twistd_arguments(["--help"]), ["-n", "paxos", "--help"])
        error = self.assertRaises(SystemExit, short_form.twistd_arguments, [])
        self.assertIn("usage: ", error.code)

    def test_runs_twistd(self) -> None:
        """It is twistd that runs, and it parses these arguments."""
        seen: list[list[str]] = []
        self.patch(sys, "argv", ["x", "A"])
        self.patch(short_form.twistd, "run", lambda: seen.append(sys.argv))
        short_form.main()
        self.assertEqual(seen, [["twistd", "-n", "paxos", "--id", "A"]])


class DescribeTests(SynchronousTestCase):
    """`tap.describe`."""

    def test_one_line(self) -> None:
        """Whatever the error, one line."""
        self.assertEqual(tap.describe(StorageDamaged("two\nlines")), "two lines")
        self.assertEqual(tap.describe(FileNotFoundError(2, "No such file", "/x")), "/x: No such file")
        self.assertEqual(tap.describe(OSError("odd")), "odd")
        self.assertEqual(tap.describe(ValueError("v")), "internal error: ValueError('v')")

    def test_usage_error_is_the_base(self) -> None:
        """Refusals inside the parser are twistd's own kind of error."""
        self.assertRaises(usage.UsageError, tap.Options().parseArgs, "x")
