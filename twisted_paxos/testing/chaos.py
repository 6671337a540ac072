"""Chaos: real nodes in network namespaces of their own, real faults, and how long nobody can write.

    python -m twisted_paxos.testing.chaos --nodes 3 --times 10 --json chaos.json

Needs root and Linux with iproute2 and nftables; skips with one line otherwise. Clients write all
the time. Each fault is inflicted, lasts a few seconds and is healed; then all nodes must agree,
every acknowledged write must be in the log once and where it was said to be, in real-time order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field, to_builtins
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater, react

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.chaos_cluster import DIRECTORY_PREFIX, ChaosCluster, remove_disks, why_no_own_disk
from twisted_paxos.testing.chaos_faults import FAULTS, Fault, Scene
from twisted_paxos.testing.chaos_history import longest_gap_s
from twisted_paxos.testing.chaos_load import ANY, Prober, Writer, stop_all, writers_for
from twisted_paxos.testing.chaos_network import Network, remove_leftovers, why_not
from twisted_paxos.testing.nodes import poll

WARM_UP_S: Final = 1.0
"""Every writer writes for so long before a fault begins."""

HEALED_S: Final = 3.0
"""How long after the healing a second gap is looked for."""

NODES: Final = "ABCDE"


class Outcome(Struct):
    """What one fault did, over its repetitions. Times in seconds.

    Attributes:
        fault, title, etcd: see `Fault`.
        gap_s: per repetition, the longest time during the fault in which no node took a write.
        client_gap_s: the same for the one native client that knows every node.
        healed_gap_s, healed_client_gap_s: the same after the healing.
        writes_per_s: one at a time during the fault, where loss is the fault.
        before_per_s: the same before it.
        acknowledged: writes acknowledged, all of them found in the log.
        slots: length of the log.
        reads: linearizable reads, all of them explained by an order of the writes.
        errors: what writers were told last, each text once.
        skipped: why it did not run; empty when it did.
        failed: the promise that was broken, or what did not work; empty when all is well.
    """

    fault: str
    title: str
    etcd: str
    gap_s: list[float] = field(default_factory=list)
    client_gap_s: list[float] = field(default_factory=list)
    healed_gap_s: list[float] = field(default_factory=list)
    healed_client_gap_s: list[float] = field(default_factory=list)
    writes_per_s: list[float] = field(default_factory=list)
    before_per_s: list[float] = field(default_factory=list)
    acknowledged: int = 0
    slots: int = 0
    reads: int = 0
    errors: list[str] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""


class Chaos:
    """Runs faults, each on a cluster of its own.

    Args:
        reactor: the real one.
        network: built.
        directory: for the nodes' files.
        times: how often each fault is inflicted.
        report: called with one line after each repetition.
    """

    def __init__(self, reactor: Any, network: Network, directory: Path, times: int, report: Any) -> None:
        self._reactor = reactor
        self._network = network
        self._directory = directory
        self._times = times
        self._report = report

    async def run(self, fault: Fault) -> Outcome:
        """Inflict ``fault`` on a fresh cluster; never fails because of what the cluster does."""
        outcome = Outcome(fault.name, fault.title, fault.etcd)
        outcome.skipped = self._why_skip(fault)
        if outcome.skipped:
            return outcome
        times = min(self._times, fault.times_max)
        each = 1 if fault.fresh else times
        for first in range(1, times + 1, each):
            if not outcome.failed:
                await self._run_on_one(fault, outcome, range(first, first + each), times)
        return outcome

    async def _run_on_one(self, fault: Fault, outcome: Outcome, numbers: range, times: int) -> None:
        """Some repetitions, on one cluster."""
        directory = self._directory / f"{fault.name}-{numbers[0]}"
        directory.mkdir()
        cluster = ChaosCluster(self._reactor, directory, self._network, fault.disk)
        try:
            cluster.mount()
            cluster.start()
            await cluster.wait_ready()
            for number in numbers:
                await self._repeat(fault, cluster, outcome)
                self._report(f"{fault.title}, {number} of {times}: {_last(outcome)}")
        except PaxosError as error:
            outcome.failed = str(error)
            self._report(f"{fault.title}: FAILED: {error}")
        finally:
            await self._network.set()
            await cluster.close()
        history = cluster.history
        outcome.acknowledged += history.acknowledged
        outcome.slots += history.read_upto
        outcome.reads += history.reads

    def _why_skip(self, fault: Fault) -> str:
        if fault.nodes not in (0, len(self._network.addresses)):
            return f"needs {fault.nodes} nodes"
        return why_no_own_disk() if fault.disk == "own" else ""

    async def _repeat(self, fault: Fault, cluster: ChaosCluster, outcome: Outcome) -> None:
        leader = (await cluster.leader()).uid
        scene = Scene(self._reactor, cluster, leader)
        writers = self._writers(fault, scene)
        key = f"probed-{len(outcome.gap_s)}"
        history = cluster.history
        probers = [Prober(self._reactor, node.endpoint, key, history) for node in cluster.nodes.values()]
        if fault.loss_percent:
            probers = []  # it is a measurement, of one client
        for worker in (*writers, *probers):
            worker.start()
        try:
            await self._all_write(cluster, writers)
            moments = await self._inflict(fault, scene)
        finally:
            await stop_all([*writers, *probers])
        self._measure(fault, cluster, moments, outcome)
        told = {str(writer.last_error) for writer in writers if writer.last_error is not None}
        outcome.errors = sorted({*outcome.errors, *told})
        await cluster.settle()

    def _writers(self, fault: Fault, scene: Scene) -> list[Writer]:
        history = scene.cluster.history
        endpoints = {uid: node.endpoint for uid, node in scene.cluster.nodes.items()}
        if fault.loss_percent:
            first = [endpoints[scene.leader], *endpoints.values()]
            return [Writer(self._reactor, ANY, first, history, try_s=None, pause_s=0)]
        return writers_for(self._reactor, endpoints, scene.leader, history, fault.value_bytes)

    async def _all_write(self, cluster: ChaosCluster, writers: Sequence[Writer]) -> None:
        """Wait until every writer has a write acknowledged, then a little longer."""
        start_s = time.monotonic()

        async def written() -> bool | None:
            fresh = {
                write.worker
                for write in cluster.history.writes.values()
                if write.acknowledged_s is not None and write.acknowledged_s > start_s
            }
            return True if all(writer.name in fresh for writer in writers) else None

        await poll(self._reactor, "every writer writes", written)
        await deferLater(self._reactor, WARM_UP_S)

    async def _inflict(self, fault: Fault, scene: Scene) -> tuple[float, float, float]:
        """The fault and its healing; when it began, when it was healed, and when that was watched to."""
        begun_s = time.monotonic()
        heal = await fault.inflict(scene)
        await deferLater(self._reactor, fault.lasts_s)
        healed_s = time.monotonic()
        await heal()
        await deferLater(self._reactor, HEALED_S)
        return begun_s, healed_s, time.monotonic()

    def _measure(
        self, fault: Fault, cluster: ChaosCluster, moments: tuple[float, float, float], outcome: Outcome
    ) -> None:
        begun_s, healed_s, watched_s = moments
        times_s, own_s = cluster.history.times_s(), cluster.history.times_s(ANY)
        outcome.gap_s.append(longest_gap_s(times_s, begun_s, healed_s))
        outcome.client_gap_s.append(longest_gap_s(own_s, begun_s, healed_s))
        after_s = [time_s for time_s in times_s if time_s > healed_s]
        own_after_s = [time_s for time_s in own_s if time_s > healed_s]
        outcome.healed_gap_s.append(longest_gap_s(after_s, healed_s, watched_s))
        outcome.healed_client_gap_s.append(longest_gap_s(own_after_s, healed_s, watched_s))
        if fault.loss_percent:
            during = sum(begun_s < time_s <= healed_s for time_s in times_s)
            before = sum(begun_s - WARM_UP_S < time_s <= begun_s for time_s in times_s)
            outcome.writes_per_s.append(during / (healed_s - begun_s))
            outcome.before_per_s.append(before / WARM_UP_S)


# -- what is printed


def _last(outcome: Outcome) -> str:
    rate = f", {outcome.writes_per_s[-1]:.0f} writes/s" if outcome.writes_per_s else ""
    return (
        f"gap {outcome.gap_s[-1]:.2f} s (client {outcome.client_gap_s[-1]:.2f} s),"
        f" healed {outcome.healed_gap_s[-1]:.2f} s (client {outcome.healed_client_gap_s[-1]:.2f} s){rate}"
    )


def spread(values: Sequence[float]) -> str:
    """Median / worst, for people."""
    return f"{statistics.median(values):.2f} / {max(values):.2f} s" if values else "-"


def row(outcome: Outcome) -> list[str]:
    """One row of the table."""
    if outcome.skipped:
        return [outcome.title, f"skipped: {outcome.skipped}", "", "", "", outcome.etcd]
    gap = spread(outcome.gap_s)
    if outcome.writes_per_s:
        rate, before = statistics.median(outcome.writes_per_s), statistics.median(outcome.before_per_s)
        gap = f"{before:.0f} -> {rate:.0f} writes/s, {gap}"
    return [
        outcome.title + (" FAILED" if outcome.failed else ""),
        gap,
        spread(outcome.client_gap_s),
        spread(outcome.healed_gap_s),
        spread(outcome.healed_client_gap_s),
        outcome.etcd,
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """All outcomes as a Markdown table."""
    head = ["fault", "no node takes writes", "one client", "healed: cluster", "healed: client", "etcd 3.4"]
    rows = [head, ["---"] * len(head), *(row(outcome) for outcome in outcomes)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def chosen_faults(names: str) -> list[Fault]:
    """The faults named, separated by commas; all when nothing is.

    Raises:
        PaxosError: there is no such fault.
    """
    known = {fault.name: fault for fault in FAULTS}
    wanted = names.split(",") if names else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise PaxosError(f"no such fault: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(reactor: Any, options: argparse.Namespace, faults: Sequence[Fault]) -> list[Outcome]:
    """Everything that needs the network, which is there while this runs, and not longer."""
    network = Network(NODES[: options.nodes], reactor)
    network.lock()
    remove_disks()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix=DIRECTORY_PREFIX, ignore_cleanup_errors=True) as name:
        try:
            network.build()
            network.enter()
            chaos = Chaos(reactor, network, Path(name), options.times, _say)
            for fault in faults:
                outcomes.append(await chaos.run(fault))
        finally:
            remove_leftovers()
    return outcomes


async def _main(reactor: Any, options: argparse.Namespace, faults: Sequence[Fault]) -> None:
    try:
        outcomes = await _run(reactor, options, faults)
    except CancelledError:
        raise SystemExit("chaos: interrupted") from None
    except PaxosError as error:
        raise SystemExit(f"chaos: {error}") from None
    _say("\n" + table(outcomes))
    if options.json:
        document = {
            "nodes": options.nodes,
            "times": options.times,
            "load_average": os.getloadavg()[0],
            "faults": to_builtins(outcomes),
        }
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    failed = [f"{outcome.title}: {outcome.failed}" for outcome in outcomes if outcome.failed]
    if failed:
        raise SystemExit("\nchaos: " + "\nchaos: ".join(failed))


def _cancel(running: Deferred[None]) -> Deferred[None]:
    """Cancel the run; fires when it has cleaned up."""
    ended: Deferred[None] = Deferred()
    if running.called:
        ended.callback(None)
    else:
        running.addBoth(lambda _: ended.callback(None))
        running.cancel()
    return ended


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m twisted_paxos.testing.chaos", description=__doc__)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--faults", default="", help=f"of {', '.join(fault.name for fault in FAULTS)}")
    parser.add_argument("--times", type=int, default=10, help="how often each is inflicted")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason:
        _say(f"skipped: {reason}")
        return
    try:
        faults = chosen_faults(options.faults)
    except PaxosError as error:
        raise SystemExit(f"chaos: {error}") from None

    def start(reactor: Any) -> Deferred[None]:
        # The wall clock may be set while this runs; every time here is of the monotonic one.
        reactor.seconds = time.monotonic
        running = Deferred.fromCoroutine(_main(reactor, options, faults))
        # Ctrl-C and SIGTERM: processes, disks and namespaces go before the reactor does.
        reactor.addSystemEventTrigger("before", "shutdown", _cancel, running)
        return running

    react(start)


if __name__ == "__main__":
    main()
