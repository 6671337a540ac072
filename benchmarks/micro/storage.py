"""Log append: python -m benchmarks.micro.storage [pyperf options]"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyperf  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from benchmarks.micro.samples import BALLOT, value
from twisted_paxos.core.records import SaveAccepted, SavePromise
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.executor import TurnExecutor
from twisted_paxos.storage.format import ACCEPTED, encode_record
from twisted_paxos.storage.wal import FileStorage


class _NoSync(OsDisk):
    """Writes like the real one, and leaves the disk alone: what is left is our own time."""

    def sync(self, name: str) -> None:
        """Do nothing."""


class Appends:
    """A ``file:`` storage that takes one record a call.

    Args:
        directory: for its files.
        sync: whether writes are synced, as they are in use.
    """

    def __init__(self, directory: Path, sync: bool) -> None:
        self._clock = Clock()
        disk = (OsDisk if sync else _NoSync)(str(directory / "data"))
        self.storage = FileStorage(disk, "A", TurnExecutor(self._clock), self._clock)
        self.storage.recover("0011223344556677", "cluster")
        self._slot = 0
        self._value = value()
        self._wait(self.storage.write([SavePromise(BALLOT)]))

    def append(self) -> None:
        """Store one accepted value."""
        self._slot += 1
        self._wait(self.storage.write([SaveAccepted(self._slot, BALLOT, self._value)]))

    def close(self) -> None:
        """Close the files."""
        self._wait(self.storage.close())

    def _wait(self, done: Deferred[None]) -> None:
        while not done.called:
            self._clock.advance(0)


def main() -> None:
    """Each figure is for one record with a batch of puts."""
    runner = pyperf.Runner(program_args=("-m", "benchmarks.micro.storage"))
    runner.bench_func("log: encode record", encode_record, ACCEPTED, 1, 1, 0, 1, 1, b"A", value())
    for sync in (False, True):
        with tempfile.TemporaryDirectory(prefix="paxos-bench-") as place:
            appends = Appends(Path(place), sync)
            runner.bench_func("log: append, synced" if sync else "log: append, not synced", appends.append)
            appends.close()


if __name__ == "__main__":
    main()
