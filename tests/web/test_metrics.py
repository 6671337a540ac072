"""``/metrics``."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.figures import NodeFigures
from twisted_paxos.testing.fakenode import FakeNode
from twisted_paxos.web.delay import INTERVAL_S, ReactorDelay
from twisted_paxos.web.metrics import MetricsResource, build_registry

from .support import figures, get


class MetricsCase(SynchronousTestCase):
    """One node's resource."""

    def setUp(self) -> None:
        """A clock that measures the reactor's delay."""
        self.clock = Clock()
        self.delay = ReactorDelay(self.clock)

    def text(self, shown: NodeFigures, **headers: str) -> str:
        """What the resource answers."""
        self.request = get(**headers)
        resource = MetricsResource(build_registry(lambda: shown, self.delay))
        return resource.render_GET(self.request).decode()

    def samples(self, shown: NodeFigures) -> dict[tuple[str, ...], float]:
        """All samples, by name and the values of labels."""
        families = text_string_to_metric_families(self.text(shown))
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


class MetricsTests(MetricsCase):
    """What is exported."""

    def test_numbers(self) -> None:
        """Leader, slots, proposals, store and clients have the node's numbers."""
        found = self.samples(figures())
        for name, number in {
            "paxos_is_leader": 1,
            "paxos_has_leader": 1,
            "paxos_leader_changes_total": 2,
            "paxos_chosen_slot": 120,
            "paxos_applied_slot": 118,
            "paxos_proposals_pending": 5,
            "paxos_proposals_refused_total": 4,
            "paxos_proposals_failed_total": 1,
            "paxos_proposals_applied_total": 400,
            "paxos_snapshot_slot": 100,
            "paxos_store_size_bytes": 640,
            "paxos_store_keys": 3,
            "paxos_leases": 2,
            "paxos_watchers": 6,
            "paxos_sessions": 8,
            "paxos_clients": 9,
        }.items():
            self.assertEqual(number, found[(name,)], name)

    def test_labels(self) -> None:
        """Messages have direction and type, drops origin and reason, peers their id."""
        found = self.samples(figures())
        self.assertEqual(10, found[("paxos_peer_messages_total", "sent", "Accept")])
        self.assertEqual(7, found[("paxos_peer_messages_total", "received", "Heartbeat")])
        self.assertEqual(2, found[("paxos_dropped_total", "peer", "not_a_message")])
        self.assertEqual(1, found[("paxos_dropped_total", "client", "too_many")])
        self.assertEqual((1, 0), (found[("paxos_peer_reached", "B")], found[("paxos_peer_reached", "C")]))
        self.assertEqual((1, 0), (found[("paxos_role", "leader")], found[("paxos_role", "follower")]))

    def test_histogram(self) -> None:
        """Buckets are cumulative, the last one holds all, and the sum is there."""
        found = self.samples(figures())
        name = "paxos_sync_duration_seconds"
        self.assertEqual(1, found[(f"{name}_bucket", "0.001")])
        self.assertEqual(3, found[(f"{name}_bucket", "10")])
        self.assertEqual(4, found[(f"{name}_bucket", "+Inf")])
        self.assertEqual(4, found[(f"{name}_count",)])
        self.assertAlmostEqual(20.0069, found[(f"{name}_sum",)])

    def test_other_machine(self) -> None:
        """Without the key-value store its metrics are left out, all others are there."""
        found = self.samples(figures(store=None))
        self.assertNotIn(("paxos_store_keys",), found)
        self.assertIn(("paxos_sessions",), found)

    def test_reactor_delay(self) -> None:
        """A reactor that was blocked for 0.3 s shows one late call."""
        self.delay.start()
        self.clock.advance(INTERVAL_S)
        self.clock.advance(INTERVAL_S + 0.3)
        self.delay.stop()
        self.assertEqual([], self.clock.getDelayedCalls())
        found = self.samples(figures())
        self.assertEqual(2, found[("paxos_reactor_delay_seconds_count",)])
        self.assertEqual(1, found[("paxos_reactor_delay_seconds_bucket", "0.25")])

    def test_two_nodes(self) -> None:
        """Two nodes of one process share nothing."""
        registries = [build_registry(FakeNode(uid).figures, self.delay) for uid in "AB"]
        texts = [MetricsResource(registry).render_GET(get()).decode() for registry in registries]
        self.assertIn('node="A"', texts[0])
        self.assertNotIn('node="A"', texts[1])

    def test_process(self) -> None:
        """Processor time, memory and open files of the process are there."""
        found = self.samples(figures())
        for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
            self.assertIn((name,), found)

    def test_formats(self) -> None:
        """A scraper may ask for OpenMetrics; nothing is cached."""
        text = self.text(figures(), accept="application/openmetrics-text; version=1.0.0")
        self.assertTrue(text.endswith("# EOF\n"))
        types = self.request.responseHeaders.getRawHeaders("content-type")
        self.assertTrue(types[0].startswith("application/openmetrics-text"))
        self.assertEqual(["no-store"], self.request.responseHeaders.getRawHeaders("cache-control"))

    def test_names(self) -> None:
        """Names follow Prometheus' rules: a prefix, units last, counters end in _total; each has a help."""
        for family in text_string_to_metric_families(self.text(figures())):
            if family.name.startswith(("process_", "python_")):
                continue
            self.assertTrue(family.documentation.endswith("."), family.name)
            self.assertRegex(family.name, r"^paxos_[a-z_]+[a-z]$")
            self.assertNotRegex(family.name, r"_(ms|s|kb|mb)$")


class FakeNodeTests(SynchronousTestCase):
    """A node's own figures; those of whole nodes are in `tests.test_measures`."""

    def test_fake(self) -> None:
        """A node's figures can be exported as they are."""
        resource = MetricsResource(build_registry(FakeNode().figures, ReactorDelay(Clock())))
        self.assertIn(b"paxos_is_leader 1.0", resource.render_GET(get()))
