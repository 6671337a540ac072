"""Real processes under load, and leaders that are killed: nothing twice, nothing lost, every event once.

    python -m twisted_paxos.testing.kills --clients 8 --kills 20

Clients put, delete and compare-and-swap without a pause, and each watches everything, while the leader is
killed with SIGKILL again and again, and started again. At the end the log is read and compared with
what clients were told and what watchers were given. Exit status 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from twisted_paxos.client import Client, connect
from twisted_paxos.client.watches import Watch
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.errors import Overloaded, PaxosError, Unavailable, WatchCanceled
from twisted_paxos.statemachine.kvcommands import (
    DeleteRange,
    KvCommand,
    KvError,
    Put,
    TxnResult,
    decode_result,
    encode_command,
)
from twisted_paxos.testing.killsjudge import (
    Change,
    PromiseBroken,
    Replayed,
    Told,
    judge_refused,
    judge_told,
    judge_watched,
    swap,
)
from twisted_paxos.testing.nodes import KEEP_LOG, ClusterProcesses, poll

KEYS: Final = 64
WORKERS: Final = 2
"""Commands that one client has under way at a time."""

PAUSE_S: Final = 0.01
"""How long a worker waits between two commands."""

COMMAND_S: Final = 20.0
BETWEEN_S: Final = (0.3, 0.8)
"""How long all is well before a leader is killed, and, the same again, before it is started again."""

SETTLE_S: Final = 30.0
"""So long may it take, at the end, until every node and every watcher has everything."""


class Figures(NamedTuple):
    """What a run was.

    Attributes:
        kills: leaders killed.
        acknowledged, unknown, refused: commands by outcome.
        revisions: of the store at the end.
        events: given to all watchers together.
        gaps_s: after each kill, how long no client had a command acknowledged.
        seconds: how long it all took.
    """

    kills: int
    acknowledged: int
    unknown: int
    refused: int
    revisions: int
    events: int
    gaps_s: tuple[float, ...]
    seconds: float

    def __str__(self) -> str:
        median_s, worst_s = statistics.median(self.gaps_s), max(self.gaps_s)
        return (
            f"{self.kills} leaders killed in {self.seconds:.0f} s:"
            f" {self.acknowledged:,} commands acknowledged,"
            f" none lost, none twice; {self.unknown} of unknown outcome, {self.refused} refused;"
            f" {self.revisions:,} revisions, {self.events:,} events given, each once and in order;"
            f" without an acknowledgement after a kill: median {median_s:.2f} s, worst {worst_s:.2f} s"
        )


class Watcher:
    """Takes every event of a client's watch of everything.

    Attributes:
        name: of the client.
        given: the changes, in order.
        batch_ends: how many there were after each batch.
        failed: why the watch ended, if it did.
    """

    def __init__(self, name: str, watch: Watch) -> None:
        self.name = name
        self.given: list[Change] = []
        self.batch_ends: list[int] = []
        self.failed = ""
        self.watch = watch
        self.ended = Deferred.fromCoroutine(self._follow())

    @property
    def revision(self) -> int:
        """The last one that it was given."""
        return self.given[-1].revision if self.given else 1

    async def _follow(self) -> None:
        try:
            async for batch in self.watch:
                for event in batch.events:
                    kv = event.kv
                    self.given.append(Change(kv.mod_revision, kv.key, kv.value if kv.version else None))
                self.batch_ends.append(len(self.given))
        except WatchCanceled as error:
            self.failed = str(error)


class Kills:
    """Runs it.

    Args:
        reactor: the real one.
        cluster: processes that keep their whole log; started here, stopped by the caller.
        rng: what is done, and when.
        report: called with a line after each kill.
    """

    def __init__(
        self,
        reactor: Any,
        cluster: ClusterProcesses,
        rng: random.Random,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._reactor = reactor
        self._cluster = cluster
        self._rng = rng
        self._report = report
        self._told: list[Told] = []
        self._refused: list[bytes] = []
        self._unknown = 0
        self._serial = 0
        self._working = False
        self._acknowledged_s = 0.0
        self._gap_s = 0.0

    async def run(self, clients: int, kills: int) -> Figures:
        """Do it, and judge.

        Raises:
            PromiseBroken: see there.
            NodeFailed: a node did not start, or not all came to have the same.
        """
        started_s = time.monotonic()
        self._cluster.start()
        await self._cluster.wait_ready()
        connected: list[Client] = [await self._connect() for _ in range(clients)]
        watchers = [
            Watcher(f"client {number}", client.kv.watch(b"", prefix=True, start_revision=1))
            for number, client in enumerate(connected)
        ]
        try:
            gaps_s = await self._under_load(connected, kills)
            figures = await self._judge(watchers, gaps_s, started_s)
        finally:
            for client in connected:
                client.close()
        return figures

    async def _connect(self) -> Client:
        return await connect(self._reactor, self._rng.sample(self._cluster.endpoints, 3))

    async def _under_load(self, clients: Sequence[Client], kills: int) -> list[float]:
        self._working = True
        self._acknowledged_s = time.monotonic()
        jobs = [Deferred.fromCoroutine(self._work(client)) for client in clients for _ in range(WORKERS)]
        workers = gatherResults(jobs, consumeErrors=True)
        try:
            gaps_s = [await self._kill(number) for number in range(1, kills + 1)]
            await self._wait()
        finally:
            self._working = False
            await workers
        return gaps_s

    def _wait(self) -> Deferred[None]:
        return deferLater(self._reactor, self._rng.uniform(*BETWEEN_S))

    async def _kill(self, number: int) -> float:
        """Kill who leads, wait until commands are acknowledged again, and start it again."""
        await self._wait()
        leader = await self._cluster.leader()
        killed_s = time.monotonic()
        self._gap_s = 0.0
        await leader.kill()

        async def acknowledged() -> bool | None:
            return True if self._acknowledged_s > killed_s + 0.1 else None

        await poll(self._reactor, "commands are acknowledged again", acknowledged, SETTLE_S)
        gap_s = self._gap_s
        await self._wait()
        leader.start()
        await self._cluster.wait_ready()
        self._report(f"kill {number}: {leader.uid}; {gap_s:.2f} s; {len(self._told):,} acknowledged")
        return gap_s

    # -- the load

    async def _work(self, client: Client) -> None:
        known: dict[bytes, bytes] = {}
        while self._working:
            await deferLater(self._reactor, PAUSE_S)
            command = self._draw(known)
            payload = encode_command(command)
            try:
                result = await client.command(payload, COMMAND_S)
            except (Overloaded, Unavailable):
                self._refused.append(bytes(payload))
                continue
            except PaxosError:
                self._unknown += 1
                continue
            told: Any = decode_result(result.data)
            if isinstance(told, KvError):
                raise PromiseBroken(f"{bytes(payload)!r} was answered with {told.message}")
            succeeded = told.succeeded if isinstance(told, TxnResult) else True
            self._told.append(Told(bytes(payload), (result.slot, result.index), told.revision, succeeded))
            self._learn(known, command, told)
            now_s = time.monotonic()
            self._gap_s = max(self._gap_s, now_s - self._acknowledged_s)
            self._acknowledged_s = now_s

    def _draw(self, known: dict[bytes, bytes]) -> KvCommand:
        """The next command; no two are the same."""
        self._serial += 1
        key, new = b"k%d" % self._rng.randrange(KEYS), b"v%d" % self._serial
        kind = self._rng.random()
        if kind < 0.5:
            return Put(key, new)
        if kind < 0.9:
            return swap(key, known.get(key, b"?"), new)
        return DeleteRange(key, key + b"\0%d" % self._serial)

    @staticmethod
    def _learn(known: dict[bytes, bytes], command: KvCommand, told: Any) -> None:
        if isinstance(command, Put):
            known[command.key] = command.value
        elif isinstance(told, TxnResult):
            found: Any = told.responses[0]
            if told.succeeded:
                new: Any = command.success[0]  # type: ignore[union-attr]
                known[new.key] = new.value
            elif found.kvs:
                known[found.kvs[0].key] = found.kvs[0].value

    # -- the judgement

    async def _judge(self, watchers: Sequence[Watcher], gaps_s: Sequence[float], started_s: float) -> Figures:
        replayed = Replayed(await self._log())
        judge_told(replayed, self._told)
        judge_refused(replayed, self._refused)

        async def level() -> bool | None:
            ended = [watcher for watcher in watchers if watcher.failed]
            if ended:
                raise PromiseBroken(f"the watch of {ended[0].name} ended: {ended[0].failed}")
            return True if all(w.revision >= replayed.revision for w in watchers) else None

        await poll(self._reactor, "every watcher has everything", level, SETTLE_S)
        for watcher in watchers:
            judge_watched(replayed, watcher.name, watcher.given, watcher.batch_ends)
        return Figures(
            len(gaps_s),
            len(self._told),
            self._unknown,
            len(self._refused),
            replayed.revision,
            sum(len(watcher.given) for watcher in watchers),
            tuple(gaps_s),
            time.monotonic() - started_s,
        )

    async def _log(self) -> list[tuple[int, bytes]]:
        """The log, once every node has applied the same; all nodes have the same one."""
        nodes = list(self._cluster.nodes.values())

        async def level() -> bool | None:
            statuses = [await node.status() for node in nodes]
            applied = {status.applied for status in statuses if status is not None}
            return True if None not in statuses and len(applied) == 1 else None

        await poll(self._reactor, "all nodes have applied the same slots", level, SETTLE_S)
        logs = []
        for node in nodes:
            client = await connect(self._reactor, [node.endpoint])
            entries: list[SlotEntry] = [entry async for entry in client.read_log()]
            await client.close()
            logs.append([(entry.slot, bytes(entry.value)) for entry in entries])
        if any(log != logs[0] for log in logs):
            raise PromiseBroken("the logs of the nodes differ")
        return logs[0]


async def _main(reactor: Any, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="paxos-kills-") as name:
        cluster = ClusterProcesses(reactor, Path(name), options=[*KEEP_LOG, "--quiet"])
        try:
            kills = Kills(reactor, cluster, random.Random(options.seed), print)
            print(await kills.run(options.clients, options.kills))
        except PaxosError as error:
            raise SystemExit(f"kills: {error}") from None
        finally:
            await cluster.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m twisted_paxos.testing.kills", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of what is done, and when")
    options = parser.parse_args(arguments)
    if options.clients < 1 or options.kills < 1:
        parser.error("there must be a client and a kill")
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, options)))


if __name__ == "__main__":
    main()
