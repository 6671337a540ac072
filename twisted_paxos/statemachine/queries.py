"""Reads a range, with etcd's order of filtering, sorting and cutting (its ``applierV3.Range``)."""

from __future__ import annotations

from itertools import islice
from operator import attrgetter

from msgspec import structs

from twisted_paxos.statemachine.kvcommands import (
    COMPACTED,
    EMPTY_KEY,
    FUTURE_REVISION,
    KeyValue,
    KvError,
    Range,
    RangeResult,
)
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.ranges import Bounds, bounds_of

_SORT_KEYS = {
    "KEY": attrgetter("key"),
    "VERSION": attrgetter("version"),
    "CREATE": attrgetter("create_revision"),
    "MOD": attrgetter("mod_revision"),
    "VALUE": attrgetter("value"),
}


def refuse_range(mvcc: Mvcc, request: Range) -> KvError | None:
    """Why ``request`` cannot be answered; None when it can."""
    if not request.key:
        return EMPTY_KEY
    if request.revision > mvcc.revision:
        return FUTURE_REVISION
    if 0 < request.revision < mvcc.compact_revision:
        return COMPACTED
    return None


def read_range(mvcc: Mvcc, request: Range, revision: int) -> RangeResult:
    """The answer to ``request``, which `refuse_range` has let pass.

    Args:
        revision: what the answer names as the store's.
    """
    bounds = bounds_of(request.key, request.range_end)
    filters = _has_filters(request)
    limit = max(0, request.limit)
    kvs: list[KeyValue]
    if request.count_only:
        kvs, count = [], _count(mvcc, bounds, request.revision)
    else:
        # One more than the limit says whether there is more; filters and sorting need everything.
        wanted = 0 if filters or request.sort_order != "NONE" else limit and limit + 1
        kvs, count = _fetch(mvcc, bounds, request, wanted)
    if filters:
        kvs = [kv for kv in kvs if _passes(kv, request)]
    if request.sort_order != "NONE" or request.sort_target != "KEY":
        kvs.sort(key=_SORT_KEYS[request.sort_target], reverse=request.sort_order == "DESCEND")
    more = bool(limit) and len(kvs) > limit
    if more:
        del kvs[limit:]
    if request.keys_only:
        kvs = [structs.replace(kv, value=b"") if kv.value else kv for kv in kvs]
    return RangeResult(revision, tuple(kvs), more, count)


def _count(mvcc: Mvcc, bounds: Bounds, revision: int) -> int:
    if revision > 0:
        return sum(1 for _ in mvcc.scan_at(bounds, revision))
    return mvcc.count(bounds)


def _fetch(mvcc: Mvcc, bounds: Bounds, request: Range, wanted: int) -> tuple[list[KeyValue], int]:
    """Up to ``wanted`` versions (0: all), and how many keys there are in ``bounds``."""
    if not request.range_end:
        at = request.revision
        kv = mvcc.get_at(request.key, at) if at > 0 else mvcc.get(request.key)
        return ([], 0) if kv is None else ([kv], 1)
    if request.revision > 0:
        kvs = list(mvcc.scan_at(bounds, request.revision))
        count = len(kvs)
        return (kvs[:wanted] if wanted else kvs), count
    scan = mvcc.scan(bounds)
    kvs = list(islice(scan, wanted) if wanted else scan)
    return kvs, mvcc.count(bounds) if wanted else len(kvs)


def _has_filters(request: Range) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _passes(kv: KeyValue, request: Range) -> bool:
    """Whether ``kv`` is within the four bounds on revisions; 0 is none."""
    if request.max_mod_revision and kv.mod_revision > request.max_mod_revision:
        return False
    if request.min_mod_revision and kv.mod_revision < request.min_mod_revision:
        return False
    if request.max_create_revision and kv.create_revision > request.max_create_revision:
        return False
    return not (request.min_create_revision and kv.create_revision < request.min_create_revision)
