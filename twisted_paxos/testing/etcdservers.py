"""One cluster of etcd and one of ours, side by side, for whatever compares their HTTP answers.

Both run on free ports of 127.0.0.1 with their data in one directory. Nothing here uses the reactor: the
programs that compare send one request after the other.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.nodes import environment, free_ports

READY_S: Final = 60.0
STOP_S: Final = 10.0
POLL_S: Final = 0.05
REQUEST_S: Final = 30.0
"""How long a cluster may take to be ready and a server to stop; how often is looked; a request's end."""

UIDS: Final = ("A", "B", "C")

_T = TypeVar("_T")


class ServerFailed(PaxosError):
    """A server did not start, or does not answer; the text ends with its last line of output."""


def wait_until(what: str, condition: Callable[[], _T | None], deadline_s: float = READY_S) -> _T:
    """Ask ``condition`` again and again until it gives something other than None.

    Raises:
        ServerFailed: it does not within ``deadline_s`` seconds.
    """
    end_s = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found is not None:
            return found
        if time.monotonic() >= end_s:
            raise ServerFailed(f"{what}: not within {deadline_s:g} s")
        time.sleep(POLL_S)


class Servers:
    """The processes of one cluster, and where each one's HTTP port is; a context manager.

    Args:
        name: in messages.
        commands: by member, what runs it.
        addresses: by member, ``host:port``.
        directory: where they run; each one's output goes to ``MEMBER.out``.
    """

    def __init__(
        self,
        name: str,
        commands: Mapping[str, Sequence[str]],
        addresses: Mapping[str, str],
        directory: Path,
    ) -> None:
        self.name = name
        self.addresses = list(addresses.values())
        self.directory = directory
        self._commands = commands
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        try:
            self.start()
            wait_until(f"{self.name} serves", self._all_serve)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every member."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for member, command in self._commands.items():
            with (self.directory / f"{member}.out").open("ab") as output:
                self._running[member] = subprocess.Popen(
                    command,
                    cwd=self.directory,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )

    def stop(self) -> None:
        """End every member, by force if it takes long."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def output(self) -> list[str]:
        """All lines that the members printed."""
        texts = (path.read_text(errors="replace") for path in sorted(self.directory.glob("*.out")))
        return [line for text in texts for line in text.splitlines()]

    def _all_serve(self) -> bool | None:
        for member, process in self._running.items():
            if process.poll() is not None:
                lines = (self.directory / f"{member}.out").read_text(errors="replace").splitlines()
                last = lines[-1] if lines else "no output"
                raise ServerFailed(f"{self.name} {member} ended with status {process.returncode}: {last}")
        return True if all(map(_serves, self.addresses)) else None


def post(address: str, path: str, body: Mapping[str, Any]) -> Any:
    """The JSON that one server answers to one request.

    Raises:
        ServerFailed: it does not answer, or with a status other than 200.
    """
    connection = http.client.HTTPConnection(address, timeout=REQUEST_S)
    try:
        connection.request("POST", path, json.dumps(body).encode())
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ServerFailed(f"{address}{path}: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise ServerFailed(f"{address}{path}: {answer.status} {said[:200].decode(errors='replace')}")
    return json.loads(said)


def _serves(address: str) -> bool:
    """Whether a linearizable read comes back: there is a leader."""
    try:
        post(address, "/v3/kv/range", {"key": "AA=="})
    except ServerFailed:
        return False
    return True


def missing_etcd() -> str:
    """Why etcd cannot run here; empty when it can."""
    return "" if shutil.which("etcd") else "there is no etcd: apt-get install etcd-server"


def etcd(directory: Path, members: int = 1, options: Sequence[str] = ()) -> Servers:
    """A cluster of Debian's etcd with default settings: fsync on."""
    uids = UIDS[:members]
    ports = free_ports(2 * members)
    peers = {uid: f"http://127.0.0.1:{port}" for uid, port in zip(uids, ports, strict=False)}
    addresses = {uid: f"127.0.0.1:{port}" for uid, port in zip(uids, ports[members:], strict=True)}
    cluster = ",".join(f"{uid}={url}" for uid, url in peers.items())
    commands = {}
    for uid in uids:
        where = {
            "name": uid,
            "data-dir": str(directory / uid),
            "listen-peer-urls": peers[uid],
            "initial-advertise-peer-urls": peers[uid],
            "listen-client-urls": f"http://{addresses[uid]}",
            "advertise-client-urls": f"http://{addresses[uid]}",
            "initial-cluster": cluster,
        }
        commands[uid] = ["etcd", *(f"--{name}={value}" for name, value in where.items()), *options]
    return Servers("etcd", commands, addresses, directory)


def ours(directory: Path, members: int = 3, options: Sequence[str] = ()) -> Servers:
    """A cluster of this package's nodes with default settings; more ``options`` for all of them."""
    uids = UIDS[:members]
    ports = free_ports(3 * members)
    peers = [f"--peer={uid}=127.0.0.1:{port}" for uid, port in zip(uids, ports, strict=False)]
    addresses, commands = {}, {}
    for number, uid in enumerate(uids):
        client, served = ports[members + number], ports[2 * members + number]
        addresses[uid] = f"127.0.0.1:{served}"
        commands[uid] = [
            *(sys.executable, "-m", "twisted_paxos", "--id", uid, *peers, "--quiet"),
            *("--storage", f"file:{directory / uid}"),
            *("--client", f"tcp:{client}:interface=127.0.0.1"),
            *("--http", f"tcp:{served}:interface=127.0.0.1"),
            *options,
        ]
    return Servers("twisted_paxos", commands, addresses, directory)
