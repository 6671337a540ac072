"""The proposer: phase 1 once per leadership, then phase 2, pipelined.

Paxos Made Simple, sections 2.2 and 3; the range phase 1 and the base are rule 3 of
`docs/protocol.md`.

Must always hold:
    * a ballot is durable here before its Prepare leaves, and is never used again after a restart;
    * nothing is proposed before a majority promised and everything up to ``base`` is chosen here;
    * in each slot above base, the value of the highest reported ballot is proposed, or a no-op;
    * one value per (ballot, slot); no slot beyond chosen_upto + ALPHA, so that the voters of
      every slot are known before anything is proposed in it;
    * a leader that learns of a change of members proposes nothing more under its ballot: it takes
      over again, with promises of the new set (the old promises do not bind the new voters);
    * after any sight of a higher ballot nothing more leaves under this one.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Raw

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import EVERYONE, NOTHING, Effects, Send
from twisted_paxos.core.histogram import Histogram
from twisted_paxos.core.learner import Learner
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Command,
    Entry,
    Message,
    Nack,
    OfRun,
    Prepare,
    Promise,
    Replace,
    Sender,
    decode_value,
    encode_change,
    encode_value,
    sequences_of,
)
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import SavePromise
from twisted_paxos.core.runs import Names
from twisted_paxos.core.spreading import Spreading
from twisted_paxos.core.timing import RetryTimer, is_large

COMMAND_OVERHEAD_BYTES = 48
"""Roughly what a command takes beyond its payload, for the sizes of batches and queues."""


class Phase(enum.Enum):
    """Where a proposer stands."""

    IDLE = "idle"
    PREPARING = "preparing"
    LEADING = "leading"


class Proposal:
    """A value on its way to be chosen.

    Attributes:
        value: what is proposed.
        proposed_s: when it was first sent.
        retry_at_s: when it is sent again to those that have not voted.
        tries: how often it was sent.
    """

    __slots__ = ("proposed_s", "retry_at_s", "tries", "value")

    def __init__(self, value: Raw, proposed_s: float, retry_at_s: float) -> None:
        self.value = value
        self.proposed_s = proposed_s
        self.retry_at_s = retry_at_s
        self.tries = 1


class LogClock:
    """Log time: milliseconds that move only while somebody leads, and never back.

    Args:
        step_max_s: it moves at most this far at once (two heartbeats): neither a stopped process
            nor a change of leader lets a lease run out.
    """

    def __init__(self, step_max_s: float = 0.2) -> None:
        self._step_max_s = step_max_s
        self.time_ms = 0.0
        self._logged_ms = 0
        self._seen_s: float | None = None

    def logged(self, time_ms: int) -> None:
        """The log has come to ``time_ms``."""
        self._logged_ms = max(self._logged_ms, time_ms)
        self.time_ms = max(self.time_ms, float(time_ms))

    def start(self, time_ms: int, now_s: float) -> None:
        """Go on from the highest time in the log, ``time_ms`` or what `logged` told.

        What was counted here in an earlier leadership, and never came into the log, is forgotten: others
        led since without it, and leases that they promised would end that much early.
        """
        self._logged_ms = max(self._logged_ms, time_ms)
        self.time_ms = float(self._logged_ms)
        self._seen_s = now_s

    def read_ms(self, now_s: float) -> int:
        """The log time of now."""
        if self._seen_s is not None and now_s > self._seen_s:
            step_s = now_s - self._seen_s
            self.time_ms += 1000 * (step_s if step_s < self._step_max_s else self._step_max_s)
            self._seen_s = now_s
        return int(self.time_ms)


class Proposer:
    """One node's proposals.

    Args:
        uid: the node's id.
        log: shared with acceptor and learner.
        membership: whose promises count.
        learner: knows the votes, and fetches what phase 1 shows as chosen elsewhere.
        random: gives numbers in [0, 1), for jitter.
        log_time_step_max_s: see `LogClock`.

    Attributes:
        phase: idle, preparing or leading.
        ballot: its own, NO_BALLOT since the start of the node until it takes over.
        wanted_time_ms: the log time that the state machine waits for, if any.
        held: commands wait, for the time being; set by whoever performs the effects.
        promises_received: ids of the acceptors whose complete promise for ``ballot`` is here.
        commits: how long slots took from being proposed to being chosen, in seconds.
    """

    takes = (Promise, Nack)

    def __init__(
        self,
        uid: str,
        log: Log,
        membership: Membership,
        learner: Learner,
        random: Callable[[], float],
        log_time_step_max_s: float = 0.2,
    ) -> None:
        self.uid = uid
        self.log = log
        self.membership = membership
        self.learner = learner
        self.phase = Phase.IDLE
        self.ballot = NO_BALLOT
        self.promises_received: set[str] = set()
        self.clock = LogClock(log_time_step_max_s)
        self.wanted_time_ms: int | None = None
        self.held = False
        self.commits = Histogram()
        self._timer = RetryTimer(random)
        self._parts: dict[str, tuple[tuple[int, int], dict[int, Promise]]] = {}
        self._promises: dict[str, tuple[str, list[Promise]]] = {}
        self._base: int | None = None
        self._sets: tuple[tuple[int, dict[str, str]], ...] = ()
        self._changes: deque[Replace] = deque()
        self._prepare_at_s = 0.0
        self._prepare_tries = 0
        self._recovered: deque[tuple[int, Raw]] = deque()
        self._in_flight: dict[int, Proposal] = {}
        self._next_slot = 1
        self._queue: deque[Command] = deque()
        self._queue_bytes = 0
        self._taken = Names()
        self._forwarded = False
        self._spreading = Spreading(uid)

    @property
    def leading(self) -> bool:
        """Whether phase 1 is complete, so that it proposes."""
        return self.phase is Phase.LEADING

    def receive(self, sender: Sender, message: Message, now_s: float) -> Effects:
        """Take a Promise or a Nack."""
        if isinstance(message, Promise):
            return self.on_promise(sender, message, now_s)
        assert isinstance(message, Nack)
        return self.on_nack(message)

    # -- phase 1

    def take_over(self, above: ProposalID, now_s: float) -> Effects:
        """Start phase 1 with a ballot above ``above`` (the durable promise and everything seen)."""
        self.give_way()
        self.ballot = max(above, self.ballot).next_for(self.uid)
        self.phase = Phase.PREPARING
        self._prepare_tries = 1
        self._prepare_at_s = now_s + self._timer.wait_s(1)
        return Effects(records=[SavePromise(self.ballot)], replies=[Send(EVERYONE, self._prepare())])

    def _prepare(self) -> Prepare:
        return Prepare(self.ballot, self.log.chosen_upto + 1)

    def give_way(self) -> None:
        """Send nothing more under the present ballot; what waits is the business of its origin."""
        self.phase = Phase.IDLE
        self.promises_received = set()
        self._parts, self._promises, self._base = {}, {}, None
        self._recovered.clear()
        self._in_flight.clear()
        self._changes.clear()
        self._queue.clear()
        self._queue_bytes = 0
        self._taken.clear()
        self._forwarded = False
        self._spreading.stop()

    def on_nack(self, message: Nack) -> Effects:
        """An acceptor promised a higher ballot: this one is over, also when an earlier one was meant."""
        if message.promised > self.ballot and self.phase is not Phase.IDLE:
            self.give_way()
        return Effects()

    def on_promise(self, sender: Sender, message: Promise, now_s: float) -> Effects:
        """Count a promise once all its parts are here."""
        if self.phase is not Phase.PREPARING or message.ballot != self.ballot or self._base is not None:
            return Effects()
        if not self.membership.is_member(sender) or not 0 <= message.part < message.parts:
            return Effects()
        order = (sender.boot, message.promise_id)
        newest, parts = self._parts.get(sender.uid, (order, {}))
        if order < newest:
            return Effects()
        if order > newest:
            parts = {}
        parts[message.part] = message
        self._parts[sender.uid] = (order, parts)
        if len(parts) < message.parts:
            return Effects()
        self._promises[sender.uid] = (sender.incarnation, [parts[n] for n in sorted(parts)])
        self.promises_received.add(sender.uid)
        return self._count_promises(now_s)

    def _is_quorum(self, base: int) -> bool:
        incarnations = {uid: incarnation for uid, (incarnation, _) in self._promises.items()}
        return self.membership.is_phase_1_quorum(incarnations, base)

    def _count_promises(self, now_s: float) -> Effects:
        base = max(parts[0].chosen_upto for _, parts in self._promises.values())
        if not self._is_quorum(base):
            return Effects()
        self._base = base
        knows = max(self._promises, key=lambda uid: (self._promises[uid][1][0].chosen_upto, uid))
        self.learner.fetch_soon(knows, base, now_s)
        return self.advance(now_s)

    def _finish_phase_1(self, base: int, now_s: float) -> None:
        """Everything up to base is known, so all sets that govern the slots above are."""
        if not self._is_quorum(base):
            # What was fetched changed the members: this takes promises of the new set as well.
            self._base = None
            return
        self._recover(base, now_s)
        self._sets = self.membership.sets
        self.phase = Phase.LEADING
        self._promises, self._parts = {}, {}
        # The heartbeat that says who leads tells this much.
        self._spreading.start(self.log.chosen_upto)

    def _recover(self, base: int, now_s: float) -> None:
        """Choose what to propose again: above base, per slot, the value of the highest ballot."""
        best: dict[int, Entry] = {}
        for _, parts in self._promises.values():
            for slot, ballot, value in ((e.slot, e.ballot, e.value) for part in parts for e in part.accepted):
                assert ballot <= self.ballot, "an acceptor accepted above what it promised"
                if slot > base and (slot not in best or ballot > best[slot].ballot):
                    best[slot] = Entry(ballot, value)
        highest = max(best, default=base)
        # What is chosen was accepted by one of those that promised: they report it, or know it as chosen.
        assert highest >= self.log.chosen_upto, "a promise is missing something that is chosen"
        time_ms = max((decode_value(entry.value).time_ms for entry in best.values()), default=0)
        self.clock.start(time_ms, now_s)
        noop = encode_value(0, ())
        self._recovered.extend(
            (slot, best[slot].value if slot in best else noop) for slot in range(base + 1, highest + 1)
        )
        self._next_slot = highest + 1

    # -- phase 2

    def advance(self, now_s: float) -> Effects:
        """Go on with whatever the present state allows: finish phase 1, propose what waits."""
        if self.phase is Phase.PREPARING and self._base is not None and self.log.chosen_upto >= self._base:
            self._finish_phase_1(self._base, now_s)
        if self.phase is not Phase.LEADING or self._sets != self.membership.sets:
            return NOTHING
        effects = Effects()
        if self._in_flight:
            self._retire(now_s)
        while len(self._in_flight) < limits.PIPELINE_SLOTS:
            free = self._next_slot <= self.log.chosen_upto + limits.ALPHA
            if self._recovered:
                slot, again = self._recovered[0]
                if slot > self.log.chosen_upto + limits.ALPHA:
                    break
                self._recovered.popleft()
                if slot > self.log.chosen_upto:
                    effects.sends.append(self._propose(slot, again, now_s))
            elif free and (value := self._next_value(now_s)) is not None:
                effects.sends.append(self._propose(self._next_slot, value, now_s))
                self._next_slot += 1
            else:
                break
        effects.add(self._tell(now_s))
        return effects

    def _retire(self, now_s: float) -> None:
        """What is chosen is not in flight any more."""
        for slot in [slot for slot in self._in_flight if self.log.is_chosen(slot)]:
            proposal = self._in_flight.pop(slot)
            took_s = now_s - proposal.proposed_s
            chosen_slot, voters = self.learner.last_majority
            if slot == chosen_slot and (proposal.tries > 1 or self._spreading.went_to_all(slot)):
                self._spreading.answered(voters)
            self.commits.observe(took_s)
            if proposal.tries == 1 and not is_large(len(proposal.value)):
                self._timer.sample(took_s)

    def awaited(self, slot: int, now_s: float) -> Effects:
        """Another node waits for ``slot`` to be chosen and told."""
        if self.phase is not Phase.LEADING:
            return NOTHING
        self._spreading.awaited(slot)
        return self._tell(now_s)

    def _tell(self, now_s: float) -> Effects:
        return self._spreading.tell(self.ballot, self.log.chosen_upto, now_s, bool(self._in_flight))

    def _next_value(self, now_s: float) -> Raw | None:
        if self._changes:
            return encode_change(self.clock.read_ms(now_s), self._changes.popleft())
        if self._queue and self.held:
            # Log time waits with what waits: a lease must not end before its keep-alive can be proposed.
            if self._next_slot < self.membership.latest_from:
                return encode_value(int(self.clock.time_ms), ())
            return None
        if self._queue:
            return encode_value(self.clock.read_ms(now_s), self._next_batch())
        if self._next_slot < self.membership.latest_from:
            # A change of members waits for its slot: no-ops lead there.
            return encode_value(self.clock.read_ms(now_s), ())
        wanted_ms = self.wanted_time_ms
        if wanted_ms is not None and not self._in_flight and self.clock.read_ms(now_s) >= wanted_ms:
            # The state machine waits for this time; the next value to be applied tells it.
            self.wanted_time_ms = None
            return encode_value(self.clock.read_ms(now_s), ())
        return None

    def _propose(self, slot: int, value: Raw, now_s: float) -> Send:
        assert slot not in self._in_flight, "one value per slot and ballot"
        self._in_flight[slot] = Proposal(value, now_s, now_s + self._timer.wait_s(1, len(value)))
        chosen_upto, awaited = self.log.chosen_upto, self._forwarded
        self._forwarded = awaited and bool(self._queue)
        to = self._spreading.accept_to(slot, value, chosen_upto, now_s, awaited)
        return Send(to, Accept(self.ballot, slot, value, chosen_upto))

    def _next_batch(self) -> list[Command]:
        queue, size, target_bytes = self._queue, 0, limits.BATCH_TARGET_BYTES
        batch: list[Command] = []
        while queue:
            cost = len(queue[0].payload) + COMMAND_OVERHEAD_BYTES
            if batch and size + cost > target_bytes:
                break
            batch.append(queue.popleft())
            size += cost
            if size > limits.BATCH_TARGET_BYTES:
                # It fits no datagram: others may as well share its slot and its sync.
                target_bytes = limits.LARGE_BATCH_BYTES
        self._queue_bytes -= size
        return batch

    def enqueue(self, commands: Sequence[Command], forwarded: bool = False) -> bool:
        """Take commands to propose, unless already taken; all of them, or none when full.

        Args:
            forwarded: another node waits for them to be chosen.
        """
        if self.phase is not Phase.LEADING:
            return False
        new = self._taken.add(commands)
        size = sum([len(c.payload) for c in new]) + COMMAND_OVERHEAD_BYTES * len(new)
        many = len(self._queue) + len(new) > limits.QUEUE_MAX_COMMANDS
        if many or self._queue_bytes + size > limits.QUEUE_MAX_BYTES:
            self._taken.discard(new)
            return False
        self._queue.extend(new)
        self._queue_bytes += size
        self._forwarded = self._forwarded or forwarded
        return True

    def change(self, replace: Replace) -> None:
        """Propose a change of members, before what waits; one at a time."""
        if self.phase is Phase.LEADING and not self._changes:
            self._changes.append(replace)

    @property
    def has_queue(self) -> bool:
        """Whether commands wait to be proposed."""
        return bool(self._queue)

    @property
    def in_flight(self) -> int:
        """How many slots are proposed and not chosen."""
        return len(self._in_flight)

    def applied(self, runs: Sequence[OfRun]) -> None:
        """These were applied: a repetition is now told apart by the state machine's sessions."""
        if self._taken:
            for run in runs:
                self._taken.discard_of(run.client, sequences_of(run))

    @property
    def highest_proposed(self) -> int:
        """The highest slot proposed or recovered: a read must see what is applied up to here."""
        return self._next_slot - 1

    # -- time

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        if self.phase is Phase.PREPARING and self._base is None:
            return self._prepare_at_s
        deadline_s = self._spreading.deadline_s
        for proposal in self._in_flight.values():
            if deadline_s is None or proposal.retry_at_s < deadline_s:
                deadline_s = proposal.retry_at_s
        return deadline_s

    def tick(self, now_s: float) -> Effects:
        """Send again what was not answered, to those that did not answer."""
        effects = Effects()
        if self.phase is Phase.PREPARING and self._base is None and now_s >= self._prepare_at_s:
            self._prepare_tries += 1
            self._prepare_at_s = now_s + self._timer.wait_s(self._prepare_tries)
            silent = tuple(uid for uid in self.membership.voters if uid not in self.promises_received)
            # A reply: the first Prepare may still wait for the sync of its ballot.
            effects.replies.append(Send(silent, self._prepare()))
        if self.phase is Phase.LEADING:
            self.clock.read_ms(now_s)
            effects.add(self._tell(now_s))
        for slot, proposal in self._in_flight.items():
            if now_s >= proposal.retry_at_s:
                if proposal.tries == 1 and not self._spreading.went_to_all(slot):
                    self._spreading.unanswered()
                proposal.tries += 1
                proposal.retry_at_s = now_s + self._timer.wait_s(proposal.tries, len(proposal.value))
                voted = self.learner.voters(slot, self.ballot)
                silent = tuple(uid for uid in self.membership.voters if uid not in voted)
                accept = Accept(self.ballot, slot, proposal.value, self.log.chosen_upto)
                effects.sends.append(Send(silent, accept))
        return effects
