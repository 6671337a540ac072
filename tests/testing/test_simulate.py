"""The simulator: it repeats itself, it finds nothing on the fixed seeds, it cuts down what fails."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import SkipTest

from click.testing import CliRunner
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

import twisted_paxos
from twisted_paxos.core import limits
from twisted_paxos.errors import ConfigError
from twisted_paxos.testing import seeds, simulate
from twisted_paxos.testing.minimise import minimise
from twisted_paxos.testing.run import Run, summary
from twisted_paxos.testing.schedule import (
    CLASSES,
    LOADS,
    Schedule,
    all_kinds,
    describe,
    draw_schedule,
    parse_kinds,
)
from twisted_paxos.testing.simulate import main

REGRESSIONS = Path(__file__).parents[1] / "regressions" / "seeds.txt"

DIGEST = """
from twisted_paxos.testing.seeds import Wish, run_seed
print([run_seed(Wish(seed, faulty_s=4.0)).outcome.digest for seed in (3, 7)])
"""


def regression_seeds() -> list[tuple[int, str]]:
    """The seeds of `tests/regressions/seeds.txt`, each with what its clients do."""
    lines = REGRESSIONS.read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(int(seed), load if load in LOADS else "registers") for seed, load, *_ in words]


class RunTests(SynchronousTestCase):
    """Whole runs."""

    def check(self, schedule: Schedule) -> None:
        """A run without a violation."""
        outcome = Run(schedule).run()
        self.assertEqual(("", ""), (outcome.check, outcome.what), f"seed {schedule.seed}")

    def test_without_faults(self) -> None:
        """A healthy cluster of each size serves its clients."""
        for size in (3, 5):
            schedule = draw_schedule(1, size, (), faulty_s=3.0)
            outcome = Run(schedule).run()
            self.assertEqual(("", ()), (outcome.check, schedule.faults))
            self.assertGreater(outcome.writes, 20)
            self.assertGreater(outcome.reads, 5)

    def test_limits_are_restored(self) -> None:
        """A run changes limits for itself only."""
        before = {name: getattr(limits, name) for name in dir(limits) if name.isupper()}
        Run(draw_schedule(2, kinds=(), faulty_s=1.0)).run()
        self.assertEqual(before, {name: getattr(limits, name) for name in before})

    def test_trace(self) -> None:
        """A trace tells in readable lines who sent what, and what went wrong."""
        outcome = Run(draw_schedule(3, kinds=("kill",), faulty_s=3.0), keep_trace=True).run()
        text = "\n".join(outcome.trace)
        for expected in ("Prepare", "Accept ", "is killed", "everything heals", "all nodes lose power"):
            self.assertIn(expected, text)
        self.assertNotIn("object at 0x", text)

    def test_trace_changes_nothing(self) -> None:
        """With and without a trace the run is the same."""
        schedule = draw_schedule(5, faulty_s=2.0)
        self.assertEqual(Run(schedule).run().digest, Run(schedule, keep_trace=True).run().digest)

    def test_summary_of_unknown(self) -> None:
        """A message without a form of its own is shown as it is."""
        self.assertEqual("'x'", summary("x"))


def _regression_tests() -> None:
    for seed, load in regression_seeds():

        def test(self: RunTests, seed: int = seed, load: str = load) -> None:
            self.check(draw_schedule(seed, load=load))

        test.__doc__ = f"Seed {seed} with {load} finds nothing (any more)."
        setattr(RunTests, f"test_seed_{seed}_{load}", test)


_regression_tests()


class DeterminismTests(SynchronousTestCase):
    """The same seed gives the same run."""

    def test_other_process_and_hash_seed(self) -> None:
        """In two processes with different hash seeds, everything happens alike."""
        root = str(Path(twisted_paxos.__file__).parents[1])
        digests = {
            subprocess.run(
                [sys.executable, "-c", DIGEST],
                env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for hash_seed in ("1", "2")
        }
        self.assertEqual(1, len(digests))
        self.assertEqual(2, next(iter(digests)).count("', '") + 1)


class ScheduleTests(SynchronousTestCase):
    """What is drawn from a seed."""

    def test_repeats(self) -> None:
        """The same seed gives the same schedule, another one another."""
        self.assertEqual(draw_schedule(8), draw_schedule(8))
        self.assertNotEqual(draw_schedule(8), draw_schedule(9)._replace(seed=8))

    def test_every_kind_is_drawn(self) -> None:
        """Every kind of fault occurs within some seeds, in order of time, and within its time."""
        seen = set()
        for seed in range(60):
            schedule = draw_schedule(seed)
            times = [fault.at_s for fault in schedule.faults]
            self.assertEqual(sorted(times), times)
            self.assertTrue(all(f.at_s + f.seconds <= schedule.faulty_s + 1e-9 for f in schedule.faults))
            seen |= {fault.kind for fault in schedule.faults}
        self.assertEqual(set(all_kinds()), seen)

    def test_only_what_is_asked_for(self) -> None:
        """Kinds and classes can be chosen."""
        kinds = parse_kinds("crash,loss")
        self.assertEqual((*CLASSES["crash"], "loss"), kinds)
        for seed in range(10):
            self.assertLessEqual(
                {fault.kind for fault in draw_schedule(seed, kinds=kinds).faults}, set(kinds)
            )
        self.assertEqual((), parse_kinds("none"))
        self.assertEqual(tuple(all_kinds()), parse_kinds("all"))
        self.assertRaises(ConfigError, parse_kinds, "rain")

    def test_describe(self) -> None:
        """People are told every fault."""
        schedule = draw_schedule(4)
        self.assertEqual(len(schedule.faults) + 2, len(describe(schedule)))


class MinimiseTests(SynchronousTestCase):
    """Cutting down."""

    def test_two_faults(self) -> None:
        """Exactly the faults that it takes are left."""
        schedule = draw_schedule(12)
        self.assertGreater(len(schedule.faults), 8)
        needed = {schedule.faults[2], schedule.faults[-1]}
        smaller, runs = minimise(schedule, lambda tried: needed <= set(tried.faults))
        self.assertEqual(needed, set(smaller.faults))
        self.assertLessEqual(runs, 80)

    def test_no_fault_needed(self) -> None:
        """What fails without any fault is cut down at once."""
        smaller, runs = minimise(draw_schedule(12), lambda tried: True)
        self.assertEqual(((), 1), (smaller.faults, runs))

    def test_bounded(self) -> None:
        """The effort is bounded."""
        schedule = draw_schedule(12)
        _, runs = minimise(schedule, lambda tried: len(tried.faults) == len(schedule.faults), runs_max=5)
        self.assertEqual(5, runs)


class WatchedTests(SynchronousTestCase):
    """How far many runs are."""

    def shown(self, is_terminal: bool) -> str:
        """What is printed while three results come."""
        self.patch(simulate, "LINE_EVERY_S", 0.0)
        console = Console(file=StringIO(), force_terminal=is_terminal, width=80)
        results: list[Any] = ["a", "b", "c"]
        self.assertEqual(results, list(simulate.watched(iter(results), 3, console)))
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()

    def test_lines(self) -> None:
        """In a file, lines that say how many of how many; none for the last, which a summary follows."""
        self.assertEqual("1 of 3 seeds in 0 s\n2 of 3 seeds in 0 s\n", self.shown(False))

    def test_bar(self) -> None:
        """On a terminal, a bar."""
        self.assertIn("3/3", self.shown(True))


class CommandTests(SynchronousTestCase):
    """The command line."""

    def test_passes(self) -> None:
        """Status 0, and a summary."""
        done = CliRunner().invoke(main, ["--seeds", "1", "--faults", "none", "--seconds", "1"])
        self.assertEqual(0, done.exit_code, done.output)
        self.assertIn("no violation", done.output)

    def test_fails(self) -> None:
        """Status 1, with seed, check, and the faults that it takes."""
        options = ["--seeds", "1", "--seconds", "2", "--mutant", "one_accepted_is_enough", "--trace"]
        done = CliRunner().invoke(main, options)
        self.assertEqual(1, done.exit_code, done.output)
        self.assertIn("seed 1 fails: one value", done.output)
        self.assertIn("cut down to 0 faults", done.output)
        self.assertIn("VIOLATION one value", done.output)

    def test_errors(self) -> None:
        """A bad option gets one line."""
        for options in (["--seeds", "x"], ["--faults", "rain"], ["--seeds", "1", "--mutant", "none_such"]):
            done = CliRunner().invoke(main, options)
            self.assertEqual(1, done.exit_code)
            self.assertNotIn("\n", done.output.strip())

    def test_seeds(self) -> None:
        """Ranges and lists."""
        self.assertEqual([1, 2, 3, 9], seeds.parse_seeds("1-3,9"))
        self.assertRaises(ConfigError, seeds.parse_seeds, "3-1")


class WorkerTests(SynchronousTestCase):
    """Many seeds at once."""

    wishes = (seeds.Wish(1, kinds=(), faulty_s=1.0), seeds.Wish(2, kinds=(), faulty_s=1.0))

    def test_processes(self) -> None:
        """Worker processes give what this one gives."""
        here = {seeds.run_seed(wish).outcome.digest for wish in self.wishes}
        with seeds.workers(2) as (executor, count):
            there = {f.outcome.digest for f in seeds.run_all(executor, count, seeds.run_seed, self.wishes)}
        self.assertEqual(here, there)

    def test_dask(self) -> None:
        """So does a Dask cluster."""
        try:
            from distributed import LocalCluster
        except ImportError:
            raise SkipTest("Dask is not installed: pip install 'twisted_paxos[dask]'") from None
        here = {seeds.run_seed(wish).outcome.digest for wish in self.wishes}
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            seeds.workers(dask=cluster.scheduler_address) as (executor, count),
        ):
            found = seeds.run_all(executor, count, seeds.run_seed, self.wishes)
            self.assertEqual(here, {one.outcome.digest for one in found})

    def test_no_dask(self) -> None:
        """Where there is no Dask, or no scheduler, one line says so."""

        def use() -> None:
            with seeds.workers(dask="tcp://127.0.0.1:1"):
                self.fail("there is none")

        self.assertRaises(ConfigError, use)
