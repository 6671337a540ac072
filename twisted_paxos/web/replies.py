"""What clients get: etcd's messages, by proto names; int64 as text, and what is at its default left out.

So that leaving out is a matter of the encoder alone, an int64 of 0 is the empty text here: `int64`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

from twisted_paxos.statemachine.kvcommands import (
    DeleteRangeResult,
    Event,
    KeyValue,
    OperationResult,
    PutResult,
    RangeResult,
    TxnResult,
)

encode = msgspec.json.Encoder().encode


def int64(number: int) -> str:
    """``number`` as protobuf's JSON has it; empty for the default."""
    return str(number) if number else ""


class Header(Struct, frozen=True, omit_defaults=True):
    """Who answers, and the state of its store and ballot."""

    cluster_id: str = ""
    member_id: str = ""
    revision: str = ""
    raft_term: str = ""


EMPTY_HEADER = Header()


class Kv(Struct, frozen=True, omit_defaults=True):
    """A version of a key; see `kvcommands.KeyValue`."""

    key: bytes = b""
    create_revision: str = ""
    mod_revision: str = ""
    version: str = ""
    value: bytes = b""
    lease: str = ""


def kv_of(kv: KeyValue) -> Kv:
    """The reply's form of ``kv``."""
    return Kv(
        kv.key,
        int64(kv.create_revision),
        int64(kv.mod_revision),
        int64(kv.version),
        kv.value,
        int64(kv.lease),
    )


def _kvs_of(kvs: Iterable[KeyValue]) -> tuple[Kv, ...]:
    return tuple(map(kv_of, kvs))


class HeaderReply(Struct, frozen=True):
    """Done, and nothing more to say."""

    header: Header


class RangeReply(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.RangeResult`."""

    header: Header
    kvs: tuple[Kv, ...] = ()
    more: bool = False
    count: str = ""


class PutReply(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.PutResult`."""

    header: Header
    prev_kv: Kv | None = None


class DeleteRangeReply(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.DeleteRangeResult`."""

    header: Header
    deleted: str = ""
    prev_kvs: tuple[Kv, ...] = ()


class ResponseOp(Struct, frozen=True, omit_defaults=True):
    """What one operation of a transaction gave: one of the four."""

    response_range: RangeReply | None = None
    response_put: PutReply | None = None
    response_delete_range: DeleteRangeReply | None = None
    response_txn: TxnReply | None = None


class TxnReply(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.TxnResult`."""

    header: Header
    succeeded: bool = False
    responses: tuple[ResponseOp, ...] = ()


def range_reply(header: Header, result: RangeResult) -> RangeReply:
    """The reply to a read."""
    return RangeReply(header, _kvs_of(result.kvs), result.more, int64(result.count))


def put_reply(header: Header, result: PutResult) -> PutReply:
    """The reply to a put."""
    return PutReply(header, None if result.prev_kv is None else kv_of(result.prev_kv))


def delete_range_reply(header: Header, result: DeleteRangeResult) -> DeleteRangeReply:
    """The reply to a deletion."""
    return DeleteRangeReply(header, int64(result.deleted), _kvs_of(result.prev_kvs))


def txn_reply(header: Header, result: TxnResult) -> TxnReply:
    """The reply to a transaction."""
    return TxnReply(header, result.succeeded, tuple(map(_response_op, result.responses)))


def _response_op(result: OperationResult) -> ResponseOp:
    if isinstance(result, TxnResult):
        # As etcd: nested transactions have empty headers, other operations a revision only.
        return ResponseOp(response_txn=txn_reply(EMPTY_HEADER, result))
    header = Header(revision=int64(result.revision))
    if isinstance(result, PutResult):
        return ResponseOp(response_put=put_reply(header, result))
    if isinstance(result, DeleteRangeResult):
        return ResponseOp(response_delete_range=delete_range_reply(header, result))
    return ResponseOp(response_range=range_reply(header, result))


class LeaseReply(Struct, frozen=True, omit_defaults=True):
    """A lease and its time to live in seconds, for grant and keepalive."""

    header: Header
    id: str = field(default="", name="ID")
    ttl: str = field(default="", name="TTL")


class TimeToLiveReply(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.LeaseTimeToLive`."""

    header: Header
    id: str = field(default="", name="ID")
    ttl: str = field(default="", name="TTL")
    granted_ttl: str = field(default="", name="grantedTTL")
    keys: tuple[bytes, ...] = ()


class LeaseId(Struct, frozen=True):
    """One of a `LeasesReply`."""

    id: str = field(name="ID")


class LeasesReply(Struct, frozen=True, omit_defaults=True):
    """Every lease."""

    header: Header
    leases: tuple[LeaseId, ...] = ()


class WatchEvent(Struct, frozen=True, omit_defaults=True):
    """See `kvcommands.Event`; a put has no type, being the default."""

    type: str = ""
    kv: Kv | None = None
    prev_kv: Kv | None = None


def event_of(event: Event) -> WatchEvent:
    """The reply's form of ``event``."""
    kind = "" if event.kv.version else "DELETE"
    return WatchEvent(kind, kv_of(event.kv), None if event.prev_kv is None else kv_of(event.prev_kv))


class WatchReply(Struct, frozen=True, omit_defaults=True):
    """One message of a watch; see `watches.WatchBatch`."""

    header: Header
    watch_id: str = ""
    created: bool = False
    canceled: bool = False
    compact_revision: str = ""
    cancel_reason: str = ""
    events: tuple[WatchEvent, ...] = ()


class LockReply(Struct, frozen=True):
    """The lock is held by who has ``key``."""

    header: Header
    key: bytes


class Leader(Struct, frozen=True, omit_defaults=True):
    """See `requests.LeaderKey`."""

    name: bytes = b""
    key: bytes = b""
    rev: str = ""
    lease: str = ""


class CampaignReply(Struct, frozen=True):
    """The election is won."""

    header: Header
    leader: Leader


class LeaderReply(Struct, frozen=True):
    """Who leads."""

    header: Header
    kv: Kv


class Member(Struct, frozen=True, omit_defaults=True):
    """One node of the cluster."""

    id: str = field(default="", name="ID")
    name: str = ""
    peer_urls: tuple[str, ...] = field(default=(), name="peerURLs")
    client_urls: tuple[str, ...] = field(default=(), name="clientURLs")


class MembersReply(Struct, frozen=True):
    """All nodes."""

    header: Header
    members: tuple[Member, ...]


class StatusReply(Struct, frozen=True, omit_defaults=True):
    """The state of a node, in etcd's words: slots are its raft indexes."""

    header: Header
    version: str = ""
    db_size: str = field(default="", name="dbSize")
    leader: str = ""
    raft_index: str = field(default="", name="raftIndex")
    raft_term: str = field(default="", name="raftTerm")
    raft_applied_index: str = field(default="", name="raftAppliedIndex")
    errors: tuple[str, ...] = ()
    db_size_in_use: str = field(default="", name="dbSizeInUse")


class HashReply(Struct, frozen=True, omit_defaults=True):
    """A hash of the whole state; uint32, so a number."""

    header: Header
    hash: int = 0


class SnapshotPiece(Struct, frozen=True):
    """Part of a snapshot."""

    blob: bytes


class EmptyReply(Struct, frozen=True):
    """Nothing, not even a header: what etcd answers here."""


class Chunk(Struct, frozen=True):
    """One message of a stream."""

    result: Struct


class ErrorReply(Struct, frozen=True):
    """Why a request was refused; the text twice, because clients read the one or the other."""

    error: str
    message: str
    code: int


class StreamError(Struct, frozen=True):
    """Why a stream ends."""

    grpc_code: int
    http_code: int
    message: str
    http_status: str
    code: int


class StreamErrorReply(Struct, frozen=True):
    """The last message of a stream that ends by an error."""

    error: StreamError
