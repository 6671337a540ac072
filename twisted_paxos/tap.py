"""``twistd paxos``: its options, and the service that twistd runs.

twistd parses the options, calls `makeService`, forks if it is to be a daemon, writes its pid
file, calls ``privilegedStartService``, drops privileges, and calls ``startService``. Whatever
goes wrong on the way becomes one line and exit status 1:

* in the options or in `makeService`: `SystemExit` with the line, which Python prints;
* in ``startService``: `NodeProcess` tells the waiting parent process if there is one, and exits;
* later: `stop_with_message` stops the reactor, so that ports and files are closed, and sees
  to the exit status.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from twisted_paxos import __version__
from twisted_paxos.config import NodeConfig, build_config
from twisted_paxos.errors import ConfigError, PaxosError
from twisted_paxos.jsonlog import json_observer

log = Logger()

GC_THRESHOLDS = (50_000, 50, 1_000)
"""Of the cyclic garbage collector: there are next to no cycles here, and a collection is a pause."""

TWISTD_PID_FILE = "twistd.pid"
"""twistd's default, which nodes started in one directory cannot share (``--pidfile`` replaces it)."""

STATUS_PIPE_MAX_BYTES = 98
"""What twistd's parent process reads of an error message (its own limit is 100 with two of its own)."""

FILES_WANTED = 65_536
"""Open files of a node: twenty thousand HTTP clients, a thousand others, and room."""

EXPECTED = (PaxosError, CannotListenError, OSError)
"""Errors that a line describes; anything else is a mistake of ours and is logged with its traceback."""


class Options(usage.Options):
    """The options of ``twistd paxos``.

    Attributes:
        config: the `NodeConfig` that they give; there once they are parsed.
        pid_file: path of twistd's pid file; None without one.
    """

    synopsis = "[--id ID] [options]"
    longdesc = (
        "Starts one node. Without --cluster or --peer it is one of the built-in cluster: "
        "A, B, C on 127.0.0.1, peer ports 5000-5002 (UDP and TCP), client ports 5100-5102, "
        "HTTP ports 5200-5202."
    )
    optFlags = [
        ["observer", None, "Learn and answer, without a vote."],
        ["quiet", "q", "Do not log each chosen value."],
        ["log-json", None, "Log JSON, one object a line."],
    ]
    optParameters = [
        ["id", None, None, "This node's id, such as A."],
        ["cluster", None, None, "A TOML file that lists the nodes."],
        ["storage", None, None, "file:DIR, sqlite:PATH or memory: [default: file:paxos_data/ID]"],
        ["client", None, None, "Where clients connect: endpoint or host:port [default: peer port + 100]"],
        ["http", None, None, "Where HTTP is served: endpoint, host:port or none [default: peer port + 200]"],
        ["bind", None, None, "The IP address (and port) to bind, where others are told a different one."],
        ["heartbeat-ms", None, None, "Milliseconds between heartbeats [default: 100]"],
        ["disk-stall-ms", None, None, "A leader whose disk is stuck for so long gives way [default: 2000]"],
        ["datagram-max-bytes", None, None, "The largest datagram [default: 60000 on loopback, else 1400]"],
        ["snapshot-slots", None, None, "Make a snapshot after so many slots [default: 10000]"],
        ["snapshot-log-mb", None, None, "Or when the log has grown by so many MiB [default: 40]"],
        ["cluster-key", None, None, "A file with the key that authenticates messages between nodes."],
    ]

    config: NodeConfig
    pid_file: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[str] = []
        self.http_allow_hosts: list[str] = []

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"twisted_paxos {__version__}")
        raise SystemExit(0)

    def opt_peer(self, peer: str) -> None:
        """A voter as ID=host:port; once for each of them, this node included."""
        self.peers.append(peer)

    def opt_http_allow_host(self, name: str) -> None:
        """A host name that HTTP requests may use for this node besides its own; '*': any; may be repeated."""
        self.http_allow_hosts.append(name)

    def parseArgs(self, *args: str) -> None:
        """Refuse what is no option.

        Raises:
            usage.UsageError: there are arguments.
        """
        if args:
            raise usage.UsageError(
                f"unexpected argument {args[0][:80]!r}: values are proposed with paxosctl propose"
            )

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; twistd would print all its help for each mistake, so mistakes end here in one line.

        Raises:
            SystemExit: with that line.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"paxos: {error}") from None

    def postOptions(self) -> None:
        """Build the configuration; give the pid file and the log file this node's name.

        Raises:
            usage.UsageError: an option is wrong, or this node runs already.
        """
        twistd: Any = getattr(self, "parent", None)
        foreground = twistd is None or bool(twistd.get("nodaemon") or twistd.get("debug"))
        if self["id"] is None:
            raise usage.UsageError("--id is missing: say which node this is, such as --id A")
        try:
            self.config = self._build_config(print_chosen=foreground and not self["quiet"])
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None
        if twistd is not None:
            self._name_files(twistd, foreground)
            if self["log-json"]:
                check_json_log(twistd, foreground)

    def _build_config(self, print_chosen: bool) -> NodeConfig:
        texts = ("cluster", "storage", "client", "http", "bind")
        others = (
            *("heartbeat-ms", "disk-stall-ms", "datagram-max-bytes"),
            *("snapshot-slots", "snapshot-log-mb", "cluster-key"),
        )
        given: dict[str, Any] = {name.replace("-", "_"): self[name] for name in texts + others}
        return build_config(
            self["id"],
            peers=self.peers,
            observer=bool(self["observer"]),
            http_allow_hosts=self.http_allow_hosts,
            print_chosen=print_chosen,
            **given,
        )

    def _name_files(self, twistd: Any, foreground: bool) -> None:
        """twistd's default names would clash between nodes started in one directory."""
        uid = self.config.uid
        if twistd.get("pidfile") == TWISTD_PID_FILE:
            twistd["pidfile"] = f"paxos-{uid}.pid"
        if not foreground and twistd.get("logfile") is None:
            # Absolute, because twistd changes directory after it opened the log and before it rotates it.
            twistd["logfile"] = os.path.abspath(f"paxos-{uid}.log")
        if twistd.get("pidfile"):
            self.pid_file = os.path.abspath(twistd["pidfile"])
            clear_stale_pid_file(self.pid_file, uid)


def check_json_log(twistd: Mapping[str, Any], foreground: bool) -> None:
    """Refuse options of twistd that send the log elsewhere.

    Raises:
        usage.UsageError: there is one.
    """
    for option in ("logger", "syslog"):
        if twistd.get(option):
            raise usage.UsageError(f"--log-json and --{option} exclude each other")
    if twistd.get("logfile") == "-" and not foreground:
        raise usage.UsageError("--log-json: a daemon has no terminal to log to; --logfile names a file")


def clear_stale_pid_file(path: str, uid: str) -> None:
    """Remove the pid file of a node that was killed; refuse if its node runs.

    A running node holds a lock on its pid file. The number in it proves nothing: after a
    kill, a reboot or in a new container it may be anyone's, and twistd would refuse to start.
    Should the lock be wrong, storage has one of its own, which decides.

    Raises:
        usage.UsageError: the node runs already, or the file cannot be used.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(64).strip()
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        pid = content.decode("ascii", "replace")
        raise usage.UsageError(f"node {uid} runs already (pid {pid}, {os.path.basename(path)})") from None
    except OSError as error:
        raise usage.UsageError(
            f"cannot use the pid file {path}: {error.strerror}; --pidfile names another"
        ) from None
    if content and not content.isdigit():
        raise usage.UsageError(f"{path} is no pid file; --pidfile names another")
    _remove(path)


def _remove(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise usage.UsageError(f"cannot remove the stale pid file {path}: {error.strerror}") from None


def describe(error: BaseException) -> str:
    """One line for people about what stopped a node."""
    if isinstance(error, CannotListenError):
        reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
        place = f"{error.interface or '*'}:{error.port}"
        return (
            f"cannot listen on {place}: {reason}; --client, --http, --peer and --cluster choose other ports"
        )
    if isinstance(error, PaxosError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"internal error: {error!r}"


class NodeProcess(MultiService):
    """A node as the one service of a process: when the node cannot start or go on, the process ends.

    The node's ``startService`` may raise, or return a Deferred that fails; if the node has an
    attribute ``failed`` (a Deferred), that failing later means that it cannot go on.
    """

    def __init__(
        self,
        reactor: Any,
        node: IService,
        config: NodeConfig,
        pid_file: str | None,
        twistd: Mapping[str, Any],
        log_json: bool = False,
    ) -> None:
        super().__init__()
        self._log_json = log_json
        self._reactor = reactor
        self._node = node
        self._config = config
        self._pid_file = pid_file
        self._pid_lock: Any = None
        self._twistd = twistd
        node.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        """Tell the application, before it begins to log, where to log to."""
        if self._log_json and isinstance(parent, Componentized):
            try:
                observer = json_observer(self._reactor, self._twistd.get("logfile"))
            except OSError as error:
                raise SystemExit(f"paxos: --log-json: {describe(error)}") from None
            parent.setComponent(ILogObserver, observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Lock the pid file, which twistd has just written, while we may still read it."""
        self._lock_pid_file()
        super().privilegedStartService()

    def startService(self) -> None:
        """Start the node, as an unprivileged user in the final process and directory."""
        Service.startService(self)
        for warning in self._config.warnings:
            log.warn("{warning}", warning=warning)
        # Restoring a million keys makes no garbage, and would be looked through again and again.
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            started: Any = self._node.startService()
        except Exception as error:
            self._refuse(error)
        if isinstance(started, Deferred):
            started.addCallback(_settle_memory)
        for outcome in (started, getattr(self._node, "failed", None)):
            if isinstance(outcome, Deferred):
                outcome.addErrback(self._failed)

    def _lock_pid_file(self) -> None:
        if self._pid_file is None or not os.path.exists(self._pid_file):
            return
        try:
            # Not closed: the lock lasts as long as the process.
            self._pid_lock = open(self._pid_file, "rb")  # noqa: SIM115
            fcntl.flock(self._pid_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._pid_file = None
            self._refuse(ConfigError(f"node {self._config.uid} runs already"))
        except OSError as error:
            log.warn("cannot lock {path}: {reason}", path=self._pid_file, reason=error.strerror)

    def _refuse(self, error: Exception) -> NoReturn:
        """End a process that cannot start."""
        message = describe(error)
        if not isinstance(error, EXPECTED):
            log.failure("the node cannot start")
        _say(message, self._twistd)
        self._tell_parent(message)
        self._remove_own_pid_file()
        # The reactor does not run yet, and threads of a half-started node could keep the
        # interpreter from ending: nothing is worth waiting for.
        _exit_now(1)

    def _tell_parent(self, message: str) -> None:
        """A daemon's first process waits on a pipe for how the start went, and reports it."""
        pipe = self._twistd.get("statusPipe")
        if pipe is not None:
            text = message.encode("ascii", "backslashreplace")[:STATUS_PIPE_MAX_BYTES]
            os.write(pipe, b"1 " + text)

    def _remove_own_pid_file(self) -> None:
        try:
            if self._pid_file is not None:
                os.remove(self._pid_file)
        except OSError as error:
            log.warn("cannot remove {path}: {reason}", path=self._pid_file, reason=error.strerror)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if not self.running or not isinstance(error, Exception):
            return
        if not self._reactor.running:
            self._refuse(error)
        if not isinstance(error, EXPECTED):
            log.failure("the node cannot go on", failure)
        stop_with_message(self._reactor, describe(error), self._twistd)


def _settle_memory(result: object) -> object:
    """What is there after the start stays: the garbage collector need not look at it again and again.

    A collection over a million keys takes longer than a heartbeat.
    """
    gc.collect()
    gc.freeze()
    return result


def stop_with_message(reactor: Any, message: str, twistd: Mapping[str, Any] | None = None) -> None:
    """Stop a process whose reactor runs: one line, services are stopped as usual, exit status 1.

    twistd ends with status 0 whenever the reactor was stopped, so the status is set at the
    very end, when twistd has closed its log and removed its pid file.
    """
    _say(message, twistd or {})
    atexit.register(_exit_now, 1)
    if reactor.running:
        reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


def _say(message: str, twistd: Mapping[str, Any]) -> None:
    """The line goes to the terminal, and into the log where that is something else."""
    line = f"paxos: {message}"
    to_terminal = twistd.get("logfile") in (None, "-") and not twistd.get("syslog")
    if not (twistd.get("nodaemon") and to_terminal):
        log.critical("{line}", line=line)
    if sys.__stderr__ is not None:
        print(line, file=sys.__stderr__, flush=True)


def _exit_now(status: int) -> NoReturn:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(status)


def makeService(options: Options) -> IService:
    """The service that twistd runs.

    Raises:
        SystemExit: the configuration cannot be used; with one line that says why.
    """
    from twisted.internet import reactor

    from twisted_paxos.service import build_service

    # The reactor's clock is the wall clock; when that is set back, every timer stands still.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    config = options.config
    raise_file_limit()
    check_endpoint(reactor, config.client, "--client")
    if config.http:
        check_endpoint(reactor, config.http, "--http")
    try:
        node = build_service(reactor, config)
    except PaxosError as error:
        raise SystemExit(f"paxos: {describe(error)}") from None
    twistd = getattr(options, "parent", None) or {}
    return NodeProcess(reactor, node, config, options.pid_file, twistd, bool(options["log-json"]))


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have, up to `FILES_WANTED`: a connection needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_endpoint(reactor: Any, endpoint: str, option: str) -> None:
    """Refuse an endpoint string that Twisted does not understand.

    Raises:
        SystemExit: with one line.
    """
    try:
        serverFromString(reactor, endpoint)
    except Exception as error:  # an endpoint's parser, a plugin perhaps, raises whatever comes of bad text
        reason = " ".join(str(error).split())
        raise SystemExit(f"paxos: {option}: {endpoint[:80]!r} is no server endpoint: {reason}") from None
