"""What one node is told: parsed, checked, frozen.

`build_config` is what the command line and an embedding program call. It takes options as
text, fills in what is missing, and raises `ConfigError` with one line that names the option,
or the file and the key, at fault. Apart from reading the two files that it is given (the
cluster file and the key file) everything here is a pure function.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from twisted_paxos.addresses import (
    Address,
    default_bind,
    is_endpoint,
    is_loopback,
    listening_endpoint,
    parse_address,
    parse_bind,
    told_client,
    told_url,
)
from twisted_paxos.errors import ConfigError

UID_MAX_CHARS: Final = 32
"""The longest node id (the same limit as `core.limits.UID_MAX_CHARS`; a test compares them)."""

MEMBERS_MAX: Final = 99
"""The most nodes that one cluster may list."""

PEER_PORT_FIRST: Final = 5000
"""The built-in cluster's node A; B has the next port, and so on."""

CLIENT_PORT_OFFSET: Final = 100
"""Where nothing else is said, clients connect this far above the peer port."""

HTTP_PORT_OFFSET: Final = 200
"""And HTTP is served this far above it."""

HTTP_BACKLOG: Final = 1_024
"""HTTP connections that may wait to be accepted: thousands of watches come at once after a restart."""

NO_HTTP: Final = ("", "none")
"""As ``--http``: no HTTP."""

SNAPSHOT_SLOTS: Final = 10_000
SNAPSHOT_LOG_MB: Final = 40
"""A snapshot is made after so many slots, or when the log has grown to so many MiB."""

HEARTBEAT_MS: Final = 100
DISK_STALL_MS: Final = 2_000

DATAGRAM_LOOPBACK_MAX_BYTES: Final = 60_000
"""The largest datagram between two nodes of one machine."""

DATAGRAM_PATH_MAX_BYTES: Final = 1_400
"""The largest datagram elsewhere: it fits an Ethernet frame, tunnels included."""

KEY_MIN_BYTES: Final = 16
KEY_MAX_BYTES: Final = 64
"""BLAKE2b's longest key; longer key files are hashed to this length."""

KEY_FILE_MAX_BYTES: Final = 1 << 20
CLUSTER_FILE_MAX_BYTES: Final = 1 << 20

QUORUM: Final = "majority"

_UID = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "heartbeat_ms": (10, 60_000),
    "disk_stall_ms": (100, 600_000),
    "datagram_max_bytes": (512, 65_507),
    "snapshot_slots": (100, 999_999_999),
    "snapshot_log_mb": (1, 1_000_000),
}

_STORE_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "request_max_bytes": (1 << 10, 3 << 19),
    "txn_ops_max": (1, 100_000),
    "quota_bytes": (1 << 20, 1 << 40),
    "keep_revisions": (1, 10**12),
    "keep_ms": (1_000, 10**12),
    "keep_bytes": (1 << 16, 1 << 40),
    "lease_ttl_min_s": (1, 3_600),
    "leases_max": (1, 10**8),
}
"""What ``[store]`` in a cluster file may set; `statemachine.kvlimits.KvLimits` says what they mean."""


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """One node's settings; made by `build_config`.

    Attributes:
        uid: the node's id.
        members: the voters, by id, in the order of their ids; an observer is not among them.
        observer: this node learns and answers, and has no vote.
        observers: other nodes that the cluster file lists as observers.
        address: where the others are told to reach this node (UDP and TCP).
        bind: what this node binds instead; the host is an IP address, or empty for all.
        storage: ``SCHEME:LOCATION``, e.g. ``file:paxos_data/A``.
        client: the Twisted server endpoint string that clients connect to.
        client_told: what clients are told to connect to: ``host:port``, or an endpoint string.
        http: the Twisted server endpoint string that HTTP is served on; empty: none is.
        http_urls: of all nodes that are known beforehand, by id: where their HTTP is reached.
        http_allow_hosts: host names that HTTP requests may use besides those of this node; ``*``: any.
        heartbeat_ms: milliseconds between heartbeats.
        disk_stall_ms: a leader whose disk takes longer than this for one sync steps down.
        cluster_key: what datagrams and frames are authenticated with, 16 to 64 bytes; None: nothing is.
        datagram_max_bytes: the largest datagram; None: by path, see `datagram_limit`.
        snapshot_slots, snapshot_log_mb: a snapshot is made after so many slots, or when the log has
            grown by so many MiB more than the state.
        store: limits of the key-value store that are not the usual ones, by their names in `KvLimits`.
        print_chosen: log one line for each chosen value.
        warnings: lines to be logged at the start.
    """

    uid: str
    members: Mapping[str, Address]
    observer: bool = False
    observers: Mapping[str, Address] = field(default_factory=dict)
    address: Address
    bind: Address
    storage: str
    client: str
    client_told: str
    http: str = ""
    http_urls: Mapping[str, str] = field(default_factory=dict)
    http_allow_hosts: tuple[str, ...] = ()
    heartbeat_ms: int = HEARTBEAT_MS
    disk_stall_ms: int = DISK_STALL_MS
    cluster_key: bytes | None = field(default=None, repr=False)
    datagram_max_bytes: int | None = None
    snapshot_slots: int = SNAPSHOT_SLOTS
    snapshot_log_mb: int = SNAPSHOT_LOG_MB
    store: Mapping[str, int] = field(default_factory=dict)
    print_chosen: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def peers(self) -> dict[str, Address]:
        """Every other node that is known beforehand, voters first."""
        known = {**self.members, **self.observers}
        return {uid: address for uid, address in known.items() if uid != self.uid}

    def fingerprint(self, durable: bool) -> str:
        """Of what all nodes of one cluster must agree on; see the function `fingerprint`."""
        return fingerprint(tuple(self.members), durable, self.store)

    def datagram_limit(self, ip: str) -> int:
        """The largest datagram in bytes to a peer at ``ip``; larger messages take the TCP link."""
        if self.datagram_max_bytes is not None:
            return self.datagram_max_bytes
        return DATAGRAM_LOOPBACK_MAX_BYTES if is_loopback(ip) else DATAGRAM_PATH_MAX_BYTES


def fingerprint(voters: Sequence[str], durable: bool, store: Mapping[str, int] | None = None) -> str:
    """16 hex digits over the voters' ids, the kind of quorum, whether storage is durable, and ``store``.

    Messages of another fingerprint are dropped, so nodes that disagree on any of these never
    mix. Addresses are left out: they may differ from node to node, and change.
    """
    lines = ["twisted_paxos", QUORUM, "durable" if durable else "memory", *sorted(voters)]
    # Members with other limits would answer one and the same command differently.
    lines += [f"{name}={limit}" for name, limit in sorted((store or {}).items())]
    return hashlib.blake2b("\n".join(lines).encode("ascii"), digest_size=8).hexdigest()


def check_uid(uid: str, where: str) -> str:
    """``uid`` if it can be a node's id.

    Raises:
        ConfigError: it is not 1 to 32 letters, digits, ``-`` and ``_``.
    """
    if not _UID.fullmatch(uid) or len(uid) > UID_MAX_CHARS:
        raise ConfigError(
            f"{where}: {uid[:80]!r} is no node id: use 1 to {UID_MAX_CHARS} letters, digits, - and _"
        )
    return uid


def parse_peer(text: str) -> tuple[str, Address]:
    """One ``--peer`` option, ``A=host:port``.

    Raises:
        ConfigError: it is none.
    """
    uid, equals, address = text.partition("=")
    if not equals:
        raise ConfigError(f"--peer: {text[:80]!r} must be ID=host:port")
    return check_uid(uid, "--peer"), parse_address(address, f"--peer {uid}")


def built_in_uid_address(uid: str) -> Address | None:
    """The address of ``uid`` in the built-in cluster: A to Z have one, on loopback."""
    if len(uid) == 1 and "A" <= uid <= "Z":
        return Address("127.0.0.1", PEER_PORT_FIRST + ord(uid) - ord("A"))
    return None


BUILT_IN_MEMBERS: Final[Mapping[str, Address]] = {
    uid: Address("127.0.0.1", PEER_PORT_FIRST + place) for place, uid in enumerate("ABC")
}
"""The seed's three nodes, which need no configuration at all."""


class Cluster(NamedTuple):
    """Who belongs to a cluster, and the settings that its file gives; ``source`` is for errors."""

    source: str
    members: dict[str, Address]
    observers: dict[str, Address]
    clients: dict[str, str]
    https: dict[str, str]
    settings: dict[str, int]
    store: dict[str, int]
    key_file: str | None = None


def read_cluster_file(path: str) -> Cluster:
    """Read ``--cluster FILE.toml``.

    Raises:
        ConfigError: it cannot be read, is no TOML, or a key is unknown or wrong.
    """
    try:
        table = tomllib.loads(_read(path, CLUSTER_FILE_MAX_BYTES, "--cluster").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: this is no TOML: {_one_line(error)}") from None
    _refuse_unknown(table, {"nodes", "store", "cluster_key_file", *_LIMITS}, path, "")
    nodes = table.get("nodes")
    if not isinstance(nodes, dict) or not nodes:
        raise ConfigError(f'{path}: each node needs a table, such as [nodes.A] with peer = "host:port"')
    settings = {key: check_number(table[key], key, f"{path}: {key}") for key in _LIMITS if key in table}
    cluster = Cluster(path, {}, {}, {}, {}, settings, _store_of(table, path), _key_file_of(table, path))
    for uid, node in nodes.items():
        _add_node(cluster, uid, node)
    return cluster


def _store_of(table: Mapping[str, Any], path: str) -> dict[str, int]:
    """The limits of the key-value store, which all nodes of a cluster share."""
    store = table.get("store", {})
    if not isinstance(store, dict):
        raise ConfigError(f"{path}: store must be a table, such as [store] with quota_bytes = 4294967296")
    _refuse_unknown(store, set(_STORE_LIMITS), path, "store.")
    return {key: _in_range(store[key], _STORE_LIMITS[key], f"{path}: store.{key}") for key in store}


def _key_file_of(table: Mapping[str, Any], path: str) -> str | None:
    """The key file that a cluster file names; a relative one lies beside the cluster file."""
    if "cluster_key_file" not in table:
        return None
    name = _text_of(table, "cluster_key_file", path, "")
    return os.path.join(os.path.dirname(os.path.abspath(path)), name)


def _add_node(cluster: Cluster, uid: str, node: object) -> None:
    where = f"nodes.{uid}"
    check_uid(uid, f"{cluster.source}: nodes")
    if not isinstance(node, dict):
        raise ConfigError(f'{cluster.source}: {where} must be a table with peer = "host:port"')
    _refuse_unknown(node, {"peer", "client", "http", "observer"}, cluster.source, f"{where}.")
    if "peer" not in node:
        raise ConfigError(f'{cluster.source}: {where}.peer is missing: write peer = "host:port"')
    observer = node.get("observer", False)
    if not isinstance(observer, bool):
        raise ConfigError(f"{cluster.source}: {where}.observer must be true or false")
    text = _text_of(node, "peer", cluster.source, f"{where}.")
    address = parse_address(text, f"{cluster.source}: {where}.peer")
    (cluster.observers if observer else cluster.members)[uid] = address
    if "client" in node:
        cluster.clients[uid] = _text_of(node, "client", cluster.source, f"{where}.")
    if "http" in node:
        cluster.https[uid] = _text_of(node, "http", cluster.source, f"{where}.")


def _text_of(table: Mapping[str, Any], key: str, path: str, prefix: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}: {prefix}{key} must be a text in quotes, and not empty")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: set[str], path: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: {prefix}{key} is unknown; known here: {', '.join(sorted(known))}")


def check_number(value: object, key: str, where: str) -> int:
    """``value``, a number or its digits, if it lies in the range of the setting ``key``.

    Raises:
        ConfigError: it does not, or is no whole number.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 9:
        value = int(value)
    return _in_range(value, _LIMITS[key], where)


def _in_range(value: object, limits: tuple[int, int], where: str) -> int:
    low, high = limits
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{where}: must be a whole number from {low} to {high}, not {str(value)[:40]!r}")
    return value


def read_key_file(path: str) -> tuple[bytes, tuple[str, ...]]:
    """The cluster key in ``path``, without a line end, and warnings to be logged.

    Raises:
        ConfigError: it cannot be read or holds fewer than 16 bytes.
    """
    key = _read(path, KEY_FILE_MAX_BYTES, "--cluster-key").rstrip(b"\r\n")
    if len(key) < KEY_MIN_BYTES:
        held = f"{len(key)} bytes" if key else "nothing"
        raise ConfigError(f"--cluster-key: {path} holds {held}; a key has at least {KEY_MIN_BYTES} bytes")
    if len(key) > KEY_MAX_BYTES:
        key = hashlib.blake2b(key, digest_size=KEY_MAX_BYTES).digest()
    if stat.S_IMODE(os.stat(path).st_mode) & stat.S_IROTH:
        return key, (f"every user of this machine can read the cluster key {path}: chmod o-r it",)
    return key, ()


def _read(path: str, max_bytes: int, option: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{option}: cannot read {path}: {reason}") from None
    if len(content) > max_bytes:
        raise ConfigError(f"{option}: {path} is larger than {max_bytes} bytes")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _cluster_of_peers(peers: Sequence[str], uid: str, observer: bool) -> Cluster:
    cluster = Cluster("--peer", {}, {}, {}, {}, {}, {})
    for peer in peers:
        name, address = parse_peer(peer)
        if name in cluster.members or name in cluster.observers:
            raise ConfigError(f"--peer: node {name} is given twice")
        # An observer's own --peer says where it is, and gives it no vote.
        (cluster.observers if observer and name == uid else cluster.members)[name] = address
    return cluster


def _built_in_cluster(uid: str, observer: bool) -> Cluster:
    cluster = Cluster("the built-in cluster", dict(BUILT_IN_MEMBERS), {}, {}, {}, {}, {})
    address = built_in_uid_address(uid)
    if observer and address is not None and uid not in cluster.members:
        cluster.observers[uid] = address
    return cluster


def _find_cluster(uid: str, cluster_file: str | None, peers: Sequence[str], observer: bool) -> Cluster:
    check_uid(uid, "--id")
    if cluster_file is not None and peers:
        raise ConfigError("--cluster and --peer exclude each other: both say who the members are")
    if cluster_file is not None:
        found = read_cluster_file(cluster_file)
    else:
        found = _cluster_of_peers(peers, uid, observer) if peers else _built_in_cluster(uid, observer)
    _check_cluster(found)
    return found


def _own_address(cluster: Cluster, uid: str, observer: bool) -> Address:
    """Where ``uid`` is, and that its role is the one that the cluster gives it."""
    if uid in cluster.observers:
        return cluster.observers[uid]
    if uid in cluster.members and not observer:
        return cluster.members[uid]
    if uid in cluster.members:
        raise ConfigError(
            f"--observer: node {uid} is a voter of {cluster.source}; an observer needs an id of its own"
        )
    names = ", ".join(sorted({*cluster.members, *cluster.observers}))
    if observer:
        raise ConfigError(
            f"--observer: {cluster.source} does not say where node {uid} is: "
            "give --peer for it and all voters, or [nodes.ID] with observer = true in a --cluster file"
        )
    raise ConfigError(
        f"--id: node {uid} is not in {cluster.source} ({names}); name the members with --cluster or --peer"
    )


def _check_cluster(cluster: Cluster) -> None:
    if not cluster.members:
        raise ConfigError(
            f"{cluster.source}: there is no voter; at least one node must be none of the observers"
        )
    if len(cluster.members) + len(cluster.observers) > MEMBERS_MAX:
        raise ConfigError(f"{cluster.source}: more than {MEMBERS_MAX} nodes")
    seen: dict[Address, str] = {}
    for uid, address in {**cluster.members, **cluster.observers}.items():
        if address in seen:
            raise ConfigError(
                f"{cluster.source}: nodes {seen[address]} and {uid} have the same address {address}"
            )
        seen[address] = uid


def _client_port(
    option: str | None, cluster: Cluster, uid: str, bind: Address, address: Address
) -> tuple[str, str]:
    """The endpoint string to serve clients on, and what clients are told."""
    text = option if option is not None else cluster.clients.get(uid)
    where = "--client" if option is not None else f"{cluster.source}: nodes.{uid}.client"
    endpoint = listening_endpoint(text, bind, where, "--client", CLIENT_PORT_OFFSET)
    told = told_client(endpoint, address.host)
    if told == str(address):
        raise ConfigError(f"{where}: {told} is the node's own peer address; clients need another port")
    return endpoint, told


def _http_port(option: str | None, cluster: Cluster, uid: str, bind: Address) -> str:
    """The endpoint string to serve HTTP on; empty for none."""
    text = option if option is not None else cluster.https.get(uid)
    where = "--http" if option is not None else f"{cluster.source}: nodes.{uid}.http"
    if text is None and bind.port + HTTP_PORT_OFFSET > 65_535:
        return ""  # nobody asked for it
    if text in NO_HTTP:
        return ""
    return listening_endpoint(text, bind, where, "--http", HTTP_PORT_OFFSET, HTTP_BACKLOG)


def _http_urls(option: str | None, cluster: Cluster, uid: str) -> dict[str, str]:
    """Where the HTTP of each node is reached, as far as this one can know."""
    texts: dict[str, str | None] = dict(cluster.https)
    if option is not None:
        texts[uid] = option
    urls = {}
    for name, address in {**cluster.members, **cluster.observers}.items():
        text = texts.get(name)
        if text is None or text in NO_HTTP:
            told = str(Address(address.host, min(address.port + HTTP_PORT_OFFSET, 65_535)))
        else:
            told = told_client(text, address.host) if is_endpoint(text) else text
        urls[name] = told_url(told)
    return urls


def build_config(
    uid: str,
    *,
    cluster: str | None = None,
    peers: Sequence[str] = (),
    observer: bool = False,
    bind: str | None = None,
    storage: str | None = None,
    client: str | None = None,
    http: str | None = None,
    http_allow_hosts: Sequence[str] = (),
    heartbeat_ms: str | int | None = None,
    disk_stall_ms: str | int | None = None,
    datagram_max_bytes: str | int | None = None,
    snapshot_slots: str | int | None = None,
    snapshot_log_mb: str | int | None = None,
    cluster_key: str | None = None,
    print_chosen: bool = True,
) -> NodeConfig:
    """The settings of node ``uid``; without anything else, a node of the built-in cluster A, B, C.

    Args:
        cluster: path of a cluster file. Options given here win over its settings.
        peers: ``ID=host:port`` of each voter (and of this node, if it is an observer); not with ``cluster``.
        observer: learn and answer, without a vote.
        bind: IP address, with or without a port, to bind where it is not the one others are told.
        storage: ``SCHEME:LOCATION``; default ``file:paxos_data/<uid>``.
        client: endpoint string or ``host:port`` for clients; default 100 above the peer port.
        http: endpoint string or ``host:port`` for HTTP, ``none`` for none; default 200 above the peer port.
        http_allow_hosts: see `NodeConfig`.
        heartbeat_ms, disk_stall_ms, datagram_max_bytes, snapshot_slots, snapshot_log_mb: see `NodeConfig`.
        cluster_key: path of a file with the key.
        print_chosen: log one line for each chosen value.

    Raises:
        ConfigError: one line that says which option, or which key of which file, is wrong.
    """
    found = _find_cluster(uid, cluster, peers, observer)
    address = _own_address(found, uid, observer)
    bound = default_bind(address) if bind is None else parse_bind(bind, address)
    settings = found.settings | _numbers(
        heartbeat_ms=heartbeat_ms,
        disk_stall_ms=disk_stall_ms,
        datagram_max_bytes=datagram_max_bytes,
        snapshot_slots=snapshot_slots,
        snapshot_log_mb=snapshot_log_mb,
    )
    key_file = cluster_key if cluster_key is not None else found.key_file
    key, warnings = (None, ()) if key_file is None else read_key_file(key_file)
    endpoint, told = _client_port(client, found, uid, bound, address)
    http_endpoint = _http_port(http, found, uid, bound)
    return NodeConfig(
        uid=uid,
        members=dict(sorted(found.members.items())),
        observer=uid in found.observers,
        observers={name: at for name, at in sorted(found.observers.items()) if name != uid},
        address=address,
        bind=bound,
        storage=_check_storage(storage, uid),
        client=endpoint,
        client_told=told,
        http=http_endpoint,
        http_urls=_http_urls(http, found, uid),
        http_allow_hosts=tuple(http_allow_hosts),
        heartbeat_ms=settings.get("heartbeat_ms", HEARTBEAT_MS),
        disk_stall_ms=_check_stall(settings),
        cluster_key=key,
        datagram_max_bytes=settings.get("datagram_max_bytes"),
        snapshot_slots=settings.get("snapshot_slots", SNAPSHOT_SLOTS),
        snapshot_log_mb=settings.get("snapshot_log_mb", SNAPSHOT_LOG_MB),
        store=found.store,
        print_chosen=print_chosen,
        warnings=warnings,
    )


def _numbers(**given: str | int | None) -> dict[str, int]:
    checked = {}
    for key, value in given.items():
        if value is not None:
            checked[key] = check_number(value, key, f"--{key.replace('_', '-')}")
    return checked


def _check_stall(settings: Mapping[str, int]) -> int:
    heartbeat_ms = settings.get("heartbeat_ms", HEARTBEAT_MS)
    stall_ms = settings.get("disk_stall_ms", max(DISK_STALL_MS, heartbeat_ms))
    if stall_ms < heartbeat_ms:
        raise ConfigError(f"--disk-stall-ms: {stall_ms} is shorter than one heartbeat of {heartbeat_ms} ms")
    return stall_ms


def _check_storage(storage: str | None, uid: str) -> str:
    if storage is None:
        return f"file:paxos_data/{uid}"
    if not re.match(r"[A-Za-z][A-Za-z0-9_+-]*:", storage):
        raise ConfigError(
            f"--storage: {storage[:80]!r} must be SCHEME:LOCATION, such as file:DIR, sqlite:PATH or memory:"
        )
    return storage
