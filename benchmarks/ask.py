"""Asks every node of a cluster of ours something, and prints the answers as JSON.

python -m benchmarks.ask status|revisions ENDPOINT,...
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from twisted_paxos import client as paxos
from twisted_paxos.errors import PaxosError


async def ask(reactor: Any, what: str, endpoints: list[str]) -> list[Any]:
    """The answers of those that answer: a status, or how many changes the store has applied."""
    answers: list[Any] = []
    for endpoint in endpoints:
        if what == "status":
            try:
                answers.append(await paxos.ask_status(reactor, endpoint, 1.0))
            except PaxosError:
                continue
        else:
            client = await paxos.connect(reactor, [endpoint])
            found = await client.kv.status()
            # An empty store is at revision 1.
            answers.append(found.revision - 1)
            await client.close()
    return answers


def main() -> None:
    """See the module."""
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    reactor.seconds = time.monotonic
    failures: list[str] = []

    def began() -> None:
        asking = Deferred.fromCoroutine(ask(reactor, sys.argv[1], sys.argv[2].split(",")))
        asking.addCallback(lambda answers: sys.stdout.buffer.write(msgspec.json.encode(answers) + b"\n"))
        asking.addErrback(lambda failure: failures.append(failure.getErrorMessage()))
        asking.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(began)
    reactor.run()
    if failures:
        raise SystemExit(f"ask: {failures[0]}")


if __name__ == "__main__":
    main()
