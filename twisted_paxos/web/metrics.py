"""``/metrics``: a node's figures in Prometheus' text format.

The figures are taken when they are asked for, on the reactor's thread: nothing is counted twice, and
a node that nobody scrapes does no work for it. (`prometheus_client`'s own Twisted resource is not
used: it runs in a thread, and imports the global reactor.)

`GAUGES` and the other tables hold name, help text and where the number is. Durations are seconds,
sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from twisted.web.http import Request
from twisted.web.resource import Resource

from twisted_paxos.core.histogram import Distribution
from twisted_paxos.figures import NodeFigures, PeerFigures
from twisted_paxos.web.delay import ReactorDelay

Number = Callable[[NodeFigures], float]

ROLES: Final = ("leader", "candidate", "follower", "observer", "joining")

GAUGES: Final[tuple[tuple[str, str, Number], ...]] = (
    ("paxos_is_leader", "1 while this node leads.", lambda f: f.status.role == "leader"),
    ("paxos_has_leader", "1 while a leader works for this node.", lambda f: f.status.leader_works),
    ("paxos_votes", "1 while this node votes.", lambda f: f.votes),
    ("paxos_ballot_number", "Number of the leader's ballot.", lambda f: f.status.ballot.number),
    ("paxos_promised_number", "Number of the highest ballot promised.", lambda f: f.status.promised.number),
    ("paxos_chosen_slot", "Every slot up to here is known as chosen.", lambda f: f.status.chosen_upto),
    ("paxos_applied_slot", "Every slot up to here is applied.", lambda f: f.status.applied),
    ("paxos_log_start_slot", "The lowest slot that the log still has.", lambda f: f.status.log_start),
    ("paxos_missing_slots", "Chosen slots that this node lacks.", lambda f: f.missing_slots),
    ("paxos_proposals_pending", "Commands of this node's clients not applied yet.", lambda f: f.pending),
    ("paxos_proposals_in_flight", "Slots proposed by this node and not chosen.", lambda f: f.in_flight),
    ("paxos_log_size_bytes", "Size of the log on disk.", lambda f: f.status.log_bytes),
    ("paxos_disk_full", "1 while there is no room to write.", lambda f: f.disk_full),
    ("paxos_disk_waiting_seconds", "Age of the oldest unfinished write.", lambda f: f.disk_waiting_s),
    ("paxos_snapshot_slot", "Slot of the newest complete snapshot, 0 without.", lambda f: f.snapshots.slot),
    ("paxos_snapshot_size_bytes", "Size of the newest snapshot.", lambda f: f.snapshots.size_bytes),
    ("paxos_snapshot_running", "1 while a snapshot is made or fetched.", lambda f: f.snapshots.running),
    ("paxos_sessions", "Open client sessions.", lambda f: f.sessions),
    ("paxos_clients", "Connected clients.", lambda f: f.clients),
    ("paxos_http_clients", "Connections to the HTTP port.", lambda f: f.http_clients),
    ("paxos_uptime_seconds", "Since the start of the node.", lambda f: f.status.uptime_s),
)  # fmt: skip
"""Name, help, number."""

COUNTERS: Final[tuple[tuple[str, str, Number], ...]] = (
    ("paxos_leader_changes", "Changes of leader seen, the first one included.", lambda f: f.leader_changes),
    ("paxos_take_overs", "Times that this node started phase 1.", lambda f: f.take_overs),
    ("paxos_proposals_applied", "Commands applied.", lambda f: f.commands),
    ("paxos_proposals_refused", "Commands not taken: too much waited, or too large.", lambda f: f.refused),
    ("paxos_proposals_failed", "Commands chosen and not applied, for want of a session.", lambda f: f.failed),
    ("paxos_catch_up_fetches", "Questions to other nodes for chosen slots.", lambda f: f.fetches),
    ("paxos_peer_sent_bytes", "Bytes of messages sent to nodes.", lambda f: f.sent_bytes),
    ("paxos_peer_received_bytes", "Bytes of messages taken from nodes.", lambda f: f.received_bytes),
    ("paxos_peer_send_failures", "Datagrams that the system refused.", lambda f: f.send_failures),
    ("paxos_snapshots_failed", "Snapshots given up for a full disk.", lambda f: f.snapshots.failed),
    ("paxos_snapshots_fetched", "Snapshots fetched from another node.", lambda f: f.snapshots.fetched),
)  # fmt: skip
"""Name without ``_total``, help, number."""

STORE_GAUGES: Final[tuple[tuple[str, str, Callable[[Any], float]], ...]] = (
    ("paxos_store_size_bytes", "Size of the key-value store, history included.", lambda s: s.size_bytes),
    ("paxos_store_keys", "Keys.", lambda s: s.keys),
    ("paxos_store_revision", "The last revision.", lambda s: s.revision),
    ("paxos_store_compact_revision", "The lowest revision that can be read.", lambda s: s.compact_revision),
    ("paxos_leases", "Leases.", lambda s: s.leases),
    ("paxos_watchers", "Watchers of this node.", lambda s: s.watchers),
)  # fmt: skip
"""Of the key-value store; left out with another state machine."""

DISTRIBUTIONS: Final[tuple[tuple[str, str, Callable[[NodeFigures], Distribution]], ...]] = (
    ("paxos_commit_duration_seconds", "From proposing a slot to its being chosen.", lambda f: f.commits),
    ("paxos_sync_duration_seconds", "From writing a batch to its being durable.", lambda f: f.syncs),
    ("paxos_apply_duration_seconds", "Applying one batch of slots.", lambda f: f.applies),
    ("paxos_snapshot_duration_seconds", "Making one snapshot.", lambda f: f.snapshots.durations),
)  # fmt: skip

PEER_GAUGES: Final[tuple[tuple[str, str, Callable[[PeerFigures], float]], ...]] = (
    ("paxos_peer_reached", "1 while the node answers probes.", lambda p: p.reached),
    ("paxos_peer_heard", "1 while something comes from the node.", lambda p: p.heard),
    ("paxos_peer_chosen_slot", "What the node knows as chosen, as it said.", lambda p: p.chosen_upto),
)


class NodeCollector(Collector):
    """Turns `NodeFigures` into metrics.

    Args:
        figures: gives those of now.
    """

    def __init__(self, figures: Callable[[], NodeFigures]) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask the node before it has started."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything, of this moment."""
        figures = self._figures()
        status = figures.status
        told = {"node": status.uid, "version": status.version, "incarnation": status.incarnation}
        yield InfoMetricFamily("paxos_node", "Who this is.", told)
        for name, text, number in GAUGES:
            yield GaugeMetricFamily(name, text, number(figures))
        for name, text, number in COUNTERS:
            yield CounterMetricFamily(name, text, number(figures))
        for name, text, distribution in DISTRIBUTIONS:
            yield _histogram(name, text, distribution(figures))
        yield _by_label("paxos_role", "1 for the present role.", "role", _roles(status.role))
        yield from _store(figures)
        yield from _messages(figures)
        yield from _peers(figures.peers)


def _roles(role: str) -> dict[str, int]:
    return {name: int(name == role) for name in ROLES}


def _by_label(name: str, text: str, label: str, numbers: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in sorted(numbers.items()):
        family.add_metric([value], number)
    return family


def _store(figures: NodeFigures) -> Iterator[Metric]:
    if figures.store is not None:
        for name, text, number in STORE_GAUGES:
            yield GaugeMetricFamily(name, text, number(figures.store))
        yield GaugeMetricFamily(
            "paxos_store_quota_bytes", "How large the store may become.", figures.quota_bytes
        )


def _messages(figures: NodeFigures) -> Iterator[Metric]:
    messages = CounterMetricFamily(
        "paxos_peer_messages", "Datagrams and frames to and from nodes.", labels=["direction", "type"]
    )
    for direction, counts in (("sent", figures.sent), ("received", figures.received)):
        for kind, count in sorted(counts.items()):
            messages.add_metric([direction, kind], count)
    yield messages
    drops = CounterMetricFamily(
        "paxos_dropped", "Messages dropped, by origin and reason.", labels=["from", "reason"]
    )
    origins = {
        "peer": figures.status.dropped,
        "client": figures.client_drops,
        "http": figures.http_drops,
    }
    for origin, reasons in origins.items():
        for reason, count in sorted(reasons.items()):
            drops.add_metric([origin, reason], count)
    yield drops


def _peers(peers: tuple[PeerFigures, ...]) -> Iterator[Metric]:
    for name, text, number in PEER_GAUGES:
        yield _by_label(name, text, "peer", {peer.uid: number(peer) for peer in peers})
    family = HistogramMetricFamily(
        "paxos_peer_round_trip_seconds", "From a round's first probe to its answer.", labels=["peer"]
    )
    for peer in peers:
        buckets, sum_s = _buckets(peer.round_trips)
        family.add_metric([peer.uid], buckets, sum_s)
    yield family


def _histogram(name: str, text: str, distribution: Distribution) -> Metric:
    buckets, sum_s = _buckets(distribution)
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=sum_s)


def _buckets(distribution: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Cumulative, as Prometheus wants them."""
    buckets: list[tuple[str, float]] = []
    total = 0
    bounds = [*(f"{bound:g}" for bound in distribution.bounds_s), "+Inf"]
    for bound, count in zip(bounds, distribution.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets, distribution.sum_s


class _DelayCollector(Collector):
    """The reactor's delay; see `ReactorDelay`."""

    def __init__(self, delay: ReactorDelay) -> None:
        self._delay = delay

    def describe(self) -> Iterable[Metric]:
        """Nothing, as above."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """How late periodic calls were."""
        yield _histogram(
            "paxos_reactor_delay_seconds",
            "How late a periodic call of the reactor was.",
            self._delay.delays.read(),
        )


def build_registry(figures: Callable[[], NodeFigures], delay: ReactorDelay) -> CollectorRegistry:
    """A registry for one node; nothing in it is shared with another node of this process.

    Args:
        figures: gives those of now.
        delay: of the node's reactor.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(figures))
    registry.register(_DelayCollector(delay))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class MetricsResource(Resource):
    """``/metrics``.

    Args:
        registry: what it shows; see `build_registry`.
    """

    isLeaf = True

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render_GET(self, request: Request) -> bytes:
        """All metrics, in the format that the scraper asks for."""
        accept = request.getHeader("accept") or ""
        encode, content_type = choose_encoder(accept)
        request.setHeader("content-type", content_type)
        request.setHeader("cache-control", "no-store")
        return encode(self._registry)
