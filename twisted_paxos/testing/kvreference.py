"""A key-value store that is slow, simple and obviously right, to compare the real one with.

It keeps a whole dictionary for every revision, and recounts everything each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import structs

from twisted_paxos.statemachine import kvcommands as kv
from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.kvcommands import (
    Compare,
    DeleteRange,
    Event,
    KeyValue,
    KvCommand,
    KvError,
    KvResult,
    Operation,
    Put,
    Range,
    Txn,
)
from twisted_paxos.statemachine.kvlimits import (
    EXPIRED_KEYS_PER_SLOT,
    EXPIRED_LEASES_PER_SLOT,
    LEASE_COST_BYTES,
    TXN_DEPTH_MAX,
    VERSION_OVERHEAD_BYTES,
    KvLimits,
)

State = dict[bytes, KeyValue]


class Refused(Exception):
    """The command is refused with ``error``."""

    def __init__(self, error: KvError) -> None:
        super().__init__(error.message)
        self.error = error


def in_range(key: bytes, start: bytes, range_end: bytes) -> bool:
    """etcd's meaning of ``key`` and ``range_end``."""
    if not range_end:
        return key == start
    return start <= key and (range_end == b"\0" or key < range_end)


def cost(version: KeyValue) -> int:
    """What a version counts for."""
    return VERSION_OVERHEAD_BYTES + len(version.key) + len(version.value)


class ReferenceStore:
    """The model.

    Attributes:
        states: what was present, by revision; of every revision that ever was.
        changes: what changed, by revision, the same.
        leases: ``[ttl_s, deadline_ms]`` by id.
        compact_revision: as in the real store.
    """

    def __init__(self, limits: KvLimits) -> None:
        self.limits = limits
        self.revision = 1
        self.compact_revision = -1
        self.time_ms = 0
        self.states: dict[int, State] = {1: {}}
        self.changes: dict[int, list[KeyValue]] = {1: []}
        self.leases: dict[int, list[int]] = {}
        self.marks: list[tuple[int, int]] = []
        self._freed: dict[int, int] = {1: 0}

    # --------------------------------------------------------------- the calls

    def apply(self, command: KvCommand, context: Context) -> KvResult:
        """The result of one command."""
        handlers: dict[type, Callable[[Any, Context], KvResult]] = {
            Put: self._put,
            DeleteRange: self._alone,
            Range: self._alone,
            Txn: self._txn,
            kv.Compact: self._compact,
            kv.LeaseGrant: self._grant,
            kv.LeaseRevoke: self._revoke,
            kv.LeaseKeepAlive: self._keep_alive,
        }
        try:
            if request_bytes(command) > self.limits.request_max_bytes:
                raise Refused(kv.REQUEST_TOO_LARGE)
            return handlers[type(command)](command, context)
        except Refused as refused:
            return refused.error

    def advance(self, context: Context) -> None:
        """Expire and compact."""
        self.time_ms = max(self.time_ms, context.time_ms)
        self._expire()
        limits, now = self.limits, self.time_ms
        if not self.marks or now >= self.marks[-1][0] + limits.keep_ms // 64:
            self.marks.append((now, self.revision))
        targets = [self.revision - limits.keep_revisions + 1]
        targets += [revision for time_ms, revision in self.marks if time_ms <= now - limits.keep_ms]
        keep_bytes = min(limits.keep_bytes, limits.quota_bytes // 4)
        first = max(self.compact_revision, 2)
        while first < self.revision and self._history_bytes(first) > keep_bytes:
            first += 1
        if first > max(self.compact_revision, 2):
            targets.append(first)
        self.compact_revision = max(self.compact_revision, *targets)

    def size_bytes(self) -> int:
        """Every version that can still be read, and the one below each, counted one by one; and leases."""
        first = max(self.compact_revision, 2)
        versions = list(self.states[first - 1].values())
        for revision in range(first, self.revision + 1):
            versions += self.changes[revision]
        return sum(map(cost, versions)) + LEASE_COST_BYTES * len(self.leases)

    def events(self, key: bytes, range_end: bytes, start: int, prev_kv: bool) -> list[Event]:
        """Every event of a range from ``start`` on; ``prev_kv`` whatever was compacted."""
        return [
            Event(change, self.states[revision - 1].get(change.key) if prev_kv else None)
            for revision in range(max(start, 2), self.revision + 1)
            for change in self.changes[revision]
            if in_range(change.key, key, range_end)
        ]

    # ------------------------------------------------------------------ writes

    def _put(self, put: Put, context: Context) -> KvResult:
        check_form(put)
        wanted = VERSION_OVERHEAD_BYTES + len(put.key) + len(put.value)
        if self.size_bytes() + wanted > self.limits.quota_bytes:
            raise Refused(kv.NO_SPACE)
        if put.lease and not self._alive(put.lease, context.time_ms):
            raise Refused(kv.LEASE_NOT_FOUND)
        self._check_ignores(put)
        return self._run([put])[0]

    def _alone(self, operation: DeleteRange | Range, context: Context) -> KvResult:
        check_form(operation)
        if isinstance(operation, Range):
            self._check_range(operation)
        return self._run([operation])[0]

    def _txn(self, txn: Txn, context: Context) -> KvResult:
        if depth(txn) > TXN_DEPTH_MAX:
            raise Refused(kv.MALFORMED)
        check_txn(txn, self.limits.txn_ops_max)
        check_duplicates(txn.success)
        check_duplicates(txn.failure)
        wanted = put_bytes(txn)
        if wanted and self.size_bytes() + wanted > self.limits.quota_bytes:
            raise Refused(kv.NO_SPACE)
        decided = self._decide(txn)
        self._check_branches(decided, context)
        return self._run([decided])[0]

    def _run(self, operations: list[Any]) -> list[Any]:
        """Do operations, nested transactions as decided, as one revision if that changes anything."""
        state = dict(self.states[self.revision])
        changes: list[KeyValue] = []
        results = [self._do(operation, state, changes) for operation in operations]
        if changes:
            self._commit(state, changes)
        return results

    def _commit(self, state: State, changes: list[KeyValue]) -> None:
        freed, latest = 0, dict(self.states[self.revision])
        for change in changes:
            before = latest.pop(change.key, None)
            freed += cost(before) if before else 0
            if change.version:
                latest[change.key] = change
            else:
                freed += cost(change)
        self.revision += 1
        self.states[self.revision] = state
        self.changes[self.revision] = changes
        self._freed[self.revision] = freed

    def _do(self, operation: Any, state: State, changes: list[KeyValue]) -> Any:
        following = self.revision + 1
        if isinstance(operation, tuple):
            succeeded, nested = operation
            responses = tuple(self._do(each, state, changes) for each in nested)
            return kv.TxnResult(following if changes else self.revision, succeeded, responses)
        if isinstance(operation, Put):
            before = state.get(operation.key)
            value = before.value if operation.ignore_value and before else operation.value
            lease = before.lease if operation.ignore_lease and before else operation.lease
            created, version = (before.create_revision, before.version + 1) if before else (following, 1)
            after = KeyValue(operation.key, created, following, version, value, lease)
            state[operation.key] = after
            changes.append(after)
            return kv.PutResult(following, before if operation.prev_kv else None)
        if isinstance(operation, DeleteRange):
            keys = sorted(key for key in state if in_range(key, operation.key, operation.range_end))
            deleted = tuple(state.pop(key) for key in keys)
            changes += [KeyValue(key, 0, following, 0) for key in keys]
            revision = following if changes else self.revision
            return kv.DeleteRangeResult(revision, len(keys), deleted if operation.prev_kv else ())
        read = self.states[operation.revision] if operation.revision > 0 else state
        return answer(operation, read, following if changes else self.revision)

    # ------------------------------------------------------------------ checks

    def _check_range(self, request: Range) -> None:
        if request.revision > self.revision:
            raise Refused(kv.FUTURE_REVISION)
        if 0 < request.revision < self.compact_revision:
            raise Refused(kv.COMPACTED)

    def _check_ignores(self, put: Put) -> None:
        if (put.ignore_value or put.ignore_lease) and put.key not in self.states[self.revision]:
            raise Refused(kv.KEY_NOT_FOUND)

    def _check_branches(self, decided: Any, context: Context) -> None:
        """All puts first, then all reads."""
        operations = list(_flat(decided))
        for operation in operations:
            if isinstance(operation, Put):
                self._check_ignores(operation)
                if operation.lease and not self._alive(operation.lease, context.time_ms):
                    raise Refused(kv.LEASE_NOT_FOUND)
        for operation in operations:
            if isinstance(operation, Range):
                if operation.revision < 0 and operation.revision < self.compact_revision:
                    raise Refused(kv.COMPACTED)
                self._check_range(operation)

    def _decide(self, txn: Txn) -> tuple[bool, list[Any]]:
        """Which way it goes: ``(succeeded, operations)``, nested transactions the same way."""
        state = self.states[self.revision]
        succeeded = all(holds(compare, state) for compare in txn.compare)
        operations = txn.success if succeeded else txn.failure
        return succeeded, [self._decide(each) if isinstance(each, Txn) else each for each in operations]

    # ------------------------------------------------------ compaction, leases

    def _history_bytes(self, first: int) -> int:
        return sum(self._freed[revision] for revision in range(first, self.revision + 1))

    def _compact(self, request: kv.Compact, context: Context) -> KvResult:
        if request.revision <= self.compact_revision:
            raise Refused(kv.COMPACTED)
        if request.revision > self.revision:
            raise Refused(kv.FUTURE_REVISION)
        self.compact_revision = request.revision
        return kv.CompactResult(self.revision)

    def _alive(self, lease: int, time_ms: int) -> bool:
        return lease in self.leases and self.leases[lease][1] > time_ms

    def _grant(self, request: kv.LeaseGrant, context: Context) -> KvResult:
        if self.size_bytes() + LEASE_COST_BYTES > self.limits.quota_bytes:
            raise Refused(kv.NO_SPACE)
        if request.ttl > 9_000_000_000:
            raise Refused(kv.TTL_TOO_LARGE)
        if request.id in self.leases:
            raise Refused(kv.LEASE_EXISTS)
        if len(self.leases) >= self.limits.leases_max:
            raise Refused(kv.TOO_MANY_LEASES)
        lease_id = request.id or context.slot * 2**20 + context.index
        while lease_id in self.leases:
            lease_id += 1
        ttl_s = max(request.ttl, self.limits.lease_ttl_min_s)
        self.leases[lease_id] = [ttl_s, context.time_ms + 1000 * ttl_s]
        return kv.LeaseGrantResult(self.revision, lease_id, ttl_s)

    def _revoke(self, request: kv.LeaseRevoke, context: Context) -> KvResult:
        if request.id not in self.leases:
            raise Refused(kv.LEASE_NOT_FOUND)
        self._drop(request.id)
        return kv.LeaseRevokeResult(self.revision)

    def _keep_alive(self, request: kv.LeaseKeepAlive, context: Context) -> KvResult:
        if not self._alive(request.id, context.time_ms):
            return kv.LeaseKeepAliveResult(self.revision, request.id)
        ttl_s = self.leases[request.id][0]
        self.leases[request.id][1] = context.time_ms + 1000 * ttl_s
        return kv.LeaseKeepAliveResult(self.revision, request.id, ttl_s)

    def _drop(self, lease: int) -> int:
        del self.leases[lease]
        keys = [each.key for each in self.states[self.revision].values() if each.lease == lease]
        state = {k: v for k, v in self.states[self.revision].items() if v.lease != lease}
        if keys:
            self._commit(state, [KeyValue(key, 0, self.revision + 1, 0) for key in sorted(keys)])
        return len(keys)

    def _expire(self) -> None:
        over = sorted((end, lease) for lease, (_, end) in self.leases.items() if end <= self.time_ms)
        keys = 0
        for _, lease in over[:EXPIRED_LEASES_PER_SLOT]:
            if keys < EXPIRED_KEYS_PER_SLOT:
                keys += self._drop(lease)


# ---------------------------------------------------------------- pure checks


def _flat(decided: Any) -> Iterator[Operation]:
    """The operations of a transaction that is decided, nested ones too."""
    for operation in decided[1]:
        if isinstance(operation, tuple):
            yield from _flat(operation)
        else:
            yield operation


def check_form(operation: Operation) -> None:
    """Refuse an operation that is wrong whatever the state."""
    if isinstance(operation, Txn):
        return
    if not operation.key:
        raise Refused(kv.EMPTY_KEY)
    if isinstance(operation, Put):
        if operation.ignore_value and operation.value:
            raise Refused(kv.VALUE_PROVIDED)
        if operation.ignore_lease and operation.lease:
            raise Refused(kv.LEASE_PROVIDED)


def check_txn(txn: Txn, ops_max: int) -> None:
    """The same for a transaction."""
    ops = max(len(txn.compare), len(txn.success), len(txn.failure))
    if ops > ops_max:
        raise Refused(kv.TOO_MANY_OPS)
    if any(not compare.key for compare in txn.compare):
        raise Refused(kv.EMPTY_KEY)
    for operation in txn.success + txn.failure:
        if isinstance(operation, Txn):
            check_txn(operation, ops_max - ops)
        else:
            check_form(operation)


def check_duplicates(operations: Sequence[Operation]) -> tuple[list[bytes], list[DeleteRange]]:
    """Refuse keys that are put twice, or put where a range is deleted; etcd's ``checkIntervals``."""
    deletes = [operation for operation in operations if isinstance(operation, DeleteRange)]
    puts: list[bytes] = []

    def add(keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in puts or any(in_range(key, each.key, each.range_end) for each in deletes):
                raise Refused(kv.DUPLICATE_KEY)
        puts.extend(keys)

    for operation in operations:
        if isinstance(operation, Txn):
            then_puts, then_deletes = check_duplicates(operation.success)
            else_puts, else_deletes = check_duplicates(operation.failure)
            add(sorted({*then_puts, *else_puts}))
            deletes += then_deletes + else_deletes
    for operation in operations:
        if isinstance(operation, Put):
            add([operation.key])
    return puts, deletes


def holds(compare: Compare, state: State) -> bool:
    """Whether a compare holds for every key that it is about."""
    found = [each for key, each in state.items() if in_range(key, compare.key, compare.range_end)]
    if not found:
        if compare.target == "VALUE":
            return False
        found = [KeyValue(b"", 0, 0, 0)]
    fields = {"VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision", "VALUE": "value"}
    field = fields.get(compare.target, "lease")
    wanted = getattr(compare, field)
    signs = {"EQUAL": (0,), "GREATER": (1,), "LESS": (-1,), "NOT_EQUAL": (-1, 1)}[compare.result]
    return all((getattr(each, field) > wanted) - (getattr(each, field) < wanted) in signs for each in found)


def answer(request: Range, state: State, revision: int) -> kv.RangeResult:
    """A range read from ``state``, step by step as etcd does it."""
    found = [state[key] for key in sorted(state) if in_range(key, request.key, request.range_end)]
    count = len(found)
    if request.count_only:
        return kv.RangeResult(revision, (), False, count)
    bounds = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
    if request.limit > 0 and request.sort_order == "NONE" and not any(getattr(request, b) for b in bounds):
        found = found[: request.limit + 1]
    for name in bounds:
        least, bound, field = name.startswith("min"), getattr(request, name), name[4:]
        if bound:
            sign = 1 if least else -1
            found = [v for v in found if sign * getattr(v, field) >= sign * bound]
    fields = {"KEY": "key", "VERSION": "version", "CREATE": "create_revision", "MOD": "mod_revision"}
    if request.sort_order != "NONE" or request.sort_target != "KEY":
        field = fields.get(request.sort_target, "value")
        found.sort(key=lambda v: getattr(v, field), reverse=request.sort_order == "DESCEND")
    more = 0 < request.limit < len(found)
    found = found[: request.limit] if more else found
    if request.keys_only:
        found = [structs.replace(v, value=b"") for v in found]
    return kv.RangeResult(revision, tuple(found), more, count)


def depth(txn: Txn) -> int:
    """How deep it is nested."""
    return 1 + max((depth(each) for each in txn.success + txn.failure if isinstance(each, Txn)), default=0)


def put_bytes(txn: Txn) -> int:
    """Keys and values of all puts."""
    return sum(
        put_bytes(each) if isinstance(each, Txn) else len(each.key) + len(each.value)
        for each in txn.success + txn.failure
        if isinstance(each, Txn | Put)
    )


def request_bytes(command: Any) -> int:
    """Keys and values of a command."""
    if isinstance(command, Txn):
        return sum(map(request_bytes, command.compare + command.success + command.failure))
    return sum(len(getattr(command, field, b"")) for field in ("key", "range_end", "value"))
