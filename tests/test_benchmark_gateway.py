"""The benchmark of the JSON gateway: what it sends, and what it makes of wrk's figures."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
# The benchmarks are part of a checkout only; a module's `skip` skips all its tests.
try:
    from benchmarks import gateway
    from benchmarks.processes import BenchmarkError
except ImportError as missing:
    if missing.name != "benchmarks":
        raise
    skip = "not started from a checkout"


def run(operations: int, rate_per_s: float = 100.0, p99_ms: float = 1.0) -> dict[str, float]:
    """Figures as wrk gives them."""
    return {"operations": operations, "rate_per_s": rate_per_s, "p50_ms": 0.5, "p99_ms": p99_ms}


class LoadTests(SynchronousTestCase):
    """The workloads."""

    def test_loads(self) -> None:
        """Puts and reads of one key, each number of connections alone, the most of them spread too."""
        loads = {load.name: load for load in gateway.loads([1, 64])}
        self.assertEqual(
            ["put-1", "put-64", "put-64-spread", "range-1", "range-64", "range-64-spread"], list(loads)
        )
        self.assertEqual(loads["put-1"].body["key"], loads["range-64"].body["key"])
        self.assertTrue(loads["put-64-spread"].spread)
        self.assertEqual([goal.workload for goal in gateway.GOALS], list(loads))

    def test_goals(self) -> None:
        """The report judges by the gateway's own goals."""
        runs = {"put-1": {"etcd": [run(10, 100.0)], "twisted_paxos": [run(10, 110.0)]}}
        [row] = gateway._report(runs, {}, {})["summary"]
        self.assertEqual([True], [goal["reached"] for goal in row["goals"]])
        self.assertEqual({"etcd": 1.1}, row["ratios"])

    def test_shares(self) -> None:
        """Connections are spread evenly, and nobody runs wrk with none."""
        self.assertEqual([22, 21, 21], gateway.shares(64, 3))
        self.assertEqual([1], gateway.shares(1, 3))

    def test_together(self) -> None:
        """Rates of members add up, the worst latency counts."""
        both = gateway.together([run(10, 100.0, 2.0), run(20, 50.0, 7.0)])
        self.assertEqual((30, 150.0, 7.0), (both["operations"], both["rate_per_s"], both["p99_ms"]))


class CheckTests(SynchronousTestCase):
    """What was answered must be stored."""

    def figures(self, stored: int, answered: int, name: str = "put-64") -> object:
        """A run in which the key's version goes up by ``stored``; a put of before is late."""
        load = next(load for load in gateway.loads([1, 64]) if load.name == name)
        wrk = gateway.Wrk.__new__(gateway.Wrk)
        wrk._name, wrk._addresses = "etcd", ["a:1", "b:2"]
        with (
            mock.patch.object(wrk, "_version", side_effect=[4, 5, 5, 5 + stored, 5 + stored]),
            mock.patch.object(wrk, "_wrk", return_value=run(answered)),
        ):
            return wrk.run(load)

    def test_all_there(self) -> None:
        """As many as were answered, and those under way at the end, are fine."""
        for stored in (100, 164):
            self.assertTrue(self.figures(stored, 100))

    def test_lost_or_doubled(self) -> None:
        """One fewer, one too many, or a write by reads gives no figures."""
        for stored, answered, name in ((99, 100, "put-64"), (165, 100, "put-64"), (1, 100, "range-64")):
            with self.assertRaises(BenchmarkError):
                self.figures(stored, answered, name)


class CommandTests(SynchronousTestCase):
    """The command line."""

    def test_says_what_to_install(self) -> None:
        """Without wrk and etcd it says what to install, and starts nothing."""
        with mock.patch("shutil.which", return_value=None):
            done = CliRunner().invoke(gateway.main, [])
        self.assertEqual(1, done.exit_code)
        self.assertIn("apt-get install etcd-server wrk", done.output)

    def test_bad_connections(self) -> None:
        """A list of something else than numbers is named in one line."""
        with mock.patch("shutil.which", return_value="/usr/bin/it"):
            done = CliRunner().invoke(gateway.main, ["--connections", "1,many"])
        self.assertEqual(2, done.exit_code)
        self.assertIn("is no list of numbers", done.output)
