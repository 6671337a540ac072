"""The load on a cluster of ours: one process, one workload, one line of JSON as the result.

    python -m benchmarks.load '{"endpoints": ["127.0.0.1:5100"], "in_flight": 64, "seconds": 3}'

Closed loop: ``in_flight`` operations are always under way. Open loop (``rate_per_s``): operations start
when they are due, however late the answers are, so that a stall shows in every operation that it met
(no coordinated omission). What is sent is encoded once, as h2load does; each result is looked at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from typing import Any

import msgspec
from msgspec import Raw, Struct
from twisted.internet import task
from twisted.internet.defer import Deferred

from benchmarks.figures import latencies
from twisted_paxos import client as paxos
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.statemachine.kvcommands import (
    LeaseKeepAlive,
    LeaseKeepAliveResult,
    Put,
    PutResult,
    Range,
    decode_result,
    encode,
)

TICK_S = 0.001
"""How often an open loop looks for what is due: the reactor's own resolution."""

LATE_S = 0.0015
"""An operation that starts so much after it was due counts from when it was due."""

DRAIN_S = 30.0
LEASE_TTL_S = 600


class Workload(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to do.

    Attributes:
        endpoints: client ports; the first is used as long as it serves.
        operation: ``put``, ``read`` (linearizable), ``serializable`` (local read), ``mix`` (nine reads
            to one put) or ``keepalive`` (of one lease, which it takes first).
        in_flight: operations under way, in a closed loop.
        rate_per_s: operations a second, in an open loop; 0 for a closed one.
        operations: end after so many, without a warm-up; 0: after the time.
        keys: how many different keys the puts go round.
        first_key: which of them is the first.
        key_step: from each to the next one; no divisor of ``keys``, or 1.
        key_bytes, value_bytes: sizes.
        seconds, warm_up_s: how long is measured, and how long before that is not.
        times: give the times of all acknowledgements as well, on the monotonic clock in seconds.
    """

    endpoints: list[str]
    operation: str = "put"
    in_flight: int = 1
    rate_per_s: float = 0.0
    operations: int = 0
    keys: int = 1
    first_key: int = 0
    key_step: int = 1
    key_bytes: int = 16
    value_bytes: int = 64
    seconds: float = 3.0
    warm_up_s: float = 1.0
    times: bool = False


def key_of(number: int, size_bytes: int) -> bytes:
    """Key ``number`` of this size."""
    return b"%0*d" % (size_bytes, number)


class Load:
    """Runs one `Workload` through one client.

    Args:
        reactor: time.
        client: connected.
        workload: what to do.
    """

    def __init__(self, reactor: Any, client: paxos.Client, workload: Workload) -> None:
        self._reactor = reactor
        self._client = client
        self._workload = workload
        self._measuring = False
        self._stopped = False
        self._under_way = 0
        self._took_s: list[float] = []
        self._ended_s: list[float] = []
        self._errors = 0
        self._acknowledged_puts = 0
        self._error = ""
        self._idle: Deferred[None] = Deferred()
        self._left = workload.operations or -1
        self._lease = Raw(b"")
        self._puts = self._put_payloads()
        self._question = Raw(encode(Range(key_of(0, workload.key_bytes))))
        self._operations = self._starters()

    def _put_payloads(self) -> Iterator[Raw]:
        work, value = self._workload, b"v" * self._workload.value_bytes
        if work.keys == 1:
            return cycle([Raw(encode(Put(key_of(0, work.key_bytes), value)))])
        numbers = (number % work.keys for number in count(work.first_key, work.key_step))
        return (Raw(encode(Put(key_of(number, work.key_bytes), value))) for number in numbers)

    def _starters(self) -> Iterator[Callable[[float], None]]:
        kinds = {
            "put": [self._put],
            "read": [self._read],
            "serializable": [self._read_here],
            "mix": [self._put, *[self._read] * 9],
            "keepalive": [self._keep_alive],
        }
        return cycle(kinds[self._workload.operation])

    # -- single operations

    def _put(self, start_s: float) -> None:
        self._client.begin(next(self._puts), partial(self._put_done, start_s))

    def _put_done(self, start_s: float, outcome: Result | PaxosError) -> None:
        if isinstance(outcome, PaxosError):
            self._not_done(str(outcome))
            return
        assert isinstance(decode_result(outcome.data), PutResult), outcome
        self._acknowledged_puts += 1
        self._done(start_s)

    def _read(self, start_s: float) -> None:
        done = self._client.query(self._question)
        done.addCallbacks(lambda _: self._done(start_s), self._failed)

    def _read_here(self, start_s: float) -> None:
        done = self._client.query(self._question, serializable=True)
        done.addCallbacks(lambda _: self._done(start_s), self._failed)

    def _keep_alive(self, start_s: float) -> None:
        done = self._client.command(self._lease)
        done.addCallbacks(self._kept, self._failed, callbackArgs=(start_s,))

    def _kept(self, result: Any, start_s: float) -> None:
        assert isinstance(decode_result(result.data), LeaseKeepAliveResult), result
        self._done(start_s)

    def _done(self, start_s: float) -> None:
        now_s = time.perf_counter()
        if self._measuring:
            self._took_s.append(now_s - start_s)
        if self._workload.times:
            self._ended_s.append(time.monotonic())
        self._next()

    def _failed(self, failure: Any) -> None:
        self._not_done(failure.getErrorMessage())

    def _not_done(self, error: str) -> None:
        self._errors += 1
        self._error = error
        self._next()

    def _next(self) -> None:
        self._under_way -= 1
        if self._left and not self._stopped:
            if not self._workload.rate_per_s:
                self._start(time.perf_counter())
        elif not self._under_way and not self._idle.called:
            self._idle.callback(None)

    def _start(self, start_s: float) -> None:
        self._under_way += 1
        self._left -= 1
        next(self._operations)(start_s)

    # -- the run

    async def run(self) -> dict[str, Any]:
        """Do it; the figures."""
        work = self._workload
        if work.operation == "keepalive":
            lease = await self._client.kv.lease_grant(LEASE_TTL_S)
            self._lease = Raw(encode(LeaseKeepAlive(lease.id)))
        if work.operations:
            return await self._so_many(work.operations)
        ticking: task.LoopingCall | None = None
        if work.rate_per_s:
            ticking = self._open_loop(time.perf_counter())
        else:
            for _ in range(work.in_flight):
                self._start(time.perf_counter())
        await task.deferLater(self._reactor, work.warm_up_s)
        self._measuring, began_s, began_cpu_s = True, time.perf_counter(), time.process_time()
        await task.deferLater(self._reactor, work.seconds)
        self._measuring, took_s = False, time.perf_counter() - began_s
        used_s = time.process_time() - began_cpu_s
        self._stopped = True
        if ticking is not None:
            ticking.stop()
        if self._under_way:
            await self._idle.addTimeout(DRAIN_S, self._reactor)
        return self._figures(took_s, used_s)

    async def _so_many(self, operations: int) -> dict[str, Any]:
        """All of them, however long they take."""
        self._measuring, began_s, began_cpu_s = True, time.perf_counter(), time.process_time()
        for _ in range(min(operations, self._workload.in_flight)):
            self._start(time.perf_counter())
        await self._idle
        return self._figures(time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    def _open_loop(self, began_s: float) -> task.LoopingCall:
        started = 0

        def tick() -> None:
            nonlocal started
            now_s = time.perf_counter()
            while (due_s := began_s + started / self._workload.rate_per_s) <= now_s:
                started += 1
                self._start(due_s if now_s - due_s > LATE_S else now_s)

        ticking = task.LoopingCall(tick)
        ticking.clock = self._reactor
        ticking.start(TICK_S)
        return ticking

    def _figures(self, took_s: float, used_s: float) -> dict[str, Any]:
        done = len(self._took_s)
        figures: dict[str, Any] = {
            "operations": done,
            "rate_per_s": round(done / took_s, 1),
            "acknowledged_puts": self._acknowledged_puts,
            "errors": self._errors,
            "error": self._error,
            "client_cpu_us": round(1e6 * used_s / max(1, done), 2),
            **latencies(self._took_s),
        }
        if self._workload.times:
            figures["times_s"] = self._ended_s
        return figures


async def run(reactor: Any, workload: Workload) -> dict[str, Any]:
    """Connect, run, disconnect."""
    client = await paxos.connect(reactor, workload.endpoints)
    try:
        return await Load(reactor, client, workload).run()
    finally:
        await client.close()


def main() -> None:
    """The workload is the one argument, as JSON."""
    from twisted.internet import reactor as global_reactor

    reactor: Any = global_reactor
    reactor.seconds = time.monotonic
    try:
        workload = msgspec.json.decode(sys.argv[1], type=Workload)
    except (IndexError, msgspec.DecodeError) as error:
        raise SystemExit(f"load: one argument, a workload as JSON: {error}") from None
    failures: list[str] = []

    def began() -> None:
        running = Deferred.fromCoroutine(run(reactor, workload))
        running.addCallback(lambda figures: sys.stdout.buffer.write(msgspec.json.encode(figures) + b"\n"))
        running.addErrback(failed)
        running.addBoth(lambda _: reactor.stop())

    def failed(failure: Any) -> None:
        expected = failure.check(PaxosError)
        failures.append(failure.getErrorMessage() if expected else failure.getTraceback())

    reactor.callWhenRunning(began)
    reactor.run()
    if failures:
        raise SystemExit(f"load: {failures[0]}")


if __name__ == "__main__":
    main()
