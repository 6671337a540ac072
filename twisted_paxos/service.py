"""The composition root: builds a node and its ports from a configuration."""

from __future__ import annotations

import random
import resource
import secrets
import socket
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.config import NodeConfig
from twisted_paxos.errors import PaxosError
from twisted_paxos.figures import NodeFigures
from twisted_paxos.interfaces import INodeStorage
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.protocols.clientport import ClientPort
from twisted_paxos.snapshots import Policy
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.statemachine.machine import IStateMachine
from twisted_paxos.storage.providers import find_provider
from twisted_paxos.web.gateway import Identity, MemberInfo
from twisted_paxos.web.http import CONNECTIONS_MAX, GatewaySite
from twisted_paxos.web.pages import StatusPages
from twisted_paxos.web.site import make_site

log = Logger()

INCARNATION_BYTES = 8

FILES_RESERVED = 2_000
"""Open files that are not for HTTP clients: a thousand native clients, peers, storage."""


class NodeService(Service):
    """A node with its client port.

    When the storage of the node turns out to be an old copy, that incarnation ends: its storage
    is set aside, and the node starts again, in this process, as a new incarnation.

    Args:
        reactor: everything runs on it.
        config: the node's.
        open_storage: makes the node's storage object, not yet recovered.
        durable: False for storage that a restart forgets.
        entropy: gives random words for incarnation and start.
        random: gives numbers in [0, 1), for jitter.
        machine: makes an empty state machine; each start of the node takes a new one.

    Attributes:
        node: the present one.
        site: its HTTP port; None where there is none.
        failed: fails, once, when the node cannot go on.
    """

    def __init__(
        self,
        reactor: Any,
        config: NodeConfig,
        open_storage: Callable[[], INodeStorage],
        durable: bool,
        entropy: Callable[[], str],
        random: Callable[[], float],
        machine: Callable[[], IStateMachine] = KeyValueStore,
    ) -> None:
        self.failed: Deferred[None] = Deferred()
        self._reactor = reactor
        self._config = config
        self._open_storage = open_storage
        self._durable = durable
        self._entropy = entropy
        self._random = random
        self._machine = machine
        self._listening: list[Any] = []
        self._pages: StatusPages | None = None
        self._reviving: Deferred[None] | None = None
        self._make()

    def _make(self) -> None:
        self.node = PersistentPaxosNode(
            self._reactor,
            self._config,
            self._open_storage(),
            self._durable,
            self._entropy,
            self._random,
            self._fail,
            self._lost,
            self._machine(),
            Policy(self._config.snapshot_slots, self._config.snapshot_log_mb << 20),
        )
        self._client_port = ClientPort(self.node, self._reactor, self.node.cluster)
        self.site = self._make_site() if self._config.http else None

    def _make_site(self) -> GatewaySite | None:
        config, node = self._config, self.node
        if not isinstance(node.machine, KeyValueStore):
            return None  # etcd's API is about the key-value store
        known = {config.uid: config.address, **config.peers}
        members = [
            MemberInfo(uid, f"http://{address}", config.http_urls.get(uid, ""))
            for uid, address in sorted(known.items())
        ]
        self._pages = StatusPages(self._reactor, self._figures, config.http_urls)
        told = urlsplit(config.http_urls.get(config.uid, "")).hostname
        own_names = (socket.gethostname(), config.address.host, config.bind.host, told or "")
        return make_site(
            node,
            self._reactor,
            Identity(node.cluster, members),
            f"http-{self._entropy()}",
            (*own_names, *config.http_allow_hosts),
            _http_connections_max(),
            pages=self._pages.resources,
        )

    def _figures(self) -> NodeFigures:
        """The node's, and those of its ports."""
        port, site = self._client_port, self.site
        return msgspec.structs.replace(
            self.node.figures(),
            clients=len(port.connections),
            client_drops=dict(port.dropped),
            http_clients=len(site.connections) if site is not None else 0,
            http_drops=dict(site.refused) if site is not None else {},
        )

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
        await self._listen(self._config.client, self._client_port)
        if self.site is not None and self._pages is not None:
            await self._listen(self._config.http, self.site)
            self._pages.start()
            log.info("node {uid}: HTTP at {where}", uid=self.node.uid, where=self._config.http)
        log.info("node {uid} is ready: clients at {where}", uid=self.node.uid, where=self._config.client)

    async def _listen(self, endpoint: str, factory: IProtocolFactory) -> None:
        listening = await serverFromString(self._reactor, endpoint).listen(factory)
        if self.running:
            self._listening.append(listening)
        else:
            await maybeDeferred(listening.stopListening)

    def stopService(self) -> Deferred[Any]:
        """Stop; fires when ports are closed and storage is synced."""
        super().stopService()
        ending = self._stop_node()
        if self._reviving is not None:
            reviving, self._reviving = self._reviving, None
            return gatherResults([ending, reviving], consumeErrors=True)
        return ending

    def _stop_node(self) -> Deferred[Any]:
        listening, self._listening = self._listening, []
        endings: list[Any] = [maybeDeferred(port.stopListening) for port in listening]
        self._client_port.close_all()
        if self._pages is not None:
            self._pages.stop()
        if self.site is not None:
            self.site.close_all()
        endings.append(self.node.stopService())
        return gatherResults(endings, consumeErrors=True)

    def _fail(self, reason: str) -> None:
        """The node cannot go on."""
        if not self.failed.called:
            self.failed.errback(PaxosError(reason))

    def _lost(self, reason: str) -> None:
        """The incarnation cannot go on; the node can."""
        self._reviving = Deferred.fromCoroutine(self._revive())
        self._reviving.addErrback(self._not_revived)

    async def _revive(self) -> None:
        await self._stop_node()
        place = self.node.storage.set_aside()
        log.info("the old storage of node {uid} is kept as {place}", uid=self.node.uid, place=place)
        if self.running:
            self._make()
            self.node.lost = True
            await self.startService()

    def _not_revived(self, failure: Failure) -> None:
        if self.running:
            self._fail(failure.getErrorMessage())


def _http_connections_max() -> int:
    """HTTP clients that this process can have, and still open its own files and serve other clients."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return min(CONNECTIONS_MAX, max(files // 2, files - FILES_RESERVED))


def build_service(
    reactor: Any, config: NodeConfig, machine: Callable[[], IStateMachine] | None = None
) -> IService:
    """Everything that one node needs, not yet started; touches no file and no port.

    Args:
        reactor: everything runs on it.
        config: the node's.
        machine: makes an empty state machine of your own, in place of the key-value store; all members
            of a cluster have the same one.

    Raises:
        ConfigError: the storage cannot be understood.
    """
    provider, location = find_provider(config.storage)
    machine = machine or partial(KeyValueStore, KvLimits(**config.store))
    return NodeService(
        reactor,
        config,
        lambda: provider.open(location, config.uid, reactor),
        provider.durable,
        lambda: secrets.token_hex(INCARNATION_BYTES),
        random.random,
        machine,
    )
