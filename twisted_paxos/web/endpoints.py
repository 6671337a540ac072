"""Every endpoint of the JSON API: its path, what it reads, who answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct
from twisted.internet.defer import Deferred

from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import DeleteRange, Put
from twisted_paxos.web import cluster, kv, locks
from twisted_paxos.web.errors import INVALID_ARGUMENT, UNKNOWN
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.keepalive import keep_alive
from twisted_paxos.web.parsing import Reader
from twisted_paxos.web.requests import (
    AuthRequest,
    CampaignRequest,
    CompactionRequest,
    ElectionName,
    Empty,
    LeaseGrantRequest,
    LeaseRequest,
    LockRequest,
    MemberRequest,
    ProclaimRequest,
    RangeRequest,
    ResignRequest,
    TimeToLiveRequest,
    TransferRequest,
    TxnRequest,
    UnlockRequest,
    WatchMessage,
)
from twisted_paxos.web.streams import Stream
from twisted_paxos.web.watch import Watches

PREFIXES: Final = ("/v3/", "/v3beta/")

Serve: TypeAlias = Callable[[Gateway, Any], Deferred[Any] | Struct]
"""Answers a message: with a reply, now or later, or by raising what `errors.status_of` knows."""


class Unary(NamedTuple):
    """One request, one reply.

    Attributes:
        reader: of the request.
        serve: answers it; what it returns is cancelled when the client leaves, if it ``lasts``.
        lasts: it has no deadline of its own.
    """

    reader: Reader[Any]
    serve: Serve
    lasts: bool = False


class Streaming(NamedTuple):
    """Requests in one body, replies as they come.

    Attributes:
        reader: of the requests.
        serve: answers them on the stream.
        malformed: the code for what is no request; where etcd reads one request only, it is another one.
    """

    reader: Reader[Any]
    serve: Callable[[Gateway, Stream, Iterator[Any]], None]
    malformed: int = UNKNOWN

    def messages(self, body: bytes) -> Iterator[Any]:
        """The requests in ``body``; what is none has another code than elsewhere, as with etcd.

        Raises:
            KeyValueError: on coming to it.
        """
        try:
            yield from self.reader.read_all(body)
        except KeyValueError as error:
            raise KeyValueError(self.malformed, error.message) from None


UNARY: Final[dict[str, tuple[type[Struct], Serve]]] = {
    "kv/range": (RangeRequest, kv.range_keys),
    "kv/put": (Put, kv.put),
    "kv/deleterange": (DeleteRange, kv.delete_range),
    "kv/txn": (TxnRequest, kv.txn),
    "kv/compaction": (CompactionRequest, kv.compaction),
    "lease/grant": (LeaseGrantRequest, kv.lease_grant),
    "lease/revoke": (LeaseRequest, kv.lease_revoke),
    "kv/lease/revoke": (LeaseRequest, kv.lease_revoke),
    "lease/timetolive": (TimeToLiveRequest, kv.lease_time_to_live),
    "kv/lease/timetolive": (TimeToLiveRequest, kv.lease_time_to_live),
    "lease/leases": (Empty, kv.leases),
    "kv/lease/leases": (Empty, kv.leases),
    "lock/unlock": (UnlockRequest, locks.unlock),
    "election/proclaim": (ProclaimRequest, locks.proclaim),
    "election/resign": (ResignRequest, locks.resign),
    "election/leader": (ElectionName, locks.leader),
    "cluster/member/list": (Empty, cluster.member_list),
    "cluster/member/add": (MemberRequest, cluster.member_add),
    "cluster/member/remove": (MemberRequest, cluster.member_change),
    "cluster/member/update": (MemberRequest, cluster.member_change),
    "cluster/member/promote": (MemberRequest, cluster.member_change),
    "maintenance/status": (Empty, cluster.status),
    "maintenance/hash": (Empty, cluster.state_hash),
    "maintenance/alarm": (Empty, cluster.nothing_to_do),
    "maintenance/defragment": (Empty, cluster.nothing_to_do),
    "maintenance/transfer-leadership": (TransferRequest, cluster.transfer_leadership),
    "auth/authenticate": (AuthRequest, cluster.authenticate),
    "auth/enable": (Empty, cluster.auth_enable),
    "auth/disable": (Empty, cluster.auth_empty),
    "auth/user/list": (Empty, cluster.auth_empty),
    "auth/user/add": (AuthRequest, cluster.user_add),
    "auth/user/get": (AuthRequest, cluster.user_change),
    "auth/user/delete": (AuthRequest, cluster.user_change),
    "auth/user/changepw": (AuthRequest, cluster.user_change),
    "auth/user/grant": (AuthRequest, cluster.user_change),
    "auth/user/revoke": (AuthRequest, cluster.user_change),
    "auth/role/list": (Empty, cluster.auth_empty),
    "auth/role/add": (AuthRequest, cluster.role_add),
    "auth/role/get": (AuthRequest, cluster.role_change),
    "auth/role/delete": (AuthRequest, cluster.role_change),
    "auth/role/grant": (AuthRequest, cluster.role_change),
    "auth/role/revoke": (AuthRequest, cluster.role_change),
}


LASTING: Final[dict[str, tuple[type[Struct], Serve]]] = {
    "lock/lock": (LockRequest, locks.lock),
    "election/campaign": (CampaignRequest, locks.campaign),
}


def endpoints() -> dict[bytes, Unary | Streaming]:
    """By path."""
    found: dict[str, Unary | Streaming] = {}
    for path, (kind, serve) in UNARY.items():
        found[path] = Unary(Reader(kind), serve)
    for path, (kind, serve) in LASTING.items():
        found[path] = Unary(Reader(kind), serve, lasts=True)
    found["watch"] = Streaming(Reader(WatchMessage), Watches().serve)
    found["election/observe"] = Streaming(Reader(ElectionName), locks.observe, INVALID_ARGUMENT)
    found["maintenance/snapshot"] = Streaming(Reader(Empty), cluster.snapshot, INVALID_ARGUMENT)
    found["lease/keepalive"] = Streaming(Reader(LeaseRequest), keep_alive)
    return {f"{prefix}{path}".encode("ascii"): found[path] for path in found for prefix in PREFIXES}
