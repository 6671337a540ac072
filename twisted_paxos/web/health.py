"""``GET /health`` and ``GET /version``, as etcd answers them."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct
from twisted.web.http import NOT_ALLOWED, SERVICE_UNAVAILABLE
from twisted.web.resource import Resource

from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.replies import encode

ETCD_VERSION: Final = "3.4.23"
"""The version of etcd whose JSON API this is."""

ETCD_CLUSTER_VERSION: Final = "3.4.0"


class VersionReply(Struct, frozen=True):
    """What clients choose their way of talking by."""

    etcdserver: str
    etcdcluster: str


class HealthReply(Struct, frozen=True):
    """``health`` is ``true`` or ``false``, as text."""

    health: str


class GetResource(Resource):
    """What is only ever read; other methods are refused in one line of text, as by etcd."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        """GET, or 405."""
        if request.method == b"GET":
            return self.render_GET(request)
        request.setResponseCode(NOT_ALLOWED)
        request.setHeader(b"Allow", b"GET")
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return b"" if request.method == b"HEAD" else b"Method Not Allowed\n"

    def render_GET(self, request: Any) -> bytes:
        """What is there."""
        return b""


class Version(GetResource):
    """``/version``."""

    def render_GET(self, request: Any) -> bytes:
        """The version of the API."""
        request.setHeader(b"Content-Type", b"application/json")
        return encode(VersionReply(ETCD_VERSION, ETCD_CLUSTER_VERSION))


class Health(GetResource):
    """``/health``: whether this node can serve, for load balancers: 200 or 503."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway

    def render_GET(self, request: Any) -> bytes:
        """Whether there is a leader that works, as far as this node knows."""
        works = self._gateway.status().leader_works
        if not works:
            request.setResponseCode(SERVICE_UNAVAILABLE)
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return encode(HealthReply("true" if works else "false"))
