"""The key-value store's commands and results, in etcd v3's terms and field names.

Each command and each result is a JSON object with its kind under ``type``; fields at their
default are left out; keys and values are base64. A `KeyValue` is an array, because results
and snapshots are full of them. Revisions, lease ids and counts are int64.

Ranges are etcd's: ``range_end`` empty means the one key, ``"\\0"`` every key from ``key`` on,
anything else up to but without it; `prefix_end` makes the end of a prefix.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, Union

import msgspec
from msgspec import Meta, Raw, Struct

INT64_MAX: Final = (1 << 63) - 1

Int64: TypeAlias = Annotated[int, Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]
"""What protobuf and msgpack can carry."""

SortOrder: TypeAlias = Literal["NONE", "ASCEND", "DESCEND"]
SortTarget: TypeAlias = Literal["KEY", "VERSION", "CREATE", "MOD", "VALUE"]
CompareTarget: TypeAlias = Literal["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]
CompareResult: TypeAlias = Literal["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]

FROM_KEY: Final = b"\0"
"""As ``range_end``: every key from ``key`` on."""


def prefix_end(prefix: bytes) -> bytes:
    """The ``range_end`` that goes with ``prefix`` as ``key``: every key that begins with it.

    An empty prefix means all keys: use ``key=b"\\0"`` with what this returns.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else FROM_KEY


class KeyValue(Struct, frozen=True, array_like=True, gc=False):
    """One version of a key; also what the store keeps, so it is not tracked by the collector.

    Attributes:
        key: the key.
        create_revision: of the first version since the key was last absent; 0 for a deletion.
        mod_revision: of this version.
        version: 1 after creation, counts up with each put; 0 for a deletion.
        value: the value; empty for a deletion, and where only keys were asked for.
        lease: id of the lease that the key hangs on, 0 for none.
    """

    key: bytes
    create_revision: Int64
    mod_revision: Int64
    version: Int64
    value: bytes = b""
    lease: Int64 = 0


class Event(Struct, frozen=True, array_like=True, gc=False):
    """A change of one key.

    Attributes:
        kv: the new version; `KeyValue.version` 0 says that the key was deleted.
        prev_kv: the version before it, where it was asked for, existed and is not compacted.
    """

    kv: KeyValue
    prev_kv: KeyValue | None = None

    @property
    def type(self) -> Literal["PUT", "DELETE"]:
        """etcd's name of the kind of event."""
        return "PUT" if self.kv.version else "DELETE"


# ------------------------------------------------------------------ commands


class Put(Struct, frozen=True, omit_defaults=True, tag="put", gc=False):
    """Sets ``key``.

    Attributes:
        key: not empty.
        value: the new value.
        lease: the lease that it hangs on, 0 for none.
        prev_kv: return the version before.
        ignore_value: keep the value that it has; it must exist, and ``value`` be empty.
        ignore_lease: keep the lease that it has; it must exist, and ``lease`` be 0.
    """

    key: bytes
    value: bytes = b""
    lease: Int64 = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class DeleteRange(Struct, frozen=True, omit_defaults=True, tag="delete_range"):
    """Deletes a key or a range; ``prev_kv`` returns what it deleted."""

    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


class Range(Struct, frozen=True, omit_defaults=True, tag="range"):
    """Reads a key or a range.

    Attributes:
        key, range_end: which keys.
        limit: at most this many, 0 for no limit.
        revision: read as of this one, 0 for the present.
        sort_order, sort_target: of the result.
        keys_only: leave out the values.
        count_only: only count.
        min_mod_revision, max_mod_revision, min_create_revision, max_create_revision: only keys
            within; 0 for no bound. They do not change ``count``.
    """

    key: bytes
    range_end: bytes = b""
    limit: Int64 = 0
    revision: Int64 = 0
    sort_order: SortOrder = "NONE"
    sort_target: SortTarget = "KEY"
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: Int64 = 0
    max_mod_revision: Int64 = 0
    min_create_revision: Int64 = 0
    max_create_revision: Int64 = 0


class Compare(Struct, frozen=True, omit_defaults=True):
    """A condition on a key, or on every key of a range.

    ``target`` says which of ``version``, ``create_revision``, ``mod_revision``, ``value`` and
    ``lease`` counts. An absent key has zeros, and no value: a comparison of its value fails.
    """

    key: bytes
    range_end: bytes = b""
    target: CompareTarget = "VERSION"
    result: CompareResult = "EQUAL"
    version: Int64 = 0
    create_revision: Int64 = 0
    mod_revision: Int64 = 0
    value: bytes = b""
    lease: Int64 = 0


class Txn(Struct, frozen=True, omit_defaults=True, tag="txn"):
    """If every ``compare`` holds, does ``success``, else ``failure``, as one change.

    Every compare, those of nested transactions too, looks at the state before the first operation.
    """

    compare: tuple[Compare, ...] = ()
    success: tuple[Operation, ...] = ()
    failure: tuple[Operation, ...] = ()


Operation: TypeAlias = Union[Put, DeleteRange, Range, Txn]
"""What a transaction can consist of."""


class Compact(Struct, frozen=True, omit_defaults=True, tag="compact"):
    """Forgets what was superseded before ``revision``; the store reads from there on."""

    revision: Int64


class LeaseGrant(Struct, frozen=True, omit_defaults=True, tag="lease_grant"):
    """Opens a lease of ``ttl`` seconds; ``id`` 0 has one picked."""

    ttl: Int64
    id: Int64 = 0


class LeaseRevoke(Struct, frozen=True, omit_defaults=True, tag="lease_revoke"):
    """Ends a lease and deletes its keys."""

    id: Int64


class LeaseKeepAlive(Struct, frozen=True, omit_defaults=True, tag="lease_keep_alive"):
    """Has a lease's time start again."""

    id: Int64


KvCommand: TypeAlias = Union[Put, DeleteRange, Range, Txn, Compact, LeaseGrant, LeaseRevoke, LeaseKeepAlive]
"""What goes through the log."""


# ------------------------------------------------------------------- results
# ``revision`` is always the store's after the command: etcd's header.revision.


class PutResult(Struct, frozen=True, omit_defaults=True, tag="put"):
    """A put was done."""

    revision: int
    prev_kv: KeyValue | None = None


class DeleteRangeResult(Struct, frozen=True, omit_defaults=True, tag="delete_range"):
    """How many keys were deleted, and, where asked for, which."""

    revision: int
    deleted: int = 0
    prev_kvs: tuple[KeyValue, ...] = ()


class RangeResult(Struct, frozen=True, omit_defaults=True, tag="range"):
    """What was read.

    Attributes:
        revision: the store's present one, also when an older one was read.
        kvs: the keys.
        more: the limit cut some off.
        count: keys in the range, whatever the limit and the filters.
    """

    revision: int
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False
    count: int = 0


class TxnResult(Struct, frozen=True, omit_defaults=True, tag="txn"):
    """Which branch was taken, and its operations' results."""

    revision: int
    succeeded: bool = False
    responses: tuple[OperationResult, ...] = ()


OperationResult: TypeAlias = Union[PutResult, DeleteRangeResult, RangeResult, TxnResult]


class CompactResult(Struct, frozen=True, omit_defaults=True, tag="compact"):
    """Compacted."""

    revision: int


class LeaseGrantResult(Struct, frozen=True, omit_defaults=True, tag="lease_grant"):
    """The lease's id and its time to live in seconds."""

    revision: int
    id: int
    ttl: int


class LeaseRevokeResult(Struct, frozen=True, omit_defaults=True, tag="lease_revoke"):
    """The lease is gone."""

    revision: int


class LeaseKeepAliveResult(Struct, frozen=True, omit_defaults=True, tag="lease_keep_alive"):
    """The time to live in seconds that it has again; 0: there is no such lease (any more)."""

    revision: int
    id: int
    ttl: int = 0


class LeaseTimeToLive(Struct, frozen=True, omit_defaults=True, tag="lease_time_to_live"):
    """Answer of a query.

    Attributes:
        revision: the store's.
        id: the lease.
        ttl: seconds left; -1: there is no such lease.
        granted_ttl: seconds that it was granted.
        keys: that hang on it, sorted, where asked for.
    """

    revision: int
    id: int
    ttl: int = -1
    granted_ttl: int = 0
    keys: tuple[bytes, ...] = ()


class KvError(Struct, frozen=True, tag="error"):
    """Nothing was done.

    Attributes:
        code: gRPC's.
        message: etcd's own string; clients match on it.
    """

    code: int
    message: str


KvResult: TypeAlias = Union[
    PutResult,
    DeleteRangeResult,
    RangeResult,
    TxnResult,
    CompactResult,
    LeaseGrantResult,
    LeaseRevokeResult,
    LeaseKeepAliveResult,
    LeaseTimeToLive,
    KvError,
]

INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
OUT_OF_RANGE: Final = 11

EMPTY_KEY: Final = KvError(INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND: Final = KvError(INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED: Final = KvError(INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED: Final = KvError(INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS: Final = KvError(INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY: Final = KvError(INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
REQUEST_TOO_LARGE: Final = KvError(INVALID_ARGUMENT, "etcdserver: request is too large")
MALFORMED: Final = KvError(INVALID_ARGUMENT, "etcdserver: malformed request")
COMPACTED: Final = KvError(OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REVISION: Final = KvError(OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
TTL_TOO_LARGE: Final = KvError(OUT_OF_RANGE, "etcdserver: too large lease TTL")
NO_SPACE: Final = KvError(RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
TOO_MANY_LEASES: Final = KvError(RESOURCE_EXHAUSTED, "etcdserver: too many leases")
ANSWER_TOO_LARGE: Final = KvError(
    RESOURCE_EXHAUSTED,
    "paxos: the range has more than 32 MiB: page through it with a limit",
)
LEASE_NOT_FOUND: Final = KvError(NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS: Final = KvError(FAILED_PRECONDITION, "etcdserver: lease already exists")

encode = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(KvResult).decode


class LeaseQuery(Struct, frozen=True, omit_defaults=True, tag="lease_query"):
    """Asks for the `LeaseTimeToLive` of one lease, with its keys when ``keys`` is set."""

    lease_id: int
    keys: bool = False


class LeasesQuery(Struct, frozen=True, tag="leases_query"):
    """Asks for the ids of all open leases."""


class StoreQuery(Struct, frozen=True, tag="store_query"):
    """Asks how the store is: its `StoreStatus`."""


class StoreStatus(Struct, frozen=True):
    """How the store is.

    Attributes:
        revision, compact_revision: the last revision, and the lowest that can be read.
        keys: how many there are.
        size_bytes: as it counts for the quota.
        leases, watchers: how many; watchers are those of the node that answers.
        time_ms: log time.
    """

    revision: int
    compact_revision: int
    keys: int
    size_bytes: int
    leases: int
    watchers: int
    time_ms: int


KvQuery: TypeAlias = Range | LeaseQuery | LeasesQuery | StoreQuery


def encode_command(command: KvCommand) -> Raw:
    """The payload of ``command``."""
    return Raw(encode(command))


def decode_result(data: Raw | bytes) -> KvResult:
    """What `KeyValueStore.apply` returned.

    Raises:
        msgspec.DecodeError: it is no result.
    """
    return _decode_result(data)
