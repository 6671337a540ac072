"""JSON requests to typed messages, as grpc-gateway reads them.

Most bodies are in the plain form (proto names, numbers as numbers, enums by name, padded base64): one
typed decode does for those. Whatever that refuses, or could misread, is read field by field, with all that
protobuf's JSON form allows besides: names in camelCase, int64 as text, enums by number, ``null`` for "not
set", text behind the first value. Base64 may use the URL-safe alphabet and leave out its padding, which
etcd 3.4 does not allow and its successors do.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec
from msgspec import Struct, inspect

from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import (
    INT64_MAX,
    INVALID_ARGUMENT,
    CompareResult,
    CompareTarget,
    SortOrder,
    SortTarget,
)
from twisted_paxos.web.requests import EventFilter

Message = TypeVar("Message", bound=Struct)
Read = Callable[[Any], Any]

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,19})", re.ASCII)
_SPACE = re.compile(r"[ \t\r\n]*")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_scan: Final = json.JSONDecoder(parse_constant=lambda name: _refuse(f"invalid value {name}")).raw_decode


def _refuse(message: str) -> Any:
    raise KeyValueError(INVALID_ARGUMENT, message)


class Reader(Generic[Message]):
    """Reads one kind of message.

    Args:
        kind: its struct.
    """

    def __init__(self, kind: type[Message]) -> None:
        self._plain = msgspec.json.Decoder(kind).decode
        self._lenient: Read = _struct_reader(kind)
        # The typed decoder would pass over a name in camelCase, or written with escapes, as an unknown one.
        other_names = sorted(_camel_names(kind, set()))
        pattern = rf'"(?:{"|".join(other_names)})"|\\' if other_names else r"\\"
        self._needs_care = re.compile(pattern.encode("ascii")).search

    def read(self, body: bytes) -> Message:
        """The message in ``body``; an empty body is an empty message.

        Raises:
            KeyValueError: it is none; with a line that says why.
        """
        if not self._needs_care(body):
            try:
                return self._plain(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # not in the plain form, or wrong: the other way tells which
        return next(self.read_all(body), None) or self._lenient({})

    def read_all(self, body: bytes) -> Iterator[Message]:
        """Every message of a stream's body, one after the other.

        Raises:
            KeyValueError: when it comes to something that is none.
        """
        text = body.decode("utf-8", "replace")
        place = _skip_space(text, 0)
        while place < len(text):
            try:
                value, place = _scan(text, place)
            except json.JSONDecodeError as error:
                _refuse(f"invalid JSON at byte {error.pos}: {error.msg}")
            except (RecursionError, ValueError):
                _refuse("invalid JSON: nested too deeply, or a number of too many digits")
            yield self._lenient({} if value is None else value)
            place = _skip_space(text, place)


def _skip_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None  # it matches nothing, too
    return found.end()


# ------------------------------------------------------------- values, by kind


def _read_bool(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(f"{_shown(value)} is no bool")


def _read_text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(f"{_shown(value)} is no string")


def _int_reader(low: int, high: int) -> Read:
    def read(value: Any) -> int:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            _refuse(f"{_shown(value)} is no {'' if low else 'u'}int64")
        return value

    return read


_read_int64 = _int_reader(-INT64_MAX - 1, INT64_MAX)
_read_uint64 = _int_reader(0, 2 * INT64_MAX + 1)


def _read_bytes(value: Any) -> bytes:
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item <= 255 for item in value):
        return bytes(value)
    if not isinstance(value, str):
        _refuse(f"{_shown(value)} is no base64")
    text = value.encode("utf-8", "replace").translate(_STANDARD, b"\r\n").rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        return _refuse("illegal base64 data")


def _enum_reader(names: tuple[str, ...]) -> Read:
    def read(value: Any) -> str:
        if isinstance(value, str) and value in names:
            return value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return names[value]
        return _refuse(f"unknown value {_shown(value)}: one of {', '.join(names)} is expected")

    return read


def _list_reader(item: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        return tuple(map(item, value)) if isinstance(value, list) else _refuse(f"{_shown(value)} is no list")

    return read


def _struct_reader(kind: type[Struct]) -> Read:
    """Reads an object; fields are made when first needed, because messages may nest."""
    fields: dict[str, tuple[str, Read]] = {}
    empty: dict[str, Any] = {}

    def fill() -> None:
        described = inspect.type_info(kind)
        assert isinstance(described, inspect.StructType)
        for field in described.fields:
            read = _reader_of(field.type)
            fields.setdefault(_camel(field.encode_name), (field.name, read))
            fields[field.encode_name] = (field.name, read)
            if field.required:
                empty[field.name] = _EMPTY[read]

    def read(value: Any) -> Struct:
        if not isinstance(value, dict):
            _refuse(f"{_shown(value)} is no object")
        if not fields:
            fill()
        known = dict(empty)
        for name, content in value.items():
            if content is not None and name in fields:
                attribute, reads = fields[name]
                known[attribute] = reads(content)
        return kind(**known)

    return read


_EMPTY: dict[Read, Any] = {_read_bytes: b"", _read_int64: 0}
_structs: dict[type, Read] = {}


def _reader_of(described: inspect.Type) -> Read:
    if isinstance(described, inspect.UnionType):  # something or None
        described = next(kind for kind in described.types if not isinstance(kind, inspect.NoneType))
    if isinstance(described, inspect.StructType):
        if described.cls not in _structs:
            _structs[described.cls] = _struct_reader(described.cls)
        return _structs[described.cls]
    if isinstance(described, inspect.VarTupleType):
        return _list_reader(_reader_of(described.item_type))
    if isinstance(described, inspect.LiteralType):
        return _enum_reader(_ENUMS[frozenset(described.values)])
    if isinstance(described, inspect.IntType):
        return _read_uint64 if described.ge == 0 else _read_int64
    return _PLAIN[type(described)]


def _camel_names(kind: type[Struct], seen: set[type]) -> set[str]:
    """The names in camelCase that differ from proto's, of ``kind`` and of all that it contains."""
    seen.add(kind)
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    names = set()
    for field in described.fields:
        if _camel(field.encode_name) != field.encode_name:
            names.add(_camel(field.encode_name))
        inner = _struct_within(field.type)
        if inner is not None and inner not in seen:
            names |= _camel_names(inner, seen)
    return names


def _struct_within(described: inspect.Type) -> type[Struct] | None:
    if isinstance(described, inspect.UnionType):
        described = next(kind for kind in described.types if not isinstance(kind, inspect.NoneType))
    if isinstance(described, inspect.VarTupleType):
        described = described.item_type
    return described.cls if isinstance(described, inspect.StructType) else None


_ENUMS: dict[frozenset[Any], tuple[str, ...]] = {
    frozenset(get_args(names)): get_args(names)
    for names in (SortOrder, SortTarget, CompareTarget, CompareResult, EventFilter)
}
"""Names in the order of their numbers, which `msgspec.inspect` does not keep."""

_PLAIN: dict[type, Read] = {
    inspect.BoolType: _read_bool,
    inspect.StrType: _read_text,
    inspect.BytesType: _read_bytes,
}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _shown(value: Any) -> str:
    return ascii(value)[:40]
