"""``python -m twisted_paxos.testing.explore``: every run of the pure roles, within small bounds.

The real `Acceptor`, `Proposer` and `Learner` of the core, without election, clock or Twisted: what
election would decide, and what crashes, are choices that are explored. The network is a set of
messages that only grows, and any of them may arrive anywhere at any time, any number of times: so loss,
duplication, reordering and replay need no choices of their own. What a node persists and what it
then sends is one step: a crash in between is a message that never arrives.

What a node does depends on its own state and on one message only. So each state of a node is stored
once and has a number, each message is a bit, each step of a node is computed once, and a state of the
whole is a handful of integers (explicit-state search, as in Holzmann's SPIN).
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any, Final, NamedTuple, TypeAlias

import click
from rich.console import Console

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.effects import EVERYONE, OTHERS, Effects, Send
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Chosen,
    Commit,
    Nack,
    Promise,
    Sender,
    SlotEntry,
)
from twisted_paxos.errors import ConfigError
from twisted_paxos.testing.explore_node import Envelope, Node, is_dead, show

STATES_MAX: Final = 400_000
"""Where the search ends, unless told otherwise."""

TAKES_OVER: Final = " takes over"


class Bounds(NamedTuple):
    """How far the search goes.

    Attributes:
        acceptors: how many nodes, each with an acceptor and a learner.
        proposers: how many of them propose as well.
        slots: no more slots are proposed.
        ballots: how many take-overs there are, all together, each with its own ballot.
        crashes: how often nodes crash, all together.
        states: the search ends, incomplete, after so many.
    """

    acceptors: int = 3
    proposers: int = 2
    slots: int = 1
    ballots: int = 3
    crashes: int = 0
    states: int = STATES_MAX


class Explored(NamedTuple):
    """What the search found.

    Attributes:
        states, steps: how many there were.
        complete: everything within the bounds was seen.
        violation: what must not be; empty when nothing was found.
        trace: how to get there, shortest first.
        seconds: how long it took.
    """

    states: int
    steps: int
    complete: bool
    violation: str
    trace: tuple[str, ...]
    seconds: float


State: TypeAlias = tuple[int, ...]
"""The numbers of the nodes' states, how many take-overs and crashes there were, and the messages as bits."""


class Violation(AssertionError):
    """Something that must never happen."""


class Explorer:
    """Searches all states within ``bounds``, breadth first."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.voters = tuple("ABCDEFG"[: bounds.acceptors])
        self._nodes: list[Node] = []
        self._node_numbers: dict[tuple[Any, ...], int] = {}
        self._messages: list[Envelope] = []
        self._message_numbers: dict[Any, int] = {}
        self._deliveries: dict[tuple[int, int], tuple[int, int]] = {}
        self._choices: dict[int, list[tuple[str, int, int]]] = {}
        self._dead: dict[int, tuple[int, int]] = {}
        self._crashed: dict[int, list[tuple[str, int, int]]] = {}
        self._accepted_bits = 0
        self._votes: dict[int, str] = {}
        self.steps = 0

    def run(self) -> Explored:
        """Search."""
        started_s = monotonic()
        start = (*(self._number(self._new_node(uid)) for uid in self.voters), 0, 0, 0)
        seen: dict[State, int] = {start: 0}
        queue: deque[State] = deque([start])
        self._parents, self._actions = array("q", [-1]), ["start"]
        violation, last = "", 0
        while queue and not violation and len(seen) < self.bounds.states:
            state = queue.popleft()
            here = seen[state]
            try:
                for action, grown in self._steps(state):
                    self.steps += 1
                    following = self._without_dead(grown)
                    if following in seen:
                        continue
                    last = seen[following] = len(seen)
                    self._parents.append(here)
                    self._actions.append(action)
                    self._check(following)
                    queue.append(following)
            except AssertionError as error:
                violation = str(error) or "an assertion of the core"
                last = last if isinstance(error, Violation) else here
        return Explored(
            len(seen),
            self.steps,
            not queue and not violation,
            violation,
            self._path(last) if violation else (),
            monotonic() - started_s,
        )

    def _new_node(self, uid: str) -> Node:
        return Node(uid, self.voters, self.voters.index(uid) < self.bounds.proposers)

    def _path(self, number: int) -> tuple[str, ...]:
        path = []
        while number > 0:
            path.append(self._actions[number])
            number = self._parents[number]
        return tuple(reversed(path))

    # -- steps

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        *numbers, ballots, crashes, network = state
        for place, number in enumerate(numbers):
            before, after = numbers[:place], numbers[place + 1 :]
            for action, changed, sent in self._own_steps(number):
                taken = ballots + action.endswith(TAKES_OVER)
                if taken <= self.bounds.ballots:
                    yield action, (*before, changed, *after, taken, crashes, network | sent)
            if crashes < self.bounds.crashes:
                for action, changed, sent in self._crashes(number):
                    yield action, (*before, changed, *after, ballots, crashes + 1, network | sent)
            uid = self.voters[place]
            rest, bit = network, 0
            while rest:
                low = rest & -rest
                bit = low.bit_length() - 1
                rest ^= low
                envelope = self._messages[bit]
                if envelope.sender == uid or (envelope.to and envelope.to != uid):
                    continue
                changed, sent = self._deliver(number, bit)
                if changed != number or sent & ~network:
                    following = (*before, changed, *after, ballots, crashes, network | sent)
                    yield f"{uid} takes {show(envelope)}", following

    def _without_dead(self, state: State) -> State:
        """The same state without the messages that are dead to every node; votes stay, for the checks."""
        dead = -1
        for number in state[:-3]:
            dead &= self._dead_to(number)
        return (*state[:-1], state[-1] & ~(dead & ~self._accepted_bits))

    def _dead_to(self, number: int) -> int:
        known, dead = self._dead.get(number, (0, 0))
        if known < len(self._messages):
            node = self._nodes[number]
            for bit in range(known, len(self._messages)):
                dead |= is_dead(node, self._messages[bit]) << bit
            self._dead[number] = (len(self._messages), dead)
        return dead

    def _deliver(self, number: int, bit: int) -> tuple[int, int]:
        known = self._deliveries.get((number, bit))
        if known is None:
            envelope = self._messages[bit]
            node = self._nodes[number].clone()
            sender = _sender(envelope.sender)
            upto = node.log.chosen_upto
            known = self._after(node, node.receive(sender, envelope.message), upto)
            self._deliveries[number, bit] = known
        return known

    def _own_steps(self, number: int) -> list[tuple[str, int, int]]:
        """What a node may do without a message: take over, propose."""
        known = self._choices.get(number)
        if known is None:
            known = self._choices[number] = list(self._make_own_steps(self._nodes[number]))
        return known

    def _make_own_steps(self, node: Node) -> Iterator[tuple[str, int, int]]:
        upto = node.log.chosen_upto
        if node.proposes:
            new = node.clone()
            yield f"{node.uid}{TAKES_OVER}", *self._after(new, new.take_over(), upto)
        if node.proposer.leading and node.proposer._next_slot <= self.bounds.slots:
            new = node.clone()
            yield f"{node.uid} proposes", *self._after(new, new.propose(), upto)

    def _crashes(self, number: int) -> list[tuple[str, int, int]]:
        """A crash, if it makes a difference."""
        known = self._crashed.get(number)
        if known is None:
            known = self._crashed[number] = []
            node = self._nodes[number]
            for noted in (True, False) if node.chosen else (True,):
                new = node.clone()
                new.crash(noted)
                changed, sent = self._after(new, Effects(), node.log.chosen_upto)
                if changed != number:
                    known.append((f"{node.uid} crashes{'' if noted else ', nothing noted'}", changed, sent))
        return known

    def _after(self, node: Node, effects: Effects, chosen_upto: int) -> tuple[int, int]:
        """Persist and send; returns the number of the node's state, and what was sent as bits.

        What a node sends to itself arrives at once.
        """
        sent = 0
        to_self: deque[Any] = deque()
        me = _sender(node.uid)
        while True:
            node.persist(effects)
            for send in (*effects.sends, *effects.replies):
                sent |= self._send(node, send)
                if send.to == EVERYONE or node.uid in send.to:
                    to_self.append(send.message)
            if not to_self:
                break
            effects = node.receive(me, to_self.popleft())
        if node.log.chosen_upto > chosen_upto:
            entries = [
                SlotEntry(slot, *node.stored[slot])
                for slot in range(1, node.log.chosen_upto + 1)
                if slot in node.stored
            ]
            chosen = Chosen(0, tuple(entries), node.log.chosen_upto, 1)
            sent |= self._send(node, Send(OTHERS, chosen))
        if node.proposer.leading and node.log.chosen_upto:
            sent |= self._share(node)
        return self._number(node), sent

    def _share(self, node: Node) -> int:
        """What a leader tells, at any time: what is chosen, and the last value without those before it."""
        ballot, chosen_upto = node.proposer.ballot, node.log.chosen_upto
        sent = self._send(node, Send(OTHERS, Commit(ballot, chosen_upto)))
        own = [slot for slot, entry in node.stored.items() if slot <= chosen_upto and entry.ballot == ballot]
        if own:
            last = max(own)
            entries = (SlotEntry(last, *node.stored[last]),)
            sent |= self._send(node, Send(OTHERS, Commit(ballot, chosen_upto, entries)))
        return sent

    def _send(self, node: Node, send: Send) -> int:
        message = send.message
        if isinstance(message, Promise):
            message = Promise(message.ballot, 0, message.part, message.parts, *_rest(message))
        if isinstance(message, Nack):
            return 0  # It only ends a leadership, and a message may always be lost.
        to = ("",) if send.to in (EVERYONE, OTHERS) else [uid for uid in send.to if uid != node.uid]
        if isinstance(message, Accept):
            # Whoever did not get it at first may get it later, when others did not answer.
            to = ("",)
        if isinstance(message, Accepted):
            # The leader's own as well: what the votes in the network choose is checked.
            to = [message.ballot.uid]
        bits = 0
        for uid in to:
            bits |= self._bit(Envelope(node.uid, uid, message, _votes(node, message)))
        return bits

    def _bit(self, envelope: Envelope) -> int:
        key = (*envelope[:2], show(envelope), envelope.votes)
        number = self._message_numbers.get(key)
        if number is None:
            number = self._message_numbers[key] = len(self._messages)
            self._messages.append(envelope)
            if isinstance(envelope.message, Accepted):
                self._accepted_bits |= 1 << number
        return 1 << number

    def _number(self, node: Node) -> int:
        key = (node.uid, *node.key())
        number = self._node_numbers.get(key)
        if number is None:
            number = self._node_numbers[key] = len(self._nodes)
            self._nodes.append(node)
        return number

    # -- checks

    def _check(self, state: State) -> None:
        """Agreement: between the nodes, and with what the votes in the network chose."""
        logs = [self._nodes[number].chosen for number in state[:-3]]
        longest = max(logs, key=len)
        for log in logs:
            if log != longest[: len(log)]:
                raise Violation(f"two logs: {log} and {longest}")
        votes = state[-1] & self._accepted_bits
        if votes not in self._votes:
            self._votes[votes] = self._count(votes)
        if self._votes[votes]:
            raise Violation(self._votes[votes])

    def _count(self, votes: int) -> str:
        """What is wrong with a set of votes; empty when nothing is."""
        voters: dict[tuple[int, ProposalID, bytes], set[str]] = {}
        for number, envelope in enumerate(self._messages):
            if votes >> number & 1:
                for vote in envelope.votes:
                    voters.setdefault(vote, set()).add(envelope.sender)
        chosen: dict[int, bytes] = {}
        for (slot, ballot, value), its in sorted(voters.items()):
            if len(its) * 2 > len(self.voters) and chosen.setdefault(slot, value) != value:
                return f"two values chosen in slot {slot}, the second at {ballot}"
        return ""


def _votes(node: Node, message: Any) -> tuple[tuple[int, ProposalID, bytes], ...]:
    if not isinstance(message, Accepted):
        return ()
    held = [(slot, node.stored[slot]) for slot in message.slots if slot in node.stored]
    return tuple((slot, message.ballot, bytes(entry.value)) for slot, entry in held)


def _sender(uid: str) -> Sender:
    return Sender(uid, uid, 1, "")


def _rest(message: Promise) -> tuple[Any, ...]:
    return message.chosen_upto, message.accepted


def explore(bounds: Bounds | None = None) -> Explored:
    """Search everything within ``bounds``."""
    return Explorer(bounds or Bounds()).run()


@click.command(help="Explore every run of the core's pure roles within small bounds.")
@click.option("--acceptors", type=click.IntRange(1, 5), default=3, show_default=True)
@click.option("--proposers", type=click.IntRange(1, 3), default=2, show_default=True)
@click.option("--slots", type=click.IntRange(1, 4), default=1, show_default=True)
@click.option("--ballots", type=click.IntRange(1, 6), default=3, show_default=True, help="Take-overs.")
@click.option("--crashes", type=click.IntRange(0, 3), default=0, show_default=True, help="Of all nodes.")
@click.option("--states", type=click.IntRange(1), default=STATES_MAX, show_default=True, help="At most.")
@click.option("--mutant", default="", help="Plant a bug; see twisted_paxos.testing.mutants.")
def main(
    acceptors: int,
    proposers: int,
    slots: int,
    ballots: int,
    crashes: int,
    states: int,
    mutant: str,
) -> None:
    """The command line."""
    from twisted_paxos.testing.mutants import planted

    console = Console()
    bounds = Bounds(acceptors, min(proposers, acceptors), slots, ballots, crashes, states)
    try:
        with planted(mutant):
            found = explore(bounds)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    extent = "all of them" if found.complete else "not all"
    console.print(f"{bounds}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{found.states:,} states ({extent}), {found.steps:,} steps, {found.seconds:.1f} s", highlight=False
    )
    if found.violation:
        console.print("\n".join((*found.trace, found.violation)), markup=False, highlight=False)
    sys.exit(1 if found.violation else 0)


if __name__ == "__main__":
    main()
