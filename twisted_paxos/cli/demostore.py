"""The second half of the demo: the key-value store, a watch, and a lock whose holder dies."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twisted_paxos.cli import output
from twisted_paxos.client import Client
from twisted_paxos.client.kv import get, put, value
from twisted_paxos.client.watches import Watch
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.nodes import environment, poll

LOCK_NAME: Final = "demo/lock"
LOCK_TTL_S: Final = 2
HOLD: Final = 'echo "holds the lock, fencing token $PAXOS_FENCING_TOKEN"; cat'
"""What runs under the lock: it says so, and stays until its input ends."""

PAXOSCTL: Final = 'import sys; sys.argv[0] = "paxosctl"; from twisted_paxos.cli import main; main()'

Say = Callable[[str, str], None]
"""Shows a line in a style."""


class Holder(ProcessProtocol):
    """A process ``paxosctl lock``.

    Attributes:
        name: of the process, for people.
        token: what its command printed; 0 before that.
    """

    def __init__(self, reactor: Any, name: str, say: Say) -> None:
        self.name = name
        self.token = 0
        self._reactor = reactor
        self._say = say
        self._process: Any = None
        self._rest = b""
        self._waiting: list[Deferred[None]] = []

    def start(self, endpoints: Sequence[str]) -> None:
        """Spawn it."""
        shell = shutil.which("sh") or "/bin/sh"
        options = ["--endpoints", ",".join(endpoints), "--ttl-s", str(LOCK_TTL_S)]
        command = [sys.executable, "-c", PAXOSCTL, "lock", *options, LOCK_NAME, "--", shell, "-c", HOLD]
        self._process = self._reactor.spawnProcess(self, command[0], command, environment())

    def kill(self) -> None:
        """SIGKILL for paxosctl; what it ran ends because its input does."""
        if self._process is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")
            self._process.closeStdin()

    def finish(self) -> Deferred[None]:
        """End its command; fires when everything has ended."""
        done: Deferred[None] = Deferred()
        if self._process is None:
            done.callback(None)
        else:
            self._process.closeStdin()
            self._waiting.append(done)
        return done

    def outReceived(self, data: bytes) -> None:
        """What the command, or paxosctl, says."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            word = text.rpartition(" ")[2]
            if text.startswith("holds the lock") and word.isdecimal():
                self.token = int(word)
            self._say(f"  {self.name} {output.printable(text)}", "yellow")

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and its pipes are closed."""
        self._process = None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)


class StoreDemo:
    """Shows the store on a running cluster.

    Args:
        reactor: spawns processes.
        client: connected.
        endpoints: of the nodes.
        say: shows a line.
    """

    def __init__(self, reactor: Any, client: Client, endpoints: Sequence[str], say: Say) -> None:
        self._reactor = reactor
        self._client = client
        self._endpoints = endpoints
        self._say = say
        self._events: list[tuple[str, bytes, bytes]] = []
        self._holders: list[Holder] = []

    async def run(self) -> float:
        """Everything; for how many seconds the lock of the killed process kept the next one waiting.

        Raises:
            PaxosError: something was not as it should be.
        """
        await self._keys()
        return await self._lock()

    async def close(self) -> None:
        """Leave no process behind."""
        for holder in self._holders:
            holder.kill()
        await gatherResults([holder.finish() for holder in self._holders])

    async def _keys(self) -> None:
        kv = self._client.kv
        self._say("Keys and values: put, a transaction, a deletion, and a watch that sees each once", "bold")
        async with kv.watch("demo/", prefix=True, start_revision=1) as watch:
            watching = Deferred.fromCoroutine(self._watch(watch))
            await kv.put("demo/colour", "red")
            done = await kv.txn(
                compare=[value("demo/colour") == "red"],
                success=[put("demo/colour", "blue"), put("demo/shape", "circle")],
                failure=[get("demo/colour")],
            )
            deleted = await kv.delete("demo/colour")
            await poll(self._reactor, "the watch has seen everything", self._all_seen)
            found = await kv.get("demo/", prefix=True)
        await watching
        wanted = [
            ("PUT", b"demo/colour", b"red"),
            ("PUT", b"demo/colour", b"blue"),
            ("PUT", b"demo/shape", b"circle"),
            ("DELETE", b"demo/colour", b""),
        ]
        kvs = [(entry.key, entry.value) for entry in found.kvs]
        right = done.succeeded and deleted.deleted == 1 and kvs == [(b"demo/shape", b"circle")]
        if not right or self._events != wanted:
            raise PaxosError(f"the store has {kvs} and the watch has seen {self._events}")

    async def _watch(self, watch: Watch) -> None:
        with contextlib.suppress(CancelledError):
            async for batch in watch:
                for event in batch.events:
                    kv = event.kv
                    self._events.append((event.type, kv.key, kv.value))
                    text = f"{event.type:6} {output.printable(kv.key)} {output.printable(kv.value)}"
                    self._say(f"  watch: revision {kv.mod_revision:>3}  {text}", "green")

    async def _all_seen(self) -> bool | None:
        return True if len(self._events) >= 4 else None

    async def _lock(self) -> float:
        self._say("Two processes want one lock: paxosctl lock NAME -- COMMAND", "bold")
        first = self._start("first")
        await poll(self._reactor, "the first process holds the lock", lambda: self._holds(first))
        second = self._start("second")
        await poll(self._reactor, "the second process waits for it", self._two_wait)
        self._say(
            f"Killing the first (SIGKILL); its lease of {LOCK_TTL_S} s is what the second waits for",
            "bold red",
        )
        killed_s = time.monotonic()
        first.kill()
        await poll(self._reactor, "the second process holds the lock", lambda: self._holds(second))
        waited_s = time.monotonic() - killed_s
        if second.token <= first.token:
            raise PaxosError(f"fencing token {second.token} came after {first.token}")
        self._say(f"Handed over after {waited_s:.2f} s, with a higher fencing token", "bold green")
        await gatherResults([holder.finish() for holder in self._holders])
        return waited_s

    def _start(self, name: str) -> Holder:
        holder = Holder(self._reactor, name, self._say)
        self._holders.append(holder)
        holder.start(self._endpoints)
        return holder

    async def _holds(self, holder: Holder) -> bool | None:
        return True if holder.token else None

    async def _two_wait(self) -> bool | None:
        found = await self._client.kv.get(f"{LOCK_NAME}/", prefix=True, count_only=True)
        return True if found.count == 2 else None
