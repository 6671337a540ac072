"""Every difference from etcd that is accepted, with its reason; `docs/http-api.md` shows this table."""

from __future__ import annotations

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
FAILED_PRECONDITION: Final = 9


def _malformed(call: Call, theirs: Answer, ours: Answer) -> bool:
    """Both refuse what is not the JSON of a request, with the same status and code."""
    return (
        400 <= theirs.status == ours.status < 500
        and theirs.error()[0] == ours.error()[0] == INVALID_ARGUMENT
        and "etcdserver" not in theirs.error()[1]
    )


ACCEPTED: Final = (
    Accepted(
        "malformed",
        "The message for JSON that is malformed or of the wrong type; status and code are the same",
        "etcd's are those of Go's JSON library",
        _malformed,
    ),
)


def accepted(call: Call, theirs: Answer, ours: Answer) -> str | None:
    """The name of the accepted difference that explains two answers; None when none does."""
    return next((entry.name for entry in ACCEPTED if entry.applies(call, theirs, ours)), None)


def markdown() -> str:
    """The table as the documentation has it."""
    rows = [f"| {entry.what} | {entry.why} |" for entry in ACCEPTED]
    return "\n".join(["| difference | reason |", "|---|---|", *rows])
