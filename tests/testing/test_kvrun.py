"""Simulated runs with the key-value store: they are clean, and each check of them can fail."""

from __future__ import annotations

import math
from random import Random
from typing import Any
from unittest import mock

from msgspec import Raw, structs
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.protocols import watchport
from twisted_paxos.statemachine.kvcommands import (
    COMPACTED,
    FUTURE_REVISION,
    KeyValue,
    Put,
    Range,
    RangeResult,
    decode_result,
    encode,
    encode_command,
)
from twisted_paxos.statemachine.sessions import Sessions
from twisted_paxos.testing.determinism import check_determinism
from twisted_paxos.testing.kvchecks import Cells, cell_calls
from twisted_paxos.testing.kvhistory import Grant, KvHistory, Request, Seen, Watching
from twisted_paxos.testing.kvmachine import SimulatedStore, draw_kv_sizes, patched_kv_sizes
from twisted_paxos.testing.mutants import hunt
from twisted_paxos.testing.registers import encode_write
from twisted_paxos.testing.run import Run
from twisted_paxos.testing.schedule import LOADS, draw_load, draw_schedule
from twisted_paxos.testing.seeds import quieten
from twisted_paxos.testing.witness import Violation

QUICK = {
    "leader_change_moves_time": ("kv lease",),
    "txn_not_atomic": ("kv result",),
    "revision_split_by_node": ("kv watch",),
    "fencing_token_repeats": ("kv lock",),
}
"""Mutants of different parts that show soon, and the check that finds them."""


SEED = 8
"""A run without faults in which everything occurs that the checks are about; else draw another one."""


class KvRunTests(SynchronousTestCase):
    """Whole runs."""

    def test_faults(self) -> None:
        """A few seconds with faults, with each load."""
        for seed, load in ((2, "kv"), (3, "both")):
            outcome = Run(draw_schedule(seed, faulty_s=4.0, load=load)).run()
            self.assertEqual(("", ""), (outcome.check, outcome.what), f"seed {seed}, {load}")
            self.assertGreater(outcome.writes, 20)

    def test_repeats(self) -> None:
        """The same seed gives the same run."""
        schedule = draw_schedule(5, faulty_s=2.0, load="both")
        self.assertEqual(Run(schedule).run().digest, Run(schedule).run().digest)

    def test_load_of_a_seed(self) -> None:
        """Every load is some seed's."""
        self.assertEqual(set(LOADS), {draw_load(seed) for seed in range(30)})

    def test_mutants(self) -> None:
        """Planted bugs are found within a few seeds."""
        for name, checks in QUICK.items():
            fate = hunt(name, 8)
            self.assertIn(fate.check, checks, f"{name}: {fate}")


class MachineTests(SynchronousTestCase):
    """The state machine of these runs."""

    def test_contract(self) -> None:
        """A store with registers beside it is a state machine like any other."""
        writes = [encode(encode_write(f"v{n}", f"k{n % 3}")) for n in range(7)]
        puts = [encode_command(Put(b"k%d" % n, b"v")) for n in range(7)]
        commands = [Raw(command) for pair in zip(writes, puts, strict=True) for command in pair]
        check_determinism(make_store, commands)

    def test_no_snapshot(self) -> None:
        """What is none is refused."""
        store = make_store()
        for pieces in ([], [b"xx"], [b"\x01", b"junk"], [b"\x00", b"junk"]):
            self.assertRaises(ValueError, list, store.restore(iter(pieces)))

    def test_sizes_are_restored(self) -> None:
        """Limits are changed for a run only."""
        before = Sessions.__init__.__defaults__, watchport.FRAGMENT_BYTES
        with patched_kv_sizes(draw_kv_sizes(Random(1))._replace(session_idle_ms=5, fragment_bytes=6)):
            self.assertEqual(((5, 0), 6), (Sessions.__init__.__defaults__, watchport.FRAGMENT_BYTES))
        self.assertEqual(before, (Sessions.__init__.__defaults__, watchport.FRAGMENT_BYTES))


def make_store() -> SimulatedStore:
    """An empty one."""
    return SimulatedStore(draw_kv_sizes(_random()))


def _random() -> Random:
    return Random(3)


class CheckTests(SynchronousTestCase):
    """A clean run's history, and what each check says once it is changed."""

    run_of_all: Run | None = None

    def setUp(self) -> None:
        """One run for all tests; each changes the history for itself and puts it back."""
        quieten()
        if CheckTests.run_of_all is None:
            CheckTests.run_of_all = Run(draw_schedule(SEED, 3, (), 10.0, "kv"))
            outcome = CheckTests.run_of_all.run()
            self.assertEqual(("", ""), (outcome.check, outcome.what))
        kv = CheckTests.run_of_all.kv
        assert kv is not None
        self.kv = kv
        self.history: KvHistory = kv.history

    def verdict(self, name: str = "") -> str:
        """The name of the first check (of this name) that fails, and what it says; empty when none does."""
        assert CheckTests.run_of_all is not None
        for check in self.kv.checks(CheckTests.run_of_all._chosen):
            try:
                if name in ("", check.name):
                    check.finish([])
            except Violation as violation:
                return f"{check.name}: {violation}"
        return ""

    def says(self, start: str, record: Any, name: str, value: Any) -> None:
        """What a check says begins like this while an attribute of a record has another value."""
        with mock.patch.object(record, name, value):
            self.assertEqual(start, self.verdict(start.partition(":")[0])[: len(start)])

    def done(self, kind: str, part: bytes) -> Request:
        """A request with an answer of one kind."""
        return next(
            r for r in self.history.requests if (r.kind, r.outcome) == (kind, "done") and part in r.payload
        )

    def test_clean(self) -> None:
        """There is something to judge, and nothing is wrong with it."""
        self.assertEqual("", self.verdict())
        for records in (self.history.grants, self.history.uses, self.history.seen, self.history.sure_s):
            self.assertGreater(len(records), 3)
        replay = self.kv.checks(CheckTests.run_of_all._chosen)[0]._run.replay  # type: ignore[union-attr,attr-defined]
        self.assertTrue(set(replay.expired) & set(self.history.sure_s), "no lease of a holder ran out")

    def test_effects(self) -> None:
        """An effect that should not have been, a second one, one of nothing that was sent."""
        slot, its = next((slot, its) for slot, its in self.history.applied.items() if its)
        self.says("kv sessions: slot", self.history, "applied", {**self.history.applied, slot: its * 2})
        self.says("kv sessions: slot", self.history, "applied", {**self.history.applied, slot: []})
        revoke = self.done("command", b"lease_").payload
        less = {**self.history.sent, revoke: 0}
        self.says(f"kv sessions: {revoke!r} had", self.history, "sent", less)

    def test_results(self) -> None:
        """Another place, another result, refused and done."""
        command = self.done("command", b'"put"')
        self.says("kv result: ", command, "slot", command.slot + 1)
        self.says("kv result: ", command, "data", b'{"type":"put","revision":1}')
        self.says("kv result: ", command, "outcome", "refused")

    def test_real_time(self) -> None:
        """A command that ended before another began is behind it in the log."""
        commands = [r for r in self.history.requests if (r.kind, r.outcome) == ("command", "done")]
        late = max(commands, key=lambda request: request.place)
        with mock.patch.object(late, "start_s", 0.0):
            self.says("kv result: ", late, "end_s", 0.01)

    def test_state(self) -> None:
        """A node with other leases, keys or history."""
        store = self.kv._stores()[0]
        self.says("kv state: ", store._mvcc, "compact_revision", 10**9)
        self.says("kv state: ", store, "range", lambda request: RangeResult(1))
        self.says("kv state: ", store, "_leases", self.history_of_another())

    def history_of_another(self) -> Any:
        """Leases of another store."""
        other = make_store()
        other._leases.grant(7, 1, 0, 1, 0)
        return other._leases

    def test_reads(self) -> None:
        """A wrong value, one that is too old, one from the future, a refusal without a reason."""
        read = next(
            r
            for r in self.history.requests
            if (r.kind, r.outcome) == ("read", "done") and b'"range"' in r.payload and b"rev" not in r.payload
            if r.start_s > 3 and isinstance(decode_result(r.data), RangeResult)
        )
        told: Any = decode_result(read.data)
        self.says("kv read: ", read, "data", encode(structs.replace(told, count=99)))
        self.says("kv read: ", read, "data", encode(structs.replace(told, revision=2)))
        self.says("kv read: ", read, "data", encode(structs.replace(told, revision=10**6)))
        self.says("kv read: ", read, "data", encode(COMPACTED))
        self.says("kv read: ", read, "data", encode(FUTURE_REVISION))

    def test_cells(self) -> None:
        """A single key's history that no order explains."""
        calls = cell_calls(self.done("command", b'"put","key":"ci8'))
        self.assertEqual(1, len(list(calls)))
        ghost = Request("0.1", encode(Range(b"r/0")), "read", 1.0, 1.1, "done")
        ghost.data = encode(RangeResult(1, (KeyValue(b"r/0", 1, 1, 1, b"nobody wrote this"),)))
        check = next(c for c in self.kv.checks(dict) if isinstance(c, Cells))
        with mock.patch.object(self.history, "requests", [*self.history.requests, ghost]):
            self.assertIn("no order explains", str(self.assertRaises(Violation, check.finish, [])))

    def test_leases(self) -> None:
        """One that was over while its holder was sure."""
        late = dict.fromkeys(self.history.sure_s, math.inf)
        self.says("kv lease: lease", self.history, "sure_s", late)

    def watching(self) -> Watching:
        """A watch that was given something, in several batches."""
        return next(w for w in self.history.watchings if len([b for _, b in w.batches if b.events]) > 2)

    def test_watches(self) -> None:
        """An event that is missing, given twice, early, in another order; a silent end."""
        watching = self.watching()
        batches = watching.batches
        place = next(n for n, (_, batch) in enumerate(batches) if batch.events)
        end = max(n for n, (_, batch) in enumerate(batches) if batch.events)
        for wrong in (
            batches[:place] + batches[place + 1 :],
            [*batches[: place + 1], batches[place], *batches[place + 1 :]],
            [*batches[:place], (0.0, batches[place][1]), *batches[place + 1 :]],
            [*batches[:end], (batches[end][0], structs.replace(batches[end][1], events=()))],
        ):
            self.says("kv watch: watch", watching, "batches", wrong)
        with mock.patch.object(watching, "compact_revision", 3):
            self.says("kv watch: watch", watching, "ended", "the node did not want to")
        if not watching.ended:
            self.says("kv watch: watch", watching, "next_revision", 1)

    def test_split_revision(self) -> None:
        """A revision in two batches."""
        for watching in self.history.watchings:
            for place, (at_s, batch) in enumerate(watching.batches):
                revisions = [event.kv.mod_revision for event in batch.events]
                if len(revisions) == 2 and revisions[0] == revisions[1]:
                    halves = [(at_s, structs.replace(batch, events=(event,))) for event in batch.events]
                    split = [*watching.batches[:place], *halves, *watching.batches[place + 1 :]]
                    self.says("kv watch: watch", watching, "batches", split)
                    return
        self.fail("there is no revision with two events")

    def test_locks(self) -> None:
        """A token that repeats or is made up, a turn too early, two holders, a use behind another."""
        grants, uses = self.history.grants, self.history.uses
        first = grants[0]
        for wrong in (
            [*grants, first],
            [first._replace(held=False), *grants[1:]],
            [first._replace(token=first.token + 1), *grants[1:]],
            [Grant(0.0, "lock", b"lock/none", 1)],
        ):
            self.says("kv lock: Grant", self.history, "grants", wrong)
        mine = [use for use in uses if use.name == first.name]
        one, last = mine[0], mine[-1]
        self.assertNotEqual(one.token, last.token)
        for use in (
            one._replace(key=b"another"),
            one._replace(others=((9, 1.0),), looked=True, sure_s=1.0),
            one._replace(others=((9, 0.0),), looked=True, sure_s=0.0),
            last._replace(token=one.token, key=one.key, looked=True, sure_s=0.0),
        ):
            self.says("kv lock: Use", self.history, "uses", [*uses, use])

    def test_observers(self) -> None:
        """An observer that is shown a leader after its successor."""
        wrong = [Seen(1.0, "0.1", "election", 9), Seen(2.0, "0.1", "election", 8)]
        self.says("kv lock: Seen", self.history, "seen", wrong)
