"""What is served on a node's HTTP port, all in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.web.http import NOT_FOUND
from twisted.web.resource import IResource, Resource

from twisted_paxos.interfaces import INode
from twisted_paxos.web.gateway import Gateway, Identity
from twisted_paxos.web.guard import Guard
from twisted_paxos.web.health import Health, Version
from twisted_paxos.web.http import CONNECTIONS_MAX, GatewaySite
from twisted_paxos.web.openapi import OpenApi


def make_site(
    node: INode,
    reactor: Any,
    identity: Identity,
    session: str,
    host_names: Iterable[str] = (),
    connections_max: int = CONNECTIONS_MAX,
    pages: Sequence[tuple[bytes, IResource]] = (),
) -> GatewaySite:
    """The HTTP port of ``node``: listen with it on any stream endpoint.

    Args:
        node: a node with the built-in key-value store.
        reactor: for time.
        identity: the ids of cluster and members.
        session: a word that no session of the cluster had before.
        host_names: which names requests may use for this node; ``*``: any.
        connections_max: clients connected at once.
        pages: more resources, by the path's first part.
    """
    gateway = Gateway(node, reactor, identity, session)
    resources: Sequence[tuple[bytes, IResource]] = (
        (b"version", Version()),
        (b"health", Health(gateway)),
        (b"openapi.json", OpenApi()),
        *pages,
    )
    root = Root()
    for path, resource in resources:
        root.putChild(path, resource)
    return GatewaySite(gateway, root, Guard(host_names), reactor, connections_max)


class Root(Resource):
    """Where the pages are."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Only what was put here is here."""
        return Nothing()


class Nothing(Resource):
    """Where nothing is, nor below: one line of text, as etcd."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        """404; below the API's prefixes in other words than elsewhere."""
        request.setResponseCode(NOT_FOUND)
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return b"Not Found\n" if request.path.startswith((b"/v3/", b"/v3beta/")) else b"404 page not found\n"
