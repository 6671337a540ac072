"""Leaders killed under load: nothing twice, nothing lost, every event once and in order."""

from __future__ import annotations

import random

from twisted_paxos.testing.kills import Kills
from twisted_paxos.testing.nodes import KEEP_LOG

from .support import ProcessCase


class KillTests(ProcessCase):
    """A short run of ``python -m twisted_paxos.testing.kills``."""

    async def test_three_kills(self) -> None:
        """Four clients, three leaders."""
        cluster = self.cluster(options=[*KEEP_LOG, "--quiet"])
        figures = await Kills(self.reactor, cluster, random.Random(4)).run(4, 3)
        self.assertEqual((3, 3), (figures.kills, len(figures.gaps_s)))
        self.assertGreater(figures.acknowledged, 20)
        self.assertEqual(4 * (figures.revisions - 1), figures.events)
        self.assertIn("3 leaders killed", str(figures))
