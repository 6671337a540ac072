"""docs/protocol.md names what exists: messages, rules and the tests that show them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.messages import Message

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "protocol.md").read_text("utf-8")
TESTS = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py")))


class ProtocolDocumentTests(SynchronousTestCase):
    """The document against the code."""

    def test_tableHasEveryMessage(self) -> None:
        """Each message that can travel has its row, and no row is of one that does not exist."""
        rows = re.findall(r"^\| ([A-Z][A-Za-z, ]+) \|", TEXT, re.MULTILINE)
        named = {name for row in rows for name in row.split(", ")}
        self.assertEqual(named, {kind.__name__ for kind in get_args(Message)})

    def test_namedTestsExist(self) -> None:
        """A test that the document names is there."""
        named = set(re.findall(r"`(test_[A-Za-z0-9]+)`", TEXT))
        self.assertGreater(len(named), 40)
        self.assertEqual([name for name in sorted(named) if f"def {name}(" not in TESTS], [])

    def test_everyRuleIsStatedAndTested(self) -> None:
        """Rules 1 to 9 are in the document, each with tests that carry its number."""
        for rule in range(1, 10):
            self.assertRegex(TEXT, rf"\*\*{rule}\. ")
            self.assertGreaterEqual(len(re.findall(rf"def test_rule{rule}[A-Z]", TESTS)), 3, f"rule {rule}")

    def test_namedFilesExist(self) -> None:
        """A file that the document names is there."""
        for name in set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", TEXT)):
            places = (ROOT / name, ROOT / "twisted_paxos" / name, ROOT / "tests" / name)
            self.assertTrue(any(path.exists() for path in places), name)
