"""What the tests of the HTTP resources share."""

from __future__ import annotations

from typing import Any

from twisted.web.test.requesthelper import DummyRequest

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.figures import NodeFigures, Note, PeerFigures, SnapshotFigures
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.statemachine.kvcommands import StoreStatus

BALLOT = ProposalID(3, "A")


def figures(**others: Any) -> NodeFigures:
    """Node A, which leads; ``others`` in place of what is here."""
    syncs = Histogram()
    for duration_s in (0.0009, 0.003, 0.003, 20.0):
        syncs.observe(duration_s)
    status = NodeStatus(
        "A",
        "leader",
        "A",
        BALLOT,
        BALLOT,
        chosen_upto=120,
        applied=118,
        log_bytes=4_096,
        uptime_s=12.5,
        incarnation="00ff",
        dropped={"not_a_message": 2},
        version="1.0",
    )
    given: dict[str, Any] = {
        "status": status,
        "voters": ("A", "B", "C"),
        "votes": True,
        "leader_changes": 2,
        "take_overs": 1,
        "peers": (
            PeerFigures(uid="B", heard=True, reached=True, voter=True, leader=BALLOT, chosen_upto=119),
            PeerFigures(uid="C"),
        ),
        "pending": 5,
        "refused": 4,
        "failed": 1,
        "commands": 400,
        "in_flight": 2,
        "syncs": syncs.read(),
        "sent": {"Accept": 10},
        "received": {"Accepted": 9, "Heartbeat": 7},
        "snapshots": SnapshotFigures(made=1, slot=100, size_bytes=999),
        "store": StoreStatus(7, -1, 3, 640, 2, 6, 1_000),
        "sessions": 8,
        "clients": 9,
        "client_drops": {"too_many": 1},
        "notes": (Note(1, 0.5, "leader", "A leads, ballot 3.A"),),
    }
    return NodeFigures(**{**given, **others})


def get(path: bytes = b"", **headers: str) -> DummyRequest:
    """A GET request; header names with underscores."""
    request = DummyRequest([path])
    for name, value in headers.items():
        request.requestHeaders.setRawHeaders(name.replace("_", "-"), [value])
    return request
