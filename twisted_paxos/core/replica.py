"""One node's roles together: acceptor, proposer, learner, election, formation, requests.

Each role decides alone; this module is where one role's news is another's business: a higher
ballot ends a leadership, a leader's heartbeat moves the learner, a chosen slot lets the
proposer go on. It is still pure: what comes in is a message or the time, what goes out is
`Effects`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted_paxos.core import limits
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import NOTHING, OTHERS, Effects, Send, joined
from twisted_paxos.core.election import Election, TakeOver
from twisted_paxos.core.formation import Formation
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Admit,
    Chosen,
    Command,
    Commit,
    Fetch,
    Forward,
    ForwardReply,
    Heartbeat,
    HeartbeatReply,
    Nack,
    OfRun,
    Prepare,
    Promise,
    Replace,
    Sender,
    Status,
    decode_value,
    is_change,
)
from twisted_paxos.core.proposer import Phase, Proposer
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.reads import Reads
from twisted_paxos.core.records import Recovered
from twisted_paxos.core.requests import Requests

OLD_LIFE_SILENT_HEARTBEATS = 5
"""An incarnation that was heard as a voter within this time is not replaced: it lives."""

IDS_PER_BOOT = 1 << 32

SERVES_HEARTBEATS = 2.0
"""A leader that reached no majority for this long, not yet long enough to give way, says so to clients."""

ADMIT_HEARTBEATS = 5
"""How often a node that was lost asks to be admitted again."""

TAKE_OVER_LIMIT_HEARTBEATS = 4
"""A take-over that is not complete after this long is tried again with a higher ballot."""


LEARN_S = 0.005
LEARN_LATE_S = 0.010
LEARN_SLOTS = 16
LEARN_BYTES = 16 << 10
"""Where nobody waits for it, a node learns what Accepts told as chosen with the first one after so long, or
by itself; or once it is so many slots, or so much is held that is not known as chosen."""

BEFORE_FORMATION = (Heartbeat, HeartbeatReply, *Formation.takes)
"""What a node listens to before it knows who founded the cluster."""


class ReplicaSettings(NamedTuple):
    """What a replica is told.

    Attributes:
        uid: the node's id.
        voters: the configured ids.
        heartbeat_s: length of a heartbeat round.
        disk_stall_s: a leader gives way when a sync takes longer.
        client: where its clients connect, for status tables.
    """

    uid: str
    voters: tuple[str, ...]
    heartbeat_s: float = 0.1
    disk_stall_s: float = 2.0
    client: str = ""


class _Told(NamedTuple):
    """``uid``, who leads ``ballot``, knows slots up to ``upto`` as chosen."""

    uid: str
    upto: int
    ballot: ProposalID


class Replica:
    """A node's part in the protocol.

    Args:
        settings: see there.
        recovered: what storage held.
        random: gives numbers in [0, 1), for jitter; nothing that is decided depends on it.
        now_s: the time of the start.

    Attributes:
        disk_waiting_since_s: since when the oldest unfinished write waits; None when there is
            none. Set by whoever performs the effects.
        disk_full: there is no room to write. Set likewise.
        voted, voted_upto: the highest ballot and slot of the Accepteds that left. Set likewise.
        take_overs: how many times it started phase 1.
    """

    def __init__(
        self,
        settings: ReplicaSettings,
        recovered: Recovered,
        random: Callable[[], float],
        now_s: float,
    ) -> None:
        self.settings = settings
        self.membership = Membership(settings.voters, {})
        self.formation = Formation(recovered, self.membership, settings.heartbeat_s * 2)
        self.log = Log(recovered.chosen_upto, recovered.log_start, recovered.entries)
        self.acceptor = Acceptor(self.log, recovered.promised, self.formation.is_voter, settings.uid)
        self.learner = Learner(self.log, self.membership, random)
        self.proposer = Proposer(
            settings.uid, self.log, self.membership, self.learner, random, 2 * settings.heartbeat_s
        )
        self.election = Election(settings.uid, self.membership, settings.heartbeat_s, random, now_s)
        # Numbers go on from start to start: an answer to an earlier one must never fit a new question.
        first_id = self.me.boot * IDS_PER_BOOT
        self.requests = Requests(random, first_id)
        self.reads = Reads(settings.uid, self.acceptor, self.proposer, random, self.me.boot_id)
        self.disk_waiting_since_s: float | None = None
        self.disk_full = False
        self.voted, self.voted_upto = NO_BALLOT, 0
        self.take_overs = 0
        self._took_over_s = now_s
        self._told_works = False
        self._next_admit_s = now_s
        self._told: _Told | None = None
        self._told_s = 0.0
        self._routes: dict[type, Callable[[Sender, Any, float], Effects]] = {
            Prepare: self._on_prepare,
            Accept: self._on_accept,
            Accepted: self._on_accepted,
            Commit: self._on_commit,
            Promise: self._on_promise,
            Nack: self._on_nack,
            Heartbeat: self._on_heartbeat,
            HeartbeatReply: self._on_heartbeat_reply,
            Fetch: self._on_fetch,
            Chosen: self._on_chosen,
            Forward: self._on_forward,
            ForwardReply: self._on_forward_reply,
            Admit: self._on_admit,
            **dict.fromkeys(Reads.takes, self.reads.receive),
            **dict.fromkeys(Formation.takes, self._on_formation),
        }

    # -- what it is

    @property
    def me(self) -> Sender:
        """How this start of this node signs."""
        return self.formation.me

    @property
    def leader(self) -> ProposalID:
        """The ballot of the leader to turn to; NO_BALLOT when there is none at present."""
        if self.proposer.phase is Phase.LEADING:
            return self.proposer.ballot
        if self.proposer.phase is Phase.PREPARING or self.election.leader.uid == self.settings.uid:
            return NO_BALLOT
        return self.election.leader

    def role(self) -> str:
        """``leader``, ``candidate``, ``follower``, ``observer`` or ``joining``, for people."""
        if self.settings.uid not in self.settings.voters:
            return "observer"
        if not self.membership.votes_on(self.log.chosen_upto + 1, self.me):
            return "joining"
        names = {Phase.LEADING: "leader", Phase.PREPARING: "candidate", Phase.IDLE: "follower"}
        return names[self.proposer.phase]

    def disk_stalled(self, now_s: float) -> bool:
        """Whether a write has waited for its sync too long, or finds no room."""
        since_s = self.disk_waiting_since_s
        late = since_s is not None and now_s - since_s > self.settings.disk_stall_s
        return late or self.disk_full

    def leader_works(self, now_s: float) -> bool:
        """Whether the leader that this node follows, or is, can make progress."""
        if self.proposer.leading:
            return self.election.reaches_majority(self.acceptor.votes, now_s) and not self.disk_stalled(now_s)
        return self.election.leader_works(self.acceptor.promised, now_s)

    def serves(self, now_s: float) -> bool:
        """Whether clients do well to stay here: a leader must have heard a majority very lately."""
        if self.proposer.leading:
            reached = self.election.reached(now_s, SERVES_HEARTBEATS) | {self.settings.uid}
            return self.membership.is_majority(reached) and not self.disk_stalled(now_s)
        # Heard is not enough for a client: what is forwarded must arrive there.
        return self.leader.uid in self.election.reached(now_s) and self.leader_works(now_s)

    def status(self, now_s: float) -> Status:
        """What it says of itself in heartbeats."""
        return Status(
            ballot=self.proposer.ballot,
            leading=self.proposer.leading,
            leader=self.leader,
            leader_works=self.leader_works(now_s),
            promised=self.acceptor.promised,
            voter=self.acceptor.votes,
            chosen_upto=self.log.chosen_upto,
            log_start=self.log.log_start,
            client=self.settings.client,
            voted=self.voted,
            voted_upto=self.voted_upto,
        )

    # -- messages

    def receive(self, sender: Sender, message: object, now_s: float) -> Effects:
        """Take one message, whoever may have sent it, however late; `flush` is to follow in the same turn."""
        admitted, effects = self.formation.admit(sender, message)
        if not admitted:
            # Whoever says it: a ballot that was in use is in use.
            if isinstance(message, Accepted):
                self._give_way_to(message.ballot)
            return effects
        if not self.membership.formed and not isinstance(message, BEFORE_FORMATION):
            # Nothing is learnt before it is known who founded the cluster: a change of members
            # that passed by would be missed.
            return effects
        return self._routes[type(message)](sender, message, now_s)

    def _give_way_to(self, ballot: ProposalID) -> None:
        """A higher ballot was seen: nothing more leaves under this node's own."""
        self.election.saw(ballot)
        if ballot > self.proposer.ballot and self.proposer.phase is not Phase.IDLE:
            self.proposer.give_way()

    def _on_prepare(self, sender: Sender, message: Prepare, now_s: float) -> Effects:
        if not self.membership.is_member(sender) or message.ballot.uid != sender.uid:
            return Effects()
        effects = self.acceptor.on_prepare(sender, message)
        if self.acceptor.promised == message.ballot and sender.uid != self.settings.uid:
            self._give_way_to(message.ballot)
            self.election.hold(now_s)
        return effects

    def _on_accept(self, sender: Sender, message: Accept, now_s: float) -> Effects:
        if not self.membership.is_member(sender) or message.ballot.uid != sender.uid:
            return Effects()
        effects = self.acceptor.on_accept(sender, message)
        if sender.uid != self.settings.uid:
            self._give_way_to(message.ballot)
            if message.ballot >= self.acceptor.promised:
                self.election.heard_leader(message.ballot, now_s)
            self._tell(_Told(sender.uid, message.chosen_upto, message.ballot), now_s)
        return effects

    def _tell(self, told: _Told, now_s: float) -> None:
        """Keep in mind what an Accept tells as chosen: its vote is in a hurry, this is not; see `flush`."""
        if self._told is None:
            if told.upto <= self.log.chosen_upto:
                return
            self._told_s = now_s
        elif (told.ballot, told.upto) < (self._told.ballot, self._told.upto):
            return
        self._told = told

    def _on_accepted(self, sender: Sender, message: Accepted, now_s: float) -> Effects:
        if not self.membership.is_member(sender):
            return Effects()
        if message.ballot > self.proposer.ballot:
            self._give_way_to(message.ballot)
        last = max(message.slots, default=0)
        self.formation.reported(sender, message.ballot, last)
        if last <= self.log.chosen_upto:
            # The vote that comes after a majority, for every slot: it changes nothing.
            return NOTHING
        return self._learned(self.learner.on_accepted(sender, message, now_s), now_s)

    def _on_commit(self, sender: Sender, message: Commit, now_s: float) -> Effects:
        if not self.membership.is_member(sender) or message.ballot.uid != sender.uid:
            return Effects()
        self._give_way_to(message.ballot)
        if message.ballot >= self.acceptor.promised:
            self.election.heard_leader(message.ballot, now_s)
        return self._learned(self.learner.on_commit(sender, message, now_s), now_s)

    def _on_promise(self, sender: Sender, message: Promise, now_s: float) -> Effects:
        self.formation.reported(sender, message.ballot)
        led = self.proposer.leading
        effects = self.proposer.on_promise(sender, message, now_s)
        if self.proposer.leading and not led:
            effects = joined(effects, self._news(now_s))
        return effects

    def _on_nack(self, sender: Sender, message: Nack, now_s: float) -> Effects:
        if not self.membership.is_member(sender):
            return Effects()
        self.election.saw(message.promised)
        return self.proposer.on_nack(message)

    def _on_fetch(self, sender: Sender, message: Fetch, now_s: float) -> Effects:
        return self.learner.on_fetch(sender, message)

    def _on_chosen(self, sender: Sender, message: Chosen, now_s: float) -> Effects:
        for entry in message.entries:
            self._give_way_to(entry.ballot)
        effects = self._learned(self.learner.on_chosen(sender, message, now_s), now_s)
        led = self.proposer.leading
        effects = joined(effects, self.proposer.advance(now_s))
        if self.proposer.leading and not led:
            effects = joined(effects, self._news(now_s))
        return effects

    def _on_heartbeat(self, sender: Sender, message: Heartbeat, now_s: float) -> Effects:
        effects = self._heard(sender, message.status, message.answers.get(self.settings.uid), now_s)
        self.election.align_round(now_s)
        if self.election.is_round_due(now_s):
            # This node's own heartbeat leaves in the same turn.
            self.election.owe(sender.uid, message.round)
            return effects
        reply = HeartbeatReply(message.round, self.status(now_s))
        return joined(effects, Effects(sends=[Send((sender.uid,), reply)]))

    def _on_heartbeat_reply(self, sender: Sender, message: HeartbeatReply, now_s: float) -> Effects:
        return self._heard(sender, message.status, message.round, now_s)

    def _heard(self, sender: Sender, status: Status, answers_round: int | None, now_s: float) -> Effects:
        if sender.uid == self.settings.uid:
            return Effects()
        voter = status.voter and self.membership.is_member(sender)
        if status.leading and voter:
            self._give_way_to(status.ballot)
        self.election.heard(sender.uid, status, voter, answers_round, now_s)
        if voter and status.voted_upto:
            self.formation.reported(sender, status.voted, status.voted_upto)
        leads = status.ballot if status.leading and voter else None
        if not self.membership.formed:
            return Effects()
        chosen = self.learner.on_chosen_upto(sender.uid, status.chosen_upto, leads, now_s)
        effects = self._learned(chosen, now_s)
        if self.proposer.phase is not Phase.IDLE:
            effects = joined(effects, self.proposer.advance(now_s))
        return joined(effects, self._elect(now_s))

    def _on_forward(self, sender: Sender, message: Forward, now_s: float) -> Effects:
        fits = all(len(command.payload) <= limits.PAYLOAD_MAX_BYTES for command in message.commands)
        taken = fits and self.proposer.enqueue(message.commands, forwarded=True)
        return Effects(sends=[Send((sender.uid,), ForwardReply(message.forward_id, taken))])

    def _on_forward_reply(self, sender: Sender, message: ForwardReply, now_s: float) -> Effects:
        self.requests.on_reply(sender.uid, message, now_s)
        return Effects()

    def _on_formation(self, sender: Sender, message: object, now_s: float) -> Effects:
        effects = self.formation.receive(sender, message, now_s)
        self.acceptor.votes = self.formation.is_voter
        return effects

    # -- members

    def _learned(self, effects: Effects, now_s: float) -> Effects:
        """Slots were chosen: take note of changes of members before anything else is decided.

        The new sets are stored ahead of the slot that made them: a crash between the two must not
        leave a node that takes the slot as known and votes by the old sets.
        """
        if not effects.chosen:
            return effects
        changes = [entry for entry in effects.chosen if is_change(entry.value)]
        if not changes:
            return effects
        first = Effects()
        for entry in changes:
            first.add(self._change(entry.slot, decode_value(entry.value).replace, now_s))
        first.add(effects)
        return first

    def _change(self, slot: int, replace: Replace | None, now_s: float) -> Effects:
        effects = Effects()
        if replace is None or self.membership.latest.get(replace.uid) != replace.old:
            return effects
        was_voter = self.acceptor.votes
        self.membership.replace(replace.uid, replace.new, slot + limits.ALPHA)
        self.membership.forget_below(slot + 1)
        effects.records.append(self.formation.save_sets())
        self.acceptor.votes = self.formation.is_voter
        if replace.uid == self.settings.uid and was_voter and replace.new != self.me.incarnation:
            effects.lost = f"incarnation {self.me.incarnation} was replaced by {replace.new}"
        elif self.proposer.leading:
            # The promises of the old set do not bind the new voters: phase 1 again.
            effects.add(self._take_over(now_s))
        return effects

    def _on_admit(self, sender: Sender, message: Admit, now_s: float) -> Effects:
        """A node that lost an earlier life asks to vote again: the set that knew it decides."""
        behind = self.log.chosen_upto - message.chosen_upto
        pending = self.membership.latest_from > self.log.chosen_upto + 1
        silent_s = self.election.voter_silent_s(sender.uid, now_s)
        if (
            self.proposer.leading
            and self.membership.latest.get(sender.uid) == message.old != sender.incarnation
            and behind <= limits.ALPHA
            and not pending
            and silent_s > OLD_LIFE_SILENT_HEARTBEATS * self.settings.heartbeat_s
        ):
            self.proposer.change(Replace(sender.uid, message.old, sender.incarnation))
            return self.proposer.advance(now_s)
        return Effects()

    def _ask_to_be_admitted(self, now_s: float) -> Effects:
        caught_up = self.learner.missing_upto <= self.log.chosen_upto
        if not self.formation.needs_replace or not caught_up or now_s < self._next_admit_s:
            return Effects()
        self._next_admit_s = now_s + ADMIT_HEARTBEATS * self.settings.heartbeat_s
        leader = self.leader
        if not leader.number:
            return Effects()
        admit = Admit(self.membership.latest[self.settings.uid], self.log.chosen_upto)
        return Effects(sends=[Send((leader.uid,), admit)])

    def install(self, slot: int, sets: Sequence[tuple[int, dict[str, str]]], now_s: float) -> Effects:
        """A snapshot of ``slot``, with the voters as of then, is in storage and applied."""
        assert slot > self.log.chosen_upto, "a snapshot never takes back what is known"
        effects = Effects()
        self.log.install(slot)
        newest = self.membership.latest_from if self.membership.formed else 0
        if sets and sets[-1][0] > newest:
            self.membership.load(sets)
            effects.records.append(self.formation.save_sets())
            self.acceptor.votes = self.formation.is_voter
        self.proposer.give_way()
        effects.add(self._learned(self.learner.installed(now_s), now_s))
        return effects

    def compacted(self, log_start: int) -> None:
        """Storage has let go of everything below ``log_start``."""
        self.log.log_start = max(self.log.log_start, log_start)

    # -- elections

    def _elect(self, now_s: float) -> Effects:
        """Give way or take over, as things stand now."""
        proposer, effects = self.proposer, Effects()
        if proposer.leading and not self.leader_works(now_s):
            proposer.give_way()
        limit_s = TAKE_OVER_LIMIT_HEARTBEATS * self.settings.heartbeat_s
        if proposer.phase is Phase.PREPARING and now_s - self._took_over_s > limit_s:
            proposer.give_way()
            self.election.hold(now_s, failed=True)
        works = self.leader_works(now_s)
        if self._told_works and not works:
            effects.add(self._news(now_s))
        self._told_works = works
        if proposer.phase is Phase.IDLE and self.acceptor.votes and not self.disk_stalled(now_s):
            answer = self.election.take_over(self.acceptor.promised, now_s)
            if answer is TakeOver.ASK:
                effects.add(self._news(now_s))
            elif answer is TakeOver.GO:
                effects.add(self._take_over(now_s))
        return effects

    def _take_over(self, now_s: float) -> Effects:
        self.take_overs += 1
        above = max(self.acceptor.promised, self.election.highest_seen)
        effects = self.proposer.take_over(above, now_s)
        self.acceptor.promised = self.proposer.ballot
        self._took_over_s = now_s
        return effects

    def _news(self, now_s: float) -> Effects:
        """A heartbeat out of turn: who leads, or that nobody does, is worth telling at once."""
        self.election.start_round(now_s)
        return Effects(sends=[Send(OTHERS, self._heartbeat(self.election.take_owed(), now_s))])

    def _heartbeat(self, answers: dict[str, int], now_s: float) -> Heartbeat:
        return Heartbeat(self.election.round, self.status(now_s), answers)

    # -- commands

    def submit(self, commands: Sequence[Command], owner: object) -> None:
        """Take commands of this node's clients; `flush` passes them on.

        Raises:
            Overloaded: too much waits already.
            ValueTooLarge: a payload is over the limit.
        """
        self.requests.submit(commands, owner)

    def flush(self, now_s: float, hurries: Callable[[], bool] = lambda: True) -> Effects:
        """Go on as far as this turn allows: one value, or one Forward, for all the commands that came in.

        What Accepts told as chosen is learnt here: at once, where somebody waits for it, else when a few
        milliseconds or some slots have come together, as learning and applying cost less then.

        Args:
            hurries: whether anybody but this node's own commands waits for what is chosen.
        """
        effects = self.requests.pump(self.leader, self.settings.uid, self.proposer.enqueue, now_s)
        if self._told is not None and (self.requests or self._is_time_to_learn(now_s) or hurries()):
            effects = joined(effects, self.learn(now_s))
        if self.proposer.phase is Phase.IDLE:
            return effects
        return joined(effects, self.proposer.advance(now_s))

    def learn(self, now_s: float) -> Effects:
        """Take what Accepts told as chosen, whether it is time or not: nothing more may come."""
        told, self._told = self._told, None
        if told is None:
            return NOTHING
        chosen = self.learner.on_chosen_upto(told.uid, told.upto, told.ballot, now_s)
        return self._learned(chosen, now_s)

    def _is_time_to_learn(self, now_s: float) -> bool:
        assert self._told is not None
        slots = self._told.upto - self.log.chosen_upto
        return now_s >= self._told_s + LEARN_S or slots >= LEARN_SLOTS or self.log.bytes >= LEARN_BYTES

    @property
    def has_commands(self) -> bool:
        """Whether there may be something to propose, or to pass on."""
        return self.requests.has_unsent or self.proposer.has_queue

    def read(self, now_s: float) -> tuple[int, Effects]:
        """Begin a linearizable read; see `Reads.ask`."""
        return self.reads.ask(self.leader, now_s)

    def applied(self, runs: Sequence[OfRun], log_time_ms: int, wanted_time_ms: int | None = None) -> None:
        """A slot was applied here; the state machine waits for log time ``wanted_time_ms``, if any."""
        self.proposer.wanted_time_ms = wanted_time_ms
        self.proposer.applied(runs)
        self.requests.forget_taken()
        self.proposer.clock.logged(log_time_ms)

    # -- time

    def tick(self, now_s: float) -> Effects:
        """Do what time alone makes due; to be called at `deadline_s` or any time earlier."""
        effects = self.formation.tick(now_s)
        self.acceptor.votes = self.formation.is_voter
        effects.add(self._ask_to_be_admitted(now_s))
        due = self.election.probes(now_s)
        if due is not None:
            to, answers = (OTHERS, self.election.take_owed()) if due else (self.election.silent(), {})
            if to:
                effects.sends.append(Send(to, self._heartbeat(answers, now_s)))
        effects.add(self._elect(now_s))
        effects.add(self.learner.tick(now_s))
        effects.add(self.proposer.tick(now_s))
        effects.add(self.requests.tick(now_s))
        effects.add(self.reads.tick(self.leader, now_s))
        effects.add(self.flush(now_s))
        return effects

    def deadline_s(self, now_s: float) -> float:
        """When `tick` must be called at the latest."""
        deadline_s = self.election.deadline_s(self.acceptor.promised, now_s)
        if self._told is not None and self._told_s + LEARN_LATE_S < deadline_s:
            deadline_s = self._told_s + LEARN_LATE_S
        for role in (self.formation, self.learner, self.proposer, self.requests, self.reads):
            role_s = role.deadline_s
            if role_s is not None and role_s < deadline_s:
                deadline_s = role_s
        return deadline_s
