"""``cluster/``, ``maintenance/`` and ``auth/``: what etcd's operators ask for, as far as it exists here.

Members are a matter of configuration, and there are no users: requests that would change either are
answered as etcd answers them where it refuses, and otherwise as not implemented.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import StoreQuery, StoreStatus
from twisted_paxos.web.errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NO_LEADER,
    NOT_FOUND,
    UNIMPLEMENTED,
)
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.health import ETCD_VERSION
from twisted_paxos.web.replies import (
    EmptyReply,
    HashReply,
    HeaderReply,
    Member,
    MembersReply,
    SnapshotPiece,
    StatusReply,
    int64,
)
from twisted_paxos.web.requests import AuthRequest, Empty, MemberRequest, TransferRequest
from twisted_paxos.web.streams import Stream

SNAPSHOT_MAX_S: Final = 600.0
"""A client that has not taken its snapshot by then is cut off: it keeps memory from being set free."""

_decode_status = msgspec.json.Decoder(StoreStatus).decode


def member_list(gateway: Gateway, request: Empty) -> MembersReply:
    """``cluster/member/list``: every node that is configured."""
    identity = gateway.identity
    members = tuple(
        Member(int64(identity.ids[uid]), uid, (peer_url,), (client_url,))
        for uid, peer_url, client_url in identity.members
    )
    return MembersReply(gateway.header(0), members)


def member_add(gateway: Gateway, request: MemberRequest) -> MembersReply:
    """``cluster/member/add``: refused."""
    if not request.peer_urls:
        raise KeyValueError(INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")
    raise KeyValueError(UNIMPLEMENTED, "members are named by the configuration of each node")


def member_change(gateway: Gateway, request: MemberRequest) -> MembersReply:
    """``cluster/member/remove``, ``update``, ``promote``: refused."""
    if request.id not in gateway.identity.ids.values():
        raise KeyValueError(NOT_FOUND, "etcdserver: member not found")
    raise KeyValueError(UNIMPLEMENTED, "members are named by the configuration of each node")


# -------------------------------------------------------------- maintenance


def status(gateway: Gateway, request: Empty) -> Deferred[StatusReply]:
    """``maintenance/status``: of this node, as it is."""
    node = gateway.status()

    def reply(store: StoreStatus) -> StatusReply:
        size = int64(store.size_bytes)
        return StatusReply(
            gateway.header(store.revision),
            ETCD_VERSION,
            size,
            int64(gateway.identity.ids.get(node.leader, 0) if node.leader_works else 0),
            int64(node.chosen_upto),
            int64(gateway.term()),
            int64(node.applied),
            () if node.leader_works else (NO_LEADER,),
            size,
        )

    return gateway.query(StoreQuery(), serializable=True).addCallback(_decode_status).addCallback(reply)


def state_hash(gateway: Gateway, request: Empty) -> Deferred[HashReply]:
    """``maintenance/hash``: of the logical state; members that have applied the same have the same one."""
    return Deferred.fromCoroutine(_state_hash(gateway))


async def _state_hash(gateway: Gateway) -> HashReply:
    revision = gateway.store.revision
    found = 0
    with gateway.scanning(), closing(gateway.store.hashing()) as steps:
        for step in steps:
            found = step or 0
            # A turn of the reactor for each piece: a large store takes seconds.
            await deferLater(gateway.reactor, 0)
    return HashReply(gateway.header(revision), found & 0xFFFFFFFF)


def snapshot(gateway: Gateway, stream: Stream, requests: Iterator[Empty]) -> None:
    """``maintenance/snapshot``: the state of this moment, in the format of this program's snapshots."""
    next(requests, None)  # whatever it says
    sending = Deferred.fromCoroutine(_send_snapshot(gateway, stream))
    stream.on_lost = sending.cancel
    limit = gateway.reactor.callLater(SNAPSHOT_MAX_S, sending.cancel)
    sending.addBoth(_stop_limit, limit).addErrback(stream.fail)


def _stop_limit(result: object, limit: IDelayedCall) -> object:
    if limit.active():
        limit.cancel()
    return result


async def _send_snapshot(gateway: Gateway, stream: Stream) -> None:
    with gateway.scanning(), closing(gateway.store.snapshot()) as pieces:
        for piece in pieces:
            if piece:
                stream.send(SnapshotPiece(piece))
            await stream.writable()
    stream.finish()


def nothing_to_do(gateway: Gateway, request: Empty) -> EmptyReply:
    """``maintenance/alarm`` (there is none) and ``defragment`` (never needed)."""
    return EmptyReply()


def transfer_leadership(gateway: Gateway, request: TransferRequest) -> EmptyReply:
    """``maintenance/transfer-leadership``: refused; elections choose."""
    raise KeyValueError(FAILED_PRECONDITION, "etcdserver: bad leader transferee")


# --------------------------------------------------------------------- auth


def authenticate(gateway: Gateway, request: AuthRequest) -> EmptyReply:
    """``auth/authenticate``."""
    raise KeyValueError(FAILED_PRECONDITION, "etcdserver: authentication is not enabled")


def auth_enable(gateway: Gateway, request: Empty) -> EmptyReply:
    """``auth/enable``: it takes a root user, which nobody can add."""
    raise KeyValueError(FAILED_PRECONDITION, "etcdserver: root user does not exist")


def auth_empty(gateway: Gateway, request: Empty) -> HeaderReply:
    """``auth/disable`` (it is), ``auth/user/list`` and ``auth/role/list`` (there are none)."""
    return HeaderReply(gateway.header(gateway.store.revision))


def user_add(gateway: Gateway, request: AuthRequest) -> EmptyReply:
    """``auth/user/add``: refused."""
    if not request.name:
        raise KeyValueError(INVALID_ARGUMENT, "etcdserver: user name is empty")
    raise KeyValueError(UNIMPLEMENTED, "there are no users here")


def user_change(gateway: Gateway, request: AuthRequest) -> EmptyReply:
    """Everything else under ``auth/user/``: there is no such user."""
    raise KeyValueError(FAILED_PRECONDITION, "etcdserver: user name not found")


def role_add(gateway: Gateway, request: AuthRequest) -> EmptyReply:
    """``auth/role/add``: refused."""
    if not request.name:
        raise KeyValueError(INVALID_ARGUMENT, "etcdserver: role name is empty")
    raise KeyValueError(UNIMPLEMENTED, "there are no roles here")


def role_change(gateway: Gateway, request: AuthRequest) -> EmptyReply:
    """Everything else under ``auth/role/``: there is no such role."""
    raise KeyValueError(FAILED_PRECONDITION, "etcdserver: role name not found")
