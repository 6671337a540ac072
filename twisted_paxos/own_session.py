"""The session of the program that embeds a node: its commands apply once, whatever is tried again."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_paxos.core.messages import Command
from twisted_paxos.core.requests import check_payload
from twisted_paxos.errors import NodeStopped, Overloaded, SessionExpired
from twisted_paxos.interfaces import INode, IResultSink
from twisted_paxos.statemachine.commands import OPEN_SESSION, Result

OWN_HELD_MAX = 10_000
"""Commands of the embedding program that may wait until its session is open."""


@implementer(IResultSink)
class OwnSession:
    """The session of the program that embeds the node: one at a time, opened when first needed."""

    def __init__(self, node: INode, client: str) -> None:
        self._node = node
        self._client = client
        self._sequence = 0
        self._waiting: dict[int, Deferred[Result]] = {}
        self._held: list[Command] = []
        self._opening = False
        self._opened = False

    def propose(self, payload: Raw) -> Deferred[Result]:
        """Have ``payload`` chosen and applied."""
        check_payload(payload)
        if not self._opening:
            self._node.submit([Command(self._client, 0, 0, OPEN_SESSION)], self)
            self._opening = True
        self._sequence += 1
        sequence = self._sequence
        command = Command(self._client, sequence, min(self._waiting, default=sequence), payload)
        if self._opened:
            self._node.submit([command], self)
        elif len(self._held) < OWN_HELD_MAX:
            # Ahead of its session a command would be refused for good.
            self._held.append(command)
        else:
            raise Overloaded(f"{OWN_HELD_MAX} commands wait for the session; try again later")
        result: Deferred[Result] = Deferred()
        self._waiting[sequence] = result
        return result

    def applied(self, results: Sequence[Result]) -> None:
        """Results from the applier."""
        for result in results:
            if result.sequence == 0:
                self._opened = True
                held, self._held = self._held, []
                self._node.submit(held, self)
                continue
            waiting = self._waiting.pop(result.sequence, None)
            if waiting is None:
                continue
            if result.error:
                waiting.errback(SessionExpired(f"not applied: {result.error}"))
            else:
                waiting.callback(result)

    def stop(self) -> None:
        """Nothing more will be applied here."""
        waiting, self._waiting = self._waiting, {}
        for result in waiting.values():
            result.errback(NodeStopped("the node stopped; the command may or may not be chosen"))
