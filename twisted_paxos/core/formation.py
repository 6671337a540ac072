"""Who is who: incarnations, starts, the first formation of a cluster, and the way back in.

A node with fresh storage votes only after **every** other configured member has durably
recorded its incarnation. So a member that lost its storage can never pass for a new one: some
other member knows the incarnation that it had, and says so (DESIGN.md section 6).

Must always hold, for two nodes that are formed: both name the same founding incarnation for
every member. X is formed with the whole record M only if every other member said, in answer to a
question that X asked after its own record had become M (each change makes a new nonce), that
its record is M too. Suppose that Z is formed with another record N, and not before X. Z said M
after X asked, and X said N after Z asked. From X's asking on its record is M for ever, so X said
N before it asked, hence before Z said M; so Z said M after Z had asked, from when on its record is
N for ever. So M is N. A formed node never changes its record: only a Replace does, in the log.

A node whose storage was lost comes back as a new incarnation. It learns that the cluster is
formed without it, catches up without a vote, and asks the leader for a `Replace`.
"""

from __future__ import annotations

import msgspec

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import NOTHING, Effects, Send
from twisted_paxos.core.messages import (
    AskDescent,
    Descent,
    Heartbeat,
    HeartbeatReply,
    Join,
    Joined,
    Refused,
    Sender,
)
from twisted_paxos.core.quorum import Membership
from twisted_paxos.core.records import Recovered, SaveIdentity

NONCES_PER_BOOT = 1 << 32

LOST_REASON_CHARS = 200


class BootRecorded(msgspec.Struct, frozen=True):
    """Sent by a node to itself once a peer's start is durable; never on the wire."""

    uid: str
    incarnation: str
    boot: int
    boot_id: str


class _Reported:
    """What an incarnation has said that it holds: all of it was durable before it said so.

    Attributes:
        boot: the latest start that reported.
        promised, upto: the highest ballot and slot reported by it.
        earlier_promised, earlier_upto: by the starts before it.
    """

    __slots__ = ("boot", "earlier_promised", "earlier_upto", "promised", "upto")

    def __init__(self, boot: int) -> None:
        self.boot = boot
        self.promised = self.earlier_promised = NO_BALLOT
        self.upto = self.earlier_upto = 0

    def note(self, boot: int, promised: ProposalID, upto: int) -> None:
        """Start number ``boot`` reported this."""
        if boot > self.boot:
            self.earlier_promised, self.earlier_upto = self.before(boot)
            self.boot, self.promised, self.upto = boot, NO_BALLOT, 0
        if boot == self.boot:
            if promised > self.promised:
                self.promised = promised
            if upto > self.upto:
                self.upto = upto

    def before(self, boot: int) -> tuple[ProposalID, int]:
        """What was reported before start number ``boot``."""
        if boot <= self.boot:
            return self.earlier_promised, self.earlier_upto
        return max(self.promised, self.earlier_promised), max(self.upto, self.earlier_upto)


class Formation:
    """This node's identity, what it knows of the others', and the way to a vote.

    Args:
        recovered: what storage held.
        membership: the voting incarnations; loaded from the identity here, and changed by the log.
        interval_s: how often unanswered Joins are repeated.
    """

    takes = (Join, Joined, AskDescent, Descent, Refused, BootRecorded)

    def __init__(self, recovered: Recovered, membership: Membership, interval_s: float) -> None:
        identity = recovered.identity
        self.membership = membership
        self._held = (recovered.promised, max(recovered.entries, default=recovered.chosen_upto))
        members = dict(identity.members)
        if identity.uid in membership.voters and not identity.formed:
            members.setdefault(identity.uid, identity.incarnation)
        self.identity = msgspec.structs.replace(identity, members=members)
        if identity.formed:
            membership.load(identity.sets)
        self.me = Sender(identity.uid, identity.incarnation, identity.boot, identity.starts[-1])
        self._interval_s = interval_s
        self._nonce = identity.boot * NONCES_PER_BOOT
        self._answers: set[str] = set()
        self._heard: set[str] = set()
        self._next_join_s = 0.0
        self._recorded = dict(identity.boots)
        self._recording: dict[str, tuple[int, str]] = {}
        self._reported: dict[str, _Reported] = {}

    @property
    def is_voter(self) -> bool:
        """Whether this incarnation is a voting member."""
        return self.membership.formed and self.membership.is_member(self.me)

    @property
    def needs_replace(self) -> bool:
        """Whether the cluster was formed with another life of this node."""
        configured = self.me.uid in self.membership.voters
        return configured and self.identity.formed and not self.is_voter

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Members that must still answer before the first formation is complete.

        Those that were never heard, while there are any: the others wait for the same ones.
        """
        unanswered = self._unanswered
        return tuple(uid for uid in unanswered if uid not in self._heard) or unanswered

    @property
    def _unanswered(self) -> tuple[str, ...]:
        if self.identity.formed or self.me.uid not in self.membership.voters:
            return ()
        return tuple(u for u in self.membership.voters if u != self.me.uid and u not in self._answers)

    def _save(self, **changes: object) -> SaveIdentity:
        self.identity = msgspec.structs.replace(self.identity, **changes)
        return SaveIdentity(self.identity)

    def save_sets(self) -> SaveIdentity:
        """The record that makes the present sets durable; stored before any later vote."""
        return self._save(formed=True, sets=self.membership.sets)

    # -- formation

    def receive(self, sender: Sender, message: object, now_s: float) -> Effects:
        """Take part in the first formation, or learn of a start."""
        if sender.uid in self.membership.voters:
            self._heard.add(sender.uid)
        if isinstance(message, Join):
            return self.on_join(sender, message)
        if isinstance(message, Joined):
            return self.on_joined(sender, message)
        if isinstance(message, Refused):
            return self.on_refused(message)
        if isinstance(message, BootRecorded):
            self._on_boot_recorded(message)
        return Effects()

    def tick(self, now_s: float) -> Effects:
        """Ask those that have not answered."""
        effects = Effects()
        if self.deadline_s is None or now_s < self._next_join_s:
            return effects
        self._next_join_s = now_s + self._interval_s
        effects.add(self._complete())
        if not self.identity.formed:
            # Observers and lost nodes ask as well: any formed member tells them who founded it.
            to = self._unanswered or tuple(u for u in self.membership.voters if u != self.me.uid)
            effects.sends.append(Send(to, Join(self._nonce)))
        return effects

    @property
    def deadline_s(self) -> float | None:
        """When `tick` wants to be called."""
        return None if self.identity.formed else self._next_join_s

    def _record(self, sender: Sender) -> Effects:
        """Record the sender's incarnation, while this node is not formed."""
        if self.identity.members.get(sender.uid) == sender.incarnation:
            return Effects()
        self._nonce += 1
        self._answers.clear()
        members = {**self.identity.members, sender.uid: sender.incarnation}
        return Effects(records=[self._save(members=members)])

    def on_join(self, sender: Sender, message: Join) -> Effects:
        """Another node asks to be recorded; the answer leaves when the record is durable."""
        if self.me.uid not in self.membership.voters or sender.uid == self.me.uid:
            return Effects()
        effects = Effects()
        if not self.identity.formed:
            if self.identity.lost or sender.uid not in self.membership.voters:
                # This node cannot say that nothing was formed: its earlier life may have been in it.
                return effects
            effects.add(self._record(sender))
        answer = Joined(message.nonce, self.identity.formed, self.identity.members)
        effects.replies.append(Send((sender.uid,), answer))
        return effects

    def on_joined(self, sender: Sender, message: Joined) -> Effects:
        """A member says what it has recorded."""
        if self.identity.formed or message.nonce != self._nonce or sender.uid not in self.membership.voters:
            return Effects()
        if message.formed:
            # With this incarnation among the founders it votes; without, it needs a Replace.
            return self._form(message.members)
        effects = self._record(sender)
        if effects:
            self._next_join_s = 0.0
        elif message.members == self.identity.members and set(message.members) == set(self.membership.voters):
            self._answers.add(sender.uid)
            effects.add(self._complete())
        return effects

    def _complete(self) -> Effects:
        if self.identity.lost or self._unanswered or self.me.uid not in self.membership.voters:
            return Effects()
        return self._form(self.identity.members)

    def _form(self, founders: dict[str, str]) -> Effects:
        if set(founders) != set(self.membership.voters):
            return Effects()
        self.membership.load([(1, founders)])
        save = self._save(formed=True, members=dict(founders), sets=self.membership.sets)
        return Effects(records=[save])

    # -- starts

    def reported(self, sender: Sender, promised: ProposalID, upto: int = 0) -> None:
        """``sender`` said, by a Promise or an Accepted, that this is durable at it."""
        known = self._reported.get(sender.incarnation)
        if known is None:
            if not self.membership.is_member(sender):
                return
            known = self._reported[sender.incarnation] = _Reported(sender.boot)
        if promised > known.promised or upto > known.upto or sender.boot != known.boot:
            known.note(sender.boot, promised, upto)

    def admit(self, sender: Sender, message: object) -> tuple[bool, Effects]:
        """Whether to listen to this start of a member, and what to say or save otherwise.

        A start counts only once it is recorded durably here: then no older copy of the same
        storage, brought back later, can speak in its place. Before that it must say that its
        storage went through the start that is recorded here (the copy may have been started often,
        unheard, and have counted as far), and that it holds what that incarnation once reported.
        """
        if isinstance(message, AskDescent):
            return False, self._tell_descent(sender, message)
        if sender.uid == self.me.uid:
            return sender == self.me, NOTHING
        if not self.membership.is_member(sender):
            return True, NOTHING
        start = (sender.boot, sender.boot_id)
        recorded = self._recorded.get(sender.incarnation, (0, ""))
        if start == recorded:
            return True, NOTHING
        # The one that is being written down counts already as the one to come from.
        known = self._recording.get(sender.incarnation, recorded)
        if start == known:
            return False, Effects()
        if sender.boot <= known[0]:
            return False, _refuse(sender, f"a peer has seen start {known[0]}, this is start {sender.boot}")
        if isinstance(message, Descent) and message.known == known[1]:
            problem = self._problem(sender, message, known[0])
            return False, _refuse(sender, problem) if problem else self._record_boot(sender)
        if isinstance(message, (Heartbeat, HeartbeatReply)):
            return False, Effects(sends=[Send((sender.uid,), AskDescent(known[1]))])
        return False, Effects()

    def _tell_descent(self, sender: Sender, message: AskDescent) -> Effects:
        """Anybody may know, also who is not listened to yet."""
        starts = self.identity.starts
        descends = not message.known or message.known in starts
        answer = Descent(message.known, descends, len(starts), *self._held)
        return Effects(sends=[Send((sender.uid,), answer)])

    def _problem(self, sender: Sender, message: Descent, known_boot: int) -> str:
        """Why this start is of an old copy; "" if it is not.

        Who was started more often than it keeps words, and never heard meanwhile, cannot show what it
        comes from: then the number of the start and what it holds are all that speaks for it.
        """
        if not message.descends and sender.boot - known_boot < message.kept:
            return f"a peer has seen start {known_boot}, and this start does not come from it"
        reported = self._reported.get(sender.incarnation)
        if reported is None:
            return ""
        promised, upto = reported.before(sender.boot)
        if message.promised < promised:
            return f"it promised {promised} and now knows of {message.promised} only"
        if message.upto < upto:
            return f"it accepted slot {upto} and now has slots up to {message.upto} only"
        return ""

    def _record_boot(self, sender: Sender) -> Effects:
        start = (sender.boot, sender.boot_id)
        self._recording[sender.incarnation] = start
        current = {life for _, members in self.membership.sets for life in members.values()}
        boots = {life: boot for life, boot in self.identity.boots.items() if life in current}
        self._reported = {life: known for life, known in self._reported.items() if life in current}
        save = self._save(boots={**boots, sender.incarnation: start})
        done = BootRecorded(sender.uid, sender.incarnation, sender.boot, sender.boot_id)
        return Effects(records=[save], replies=[Send((self.me.uid,), done)])

    def _on_boot_recorded(self, message: BootRecorded) -> None:
        start = (message.boot, message.boot_id)
        if message.boot > self._recorded.get(message.incarnation, (0, ""))[0]:
            self._recorded[message.incarnation] = start
        if self._recording.get(message.incarnation) == start:
            del self._recording[message.incarnation]

    def on_refused(self, message: Refused) -> Effects:
        """A peer remembers more of this very storage than it holds: it is an old copy."""
        effects = Effects()
        mine = (self.me.incarnation, self.me.boot, self.me.boot_id)
        if (message.incarnation, message.boot, message.boot_id) == mine:
            effects.lost = f"this storage is an old copy: {message.reason}"
        return effects


def _refuse(sender: Sender, reason: str) -> Effects:
    refusal = Refused(sender.incarnation, sender.boot, sender.boot_id, reason[:LOST_REASON_CHARS])
    return Effects(sends=[Send((sender.uid,), refusal)])
