"""Random sequences for the comparison with etcd, made and cut down by hypothesis (extra ``test``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from twisted_paxos.testing.etcdexchange import Difference, Exchange
from twisted_paxos.testing.etcdkvcases import SPELLINGS
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
    NODELETE,
    NONE,
    NOPUT,
    NOT_EQUAL,
    VALUE,
    VERSION,
    Call,
    Place,
    Rev,
    Step,
    Stream,
    operation,
    written,
)

SEQUENCE_MAX: Final = 20
SHRINK_SEQUENCES: Final = 60
STREAM_S: Final = 3.0
"""Requests of one sequence; sequences tried to cut a failing one down; how long streams may take in them."""

KEYS: Final = st.sampled_from([b"a", b"b", b"c", b"a\0", b"ab", b"\xff", b"", b"a", b"b"])
ENDS: Final = st.sampled_from([b"\0", b"b", b"c", b"a\0", b"\xff", b"", b"a"])
VALUES: Final = st.sampled_from([b"", b"1", b"2", b"\0\xff"])
LEASES: Final = st.sampled_from([0, 1, 1, 2, 3])
REVISIONS: Final = st.builds(Rev, st.integers(-2, SEQUENCE_MAX)) | st.sampled_from([0, -1])
FLAGS: Final = st.booleans()


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict with some of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def keyed(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A dict with a key, and what else is in ``parts``."""
    first = st.fixed_dictionaries({"key": KEYS})
    return st.tuples(first, *parts).map(lambda dicts: {name: item for d in dicts for name, item in d.items()})


PUTS = keyed(
    some(value=VALUES, lease=LEASES, prev_kv=FLAGS),
    st.sampled_from([{}, {}, {}, {"ignore_value": True}, {"ignore_lease": True}]),
)
RANGES = keyed(
    some(
        range_end=ENDS,
        limit=st.integers(-1, 4),
        revision=REVISIONS,
        sort_order=st.sampled_from([NONE, ASCEND, DESCEND]),
        sort_target=st.sampled_from([BY_KEY, BY_VERSION, BY_CREATE, BY_MOD, BY_VALUE]),
        serializable=st.just(False),
    ),
    some(keys_only=FLAGS) | some(count_only=FLAGS),
    some(min_mod_revision=REVISIONS, max_mod_revision=REVISIONS)
    | some(min_create_revision=REVISIONS, max_create_revision=REVISIONS),
)
DELETES = keyed(some(range_end=ENDS, prev_kv=FLAGS))
COMPARES = keyed(
    some(result=st.sampled_from([EQUAL, GREATER, LESS, NOT_EQUAL])),
    some(range_end=ENDS),
    st.sampled_from(
        [
            ("version", VERSION, st.integers(0, 3)),
            ("create_revision", CREATE, REVISIONS),
            ("mod_revision", MOD, REVISIONS),
            ("value", VALUE, VALUES),
            ("lease", LEASE, LEASES),
        ]
    ).flatmap(lambda field: st.fixed_dictionaries({"target": st.just(field[1]), field[0]: field[2]})),
)
SIMPLE_OPERATIONS = (
    PUTS.map(lambda body: {"request_put": body})
    | RANGES.map(lambda body: {"request_range": body})
    | DELETES.map(lambda body: {"request_delete_range": body})
)


def txns(operations: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Transactions of such operations."""
    lists = st.lists(operations, max_size=3)
    return some(compare=st.lists(COMPARES, max_size=2), success=lists, failure=lists)


OPERATIONS = st.recursive(
    SIMPLE_OPERATIONS,
    lambda inner: txns(inner).map(lambda body: operation(Call("kv/txn", body))),
    max_leaves=4,
)
WATCHES = keyed(
    some(
        range_end=ENDS,
        start_revision=REVISIONS,
        prev_kv=FLAGS,
        filters=st.lists(st.sampled_from([NOPUT, NODELETE]), max_size=2),
    )
)
BODIES: Final[dict[str, tuple[st.SearchStrategy[dict[str, Any]], int]]] = {
    "kv/put": (PUTS, 6),
    "kv/range": (RANGES, 4),
    "kv/deleterange": (DELETES, 2),
    "kv/txn": (txns(OPERATIONS), 6),
    "kv/compaction": (some(revision=REVISIONS, physical=FLAGS), 1),
    "lease/grant": (st.fixed_dictionaries({"ID": st.integers(1, 4), "TTL": st.integers(500, 600)}), 2),
    "lease/revoke": (some(ID=LEASES), 1),
    "lease/keepalive": (some(ID=LEASES), 1),
    "lease/timetolive": (some(ID=LEASES, keys=FLAGS), 1),
    "lease/leases": (st.just({}), 1),
}
"""By path: what is asked, and how often beside the others."""


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A request that is well-formed JSON of the right types; whether it makes sense is another matter."""
    paths = [path for path, (_, weight) in BODIES.items() for _ in range(weight)]
    path = draw(st.sampled_from(paths))
    return Call(path, draw(BODIES[path][0]), draw(st.sampled_from(SPELLINGS)))


JUNK: Final = st.sampled_from(
    [None, 0, 1, -1, 1.5, "", "x", "1", "YQ==", "YQ", True, False, [], {}, [1], {"x": 1}]
)


def _paths_into(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be replaced."""
    found = [here] if here else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        found += _paths_into(item, (*here, name))
    return found


@st.composite
def damaged(draw: st.DrawFn) -> Call:
    """A request with one value of a wrong kind, a field nobody knows, or a body cut short."""
    call = draw(calls())
    body = written(call.body, call.spelling, Place())
    places = _paths_into(body)
    kind = draw(st.sampled_from(["junk", "unknown", "cut"]))
    if kind == "junk" and places:
        *way, last = draw(st.sampled_from(places))
        inner = body
        for name in way:
            inner = inner[name]
        inner[last] = draw(JUNK)
    elif kind == "unknown":
        body["unknown_field"] = draw(JUNK)
    text = json.dumps(body).encode()
    if kind == "cut":
        text = text[: draw(st.integers(0, len(text) - 1))]
    return Call(call.path, text, call.spelling)


def streams() -> st.SearchStrategy[Stream]:
    """A watch."""
    return st.builds(
        lambda body, spelling: Stream(Call("watch", {"create_request": body}, spelling)),
        WATCHES,
        st.sampled_from(SPELLINGS),
    )


STEPS: st.SearchStrategy[Step] = st.one_of(calls(), calls(), calls(), calls(), calls(), damaged(), streams())
SEQUENCES = st.tuples(st.integers(0, 2), st.lists(STEPS, min_size=5, max_size=SEQUENCE_MAX))


class Differs(AssertionError):
    """A sequence to which the two gave different answers."""


def compare_random(exchange: Exchange, requests: int, seed_: int, say: Callable[[str], None]) -> int:
    """Compare until that many random requests were, and print a failing sequence cut down.

    Args:
        exchange: where they are sent.
        requests: how many at least.
        seed_: the same one gives the same requests.
        say: takes lines of output.

    Returns:
        How many differences there are in the smallest failing sequence; 0 if none fails.
    """
    until = exchange.compared + requests
    batch = 0
    while exchange.compared < until:
        failing = _batch(exchange, seed_ * 1_000_003 + batch)
        if failing:
            for number, (step, differences) in enumerate(failing):
                say(f"[random, seed {seed_}] step {number}: {_shown(step)}")
                for difference in differences:
                    say(str(difference))
            return sum(len(differences) for _, differences in failing)
        batch += 1
    return 0


def _shown(step: Step) -> str:
    call = step.call if isinstance(step, Stream) else step
    return f"{call.path} {call.body!r}"


def _batch(exchange: Exchange, seed_: int) -> list[tuple[Step, list[Difference]]]:
    """Twenty sequences; the smallest failing one, step by step."""
    smallest: list[tuple[Step, list[Difference]]] = []
    shrinks = 0

    @seed(seed_)
    @settings(
        max_examples=20,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(SEQUENCES)
    def check(sequence: tuple[int, list[Step]]) -> None:
        nonlocal shrinks
        first, steps = sequence
        if smallest:
            shrinks += 1
            if shrinks > SHRINK_SEQUENCES:
                return
        found = exchange.run(steps, first=first)
        if found:
            smallest[:] = [(step, []) for step in steps]
            smallest[-1][1].extend(found)
            raise Differs(f"{len(found)} answers differ")

    try:
        check()
    except Exception:
        # Once the shrinking is cut off, hypothesis calls the failing sequence flaky; it is the same one.
        if not smallest:
            raise
    return smallest
