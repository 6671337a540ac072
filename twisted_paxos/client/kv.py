"""`KeyValues`: the key-value store as a client sees it, in etcd's terms.

kv = client.kv
await kv.put("config/mode", "blue")
found = await kv.get("config/", prefix=True)
swapped = await kv.txn(
    compare=[value("config/mode") == "blue"],
    success=[put("config/mode", "green")],
    failure=[get("config/mode")],
)

Everything returns a Deferred. A refusal of the store fails with `KeyValueError`, with etcd's text: nothing
was done then. `OutcomeUnknown` says that a write was sent and may be done or not. Such a write never happens
after a later command of the same client has: that later command settles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred, fail

from twisted_paxos.client.keys import Key, range_of, to_bytes
from twisted_paxos.errors import KeyValueError, Unavailable
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.kvcommands import (
    Compact,
    CompactResult,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    DeleteRangeResult,
    KvCommand,
    KvError,
    KvQuery,
    LeaseGrant,
    LeaseGrantResult,
    LeaseKeepAlive,
    LeaseKeepAliveResult,
    LeaseQuery,
    LeaseRevoke,
    LeaseRevokeResult,
    LeasesQuery,
    LeaseTimeToLive,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    SortOrder,
    SortTarget,
    StoreQuery,
    StoreStatus,
    Txn,
    TxnResult,
    decode_result,
    encode,
    encode_command,
)
from twisted_paxos.statemachine.watches import WatchRequest

if TYPE_CHECKING:
    from twisted_paxos.client.client import Client
    from twisted_paxos.client.watches import Watch

_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_status = msgspec.json.Decoder(StoreStatus).decode

_T = TypeVar(
    "_T",
    PutResult,
    DeleteRangeResult,
    RangeResult,
    TxnResult,
    CompactResult,
    LeaseGrantResult,
    LeaseRevokeResult,
    LeaseKeepAliveResult,
    LeaseTimeToLive,
)


# -- conditions and operations of transactions --------------------------------------------------


class Condition:
    """One side of a comparison: ``version("k") == 0`` makes the `Compare`.

    Args:
        target: what of the key counts.
        key, range_end: which keys; the comparison must hold for every one.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, target: CompareTarget, key: Key, range_end: Key = b"") -> None:
        self._target: CompareTarget = target
        self._key = to_bytes(key)
        self._range_end = to_bytes(range_end)

    def compare(self, result: CompareResult, operand: Key | int) -> Compare:
        """The comparison with ``operand``: bytes or text for a value, else a number."""
        if (self._target == "VALUE") is isinstance(operand, int):
            raise TypeError(f"{operand!r} is nothing to compare the {self._target.lower()} of a key with")
        operand = operand if isinstance(operand, int) else to_bytes(operand)
        field = {_FIELDS[self._target]: operand}
        return msgspec.structs.replace(Compare(self._key, self._range_end, self._target, result), **field)

    def __eq__(self, operand: Key | int) -> Compare:  # type: ignore[override]
        return self.compare("EQUAL", operand)

    def __ne__(self, operand: Key | int) -> Compare:  # type: ignore[override]
        return self.compare("NOT_EQUAL", operand)

    def __gt__(self, operand: Key | int) -> Compare:
        return self.compare("GREATER", operand)

    def __lt__(self, operand: Key | int) -> Compare:
        return self.compare("LESS", operand)


_FIELDS: Final[dict[CompareTarget, str]] = {
    "VERSION": "version",
    "CREATE": "create_revision",
    "MOD": "mod_revision",
    "VALUE": "value",
    "LEASE": "lease",
}


def value(key: Key, range_end: Key = b"") -> Condition:
    """The value of a key, in a comparison; an absent key has none, and none that it is unequal to."""
    return Condition("VALUE", key, range_end)


def version(key: Key, range_end: Key = b"") -> Condition:
    """The version of a key, in a comparison; 0: it is absent."""
    return Condition("VERSION", key, range_end)


def create_revision(key: Key, range_end: Key = b"") -> Condition:
    """The revision that created a key, in a comparison; 0: it is absent."""
    return Condition("CREATE", key, range_end)


def mod_revision(key: Key, range_end: Key = b"") -> Condition:
    """The revision that changed a key last, in a comparison; 0: it is absent."""
    return Condition("MOD", key, range_end)


def lease_of(key: Key, range_end: Key = b"") -> Condition:
    """The lease that a key hangs on, in a comparison; 0: none."""
    return Condition("LEASE", key, range_end)


def put(key: Key, value: Key = b"", *, lease: int = 0, prev_kv: bool = False) -> Put:
    """A put, as an operation of a transaction."""
    return Put(to_bytes(key), to_bytes(value), lease, prev_kv)


def get(
    key: Key,
    *,
    range_end: Key = b"",
    prefix: bool = False,
    from_key: bool = False,
    revision: int = 0,
    limit: int = 0,
    sort_order: SortOrder = "NONE",
    sort_target: SortTarget = "KEY",
    keys_only: bool = False,
    count_only: bool = False,
    min_mod_revision: int = 0,
    max_mod_revision: int = 0,
    min_create_revision: int = 0,
    max_create_revision: int = 0,
) -> Range:
    """A read, as an operation of a transaction; `KeyValues.get` says what the arguments mean."""
    start, end = range_of(key, range_end, prefix, from_key)
    return Range(
        start,
        end,
        limit,
        revision,
        sort_order,
        sort_target,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    )


def delete(
    key: Key, *, range_end: Key = b"", prefix: bool = False, from_key: bool = False, prev_kv: bool = False
) -> DeleteRange:
    """A deletion, as an operation of a transaction."""
    start, end = range_of(key, range_end, prefix, from_key)
    return DeleteRange(start, end, prev_kv)


Comparison: TypeAlias = Compare
"""What ``value("k") == "v"`` makes."""


# -- the store -------------------------------------------------------------------------------------


class KeyValues:
    """The key-value store, through a client's session; it is the client's ``kv``.

    Every method returns a Deferred. Common ways to fail, beside each method's own:

    * `KeyValueError`: the store refused; nothing was done.
    * `OutcomeUnknown`, for writes: sent, and no result in time.
    * `Unavailable`: it could not be sent, or, for reads, not be answered in time.
    * `Overloaded`, `ValueTooLarge`: a limit; nothing was done.

    Attributes:
        revision: the highest revision of the store that this client has seen.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.revision = 0

    # -- reading and writing

    def put(
        self,
        key: Key,
        value: Key = b"",
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout_s: float | None = None,
    ) -> Deferred[PutResult]:
        """Set ``key``.

        Args:
            lease: id of the lease that it hangs on, 0 for none.
            prev_kv: return the version before.
            ignore_value: keep the value that it has, and change its lease.
            ignore_lease: keep the lease that it has.
        """
        command = Put(to_bytes(key), to_bytes(value), lease, prev_kv, ignore_value, ignore_lease)
        return self._do(command, PutResult, timeout_s)

    def get(
        self,
        key: Key,
        *,
        range_end: Key = b"",
        prefix: bool = False,
        from_key: bool = False,
        revision: int = 0,
        limit: int = 0,
        sort_order: SortOrder = "NONE",
        sort_target: SortTarget = "KEY",
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> Deferred[RangeResult]:
        """Read a key or a range.

        Args:
            key: the key, or the first one.
            range_end: the first key behind the range.
            prefix: every key that begins with ``key``.
            from_key: every key from ``key`` on.
            revision: as of this one, 0 for the present.
            limit: at most so many, 0 for no limit; ``more`` of the result says if it cut some off.
            sort_order, sort_target: of the result.
            keys_only: without values.
            count_only: only ``count``.
            min_mod_revision, max_mod_revision, min_create_revision, max_create_revision: only such keys.
            serializable: from what the connected node has, which may be old; else the answer has
                everything that was acknowledged to anybody before this call.
        """
        request = get(
            key,
            range_end=range_end,
            prefix=prefix,
            from_key=from_key,
            revision=revision,
            limit=limit,
            sort_order=sort_order,
            sort_target=sort_target,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return self.read(request, serializable=serializable, timeout_s=timeout_s)

    def read(
        self, request: Range, *, serializable: bool = False, timeout_s: float | None = None
    ) -> Deferred[RangeResult]:
        """`get` for a request that is there already."""
        return self._ask(request, serializable, timeout_s).addCallback(self._result, RangeResult)

    def delete(
        self,
        key: Key,
        *,
        range_end: Key = b"",
        prefix: bool = False,
        from_key: bool = False,
        prev_kv: bool = False,
        timeout_s: float | None = None,
    ) -> Deferred[DeleteRangeResult]:
        """Delete a key or a range; ``prev_kv`` returns what it deleted."""
        command = delete(key, range_end=range_end, prefix=prefix, from_key=from_key, prev_kv=prev_kv)
        return self._do(command, DeleteRangeResult, timeout_s)

    def txn(
        self,
        compare: Sequence[Comparison] = (),
        success: Sequence[Operation] = (),
        failure: Sequence[Operation] = (),
        timeout_s: float | None = None,
    ) -> Deferred[TxnResult]:
        """If all of ``compare`` hold, do ``success``, else ``failure``, as one change.

        Operations are made by `put`, `get` and `delete` of this module, or are a `Txn` again.
        """
        for condition in compare:
            if not isinstance(condition, Compare):
                return fail(TypeError(f'{condition!r} is no comparison; write: value("key") == "value"'))
        command = Txn(tuple(compare), tuple(success), tuple(failure))
        return self._do(command, TxnResult, timeout_s)

    def compact(self, revision: int, timeout_s: float | None = None) -> Deferred[CompactResult]:
        """Forget what was superseded before ``revision``."""
        return self._do(Compact(revision), CompactResult, timeout_s)

    def status(self, serializable: bool = False, timeout_s: float | None = None) -> Deferred[StoreStatus]:
        """How the store is: revisions, keys, size, leases."""
        return self._ask(StoreQuery(), serializable, timeout_s).addCallback(_decode_status)

    # -- leases; `Client.lease` has one that keeps itself alive

    def lease_grant(
        self, ttl_s: int, lease_id: int = 0, timeout_s: float | None = None
    ) -> Deferred[LeaseGrantResult]:
        """Open a lease of ``ttl_s`` seconds; the result has its id."""
        return self._do(LeaseGrant(ttl_s, lease_id), LeaseGrantResult, timeout_s)

    def lease_revoke(self, lease_id: int, timeout_s: float | None = None) -> Deferred[LeaseRevokeResult]:
        """End a lease and delete its keys."""
        return self._do(LeaseRevoke(lease_id), LeaseRevokeResult, timeout_s)

    def lease_keep_alive(
        self, lease_id: int, timeout_s: float | None = None
    ) -> Deferred[LeaseKeepAliveResult]:
        """Have a lease's time start again, once; ``ttl`` 0 in the result: there is no such lease."""
        return self._do(LeaseKeepAlive(lease_id), LeaseKeepAliveResult, timeout_s)

    def lease_time_to_live(
        self, lease_id: int, keys: bool = False, timeout_s: float | None = None
    ) -> Deferred[LeaseTimeToLive]:
        """How long a lease has left, and, when asked for, its keys; ``ttl`` -1: there is no such lease."""
        asking = self._ask(LeaseQuery(lease_id, keys), False, timeout_s)
        return asking.addCallback(self._result, LeaseTimeToLive)

    def leases(self, timeout_s: float | None = None) -> Deferred[list[int]]:
        """Ids of all open leases, sorted."""
        return self._ask(LeasesQuery(), False, timeout_s).addCallback(_decode_ids)

    # -- watching

    def watch(
        self,
        key: Key,
        *,
        range_end: Key = b"",
        prefix: bool = False,
        from_key: bool = False,
        start_revision: int = 0,
        noput: bool = False,
        nodelete: bool = False,
        prev_kv: bool = False,
        progress_notify: bool = False,
    ) -> Watch:
        """An async iterator over the changes of a key or a range; see `Watch`.

        Args:
            start_revision: the first revision of interest; 0: after the present.
            noput, nodelete: leave out such events.
            prev_kv: events carry the version before.
            progress_notify: also give batches without events, which tell how far the watch is.
        """
        start, end = range_of(key, range_end, prefix, from_key)
        request = WatchRequest(start, end, start_revision, noput, nodelete, prev_kv, progress_notify)
        return self._client.start_watch(request, self.revision)

    # -- how it is done

    def _do(self, command: KvCommand, kind: type[_T], timeout_s: float | None) -> Deferred[_T]:
        done: Deferred[Any] = self._client.command(encode_command(command), timeout_s)
        return done.addCallback(self._data_of, kind)

    def _data_of(self, result: Result, kind: type[_T]) -> _T:
        return self._result(result.data, kind)

    def _ask(self, query: KvQuery, serializable: bool, timeout_s: float | None) -> Deferred[Any]:
        return self._client.query(Raw(encode(query)), serializable, timeout_s)

    def _result(self, data: Raw, kind: type[_T]) -> _T:
        try:
            result = decode_result(data)
        except msgspec.DecodeError:
            raise Unavailable("the nodes' state machine is no key-value store") from None
        if isinstance(result, KvError):
            raise KeyValueError(result.code, result.message)
        if not isinstance(result, kind):
            raise Unavailable(f"the node answered with {type(result).__name__}, which was not asked for")
        if result.revision > self.revision:
            self.revision = result.revision
        return result
