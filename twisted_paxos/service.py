"""The composition root: builds a node and its ports from a configuration."""

from __future__ import annotations

import random
import secrets
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger

from twisted_paxos.config import NodeConfig
from twisted_paxos.errors import PaxosError
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.protocols.clientport import ClientPort
from twisted_paxos.storage.providers import find_provider

log = Logger()

INCARNATION_BYTES = 8


class NodeService(Service):
    """A node with its client port.

    Args:
        reactor: everything runs on it.
        node: the node.
        client_endpoint: Twisted server endpoint string for clients.

    Attributes:
        failed: fails, once, when the node cannot go on.
    """

    def __init__(self, reactor: Any, node: PersistentPaxosNode, client_endpoint: str) -> None:
        self.node = node
        self.failed: Deferred[None] = Deferred()
        self._reactor = reactor
        self._client_endpoint = client_endpoint
        self._client_port = ClientPort(node, reactor, node.cluster)
        self._listening: Any = None

    def startService(self) -> Deferred[None]:
        """Start the node; fires when clients can connect.

        Raises:
            StorageError: the storage cannot be used.
            CannotListenError: the peer port is taken. A client port that is taken makes the
                Deferred fail with the same.
        """
        self.node.startService()
        super().startService()
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        await self.node.recovered
        if not self.running:
            return
        endpoint = serverFromString(self._reactor, self._client_endpoint)
        self._listening = await endpoint.listen(self._client_port)
        log.info("node {uid} is ready: clients at {where}", uid=self.node.uid, where=self._client_endpoint)

    def stopService(self) -> Deferred[Any]:
        """Stop; fires when ports are closed and storage is synced."""
        super().stopService()
        endings: list[Any] = []
        if self._listening is not None:
            endings.append(self._listening.stopListening())
            self._client_port.close_all()
        endings.append(self.node.stopService())
        return gatherResults([e for e in endings if e is not None], consumeErrors=True)

    def fail(self, reason: str) -> None:
        """The node cannot go on."""
        if not self.failed.called:
            self.failed.errback(PaxosError(reason))


def build_service(reactor: Any, config: NodeConfig) -> IService:
    """Everything that one node needs, not yet started; touches no file and no port.

    Raises:
        ConfigError: the storage cannot be understood.
    """
    provider, location = find_provider(config.storage)
    node = PersistentPaxosNode(
        reactor,
        config,
        provider.open(location, config.uid, reactor),
        provider.durable,
        lambda: secrets.token_hex(INCARNATION_BYTES),
        random.random,
        lambda reason: service.fail(reason),
    )
    service = NodeService(reactor, node, config.client)
    return service
