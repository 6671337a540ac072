"""What a node shows of itself to operators: counts, sizes, latencies and recent events.

One `NodeFigures` is one moment of one node. `measures` takes it, `web.metrics` and the status page
show it. Nothing here holds a key, a value or anything else that clients wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.histogram import Distribution
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.statemachine.kvcommands import StoreStatus

NOTES_MAX: Final = 50
"""How many recent events a node remembers."""

NO_DURATIONS: Final = Distribution()


class Note(Struct, frozen=True):
    """Something that happened.

    Attributes:
        number: from 1 since the start of the node.
        at_s: when, in seconds since that start.
        kind: a fixed word: ``start``, ``leader``, ``no_leader``, ``reached``, ``lost``, ``snapshot``,
            ``disk_full`` or ``disk_room``.
        text: one line for people.
    """

    number: int
    at_s: float
    kind: str
    text: str


class Journal:
    """The newest events of a node, `NOTES_MAX` of them."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque(maxlen=NOTES_MAX)
        self._number = 0

    def add(self, at_s: float, kind: str, text: str) -> None:
        """Note one; see `Note`."""
        self._number += 1
        self._notes.append(Note(self._number, round(at_s, 3), kind, text))

    def read(self) -> tuple[Note, ...]:
        """All that are remembered, the oldest first."""
        return tuple(self._notes)


class PeerFigures(Struct, frozen=True, kw_only=True):
    """One other node, as this one sees it.

    Attributes:
        uid: its id.
        heard: something came from it lately.
        reached: it answered a probe lately, so that both directions work.
        voter: it votes, as far as this node knows.
        leading: it says that it leads.
        leader: the ballot of the leader that it follows.
        leader_works: it says that this leader works for it.
        chosen_upto: it says that it knows every slot up to here as chosen.
        round_trip_s: of its latest answer, None before the first.
        round_trips: all of them.
    """

    uid: str
    heard: bool = False
    reached: bool = False
    voter: bool = False
    leading: bool = False
    leader: ProposalID = NO_BALLOT
    leader_works: bool = False
    chosen_upto: int = 0
    round_trip_s: float | None = None
    round_trips: Distribution = NO_DURATIONS


class SnapshotFigures(Struct, frozen=True, kw_only=True):
    """Snapshots of a node since its start.

    Attributes:
        made, failed, fetched: how many.
        durations: of those made, in seconds.
        slot: of the newest complete one, 0 without.
        size_bytes: its size.
        running: one is being made or fetched.
    """

    made: int = 0
    failed: int = 0
    fetched: int = 0
    durations: Distribution = NO_DURATIONS
    slot: int = 0
    size_bytes: int = 0
    running: bool = False


class NodeFigures(Struct, frozen=True, kw_only=True):
    """One moment of one node. Counts are since the start of the node.

    Attributes:
        status: what `paxosctl status` shows.
        voters: ids of the configured voters.
        votes: this node votes.
        heartbeat_s: length of a heartbeat round.
        leader_changes: how often another leader was seen, the first one included.
        take_overs: phases 1 that this node started.
        peers: every other node that is known.
        pending: commands of this node's clients that are not applied yet.
        refused: commands that were not taken, because too much waited or they were too large.
        failed: commands that were chosen and not applied, for want of a session.
        commands: commands applied.
        in_flight: slots that this node, as the leader, has proposed and that are not chosen.
        missing_slots: how many chosen slots this node lacks, as far as it knows.
        fetches: questions for chosen slots that it asked.
        commits: from proposing a slot, as the leader, to knowing it as chosen.
        syncs: from giving a batch to storage to its being durable.
        applies: of one batch of slots by the state machine.
        sent, received: messages by type, datagrams and frames.
        sent_bytes, received_bytes: their sizes.
        send_failures: datagrams that the system refused.
        disk_full: there is no room to write.
        disk_waiting_s: for how long the oldest unfinished write has waited.
        snapshots: see there.
        store: of the key-value store; None with another state machine.
        quota_bytes: how large the store may become.
        sessions: open client sessions.
        clients: connected clients.
        client_drops: connections and frames of clients that were refused, by reason.
        http_clients: connections to the HTTP port.
        http_drops: connections and requests there that were refused, by reason.
        notes: recent events.
    """

    status: NodeStatus
    voters: tuple[str, ...] = ()
    votes: bool = False
    heartbeat_s: float = 0.1
    leader_changes: int = 0
    take_overs: int = 0
    peers: tuple[PeerFigures, ...] = ()
    pending: int = 0
    refused: int = 0
    failed: int = 0
    commands: int = 0
    in_flight: int = 0
    missing_slots: int = 0
    fetches: int = 0
    commits: Distribution = NO_DURATIONS
    syncs: Distribution = NO_DURATIONS
    applies: Distribution = NO_DURATIONS
    sent: Mapping[str, int] = {}
    received: Mapping[str, int] = {}
    sent_bytes: int = 0
    received_bytes: int = 0
    send_failures: int = 0
    disk_full: bool = False
    disk_waiting_s: float = 0.0
    snapshots: SnapshotFigures = SnapshotFigures()
    store: StoreStatus | None = None
    quota_bytes: int = 0
    sessions: int = 0
    clients: int = 0
    client_drops: Mapping[str, int] = {}
    http_clients: int = 0
    http_drops: Mapping[str, int] = {}
    notes: tuple[Note, ...] = ()
