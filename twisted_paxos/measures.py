"""Takes the figures of a node from its parts, and notes the events that operators care about."""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

from twisted_paxos.applier import Applier
from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.election import LEADER_SILENT_HEARTBEATS, Heard
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.replica import Replica
from twisted_paxos.figures import Journal, NodeFigures, PeerFigures, SnapshotFigures
from twisted_paxos.interfaces import INodeStorage
from twisted_paxos.protocols.base import Receiver
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.protocols.messenger import SocketMessenger
from twisted_paxos.snapshots import SnapshotMaker, SnapshotReceiver
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.statemachine.kv import KeyValueStore

_NONE = Histogram()


class Parts(NamedTuple):
    """Where the counts are."""

    replica: Replica
    performer: EffectPerformer
    applier: Applier
    storage: INodeStorage
    receiver: Receiver
    messenger: SocketMessenger
    snapshot_maker: SnapshotMaker
    snapshot_receiver: SnapshotReceiver


class Measures:
    """The figures and the journal of one start of a node.

    Args:
        clock: the reactor.
        parts: of the node.
        peers: ids of the other nodes that are known beforehand.

    Attributes:
        journal: what happened.
        leader_changes: how often another leader was seen.
    """

    def __init__(self, clock: IReactorTime, parts: Parts, peers: tuple[str, ...]) -> None:
        self.journal = Journal()
        self.leader_changes = 0
        self._clock = clock
        self._parts = parts
        self._peers = peers
        self._started_s = clock.seconds()
        self._leader = NO_BALLOT
        self._works = False
        self._reached: set[str] = set()
        self._full = False
        self._snapshot_slot = 0
        me = parts.replica.me
        self.note("start", f"{me.uid} started (start {me.boot})")

    def note(self, kind: str, text: str) -> None:
        """Put an event into the journal."""
        self.journal.add(self._clock.seconds() - self._started_s, kind, text)

    # -- events

    def look(self, now_s: float) -> None:
        """Note what has changed since the last look; called whenever time made something due."""
        self._look_at_leader(now_s)
        reached = self._parts.replica.election.reached(now_s)
        if reached != self._reached:
            self._note_reached(reached)
        if self._parts.performer.full != self._full:
            self._full = not self._full
            text = "the disk is full" if self._full else "the disk has room again"
            self.note("disk_full" if self._full else "disk_room", text)
        slot = self._parts.storage.snapshot_slot
        if slot != self._snapshot_slot:
            self._snapshot_slot = slot
            self.note("snapshot", f"snapshot of slot {slot:,}")

    def _look_at_leader(self, now_s: float) -> None:
        replica = self._parts.replica
        leader, works = replica.leader, replica.leader_works(now_s)
        if works and leader != self._leader and leader != NO_BALLOT:
            self._leader = leader
            self.leader_changes += 1
            self._works = True
            self.note("leader", f"{leader.uid} leads, ballot {leader}")
        elif works != self._works:
            self._works = works
            if works:
                self.note("leader", f"{self._leader.uid} leads on, ballot {self._leader}")
            else:
                self.note("no_leader", "no working leader")

    def _note_reached(self, reached: set[str]) -> None:
        for uid in sorted(reached - self._reached):
            self.note("reached", f"{uid} answers")
        for uid in sorted(self._reached - reached):
            self.note("lost", f"{uid} does not answer")
        self._reached = reached

    # -- figures

    def figures(self, status: NodeStatus) -> NodeFigures:
        """All of this moment; ``status`` is the node's."""
        replica, performer, applier, storage, receiver, messenger, _, _ = self._parts
        now_s = self._clock.seconds()
        machine = applier.state.machine
        waiting_s = performer.waiting_since_s
        return NodeFigures(
            status=status,
            voters=tuple(replica.settings.voters),
            votes=replica.acceptor.votes,
            heartbeat_s=replica.settings.heartbeat_s,
            leader_changes=self.leader_changes,
            take_overs=replica.take_overs,
            peers=self._peer_figures(now_s),
            pending=len(replica.requests),
            refused=replica.requests.refused,
            failed=applier.failed_commands,
            commands=applier.commands,
            in_flight=replica.proposer.in_flight,
            missing_slots=max(0, replica.learner.missing_upto - replica.log.chosen_upto),
            fetches=replica.learner.fetches,
            commits=replica.proposer.commits.read(),
            syncs=performer.syncs.read(),
            applies=applier.applies.read(),
            sent=dict(messenger.sent),
            received=dict(receiver.received),
            sent_bytes=messenger.sent_bytes,
            received_bytes=receiver.received_bytes,
            send_failures=messenger.failed,
            disk_full=performer.full,
            disk_waiting_s=0.0 if waiting_s is None else max(0.0, now_s - waiting_s),
            snapshots=self._snapshot_figures(storage),
            store=machine.status() if isinstance(machine, KeyValueStore) else None,
            quota_bytes=machine.limits.quota_bytes if isinstance(machine, KeyValueStore) else 0,
            sessions=len(applier.state.sessions),
            notes=self.journal.read(),
        )

    def _snapshot_figures(self, storage: INodeStorage) -> SnapshotFigures:
        maker, receiver = self._parts.snapshot_maker, self._parts.snapshot_receiver
        return SnapshotFigures(
            made=maker.made,
            failed=maker.failed,
            fetched=receiver.fetched,
            durations=maker.durations.read(),
            slot=storage.snapshot_slot,
            size_bytes=storage.snapshot_bytes,
            running=maker.running is not None or receiver.active,
        )

    def _peer_figures(self, now_s: float) -> tuple[PeerFigures, ...]:
        election = self._parts.replica.election
        reached = election.reached(now_s)
        heard = election.peers
        uids = sorted({*self._peers, *heard})
        return tuple(self._peer(uid, heard.get(uid), uid in reached, now_s) for uid in uids)

    def _peer(self, uid: str, heard: Heard | None, reached: bool, now_s: float) -> PeerFigures:
        if heard is None:
            return PeerFigures(uid=uid)
        election = self._parts.replica.election
        status = heard.status
        # Not only voters: what an observer answers counts as well.
        silent_s = LEADER_SILENT_HEARTBEATS * election.heartbeat_s
        return PeerFigures(
            uid=uid,
            heard=now_s - heard.heard_s < silent_s,
            reached=reached or (not heard.voter and now_s - heard.reached_s < 2 * silent_s),
            voter=heard.voter,
            leading=status.leading,
            leader=status.leader,
            leader_works=status.leader_works,
            chosen_upto=status.chosen_upto,
            round_trip_s=heard.round_trip_s,
            round_trips=election.round_trips.get(uid, _NONE).read(),
        )
