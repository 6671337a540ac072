"""``lock/`` and ``election/``: etcd's services, made of transactions and watches as in its client library.

Whoever wants a lock puts a key of its own, ``name/`` and the lease's id in hexadecimal, which lives as long
as the lease. The keys' create revisions are the queue: a key's owner has the lock once no older key is
there. That revision grows from one owner to the next, and so is the fencing token.

A waiter looks at the queue by linearizable reads, and at its own key too: a lease that ran out meanwhile
holds nothing, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.errors import KeyValueError, PaxosError, WatchCanceled
from twisted_paxos.statemachine.kvcommands import (
    Compare,
    DeleteRange,
    DeleteRangeResult,
    KeyValue,
    LeaseGrant,
    LeaseGrantResult,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    prefix_end,
)
from twisted_paxos.statemachine.watches import WatchRequest
from twisted_paxos.web.errors import UNKNOWN
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.replies import (
    CampaignReply,
    HeaderReply,
    Leader,
    LeaderReply,
    LockReply,
    int64,
    kv_of,
)
from twisted_paxos.web.requests import (
    CampaignRequest,
    ElectionName,
    LeaderKey,
    LockRequest,
    ProclaimRequest,
    ResignRequest,
    UnlockRequest,
)
from twisted_paxos.web.streams import Stream
from twisted_paxos.web.waiting import Waiter, watching

log = Logger()

Request = TypeVar("Request")
Reply = TypeVar("Reply", bound=Struct)

SESSION_TTL_S: Final = 60
"""The lease of a request that brings none: etcd's. Nobody keeps it alive."""

SESSION_EXPIRED: Final = "mutex: session is expired"
NOT_LEADER: Final = "election: not leader"
NO_LEADER: Final = "election: no leader"
NO_LEADER_GIVEN: Final = '"leader" field must be provided'


def answers(
    serve: Callable[[Gateway, Request], Coroutine[Deferred[Any], Any, Reply]],
) -> Callable[[Gateway, Request], Deferred[Reply]]:
    """An endpoint from a coroutine; what the store refuses has the code that it has with etcd here."""

    @wraps(serve)
    def start(gateway: Gateway, request: Request) -> Deferred[Reply]:
        serving: Deferred[Reply] = Deferred.fromCoroutine(serve(gateway, request))
        return serving.addErrback(_unknown)

    return start


def _unknown(failure: Failure) -> Failure:
    error = failure.value
    return Failure(KeyValueError(UNKNOWN, error.message)) if isinstance(error, KeyValueError) else failure


class Place(NamedTuple):
    """A key in the queue of a lock or an election.

    Attributes:
        prefix: of the queue.
        key: its own.
        revision: at which it was created.
        lease: on which it hangs.
        value: what it holds.
        first: it was the oldest one when it was looked for.
        seen_revision: the store's at that time.
    """

    prefix: bytes
    key: bytes
    revision: int
    lease: int
    value: bytes
    first: bool
    seen_revision: int


async def join(gateway: Gateway, name: bytes, lease: int, value: bytes) -> Place:
    """Take a place in the queue of ``name``, or find that this lease has one."""
    if not lease:
        lease = (await gateway.propose(LeaseGrant(SESSION_TTL_S), LeaseGrantResult)).id
    prefix = name + b"/"
    key = prefix + format(lease, "x").encode("ascii")
    oldest = Range(prefix, prefix_end(prefix), limit=1, sort_order="ASCEND", sort_target="CREATE")
    put, get = Put(key, value, lease), Range(key)
    result = await gateway.propose(Txn((_created_at(key, 0),), (put, oldest), (get, oldest)), TxnResult)
    mine, others = result.responses
    assert isinstance(others, RangeResult)
    revision = result.revision
    if isinstance(mine, RangeResult):
        revision, value = mine.kvs[0].create_revision, mine.kvs[0].value
    first = others.kvs[0].key == key
    return Place(prefix, key, revision, lease, value, first, result.revision)


async def turn(gateway: Gateway, place: Place) -> int:
    """Wait until no older key is in the queue; gives the store's revision when that was so.

    Raises:
        KeyValueError: the place is gone, with its lease.
        WatchCanceled: never, a compaction in between is no matter.
    """
    if place.first:
        return place.seen_revision
    last_two = Range(
        place.prefix,
        prefix_end(place.prefix),
        limit=2,
        sort_order="DESCEND",
        sort_target="CREATE",
        keys_only=True,
        max_create_revision=place.revision,
    )
    while True:
        found = await gateway.read(last_two)
        if not found.kvs or found.kvs[0].key != place.key or found.kvs[0].create_revision != place.revision:
            raise KeyValueError(UNKNOWN, SESSION_EXPIRED)
        if len(found.kvs) == 1:
            return found.revision
        await _gone(gateway, found.kvs[1].key, found.revision + 1)


async def _gone(gateway: Gateway, key: bytes, from_revision: int) -> None:
    """Wait until ``key`` is deleted, or until it is better to look again."""
    with watching(gateway, WatchRequest(key, start_revision=from_revision, noput=True)) as waiter:
        try:
            await waiter.next()
        except WatchCanceled:
            return


async def give_up(gateway: Gateway, place: Place) -> None:
    """Leave the queue."""
    leave = Txn((_created_at(place.key, place.revision),), (DeleteRange(place.key),))
    await gateway.propose(leave, TxnResult)


def _created_at(key: bytes, revision: int) -> Compare:
    """The condition that ``key`` is the one that was created at ``revision``; 0: that there is none."""
    return Compare(key, target="CREATE", create_revision=revision)


async def _my_turn(gateway: Gateway, place: Place) -> int:
    """As `turn`; whoever leaves before it is over leaves the queue too."""
    try:
        return await turn(gateway, place)
    except (CancelledError, PaxosError):
        give_up_quietly(gateway, place)
        raise


def give_up_quietly(gateway: Gateway, place: Place) -> None:
    """`give_up`, where nobody waits for it; should it fail, the key ends with its lease."""
    Deferred.fromCoroutine(give_up(gateway, place)).addErrback(
        lambda failure: log.info(
            "a place in a queue is left to its lease: {reason}", reason=failure.getErrorMessage()
        )
    )


# ------------------------------------------------------------------------ locks


@answers
async def lock(gateway: Gateway, request: LockRequest) -> LockReply:
    """``lock/lock``."""
    place = await join(gateway, request.name, request.lease, b"")
    return LockReply(gateway.header(await _my_turn(gateway, place)), place.key)


@answers
async def unlock(gateway: Gateway, request: UnlockRequest) -> HeaderReply:
    """``lock/unlock``; one that is not held (any more) is no error, as with etcd."""
    result = await gateway.propose(DeleteRange(request.key), DeleteRangeResult)
    return HeaderReply(gateway.header(result.revision))


# -------------------------------------------------------------------- elections


@answers
async def campaign(gateway: Gateway, request: CampaignRequest) -> CampaignReply:
    """``election/campaign``."""
    place = await join(gateway, request.name, request.lease, request.value)
    if place.value != request.value:
        await _put(gateway, place.key, place.revision, place.lease, request.value)
    await _my_turn(gateway, place)
    leader = Leader(request.name, place.key, int64(place.revision), int64(place.lease))
    return CampaignReply(gateway.header(place.seen_revision), leader)


@answers
async def proclaim(gateway: Gateway, request: ProclaimRequest) -> HeaderReply:
    """``election/proclaim``."""
    leader = _given(request.leader)
    revision = await _put(gateway, leader.key, leader.rev, leader.lease, request.value)
    return HeaderReply(gateway.header(revision))


async def _put(gateway: Gateway, key: bytes, created: int, lease: int, value: bytes) -> int:
    put = Txn((_created_at(key, created),), (Put(key, value, lease),))
    result = await gateway.propose(put, TxnResult)
    if not result.succeeded:
        raise KeyValueError(UNKNOWN, NOT_LEADER)
    return result.revision


@answers
async def resign(gateway: Gateway, request: ResignRequest) -> HeaderReply:
    """``election/resign``; whoever leads no more gives up nothing."""
    leader = _given(request.leader)
    leave = Txn((_created_at(leader.key, leader.rev),), (DeleteRange(leader.key),))
    result = await gateway.propose(leave, TxnResult)
    return HeaderReply(gateway.header(result.revision))


def _given(leader: LeaderKey | None) -> LeaderKey:
    if leader is None:
        raise KeyValueError(UNKNOWN, NO_LEADER_GIVEN)
    return leader


@answers
async def leader(gateway: Gateway, request: ElectionName) -> LeaderReply:
    """``election/leader``."""
    found = await gateway.read(_oldest(request.name))
    if not found.kvs:
        raise KeyValueError(UNKNOWN, NO_LEADER)
    return LeaderReply(gateway.header(found.revision), kv_of(found.kvs[0]))


def _oldest(name: bytes) -> Range:
    prefix = name + b"/"
    return Range(prefix, prefix_end(prefix), limit=1, sort_order="ASCEND", sort_target="CREATE")


def observe(gateway: Gateway, stream: Stream, requests: Iterator[ElectionName]) -> None:
    """``election/observe``: who leads, now and whenever that or its value changes."""
    name = next(requests, ElectionName()).name
    observing = Deferred.fromCoroutine(_observe(gateway, stream, name))
    stream.on_lost = observing.cancel
    observing.addErrback(stream.fail)


async def _observe(gateway: Gateway, stream: Stream, name: bytes) -> None:
    told = KeyValue(b"", 0, 0, 0)
    while True:
        found = await gateway.read(_oldest(name))
        if found.kvs and found.kvs[0].mod_revision != told.mod_revision:
            told = found.kvs[0]
            stream.send(LeaderReply(gateway.header(found.revision), kv_of(told)))
        # With a leader its own key tells all; without one the whole queue has to be looked at.
        prefix = name + b"/"
        key, end = (told.key, b"") if found.kvs else (prefix, prefix_end(prefix))
        with watching(gateway, WatchRequest(key, end, found.revision + 1)) as waiter:
            await _follow(gateway, stream, waiter, bool(found.kvs))


async def _follow(gateway: Gateway, stream: Stream, waiter: Waiter, leads: bool) -> None:
    """Tell what the leader proclaims, until it is time to look who leads."""
    try:
        while True:
            batch = await waiter.next()
            for event in batch.events:
                if not leads or not event.kv.version:
                    return
                stream.send(LeaderReply(gateway.header(event.kv.mod_revision), kv_of(event.kv)))
    except WatchCanceled:
        return
