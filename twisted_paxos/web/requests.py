"""What clients send: etcd's messages, by proto names. Some are the store's own commands."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct, field

from twisted_paxos.statemachine.kvcommands import Compare, DeleteRange, Int64, Put, Range

EventFilter: TypeAlias = Literal["NOPUT", "NODELETE"]

Uint64: TypeAlias = Annotated[int, Meta(ge=0)]
"""Ids of members; what is too large fits none."""


class RangeRequest(Range, frozen=True, omit_defaults=True, tag="range"):
    """A read; ``serializable``: from this node as it is, which may be old."""

    serializable: bool = False


class RequestOp(Struct, frozen=True):
    """One operation of a transaction: one of the four."""

    request_range: RangeRequest | None = None
    request_put: Put | None = None
    request_delete_range: DeleteRange | None = None
    request_txn: TxnRequest | None = None


class TxnRequest(Struct, frozen=True):
    """See `kvcommands.Txn`."""

    compare: tuple[Compare, ...] = ()
    success: tuple[RequestOp, ...] = ()
    failure: tuple[RequestOp, ...] = ()


class CompactionRequest(Struct, frozen=True):
    """See `kvcommands.Compact`; ``physical`` is how every compaction goes here."""

    revision: Int64 = 0
    physical: bool = False


class LeaseGrantRequest(Struct, frozen=True):
    """See `kvcommands.LeaseGrant`."""

    ttl: Int64 = field(default=0, name="TTL")
    id: Int64 = field(default=0, name="ID")


class LeaseRequest(Struct, frozen=True):
    """One lease, by id: for revoke and keepalive."""

    id: Int64 = field(default=0, name="ID")


class TimeToLiveRequest(Struct, frozen=True):
    """See `kvcommands.LeaseQuery`."""

    id: Int64 = field(default=0, name="ID")
    keys: bool = False


class WatchCreate(Struct, frozen=True):
    """A new watch on a stream.

    Attributes:
        key, range_end, start_revision, progress_notify, prev_kv: see `watches.WatchRequest`.
        filters: kinds of events to leave out.
        watch_id: its number on the stream; 0 has one picked.
        fragment: large answers may be cut; none is here.
    """

    key: bytes = b""
    range_end: bytes = b""
    start_revision: Int64 = 0
    progress_notify: bool = False
    filters: tuple[EventFilter, ...] = ()
    prev_kv: bool = False
    watch_id: Int64 = 0
    fragment: bool = False


class WatchCancel(Struct, frozen=True):
    """The end of a watch."""

    watch_id: Int64 = 0


class Empty(Struct, frozen=True):
    """Nothing is asked."""


class WatchMessage(Struct, frozen=True):
    """What a watch stream's body consists of: one of the three, each."""

    create_request: WatchCreate | None = None
    cancel_request: WatchCancel | None = None
    progress_request: Empty | None = None


class LockRequest(Struct, frozen=True):
    """Lock ``name``, as long as ``lease`` lasts."""

    name: bytes = b""
    lease: Int64 = 0


class UnlockRequest(Struct, frozen=True):
    """Give the lock with this ``key`` back."""

    key: bytes = b""


class LeaderKey(Struct, frozen=True, omit_defaults=True):
    """Proof of a won election, as `CampaignReply` gave it."""

    name: bytes = b""
    key: bytes = b""
    rev: Int64 = 0
    lease: Int64 = 0


class CampaignRequest(Struct, frozen=True):
    """Stand for the election ``name`` with ``value``, as long as ``lease`` lasts."""

    name: bytes = b""
    lease: Int64 = 0
    value: bytes = b""


class ProclaimRequest(Struct, frozen=True):
    """Change the value that an election was won with."""

    leader: LeaderKey | None = None
    value: bytes = b""


class ResignRequest(Struct, frozen=True):
    """Give an election up."""

    leader: LeaderKey | None = None


class ElectionName(Struct, frozen=True):
    """Which election, for ``leader`` and ``observe``."""

    name: bytes = b""


class MemberRequest(Struct, frozen=True):
    """For the members' endpoints."""

    id: Uint64 = field(default=0, name="ID")
    peer_urls: tuple[str, ...] = field(default=(), name="peerURLs")


class TransferRequest(Struct, frozen=True):
    """To whom to hand leadership over."""

    target_id: Uint64 = field(default=0, name="targetID")


class AuthRequest(Struct, frozen=True):
    """The fields of the endpoints for users and roles that matter here."""

    name: str = ""
    password: str = ""
    role: str = ""
    user: str = ""
