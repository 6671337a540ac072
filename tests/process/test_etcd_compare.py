"""The JSON API beside real etcd: the same requests, the same answers."""

from __future__ import annotations

import sys

from twisted_paxos.testing.etcdservers import missing_etcd

from .support import ProcessCase

REQUESTS = 400
COMPARE = (sys.executable, "-m", "twisted_paxos.testing.etcdcompare")


class ComparisonTests(ProcessCase):
    """etcd and a cluster of three nodes."""

    timeout = 600
    skip = missing_etcd() or None

    async def test_no_differences(self) -> None:
        """All hand-written sequences and several hundred random requests give equal answers."""
        ended = await self.run_program(*COMPARE, "--requests", str(REQUESTS), "--seed", "1")
        self.assertEqual(0, ended.status, ended.output[-20_000:] + ended.errors)
        self.assertIn(" 0 differences", ended.output)
