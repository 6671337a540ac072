"""Ballot leader election: who should take over, and when.

In the manner of Omni-Paxos (Ng, Haridi, Carbone, EuroSys 2023, section 5), with two
changes that `docs/protocol.md` explains: nodes tell each other whether the leader that they
follow works for them, and a node takes over only when neither it nor any it hears has one.

Must always hold: being elected decides nothing. It only starts phase 1; safety is the
ballots' business, and this module may be wrong at any time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import NamedTuple

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.messages import Status
from twisted_paxos.core.quorum import Membership

LEADER_SILENT_HEARTBEATS = 2.5
"""A leader that was not heard for this long does not work for this node (any more)."""

MAJORITY_SILENT_HEARTBEATS = 4
"""A peer counts as reached while it answered a probe sent within this time."""

TAKE_OVER_HEARTBEATS = 4
"""How long a take-over may last, one's own or another's, before the next try."""

JITTER_HEARTBEATS = 0.5
"""Candidates wait a random part of this first, so that seldom two try at once."""

ALIGN_HEARTBEATS = 0.5
"""A round begins up to this much early when another node's heartbeat comes: of any two nodes one is in the
second half of its round then, so they come to begin together."""

PROBES_PER_HEARTBEAT = 2
"""How often an unanswered heartbeat is sent in its round: a lost datagram is no lost peer."""

ROUND_TRIPS_MAX = 128
"""Nodes whose round trips are counted; observers come and go, under any id."""


class TakeOver(enum.Enum):
    """What a node should do about a missing leader."""

    NO = "nothing"
    ASK = "start a round out of turn, then ask again"
    GO = "start phase 1"


class Heard(NamedTuple):
    """What was last heard of a peer.

    Attributes:
        status: what it said of itself.
        heard_s: when that came.
        reached_s: when the last probe was sent that it answered: both directions worked then.
        voter: its incarnation votes, as far as this node knows.
        round_trip_s: from the round's first probe to its latest answer; None before the first.
    """

    status: Status
    heard_s: float
    reached_s: float
    voter: bool
    round_trip_s: float | None = None


class Election:
    """One node's view of who leads.

    Args:
        uid: the node's id.
        membership: the voters.
        heartbeat_s: length of a round in seconds.
        random: gives numbers in [0, 1), for jitter.
        now_s: the time of the start.

    Attributes:
        leader: the ballot of the leader that this node follows; NO_BALLOT when it never heard one.
        round: the number of the current round.
        round_trips: how long answers took, by node.
    """

    def __init__(
        self, uid: str, membership: Membership, heartbeat_s: float, random: Callable[[], float], now_s: float
    ) -> None:
        self.uid = uid
        self.membership = membership
        self.heartbeat_s = heartbeat_s
        self.leader = NO_BALLOT
        self.round = 0
        self.highest_seen = NO_BALLOT
        self.round_trips: dict[str, Histogram] = {}
        self._random = random
        self._heard: dict[str, Heard] = {}
        self._owed: dict[str, int] = {}
        self._probe_sent_s: dict[int, float] = {}
        self._leader_heard_s = float("-inf")
        self._votes_heard_s: dict[str, float] = {}
        self._next_round_s = now_s
        self._next_probe_s = now_s
        self._asked_s: float | None = None
        self._take_over_at_s = 0.0
        # Whoever has just started hears first what there is.
        self._hold_until_s = now_s + heartbeat_s * (1 + JITTER_HEARTBEATS * random())

    # -- what is heard

    def saw(self, ballot: ProposalID) -> None:
        """Note a ballot, whosever: a take-over goes above all of them."""
        if ballot > self.highest_seen:
            self.highest_seen = ballot

    def heard(self, uid: str, status: Status, voter: bool, answers_round: int | None, now_s: float) -> None:
        """Note what ``uid`` says of itself; ``answers_round`` when it answers a probe."""
        if voter:
            self.saw(max(status.ballot, status.leader, status.promised))
        old = self._heard.get(uid)
        reached_s = old.reached_s if old else float("-inf")
        round_trip_s = old.round_trip_s if old else None
        sent_s = self._probe_sent_s.get(answers_round) if answers_round is not None else None
        if sent_s is not None:
            if sent_s > reached_s:
                # The first answer to this round's probes.
                round_trip_s = now_s - sent_s
                self._observe_round_trip(uid, round_trip_s)
            # From when the probe was sent, not from when the answer came: it may have been slow.
            reached_s = max(reached_s, sent_s)
        self._heard[uid] = Heard(status, now_s, reached_s, voter, round_trip_s)
        if voter:
            self._votes_heard_s[uid] = now_s
            if answers_round == self.round and not self.silent():
                # Nobody is left to be asked again in this round.
                self._next_probe_s = self._next_round_s
        if status.leading and status.leader_works:
            if voter:
                self.heard_leader(status.ballot, now_s)
        elif status.ballot == self.leader:
            # It has given way, and says so.
            self._leader_heard_s = float("-inf")

    def _observe_round_trip(self, uid: str, round_trip_s: float) -> None:
        if uid not in self.round_trips:
            if len(self.round_trips) >= ROUND_TRIPS_MAX:
                return
            self.round_trips[uid] = Histogram()
        self.round_trips[uid].observe(round_trip_s)

    def heard_leader(self, ballot: ProposalID, now_s: float) -> None:
        """A leader with a majority shows itself, by a heartbeat, an Accept or a Commit."""
        self.saw(ballot)
        if ballot >= self.leader:
            self.leader = ballot
            self._leader_heard_s = now_s

    def hold(self, now_s: float, failed: bool = False) -> None:
        """Leave a take-over its time: another's (a promise was given), or, after one's own failed, any.

        Whoever failed waits longer than those that it made wait: else it would win each race, and
        fail again, as a node that is far behind does.
        """
        heartbeats = TAKE_OVER_HEARTBEATS * (2 if failed else 1) + JITTER_HEARTBEATS * self._random()
        self._hold_until_s = max(self._hold_until_s, now_s + self.heartbeat_s * heartbeats)

    def voter_silent_s(self, uid: str, now_s: float) -> float:
        """For how long no voting incarnation of ``uid`` was heard, whatever else of it was."""
        return now_s - self._votes_heard_s.get(uid, float("-inf"))

    def forget(self, uid: str) -> None:
        """Drop what was heard of a node that is no longer known."""
        self._heard.pop(uid, None)
        self.round_trips.pop(uid, None)

    @property
    def peers(self) -> Mapping[str, Heard]:
        """What was last heard of each node; not to be changed."""
        return self._heard

    # -- what follows from it

    def reached(self, now_s: float, heartbeats: float = MAJORITY_SILENT_HEARTBEATS) -> set[str]:
        """Ids of the voters that answered lately, this node not included."""
        since_s = now_s - heartbeats * self.heartbeat_s
        return {uid for uid, heard in self._heard.items() if heard.voter and heard.reached_s >= since_s}

    def reaches_majority(self, voter: bool, now_s: float) -> bool:
        """Whether this node, when it votes, and those that it reaches are a majority."""
        # Asked for each heartbeat that a leader hears: no set is made for it.
        since_s = now_s - MAJORITY_SILENT_HEARTBEATS * self.heartbeat_s
        voters, count = self.membership.voters, int(voter and self.uid in self.membership.voters)
        for uid, heard in self._heard.items():
            if heard.voter and heard.reached_s >= since_s and uid in voters:
                count += 1
        return count >= self.membership.majority

    def leader_works(self, promised: ProposalID, now_s: float) -> bool:
        """Whether a leader (another node) was heard lately and this node may still accept from it."""
        silent_s = now_s - self._leader_heard_s
        return self.leader >= promised and silent_s < LEADER_SILENT_HEARTBEATS * self.heartbeat_s

    def leader_works_for_others(self, now_s: float) -> bool:
        """Whether any voter that this node hears has a leader that works."""
        since_s = now_s - LEADER_SILENT_HEARTBEATS * self.heartbeat_s
        return any(h.status.leader_works for h in self._heard.values() if h.voter and h.heard_s >= since_s)

    def take_over(self, promised: ProposalID, now_s: float) -> TakeOver:
        """Whether this voter, which neither leads nor prepares, should start phase 1 now.

        A node that has just been cut off misses the leader before it misses the others. So it asks
        them once more, and counts only answers to that; they also say whether a leader works for them.
        """
        wanted = (
            now_s >= self._hold_until_s
            and self.reaches_majority(True, now_s)
            and not self.leader_works(promised, now_s)
            and not self.leader_works_for_others(now_s)
        )
        if not wanted:
            self._asked_s = None
            return TakeOver.NO
        if self._asked_s is None:
            self._asked_s = now_s
            self._take_over_at_s = now_s + JITTER_HEARTBEATS * self.heartbeat_s * self._random()
            return TakeOver.ASK
        answered = {u for u in self.reached(now_s) if self._heard[u].reached_s >= self._asked_s}
        if now_s < self._take_over_at_s or not self.membership.is_majority(answered | {self.uid}):
            return TakeOver.NO
        self._asked_s = None
        return TakeOver.GO

    # -- rounds

    def probes(self, now_s: float) -> bool | None:
        """Whether heartbeats are due: True for a new round (to all), False for those silent in this one."""
        if now_s >= self._next_round_s:
            self.start_round(now_s)
            return True
        if now_s >= self._next_probe_s:
            self._next_probe_s = now_s + self.heartbeat_s / PROBES_PER_HEARTBEAT
            return False
        return None

    def align_round(self, now_s: float) -> None:
        """Another node's round has just begun: so does this one's, if it is near.

        Rounds that begin together cost an idle node a third fewer turns.
        """
        if self._next_round_s - now_s < ALIGN_HEARTBEATS * self.heartbeat_s:
            self._next_round_s = min(self._next_round_s, now_s)

    def is_round_due(self, now_s: float) -> bool:
        """Whether a round is to begin."""
        return now_s >= self._next_round_s

    def owe(self, uid: str, round_number: int) -> None:
        """The heartbeat that this node is about to send answers one of ``uid``."""
        self._owed[uid] = round_number

    def take_owed(self) -> dict[str, int]:
        """What a heartbeat to all answers."""
        owed, self._owed = self._owed, {}
        return owed

    def start_round(self, now_s: float) -> None:
        """Count a new round; also out of turn, when there is news to tell."""
        self.round += 1
        self._probe_sent_s[self.round] = now_s
        self._probe_sent_s.pop(self.round - 16, None)
        self._next_round_s = now_s + self.heartbeat_s
        self._next_probe_s = now_s + self.heartbeat_s / PROBES_PER_HEARTBEAT

    def silent(self) -> tuple[str, ...]:
        """Ids of the voters that have not answered this round's probe."""
        sent_s = self._probe_sent_s[self.round]
        heard = self._heard
        return tuple(
            uid
            for uid in self.membership.voters
            if uid != self.uid and (uid not in heard or heard[uid].reached_s < sent_s)
        )

    def deadline_s(self, promised: ProposalID, now_s: float) -> float:
        """When something of the above may next change by time alone."""
        deadline_s = min(self._next_round_s, self._next_probe_s)
        works_until_s = self._leader_heard_s + LEADER_SILENT_HEARTBEATS * self.heartbeat_s
        if now_s < works_until_s < deadline_s:
            deadline_s = works_until_s
        if now_s < self._hold_until_s < deadline_s:
            deadline_s = self._hold_until_s
        if self._asked_s is not None and now_s < self._take_over_at_s < deadline_s:
            deadline_s = self._take_over_at_s
        return deadline_s
