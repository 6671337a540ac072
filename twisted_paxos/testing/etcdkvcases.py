"""Hand-written sequences of `etcdcases` for the key-value service: keys, ranges, spellings, transactions."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final

from twisted_paxos.testing.etcdrequests import (
    ASCEND,
    BY_CREATE,
    BY_KEY,
    BY_MOD,
    BY_VALUE,
    BY_VERSION,
    CREATE,
    DESCEND,
    EQUAL,
    GREATER,
    LEASE,
    LESS,
    MOD,
    NONE,
    NOT_EQUAL,
    VALUE,
    VERSION,
    Call,
    Name,
    Rev,
    Spelling,
    Step,
    Stream,
    delete,
    get,
    grant,
    operation,
    put,
    txn,
)

ALL: Final[dict[str, Any]] = {"key": b"\0", "range_end": b"\0"}
EVERYTHING: Final = get(b"\0", range_end=b"\0")
SPELLINGS: Final = tuple(
    Spelling(camel=camel, text_numbers=text, enum_numbers=numbers, prefix=prefix)
    for camel, text, numbers, prefix in product(
        (False, True), (False, True), (False, True), ("/v3", "/v3beta")
    )
)
LARGE_BYTES: Final = (3 << 19) + 1
FILLED: Final = (put(b"a", b"3"), put(b"b", b"1"), put(b"c", b"2"), put(b"a", b"3"), put(b"d", b""))


def kv_cases() -> Iterator[tuple[str, Sequence[Step]]]:
    """These sequences by name."""
    for group in (_keys, _ranges, _spellings, _values, _txns):
        yield from group()


# -- keys


def _keys() -> Iterator[tuple[str, Sequence[Step]]]:
    yield (
        "put",
        [
            put(b"a"),
            put(b"a", b"w", prev_kv=True),
            put(b"a", b""),
            put(b"a", b"", prev_kv=True),
            put(b"b", prev_kv=True),
            Call("kv/put", {"key": b"c"}),
            Call("kv/put", {"value": b"c"}),
            put(b""),
            put(b"a\0b", b"\0\xff"),
            EVERYTHING,
        ],
    )
    yield (
        "put, values and leases kept",
        [
            put(b"a", ignore_value=True),
            Call("kv/put", {"key": b"a", "ignore_value": True}),
            Call("kv/put", {"key": b"a", "ignore_lease": True}),
            grant(5),
            put(b"a", b"1", lease=5),
            put(b"a", b"2", ignore_value=True),
            put(b"a", b"2", ignore_lease=True, lease=5),
            Call("kv/put", {"key": b"a", "ignore_value": True}),
            get(),
            put(b"a", b"2", lease=5),
            put(b"a", b"2", ignore_lease=True, prev_kv=True),
            get(),
            put(b"a", b"3", lease=6),
            put(b"a", b"3", lease=-1),
            put(b"a", b"3"),
            get(),
        ],
    )
    yield (
        "delete",
        [
            delete(b"a"),
            *FILLED,
            delete(b"a"),
            delete(b"a", prev_kv=True),
            delete(b"b", prev_kv=True),
            delete(b"", prev_kv=True),
            delete(b"c", range_end=b"b"),
            delete(b"", range_end=b"\0"),
            delete(b"c", range_end=b"\0", prev_kv=True),
            delete(b"c", range_end=b"d", prev_kv=True),
            EVERYTHING,
        ],
    )
    yield (
        "compaction",
        [
            *FILLED,
            delete(b"b"),
            Call("kv/compaction", {"revision": Rev(99)}),
            Call("kv/compaction", {"revision": Rev(3)}),
            get(b"a", revision=Rev(2)),
            get(b"a", revision=Rev(3)),
            get(b"a", revision=Rev(4)),
            get(b"a", revision=Rev(99)),
            get(b"a", revision=-1),
            get(b"b", revision=Rev(5)),
            Call("kv/compaction", {"revision": Rev(3)}),
            Call("kv/compaction", {"revision": Rev(2)}),
            Call("kv/compaction", {"revision": Rev(6), "physical": True}),
            Call("kv/compaction", {}),
            Call("kv/compaction", {"revision": -1}),
            get(b"a", revision=Rev(5)),
            EVERYTHING,
        ],
    )
    large = base64.b64encode(b"x" * LARGE_BYTES)
    yield (
        "too large",
        [
            Call("kv/put", b'{"key":"YQ==","value":"' + large + b'"}'),
            Call("kv/put", {"key": b"k" * 3000, "value": b"v" * 100_000}),
            get(b"a"),
            get(b"k" * 3000),
        ],
    )


def _ranges() -> Iterator[tuple[str, Sequence[Step]]]:
    yield (
        "range",
        [
            get(b"a"),
            *FILLED,
            get(b"a"),
            get(b""),
            Call("kv/range", {"range_end": b"\0"}),
            get(b"a", range_end=b"c"),
            get(b"c", range_end=b"a"),
            get(b"b", range_end=b"\0"),
            EVERYTHING,
            get(**ALL, limit=2),
            get(**ALL, limit=5),
            get(**ALL, limit=-1),
            get(**ALL, keys_only=True),
            get(**ALL, count_only=True),
            get(**ALL, count_only=True, limit=1),
            get(b"x", count_only=True),
            get(b"a", serializable=True),
            get(**ALL, revision=Rev(2)),
            get(b"a", revision=Rev(0)),
            get(b"a", revision=Rev(1), keys_only=True),
        ],
    )
    wide: dict[str, Any] = {**ALL, "limit": 3}
    targets = (BY_KEY, BY_VERSION, BY_CREATE, BY_MOD, BY_VALUE)
    sorts = [
        get(**wide, sort_order=order, sort_target=target)
        for order in (NONE, ASCEND, DESCEND)
        for target in targets
    ]
    yield "sorting", [*FILLED, *sorts, *(get(**ALL, sort_target=target) for target in targets)]
    bounds = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")
    filtered = [Call("kv/range", {**ALL, name: Rev(after)}) for name in bounds for after in (0, 1, 3, 5, 9)]
    yield (
        "revision filters",
        [
            *FILLED,
            *filtered,
            get(**ALL, min_mod_revision=Rev(2), max_mod_revision=Rev(4), limit=1),
            get(**ALL, min_mod_revision=-1),
            get(**ALL, min_create_revision=Rev(3), count_only=True),
            get(**ALL, max_create_revision=Rev(2), keys_only=True, sort_order=DESCEND),
        ],
    )


def _spellings() -> Iterator[tuple[str, Sequence[Step]]]:
    for number, spelling in enumerate(SPELLINGS):
        plain = [
            Call("lease/grant", {"ID": 77, "TTL": 500}),
            put(b"a", b"1", lease=77, prev_kv=True),
            put(b"b", b"2", ignore_lease=False),
            get(
                b"a",
                range_end=b"z",
                limit=5,
                sort_order=DESCEND,
                sort_target=BY_MOD,
                min_mod_revision=Rev(1),
                max_create_revision=Rev(9),
            ),
            txn(
                [{"result": NOT_EQUAL, "target": CREATE, "key": b"a", "create_revision": Rev(5)}],
                [operation(get(b"a", keys_only=True)), operation(delete(b"b", prev_kv=True))],
            ),
            Call("lease/timetolive", {"ID": 77, "keys": True}),
            Call("lease/keepalive", {"ID": 77}),
            Call("kv/compaction", {"revision": Rev(1)}),
            Call("maintenance/status", {}),
        ]
        calls = [Call(call.path, call.body, spelling) for call in plain]
        opened = Stream(Call("watch", {"create_request": {"key": b"a", "start_revision": Rev(2)}}, spelling))
        yield f"spelling {number}", [*calls, opened]


def _values() -> Iterator[tuple[str, Sequence[Step]]]:
    key = base64.b64encode(b"a").decode()
    odd: dict[str, tuple[Any, ...]] = {
        "key": (
            1,
            1.5,
            True,
            None,
            [],
            ["YQ=="],
            {},
            "YQ",
            "Y Q==",
            "!",
            "YQ==\n",
            "YQ===",
            "_-8=",
            "+/8=",
            "",
        ),
        "limit": (
            None,
            "1",
            "-1",
            "",
            "x",
            "1.0",
            1.0,
            1.5,
            "1e1",
            1e1,
            True,
            [],
            {},
            1 << 63,
            str(1 << 63),
            "0x1",
        ),
        "sort_order": (None, "ASCEND", "ascend", "", "1", 1, 7, -1, 1.5, True, [], {}, "DESCENDING"),
        "serializable": (None, True, False, "true", "", 1, 0, [], {}),
        "range_end": (None, "AA==", 0, False),
        "revision": (None, "0", 0, "-1", -5),
        "unknown": (1, None, {"a": [1, {}]}, "x"),
        "keysOnly": (True, "x"),
        "keys_only": (True, 1),
        "Key": ("Yg==",),
    }
    for field, values in odd.items():
        sent = [Call("kv/range", json.dumps({"key": key, field: value}).encode()) for value in values]
        yield f"values of {field}", [put(b"a", b"1"), put(b"b", b"2"), *sent]
    bodies = (
        *(
            b"",
            b" ",
            b"null",
            b"[]",
            b"{}",
            b"1",
            b'"x"',
            b"true",
            b"{",
            b'{"key"',
            b'{"key":',
            b'{"key":"YQ=="',
        ),
        *(
            b'{"key":"YQ==",}',
            b'{"key":"YQ=="} x',
            b'{"key":"YQ=="}{"key":"Yg=="}',
            b"{'key':'YQ=='}",
            b"\xff",
        ),
        *(b'{"key":"YQ==","key":"Yg=="}', b'{"key":"\xff"}', b'{"key":"YQ==","limit":NaN}', b"not json"),
        *(b'\xef\xbb\xbf{"key":"YQ=="}', b'{"key":"YQ==","limit":01}', b'{"k\\u0065y":"YQ=="}', b" \n{} \n"),
    )
    for path in ("kv/range", "kv/put", "kv/txn", "lease/grant", "maintenance/status", "lease/leases"):
        yield f"bodies of {path}", [put(b"a", b"1"), *(Call(path, body) for body in bodies)]
    types = (None, "text/plain", "application/x-www-form-urlencoded", "application/json", "application/grpc")
    headers: list[dict[str, str]] = [{"Content-Type": kind} for kind in types if kind]
    yield "content types", [Call("kv/range", {"key": b"a"}, headers=header) for header in headers]
    deep: dict[str, Any] = {"success": [{"request_put": {"key": b"a", "value": b"deep"}}]}
    for _ in range(6):
        deep = {"success": [{"request_txn": deep}]}
    yield "deep", [Call("kv/txn", deep), get(b"a")]


# -- transactions


def _txns() -> Iterator[tuple[str, Sequence[Step]]]:
    won, lost = [operation(put(b"won", b"1"))], [operation(get(b"a"))]
    targets = {
        "version": (VERSION, (0, 1, 2, -1)),
        "create_revision": (CREATE, (0, Rev(1), Rev(2))),
        "mod_revision": (MOD, (0, Rev(2), Rev(3))),
        "value": (VALUE, (b"", b"1", b"2", b"3")),
        "lease": (LEASE, (0, 5, 6)),
    }
    for field, (target, values) in targets.items():
        compares = [
            txn([{"key": key, "target": target, "result": result, field: value}], won, lost)
            for key in (b"a", b"none")
            for result in (EQUAL, GREATER, LESS, NOT_EQUAL)
            for value in values
        ]
        yield f"compare {field}", [grant(5), put(b"a", b"1"), put(b"a", b"2", lease=5), *compares]
    yield (
        "compare, other forms",
        [
            *FILLED,
            txn([{"key": b"a", "target": VERSION, "version": 2}], won),
            txn([{"key": b"a", "version": 2}], won, lost),
            txn([{"key": b"a"}], won, lost),
            txn([{"key": b"none"}], won, lost),
            txn([{"key": b"none", "target": VALUE, "value": b""}], won, lost),
            txn([{"key": b"none", "target": VALUE}], won, lost),
            txn([{"target": VALUE, "value": b""}], won, lost),
            txn([{}], won, lost),
            txn([{"key": b"a", "target": MOD, "version": 2}], won, lost),
            txn([{"key": b"a", "target": VERSION, "result": LESS, "mod_revision": 2}], won, lost),
            txn([{"key": b"a", "target": CREATE, "value": b"x"}], won, lost),
            txn(
                [{"key": b"a", "range_end": b"z", "target": VERSION, "result": GREATER, "version": 0}],
                won,
                lost,
            ),
            txn([{"key": b"a", "range_end": b"z", "target": VERSION, "version": 1}], won, lost),
            txn([{"key": b"x", "range_end": b"z", "target": VERSION, "version": 1}], won, lost),
            txn([{**ALL, "target": MOD, "result": GREATER, "mod_revision": Rev(0)}], won, lost),
            txn([{"key": b"a", "target": Name("NOTHING", 9), "version": 1}], won, lost),
            txn([{"key": b"a", "target": 9, "version": 1}], won, lost),
            txn([{"key": b"a", "result": 9, "version": 1}], won, lost),
        ],
    )
    yield (
        "operations",
        [
            *FILLED,
            txn(),
            txn((), won),
            txn((), [operation(get(**ALL)), operation(put(b"a", b"9", prev_kv=True)), operation(get(b"a"))]),
            txn((), [operation(delete(b"b", prev_kv=True)), operation(get(b"b")), operation(delete(b"b"))]),
            txn((), [{}]),
            txn((), [{}, operation(get(b"a"))]),
            txn((), (), [{"request_range": {"key": ""}}]),
            txn((), [{"request_put": {}}]),
            txn((), [{"request_range": {}}]),
            txn((), [{"request_delete_range": {}}]),
            txn((), [{"request_txn": {}}]),
            txn((), [operation(get(b"a", revision=Rev(1))), operation(get(b"a", revision=Rev(99)))]),
            txn((), [operation(put(b"n", b"1")), operation(get(b"a", revision=Rev(99)))]),
            get(b"n"),
            txn((), [operation(put(b"n", b"1", lease=99))]),
            txn((), [operation(put(b"none", ignore_value=True))]),
            txn((), [operation(Call("kv/put", {"key": b"none", "ignore_value": True}))]),
            txn((), [operation(Call("kv/put", {"key": b"none", "ignore_lease": True}))]),
            txn((), [operation(put(b"a", b"1")), operation(put(b"a", b"2"))]),
            txn((), [operation(put(b"a", b"1")), operation(delete(b"a"))]),
            txn((), [operation(delete(b"a", range_end=b"c")), operation(put(b"b", b"1"))]),
            txn((), [operation(delete(b"a", range_end=b"c")), operation(put(b"c", b"1"))]),
            txn((), [operation(delete(b"a")), operation(delete(b"a"))]),
            txn((), [operation(put(b"x", b"1"))], [operation(put(b"x", b"2"))]),
            EVERYTHING,
        ],
    )
    inner = txn([{"key": b"a", "target": VALUE, "value": b"3"}], [operation(put(b"in", b"1"))], lost)
    nested = txn((), [operation(inner), operation(put(b"out", b"2"))])
    yield (
        "nested",
        [
            *FILLED,
            nested,
            txn((), [operation(nested), operation(get(**ALL, keys_only=True))]),
            txn((), [operation(inner), operation(inner)]),
            txn((), [operation(put(b"in", b"0")), operation(inner)]),
            txn((), [operation(inner), operation(delete(b"in"))]),
            txn((), [operation(txn((), [operation(put(b""))]))]),
            EVERYTHING,
        ],
    )
    many = [operation(put(b"%d" % number, b"v")) for number in range(129)]
    many_compares = [{"key": b"a", "target": VERSION, "version": 1}] * 129
    yield (
        "too many operations",
        [
            txn((), many),
            txn((), many[:128]),
            txn((), (), many),
            txn(many_compares, won, lost),
            txn(many_compares[:128], won, lost),
        ],
    )
