"""What lies under ``deploy/``: everything it names exists, and every alert is explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from twisted_paxos import tap
from twisted_paxos.web.delay import ReactorDelay
from twisted_paxos.web.metrics import MetricsResource, build_registry

from .test_packaging import CheckoutCase
from .web.support import figures, get

OURS = re.compile(r"\b(?:paxos|process|python)_[a-z_]+\b")


def exported() -> set[str]:
    """Names of all samples that a node exports."""
    resource = MetricsResource(build_registry(figures, ReactorDelay(Clock())))
    families = text_string_to_metric_families(resource.render_GET(get()).decode())
    return {sample.name for family in families for sample in family.samples}


class DeployCase(CheckoutCase):
    """The files, read."""

    def setUp(self) -> None:
        """Alerts, dashboard, and the page that explains."""
        super().setUp()
        self.alerts = (self.top / "deploy/prometheus/alerts.yml").read_text()
        self.dashboard = json.loads((self.top / "deploy/grafana/twisted_paxos.json").read_text())
        self.operations = (self.top / "docs/operations.md").read_text()

    def panels(self) -> Iterator[dict[str, object]]:
        """Those that show something."""
        return (panel for panel in self.dashboard["panels"] if panel["type"] != "row")


class AlertTests(DeployCase):
    """``deploy/prometheus/alerts.yml``."""

    def test_metrics_exist(self) -> None:
        """Every metric of every rule is exported."""
        rules = re.findall(r"^ +expr: (.*)$", self.alerts, re.MULTILINE)
        named = {name for rule in rules for name in OURS.findall(rule)}
        self.assertGreater(len(named), 15)
        self.assertEqual(set(), named - exported())

    def test_explained(self) -> None:
        """Every alert has its row in docs/operations.md, with what it means and what to do; no other has."""
        names = re.findall(r"- alert: (\w+)", self.alerts)
        rows = re.findall(r"^\| `(Paxos\w+)` \| (.+) \| (.+) \|$", self.operations, re.MULTILINE)
        self.assertEqual(sorted(set(names)), sorted(names))
        self.assertEqual(sorted(names), sorted(name for name, _, _ in rows))

    def test_complete(self) -> None:
        """Every alert has a severity and a summary."""
        for block in self.alerts.split("- alert: ")[1:]:
            self.assertRegex(block, r"labels: \{severity: (warning|critical)\}")
            self.assertIn("summary: ", block)

    def test_documented_metrics(self) -> None:
        """Every metric that docs/operations.md names is exported."""
        named = {name for name in OURS.findall(self.operations) if name not in ("paxos_data",)}
        self.assertEqual(set(), {name for name in named if not name.endswith("_")} - self.families())

    def families(self) -> set[str]:
        """Names of samples, and of histograms without their suffix."""
        return {form for name in exported() for form in (name, name.removesuffix("_bucket"))}


class DashboardTests(DeployCase):
    """``deploy/grafana/twisted_paxos.json``."""

    def test_metrics_exist(self) -> None:
        """Every metric of every panel is exported."""
        named: set[str] = set()
        for panel in self.panels():
            for target in panel["targets"]:  # type: ignore[attr-defined]
                named.update(OURS.findall(target["expr"]))
        self.assertGreater(len(named), 30)
        self.assertEqual(set(), named - exported())

    def test_panels(self) -> None:
        """Every panel has a title and says what it shows; numbers are not used twice."""
        panels = list(self.panels())
        for panel in panels:
            self.assertTrue(panel["title"] and panel["description"], panel)
        ids = [panel["id"] for panel in self.dashboard["panels"]]
        self.assertEqual(sorted(set(ids)), sorted(ids))

    def test_places(self) -> None:
        """No two panels overlap, and none is wider than the page."""
        taken: set[tuple[int, int]] = set()
        for panel in self.dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            self.assertEqual(set(), cells & taken, panel["title"])
            self.assertLessEqual(place["x"] + place["w"], 24)
            taken |= cells


class UnitTests(DeployCase):
    """``deploy/systemd``."""

    def test_options(self) -> None:
        """The unit starts a node with options that exist."""
        unit = (self.top / "deploy/systemd/twisted-paxos@.service").read_text()
        (command,) = re.findall(r"^ExecStart=\S*twistd (.*)$", unit, re.MULTILINE)
        twistds, ours = command.split(" paxos ")
        self.assertEqual("--nodaemon --pidfile=", twistds)
        known = {name.rstrip("=") for name in tap.Options().longOpt}
        self.assertEqual(set(), set(re.findall(r"--([a-z-]+)", ours)) - known)
