"""The alert rules, by Prometheus' own tool."""

from __future__ import annotations

import shutil
from unittest import SkipTest

from ..test_packaging import CHECKOUT
from .support import Ended, ProcessCase


class AlertRuleTests(ProcessCase):
    """``promtool``; Debian has it in the package prometheus."""

    async def promtool(self, *arguments: str) -> Ended:
        """Run it on files of ``deploy/prometheus``."""
        tool = shutil.which("promtool")
        if tool is None or CHECKOUT is None:
            raise SkipTest("promtool is not installed, or this is no checkout")
        *words, name = arguments
        return await self.run_program(tool, *words, str(CHECKOUT / "deploy" / "prometheus" / name))

    async def test_rules(self) -> None:
        """The rules are valid."""
        ended = await self.promtool("check", "rules", "alerts.yml")
        self.assertEqual(0, ended.status, ended)

    async def test_alerts(self) -> None:
        """A healthy cluster raises no alert; a lost leader, a slow disk and others raise theirs."""
        ended = await self.promtool("test", "rules", "alerts_test.yml")
        self.assertEqual(0, ended.status, ended)
