"""What the comparison with etcd sends, written once for two servers, and how it is spelt in JSON.

Revisions are relative to where a sequence began, because the servers need not stand at the same one. A body
is a dict of etcd's field names in which bytes, `Rev`, `Chosen` and `Name` stand for what JSON spells in
several ways; a `Spelling` says in which.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec import Struct


class Rev(NamedTuple):
    """A revision: so many after the one at which the sequence began."""

    after: int


class Chosen(NamedTuple):
    """The id of the lease of this number, from 0, among those whose ids the server chose itself."""

    number: int


class Name(NamedTuple):
    """A value of an enumeration."""

    name: str
    number: int


class Spelling(Struct, frozen=True, kw_only=True):
    """How a body is written down; all of these mean the same.

    Attributes:
        camel: ``rangeEnd`` for ``range_end``.
        text_numbers: numbers as strings.
        enum_numbers: enumerations as numbers.
        prefix: where the API is.
    """

    camel: bool = False
    text_numbers: bool = False
    enum_numbers: bool = False
    prefix: str = "/v3"


PLAIN: Final = Spelling()


class Call(Struct, frozen=True):
    """One request and its whole answer.

    Attributes:
        path: below the prefix when it begins without a slash, else all of it.
        body: see the module; bytes or text are sent as they are.
        spelling: how it is written.
        method, headers: as in HTTP.
        until: the call is sent again until the answer contains this text (in compact JSON).
        node: which of our nodes is asked, from 0.
    """

    path: str
    body: Mapping[str, Any] | Sequence[Any] | bytes = b""
    spelling: Spelling = PLAIN
    method: str = "POST"
    headers: Mapping[str, str] = {}
    until: str = ""
    node: int = 0


class Stream(Struct, frozen=True):
    """A request whose answer goes on while others follow; it is read at the end of the sequence.

    Attributes:
        call: the request.
        answers_first: whether its first document is there before the next step; a lock that waits has none.
        close: the client goes away at the end; else the server has to end the answer.
    """

    call: Call
    answers_first: bool = True
    close: bool = True


Step: TypeAlias = Call | Stream


class Place(Struct):
    """What a server chose by itself in this sequence.

    Attributes:
        base: the revision at which it began.
        leases: ids of leases, in the order in which it chose them.
    """

    base: int = 1
    leases: list[int] = []


def written(value: Any, spelling: Spelling, place: Place) -> Any:
    """``value`` as the JSON module takes it."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Rev(after=after):
            return written(place.base + after, spelling, place)
        case Chosen(number=number):
            return written(place.leases[number] if number < len(place.leases) else 0, spelling, place)
        case Name(name=name, number=number):
            return number if spelling.enum_numbers else name
        case bool() | None | str() | float():
            return value
        case int():
            return str(value) if spelling.text_numbers else value
        case Mapping():
            return {
                (camel(name) if spelling.camel else name): written(item, spelling, place)
                for name, item in value.items()
            }
        case Sequence():
            return [written(item, spelling, place) for item in value]
    raise TypeError(f"a request cannot contain {value!r}")


def camel(name: str) -> str:
    """``range_end`` as ``rangeEnd``."""
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), name)


def path_of(call: Call) -> str:
    """The whole path."""
    return call.path if call.path.startswith("/") else f"{call.spelling.prefix}/{call.path}"


EQUAL, GREATER, LESS, NOT_EQUAL = (
    Name(name, number) for number, name in enumerate(("EQUAL", "GREATER", "LESS", "NOT_EQUAL"))
)
VERSION, CREATE, MOD, VALUE, LEASE = (
    Name(name, number) for number, name in enumerate(("VERSION", "CREATE", "MOD", "VALUE", "LEASE"))
)
NONE, ASCEND, DESCEND = (Name(name, number) for number, name in enumerate(("NONE", "ASCEND", "DESCEND")))
BY_KEY, BY_VERSION, BY_CREATE, BY_MOD, BY_VALUE = (
    Name(name, number) for number, name in enumerate(("KEY", "VERSION", "CREATE", "MOD", "VALUE"))
)
NOPUT, NODELETE = Name("NOPUT", 0), Name("NODELETE", 1)


def put(key: bytes, value: bytes = b"v", **fields: Any) -> Call:
    """A put."""
    return Call("kv/put", {"key": key, "value": value, **fields})


def get(key: bytes = b"a", **fields: Any) -> Call:
    """A range request."""
    return Call("kv/range", {"key": key, **fields})


def delete(key: bytes, **fields: Any) -> Call:
    """A deletion."""
    return Call("kv/deleterange", {"key": key, **fields})


def txn(compare: Sequence[Any] = (), success: Sequence[Any] = (), failure: Sequence[Any] = ()) -> Call:
    """A transaction; empty lists are left out."""
    parts = {"compare": compare, "success": success, "failure": failure}
    return Call("kv/txn", {name: part for name, part in parts.items() if part})


def operation(call: Call) -> dict[str, Any]:
    """A call as a member of a transaction's list."""
    kinds = {"put": "request_put", "range": "request_range", "deleterange": "request_delete_range"}
    return {kinds.get(call.path.removeprefix("kv/"), "request_txn"): call.body}


def watch(key: bytes, **fields: Any) -> Stream:
    """A watch that is open until the sequence ends."""
    return Stream(Call("watch", {"create_request": {"key": key, **fields}}))


def grant(lease: int, ttl_s: int = 1000) -> Call:
    """A lease with an id that is given."""
    return Call("lease/grant", {"ID": lease, "TTL": ttl_s})
