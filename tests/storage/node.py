"""A stand-in for a node: file storage on a simulated disk, and what its caller was told."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from tests.storage.contract import CLUSTER, FIRST, accepted, value
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.records import (
    Record,
    Recovered,
    SavePromise,
)
from twisted_paxos.storage.format import (
    segment_name,
)
from twisted_paxos.storage.wal import FileStorage
from twisted_paxos.testing.storage import ImmediateExecutor, SimulatedDisk

LOG = segment_name(1)


class Node:
    """Storage on a simulated disk, and what its caller was told."""

    def __init__(self, disk: SimulatedDisk, segment_bytes: int = 4096) -> None:
        self.disk = disk
        self.clock = Clock()
        self.executor = ImmediateExecutor(self.clock)
        self.storage = FileStorage(disk, "A", self.executor, segment_bytes)

    def start(self) -> Recovered:
        """Recover."""
        return self.storage.recover("one", CLUSTER)

    def write(self, *records: Record) -> Any:
        """Write; ``"done"``, or the name of the error."""
        outcome = self.begin(*records)
        self.clock.advance(0)
        self.clock.advance(0)
        return outcome[0]

    def begin(self, *records: Record) -> list[str]:
        """Write without turning the clock; the outcome comes into the list."""
        outcome = ["waits"]
        self.storage.write(list(records)).addCallbacks(
            lambda _: outcome.__setitem__(0, "done"),
            lambda failure: outcome.__setitem__(0, failure.type.__name__),
        )
        return outcome

    def close(self) -> None:
        """Close."""
        self.storage.close()
        for _ in range(5):
            self.clock.advance(0)

    def read_all(self, upto_slot: int) -> dict[int, tuple[ProposalID, bytes]]:
        """What `read_chosen` finds from slot 1 on."""
        found: list[Any] = []
        self.storage.read_chosen(1, upto_slot, 1 << 30).addCallback(found.extend)
        self.clock.advance(0)
        return {entry.slot: (entry.ballot, bytes(entry.value)) for entry in found}

    def contents(self, found: Recovered) -> dict[int, tuple[ProposalID, bytes]]:
        """Everything stored, whether above chosen_upto or not."""
        above = {slot: (entry.ballot, bytes(entry.value)) for slot, entry in found.entries.items()}
        return self.read_all(found.chosen_upto) | above


def small_log() -> tuple[SimulatedDisk, list[dict[int, bytes]]]:
    """A stopped node with three groups of records over two segments; the contents after each group."""
    disk = SimulatedDisk()
    node = Node(disk)
    node.start()
    node.write(SavePromise(FIRST), accepted(1, size_bytes=1500), accepted(2, size_bytes=1500))
    node.storage.note_chosen(2)
    node.write(accepted(3, size_bytes=700), accepted(4))
    node.write(accepted(5), accepted(6))
    node.disk.kill()
    sizes = {1: 1500, 2: 1500, 3: 700}
    full = {slot: bytes(value(slot, sizes.get(slot, 10))) for slot in range(1, 7)}
    return disk, [{slot: full[slot] for slot in range(1, upto + 1)} for upto in (0, 2, 4, 6)]


def values(contents: dict[int, tuple[ProposalID, bytes]]) -> dict[int, bytes]:
    """Without the ballots."""
    return {slot: data for slot, (_, data) in contents.items()}
