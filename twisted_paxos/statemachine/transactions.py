"""Transactions: what is refused before anything is done, compares, and which way they lead.

The order is etcd's: the form of the request, keys put twice, compares against the state before
the transaction (nested ones too), then everything that a chosen branch needs. After that
nothing can fail, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import eq, gt, lt, ne
from typing import Any

from twisted_paxos.statemachine.kvcommands import (
    DUPLICATE_KEY,
    EMPTY_KEY,
    LEASE_PROVIDED,
    MALFORMED,
    TOO_MANY_OPS,
    VALUE_PROVIDED,
    Compare,
    DeleteRange,
    KeyValue,
    KvError,
    Operation,
    Put,
    Range,
    Txn,
)
from twisted_paxos.statemachine.kvlimits import TXN_DEPTH_MAX
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.ranges import Coverage, bounds_of

_RESULTS: dict[str, Callable[[Any, Any], bool]] = {"EQUAL": eq, "NOT_EQUAL": ne, "GREATER": gt, "LESS": lt}

_ABSENT = KeyValue(b"", 0, 0, 0)


def refuse_put_form(put: Put) -> KvError | None:
    """What is wrong with the form of ``put``; None: nothing."""
    if not put.key:
        return EMPTY_KEY
    if put.ignore_value and put.value:
        return VALUE_PROVIDED
    if put.ignore_lease and put.lease:
        return LEASE_PROVIDED
    return None


def refuse_txn_form(txn: Txn, ops_max: int) -> KvError | None:
    """What is wrong with the form of ``txn``, whatever the state; None: nothing."""
    if _depth(txn) > TXN_DEPTH_MAX:
        return MALFORMED
    return _refuse_form(txn, ops_max) or _refuse_duplicates(txn.success) or _refuse_duplicates(txn.failure)


def _depth(txn: Txn) -> int:
    depth, level = 1, [txn]
    while level := [op for t in level for op in (*t.success, *t.failure) if type(op) is Txn]:
        depth += 1
    return depth


def _refuse_form(txn: Txn, ops_max: int) -> KvError | None:
    ops = max(len(txn.compare), len(txn.success), len(txn.failure))
    if ops > ops_max:
        return TOO_MANY_OPS
    if any(not compare.key for compare in txn.compare):
        return EMPTY_KEY
    for operation in (*txn.success, *txn.failure):
        if type(operation) is Txn:
            refused = _refuse_form(operation, ops_max - ops)
        elif type(operation) is Put:
            refused = refuse_put_form(operation)
        else:
            refused = None if operation.key else EMPTY_KEY  # type: ignore[union-attr]
        if refused:
            return refused
    return None


# ------------------------------------------------------------ keys put twice


def _refuse_duplicates(operations: Sequence[Operation]) -> KvError | None:
    return DUPLICATE_KEY if _written(operations) is None else None


def _written(operations: Sequence[Operation]) -> tuple[dict[bytes, None], Coverage] | None:
    """Keys put and ranges deleted by ``operations``; None when one is put twice, or put and deleted.

    The two branches of one nested transaction exclude each other and may put the same key.
    """
    deleted = Coverage()
    for operation in operations:
        if type(operation) is DeleteRange:
            deleted.add(bounds_of(operation.key, operation.range_end))
    puts: dict[bytes, None] = {}
    for operation in operations:
        if type(operation) is Txn:
            then, otherwise = _written(operation.success), _written(operation.failure)
            if then is None or otherwise is None:
                return None
            both = {**then[0], **otherwise[0]}
            if any(key in puts or key in deleted for key in both):
                return None
            puts.update(both)
            for bounds in (*then[1], *otherwise[1]):
                deleted.add(bounds)
    for operation in operations:
        if type(operation) is Put:
            if operation.key in puts or operation.key in deleted:
                return None
            puts[operation.key] = None
    return puts, deleted


# ------------------------------------------------------------------ compares


def chosen_branches(txn: Txn, mvcc: Mvcc) -> Iterator[bool]:
    """Whether ``txn``, and then each nested transaction on the way, in order, succeeds.

    To be exhausted before the first change.
    """
    succeeded = all(_holds(compare, mvcc) for compare in txn.compare)
    yield succeeded
    for operation in txn.success if succeeded else txn.failure:
        if type(operation) is Txn:
            yield from chosen_branches(operation, mvcc)


def _holds(compare: Compare, mvcc: Mvcc) -> bool:
    if compare.range_end:
        kvs = mvcc.scan(bounds_of(compare.key, compare.range_end))
        first = next(kvs, None)
        if first is not None:
            return _compares(compare, first) and all(_compares(compare, kv) for kv in kvs)
    else:
        kv = mvcc.get(compare.key)
        if kv is not None:
            return _compares(compare, kv)
    # An absent key has no value that anything could compare with.
    return compare.target != "VALUE" and _compares(compare, _ABSENT)


def _compares(compare: Compare, kv: KeyValue) -> bool:
    result = _RESULTS[compare.result]
    target = compare.target
    if target == "VERSION":
        return result(kv.version, compare.version)
    if target == "CREATE":
        return result(kv.create_revision, compare.create_revision)
    if target == "MOD":
        return result(kv.mod_revision, compare.mod_revision)
    if target == "LEASE":
        return result(kv.lease, compare.lease)
    return result(kv.value, compare.value)


# -------------------------------------------------------------- walking them


def operations_of(txn: Txn, branches: Iterator[bool]) -> Iterator[Put | DeleteRange | Range]:
    """The operations that ``branches`` lead to, nested ones included, in the order in which they apply."""
    for operation in txn.success if next(branches) else txn.failure:
        if type(operation) is Txn:
            yield from operations_of(operation, branches)
        else:
            yield operation  # type: ignore[misc]


def put_bytes(txn: Txn) -> int:
    """Keys and values that ``txn`` could put, both branches together: what it may cost in quota."""
    total = 0
    for operation in (*txn.success, *txn.failure):
        if type(operation) is Put:
            total += len(operation.key) + len(operation.value)
        elif type(operation) is Txn:
            total += put_bytes(operation)
    return total


def request_bytes(txn: Txn) -> int:
    """Every key and value in ``txn``."""
    total = sum(len(c.key) + len(c.range_end) + len(c.value) for c in txn.compare)
    for operation in (*txn.success, *txn.failure):
        if type(operation) is Txn:
            total += request_bytes(operation)
        elif type(operation) is Put:
            total += len(operation.key) + len(operation.value)
        else:
            total += len(operation.key) + len(operation.range_end)  # type: ignore[union-attr]
    return total
