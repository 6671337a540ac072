"""The examples: they can be read by Python, and the counter keeps the contract of a state machine."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from twisted_paxos.interfaces import IStateMachine
from twisted_paxos.testing.determinism import check_determinism

EXAMPLES = Path(__file__).parent.parent / "examples"


class ExampleTests(SynchronousTestCase):
    """Each loads without a reactor, a cluster or an argument."""

    def load(self, name: str) -> dict[str, Any]:
        """What the example defines."""
        return runpy.run_path(str(EXAMPLES / name))

    def test_counter(self) -> None:
        """The counter is deterministic, also through snapshots."""
        counter = self.load("counter.py")["Counter"]
        verifyObject(IStateMachine, counter())
        trace = check_determinism(
            counter, [Raw(b'"1"'), Raw(b'"41"'), Raw(b'"no number"'), Raw(b"{}")], child=False
        )
        self.assertEqual([b"1", b"42", b"42", b"42"], trace.results)

    def test_others(self) -> None:
        """The others load, and install no reactor by that."""
        before = "twisted.internet.reactor" in sys.modules
        for name in ("with_asyncio.py", "leader_worker.py"):
            self.assertIn("main", self.load(name))
        self.assertEqual(before, "twisted.internet.reactor" in sys.modules)
