"""Answers of two servers, made comparable: what each chooses by itself is replaced by what it stands for."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from twisted_paxos.testing.etcdrequests import Call, Place, path_of

REVISIONS: Final = frozenset({"revision", "create_revision", "mod_revision", "compact_revision", "rev"})
OWN: Final = frozenset(
    {
        *("cluster_id", "member_id", "raft_term", "raftIndex", "raftTerm", "raftAppliedIndex"),
        *("dbSize", "dbSizeInUse", "hash", "memberID", "blob", "remaining_bytes"),
    }
)
"""Fields whose values are a server's own; that they are there, and of which type, is compared."""

UNORDERED: Final = frozenset({"leases", "keys"})
"""Lists that etcd gives in the order of a hash table."""

CHOSEN_FROM: Final = 1 << 16
"""Leases with ids from here on are taken for chosen by the server."""

TTL_SLACK_S: Final = 10
_VERSION = re.compile(r"\d+\.\d+\.\d+$")


class Answer(Struct, frozen=True):
    """What came back, comparable.

    Attributes:
        status: of HTTP; 0 when there was no answer.
        content_type: as it came.
        documents: each JSON document, or the text.
    """

    status: int
    content_type: str
    documents: list[Any]

    def error(self) -> tuple[Any, str]:
        """(gRPC code, message) of an error; (None, "") of anything else."""
        said = self.documents[0] if self.documents else None
        if isinstance(said, dict) and "code" in said:
            return said["code"], str(said.get("message", ""))
        return None, ""


def comparable(call: Call, status: int, content_type: str, documents: Iterable[Any], place: Place) -> Answer:
    """An answer without what is a server's own choice.

    Args:
        call: what was asked.
        documents: decoded JSON, or text.
        place: of the server that answered; learns of leases whose ids the server chose.
    """
    path = path_of(call)
    found = list(documents)
    if path.endswith("lease/grant") and status == 200:
        _learn_lease(call, found, place)
    normal = [_value(document, "", place) for document in found]
    if path.endswith("/watch"):
        normal = _watch_messages(normal)
    if path.endswith("election/observe"):
        normal = [_without_header(document) for document in normal]
    if path.endswith("member/list"):
        normal = [_members(document) for document in normal]
    if path == "/metrics":
        normal = ["metrics"]
    return Answer(status, content_type, normal)


def _learn_lease(call: Call, found: list[Any], place: Place) -> None:
    body = call.body
    given = body.get("ID") if isinstance(body, dict) else None
    if not given and found and isinstance(found[0], dict) and "ID" in found[0]:
        place.leases.append(int(found[0]["ID"]))


def _value(value: Any, name: str, place: Place) -> Any:
    if isinstance(value, dict):
        normal = {field: _value(item, field, place) for field, item in value.items()}
        return _remaining(normal)
    if isinstance(value, list):
        items = [_value(item, name, place) for item in value]
        return sorted(items, key=repr) if name in UNORDERED else items
    if name in REVISIONS:
        return _relative(value, place)
    if name in OWN or (name == "leader" and isinstance(value, str)):
        return f"own {type(value).__name__}"
    if isinstance(value, str):
        return _text(value, name)
    return value


def _relative(value: Any, place: Place) -> Any:
    # A number that is not text is wrong, and stays as it is.
    return f"base{int(value) - place.base:+d}" if isinstance(value, str) else value


def _text(value: str, name: str) -> str:
    if name in ("lease", "ID") and value.lstrip("-").isdigit() and abs(int(value)) >= CHOSEN_FROM:
        return "chosen"
    if name in ("key", "name"):
        return _without_lease(value)
    return "version" if _VERSION.match(value) else value


def _without_lease(key: str) -> str:
    """A lock's key ends with its lease's id in hex."""
    try:
        decoded = base64.b64decode(key, validate=True)
    except binascii.Error:
        return key
    stem, slash, end = decoded.rpartition(b"/")
    if slash and re.fullmatch(rb"[0-9a-f]{5,16}", end):
        return f"{stem!r}/chosen"
    return key


def _remaining(answer: dict[str, Any]) -> dict[str, Any]:
    """Time passes between two servers' answers."""
    granted, left = answer.get("grantedTTL"), answer.get("TTL")
    if isinstance(granted, str) and isinstance(left, str):
        passed_s = int(granted) - int(left)
        if 0 <= passed_s <= TTL_SLACK_S:
            answer["TTL"] = "about grantedTTL"
    return answer


def _members(document: Any) -> Any:
    if not isinstance(document, dict) or "members" not in document:
        return document
    fields = {tuple(sorted(member)) for member in document["members"]}
    return {**document, "members": sorted(fields)}


def _watch_messages(documents: list[Any]) -> list[Any]:
    """Events one by one: how many revisions share a message is a matter of timing, and so is its header."""
    flat: list[Any] = []
    for document in documents:
        result = document.get("result") if isinstance(document, dict) else None
        events = result.get("events") if isinstance(result, dict) else None
        if not isinstance(result, dict) or not events:
            flat.append(document)
            continue
        common = {name: item for name, item in result.items() if name not in ("events", "header")}
        flat += [{**common, "event": event} for event in events]
    return flat


def _without_header(document: Any) -> Any:
    """The revision in its header is that of the moment when it was sent."""
    result = document.get("result") if isinstance(document, dict) else None
    if not isinstance(result, dict):
        return document
    return {"result": {name: item for name, item in result.items() if name != "header"}}


def split_revisions(documents: Iterable[Any]) -> list[str]:
    """Revisions whose events came in more than one message, of one watch; there should be none."""
    seen: set[tuple[str, str]] = set()
    split = []
    for document in documents:
        result = document.get("result", {}) if isinstance(document, dict) else {}
        watch = str(result.get("watch_id", "0"))
        here = {(watch, event["kv"]["mod_revision"]) for event in result.get("events", [])}
        split += [revision for _, revision in here & seen]
        seen |= here
    return split
