"""The limits of the key-value store, in one place.

They are part of the replicated behaviour: every member of a cluster must run with the same
ones, else two members answer one command differently. Sizes are bytes.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

VERSION_OVERHEAD_BYTES: Final = 200
"""What one stored version of a key costs beyond key and value, as counted for the quota."""

LEASE_COST_BYTES: Final = 400
"""What one lease costs, as counted for the quota."""

TXN_DEPTH_MAX: Final = 16
"""How deep transactions may be nested; deeper ones are malformed."""

SWEEP_EVENTS_MAX: Final = 1_024
"""Superseded versions that one slot removes at most."""

EXPIRED_KEYS_PER_SLOT: Final = 1_000
"""A slot stops to expire leases once it has deleted this many keys."""

EXPIRED_LEASES_PER_SLOT: Final = 500
"""A slot expires at most this many leases."""

ANSWER_MAX_BYTES: Final = 32 << 20
"""Keys and values of one answer to a query, which is made on the reactor's thread."""

Positive = Annotated[int, Meta(ge=1)]


class KvLimits(Struct, frozen=True, kw_only=True):
    """What the store allows and how much history it keeps.

    History is compacted as soon as any of the three ``keep`` limits is passed.

    Attributes:
        request_max_bytes: keys and values of one request (etcd's 1.5 MiB).
        txn_ops_max: operations of a transaction, compares, successes and failures each.
        quota_bytes: the whole state, history and leases included; beyond it, puts and grants are refused.
        keep_revisions: this many of the latest revisions can be read.
        keep_ms: log time for which a superseded revision can be read; exact to a 64th of it.
        keep_bytes: superseded versions that are kept, never more than a quarter of the quota.
        lease_ttl_min_s: shorter leases get this time to live (etcd's with its default election time-out).
        leases_max: open leases; beyond it, grants are refused.
    """

    request_max_bytes: Positive = 3 << 19
    txn_ops_max: Positive = 128
    quota_bytes: Positive = 2 << 30
    keep_revisions: Positive = 1_000_000
    keep_ms: Positive = 3_600_000
    keep_bytes: Positive = 128 << 20
    lease_ttl_min_s: Positive = 2
    leases_max: Positive = 1_000_000


DEFAULT_LIMITS: Final = KvLimits()
"""What a cluster runs with unless it is configured otherwise."""
