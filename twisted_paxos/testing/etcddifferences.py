"""Every difference from etcd that is accepted, with its reason; `docs/http-api.md` shows this table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from twisted_paxos.testing.etcdanswers import Answer
from twisted_paxos.testing.etcdrequests import Call


class Accepted(Struct, frozen=True):
    """One accepted difference.

    Attributes:
        name: short, for counts.
        what: how the answers differ.
        why: the reason.
        applies: whether it explains a pair of answers (etcd's, ours) to a call.
    """

    name: str
    what: str
    why: str
    applies: Callable[[Call, Answer, Answer], bool]


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
)


def accepted(call: Call, theirs: Answer, ours: Answer) -> str | None:
    """The name of the accepted difference that explains two answers; None when none does."""
    return next((entry.name for entry in ACCEPTED if entry.applies(call, theirs, ours)), None)


def markdown() -> str:
    """The table as the documentation has it."""
    rows = [f"| {entry.what} | {entry.why} |" for entry in ACCEPTED]
    return "\n".join(["| difference | reason |", "|---|---|", *rows])
