"""The learner: counts votes, and fetches what it lacks (Paxos Made Simple, section 2.3).

Must always hold:
    * a slot counts as chosen only by a majority of the configured acceptors for the **same**
      ballot, or by the word of the leader of ballot b about slots chosen at ballots <= b;
      one Accepted is never enough, votes of different ballots are never added up;
    * the value that goes with it is one accepted at that ballot or above, else it is fetched;
    * fetching moves chosen entries only: no vote comes of it, no promise changes.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted_paxos.core import limits
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.effects import NOTHING, Effects, ReadChosen, Send, joined
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import Accepted, Chosen, Commit, Fetch, Message, Sender, SlotEntry
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import SaveChosen
from twisted_paxos.core.timing import RetryTimer

FETCH_GRACE_S = 0.030
"""A slot that is only late arrives by itself; what is missing for longer is fetched."""


class Learner:
    """What is chosen, and how this node comes to know it.

    Args:
        log: shared with the node's acceptor.
        membership: whose votes count.
        random: gives numbers in [0, 1), for jitter.

    Attributes:
        wanted_upto: somebody knows every slot up to here as chosen.
        fetches: how many times it asked for chosen slots.
        last_majority: the slot that votes counted here chose last, and whose these were.
    """

    takes = (Accepted, Commit, Fetch, Chosen)

    def __init__(self, log: Log, membership: Membership, random: Callable[[], float]) -> None:
        self.log = log
        self.membership = membership
        self.wanted_upto = log.chosen_upto
        self.fetches = 0
        self.last_majority: tuple[int, set[str]] = (0, set())
        self._votes: dict[int, dict[ProposalID, set[str]]] = {}
        self._sources: dict[str, int] = {}
        self._timer = RetryTimer(random)
        self._request_id = 0
        self._asked_s = 0.0
        self._asked = ""
        self._tries = 0
        self._fetch_at_s: float | None = None

    # -- votes

    def receive(self, sender: Sender, message: Message, now_s: float) -> Effects:
        """Count an Accepted, take a leader's word, answer a Fetch, or take what was fetched."""
        if isinstance(message, Accepted):
            return self.on_accepted(sender, message, now_s)
        if isinstance(message, Commit):
            return self.on_commit(sender, message, now_s)
        if isinstance(message, Fetch):
            return self.on_fetch(sender, message)
        assert isinstance(message, Chosen)
        return self.on_chosen(sender, message, now_s)

    def on_accepted(self, sender: Sender, message: Accepted, now_s: float) -> Effects:
        """Count one acceptor's votes."""
        if max(message.slots, default=0) <= self.log.chosen_upto:
            # A majority was there before: with five voters, two Accepteds of each slot come too late.
            return NOTHING
        chosen = False
        for slot in message.slots:
            if slot <= self.log.chosen_upto:
                continue
            if slot > self.log.chosen_upto + limits.ALPHA:
                self._want(sender.uid, slot - limits.ALPHA, now_s)
                continue
            if not self.membership.votes_on(slot, sender):
                continue
            voters = self._ballot_votes(slot, message.ballot)
            voters.add(sender.uid)
            if len(voters) >= self.membership.majority:
                self.log.mark_chosen(slot, message.ballot)
                self.last_majority = slot, voters
                chosen = True
        # A slot may be known as chosen while an older vote stands here: it moves on with a later one.
        return self._advance(now_s) if chosen or self.log.next_is_chosen else NOTHING

    def _ballot_votes(self, slot: int, ballot: ProposalID) -> set[str]:
        ballots = self._votes.setdefault(slot, {})
        if ballot not in ballots:
            ballots[ballot] = set()
            if len(ballots) > limits.BALLOTS_PER_SLOT:
                del ballots[min(ballots)]
        return ballots.get(ballot, set())

    def voters(self, slot: int, ballot: ProposalID) -> set[str]:
        """Who is known to have accepted ``slot`` at ``ballot``."""
        return self._votes.get(slot, {}).get(ballot, set())

    # -- the word of others

    def on_chosen_upto(
        self, source: str, chosen_upto: int, leader: ProposalID | None, now_s: float
    ) -> Effects:
        """``source`` knows slots up to ``chosen_upto`` as chosen.

        Args:
            leader: the ballot that it leads, when it does: only then is it more than a hint.
        """
        if chosen_upto <= self.log.chosen_upto:
            return NOTHING
        self._want(source, chosen_upto, now_s)
        if leader is None:
            return NOTHING
        last = min(chosen_upto, self.log.highest)
        for slot in range(self.log.chosen_upto + 1, last + 1):
            entry = self.log.entries.get(slot)
            if entry is not None and entry.ballot >= leader:
                self.log.mark_chosen(slot, leader)
        return self._advance(now_s)

    def on_commit(self, sender: Sender, message: Commit, now_s: float) -> Effects:
        """Take a leader's word, and the values that it shares."""
        effects = self.on_chosen_upto(sender.uid, message.chosen_upto, message.ballot, now_s)
        for entry in message.entries:
            if self.log.chosen_upto < entry.slot <= message.chosen_upto:
                effects = joined(effects, self._on_shared(entry, now_s))
        return effects

    def _on_shared(self, entry: SlotEntry, now_s: float) -> Effects:
        if entry.slot == self.log.chosen_upto + 1:
            self._learn(entry)
            return self._advance(now_s)
        if self._has_room(entry):
            self._keep(entry)
        return NOTHING

    def _has_room(self, entry: SlotEntry) -> bool:
        """Whether to keep it though a slot below it is missing."""
        fits = self.log.bytes + len(entry.value) <= limits.WINDOW_MAX_BYTES
        return fits and entry.slot <= self.log.chosen_upto + limits.ALPHA

    def _keep(self, entry: SlotEntry) -> None:
        """Note a chosen entry above a gap. A vote stays as it is: Promises report it till then (rule 2)."""
        if entry.slot in self.log.entries and entry.slot not in self.log.unsaved:
            self.log.mark_chosen(entry.slot, entry.ballot)
        else:
            self._learn(entry)

    def _want(self, source: str, upto: int, now_s: float) -> None:
        if upto > self._sources.get(source, 0):
            self._sources[source] = upto
        if upto > self.wanted_upto:
            self.wanted_upto = upto
        self._plan(now_s)

    def _advance(self, now_s: float) -> Effects:
        """Move on over what is chosen and here; plan to fetch what is chosen and missing."""
        before = self.log.chosen_upto
        moved, unsaved = self.log.advance()
        if not moved:
            self._plan(now_s)
            return NOTHING
        effects = Effects()
        effects.chosen = moved
        if unsaved:
            effects.records += [SaveChosen(entry.slot, entry.ballot, entry.value) for entry in unsaved]
        for slot in range(before + 1, self.log.chosen_upto + 1):
            self._votes.pop(slot, None)
        if not self._asked:
            self._fetch_at_s = None
        self._plan(now_s)
        return effects

    # -- catch-up

    @property
    def missing_upto(self) -> int:
        """The highest slot that is certainly chosen and that this node has not reached."""
        highest = self.log.highest_chosen
        return self.wanted_upto if self.wanted_upto > highest else highest

    def _plan(self, now_s: float) -> None:
        if self.missing_upto <= self.log.chosen_upto:
            self._fetch_at_s, self._asked, self._tries = None, "", 0
        elif self._fetch_at_s is None:
            self._fetch_at_s = now_s + FETCH_GRACE_S

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        return self._fetch_at_s

    def fetch_soon(self, source: str, upto: int, now_s: float) -> None:
        """Fetch up to ``upto`` without waiting, from ``source`` first."""
        self._want(source, upto, now_s)
        if self.missing_upto > self.log.chosen_upto and not self._asked:
            self._fetch_at_s = now_s

    def tick(self, now_s: float) -> Effects:
        """Ask for what is missing, when it is time; another node after each time-out."""
        if self._fetch_at_s is None or now_s < self._fetch_at_s:
            return Effects()
        self._tries = self._tries + 1 if self._asked else 1
        return self._fetch(self._next_source(), now_s)

    def _next_source(self) -> str:
        """Whoever knows most, but not the one that did not answer."""
        useful = {u: upto for u, upto in self._sources.items() if upto > self.log.chosen_upto}
        others = sorted((uid for uid in useful if uid != self._asked), key=lambda uid: (-useful[uid], uid))
        if others:
            return others[0]
        if self._asked:
            return self._asked
        candidates = sorted(self._sources) or list(self.membership.voters)
        return candidates[self._request_id % len(candidates)]

    def _fetch(self, source: str, now_s: float) -> Effects:
        self._request_id += 1
        self.fetches += 1
        self._asked, self._asked_s = source, now_s
        self._fetch_at_s = now_s + self._timer.wait_s(self._tries)
        fetch = Fetch(self._request_id, self.log.chosen_upto + 1, self.missing_upto)
        return Effects(sends=[Send((source,), fetch)])

    def on_fetch(self, sender: Sender, message: Fetch) -> Effects:
        """Have storage answer with what is chosen here."""
        effects = Effects()
        upto = min(message.upto_slot, self.log.chosen_upto)
        if message.from_slot < self.log.log_start or message.from_slot > upto:
            empty = Chosen(message.request_id, (), self.log.chosen_upto, self.log.log_start)
            effects.sends.append(Send((sender.uid,), empty))
        else:
            effects.reads.append(ReadChosen(sender.uid, message.request_id, message.from_slot, upto))
        return effects

    def on_chosen(self, sender: Sender, message: Chosen, now_s: float) -> Effects:
        """Take fetched slots, in order, and ask for the next ones."""
        current = message.request_id == self._request_id and sender.uid == self._asked
        if current and self._tries == 1:
            self._timer.sample(now_s - self._asked_s)
        effects = Effects()
        for entry in message.entries:
            if entry.slot == self.log.chosen_upto + 1:
                self._learn(entry)
                effects.add(self._advance(now_s))
        if not current:
            return effects
        self._sources[sender.uid] = message.chosen_upto
        if not effects.chosen and self._fetch_at_s is not None:
            # It had nothing: another node, soon.
            self._fetch_at_s = now_s + FETCH_GRACE_S
        if message.log_start > self.log.chosen_upto + 1:
            effects.behind = sender.uid
        if effects.chosen and self.missing_upto > self.log.chosen_upto:
            self._tries = 1
            effects.add(self._fetch(sender.uid, now_s))
        return effects

    def installed(self, now_s: float) -> Effects:
        """A snapshot has moved ``chosen_upto``."""
        for slot in [slot for slot in self._votes if slot <= self.log.chosen_upto]:
            del self._votes[slot]
        self._fetch_at_s, self._asked, self._tries = None, "", 0
        return self._advance(now_s)

    def _learn(self, entry: SlotEntry) -> None:
        """Put a chosen entry in place of whatever this node had accepted there."""
        own = self.log.entries.get(entry.slot)
        if own is None or own.ballot != entry.ballot or own.value != entry.value:
            self.log.put(entry.slot, entry.ballot, entry.value, saved=False)
        self.log.mark_chosen(entry.slot, entry.ballot)
