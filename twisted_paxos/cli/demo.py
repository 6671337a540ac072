"""``paxosctl demo``: three real nodes agree, lose their leader, agree on, take it back; then the store."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred

from twisted_paxos.cli import output
from twisted_paxos.cli.demostore import StoreDemo
from twisted_paxos.client import Client, LogReader, Result, SlotEntry, connect, payload_of, value_of
from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.nodes import ClusterProcesses, NodeProcess, poll

if TYPE_CHECKING:
    from rich.console import Console

FIRST_VALUES: Final = ("apple", "banana", "cherry", "date", "elderberry")
VALUES_WITHOUT_LEADER: Final = ("fig", "grape", "hazelnut", "imbe", "jackfruit")
LAST_VALUES: Final = ("kiwi", "lemon")
LINES_SHOWN: Final = 10
"""Of each node's output, when the demo fails."""

PROPOSE_TIMEOUT_S: Final = 10.0

CLEAN_EXITS: Final = (0, -signal.SIGTERM)
"""twistd stops its services on SIGTERM, then ends by that same signal."""

UNSHOWN: Final = ("(lease keep alive", "(no-op)")
"""Rows of the log that only show that time passes."""

COLOURS: Final = ("cyan", "magenta", "yellow")


class DemoFailed(PaxosError):
    """The demo saw something that must not be; the text says what.

    Attributes:
        lines: the last output of each node.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


async def demo(reactor: Any, as_json: bool) -> int:
    """Run the demo on processes of its own; 0 when everything was as it should be."""
    directory = Path(tempfile.mkdtemp(prefix="paxos-demo-"))
    cluster: ClusterProcesses | None = None
    show: _Demo | None = None
    try:
        cluster = ClusterProcesses(reactor, directory)
        show = _Demo(reactor, cluster, _console(as_json))
        summary = await show.run()
    except PaxosError as error:
        lines = _last_lines(cluster) if cluster is not None else []
        raise DemoFailed(f"the demo failed: {error}", lines) from None
    finally:
        if show is not None:
            await show.close()
        if cluster is not None:
            await cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        output.print_json(summary)
    return 0


def _console(as_json: bool) -> Console:
    from rich.console import Console

    return Console(file=sys.stderr if as_json else sys.stdout, highlight=False, soft_wrap=True)


def _last_lines(cluster: ClusterProcesses) -> list[str]:
    return [
        f"{uid}: {output.printable(line)}"
        for uid, node in cluster.nodes.items()
        for line in list(node.lines)[-LINES_SHOWN:]
    ]


class _Demo:
    """The steps, and what they show."""

    def __init__(self, reactor: Any, cluster: ClusterProcesses, console: Console) -> None:
        self._reactor = reactor
        self._cluster = cluster
        self._console = console
        self._started_s = time.monotonic()
        self._colours = dict(zip(cluster.nodes, COLOURS, strict=False))
        self._client: Client | None = None
        self._store: StoreDemo | None = None
        self._readers: list[LogReader] = []
        self._following: list[Deferred[None]] = []
        self._seen: dict[str, int] = dict.fromkeys(cluster.nodes, 0)
        self._proposed: list[tuple[str, Result]] = []

    async def run(self) -> dict[str, Any]:
        """Everything; returns the summary."""
        ready_s = await self._start()
        self._client = await connect(self._reactor, self._cluster.endpoints, timeout_s=PROPOSE_TIMEOUT_S)
        await self._propose(FIRST_VALUES)
        leader = await self._cluster.leader()
        gap_s = await self._kill(leader)
        caught_up_s = await self._restart(leader)
        await self._propose(LAST_VALUES)
        self._store = StoreDemo(self._reactor, self._client, self._cluster.endpoints, self._line)
        waited_s = await self._store.run()
        slots = await self._compare()
        await self._stop()
        return {**self._summary(ready_s, gap_s, caught_up_s, slots), "lock_handed_over_s": round(waited_s, 3)}

    async def close(self) -> None:
        """End what runs in the background."""
        if self._store is not None:
            await self._store.close()
            self._store = None
        for reader in self._readers:
            reader.close()
        for following in self._following:
            following.cancel()
        if self._client is not None:
            await self._client.close()

    # -- the steps ---------------------------------------------------------------------------

    async def _start(self) -> float:
        self._say(f"Starting nodes {', '.join(self._cluster.nodes)}: one process each, on free ports")
        started_s = time.monotonic()
        self._cluster.start()
        statuses = await self._cluster.wait_ready()
        ready_s = time.monotonic() - started_s
        leader = await self._cluster.leader()
        self._say(f"All {len(statuses)} are ready after {ready_s:.2f} s; {leader.uid} leads")
        for node in self._cluster.nodes.values():
            self._follow(node)
        return ready_s

    async def _propose(self, values: tuple[str, ...]) -> float:
        """Propose one after the other; seconds until the first was chosen."""
        assert self._client is not None
        self._say(f"Proposing {', '.join(values)}")
        started_s = time.monotonic()
        first_s = 0.0
        for value in values:
            result = await self._client.propose(value)
            first_s = first_s or time.monotonic() - started_s
            self._proposed.append((value, result))
        await self._all_have_shown(max(result.slot for _, result in self._proposed))
        return first_s

    async def _all_have_shown(self, slot: int) -> None:
        async def shown() -> bool | None:
            running = [uid for uid, node in self._cluster.nodes.items() if node.running]
            return True if all(self._seen[uid] >= slot for uid in running) else None

        await poll(self._reactor, f"every node has chosen slot {slot}", shown)

    async def _kill(self, leader: NodeProcess) -> float:
        self._say(f"Killing the leader, {leader.uid} (SIGKILL), and proposing on", "bold red")
        killed_s = time.monotonic()
        await leader.kill()
        await self._propose(VALUES_WITHOUT_LEADER[:1])
        gap_s = time.monotonic() - killed_s
        new_leader = await self._cluster.leader()
        self._say(f"{new_leader.uid} leads now; the first value was chosen {gap_s:.2f} s after the kill")
        await self._propose(VALUES_WITHOUT_LEADER[1:])
        return gap_s

    async def _restart(self, node: NodeProcess) -> float:
        missed = max(self._seen.values()) - self._seen[node.uid]
        self._say(f"Starting {node.uid} again; it has missed {missed} slots")
        started_s = time.monotonic()
        node.start()
        await node.wait_ready()
        await self._all_have_shown(max(self._seen.values()))
        caught_up_s = time.monotonic() - started_s
        self._say(f"{node.uid} has caught up, {caught_up_s:.2f} s after its start", "bold green")
        return caught_up_s

    async def _compare(self) -> int:
        """Verify that all logs are equal and hold what was proposed; the number of slots."""
        logs: dict[str, list[SlotEntry]] = {}

        async def equal() -> bool | None:
            for uid, node in self._cluster.nodes.items():
                logs[uid] = await self._read(node)
            # Ballots may differ: a value can be accepted again, unchanged, under a later one.
            contents = [[(entry.slot, bytes(entry.value)) for entry in entries] for entries in logs.values()]
            return True if all(content == contents[0] for content in contents) else None

        await poll(self._reactor, "all logs are equal", equal)
        entries = next(iter(logs.values()))
        self._verify(entries)
        self._say(f"All {len(logs)} logs are equal: {len(entries)} slots", "bold green")
        return len(entries)

    async def _read(self, node: NodeProcess) -> list[SlotEntry]:
        entries = []
        async for entry in LogReader(self._reactor, [node.endpoint]):
            entries.append(entry)
        return entries

    def _verify(self, entries: list[SlotEntry]) -> None:
        """Every acknowledged value is where its result said, and in no other place."""
        found = [
            (payload_of(command), entry.slot, index)
            for entry in entries
            for index, command in enumerate(value_of(entry).commands)
        ]
        for value, result in self._proposed:
            places = [(slot, index) for payload, slot, index in found if payload == value]
            if (result.slot, result.index) not in places:
                raise DemoFailed(f"{value!r} was acknowledged in slot {result.slot} and is not there")

    async def _stop(self) -> None:
        await self.close()
        await self._cluster.stop()
        bad = [uid for uid, node in self._cluster.nodes.items() if node.exit_status not in CLEAN_EXITS]
        if bad:
            raise DemoFailed(f"SIGTERM did not stop {', '.join(bad)} cleanly")

    def _summary(self, ready_s: float, gap_s: float, caught_up_s: float, slots: int) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self._started_s
        values = len(self._proposed)
        self._say(
            f"Done in {elapsed_s:.1f} s: {values} values in {slots} slots, nothing lost; "
            f"ready in {ready_s:.2f} s, fail-over {gap_s:.2f} s, catch-up {caught_up_s:.2f} s; "
            "all nodes stopped",
            "bold",
        )
        return {
            "ok": True,
            "seconds": round(elapsed_s, 3),
            "values": values,
            "slots": slots,
            "ready_s": round(ready_s, 3),
            "fail_over_s": round(gap_s, 3),
            "caught_up_s": round(caught_up_s, 3),
        }

    # -- what is seen meanwhile ----------------------------------------------------------------

    def _follow(self, node: NodeProcess) -> None:
        reader = LogReader(self._reactor, [node.endpoint], follow=True)
        self._readers.append(reader)
        following = Deferred.fromCoroutine(self._show(node.uid, reader))
        following.addErrback(lambda failure: failure.trap(CancelledError, PaxosError) and None)
        self._following.append(following)

    async def _show(self, uid: str, reader: LogReader) -> None:
        async for entry in reader:
            self._seen[uid] = entry.slot
            for row in output.log_rows(entry):
                slot, ballot, value = row.split("\t", 2)
                if value.startswith(UNSHOWN):
                    continue
                self._line(f"  {uid} chose  slot {slot:>3}  {ballot:<6} {value}", self._colours[uid])

    def _say(self, text: str, style: str = "bold") -> None:
        self._line(text, style)

    def _line(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False)
