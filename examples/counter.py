"""A state machine of your own, in a program of your own: three processes that agree on a number.

Start it three times, in one directory, each with another id:

    python examples/counter.py A
    python examples/counter.py B
    python examples/counter.py C

Each adds to the counter once a second, and prints what the whole cluster has counted. Kill one with
``kill -9``: the others count on; start it again, and it catches up.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from zope.interface import implementer

from twisted_paxos.config import build_config
from twisted_paxos.errors import NodeStopped
from twisted_paxos.interfaces import IStateMachine
from twisted_paxos.service import build_service
from twisted_paxos.statemachine.commands import Context

PEERS = ["A=127.0.0.1:7000", "B=127.0.0.1:7001", "C=127.0.0.1:7002"]


@implementer(IStateMachine)
class Counter:
    """A number; a command is the number to add to it, as JSON text."""

    deadline_ms = None

    def __init__(self) -> None:
        self.number = 0

    def apply(self, payload: Raw, context: Context) -> Raw:
        """Add; a command that is no number changes nothing."""
        text = msgspec.json.decode(payload)
        if isinstance(text, str) and text.isdecimal():
            self.number += int(text)
        return Raw(b"%d" % self.number)

    def advance(self, context: Context) -> None:
        """Log time moves on; a counter does not mind."""

    def query(self, payload: Raw) -> Raw:
        """The number, whatever is asked."""
        return Raw(b"%d" % self.number)

    def snapshot(self) -> Iterator[bytes]:
        """The number of this moment: it is taken now, not when the iterator is asked."""
        return iter([b"%d" % self.number])

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """Take the number from a snapshot."""
        number = int(b"".join(pieces))
        yield
        self.number = number


async def main(reactor: Any, uid: str) -> None:
    """Count for ever."""
    service: Any = build_service(reactor, build_config(uid, peers=PEERS), Counter)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    await service.startService()
    while service.running:
        try:
            result = await service.node.propose("1")
        except NodeStopped:
            return
        print(f"slot {result.slot}: all have counted to {bytes(result.data).decode()}", flush=True)
        await deferLater(reactor, 1.0)


def run(reactor: Any, uid: str) -> Deferred[None]:
    """What `react` calls."""
    reactor.seconds = time.monotonic  # Nobody sets this clock.
    return Deferred.fromCoroutine(main(reactor, uid))


if __name__ == "__main__":
    react(run, sys.argv[1:2] or ["A"])
