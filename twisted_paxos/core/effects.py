"""What a role asks for: to persist, then to send, then to apply.

Handlers return `Effects` and touch nothing outside themselves. One place performs them
(`twisted_paxos.protocols.effects`), always in the same order; the idea is that of etcd's
``Ready`` and of magic-wormhole's journal: process, checkpoint, release.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from twisted_paxos.core.messages import Accepted, SlotEntry
from twisted_paxos.core.records import Record

EVERYONE = ("*",)
"""As a destination: all voters and observers, and the sender itself."""

OTHERS = ("-",)
"""As a destination: all voters and observers except the sender."""


def others_but(uids: tuple[str, ...]) -> tuple[str, ...]:
    """As a destination: `OTHERS` without ``uids``."""
    return OTHERS + uids


class Send(NamedTuple):
    """A message and where it goes: uids, `EVERYONE`, `OTHERS` or `others_but`."""

    to: tuple[str, ...]
    message: Any


class ReadChosen(NamedTuple):
    """Chosen slots to be read from storage and sent to ``to`` as the answer to a Fetch."""

    to: str
    request_id: int
    from_slot: int
    upto_slot: int


class Readable(NamedTuple):
    """A read of this node is confirmed: it may be answered once ``slot`` is applied."""

    read_id: int
    slot: int


class Effects:
    """What is to be done, in this order.

    Attributes:
        records: to be made durable, in order.
        sends: messages that need nothing of ``records``; may leave at once.
        replies: messages that report state: they leave after a sync that covers ``records``
            and everything that was given to storage before them.
        chosen: slots to apply, in order, without a gap.
        reads: answers that storage has.
        behind: id of a node that has let go of the slot that this one needs next: it has a snapshot.
        readable: reads of this node that are confirmed.
        lost: this incarnation may not go on, and why: its storage is not what it once was. The node
            must set it aside and come back as a new incarnation. Empty otherwise.
    """

    __slots__ = ("behind", "chosen", "lost", "readable", "reads", "records", "replies", "sends")

    def __init__(
        self,
        records: Iterable[Record] = (),
        sends: Iterable[Send] = (),
        replies: Iterable[Send] = (),
    ) -> None:
        self.records: list[Record] = list(records) if records else []
        self.sends: list[Send] = list(sends) if sends else []
        self.replies: list[Send] = list(replies) if replies else []
        self.chosen: list[SlotEntry] = []
        self.reads: list[ReadChosen] = []
        self.readable: list[Readable] = []
        self.behind = ""
        self.lost = ""

    def add(self, other: Effects) -> None:
        """Take over what ``other`` asks for, after what is here."""
        # Most of it is empty most of the time, and this runs several times for each message.
        if other.records:
            self.records += other.records
        if other.sends:
            self.sends += other.sends
        if other.replies:
            self.replies += other.replies
        if other.chosen:
            self.chosen += other.chosen
        if other.reads:
            self.reads += other.reads
        if other.readable:
            self.readable += other.readable
        self.behind = self.behind or other.behind
        self.lost = self.lost or other.lost

    def __bool__(self) -> bool:
        # Spelt out: this is asked several times for each command.
        return bool(
            self.records
            or self.sends
            or self.replies
            or self.chosen
            or self.reads
            or self.readable
            or self.behind
            or self.lost
        )

    def __repr__(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in self.__slots__ if getattr(self, name)]
        return f"Effects({', '.join(parts)})"


class _Nothing(Effects):
    """Asks for nothing, and cannot be made to."""

    __slots__ = ()

    def __init__(self) -> None:
        for name in ("records", "sends", "replies", "chosen", "reads", "readable"):
            object.__setattr__(self, name, ())
        for name in ("behind", "lost"):
            object.__setattr__(self, name, "")

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError("NOTHING is shared: whoever asks for something makes its own `Effects`")

    def add(self, other: Effects) -> None:
        """As above."""
        raise AssertionError("NOTHING is shared: use `joined`")

    def __bool__(self) -> bool:
        return False


NOTHING: Final = _Nothing()
"""What most messages lead to: one for all, as this is asked for several times with each."""


def joined(first: Effects, second: Effects) -> Effects:
    """What both ask for, in this order; either may be `NOTHING`, and neither is used again."""
    if not second:
        return first
    if not first:
        return second
    first.add(second)
    return first


def merge_accepted(replies: list[Send]) -> list[Send]:
    """Join the Accepteds of one ballot that one sync released into one message; may return ``replies``.

    The others keep their order; an Accepted moves ahead to the first of its ballot, which
    changes nothing: no order is assumed between messages (rule 8).
    """
    if len(replies) < 2:
        return replies
    merged: list[Send] = []
    places: dict[tuple[tuple[str, ...], Any], int] = {}
    for reply in replies:
        message = reply.message
        if type(message) is not Accepted:
            merged.append(reply)
            continue
        key = (reply.to, message.ballot)
        if key in places:
            place = places[key]
            slots = merged[place].message.slots
            merged[place] = Send(reply.to, Accepted(message.ballot, slots + message.slots))
        else:
            places[key] = len(merged)
            merged.append(reply)
    return merged
