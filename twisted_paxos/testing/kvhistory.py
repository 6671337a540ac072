"""What clients of the key-value store did and saw in a simulated run, as plain records."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest


@dataclass(eq=False)
class Request:
    """One command, or one question, of one client.

    Attributes:
        host: whose.
        payload: the JSON of it.
        kind: ``command``, ``read`` (linearizable) or ``serializable``.
        start_s, end_s: from when to when; the end is infinity while the outcome is not known.
        outcome: ``open``, ``done``, ``refused`` (never done), or ``unknown`` (perhaps done, perhaps later).
        slot, index: a command's place in the log, when done.
        data: the answer, when done.
    """

    host: str
    payload: bytes
    kind: str
    start_s: float
    end_s: float = math.inf
    outcome: str = "open"
    slot: int = 0
    index: int = 0
    data: bytes = b""

    @property
    def is_read(self) -> bool:
        """Whether it is no command."""
        return self.kind != "command"

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the log."""
        return self.slot, self.index

    def __str__(self) -> str:
        at = f" at {self.slot}.{self.index}" if self.slot else ""
        what = self.payload.decode(errors="replace")
        when = f"{self.start_s:.4f} to {self.end_s:.4f} s"
        return f"{self.kind} {what} of {self.host} ({when}{at}, {self.outcome})"


@dataclass(eq=False)
class Watching:
    """One watch, from its start to its end.

    Attributes:
        host: whose.
        request: what it watches.
        begun_s, seen_revision: when it was created, and what its client had seen by then.
        started_s, first_revision: when a node had it first, and where it begins; 0: not yet.
        batches: what it gave, and when.
        ended: empty while it goes on; ``closed``, ``died`` with its process, or why it was cancelled.
        ended_s: when.
        compact_revision: with a cancellation, where history began then.
        next_revision: at the end of the run, everything before it was given.
    """

    host: str
    request: WatchRequest
    begun_s: float
    seen_revision: int
    started_s: float = math.inf
    first_revision: int = 0
    batches: list[tuple[float, WatchBatch]] = field(default_factory=list)
    ended: str = ""
    ended_s: float = math.inf
    compact_revision: int = 0
    next_revision: int = 0

    def __str__(self) -> str:
        asked = self.request
        what = f"{asked.key!r}..{asked.range_end!r} from {self.first_revision}"
        return f"watch of {what} by {self.host} since {self.begun_s:.4f} s"


class Use(NamedTuple):
    """A holder used what a lock guards.

    Attributes:
        name: of the lock.
        at_s: when.
        key, token: the holder's.
        looked: it asked `Place.held` just before.
        others: (token, for how many seconds more it is sure) of each other that held it then, as it believed.
        sure_s: for how many seconds more it was sure itself.
    """

    name: str
    at_s: float
    key: bytes
    token: int
    looked: bool
    others: tuple[tuple[int, float], ...]
    sure_s: float


class Grant(NamedTuple):
    """A place became somebody's turn: when, of what, with which key and token, and whether it was held."""

    at_s: float
    name: str
    key: bytes
    token: int
    held: bool = True


class Seen(NamedTuple):
    """An observer of an election was shown a leader: when, whose observer, which, and its fencing token."""

    at_s: float
    observer: str
    name: str
    token: int


class KvHistory:
    """All of it.

    Attributes:
        requests, watchings, grants, uses, seen: what clients did, in order.
        sent: how often each payload was sent as a command.
        sure_s: lease id -> when a holder last was sure that it lives.
        applied_s: slot -> when a node first had applied it.
        applied: slot -> the (client, sequence) that had an effect there, at the first node.
        jumps_s: when a node's clock jumped ahead.
        problems: (check, what) that were noticed on the spot.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.sent: Counter[bytes] = Counter()
        self.watchings: list[Watching] = []
        self.grants: list[Grant] = []
        self.uses: list[Use] = []
        self.seen: list[Seen] = []
        self.sure_s: dict[int, float] = {}
        self.applied_s: dict[int, float] = {}
        self.applied: dict[int, list[tuple[str, int]]] = {}
        self.jumps_s: list[float] = []
        self.problems: list[tuple[str, str]] = []
