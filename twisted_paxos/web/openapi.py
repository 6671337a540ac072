"""The JSON API described in OpenAPI 3.1, made from the messages that the endpoints read and send."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred

from twisted_paxos import __version__
from twisted_paxos.web.endpoints import LASTING, PREFIXES, UNARY
from twisted_paxos.web.health import GetResource
from twisted_paxos.web.replies import (
    ErrorReply,
    LeaderReply,
    LeaseReply,
    SnapshotPiece,
    StreamError,
    WatchReply,
)
from twisted_paxos.web.requests import ElectionName, Empty, LeaseRequest, WatchMessage

REF: Final = "#/components/schemas/"
INT64: Final = {
    "anyOf": [
        {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
        {"type": "string", "pattern": "^-?(0|[1-9][0-9]{0,17})$"},
    ]
}
UINT64: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1},
        {"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$"},
    ]
}
ANYWHERE: Final = (400, 403, 404, 412, 429, 503)
"""What every endpoint may refuse with. Streams, locks and elections refuse with 500 as well, gRPC's code 2,
as with etcd; 501 is for what there is none of here."""

ABOUT: Final = (
    "etcd v3's JSON API. All requests are POST. Fields may also be in camelCase; unknown ones are ignored, "
    "null is not set. Replies leave out what is false, 0 or empty, and write 64-bit numbers as text."
)


class Operation(NamedTuple):
    """One endpoint.

    Attributes:
        path: whole.
        request: what it reads.
        reply: what it answers with; of a stream, each of its messages.
        summary: one line.
        stream: whether the answer is a stream.
    """

    path: str
    request: type[Struct]
    reply: type[Struct]
    summary: str
    stream: bool = False


STREAMS: Final = (
    Operation("watch", WatchMessage, WatchReply, "watch: changes of keys as they happen", True),
    Operation(
        "lease/keepalive", LeaseRequest, LeaseReply, "lease/keepalive: have its time start again", True
    ),
    Operation("election/observe", ElectionName, LeaderReply, "election/observe: each leader in turn", True),
    Operation("maintenance/snapshot", Empty, SnapshotPiece, "maintenance/snapshot: the whole state", True),
)


def operations() -> list[Operation]:
    """Every endpoint of POST, under each prefix."""
    plain = [operation_of(path, kind, serve) for path, (kind, serve) in {**UNARY, **LASTING}.items()]
    return [
        operation._replace(path=prefix + operation.path)
        for prefix in PREFIXES
        for operation in (*plain, *STREAMS)
    ]


class OpenApi(GetResource):
    """``/openapi.json``."""

    def __init__(self) -> None:
        super().__init__()
        self._encoded = b""

    def render_GET(self, request: Any) -> bytes:
        """The description; made when it is first asked for."""
        if not self._encoded:
            self._encoded = msgspec.json.encode(describe(operations(), __version__))
        request.setHeader(b"Content-Type", b"application/json")
        return self._encoded


def operation_of(path: str, request: type[Struct], serve: Any) -> Operation:
    """The operation of a function that answers ``request``; its annotation and docstring tell the rest."""
    reply = get_type_hints(serve)["return"]
    if get_origin(reply) is Deferred:
        (reply,) = get_args(reply)
    return Operation(path, request, reply, summary_of(serve))


def summary_of(thing: Any) -> str:
    """The first sentence of a docstring, without markup."""
    first = (thing.__doc__ or "").strip().partition("\n")[0]
    return re.sub(r"``(.*?)``", r"\1", first)


def describe(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """The whole description.

    Args:
        operations: all endpoints of POST.
        version: of this package.
    """
    listed = list(operations)
    kinds = {kind for operation in listed for kind in (operation.request, operation.reply)}
    ordered = sorted(kinds | {ErrorReply, StreamError}, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(ordered, ref_template=REF + "{name}")
    requests = _reachable({operation.request.__name__ for operation in listed}, components)
    schemas = {name: _schema(schema, name in requests) for name, schema in sorted(components.items())}
    paths: dict[str, Any] = {operation.path: {"post": _post(operation)} for operation in listed}
    for path, (summary, content_type) in _PAGES.items():
        paths[path] = {"get": _get(path, summary, content_type)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "twisted_paxos", "version": version, "description": ABOUT},
        "paths": paths,
        "components": {"schemas": schemas},
    }


_PAGES: Final = {
    "/version": ("The versions that clients look at", "application/json"),
    "/health": ("Whether this node can serve", "application/json"),
    "/openapi.json": ("This description", "application/json"),
}


def _ref(kind: type[Struct]) -> dict[str, str]:
    return {"$ref": REF + kind.__name__}


def _identifier(path: str) -> str:
    return re.sub(r"\W+", "_", path).strip("_")


def _post(operation: Operation) -> dict[str, Any]:
    schema: dict[str, Any] = _ref(operation.reply)
    said = "Done"
    if operation.stream:
        said = "A stream: one of these a line"
        schema = {"type": "object", "properties": {"result": schema, "error": _ref(StreamError)}}
    return {
        "operationId": _identifier(operation.path),
        "summary": operation.summary,
        "requestBody": {"content": {"application/json": {"schema": _ref(operation.request)}}},
        "responses": {
            "200": {"description": said, "content": {"application/json": {"schema": schema}}},
            **{str(status): _refused(status) for status in _statuses(operation)},
        },
    }


def _statuses(operation: Operation) -> list[int]:
    """The errors that an endpoint may answer with; any other one is a fault of the node."""
    found = list(ANYWHERE)
    if operation.stream or re.search("/(lock|election)/", operation.path):
        found.append(500)
    if re.search("/(cluster|auth)/", operation.path):
        found.append(501)
    return sorted(found)


def _refused(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": _ref(ErrorReply)}},
    }


def _get(path: str, summary: str, content_type: str) -> dict[str, Any]:
    answer = {"description": "As it is", "content": {content_type: {"schema": {"type": "object"}}}}
    return {
        "operationId": _identifier(path),
        "summary": summary,
        "responses": {"200": answer, "default": {"description": "It cannot"}},
    }


def _reachable(names: Iterable[str], components: Mapping[str, Any]) -> set[str]:
    """Names of components, and of all that they refer to."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _refs(components[name])
    return found


def _refs(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix(REF)
        for item in schema.values():
            yield from _refs(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from _refs(item)


def _schema(schema: dict[str, Any], request: bool) -> dict[str, Any]:
    """A component; what requests consist of is as lenient as its reader."""
    made = {name: item for name, item in schema.items() if name != "title"}
    if "description" in made:
        made["description"] = re.sub(r"`+", "", made["description"].partition("\n")[0])
    if request:
        made.pop("required", None)
        fields = made.get("properties", {}).items()
        # The tag that tells our own commands apart is none of etcd's.
        made["properties"] = {name: _lenient(item) for name, item in fields if not _is_tag(name, item)}
    return made


def _is_tag(name: str, schema: Mapping[str, Any]) -> bool:
    return name == "type" and len(schema.get("enum", ())) == 1


def _lenient(schema: Any) -> Any:
    """Numbers as text too, enumerations by number too."""
    if isinstance(schema, list):
        return [_lenient(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {name: item for name, item in schema.items() if name == "default"}
    if schema.get("type") == "integer":
        return {**(UINT64 if schema.get("minimum") == 0 else INT64), **rest}
    if "enum" in schema:
        numbers = {"type": "integer", "minimum": 0, "maximum": len(schema["enum"]) - 1}
        return {"anyOf": [{"enum": schema["enum"]}, numbers], **rest}
    return {name: _lenient(item) for name, item in schema.items()}
