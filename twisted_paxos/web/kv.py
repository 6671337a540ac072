"""``kv/``: reads, writes, transactions, compaction; and ``lease/`` except for keepalive."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred

from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import (
    EMPTY_KEY,
    KEY_NOT_FOUND,
    Compact,
    CompactResult,
    DeleteRange,
    DeleteRangeResult,
    LeaseGrant,
    LeaseGrantResult,
    LeaseQuery,
    LeaseRevoke,
    LeaseRevokeResult,
    LeasesQuery,
    LeaseTimeToLive,
    Operation,
    Put,
    PutResult,
    RangeResult,
    Txn,
    TxnResult,
    decode_result,
)
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.replies import (
    DeleteRangeReply,
    HeaderReply,
    LeaseId,
    LeaseReply,
    LeasesReply,
    PutReply,
    RangeReply,
    TimeToLiveReply,
    TxnReply,
    delete_range_reply,
    int64,
    put_reply,
    range_reply,
    txn_reply,
)
from twisted_paxos.web.requests import (
    CompactionRequest,
    Empty,
    LeaseGrantRequest,
    LeaseRequest,
    RangeRequest,
    RequestOp,
    TimeToLiveRequest,
    TxnRequest,
)

_decode_ids = msgspec.json.Decoder(list[int]).decode


def range_keys(gateway: Gateway, request: RangeRequest) -> Deferred[RangeReply]:
    """``kv/range``."""
    if not request.key:
        raise KeyValueError(EMPTY_KEY.code, EMPTY_KEY.message)

    def reply(result: RangeResult) -> RangeReply:
        return range_reply(gateway.header(result.revision), result)

    return gateway.read(request, request.serializable).addCallback(reply)


def put(gateway: Gateway, request: Put) -> Deferred[PutReply]:
    """``kv/put``."""
    proposing = gateway.propose(request, PutResult)
    return proposing.addCallback(lambda result: put_reply(gateway.header(result.revision), result))


def delete_range(gateway: Gateway, request: DeleteRange) -> Deferred[DeleteRangeReply]:
    """``kv/deleterange``."""
    proposing = gateway.propose(request, DeleteRangeResult)
    return proposing.addCallback(lambda result: delete_range_reply(gateway.header(result.revision), result))


def txn(gateway: Gateway, request: TxnRequest) -> Deferred[TxnReply]:
    """``kv/txn``."""
    proposing = gateway.propose(_txn_of(request), TxnResult)
    return proposing.addCallback(lambda result: txn_reply(gateway.header(result.revision), result))


def _txn_of(request: TxnRequest) -> Txn:
    return Txn(
        request.compare,
        tuple(map(_operation_of, request.success)),
        tuple(map(_operation_of, request.failure)),
    )


def _operation_of(op: RequestOp) -> Operation:
    if op.request_txn is not None:
        return _txn_of(op.request_txn)
    operation = op.request_range or op.request_put or op.request_delete_range
    if operation is None:
        raise KeyValueError(KEY_NOT_FOUND.code, KEY_NOT_FOUND.message)  # etcd's answer to an empty one
    return operation


def compaction(gateway: Gateway, request: CompactionRequest) -> Deferred[HeaderReply]:
    """``kv/compaction``."""
    proposing = gateway.propose(Compact(request.revision), CompactResult)
    return proposing.addCallback(lambda result: HeaderReply(gateway.header(result.revision)))


# ------------------------------------------------------------------- leases


def lease_grant(gateway: Gateway, request: LeaseGrantRequest) -> Deferred[LeaseReply]:
    """``lease/grant``."""

    def reply(result: LeaseGrantResult) -> LeaseReply:
        return LeaseReply(gateway.header(result.revision), int64(result.id), int64(result.ttl))

    return gateway.propose(LeaseGrant(request.ttl, request.id), LeaseGrantResult).addCallback(reply)


def lease_revoke(gateway: Gateway, request: LeaseRequest) -> Deferred[HeaderReply]:
    """``lease/revoke``."""
    proposing = gateway.propose(LeaseRevoke(request.id), LeaseRevokeResult)
    return proposing.addCallback(lambda result: HeaderReply(gateway.header(result.revision)))


def lease_time_to_live(gateway: Gateway, request: TimeToLiveRequest) -> Deferred[TimeToLiveReply]:
    """``lease/timetolive``."""

    def reply(answer: Raw) -> TimeToLiveReply:
        lease = decode_result(answer)
        assert isinstance(lease, LeaseTimeToLive)
        return TimeToLiveReply(
            gateway.header(lease.revision),
            int64(lease.id),
            int64(lease.ttl),
            int64(lease.granted_ttl),
            lease.keys,
        )

    return gateway.query(LeaseQuery(request.id, request.keys)).addCallback(reply)


def leases(gateway: Gateway, request: Empty) -> Deferred[LeasesReply]:
    """``lease/leases``."""

    def reply(answer: Raw) -> LeasesReply:
        ids = tuple(LeaseId(int64(lease_id)) for lease_id in _decode_ids(answer))
        return LeasesReply(gateway.header(gateway.store.revision), ids)

    return gateway.query(LeasesQuery()).addCallback(reply)
