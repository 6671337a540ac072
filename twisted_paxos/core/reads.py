"""Linearizable reads without a slot of the log.

A read sees everything that any node had answered before the read began. Its slot is the highest
one that the leader has **proposed or recovered** when the request arrives (a follower may have
learnt and applied more than the leader knows as chosen); the leader is still the leader if a
majority of acceptors, asked after that, has promised no higher ballot. Then whoever asked waits
until it has applied that slot. Like the ReadIndex of Raft (Ongaro's thesis, section 6.4), with
acceptors' promises in place of terms.

Must always hold:
    * a nonce is issued after the arrival of every request that it confirms;
    * only answers to that nonce under that ballot count, never heartbeats;
    * nothing is confirmed before phase 1 is complete, or after a higher ballot was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from twisted_paxos.core import limits
from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import EVERYONE, Effects, Readable, Send
from twisted_paxos.core.messages import Confirm, Confirmed, Message, Nack, ReadAt, ReadRequest, Sender
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.core.timing import RetryTimer


class _Request(NamedTuple):
    """A read that this node serves as leader."""

    uid: str
    read_id: int
    start: str
    slot: int


class Reads:
    """Both ends: this node's own reads, and, while it leads, everybody's.

    Args:
        uid: the node's id.
        acceptor, proposer: the node's.
        random: gives numbers in [0, 1), for jitter.
        start: random, of this start of the node: answers to an earlier one do not count.
    """

    takes = (ReadRequest, ReadAt, Confirm, Confirmed)

    def __init__(
        self,
        uid: str,
        acceptor: Acceptor,
        proposer: Proposer,
        random: Callable[[], float],
        start: str = "",
    ) -> None:
        self._uid = uid
        self._acceptor = acceptor
        self._proposer = proposer
        self._timer = RetryTimer(random)
        # Asking.
        self._read_id = 0
        self._start = start
        self._leader = NO_BALLOT
        self._asked: dict[int, tuple[float, float, int]] = {}
        self._confirmed_at: dict[int, int] = {}
        # Leading.
        self._nonce = 0
        self._ballot = NO_BALLOT
        self._waiting: list[_Request] = []
        self._confirming: list[_Request] = []
        self._confirmed: dict[str, str] = {}
        self._repeat_at_s: float | None = None
        self._tries = 0

    # -- asking

    def ask(self, leader: ProposalID, now_s: float) -> tuple[int, Effects]:
        """Begin a read. A `Readable` of the same number follows, or several: any of them will do.

        Call `forget` when it has ended: a slot that was only proposed may never be chosen, so a
        new leader is asked again.
        """
        self._read_id += 1
        return self._read_id, self._ask(self._read_id, leader, now_s, 1)

    def _ask(self, read_id: int, leader: ProposalID, now_s: float, tries: int) -> Effects:
        self._asked[read_id] = (now_s, now_s + self._timer.wait_s(tries), tries)
        if leader == NO_BALLOT:
            return Effects()
        return Effects(sends=[Send((leader.uid,), ReadRequest(read_id, self._start))])

    def forget(self, read_id: int) -> None:
        """Nobody waits for this read any more."""
        self._asked.pop(read_id, None)
        self._confirmed_at.pop(read_id, None)

    def on_read_at(self, message: ReadAt, now_s: float) -> Effects:
        """The leader has confirmed a read of this node."""
        effects = Effects()
        if message.start != self._start:
            return effects
        asked = self._asked.pop(message.read_id, None)
        if asked is not None:
            if asked[2] == 1:
                self._timer.sample(now_s - asked[0])
            self._confirmed_at[message.read_id] = message.slot
            effects.readable.append(Readable(message.read_id, message.slot))
        return effects

    # -- leading

    def receive(self, sender: Sender, message: Message, now_s: float) -> Effects:
        """Take one of the messages that reads are made of."""
        if isinstance(message, ReadRequest):
            return self.on_request(sender, message, now_s)
        if isinstance(message, Confirm):
            return self.on_confirm(sender, message)
        if isinstance(message, Confirmed):
            return self.on_confirmed(sender, message, now_s)
        assert isinstance(message, ReadAt)
        return self.on_read_at(message, now_s)

    def on_request(self, sender: Sender, message: ReadRequest, now_s: float) -> Effects:
        """A read arrives at the leader; elsewhere it is dropped, and asked again of whoever leads."""
        if not self._leads() or len(self._waiting) >= limits.READS_MAX:
            return Effects()
        slot = self._proposer.highest_proposed
        self._waiting.append(_Request(sender.uid, message.read_id, message.start, slot))
        return self._start_round(now_s) if not self._confirming else Effects()

    def _leads(self) -> bool:
        """Whether this node leads; drops what it was confirming under an earlier ballot."""
        if self._proposer.leading and self._proposer.ballot == self._ballot:
            return True
        self._waiting, self._confirming = [], []
        self._repeat_at_s = None
        self._ballot = self._proposer.ballot
        return self._proposer.leading

    def _start_round(self, now_s: float) -> Effects:
        """Confirm all that waits with one new nonce."""
        self._nonce += 1
        self._confirming, self._waiting = self._waiting, []
        self._confirmed = {}
        self._tries = 0
        return self._send_round(EVERYONE, now_s)

    def _send_round(self, to: tuple[str, ...], now_s: float) -> Effects:
        self._tries += 1
        self._repeat_at_s = now_s + self._timer.wait_s(self._tries)
        return Effects(sends=[Send(to, Confirm(self._ballot, self._nonce))])

    def on_confirm(self, sender: Sender, message: Confirm) -> Effects:
        """An acceptor that promised nothing higher says so, at this moment."""
        if not self._acceptor.votes or message.ballot.uid != sender.uid:
            return Effects()
        if self._acceptor.promised > message.ballot:
            return Effects(sends=[Send((sender.uid,), Nack(message.ballot, self._acceptor.promised))])
        return Effects(sends=[Send((sender.uid,), Confirmed(message.ballot, message.nonce))])

    def on_confirmed(self, sender: Sender, message: Confirmed, now_s: float) -> Effects:
        """Count an acceptor; with a majority of every set of members the round is complete."""
        effects = Effects()
        if not self._leads() or not self._confirming:
            return effects
        if (message.ballot, message.nonce) != (self._ballot, self._nonce):
            return effects
        self._confirmed[sender.uid] = sender.incarnation
        membership = self._proposer.membership
        if not membership.is_phase_1_quorum(self._confirmed, self._proposer.log.chosen_upto):
            return effects
        effects.sends += [Send((r.uid,), ReadAt(r.read_id, r.slot, r.start)) for r in self._confirming]
        elsewhere = [r.slot for r in self._confirming if r.uid != self._uid]
        if elsewhere:
            effects.add(self._proposer.awaited(max(elsewhere), now_s))
        self._confirming = []
        self._repeat_at_s = None
        if self._waiting:
            effects.add(self._start_round(now_s))
        return effects

    # -- time

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        deadline_s = self._repeat_at_s
        if not self._asked:
            return deadline_s
        for _, retry_at_s, _ in self._asked.values():
            if deadline_s is None or retry_at_s < deadline_s:
                deadline_s = retry_at_s
        return deadline_s

    def tick(self, leader: ProposalID, now_s: float) -> Effects:
        """Repeat what was not answered, at once when there is a new leader."""
        effects = Effects()
        changed, self._leader = leader != self._leader, leader
        if changed:
            for read_id in self._confirmed_at:
                self._asked.setdefault(read_id, (now_s, now_s, 1))
        for read_id, (_, retry_at_s, tries) in list(self._asked.items()):
            if changed or now_s >= retry_at_s:
                effects.add(self._ask(read_id, leader, now_s, tries + 1))
        due = self._repeat_at_s is not None and now_s >= self._repeat_at_s
        if due and self._leads() and self._confirming:
            silent = tuple(u for u in self._proposer.membership.voters if u not in self._confirmed)
            effects.add(self._send_round(silent, now_s))
        return effects
