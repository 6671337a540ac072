"""Turns what a role asks for into lines that a person can read, and text into messages.

Ballots are written ``3.B``, values by the commands in them: ``v1+v2``; ``noop`` for none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    AskDescent,
    Chosen,
    Command,
    Commit,
    Descent,
    Entry,
    Fetch,
    Forward,
    ForwardReply,
    Heartbeat,
    HeartbeatReply,
    Join,
    Joined,
    Nack,
    Prepare,
    Promise,
    Refused,
    Sender,
    SlotEntry,
    decode_value,
    encode_value,
)
from twisted_paxos.core.records import SaveAccepted, SaveChosen, SaveIdentity, SavePromise
from twisted_paxos.statemachine.commands import encode_opaque

MEMBERS = {"A": "a1", "B": "b1", "C": "c1"}


def ballot(text: str) -> ProposalID:
    """``3.B`` as a ballot; ``-`` is none."""
    if text == "-":
        return NO_BALLOT
    number, uid = text.split(".")
    return ProposalID(int(number), uid)


def sender(uid: str, life: str = "", boot: int = 1) -> Sender:
    """A start of a node; of its first incarnation unless told."""
    return Sender(uid, life or MEMBERS.get(uid, f"{uid.lower()}1"), boot, f"boot{boot}")


def command(number: int, client: str = "c") -> Command:
    """The command whose text is ``v<number>``."""
    return Command(client, number, 1, encode_opaque(f"v{number}"))


def value(*numbers: int) -> Raw:
    """A value with these commands; a no-op without any."""
    return encode_value(0, [command(number) for number in numbers])


def entry(slot: int, at: str, *numbers: int) -> SlotEntry:
    """A slot with ballot and value."""
    return SlotEntry(slot, ballot(at), value(*numbers))


def entries(**slots: tuple[Any, ...]) -> dict[int, Entry]:
    """``s5=("2.A", 7)`` as the entries that storage gives back."""
    return {int(name[1:]): Entry(ballot(at), value(*numbers)) for name, (at, *numbers) in slots.items()}


def steady() -> float:
    """Random numbers without chance."""
    return 0.0


def _value(raw: Raw) -> str:
    texts = [json.loads(bytes(one.payload)) for one in decode_value(raw).commands]
    return "+".join(str(text) for text in texts) or "noop"


def _entry(one: SlotEntry) -> str:
    return f"{one.slot}={one.ballot}:{_value(one.value)}"


def _entries(found: tuple[SlotEntry, ...]) -> str:
    return f"[{' '.join(map(_entry, found))}]"


def _slots(slots: tuple[int, ...]) -> str:
    return ",".join(map(str, slots))


def _promise(m: Promise) -> str:
    part = f"#{m.promise_id} {m.part + 1}/{m.parts}"
    return f"Promise {m.ballot} {part} upto {m.chosen_upto} {_entries(m.accepted)}"


_MESSAGES: dict[type, Callable[[Any], str]] = {
    Prepare: lambda m: f"Prepare {m.ballot} from {m.from_slot}",
    Promise: _promise,
    Accept: lambda m: f"Accept {m.ballot} {m.slot}={_value(m.value)} upto {m.chosen_upto}",
    Accepted: lambda m: f"Accepted {m.ballot} {_slots(m.slots)}",
    Commit: lambda m: (
        f"Commit {m.ballot} upto {m.chosen_upto}{' ' + _entries(m.entries) if m.entries else ''}"
    ),
    Nack: lambda m: f"Nack {m.ballot} promised {m.promised}",
    Fetch: lambda m: f"Fetch #{m.request_id} {m.from_slot}-{m.upto_slot}",
    Chosen: lambda m: f"Chosen #{m.request_id} {_entries(m.entries)} upto {m.chosen_upto}",
    Heartbeat: lambda m: f"Heartbeat {m.round}",
    HeartbeatReply: lambda m: f"HeartbeatReply {m.round}",
    Forward: lambda m: f"Forward #{m.forward_id} {'+'.join(f'v{c.sequence}' for c in m.commands)}",
    ForwardReply: lambda m: f"ForwardReply #{m.forward_id} {'taken' if m.taken else 'not taken'}",
    Join: lambda m: "Join",
    Joined: lambda m: f"Joined {'formed' if m.formed else 'not formed'} {_members(m.members)}",
    AskDescent: lambda m: f"AskDescent {m.known or '-'}",
    Descent: lambda m: f"Descent {m.known or '-'} {m.descends} of {m.kept} {m.promised} {m.upto}",
    Refused: lambda m: f"Refused start {m.boot}",
}


def _members(members: dict[str, str]) -> str:
    return " ".join(f"{uid}={life}" for uid, life in sorted(members.items()))


def _message(message: Any) -> str:
    show = _MESSAGES.get(type(message))
    return show(message) if show is not None else type(message).__name__


def _record(record: Any) -> str:
    if isinstance(record, SavePromise):
        return f"save promise {record.ballot}"
    if isinstance(record, SaveAccepted):
        return f"save accepted {record.slot}={record.ballot}:{_value(record.value)}"
    if isinstance(record, SaveChosen):
        return f"save chosen {record.slot}={record.ballot}:{_value(record.value)}"
    assert isinstance(record, SaveIdentity)
    formed = "formed" if record.identity.formed else "not formed"
    return f"save identity {formed} {_members(record.identity.members)}"


def _to(to: tuple[str, ...]) -> str:
    if to == EVERYONE:
        return "everyone"
    if to[:1] == OTHERS:
        return " but ".join(filter(None, ("others", ",".join(to[1:]))))
    return ",".join(to)


def lines(effects: Effects) -> list[str]:
    """What is asked for, in the order in which it is done; replies wait for the records."""
    done = [_record(record) for record in effects.records]
    done += [f"then to {_to(send.to)}: {_message(send.message)}" for send in effects.replies]
    done += [f"to {_to(send.to)}: {_message(send.message)}" for send in effects.sends]
    done += [f"chosen {_entry(one)}" for one in effects.chosen]
    done += [
        f"read {read.from_slot}-{read.upto_slot} for {read.to} #{read.request_id}" for read in effects.reads
    ]
    if effects.lost:
        done.append(f"lost: {effects.lost}")
    return done
