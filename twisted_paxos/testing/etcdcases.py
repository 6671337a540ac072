"""Hand-written sequences for the comparison with etcd: every endpoint, field rule and error text.

Each sequence starts with no keys and no leases, see `etcdexchange`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from twisted_paxos.testing.etcdkvcases import ALL, EVERYTHING, FILLED, kv_cases
from twisted_paxos.testing.etcdrequests import (
    NODELETE,
    NOPUT,
    Call,
    Chosen,
    Rev,
    Step,
    Stream,
    delete,
    get,
    grant,
    operation,
    put,
    txn,
    watch,
)


def cases() -> Iterator[tuple[str, Sequence[Step]]]:
    """All sequences by name; names do not repeat."""
    for group in (kv_cases, _leases, _watches, _many_watches, _locks, _elections, _others):
        yield from group()


# -- leases


def _leases() -> Iterator[tuple[str, Sequence[Step]]]:
    yield (
        "leases",
        [
            Call("lease/grant", {}),
            Call("lease/grant", {"TTL": 100}),
            Call("lease/grant", {"TTL": 100, "ID": 0}),
            Call("lease/timetolive", {"ID": Chosen(0)}),
            Call("lease/revoke", {"ID": Chosen(0)}),
            Call("lease/revoke", {"ID": Chosen(0)}),
            grant(1, 1),
            grant(2, 0),
            grant(3, -5),
            grant(4, 9_000_000_000),
            grant(5, 9_000_000_001),
            grant(6, 1 << 62),
            grant(7, 100),
            grant(7, 100),
            grant(-3, 100),
            Call("lease/timetolive", {"ID": -3}),
            put(b"n", b"1", lease=-3),
            Call("lease/leases", {}),
            put(b"b", b"1", lease=7),
            put(b"a", b"1", lease=7),
            Call("lease/timetolive", {"ID": 7}),
            Call("lease/timetolive", {"ID": 7, "keys": True}),
            Call("kv/lease/timetolive", {"ID": 7, "keys": True}),
            Call("lease/timetolive", {"ID": 99, "keys": True}),
            Call("lease/timetolive", {}),
            Call("lease/keepalive", {"ID": 7}),
            Call("lease/keepalive", {"ID": 99}),
            Call("lease/keepalive", {}),
            Call("lease/keepalive", b'{"ID":7}{"ID":99}'),
            Call("lease/keepalive", b""),
            Call("lease/keepalive", b"{"),
            Call("lease/keepalive", b'{"ID":"x"}'),
            put(b"a", b"2"),
            Call("lease/timetolive", {"ID": 7, "keys": True}),
            Call("lease/revoke", {"ID": 7}),
            Call("kv/lease/revoke", {"ID": 7}),
            Call("lease/revoke", {}),
            EVERYTHING,
            Call("lease/leases", {}),
            Call("kv/lease/leases", {}),
            put(b"a", b"2", lease=7),
        ],
    )
    yield (
        "expiry",
        [
            watch(b"a"),
            grant(8, 2),
            put(b"a", b"1", lease=8),
            Call("kv/range", {"key": b"a", "count_only": True}, until='"revision":"base+2"'),
            get(b"a"),
            Call("lease/timetolive", {"ID": 8, "keys": True}),
            Call("lease/keepalive", {"ID": 8}),
            put(b"a", b"1", lease=8),
        ],
    )


# -- streams


def _watches() -> Iterator[tuple[str, Sequence[Step]]]:
    yield (
        "watch",
        [
            watch(b"a"),
            watch(b"a", range_end=b"c"),
            watch(**ALL),
            watch(b"b", prev_kv=True),
            watch(**ALL, filters=[NOPUT]),
            watch(**ALL, filters=[NODELETE], prev_kv=True),
            watch(**ALL, filters=[NOPUT, NODELETE]),
            watch(b"a", watch_id=7),
            watch(b"a", fragment=True),
            watch(b"a", progress_notify=True),
            *FILLED,
            txn((), [operation(put(b"a", b"t")), operation(delete(b"b")), operation(put(b"e", b"t"))]),
            delete(**ALL),
            put(b"a", b"again"),
        ],
    )
    yield (
        "watch from a revision",
        [
            *FILLED,
            delete(b"b"),
            watch(b"a", start_revision=Rev(1)),
            watch(**ALL, start_revision=Rev(2), prev_kv=True),
            watch(**ALL, start_revision=Rev(6)),
            watch(**ALL, start_revision=Rev(9)),
            watch(**ALL, start_revision=-1),
            watch(**ALL, start_revision=Rev(3), filters=[NODELETE]),
            put(b"a", b"5"),
            put(b"a", b"6"),
            put(b"a", b"7"),
        ],
    )
    yield (
        "watch, compacted",
        [
            *FILLED,
            Call("kv/compaction", {"revision": Rev(4)}),
            watch(b"a", start_revision=Rev(1)),
            watch(b"a", start_revision=Rev(3)),
            watch(b"a", start_revision=Rev(4)),
            watch(b"a", start_revision=Rev(5)),
            put(b"a", b"5"),
        ],
    )
    yield (
        "watch, odd requests",
        [
            watch(b""),
            Stream(Call("watch", {"create_request": {}})),
            watch(b"c", range_end=b"b"),
            watch(b"", range_end=b"\0"),
            Stream(Call("watch", b'{"create_request":{"key":"YQ=="},"unknown":1}')),
            Stream(Call("watch", b'{"createRequest":{"key":"YQ==","prevKv":true,"startRevision":"0"}}')),
            Stream(Call("watch", b'{"create_request":{"key":1}}')),
            Stream(Call("watch", b'{"create_request":{"filters":["NO"]}}')),
            Stream(Call("watch", b'{"create_request":{"filters":[1,"NOPUT"],"key":"YQ=="}}')),
            Stream(Call("watch", b"{")),
            Stream(Call("watch", b"x")),
            put(b"a", b"1"),
            delete(b"a"),
        ],
    )


def _many_watches() -> Iterator[tuple[str, Sequence[Step]]]:
    """Several messages in one body; only one watch of a stream sees events, else their order is open."""
    a, b, c = ({"create_request": {"key": key}} for key in ("YQ==", "Yg==", "Yw=="))
    chosen = {"create_request": {"key": "Yg==", "watch_id": 7}}
    bodies: dict[str, Sequence[Any]] = {
        "two": (a, b),
        "three": (b, a, c),
        "cancelled": (a, b, {"cancel_request": {"watch_id": 1}}),
        "cancelled, first": (b, {"cancel_request": {"watch_id": 0}}, a),
        "cancelled, unknown": (a, {"cancel_request": {"watch_id": 5}}),
        "cancelled, nothing": (a, {"cancel_request": {}}),
        "one id twice": (chosen, chosen, a),
        "progress": ({"progress_request": {}},),
        "progress of a watch": (a, {"progress_request": {}}),
        "camelCase": ({"createRequest": {"key": "Yg=="}}, {"cancelRequest": {"watchId": "0"}}),
        "malformed": (a, {"create_request": {"key": 1}}),
        "empty": (a, {}),
    }
    for name, messages in bodies.items():
        body = b"".join(json.dumps(message).encode() for message in messages)
        stream = Stream(Call("watch", body), answers_first=name != "progress")
        settled = Call("kv/range", {"key": b"a"})
        yield f"watches on one stream, {name}", [stream, settled, put(b"a", b"1"), put(b"a", b"2")]


# -- locks and elections


def _locks() -> Iterator[tuple[str, Sequence[Step]]]:
    waiting = Stream(Call("lock/lock", {"name": b"l", "lease": 12}), answers_first=False, close=False)
    two_wait = Call("kv/range", {"key": b"l/", "range_end": b"l0"}, until='"count":"2"')
    yield (
        "lock",
        [
            grant(11),
            grant(12),
            Call("lock/lock", {"name": b"l", "lease": 11}),
            Call("lock/lock", {"name": b"l", "lease": 11}),
            waiting,
            two_wait,
            Call("lock/unlock", {"key": b"l/b"}),
        ],
    )
    yield (
        "lock, its holder's lease goes",
        [
            grant(11),
            grant(12),
            Call("lock/lock", {"name": b"l", "lease": 11}),
            waiting,
            two_wait,
            Call("lease/revoke", {"ID": 11}),
        ],
    )
    yield (
        "lock, other forms",
        [
            Call("lock/lock", {"name": b"m"}),
            get(b"m/", range_end=b"m0"),
            Call("lock/lock", {"name": b"n", "lease": 99}),
            Call("lock/lock", {}),
            Call("lock/unlock", {"key": b"none"}),
            Call("lock/unlock", {}),
            Call("lock/lock", b"{"),
            Call("lock/lock", {"name": 5}),
            Call("lock/nothing", {}),
        ],
    )


def _elections() -> Iterator[tuple[str, Sequence[Step]]]:
    leader = {"name": b"e", "key": b"e/15", "rev": Rev(1), "lease": 21}
    observe = Stream(Call("election/observe", {"name": b"e"}), answers_first=False)
    waiting = Stream(
        Call("election/campaign", {"name": b"e", "lease": 22, "value": b"two"}),
        answers_first=False,
        close=False,
    )
    yield (
        "election",
        [
            Call("election/leader", {"name": b"e"}),
            Call("election/leader", {}),
            observe,
            grant(21),
            grant(22),
            Call("election/campaign", {"name": b"e", "lease": 21, "value": b"one"}),
            Call("election/leader", {"name": b"e"}),
            Call("election/proclaim", {"leader": leader, "value": b"new"}),
            Call("election/leader", {"name": b"e"}),
            waiting,
            Call("kv/range", {"key": b"e/", "range_end": b"e0"}, until='"count":"2"'),
            Call("election/resign", {"leader": leader}),
            Call("kv/range", {"key": b"e/", "range_end": b"e0"}, until='"count":"1"'),
        ],
    )
    yield (
        "election, other forms",
        [
            Call("election/campaign", {"name": b"e", "lease": 99, "value": b"one"}),
            Call("election/campaign", {}),
            Call("election/proclaim", {}),
            Call("election/proclaim", {"leader": leader, "value": b"x"}),
            Call("election/resign", {}),
            Call("election/resign", {"leader": leader}),
            Call("election/observe", b"{"),
            Call("election/campaign", b"x"),
        ],
    )


# -- everything else


def _others() -> Iterator[tuple[str, Sequence[Step]]]:
    yield (
        "plain pages",
        [
            Call("/version", method="GET"),
            Call("/health", method="GET"),
            Call("/metrics", method="GET"),
            Call("/version", method="POST"),
            Call("/health", method="POST"),
            Call("/nothing", method="GET"),
            Call("/v3", method="GET"),
            Call("/v3/", {}),
            Call("/v3/kv", {}),
            Call("/v3/kv/nothing", {}),
            Call("/v3/kv/range/", {}),
            Call("/v3alpha/kv/range", {"key": b"a"}),
            Call("/v2/keys", method="GET"),
        ],
    )
    for method in ("GET", "PUT", "DELETE", "HEAD", "PATCH"):
        yield f"method {method}", [Call(path, method=method) for path in ("kv/range", "watch", "lease/grant")]
    yield (
        "cluster and maintenance",
        [
            Call("cluster/member/list", {}),
            Call("maintenance/status", {}),
            Call("maintenance/hash", {}),
            Call("maintenance/alarm", {}),
            Call("maintenance/defragment", {}),
            Call("maintenance/alarm", {"action": "GET"}),
        ],
    )
    yield (
        "authentication is off",
        [
            Call("auth/authenticate", {}),
            Call("auth/authenticate", {"name": "root", "password": "secret"}),
            Call("auth/disable", {}),
            Call("auth/enable", {}),
            *(
                Call(f"auth/user/{verb}", {})
                for verb in ("get", "list", "delete", "changepw", "grant", "revoke")
            ),
            *(Call(f"auth/role/{verb}", {}) for verb in ("get", "list", "delete")),
            Call("auth/user/get", {"name": "x"}),
            Call("auth/role/get", {"role": "x"}),
            get(b"a"),
            Call("kv/range", {"key": b"a"}, headers={"authorization": "nonsense"}),
        ],
    )
