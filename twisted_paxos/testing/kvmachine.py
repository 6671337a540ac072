"""The state machine of simulated runs with the key-value store: the store, and registers beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from random import Random
from typing import Any, Final, NamedTuple
from unittest import mock

from msgspec import Raw

from twisted_paxos.client import watches as client_watches
from twisted_paxos.protocols import watchport
from twisted_paxos.protocols.watchport import WatchPort
from twisted_paxos.statemachine.commands import Context, Payload, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.statemachine.sessions import Sessions
from twisted_paxos.statemachine.watches import WatchHub
from twisted_paxos.testing.registers import Registers, decode_write

SNAPSHOT_STEP_RECORDS: Final = 3
"""Few, so that snapshots have many pieces."""

BUSY_S: Final = 0.01
"""What a node has to do between two turns of its watches, where it has much to do."""


class KvSizes(NamedTuple):
    """Limits of the key-value layer in one run, drawn so that rare paths are common.

    Attributes:
        limits: of the store.
        session_idle_ms: log time after which an unused session is forgotten.
        queue_max_events, scan_revisions: of each node's watchers.
        batch_bytes, fragment_bytes: where batches and frames of events are cut.
        buffer_max_batches: what waits for a consumer in a client.
        turn_s: how long a node sends events to one client at a time; 0: one frame, and it is `BUSY_S` until
            the next: connections break between the frames of a batch.
    """

    limits: KvLimits
    session_idle_ms: int
    queue_max_events: int
    scan_revisions: int
    batch_bytes: int
    fragment_bytes: int
    buffer_max_batches: int
    turn_s: float


def draw_kv_sizes(random: Random) -> KvSizes:
    """Half of the time each limit is as it is in production, else tiny."""

    def some(usual: int, *tiny: int) -> int:
        return usual if random.random() < 0.4 else random.choice(tiny)

    limits = KvLimits(
        keep_revisions=some(1_000_000, 8, 30, 100),
        keep_ms=some(3_600_000, 2_000, 6_400),
        lease_ttl_min_s=1,
    )
    return KvSizes(
        limits,
        session_idle_ms=some(3_600_000, 1_500, 4_000),
        queue_max_events=some(256, 1, 2, 5),
        scan_revisions=some(2_000, 2, 7),
        batch_bytes=some(256 << 10, 10, 60),
        fragment_bytes=some(512 << 10, 100, 300),
        buffer_max_batches=some(4_096, 2, 6),
        turn_s=random.choice((0.0, watchport.TURN_S)),
    )


class SimulatedStore(KeyValueStore):
    """A key-value store; JSON strings go to registers.

    Args:
        sizes: limits of this run.
    """

    def __init__(self, sizes: KvSizes) -> None:
        super().__init__(sizes.limits)
        self.registers = Registers()
        self.watches.queue_max_events = sizes.queue_max_events
        self.watches.scan_revisions = sizes.scan_revisions

    def _apply(self, command: Payload, context: Context, size_bytes: int) -> Raw:
        """To whom it belongs."""
        if isinstance(command, str) and decode_write(encode_opaque(command)) is not None:
            return self.registers.apply(encode_opaque(command), context)
        return super()._apply(command, context, size_bytes)

    def query(self, payload: Raw) -> Raw:
        """A JSON string is a register's key."""
        if bytes(payload).startswith(b'"'):
            return self.registers.query(payload)
        return super().query(payload)

    def snapshot(self, step: int = SNAPSHOT_STEP_RECORDS) -> Any:
        """The registers, how many pieces those are in one byte first, then the store."""
        registers = list(self.registers.snapshot())
        return self._pieces(registers, super().snapshot(step))

    @staticmethod
    def _pieces(registers: list[bytes], store: Any) -> Iterator[bytes]:
        try:
            yield bytes([len(registers)])
            yield from registers
            yield from store
        finally:
            store.close()

    def restore(self, pieces: Iterator[bytes]) -> Iterator[None]:
        """See `IStateMachine.restore`: everything is replaced at once, at the end."""
        registers = Registers()
        first = next(pieces, b"")
        if len(first) != 1:
            raise ValueError("no snapshot of a simulated store")
        yield from registers.restore(islice(pieces, first[0]))
        yield from super().restore(pieces)
        self.registers = registers
        yield None

    def summary(self) -> bytes:
        """A digest of everything."""
        digest = hashlib.blake2b(self.registers.summary(), digest_size=12)
        for piece in super().snapshot(SNAPSHOT_STEP_RECORDS):
            digest.update(piece)
        return digest.digest()


def _plan_later(port: WatchPort) -> None:
    """Takes the place of `WatchPort._plan`, which has the next turn at once."""
    if port._turn is None and port._ready and not port._channel.paused:
        port._turn = port._reactor.callLater(BUSY_S, port._take_turns)


@contextmanager
def patched_kv_sizes(sizes: KvSizes) -> Iterator[None]:
    """The limits of a run that are no arguments, for as long as it lasts."""
    with ExitStack() as stack:
        for owner, name, value in (
            (Sessions.__init__, "__defaults__", (sizes.session_idle_ms, 0)),
            (WatchHub.poll, "__defaults__", (sizes.batch_bytes,)),
            (watchport, "FRAGMENT_BYTES", sizes.fragment_bytes),
            (watchport, "TURN_S", sizes.turn_s),
            (WatchPort, "_plan", WatchPort._plan if sizes.turn_s else _plan_later),
            (client_watches, "BUFFER_MAX_BATCHES", sizes.buffer_max_batches),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
