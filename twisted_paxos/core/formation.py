"""Who is who: incarnations, starts, and the first formation of a cluster (DESIGN.md section 6).

A node with fresh storage votes only after **every** other configured member has durably
recorded its incarnation. So a member that lost its storage can never pass for a new one: some
other member knows the incarnation that it had, and says so.

Must always hold, for two nodes that are formed: both name the same incarnation for every
member. Why: X is formed only if each Y answered, to a question that X asked after it had
recorded Y's present incarnation, that Y's record of X is X's present incarnation; and a
formed node never changes its record (only a Replace does, through the log). An unformed Y
may change its record of X for a later life of X, or, by a delayed Join, back to an earlier
one; but then it asks again with a new nonce, which a dead life cannot answer.
"""

from __future__ import annotations

import msgspec

from twisted_paxos.core.effects import Effects, Send
from twisted_paxos.core.messages import Join, Joined, Refused, Sender
from twisted_paxos.core.records import Identity, SaveIdentity

NONCES_PER_BOOT = 1 << 32


class _BootRecorded(msgspec.Struct, frozen=True):
    """Sent by a node to itself once a peer's start is durable; never on the wire."""

    uid: str
    incarnation: str
    boot: int
    boot_id: str


class Formation:
    """This node's identity, what it knows of the others', and the way to the first formation.

    Args:
        identity: as recovered.
        voters: the configured ids.
        boot_id: random, of this start.
        interval_s: how often unanswered Joins are repeated.
    """

    takes = (Join, Joined, Refused, _BootRecorded)

    def __init__(self, identity: Identity, voters: tuple[str, ...], boot_id: str, interval_s: float) -> None:
        members = {**identity.members}
        if identity.uid in voters:
            members.setdefault(identity.uid, identity.incarnation)
        self.identity = msgspec.structs.replace(identity, members=members)
        self.me = Sender(identity.uid, identity.incarnation, identity.boot, boot_id)
        self.voters = voters
        self.replaced = False
        self._interval_s = interval_s
        self._nonce = identity.boot * NONCES_PER_BOOT
        self._answers: set[str] = set()
        self._next_join_s = 0.0
        self._recorded = dict(identity.boots)
        self._recording: dict[str, tuple[int, str]] = {}

    @property
    def is_voter(self) -> bool:
        """Whether this incarnation is one of the voting members."""
        return self.identity.formed and self.identity.members.get(self.me.uid) == self.me.incarnation

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Members that must still answer before the first formation is complete."""
        if self.identity.formed or self.me.uid not in self.voters:
            return ()
        return tuple(uid for uid in self.voters if uid != self.me.uid and uid not in self._answers)

    def _save(self, **changes: object) -> SaveIdentity:
        self.identity = msgspec.structs.replace(self.identity, **changes)
        return SaveIdentity(self.identity)

    # -- formation

    def receive(self, sender: Sender, message: object, now_s: float) -> Effects:
        """Take part in the first formation, or learn of a start."""
        if isinstance(message, Join):
            return self.on_join(sender, message)
        if isinstance(message, Joined):
            return self.on_joined(sender, message)
        if isinstance(message, Refused):
            return self.on_refused(message)
        assert isinstance(message, _BootRecorded)
        self._on_boot_recorded(message)
        return Effects()

    def tick(self, now_s: float) -> Effects:
        """Ask those that have not answered."""
        effects = Effects()
        if self.identity.formed or now_s < self._next_join_s:
            return effects
        self._next_join_s = now_s + self._interval_s
        if self.me.uid not in self.voters:
            # An observer has nothing to form; it only needs to be known to the others.
            return effects
        effects.add(self._complete())
        if self.waiting_for:
            effects.sends.append(Send(self.waiting_for, Join(self._nonce)))
        return effects

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        if self.identity.formed or self.me.uid not in self.voters:
            return None
        return self._next_join_s

    def _record(self, sender: Sender) -> Effects:
        """Record the sender's incarnation, while this node is not formed."""
        if self.identity.members.get(sender.uid) == sender.incarnation:
            return Effects()
        self._nonce += 1
        self._answers.clear()
        members = {**self.identity.members, sender.uid: sender.incarnation}
        return Effects(records=[self._save(members=members)])

    def on_join(self, sender: Sender, message: Join) -> Effects:
        """Another member asks to be recorded; the answer leaves when the record is durable."""
        if self.me.uid not in self.voters or sender.uid not in self.voters or sender.uid == self.me.uid:
            return Effects()
        effects = Effects()
        if not self.identity.formed:
            effects.add(self._record(sender))
        answer = Joined(message.nonce, self.identity.formed, self.identity.members)
        effects.replies.append(Send((sender.uid,), answer))
        return effects

    def on_joined(self, sender: Sender, message: Joined) -> Effects:
        """A member says what it has recorded."""
        if self.identity.formed or message.nonce != self._nonce or sender.uid not in self.voters:
            return Effects()
        if message.members.get(self.me.uid) != self.me.incarnation:
            # It is formed with an earlier life of this node: only a Replace lets this one vote.
            self.replaced = self.replaced or message.formed
            return Effects()
        if message.formed:
            return self._form(message.members)
        effects = self._record(sender)
        if not effects:
            self._answers.add(sender.uid)
            effects.add(self._complete())
        else:
            self._next_join_s = 0.0
        return effects

    def _complete(self) -> Effects:
        if self.waiting_for:
            return Effects()
        return self._form(self.identity.members)

    def _form(self, members: dict[str, str]) -> Effects:
        if set(members) != set(self.voters):
            return Effects()
        return Effects(records=[self._save(formed=True, members=dict(members))])

    # -- starts

    def admit(self, sender: Sender) -> tuple[bool, Effects]:
        """Whether to listen to this start of a member, and what to say or save otherwise.

        A start counts only once it is recorded durably here: then no older copy of the same
        storage, brought back later, can speak in its place.
        """
        if sender.uid == self.me.uid:
            return sender == self.me, Effects()
        if self.identity.members.get(sender.uid) != sender.incarnation:
            return True, Effects()
        known = self._recorded.get(sender.incarnation)
        start = (sender.boot, sender.boot_id)
        if start == known:
            return True, Effects()
        if known is not None and sender.boot <= known[0]:
            refusal = Refused(sender.incarnation, sender.boot, sender.boot_id, known[0])
            return False, Effects(sends=[Send((sender.uid,), refusal)])
        return False, self._record_boot(sender)

    def _record_boot(self, sender: Sender) -> Effects:
        start = (sender.boot, sender.boot_id)
        waiting = self._recording.get(sender.incarnation)
        if waiting is not None and waiting[0] >= start[0]:
            return Effects()
        self._recording[sender.incarnation] = start
        current = set(self.identity.members.values())
        boots = {life: boot for life, boot in self.identity.boots.items() if life in current}
        save = self._save(boots={**boots, sender.incarnation: start})
        done = _BootRecorded(sender.uid, sender.incarnation, sender.boot, sender.boot_id)
        return Effects(records=[save], replies=[Send((self.me.uid,), done)])

    def _on_boot_recorded(self, message: _BootRecorded) -> None:
        start = (message.boot, message.boot_id)
        if message.boot > self._recorded.get(message.incarnation, (0, ""))[0]:
            self._recorded[message.incarnation] = start
        if self._recording.get(message.incarnation) == start:
            del self._recording[message.incarnation]

    def on_refused(self, message: Refused) -> Effects:
        """A peer knows a later start of this very storage: what is here is an old copy."""
        effects = Effects()
        mine = (self.me.incarnation, self.me.boot, self.me.boot_id)
        if (message.incarnation, message.boot, message.boot_id) == mine:
            effects.stop = (
                f"this storage is an old copy: it was started {self.me.boot} times, and a peer has seen start"
                f" {message.boot_seen}; a node that forgot what it promised must not vote"
            )
        return effects
