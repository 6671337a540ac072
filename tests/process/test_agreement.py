"""Real nodes agree, are killed, and agree on."""

from __future__ import annotations

import random

from twisted_paxos.client import connect
from twisted_paxos.errors import ValueTooLarge
from twisted_paxos.testing.fuzz import Fuzz
from twisted_paxos.testing.nodes import poll
from twisted_paxos.testing.rounds import Rounds

from .support import PAXOSCTL, SLOW_S, ProcessCase, chosen_lines

DATAGRAMS = 20_000
LINES = 2_000


class TerminalTests(ProcessCase):
    """Three nodes in one directory, as in three terminals."""

    async def test_same_lines(self) -> None:
        """Values proposed through each node: every node prints the same slots and values."""
        cluster = await self.started()
        for uid, node in cluster.nodes.items():
            await self.propose([node.endpoint], [f"{uid} {number}" for number in range(5)])

        async def all_printed() -> bool | None:
            printed = [chosen_lines(node) for node in cluster.nodes.values()]
            complete = all(sum("value " in line for line in lines) >= 15 for lines in printed)
            return True if complete and printed[0] == printed[1] == printed[2] else None

        await poll(self.reactor, "all nodes print the same 15 values", all_printed, SLOW_S)
        text = "\n".join(chosen_lines(cluster.nodes["A"]))
        for value in ("A 0", "B 4", "C 2"):
            self.assertIn(value, text)

    async def test_lines_from_a_pipe(self) -> None:
        """``paxosctl propose -`` has each of 2,000 lines chosen, and ``log`` gives them back."""
        cluster = await self.started(options=["--quiet"])
        lines = [f"line {number}" for number in range(LINES)]
        endpoints = ",".join(cluster.endpoints)
        piped = await self.run_program(
            *PAXOSCTL, "--endpoints", endpoints, "propose", "-", stdin="\n".join(lines).encode()
        )
        self.assertEqual(0, piped.status, piped.errors)
        self.assertIn(f"{LINES:,} values chosen", piped.errors)
        self.assertEqual(sorted(lines), sorted(row.split("\t")[2] for row in piped.output.splitlines()))
        shown = await self.run_program(*PAXOSCTL, "--endpoints", cluster.endpoints[2], "log")
        self.assertEqual(0, shown.status, shown.errors)
        for line in ("line 0", f"line {LINES - 1}"):
            self.assertIn(line, shown.output)

    async def test_large_values(self) -> None:
        """A value of 1 MiB goes through a follower, text or not; one byte more gets a clear error."""
        cluster = await self.started(options=["--quiet"])
        leader = await cluster.leader()
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        text, binary = "x" * (1 << 20), random.Random(1).randbytes(1 << 20)
        results = await self.propose([follower.endpoint], [text, binary])
        self.assertTrue(all(result.slot and not result.error for result in results))
        client = await connect(self.reactor, [follower.endpoint])
        with self.assertRaisesRegex(ValueTooLarge, "1,048,57"):
            await client.propose("x" * ((1 << 20) + 1))
        await client.close()
        await self.assert_logs_equal(list(cluster.nodes.values()))

    async def test_demo(self) -> None:
        """``paxosctl demo`` shows that all is well, and exits with 0."""
        ended = await self.run_program(*PAXOSCTL, "demo")
        self.assertEqual(0, ended.status, ended.output + ended.errors)


class KillTests(ProcessCase):
    """kill -9."""

    async def test_leader(self) -> None:
        """The others go on without the leader; restarted, it has what they chose."""
        cluster = await self.started(options=["--quiet"])
        leader = await cluster.leader()
        await self.propose(cluster.endpoints, ["before"])
        await leader.kill()
        others = [node.endpoint for node in cluster.nodes.values() if node is not leader]
        await self.propose(others, ["while it is away"])
        cluster.start()
        await cluster.wait_ready(SLOW_S)
        await self.assert_logs_equal(list(cluster.nodes.values()), ["before", "while it is away"])

    async def test_all_at_once(self) -> None:
        """Nothing acknowledged is lost, with ``file:`` and ``sqlite:`` nodes in one cluster."""
        storages = {"B": "sqlite:b.sqlite", "C": "sqlite:c.sqlite"}
        cluster = await self.started(storages=storages, options=["--quiet"])
        values = [f"value {number}" for number in range(200)]
        await self.propose(cluster.endpoints, values)
        await cluster.kill()
        cluster.start()
        await cluster.wait_ready(SLOW_S)
        await self.propose(cluster.endpoints, ["afterwards"])
        await self.assert_logs_equal(list(cluster.nodes.values()), [*values, "afterwards"])

    async def test_rounds(self) -> None:
        """Three rounds of proposing while nodes are killed: nothing missing, nothing twice."""
        cluster = self.cluster(options=["--quiet"])
        summary = await Rounds(self.reactor, cluster, random.Random(3)).run(3)
        self.assertEqual(3, summary.rounds)
        self.assertGreater(summary.acknowledged, 100)


class FuzzTests(ProcessCase):
    """Bad datagrams."""

    async def test_datagrams(self) -> None:
        """20,000 random and mutated datagrams at a node: it drops them, agrees on, and does not grow."""
        cluster = await self.started(options=["--quiet"])
        fuzz = Fuzz(self.reactor, cluster, random.Random(5))
        summary = await fuzz.run(DATAGRAMS, cluster.peer_address("A"))
        self.assertEqual(DATAGRAMS, summary.sent)
        await self.propose([cluster.nodes["A"].endpoint], ["still here"])
