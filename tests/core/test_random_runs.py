"""Random runs of the whole core: crashes, loss, replays, cuts, pauses, stalled disks.

The `Witness` checks rules 1 to 7 at every message and every write; at the end, a healed cluster
must make progress and hold all that was acknowledged. ``PAXOS_SEED=17`` runs only that seed.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.core.runs import RandomRun, Weather
from twisted_paxos.core import limits

SEEDS = 60
LOSING_DISKS = Weather(loss=0.2, replay=0.05, stall=0.003, commands=0.85, wipes=0.4)
STORM = Weather(seconds=8.0, loss=0.3, replay=0.05, stall=0.01, commands=0.8)


def seeds() -> list[int]:
    """Those to run."""
    only = os.environ.get("PAXOS_SEED", "")
    return [int(only)] if only else list(range(SEEDS))


class RandomRunTests(SynchronousTestCase):
    """Each seed is one run; a failure names it."""

    def check(self, size: int, weather: Weather, share: int = 1) -> list[RandomRun]:
        """All seeds with this weather, or every ``share``-th of them."""
        runs = []
        for seed in seeds():
            if seed % share and len(seeds()) > 1:
                continue
            run = RandomRun(seed, size, weather)
            try:
                run.run()
            except Exception as error:
                raise self.failureException(f"PAXOS_SEED={seed}, {size} nodes: {error!r}") from error
            runs.append(run)
        return runs

    def test_threeNodes(self) -> None:
        """Three nodes agree, lose nothing, and go on once all is well again."""
        runs = self.check(3, Weather())
        if len(seeds()) == SEEDS:
            self.assertGreater(sum(len(run.cluster.acknowledged) for run in runs), 100 * len(runs))
            self.assertGreater(sum(run.cluster.reads for run in runs), 10 * len(runs))

    def test_fiveNodes(self) -> None:
        """Five nodes likewise."""
        self.check(5, Weather())

    def test_storm(self) -> None:
        """30 % loss, many crashes, slow disks: safe all the same."""
        self.check(3, STORM, share=2)
        self.check(5, STORM, share=6)

    def test_lostDisks(self) -> None:
        """Nodes lose their whole disk, one after the other: they come back by a Replace, nothing is lost."""
        self.patch(limits, "ALPHA", 6)
        self.patch(limits, "WINDOW_SLOTS", 12)
        self.patch(limits, "BALLOTS_PER_SLOT", 3)
        runs = self.check(3, LOSING_DISKS, share=2) + self.check(5, LOSING_DISKS, share=10)
        if len(seeds()) == SEEDS:
            self.assertGreater(sum(run.wiped for run in runs), len(runs) // 2)

    def test_fourNodesAndTwo(self) -> None:
        """Even sizes need more than half as well."""
        self.check(4, Weather(), share=6)
        self.check(2, Weather(), share=6)

    def test_aSingleNode(self) -> None:
        """A cluster of one survives its own crashes."""
        self.check(1, Weather(seconds=5.0), share=6)
