"""The benchmarks work: what they send, what they make of figures, and one short run; not how fast it is."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import msgspec
from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase, TestCase

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
# The benchmarks are part of a checkout only; a module's `skip` skips all its tests.
try:
    from benchmarks import charts, compare, etcd, figures, grpc, report, rounds, watchers
    from benchmarks.processes import BenchmarkError
    from benchmarks.systems import silences
except ImportError as missing:
    if missing.name != "benchmarks":
        raise
    skip = "not started from a checkout"

H2LOAD = """
finished in 3.00s, 1200.50 req/s, 65.00KB/s
requests: 3600 total, 3600 started, 3600 done, 3600 succeeded, 0 failed, 0 errored, 0 timeout
"""

WRK = """
  Latency Distribution
     50%  640.00us
     99%    2.50ms
  3000 requests in 3.00s, 0.90MB read
Requests/sec:   1000.00
"""


class FiguresTests(SynchronousTestCase):
    """Medians, percentiles and ratios."""

    def test_percentile(self) -> None:
        """A percentile is a value that was measured, and the last one is the maximum."""
        ordered = [float(number) for number in range(1, 101)]
        found = [figures.percentile(ordered, share) for share in (0.5, 0.99, 0.999, 1.0)]
        self.assertEqual(found, [50.0, 99.0, 100.0, 100.0])

    def test_latencies_are_milliseconds(self) -> None:
        """Seconds go in, milliseconds come out."""
        self.assertEqual(figures.latencies([0.001, 0.004, 0.002])["p50_ms"], 2.0)
        self.assertTrue(math.isnan(figures.latencies([])["p50_ms"]))

    def test_ratio_goes_pair_by_pair(self) -> None:
        """A round that was slow for both does not change the ratio."""
        ours = [{"rate_per_s": 20.0}, {"rate_per_s": 2.0}, {"rate_per_s": 30.0}]
        theirs = [{"rate_per_s": 10.0}, {"rate_per_s": 1.0}, {"rate_per_s": 10.0}]
        self.assertEqual(figures.ratio(ours, theirs, "rate_per_s"), 2.0)


class GrpcTests(SynchronousTestCase):
    """What h2load sends."""

    def test_put(self) -> None:
        """A Put is its key as field 1 and its value as field 2, behind five bytes of gRPC."""
        self.assertEqual(grpc.put_body(b"k", b"vv"), b"\0\0\0\0\x07\x0a\x01k\x12\x02vv")

    def test_long_value(self) -> None:
        """Lengths over 127 take several bytes, low bits first."""
        self.assertEqual(grpc.varint(300), b"\xac\x02")

    def test_serializable(self) -> None:
        """A local read sets field 7; a linearizable one leaves it out."""
        self.assertEqual(grpc.range_body(b"k", True)[5:], b"\x0a\x01k\x38\x01")
        self.assertEqual(grpc.range_body(b"k", False)[5:], b"\x0a\x01k")


class FanOutTests(SynchronousTestCase):
    """How watchers are counted."""

    def test_time_of_a_put(self) -> None:
        """Each put counts once, the first one not at all, and all events of the others are the rate's."""
        puts: list[int] = []
        run = watchers.figures_of(puts.append, 10, 3)
        self.assertEqual((puts, run["operations"], run["watchers"]), ([0, 1, 2, 3], 3, 10))
        self.assertGreater(run["rate_per_s"], 0)


class DriverOutputTests(SynchronousTestCase):
    """What is made of the output of h2load and wrk."""

    def test_h2load(self) -> None:
        """The rate is of the summary, latencies are of the log."""
        run = etcd.h2load_figures(H2LOAD, "1\t200\t1500\n2\t200\t500\n3\t200\t700\n", 3.0)
        self.assertEqual((run["rate_per_s"], run["p50_ms"], run["max_ms"]), (1200.5, 0.7, 1.5))

    def test_h2load_failed(self) -> None:
        """A run with failed requests gives no figures."""
        failed = H2LOAD.replace("0 failed", "7 failed")
        error = self.assertRaises(BenchmarkError, etcd.h2load_figures, failed, "", 3.0)
        self.assertIn("7 failed", str(error))

    def test_wrk(self) -> None:
        """Microseconds and milliseconds are told apart."""
        run = etcd.wrk_figures(WRK)
        self.assertEqual((run["operations"], run["rate_per_s"]), (3000, 1000.0))
        self.assertEqual((run["p50_ms"], run["p99_ms"]), (0.64, 2.5))

    def test_wrk_refused(self) -> None:
        """A run with answers that are errors gives no figures."""
        self.assertRaises(BenchmarkError, etcd.wrk_figures, WRK + "  Non-2xx or 3xx responses: 9\n")


class GapTests(SynchronousTestCase):
    """How long nothing was acknowledged after the kill."""

    def test_silence(self) -> None:
        """An answer that was on its way when the leader died does not end it; a later one is another."""
        self.assertEqual(
            silences([1.0, 1.9, 2.01, 2.5, 2.51, 3.51, 3.6], 2.0),
            {"fail_over_s": 0.5, "later_silence_s": 1.0},
        )
        self.assertEqual(silences([1.9, 2.4], 2.0), {"fail_over_s": 0.4, "later_silence_s": 0.0})

    def test_nothing_after(self) -> None:
        """Without a write after the kill there is no figure."""
        self.assertRaises(BenchmarkError, silences, [1.0, 1.9], 2.0)


class ChartTests(SynchronousTestCase):
    """The charts."""

    def _rects(self, **options: Any) -> int:
        text = charts.bars(
            "T <&>", "per second", ["a", "b"], {"etcd": [1.0, 2000.0], "x": [3.0, math.nan]}, **options
        )
        return len(ElementTree.fromstring(text).findall("{http://www.w3.org/2000/svg}rect"))

    def test_one_bar_a_value(self) -> None:
        """Well-formed XML: the background, three bars (one value is missing) and a legend of two."""
        self.assertEqual((self._rects(), self._rects(logarithmic=True)), (6, 6))

    def test_nothing_to_draw(self) -> None:
        """Only zeros or nothing at all still gives a chart."""
        ElementTree.fromstring(charts.bars("T", "s", ["a"], {"etcd": [math.nan]}))
        ElementTree.fromstring(charts.bars("T", "s", ["a"], {"etcd": [0.0]}))


class SummaryTests(SynchronousTestCase):
    """The table."""

    def test_ratio_and_goal(self) -> None:
        """A workload has the medians of each system, ours against the others, and its goal."""
        runs: rounds.Runs = {
            "put-8": {
                "etcd": [{"rate_per_s": 100.0}, {"rate_per_s": 300.0}],
                "twisted_paxos": [{"rate_per_s": 200.0}, {"rate_per_s": 900.0}],
            }
        }
        (row,) = report.summary(runs)
        goal = {"goal": ">= 2 rate_per_s of etcd's", "found": 2.5, "reached": True}
        self.assertEqual((row["ratios"], row["goals"]), ({"etcd": 2.5}, [goal]))
        self.assertEqual(row["etcd"], {"rate_per_s": 200.0})

    def test_lower_is_better(self) -> None:
        """Fail-over is compared by its time."""
        runs: rounds.Runs = {
            "failover": {"etcd": [{"fail_over_s": 1.6}], "twisted_paxos": [{"fail_over_s": 1.2}]},
            "idle": {"twisted_paxos": [{"cpu_percent": 0.7}]},
        }
        failover, idle = report.summary(runs)
        self.assertEqual(failover["ratios"], {"etcd": 0.75})
        self.assertEqual([row["goals"][0]["reached"] for row in (failover, idle)], [False, True])

    def test_every_workload_is_drawn(self) -> None:
        """Each chart is well-formed, with workloads that only one system has as well."""
        run = {"rate_per_s": 5.0, "p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0, "max_ms": 4.0}
        runs: rounds.Runs = {
            **{
                name: {"twisted_paxos": [run], "etcd": [run]}
                for name in ("put-1", "put-8", "latency", "watch")
            },
            **{name: {"twisted_paxos": [{"cost_ratio": 1.1, **run}]} for name in ("keys-10k", "keys-1M")},
            "restart": {"etcd": [{"seconds": 1.5}], "twisted_paxos": [{"seconds": 2.5}]},
        }
        rows = report.summary(runs)
        written = report.draw(rows, Path(self.mktemp()))
        self.assertEqual([path.stem for path in written], ["puts", "watch", "restart", "growth", "latency"])
        for path in written:
            ElementTree.fromstring(path.read_text())
        self.assertEqual(report.table(rows, ["twisted_paxos", "etcd"]).row_count, len(rows))


class CommandTests(SynchronousTestCase):
    """The command line of the comparison."""

    def test_unknown_part(self) -> None:
        """An unknown part is named in one line."""
        done = CliRunner().invoke(compare.main, ["--only", "put,speed", "--systems", "twisted_paxos"])
        self.assertEqual(done.exit_code, 2)
        self.assertIn("unknown part 'speed'", done.output)

    def test_unwritable_report(self) -> None:
        """Where the figures cannot be written is said before anything is measured."""
        where = str(Path(self.mktemp()) / "missing" / "figures.json")
        done = CliRunner().invoke(compare.main, ["--systems", "twisted_paxos", "--json", where])
        self.assertEqual(done.exit_code, 1)
        self.assertIn("cannot write", done.output)

    def test_says_what_to_install(self) -> None:
        """Without etcd it says what to install, and starts nothing."""
        with mock.patch("shutil.which", return_value=None):
            done = CliRunner().invoke(compare.main, ["--systems", "etcd"])
        self.assertEqual(done.exit_code, 1)
        self.assertIn("apt-get install etcd-server nghttp2-client wrk", done.output)


class SmokeTests(TestCase):
    """A short run of the real thing."""

    timeout = 120

    async def run_module(self, place: Path, module: str, *options: str) -> bytes:
        """Run a command; what it says."""
        said, errors, status = await getProcessOutputAndValue(
            sys.executable,
            ["-m", f"benchmarks.{module}", *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            path=str(place),
            reactor=reactor,
        )
        self.assertEqual(status, 0, errors)
        return said

    async def test_ours_alone(self) -> None:
        """Three real nodes, puts and reads: figures come out, and all that was acknowledged is there."""
        place = Path(self.mktemp()).resolve()
        place.mkdir()
        report = place / "figures.json"
        options = ["--systems", "twisted_paxos", "--rounds", "1", "--seconds", "0.3", "--warm-up", "0.2"]
        options += ["--depths", "1,8", "--scale", "0.002", "--json", str(report), "--charts", str(place)]
        said = await self.run_module(place, "compare", *options, "--only", "put,read,lease")
        self.assertIn(b"put-8", said)
        # The same command again goes on: what is there is not run anew, what is new is.
        before = msgspec.json.decode(report.read_bytes())["runs"]
        await self.run_module(place, "compare", *options, "--only", "put,lease,watch")
        runs = msgspec.json.decode(report.read_bytes())["runs"]
        self.assertEqual({name: runs[name] for name in before}, before)
        short = {"put-1", "put-8", "read-8", "serializable-8", "mix-8", "keepalive-8"}
        self.assertEqual(set(runs), {*short, "watch"})
        for name, by in runs.items():
            self.assertGreater(by["twisted_paxos"][0]["rate_per_s"], 0, name)
            self.assertEqual(by["twisted_paxos"][0].get("errors", 0), 0, name)
        self.assertTrue((place / "puts.svg").exists())

    async def test_state(self) -> None:
        """A small state: it comes back from its snapshot, and a key takes some memory, not much."""
        said = await self.run_module(Path(self.mktemp()).parent.resolve(), "state", "--keys", "2000")
        figures = {line.split()[0]: line.split()[1] for line in said.decode().splitlines()}
        self.assertEqual(figures["keys"], "2,000")
        self.assertIn("restore_longest_step_ms", figures)

    async def test_scale(self) -> None:
        """A cluster with a few keys is killed and comes back; another has a few watchers and leases."""
        place = Path(self.mktemp()).resolve()
        place.mkdir()
        report = place / "scale.json"
        options = ["--only", "keys,clients", "--scale", "0.001", "--json", str(report)]
        await self.run_module(place, "scale", *options)
        figures = msgspec.json.decode(report.read_bytes())
        self.assertEqual((figures["keys"]["keys"], figures["clients"]["leases"]), (1_000, 10))
        self.assertGreater(figures["keys"]["restart_s"], 0)
