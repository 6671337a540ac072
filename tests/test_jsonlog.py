"""``--log-json``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

from twisted.application.service import Application, Service
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, Logger
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos import tap
from twisted_paxos.config import build_config
from twisted_paxos.jsonlog import json_observer

from .test_tap import TapCase


class ObserverTests(SynchronousTestCase):
    """The observer."""

    def setUp(self) -> None:
        """Signals stay as they are."""
        self.handlers: dict[int, object] = {}
        self.patch(signal, "getsignal", self.handlers.get)
        self.patch(signal, "signal", self.handlers.__setitem__)

    def test_stdout(self) -> None:
        """Each event is one line of JSON with its fields and its whole text; no signal is taken."""
        out = StringIO()
        self.patch(sys, "stdout", out)
        logger = Logger("place", observer=json_observer(MemoryReactorClock(), None))
        logger.warn("{count} datagrams\nwere dropped", count=3)
        logger.info("again")
        first, second = (json.loads(line) for line in out.getvalue().splitlines())
        self.assertEqual("3 datagrams\nwere dropped", first["text"])
        self.assertEqual(
            (3, "place", "warn"), (first["count"], first["log_namespace"], first["log_level"]["name"])
        )
        self.assertEqual("again", second["text"])
        self.assertEqual({}, self.handlers)

    def test_failure(self) -> None:
        """A traceback is in its object, not on lines of its own."""
        out = StringIO()
        self.patch(sys, "stdout", out)
        logger = Logger("place", observer=json_observer(MemoryReactorClock(), "-"))
        try:
            raise KeyError("x")
        except KeyError:
            logger.failure("it failed")
        self.assertIn("it failed", json.loads(out.getvalue())["text"])

    def test_file(self) -> None:
        """It appends to a file; SIGUSR1 starts a new one, on the reactor's thread."""
        path = self.mktemp()
        reactor = MemoryReactorClock()
        asked: list[Callable[[], None]] = []
        reactor.callFromThread = asked.append
        logger = Logger("place", observer=json_observer(reactor, path))
        logger.info("before")
        handler = self.handlers[signal.SIGUSR1]
        assert callable(handler)
        handler(signal.SIGUSR1, None)
        (rotate,) = asked
        rotate()
        logger.info("after")
        self.assertEqual(
            ["before", "after"], [json.loads(Path(name).read_text())["text"] for name in (path + ".1", path)]
        )


class OptionTests(TapCase):
    """The option."""

    def test_refused(self) -> None:
        """Options of twistd that send the log elsewhere exclude it."""
        for twistds, part in (
            (("-n", "--syslog"), "--log-json and --syslog exclude each other"),
            (("-n", "--logger", "os.getcwd"), "--log-json and --logger exclude each other"),
            (("--logfile", "-"), "--logfile names a file"),
        ):
            error = self.assertRaises(SystemExit, self.twistd, *twistds, "paxos", "--id", "A", "--log-json")
            self.assertIn(part, error.code)

    def process(self, logfile: str) -> tap.NodeProcess:
        """A service of a process that logs JSON."""
        return tap.NodeProcess(Clock(), Service(), build_config("A"), None, {"logfile": logfile}, True)

    def test_application(self) -> None:
        """The application is told the observer before it begins to log."""
        application = Application("paxos")
        self.process("json.log").setServiceParent(application)
        application.getComponent(ILogObserver)({"log_format": "one"})
        self.assertEqual("one", json.loads(Path("json.log").read_text())["text"])

    def test_unusable_file(self) -> None:
        """A log file that cannot be opened is one line."""
        Path("taken").mkdir()
        error = self.assertRaises(SystemExit, self.process("taken").setServiceParent, Application("paxos"))
        self.assertTrue(error.code.startswith("paxos: --log-json: "), error.code)
