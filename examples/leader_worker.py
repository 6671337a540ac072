"""A worker of which only one works at a time, whatever happens to the others.

With the built-in cluster running, start it as often as you like, each with a name:

    python examples/leader_worker.py one
    python examples/leader_worker.py two

One of them leads and works; kill it with ``kill -9``, and another one goes on a few seconds later.
The job keeps its progress in the store, and every write of it checks the leader's key: a leader that
was paused for too long, and does not know yet that it leads no more, changes nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from twisted_paxos.client import Client, connect
from twisted_paxos.client.kv import create_revision, put
from twisted_paxos.client.recipes import Election
from twisted_paxos.errors import PaxosError

ENDPOINTS = ["127.0.0.1:5100", "127.0.0.1:5101", "127.0.0.1:5102"]
PROGRESS = "worker/progress"


async def work(client: Client, election: Election, name: str) -> None:
    """One step a second, as long as this process leads."""
    while election.held:
        found = await client.kv.get(PROGRESS)
        step = int(found.kvs[0].value) + 1 if found.kvs else 1
        fenced = [create_revision(election.key) == election.token]
        done = await client.kv.txn(fenced, [put(PROGRESS, str(step))])
        if not done.succeeded:
            return
        print(f"{name} did step {step} (fencing token {election.token})", flush=True)
        await deferLater(client.reactor, 1.0)


async def main(reactor: Any, name: str) -> None:
    """Stand, work, and stand again when the leadership is lost."""
    client = await connect(reactor, ENDPOINTS)
    while True:
        election = Election(client, "worker/leader", ttl_s=5)
        try:
            print(f"{name} stands", flush=True)
            await election.campaign(name)
            await work(client, election, name)
            await election.release()
        except PaxosError as error:
            print(f"{name}: {error}", flush=True)
            await deferLater(reactor, 1.0)


def run(reactor: Any, name: str) -> Deferred[None]:
    """What `react` calls."""
    reactor.seconds = time.monotonic  # Nobody sets this clock.
    return Deferred.fromCoroutine(main(reactor, name))


if __name__ == "__main__":
    react(run, sys.argv[1:2] or ["worker"])
