"""Every difference from etcd that is accepted, with its reason; `docs/http-api.md` shows this table."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from twisted_paxos.testing.etcdanswers import Answer
from twisted_paxos.testing.etcdrequests import PLAIN, Call, Place, Rev, written


class Accepted(Struct, frozen=True):
    """One accepted difference.

    Attributes:
        name: short, for counts.
        what: how the answers differ.
        why: the reason.
        applies: whether it explains a pair of answers (etcd's, ours) to a call.
        parts: the stores differ from there on: what follows in the sequence says nothing.
    """

    name: str
    what: str
    why: str
    applies: Callable[[Call, Answer, Answer], bool]
    parts: bool = False


INVALID_ARGUMENT: Final = 3
UNKNOWN: Final = 2
UNAUTHENTICATED: Final = 16
GO_ERRORS: Final = re.compile(
    r"json: |invalid character|unexpected |illegal base64|unknown value|EOF$|proto: |parsing |invalid UTF"
)
"""How the messages of Go's libraries begin, as far as they come through."""


def _malformed(call: Call, theirs: Answer, ours: Answer) -> bool:
    """Both refuse what is not the JSON of a request, with the same status and code."""
    return (
        theirs.status == ours.status
        and theirs.error()[0] == ours.error()[0]
        and theirs.error()[0] in (INVALID_ARGUMENT, UNKNOWN)
        and bool(GO_ERRORS.match(theirs.error()[1]))
        and theirs.documents[1:] == ours.documents[1:]
    )


def _base64(call: Call, theirs: Answer, ours: Answer) -> bool:
    """etcd refuses the base64, ours reads it."""
    return ours.status == 200 and theirs.error()[1].startswith("illegal base64 data")


def _enumeration(call: Call, theirs: Answer, ours: Answer) -> bool:
    """A number without a name: etcd takes it for something else."""
    return theirs.status == 200 and ours.status >= 400 and ours.error()[1].startswith("unknown value ")


def _token(call: Call, theirs: Answer, ours: Answer) -> bool:
    """Nobody gave out the token that was sent."""
    return "authorization" in call.headers and theirs.error()[0] == UNAUTHENTICATED and ours.status == 200


def _redirect(call: Call, theirs: Answer, ours: Answer) -> bool:
    """etcd sends a browser to a page that is not there."""
    return (theirs.status, ours.status) == (301, 404)


def _deletion_at_start(call: Call, theirs: Answer, ours: Answer) -> bool:
    """The same but for deletions at the very revision from which is watched."""
    if not call.path.endswith("watch") or not isinstance(call.body, Mapping):
        return False
    start = call.body.get("create_request", {}).get("start_revision")
    if not isinstance(start, Rev):
        return False
    at = f"base{start.after:+d}"

    def rest(answer: Answer) -> list[Any]:
        return [document for document in answer.documents if not _deletes_at(document, at)]

    return rest(theirs) == rest(ours) and (theirs.status, theirs.content_type) == (
        ours.status,
        ours.content_type,
    )


def _deletes_at(document: Any, revision: str) -> bool:
    event = document.get("event", {}) if isinstance(document, Mapping) else {}
    return event.get("type") == "DELETE" and event["kv"]["mod_revision"] == revision


def _malformed_later(call: Call, theirs: Answer, ours: Answer) -> bool:
    """etcd's stream goes on; ours has ended with the error that a malformed first message has."""
    if not call.path.endswith("watch") or not theirs.status == ours.status == 200:
        return False
    errors = [one["error"] for one in ours.documents if isinstance(one, Mapping) and "error" in one]
    return [error["grpc_code"] for error in errors] == [UNKNOWN] and theirs.documents[-1:] == ["open"]


def _duplicate(call: Call, theirs: Answer, ours: Answer) -> bool:
    """One of the two refuses a transaction with a deletion whose end is not behind its key."""
    said = (theirs.error()[1], ours.error()[1])
    return said.count(DUPLICATE) == 1 and any(_is_inverted(deletion) for deletion in _deletions(_body(call)))


def _body(call: Call) -> Any:
    """The body in the plain spelling."""
    if not isinstance(call.body, bytes):
        return written(call.body, PLAIN, Place())
    with contextlib.suppress(ValueError):
        return json.loads(call.body)
    return None


def _is_inverted(deletion: Mapping[str, Any]) -> bool:
    end = deletion.get("range_end", deletion.get("rangeEnd"))
    if not isinstance(end, str) or not end:
        return False
    with contextlib.suppress(ValueError):
        return base64.b64decode(end) <= base64.b64decode(str(deletion.get("key", "")))
    return False


def _deletions(body: Any) -> Iterator[Mapping[str, Any]]:
    """All deletions in a transaction."""
    if isinstance(body, Mapping):
        for name, item in body.items():
            if name in ("request_delete_range", "requestDeleteRange") and isinstance(item, Mapping):
                yield item
            else:
                yield from _deletions(item)
    elif isinstance(body, list):
        for item in body:
            yield from _deletions(item)


DUPLICATE: Final = "etcdserver: duplicate key given in txn request"

ACCEPTED: Final = (
    Accepted(
        "malformed",
        "The message for JSON that is malformed or of a wrong type; status and code are the same",
        "etcd's are those of Go's libraries",
        _malformed,
    ),
    Accepted(
        "base64",
        "Base64 may use the URL-safe alphabet and leave out its padding",
        "Later versions of etcd take both, and clients use them",
        _base64,
    ),
    Accepted(
        "enumeration",
        "A number that an enumeration does not have is refused",
        "etcd 3.4 takes it: an unknown comparison counts as true, an unknown order as none",
        _enumeration,
    ),
    Accepted(
        "token",
        "An `authorization` header is ignored",
        "There are no users; etcd refuses a token that it did not give out even with authentication off",
        _token,
    ),
    Accepted(
        "redirect",
        "`GET /v3` is 404 at once",
        "etcd redirects to `/v3/`, which is 404",
        _redirect,
    ),
    Accepted(
        "deletion at the compacted revision",
        "A watch from exactly the compacted revision shows a deletion at that revision",
        "With etcd that depends on how far its compaction has got",
        _deletion_at_start,
    ),
    Accepted(
        "malformed later",
        "Malformed JSON behind the first message of a watch's body ends the stream with an error",
        "etcd passes over the rest of the body in silence",
        _malformed_later,
    ),
    Accepted(
        "duplicate key",
        "A transaction with a put and a deletion from a key on (`range_end` `\\0`) around it is refused",
        "etcd's check takes such a range for an empty one; it refuses every other range beside such a put",
        _duplicate,
        parts=True,
    ),
)


def accepted(call: Call, theirs: Answer, ours: Answer) -> Accepted | None:
    """The accepted difference that explains two answers; None when none does."""
    return next((entry for entry in ACCEPTED if entry.applies(call, theirs, ours)), None)


def markdown() -> str:
    """The table as the documentation has it."""
    rows = [f"| {entry.what} | {entry.why} |" for entry in ACCEPTED]
    return "\n".join(["| difference | reason |", "|---|---|", *rows])
