"""The session of a program that is part of the node: its commands apply once, whatever is tried again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Raw
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_paxos.core.messages import Command
from twisted_paxos.core.requests import check_payload
from twisted_paxos.errors import NodeStopped, Overloaded, PaxosError, SessionExpired
from twisted_paxos.interfaces import INode, IResultSink
from twisted_paxos.statemachine.commands import OPEN_SESSION, Result

OWN_HELD_MAX: Final = 10_000
"""Commands that may wait until the session is open."""

RENEW_AFTER_S: Final = 600.0
"""After so long without a command a new session is opened: the cluster forgets idle ones after an hour."""


@implementer(IResultSink)
class OwnSession:
    """A session that is opened when first needed, and anew after a long rest.

    Args:
        node: proposes for it.
        client: a word that no session of the cluster had before.
        seconds: tells the time.
    """

    def __init__(self, node: INode, client: str, seconds: Callable[[], float]) -> None:
        self._node = node
        self._name = client
        self._seconds = seconds
        self._number = 0
        self._used_s = float("-inf")
        self._waiting: dict[tuple[str, int], Deferred[Result]] = {}
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._client = f"{self._name}.{self._number}"
        self._sequence = 0
        self._floor = 1  # nothing below it is waited for
        self._held: list[Command] = []
        self._opening = False
        self._opened = False
        self._expired = False

    def propose(self, payload: Raw) -> Deferred[Result]:
        """Have ``payload`` chosen and applied.

        Returns:
            fires with its result; fails with `NodeStopped`, or with `SessionExpired`: it is not
            known then whether it was applied.

        Raises:
            Overloaded, ValueTooLarge: see `INode.submit`.
        """
        check_payload(payload)
        now_s = self._seconds()
        rested = now_s - self._used_s > RENEW_AFTER_S and not self._waiting
        if self._expired or (self._opened and rested):
            self._begin()
        self._used_s = now_s
        self._open()
        self._sequence += 1
        command = Command(self._client, self._sequence, self._lowest_waiting(), payload)
        key = (self._client, self._sequence)
        result: Deferred[Result] = Deferred()
        self._waiting[key] = result
        try:
            self._submit(command)
        except Exception:
            del self._waiting[key]
            raise
        return result

    def _open(self) -> None:
        if self._opening:
            return
        self._opening = True
        try:
            self._node.submit([Command(self._client, 0, 0, OPEN_SESSION)], self)
        except Exception:
            self._opening = False
            raise

    def _lowest_waiting(self) -> int:
        while self._floor < self._sequence and (self._client, self._floor) not in self._waiting:
            self._floor += 1
        return self._floor

    def _submit(self, command: Command) -> None:
        if self._opened:
            self._node.submit([command], self)
        elif len(self._held) < OWN_HELD_MAX:
            # Ahead of its session a command would be refused for good.
            self._held.append(command)
        else:
            raise Overloaded(f"{OWN_HELD_MAX} commands wait for the session; try again later")

    def applied(self, results: Sequence[Result]) -> None:
        """Results from the applier."""
        for result in results:
            if result.sequence == 0:
                self._session_applied(result)
                continue
            waiting = self._waiting.pop((result.client, result.sequence), None)
            if waiting is None:
                continue
            if result.error:
                self._expired = self._expired or result.client == self._client
                waiting.errback(SessionExpired(f"not applied: {result.error}"))
            else:
                waiting.callback(result)

    def _session_applied(self, result: Result) -> None:
        """The session is open, or refused: then what waits for it fails, and the next command tries again."""
        held, self._held = self._held, []
        if result.error:
            self._opening = False
            self._fail(held, Overloaded(f"no session for this node: {result.error}"))
            return
        self._opened = True
        try:
            self._node.submit(held, self)
        except PaxosError as error:
            self._fail(held, error)

    def _fail(self, commands: Sequence[Command], error: PaxosError) -> None:
        for command in commands:
            self._waiting.pop((command.client, command.sequence)).errback(error)

    def stop(self) -> None:
        """Nothing more will be applied here."""
        waiting, self._waiting = self._waiting, {}
        for result in waiting.values():
            result.errback(NodeStopped("the node stopped; the command may or may not be chosen"))
