"""What a node tells its operator of the cluster, as it changes: who leads, and what its vote waits for."""

from __future__ import annotations

from twisted.logger import Logger

from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.replica import Replica

log = Logger()

WAITING_AFTER_S = 1.0
"""So long after its start a node that cannot vote yet begins to say for whom it waits."""

WAITING_INTERVAL_S = 5.0
"""How often it says so."""


class Reports:
    """Looks at a replica from time to time, and logs a line for whatever has changed.

    Args:
        replica: the node's.
        started_s: when the node started, in seconds.
    """

    def __init__(self, replica: Replica, started_s: float) -> None:
        self._replica = replica
        self._waiting_next_s = started_s + WAITING_AFTER_S
        self._leader = NO_BALLOT
        self._needs_replace = False

    def look(self, now_s: float) -> None:
        """Log what is new at ``now_s``, in seconds."""
        self._look_at_leader()
        self._look_at_incarnation()
        self._look_at_formation(now_s)

    def _look_at_leader(self) -> None:
        leader = self._replica.leader
        if leader != self._leader and leader.number:
            self._leader = leader
            log.info("{leader} leads, ballot {ballot}", leader=leader.uid, ballot=str(leader))

    def _look_at_incarnation(self) -> None:
        """Whether the cluster knows another life of this node, and when this one votes in its place."""
        needed = self._replica.formation.needs_replace
        if needed == self._needs_replace:
            return
        self._needs_replace = needed
        if needed:
            text = (
                "the cluster knows an earlier life of node {uid}: this storage, incarnation {incarnation}, is"
                " new. It fetches what was chosen, and votes once a majority has agreed to it"
            )
        else:
            text = "node {uid} votes again, as the new incarnation {incarnation}"
        me = self._replica.me
        log.warn(text, uid=me.uid, incarnation=me.incarnation)

    def _look_at_formation(self, now_s: float) -> None:
        """For whom a node waits that cannot vote yet."""
        formation = self._replica.formation
        if now_s <= self._waiting_next_s or not formation.waiting_for:
            return
        self._waiting_next_s = now_s + WAITING_INTERVAL_S
        lost = formation.identity.lost
        log.info(
            "no vote yet ({reason}): waiting for {names}; start them, or check --peer",
            reason="its storage was lost: a member must say who votes" if lost else "first start",
            names=", ".join(formation.waiting_for),
        )
