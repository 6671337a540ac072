"""The chaos tests' own parts, without root, namespaces or processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import inf
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.client import SlotEntry
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Command, encode_value
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.commands import encode_opaque
from twisted_paxos.testing import chaos, chaos_network
from twisted_paxos.testing.chaos import Outcome, chosen_faults, row, table
from twisted_paxos.testing.chaos_cluster import Disk
from twisted_paxos.testing.chaos_faults import FAULTS
from twisted_paxos.testing.chaos_history import ChaosFailed, History, Place, Write, longest_gap_s
from twisted_paxos.testing.chaos_network import Network, all_but, links, rules
from twisted_paxos.testing.linearizability import Call


def entry(slot: int, *values: tuple[int, str]) -> SlotEntry:
    """A slot with commands: (sequence, value) of one client."""
    commands = [Command("0" * 16, sequence, 1, encode_opaque(value)) for sequence, value in values]
    return SlotEntry(slot, ProposalID(1, "A"), encode_value(0, commands))


class HistoryTests(SynchronousTestCase):
    """Writes against the log."""

    def setUp(self) -> None:
        """Nothing written."""
        self.history = History()

    def wrote(
        self, value: str, invoked_s: float, acknowledged_s: float | None = None, place: Place | None = None
    ) -> None:
        """A write of one worker."""
        self.history.writes[value] = Write("A", invoked_s, acknowledged_s, place)

    def assert_broken(self, entries: Iterable[SlotEntry], part: str) -> None:
        """The log breaks a promise."""
        with self.assertRaises(ChaosFailed) as caught:
            self.history.read(entries)
            self.history.check()
        self.assertIn(part, str(caught.exception))

    def test_in_order(self) -> None:
        """Acknowledged writes, one without an answer, a no-op and a repetition are as they should be."""
        self.wrote("one", 0.0, 1.0, (1, 0))
        self.wrote("two", 2.0, 3.0, (3, 1))
        self.wrote("lost", 2.5)
        self.history.read([entry(1, (1, "one")), entry(2), entry(3, (1, "one"), (2, "two"))])
        self.history.check()
        self.assertEqual((3, 2), (self.history.read_upto, self.history.acknowledged))

    def test_missing(self) -> None:
        """An acknowledged write is not in the log."""
        self.wrote("one", 0.0, 1.0, (1, 0))
        self.assert_broken([entry(1)], "and is at None")

    def test_elsewhere(self) -> None:
        """It is not where its result said."""
        self.wrote("one", 0.0, 1.0, (1, 0))
        self.assert_broken([entry(1), entry(2, (1, "one"))], "and is at (2, 0)")

    def test_twice(self) -> None:
        """One value was chosen as two commands."""
        self.wrote("one", 0.0, 1.0, (1, 0))
        self.assert_broken([entry(1, (1, "one")), entry(2, (2, "one"))], "and again at (2, 0)")

    def test_unknown(self) -> None:
        """A value that nobody proposed."""
        self.assert_broken([entry(1, (1, "one"))], "never proposed")

    def test_stale_read(self) -> None:
        """A read gives what was replaced before it began."""
        self.history.calls += [Call(0, 1, "one", ""), Call(2, 3, "two", "one"), Call(4, 5, "", "one")]
        self.assert_broken([], "not linearizable")

    def test_fresh_reads(self) -> None:
        """A read beside a write of unknown outcome may give either; each repetition is judged by itself."""
        self.history.calls += [Call(0, 1, "one", ""), Call(2, inf, "two", None), Call(4, 5, "", "one")]
        self.history.calls += [Call(6, 7, "", "two")]
        self.history.check()
        self.history.calls.append(Call(8, 9, "", ""))
        self.history.check()
        self.assertEqual(3, self.history.reads)

    def test_gap(self) -> None:
        """A slot is left out."""
        self.assert_broken([entry(2)], "slot 2 follows slot 0")

    def test_real_time_order(self) -> None:
        """A write that began after another was acknowledged is before it, itself acknowledged or not."""
        self.wrote("first", 0.0, 1.0, (2, 0))
        self.wrote("second", 2.0)
        self.assert_broken([entry(1, (2, "second")), entry(2, (1, "first"))], "began after")

    def test_concurrent(self) -> None:
        """Writes that overlap may be in either order."""
        self.wrote("first", 0.0, 3.0, (2, 0))
        self.wrote("second", 2.0, 2.5, (1, 0))
        self.history.read([entry(1, (2, "second")), entry(2, (1, "first"))])
        self.history.check()

    def test_times(self) -> None:
        """Times of acknowledgements, of all and of one worker."""
        self.wrote("one", 0.0, 2.0, (1, 0))
        self.wrote("none", 0.0)
        self.history.writes["two"] = Write("B", 0.0, 1.0, (2, 0))
        self.assertEqual([1.0, 2.0], self.history.times_s())
        self.assertEqual([1.0], self.history.times_s("B"))


class GapTests(SynchronousTestCase):
    """`longest_gap_s`."""

    def test_gap(self) -> None:
        """From the last acknowledgement before the start, between two, and up to the end."""
        self.assertEqual(2.0, longest_gap_s([1.0, 3.0, 3.5], 1.5, 4.0))
        self.assertEqual(3.0, longest_gap_s([1.0, 1.5, 4.5], 1.2, 5.0))
        self.assertEqual(4.0, longest_gap_s([1.0], 2.0, 5.0))

    def test_nothing(self) -> None:
        """Nothing was ever acknowledged: the whole time, and what comes later does not count."""
        self.assertEqual(3.0, longest_gap_s([], 2.0, 5.0))
        self.assertEqual(3.0, longest_gap_s([9.0], 2.0, 5.0))


class NetworkTests(SynchronousTestCase):
    """Addresses, links and rules."""

    def test_links(self) -> None:
        """Both directions of a link; everything but some links."""
        self.assertEqual({("A", "B"), ("B", "A")}, links([("A", "B")]))
        self.assertEqual({("A", "C"), ("C", "A")}, all_but("ABC", [("A", "B"), ("B", "C")]))

    def test_rules(self) -> None:
        """What is cut, what is lossy, and nothing left of earlier rules."""
        text = rules(["10.77.0.12"], ["10.77.0.12", "10.77.0.13"], 30)
        self.assertIn("delete table inet chaos\n", text)
        self.assertIn("ip saddr { 10.77.0.12 } drop\n", text)
        self.assertIn("ip saddr { 10.77.0.12, 10.77.0.13 } numgen random mod 100 < 30 drop\n", text)

    def test_no_rules(self) -> None:
        """Healed: the chain lets everything pass."""
        self.assertNotIn("drop", rules([], ["10.77.0.12"], 0))

    def test_one_way(self) -> None:
        """A directed cut is a rule at its destination only."""
        network = Network("AB", None)
        self.assertIn("10.77.0.11 } drop", network._rules("B", {("A", "B")}, 0))
        self.assertNotIn("drop", network._rules("A", {("A", "B")}, 0))

    def test_why_not(self) -> None:
        """Without root, or without a tool, one line says so; with both, nothing does."""
        self.patch(os, "geteuid", lambda: 1000)
        self.assertIn("root", chaos_network.why_not())
        self.patch(os, "geteuid", lambda: 0)
        self.patch(chaos_network.shutil, "which", lambda tool: None if tool == "nft" else f"/bin/{tool}")
        self.assertEqual("nft not found: apt-get install nftables", chaos_network.why_not())
        self.patch(chaos_network.shutil, "which", lambda tool: f"/bin/{tool}")
        self.assertEqual("", chaos_network.why_not())


class DiskTests(SynchronousTestCase):
    """A plain disk."""

    def test_plain(self) -> None:
        """It is a directory, and stays when it is unmounted."""
        disk = Disk(Path(self.mktemp()) / "A", "plain")
        disk.mount()
        disk.unmount()
        self.assertTrue(disk.directory.is_dir())


class CommandTests(SynchronousTestCase):
    """The command line and the table."""

    def setUp(self) -> None:
        """What is printed."""
        self.lines: list[str] = []
        self.patch(chaos, "_say", self.lines.append)

    def test_skipped(self) -> None:
        """Where it cannot run it says why, and that is no failure."""
        self.patch(chaos, "why_not", lambda: "network namespaces need root")
        chaos.main([])
        self.assertEqual(["skipped: network namespaces need root"], self.lines)

    def test_unknown_fault(self) -> None:
        """An unknown fault is one line and a failure."""
        self.patch(chaos, "why_not", lambda: "")
        with self.assertRaises(SystemExit) as caught:
            chaos.main(["--faults", "kill,earthquake"])
        self.assertIn("no such fault: earthquake", str(caught.exception.code))

    def test_chosen_faults(self) -> None:
        """All, or those named, in their order; names differ."""
        self.assertEqual(list(FAULTS), chosen_faults(""))
        self.assertEqual(["stop", "kill"], [fault.name for fault in chosen_faults("stop,kill")])
        self.assertEqual(len(FAULTS), len({fault.name for fault in FAULTS}))
        self.assertRaises(PaxosError, chosen_faults, "nothing")

    def test_table(self) -> None:
        """Median and worst; rates; what was skipped; what failed."""
        gaps = Outcome("kill", "leader killed", "1.5 s", [0.1, 0.3, 0.2], [0.4], [0.0], [0.0])
        self.assertEqual(["leader killed", "0.20 / 0.30 s", "0.40 / 0.40 s"], row(gaps)[:3])
        rate = Outcome("loss", "loss", "49/s", [0.1], writes_per_s=[50.4], before_per_s=[100])
        self.assertEqual("100 -> 50 writes/s, 0.10 / 0.10 s", row(rate)[1])
        self.assertEqual("skipped: needs 5 nodes", row(Outcome("x", "x", "", skipped="needs 5 nodes"))[1])
        self.assertEqual("x FAILED", row(Outcome("x", "x", "", failed="why"))[0])
        self.assertEqual(4, len(table([gaps, rate]).splitlines()))
