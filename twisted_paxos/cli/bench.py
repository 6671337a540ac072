"""paxosctl bench: how many puts or gets a cluster does, and how long each takes."""

from __future__ import annotations

import random
import sys
import time
from typing import Any, Final

import click
from msgspec import Struct
from twisted.internet.defer import Deferred, gatherResults

from twisted_paxos.cli import output
from twisted_paxos.cli.keys import run_with_client
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.client import VALUE_MAX_BYTES, Client
from twisted_paxos.errors import PaxosError

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class Plan(Struct, frozen=True):
    """What to do.

    Attributes:
        puts_share: of all operations, the rest are gets.
        in_flight: operations at once.
        seconds: how long.
        count: after how many it ends, 0 for no limit.
        keys: over how many keys.
        value_bytes: of each value.
        serializable: kind of gets.
        prefix: of the keys.
    """

    puts_share: float
    in_flight: int
    seconds: float
    count: int
    keys: int
    value_bytes: int
    serializable: bool
    prefix: str


@click.command("bench")
@click.argument("kind", type=click.Choice(("put", "get", "mixed")), default="put")
@click.option("--in-flight", "-n", type=click.IntRange(1, 10_000), default=64, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
@click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many operations.")
@click.option("--keys", type=click.IntRange(min=1), default=1_000, show_default=True)
@click.option("--value-bytes", type=click.IntRange(0, VALUE_MAX_BYTES), default=64, show_default=True)
@click.option("--serializable", is_flag=True, help="Gets from what one node has.")
@click.option("--prefix", default="bench/", show_default=True, help="Keys begin with this; they stay.")
@common_options
@click.pass_obj
def bench_command(
    settings: Settings,
    kind: str,
    in_flight: int,
    seconds: float,
    count: int,
    keys: int,
    value_bytes: int,
    serializable: bool,
    prefix: str,
) -> int:
    """Put, get, or do both in turn, as many at once as --in-flight says; prints rate and latencies."""
    share = {"put": 1.0, "get": 0.0, "mixed": 0.5}[kind]
    plan = Plan(share, in_flight, seconds, count, keys, value_bytes, serializable, prefix)
    return run_with_client(settings, lambda client: _bench(client, settings, plan))


class Bench:
    """One run.

    Args:
        client: does the operations.
        plan: which ones.
        rng: picks keys.
    """

    def __init__(self, client: Client, plan: Plan, rng: random.Random) -> None:
        self.latencies_s: list[float] = []
        self.errors: dict[str, int] = {}
        self._client = client
        self._plan = plan
        self._rng = rng
        self._value = b"x" * plan.value_bytes
        self._started = 0
        self._end_s = 0.0

    async def run(self) -> float:
        """Do it; for how many seconds."""
        started_s = time.perf_counter()
        self._end_s = started_s + self._plan.seconds
        workers = [Deferred.fromCoroutine(self._work()) for _ in range(self._plan.in_flight)]
        await gatherResults(workers, consumeErrors=True)
        return max(1e-6, time.perf_counter() - started_s)

    async def _work(self) -> None:
        plan = self._plan
        while time.perf_counter() < self._end_s and not (plan.count and self._started >= plan.count):
            self._started += 1
            began_s = time.perf_counter()
            try:
                await self._operation()
            except PaxosError as error:
                name = type(error).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
            else:
                self.latencies_s.append(time.perf_counter() - began_s)

    def _operation(self) -> Deferred[Any]:
        key = f"{self._plan.prefix}{self._rng.randrange(self._plan.keys):010}"
        if self._rng.random() < self._plan.puts_share:
            return self._client.kv.put(key, self._value)
        return self._client.kv.get(key, serializable=self._plan.serializable)


def percentile_s(ordered_s: list[float], percent: float) -> float:
    """The latency that ``percent`` of all do not exceed; 0 when there are none."""
    if not ordered_s:
        return 0.0
    return ordered_s[min(len(ordered_s) - 1, int(len(ordered_s) * percent / 100))]


async def _bench(client: Client, settings: Settings, plan: Plan) -> int:
    bench = Bench(client, plan, random.Random())
    elapsed_s = await bench.run()
    ordered_s = sorted(bench.latencies_s)
    failed = sum(bench.errors.values())
    figures = {
        f"p{percent:g}_ms": round(1000 * percentile_s(ordered_s, percent), 3) for percent in PERCENTILES
    }
    document = {
        "operations": len(ordered_s),
        "seconds": round(elapsed_s, 3),
        "per_second": round(len(ordered_s) / elapsed_s, 1),
        "failed": failed,
        **figures,
        "max_ms": round(1000 * ordered_s[-1], 3) if ordered_s else 0.0,
    }
    if settings.json:
        output.print_json({**document, "errors": bench.errors})
    else:
        output.print_table(("figure", "value"), [(name, f"{number:,}") for name, number in document.items()])
        for name, times in bench.errors.items():
            output.warn(f"{times:,} operations failed with {name}")
    sys.stdout.flush()
    return 1 if failed else 0
