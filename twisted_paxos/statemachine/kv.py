"""`KeyValueStore`: the replicated key-value store, an `IStateMachine` with etcd v3's data model.

Commands come through the log as `kvcommands` payloads and are answered with results in the same
terms; opaque values of the log have nothing to do with the store and give ``null``. Each
successful change makes one revision. A command that is refused changes nothing and has a
`KvError` as its result.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, overload

import msgspec
from msgspec import Raw
from zope.interface import implementer

from twisted_paxos.statemachine.commands import NO_DATA, Context, Payload, decode_payload
from twisted_paxos.statemachine.kvcommands import (
    ANSWER_TOO_LARGE,
    COMPACTED,
    EMPTY_KEY,
    FUTURE_REVISION,
    KEY_NOT_FOUND,
    LEASE_NOT_FOUND,
    MALFORMED,
    NO_SPACE,
    REQUEST_TOO_LARGE,
    Compact,
    CompactResult,
    DeleteRange,
    DeleteRangeResult,
    KeyValue,
    KvError,
    KvQuery,
    KvResult,
    LeaseGrant,
    LeaseGrantResult,
    LeaseKeepAlive,
    LeaseKeepAliveResult,
    LeaseQuery,
    LeaseRevoke,
    LeaseRevokeResult,
    LeasesQuery,
    LeaseTimeToLive,
    OperationResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    StoreStatus,
    Txn,
    TxnResult,
    encode,
)
from twisted_paxos.statemachine.kvlimits import (
    ANSWER_MAX_BYTES,
    DEFAULT_LIMITS,
    EXPIRED_KEYS_PER_SLOT,
    EXPIRED_LEASES_PER_SLOT,
    LEASE_COST_BYTES,
    SWEEP_EVENTS_MAX,
    VERSION_OVERHEAD_BYTES,
    KvLimits,
)
from twisted_paxos.statemachine.kvsnapshot import (
    SNAPSHOT_VERSION,
    STEP_RECORDS,
    Head,
    SnapshotReader,
    snapshot_pieces,
)
from twisted_paxos.statemachine.leases import Leases
from twisted_paxos.statemachine.machine import ITypedMachine
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.queries import read_range, refuse_range
from twisted_paxos.statemachine.ranges import bounds_of
from twisted_paxos.statemachine.retention import Retention
from twisted_paxos.statemachine.transactions import (
    chosen_branches,
    operations_of,
    put_bytes,
    refuse_put_form,
    refuse_txn_form,
    request_bytes,
)
from twisted_paxos.statemachine.watches import WatchHub

_decode_query = msgspec.json.Decoder(KvQuery).decode


@implementer(ITypedMachine)
class KeyValueStore:
    """The store. `ITypedMachine` says what `apply`, `advance`, `snapshot` and `restore` promise.

    Args:
        limits: the same on every member of the cluster.

    Attributes:
        limits: as given.
        watches: this node's watchers.
    """

    payload_type: Any = Payload

    def __init__(self, limits: KvLimits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._mvcc = Mvcc()
        self._leases = Leases(limits)
        self._retention = Retention(limits)
        self._time_ms = 0
        self._quota_bytes = limits.quota_bytes
        self._request_max_bytes = limits.request_max_bytes
        self.watches = WatchHub(self._mvcc)
        self._handlers: dict[type, Callable[[Any, Context], KvResult | Raw]] = {
            Put: self._put,
            Txn: self._txn,
            DeleteRange: self._delete_range,
            Range: self._range,
            Compact: self._compact,
            LeaseGrant: self._lease_grant,
            LeaseRevoke: self._lease_revoke,
            LeaseKeepAlive: self._lease_keep_alive,
        }

    # ----------------------------------------------------------- IStateMachine

    @property
    def deadline_ms(self) -> int | None:
        """Log time at which the next lease runs out, or history becomes too old."""
        lease_ms = self._leases.deadline_ms
        age_ms = self._retention.deadline_ms(self._mvcc)
        return lease_ms if age_ms is None else age_ms if lease_ms is None else min(lease_ms, age_ms)

    def apply(self, payload: Raw, context: Context) -> Raw:
        """Do one command; the result is a `KvResult` as JSON, ``null`` for what is no command of ours."""
        try:
            command = decode_payload(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # One answer for all three: how deep decoding gets depends on the stack that it starts from.
            return _MALFORMED
        return self._apply(command, context, len(payload))

    def apply_all(self, payloads: Sequence[Payload], context: Context, size_bytes: int) -> Sequence[Raw]:
        """See `ITypedMachine.apply_all`."""
        at, end = 0, len(payloads)
        if end == 1:
            return [self._apply(payloads[0], context, size_bytes)]
        results: list[Raw] = []
        while at < end:
            upto = at
            while upto < end and _is_plain(payloads[upto]):
                upto += 1
            if upto > at and self._has_room(upto - at, size_bytes):
                put = self._put_all(payloads[at:upto])
                if upto - at == end:
                    return put
                results += put
                at = upto
                continue
            # With little room left, each of them is looked at; the run is not looked for again.
            for place in range(at, max(upto, at + 1)):
                each = Context(context.slot, context.index + place, context.time_ms)
                results.append(self._apply(payloads[place], each, size_bytes))
            at = max(upto, at + 1)
        return results

    def _apply(self, command: Payload, context: Context, size_bytes: int) -> Raw:
        """Do one command, which is no larger than ``size_bytes``."""
        handler = self._handlers.get(type(command))
        if handler is None:
            return NO_DATA
        if size_bytes > self._request_max_bytes and _size_of(command) > self._request_max_bytes:
            return _TOO_LARGE
        result = handler(command, context)
        return result if type(result) is Raw else Raw(encode(result))

    def advance(self, context: Context) -> None:
        """Expire leases, compact, and clean memory: a bounded amount of each."""
        if context.time_ms > self._time_ms:
            self._time_ms = context.time_ms
        self._expire_leases()
        mvcc = self._mvcc
        target = self._retention.target(mvcc, self._time_ms)
        if target > mvcc.compact_revision:
            mvcc.compact(target)
        mvcc.sweep(SWEEP_EVENTS_MAX)

    def snapshot(self, step: int = STEP_RECORDS) -> Generator[bytes]:
        """The state of this moment in pieces; `kvsnapshot` has the format. A piece may be empty.

        Args:
            step: how many records one piece has at most; the same wherever bytes are compared.
        """
        mvcc = self._mvcc
        marks = tuple(self._retention.marks)
        head = Head(SNAPSHOT_VERSION, mvcc.revision, mvcc.compact_revision, self._time_ms, marks)
        return snapshot_pieces(head, mvcc, self._leases, step)

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Replace the state; watchers go on from where they were.

        Raises:
            ValueError: the pieces are no snapshot of a store; the state is as it was.
        """
        reader = SnapshotReader(Leases(self.limits))
        for piece in pieces:
            yield from reader.feed(piece)
            yield None  # also where the piece ended no frame
        head = reader.finish()
        self._mvcc = reader.mvcc
        self._leases = reader.leases
        self._retention = Retention(self.limits, head.marks)
        self._time_ms = head.time_ms
        self.watches.moved(self._mvcc)

    # ----------------------------------------------------------------- queries

    @property
    def revision(self) -> int:
        """The last revision; 1 while nothing was ever changed."""
        return self._mvcc.revision

    @property
    def compact_revision(self) -> int:
        """The lowest revision that can be read; -1 before the first compaction."""
        return self._mvcc.compact_revision

    @property
    def time_ms(self) -> int:
        """Log time."""
        return self._time_ms

    @property
    def size_bytes(self) -> int:
        """Size of the state as it counts for the quota, history and leases included; the same everywhere."""
        return self._mvcc.size_bytes + self._leases.size_bytes

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._mvcc)

    def range(self, request: Range) -> RangeResult | KvError:
        """Read, without a change and without the log; as fresh as this node is."""
        refusal = refuse_range(self._mvcc, request)
        if refusal:
            return refusal
        found = read_range(self._mvcc, request, self._mvcc.revision)
        # Found out before everything is encoded, which takes ten times as long.
        large = sum(len(kv.key) + len(kv.value) for kv in found.kvs) > ANSWER_MAX_BYTES
        return ANSWER_TOO_LARGE if large else found

    def lease_time_to_live(self, lease_id: int, keys: bool = False) -> LeaseTimeToLive:
        """How long a lease has left, by log time, and which keys hang on it."""
        return self._leases.time_to_live(lease_id, self._time_ms, keys, self._mvcc.revision)

    def leases(self) -> list[int]:
        """Ids of the open leases, sorted."""
        return self._leases.ids(self._time_ms)

    def hashing(self) -> Generator[int | None]:
        """Hash the whole logical state of this moment: None after each step, the hash as the last item.

        Members that have applied the same slots have the same one. A `snapshot` may be under way too.
        """
        digest = blake2b(digest_size=8)
        for piece in self.snapshot():
            digest.update(piece)
            yield None
        yield int.from_bytes(digest.digest(), "big")

    def hash(self) -> int:
        """The last item of `hashing`, at once: a second for a million keys."""
        *_, digest = self.hashing()
        assert digest is not None
        return digest

    def query(self, payload: Raw) -> Raw:
        """Answer a `KvQuery`: a `RangeResult`, `LeaseTimeToLive`, list of ids, `StoreStatus` or `KvError`."""
        try:
            query = _decode_query(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _MALFORMED
        if isinstance(query, Range):
            return Raw(encode(self.range(query)))
        if isinstance(query, LeaseQuery):
            return Raw(encode(self.lease_time_to_live(query.lease_id, query.keys)))
        if isinstance(query, LeasesQuery):
            return Raw(encode(self.leases()))
        return Raw(encode(self.status()))

    def status(self) -> StoreStatus:
        """How the store is."""
        return StoreStatus(
            self.revision,
            self.compact_revision,
            len(self),
            self.size_bytes,
            len(self._leases),
            len(self.watches),
            self._time_ms,
        )

    # ---------------------------------------------------------------- commands

    def _put(self, put: Put, context: Context) -> KvResult | Raw:
        if not put.key or put.ignore_value or put.ignore_lease:
            refused = refuse_put_form(put)
            if refused:
                return refused
        mvcc = self._mvcc
        cost = VERSION_OVERHEAD_BYTES + len(put.key) + len(put.value)
        if mvcc.size_bytes + cost > self._quota_bytes - self._leases.size_bytes:
            return NO_SPACE
        if put.lease and not self._leases.alive(put.lease, context.time_ms):
            return LEASE_NOT_FOUND
        if (put.ignore_value or put.ignore_lease) and mvcc.get(put.key) is None:
            return KEY_NOT_FOUND
        previous = self._set(put)
        self._commit()
        if put.prev_kv and previous is not None:
            return PutResult(mvcc.revision, previous)
        return _put_result(mvcc.revision)

    def _has_room(self, count: int, size_bytes: int) -> bool:
        """Whether so many puts, with so many bytes of keys and values in all, cannot be refused."""
        if size_bytes > self._request_max_bytes:
            return False
        most_bytes = self._mvcc.size_bytes + count * VERSION_OVERHEAD_BYTES + size_bytes
        return most_bytes <= self._quota_bytes - self._leases.size_bytes

    def _put_all(self, puts: Sequence[Any]) -> PutResults:
        """What `_put` does with plain puts that there is room for: a busy node does little else."""
        mvcc = self._mvcc
        first = mvcc.revision + 1
        kvs, leased = mvcc.put_all(puts)
        for before in leased:
            self._leases.detach(before.lease, before.key)
        if self.watches.watchers:
            self.watches.committed(kvs)
        return PutResults(first, len(kvs))

    def _delete_range(self, request: DeleteRange, context: Context) -> KvResult:
        if not request.key:
            return EMPTY_KEY
        deleted = self._delete(request)
        if deleted:
            self._commit()
        prev_kvs = tuple(deleted) if request.prev_kv else ()
        return DeleteRangeResult(self._mvcc.revision, len(deleted), prev_kvs)

    def _range(self, request: Range, context: Context) -> KvResult:
        return self.range(request)

    def _txn(self, txn: Txn, context: Context) -> KvResult:
        refused = refuse_txn_form(txn, self.limits.txn_ops_max)
        if refused:
            return refused
        cost = put_bytes(txn)
        if cost and self.size_bytes + cost > self.limits.quota_bytes:
            return NO_SPACE
        branches = list(chosen_branches(txn, self._mvcc))
        operations = list(operations_of(txn, iter(branches)))
        refused = self._refuse_puts(operations, context) or self._refuse_ranges(operations)
        if refused:
            return refused
        result = self._do_txn(txn, iter(branches))
        if self._mvcc.pending:
            self._commit()
        return result

    def _refuse_puts(
        self, operations: Iterable[Put | DeleteRange | Range], context: Context
    ) -> KvError | None:
        """Why a put of a transaction cannot be done on the state before it; etcd looks at all puts first."""
        for operation in operations:
            if isinstance(operation, Put):
                ignores = operation.ignore_value or operation.ignore_lease
                if ignores and self._mvcc.get(operation.key) is None:
                    return KEY_NOT_FOUND
                if operation.lease and not self._leases.alive(operation.lease, context.time_ms):
                    return LEASE_NOT_FOUND
        return None

    def _refuse_ranges(self, operations: Iterable[Put | DeleteRange | Range]) -> KvError | None:
        """Why a read of a transaction cannot be done; as in etcd, one below 0 is no exception."""
        for operation in operations:
            if isinstance(operation, Range):
                if operation.revision and operation.revision < self._mvcc.compact_revision:
                    return COMPACTED
                refused = refuse_range(self._mvcc, operation)
                if refused:
                    return refused
        return None

    def _do_txn(self, txn: Txn, branches: Iterator[bool]) -> TxnResult:
        succeeded = next(branches)
        responses = tuple(
            self._do_txn(operation, branches) if isinstance(operation, Txn) else self._do(operation)
            for operation in (txn.success if succeeded else txn.failure)
        )
        return TxnResult(self._next_revision(), succeeded, responses)

    def _do(self, operation: Put | DeleteRange | Range) -> OperationResult:
        if isinstance(operation, Put):
            previous = self._set(operation)
            return PutResult(self._next_revision(), previous if operation.prev_kv else None)
        if isinstance(operation, DeleteRange):
            deleted = self._delete(operation)
            prev_kvs = tuple(deleted) if operation.prev_kv else ()
            return DeleteRangeResult(self._next_revision(), len(deleted), prev_kvs)
        return read_range(self._mvcc, operation, self._next_revision())

    def _next_revision(self) -> int:
        """The revision as a transaction in the middle sees it: the next one once it changed something."""
        return self._mvcc.revision + (1 if self._mvcc.pending else 0)

    def _compact(self, request: Compact, context: Context) -> KvResult:
        mvcc = self._mvcc
        if request.revision <= mvcc.compact_revision:
            return COMPACTED
        if request.revision > mvcc.revision:
            return FUTURE_REVISION
        mvcc.compact(request.revision)
        return CompactResult(mvcc.revision)

    # ------------------------------------------------------------------ leases

    def _lease_grant(self, request: LeaseGrant, context: Context) -> KvResult:
        if self.size_bytes + LEASE_COST_BYTES > self.limits.quota_bytes:
            return NO_SPACE
        granted = self._leases.grant(request.id, request.ttl, context.time_ms, context.slot, context.index)
        if isinstance(granted, KvError):
            return granted
        return LeaseGrantResult(self._mvcc.revision, granted.id, granted.ttl_s)

    def _lease_revoke(self, request: LeaseRevoke, context: Context) -> KvResult:
        keys = self._leases.remove(request.id)
        if isinstance(keys, KvError):
            return keys
        self._delete_keys(keys)
        return LeaseRevokeResult(self._mvcc.revision)

    def _lease_keep_alive(self, request: LeaseKeepAlive, context: Context) -> KvResult:
        ttl_s = self._leases.keep_alive(request.id, context.time_ms)
        return LeaseKeepAliveResult(self._mvcc.revision, request.id, ttl_s)

    def _expire_leases(self) -> None:
        """End leases whose time is over, one revision each; what is left comes with the next slot."""
        keys_left = EXPIRED_KEYS_PER_SLOT
        for _ in range(EXPIRED_LEASES_PER_SLOT):
            lease_id = self._leases.next_expired(self._time_ms)
            if lease_id is None or keys_left <= 0:
                return
            keys = self._leases.remove(lease_id)
            assert not isinstance(keys, KvError)
            self._delete_keys(keys)
            keys_left -= len(keys)

    def _delete_keys(self, keys: list[bytes]) -> None:
        for key in keys:
            self._mvcc.delete(key)
        if self._mvcc.pending:
            self._commit()

    # ----------------------------------------------------------------- changes

    def _set(self, put: Put) -> KeyValue | None:
        """Do a put that nothing speaks against, as part of the next revision; returns the version before."""
        mvcc, key, value, lease = self._mvcc, put.key, put.value, put.lease
        if put.ignore_value or put.ignore_lease:
            before = mvcc.get(key)
            assert before is not None
            value = before.value if put.ignore_value else value
            lease = before.lease if put.ignore_lease else lease
        previous = mvcc.put(key, value, lease)
        if previous is not None and previous.lease and previous.lease != lease:
            self._leases.detach(previous.lease, key)
        if lease:
            self._leases.attach(lease, key)
        return previous

    def _delete(self, request: DeleteRange) -> list[KeyValue]:
        """Delete a range as part of the next revision; returns what was deleted, in the order of keys."""
        mvcc = self._mvcc
        if request.range_end:
            kvs = list(mvcc.scan(bounds_of(request.key, request.range_end)))
        else:
            kv = mvcc.get(request.key)
            kvs = [] if kv is None else [kv]
        for kv in kvs:
            mvcc.delete(kv.key)
            if kv.lease:
                self._leases.detach(kv.lease, kv.key)
        return kvs

    def _commit(self) -> None:
        watches = self.watches
        changes = tuple(self._mvcc.pending) if watches.watchers else ()
        self._mvcc.commit()
        if changes:
            watches.committed(changes)


class PutResults(Sequence[Raw]):
    """The results of puts that followed each other, each made when it is asked for: most never are."""

    __slots__ = ("_revisions",)

    def __init__(self, first_revision: int, count: int) -> None:
        self._revisions = range(first_revision, first_revision + count)

    def __len__(self) -> int:
        return len(self._revisions)

    @overload
    def __getitem__(self, place: int) -> Raw: ...

    @overload
    def __getitem__(self, place: slice) -> list[Raw]: ...

    def __getitem__(self, place: int | slice) -> Raw | list[Raw]:
        if isinstance(place, slice):
            return [_put_result(revision) for revision in self._revisions[place]]
        return _put_result(self._revisions[place])

    def __iter__(self) -> Iterator[Raw]:
        return map(_put_result, self._revisions)


def _put_result(revision: int) -> Raw:
    return Raw(b'{"type":"put","revision":%d}' % revision)


_MALFORMED = Raw(encode(MALFORMED))
_TOO_LARGE = Raw(encode(REQUEST_TOO_LARGE))


def _is_plain(command: Payload) -> bool:
    """Whether it is a put that only being too large could refuse, with nothing to tell but its revision."""
    return type(command) is Put and not (
        not command.key or command.lease or command.prev_kv or command.ignore_value or command.ignore_lease
    )


def _size_of(command: object) -> int:
    """Keys and values in a command, in bytes."""
    if isinstance(command, Txn):
        return request_bytes(command)
    if isinstance(command, Put):
        return len(command.key) + len(command.value)
    if isinstance(command, DeleteRange | Range):
        return len(command.key) + len(command.range_end)
    return 0
