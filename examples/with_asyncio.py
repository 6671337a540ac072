"""The client in a program that is written for asyncio, on Twisted's asyncio reactor.

With the built-in cluster running (``twistd -n paxos --id A``, B and C):

    python examples/with_asyncio.py
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from twisted.internet import asyncioreactor
from twisted.internet.defer import Deferred

ENDPOINTS = ["127.0.0.1:5100", "127.0.0.1:5101", "127.0.0.1:5102"]

T = TypeVar("T")


def wait_for(deferred: Deferred[T]) -> Awaitable[T]:
    """A Deferred as what asyncio can await."""
    return deferred.asFuture(asyncio.get_running_loop())


async def show_changes(watch: Any, count: int) -> None:
    """Print ``count`` changes. A watch is iterated in a coroutine of Twisted's; see `main`."""
    async for batch in watch:
        for event in batch.events:
            print(f"revision {event.kv.mod_revision}: {event.type} {event.kv.key!r} {event.kv.value!r}")
            count -= 1
        if count <= 0:
            watch.close()


async def main(reactor: Any) -> None:
    """Ordinary asyncio code, but for the two kinds of wrapping."""
    from twisted_paxos.client import connect

    client = await wait_for(connect(reactor, ENDPOINTS, timeout_s=10.0))
    watch = client.kv.watch("example/", prefix=True)
    showing = wait_for(Deferred.fromCoroutine(show_changes(watch, count=3)))
    await asyncio.sleep(0.2)
    await asyncio.gather(*(wait_for(client.kv.put(f"example/{n}", f"value {n}")) for n in range(3)))
    await asyncio.wait_for(showing, timeout=10)
    found = await wait_for(client.kv.get("example/", prefix=True))
    print(f"{found.count} keys at revision {found.revision}")
    await wait_for(client.close())


def run() -> int:
    """Install the reactor, run `main` on its loop; the exit status."""
    loop = asyncio.new_event_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor

    running: Any = reactor
    running.seconds = time.monotonic  # Nobody sets this clock.
    running.startRunning(installSignalHandlers=False)
    try:
        loop.run_until_complete(main(reactor))
    except Exception as error:
        print(f"with_asyncio: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
