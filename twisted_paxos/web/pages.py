"""What people and Prometheus look at: the status page, its events, and the metrics of one node."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource

from twisted_paxos.figures import NodeFigures
from twisted_paxos.web.delay import ReactorDelay
from twisted_paxos.web.metrics import MetricsResource, build_registry
from twisted_paxos.web.statusfeed import EventsResource, StatusFeed
from twisted_paxos.web.statuspage import StatusPageResource, page_origins

EVENTS_PATH: Final = b"/events"
"""Its answers say themselves which pages may read them."""

_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


class StatusPages:
    """The pages of one node.

    Args:
        clock: the reactor.
        figures: gives those of now.
        nodes: URLs of the nodes' HTTP ports, by id; what is no plain URL is left out.

    Attributes:
        resources: by the path's first part.
    """

    def __init__(
        self, clock: IReactorTime, figures: Callable[[], NodeFigures], nodes: Mapping[str, str]
    ) -> None:
        nodes = {uid: url for uid, url in nodes.items() if _URL.fullmatch(url)}
        self._delay = ReactorDelay(clock)
        self._feed = StatusFeed(clock, figures, nodes)
        self.resources: tuple[tuple[bytes, IResource], ...] = (
            (b"", StatusPageResource(nodes)),
            (EVENTS_PATH[1:], EventsResource(self._feed, clock, page_origins(nodes))),
            (b"metrics", MetricsResource(build_registry(figures, self._delay))),
        )

    def start(self) -> None:
        """The port is open."""
        self._delay.start()

    def stop(self) -> None:
        """End what is under way."""
        self._delay.stop()
        self._feed.stop()
