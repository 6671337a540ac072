"""The store against `ReferenceStore`, on random operations."""

from __future__ import annotations

import io
import sys
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.statemachine import kv
from twisted_paxos.statemachine.kvcommands import Compact, KeyValue, RangeResult
from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.testing.kvmodel import Comparison, Difference, main, run


class ModelMachine(RuleBasedStateMachine):
    """Slots, watches, reads, snapshots and restores in any order; hypothesis makes failures small."""

    @initialize(rng=st.randoms(use_true_random=False), keep_revisions=st.sampled_from((5, 40, 1_000)))
    def begin(self, rng: Random, keep_revisions: int) -> None:
        """A fresh pair."""
        limits = KvLimits(
            request_max_bytes=2_000, quota_bytes=20_000, keep_revisions=keep_revisions, keep_ms=9_000
        )
        self.comparison = Comparison(rng, limits)

    @rule()
    def slot(self) -> None:
        """A few commands."""
        self.comparison.step()

    @rule()
    def watch(self) -> None:
        """One more watcher."""
        self.comparison.watch()

    @rule()
    def poll(self) -> None:
        """One watcher reads."""
        self.comparison.poll()

    @rule()
    def read(self) -> None:
        """An old revision."""
        self.comparison.read_old()

    @rule()
    def copy(self) -> None:
        """Some pieces of a snapshot."""
        self.comparison.copy()

    @rule()
    def restore(self) -> None:
        """Go on from a snapshot."""
        self.comparison.restore()

    def teardown(self) -> None:
        """Everything left is compared."""
        if hasattr(self, "comparison"):
            self.comparison.finish()


SETTINGS = settings(
    max_examples=25, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


class ModelTests(SynchronousTestCase):
    """`ModelMachine`, and plain runs by seed."""

    def test_any_order(self) -> None:
        """Whatever comes in whatever order, the store and the model agree."""
        run_state_machine_as_test(ModelMachine, settings=SETTINGS)

    def test_random_operations(self) -> None:
        """A few thousand operations without a difference; every kind of thing happened."""
        counts = run(3_000, seed=1)
        for what in (
            "events",
            "cancelled watches",
            "snapshots",
            "restores",
            "old reads",
            "KvError",
            "TxnResult",
        ):
            self.assertGreater(counts[what], 0, what)

    def test_same_seed_same_run(self) -> None:
        """A seed replays its run."""
        self.assertEqual(run(300, seed=7), run(300, seed=7))

    def test_command_line(self) -> None:
        """The command prints one line and ends with 0, or, with a difference, with 1."""
        self.patch(sys, "stdout", io.StringIO())
        self.assertEqual(main(["--operations", "100", "--seed", "3"]), 0)
        self.assertIn("seed 3: no difference", sys.stdout.getvalue())
        self.patch(kv, "read_range", lambda mvcc, request, revision: RangeResult(revision))
        self.assertEqual(main(["--operations", "500", "--seed", "3"]), 1)
        self.assertIn("seed 3: DIFFERENT", sys.stdout.getvalue())

    def test_finds_a_wrong_version(self) -> None:
        """The comparison sees a store that forgets to count versions."""
        real = kv.Mvcc.put

        def wrong(self: kv.Mvcc, key: bytes, value: bytes, lease: int) -> KeyValue | None:
            before = real(self, key, value, lease)
            last = self.pending[-1]
            self.pending[-1] = KeyValue(key, last.create_revision, last.mod_revision, 1, value, lease)
            return before

        self.patch(kv.Mvcc, "put", wrong)
        with self.assertRaises((Difference, ValueError)):
            run(2_000, seed=1)

    def test_finds_a_compaction_too_far(self) -> None:
        """The comparison sees a store that compacts one revision more than it was told."""
        real = kv.KeyValueStore._compact

        def wrong(self: kv.KeyValueStore, request: Compact, context: kv.Context) -> object:
            return real(self, Compact(request.revision + 1), context)

        self.patch(kv.KeyValueStore, "_compact", wrong)
        with self.assertRaises(Difference):
            run(2_000, seed=1)
