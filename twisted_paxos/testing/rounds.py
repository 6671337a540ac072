"""Rounds of real processes being killed: nothing acknowledged is lost, and all logs are equal.

    python -m twisted_paxos.testing.rounds --rounds 50

Each round proposes values without a pause, kills a random node, the leader, or all nodes at once
with SIGKILL in the midst of it, and starts them again. After each round the logs of all nodes are
read and compared with each other and with what was acknowledged.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Raw
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from twisted_paxos.client import Client, connect, payload_of
from twisted_paxos.core.messages import SlotEntry, decode_value
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.nodes import KEEP_LOG, ClusterProcesses, NodeProcess, poll

IN_FLIGHT = 64
SETTLE_S = 20.0


class RoundsFailed(PaxosError):
    """Something acknowledged is missing, is there twice, or the logs differ."""


class Summary(NamedTuple):
    """What the rounds did.

    Attributes:
        rounds: how many.
        kills: processes killed.
        acknowledged: values whose slot was reported.
        unknown: values whose proposer got no answer in time.
        slots: length of the log at the end.
        gap_max_s: the longest time without an acknowledgement.
        seconds: how long it all took.
    """

    rounds: int
    kills: int
    acknowledged: int
    unknown: int
    slots: int
    gap_max_s: float
    seconds: float


class Rounds:
    """Runs them.

    Args:
        reactor: the real one.
        cluster: the processes; started here, stopped by the caller.
        rng: which nodes are killed, and when.
        report: called with one line after each round.
    """

    def __init__(
        self, reactor: Any, cluster: ClusterProcesses, rng: random.Random, report: Any = None
    ) -> None:
        self._reactor = reactor
        self._cluster = cluster
        self._rng = rng
        self._report = report or (lambda line: None)
        self._acknowledged: dict[str, tuple[int, int]] = {}
        self._unknown: set[str] = set()
        self._serial = 0
        self._kills = 0
        self._gap_max_s = 0.0
        self._last_s = 0.0
        self._proposing = False

    async def run(self, rounds: int) -> Summary:
        """Do ``rounds`` rounds.

        Raises:
            RoundsFailed: a promise to users was broken.
        """
        started_s = time.monotonic()
        self._cluster.start()
        await self._cluster.wait_ready()
        slots = 0
        for number in range(1, rounds + 1):
            victims = await self._victims()
            await self._round(victims)
            slots = await self._compare()
            names = "+".join(node.uid for node in victims)
            self._report(
                f"round {number}: killed {names}; {len(self._acknowledged):,} acknowledged,"
                f" {slots:,} slots, all logs equal"
            )
        return Summary(
            rounds,
            self._kills,
            len(self._acknowledged),
            len(self._unknown),
            slots,
            round(self._gap_max_s, 3),
            round(time.monotonic() - started_s, 1),
        )

    async def _victims(self) -> list[NodeProcess]:
        nodes = list(self._cluster.nodes.values())
        kind = self._rng.randrange(3)
        if kind == 0:
            return nodes
        if kind == 1:
            return [await self._cluster.leader()]
        return [self._rng.choice(nodes)]

    async def _round(self, victims: Sequence[NodeProcess]) -> None:
        client: Client = await connect(self._reactor, self._cluster.endpoints)
        self._proposing = True
        self._last_s = self._reactor.seconds()
        workers = gatherResults(
            [Deferred.fromCoroutine(self._propose(client)) for _ in range(IN_FLIGHT)], consumeErrors=True
        )
        await deferLater(self._reactor, self._rng.uniform(0.05, 0.4))
        await gatherResults([node.kill() for node in victims])
        self._kills += len(victims)
        await deferLater(self._reactor, self._rng.uniform(0.0, 0.6))
        self._cluster.start()
        await self._cluster.wait_ready()
        await deferLater(self._reactor, self._rng.uniform(0.05, 0.2))
        self._proposing = False
        await workers
        await client.close()

    async def _propose(self, client: Client) -> None:
        while self._proposing:
            self._serial += 1
            value = f"value {self._serial}"
            try:
                result = await client.propose(value, timeout_s=SETTLE_S)
            except PaxosError:
                self._unknown.add(value)
                continue
            self._acknowledged[value] = (result.slot, result.index)
            now_s = self._reactor.seconds()
            self._gap_max_s = max(self._gap_max_s, now_s - self._last_s)
            self._last_s = now_s

    # -- the comparison

    async def _compare(self) -> int:
        nodes = list(self._cluster.nodes.values())

        async def level() -> bool | None:
            statuses = [await node.status() for node in nodes]
            applied = {status.applied for status in statuses if status is not None}
            return True if None not in statuses and len(applied) == 1 else None

        await poll(self._reactor, "all nodes have applied the same slots", level, SETTLE_S)
        logs = [await self._log(node) for node in nodes]
        for node, log in zip(nodes, logs, strict=True):
            if log != logs[0]:
                raise RoundsFailed(f"the logs of {nodes[0].uid} and {node.uid} differ")
        self._check(logs[0])
        return len(logs[0])

    async def _log(self, node: NodeProcess) -> list[tuple[int, bytes]]:
        client = await connect(self._reactor, [node.endpoint])
        entries: list[SlotEntry] = [entry async for entry in client.read_log()]
        await client.close()
        return [(entry.slot, bytes(entry.value)) for entry in entries]

    def _check(self, log: list[tuple[int, bytes]]) -> None:
        if [slot for slot, _ in log] != list(range(1, len(log) + 1)):
            raise RoundsFailed("a log has a gap")
        places: dict[object, tuple[int, int]] = {}
        seen: set[tuple[str, int]] = set()
        for slot, raw in log:
            for index, command in enumerate(decode_value(Raw(raw)).commands):
                key = (command.client, command.sequence)
                if key not in seen and command.sequence:
                    # A repetition has the same key; it is in the log and was not applied again.
                    seen.add(key)
                    value = payload_of(command)
                    if value in places:
                        raise RoundsFailed(f"{value!r} was chosen twice, as two commands")
                    places[value] = (slot, index)
        for acknowledged, place in self._acknowledged.items():
            found = places.get(acknowledged)
            if found != place:
                raise RoundsFailed(f"{acknowledged!r} was acknowledged at {place}, and is at {found}")


async def _main(reactor: Any, options: argparse.Namespace) -> None:
    storages = options.storage.split(",")
    with tempfile.TemporaryDirectory(prefix="paxos-rounds-") as name:
        directory = Path(name)
        where = {
            uid: f"{storages[place % len(storages)]}:{directory / uid}" for place, uid in enumerate("ABC")
        }
        cluster = ClusterProcesses(reactor, directory, storages=where, options=KEEP_LOG)
        try:
            rounds = Rounds(reactor, cluster, random.Random(options.seed), print)
            summary = await rounds.run(options.rounds)
        except PaxosError:
            for node in cluster.nodes.values():
                status = await node.status() if node.running else None
                print(f"{node.uid}: {status}", *list(node.lines)[-8:], sep="\n    ")
            raise
        finally:
            await cluster.kill()
    print(
        f"{summary.rounds} rounds, {summary.kills} kills: {summary.acknowledged:,} values acknowledged,"
        f" none missing, none twice; {summary.unknown} without an answer; {summary.slots:,} slots;"
        f" longest gap {summary.gap_max_s} s; {summary.seconds} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m twisted_paxos.testing.rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None, help="which nodes are killed, and when")
    parser.add_argument("--storage", default="file", help="providers, in turn: file,sqlite")
    options = parser.parse_args(arguments)
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, options)))


if __name__ == "__main__":
    main()
