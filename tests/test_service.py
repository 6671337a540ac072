"""What a node's service is made of; how it runs is shown by simulated clusters and real processes."""

from __future__ import annotations

import resource
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.web.sites import HttpClient
from twisted_paxos import service
from twisted_paxos.config import build_config
from twisted_paxos.service import NodeService, build_service
from twisted_paxos.statemachine.opaque import OpaqueLog
from twisted_paxos.web.http import CONNECTIONS_MAX


class SiteTests(SynchronousTestCase):
    """Its HTTP port."""

    def made(self, *arguments: Any, **options: Any) -> NodeService:
        """A service that was not started."""
        config = build_config("A", storage="memory:", **options)
        built = build_service(MemoryReactorClock(), config, *arguments)
        assert isinstance(built, NodeService)
        return built

    def test_there(self) -> None:
        """There is one, unless it is turned off, or the state machine is another than etcd's API is about."""
        self.assertIsNotNone(self.made().site)
        self.assertIsNone(self.made(http="none").site)
        self.assertIsNone(self.made(OpaqueLog).site)

    def code(self, made: NodeService, host: str) -> int:
        """Status of a request under ``host``."""
        assert made.site is not None
        client = HttpClient(made.site)
        client.send("/version", method="GET", headers={"Host": host})
        return client.reply().code

    def test_own_names(self) -> None:
        """Requests may use every name that the node is configured with, and those that are added."""
        made = self.made(
            peers=["A=node-a.example:7000"], http="http-a.example:80", http_allow_hosts=["db.example"]
        )
        for host in ("node-a.example:80", "http-a.example", "db.example:80", "127.0.0.1"):
            self.assertEqual(200, self.code(made, host), host)
        self.assertEqual(403, self.code(made, "other.example"))

    def test_connections(self) -> None:
        """No more clients than the limit on open files leaves room for."""
        for files, expected in ((1_024, 512), (10_000, 8_000), (1 << 20, CONNECTIONS_MAX)):
            self.patch(resource, "getrlimit", lambda _, files=files: (files, files))
            self.assertEqual(expected, service._http_connections_max())
        self.patch(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
        self.assertEqual(CONNECTIONS_MAX, service._http_connections_max())
