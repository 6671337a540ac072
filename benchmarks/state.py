"""Memory, snapshot and restore of one node's state, in this process and without a network.

    python -m benchmarks.state --keys 1000000 [--json state.json]

Puts keys of 16 bytes with values of 64 through the state that a node has, then makes a snapshot piece by
piece as a node does, and restores another state from it. Tells what memory a key takes beyond key and
value, how long it all took, and the longest that one step keeps the reactor's thread. Times are CPU times:
what else runs on the machine does not show.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from benchmarks.load import key_of
from benchmarks.machine import memory_bytes
from twisted_paxos.core.messages import Command, Value
from twisted_paxos.statemachine.commands import OPEN_SESSION
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import Put, encode_command
from twisted_paxos.statemachine.replicated import ReplicatedState
from twisted_paxos.tap import GC_THRESHOLDS

BATCH = 200
KEY_BYTES, VALUE_BYTES = 16, 64
CLIENT = "0123456789abcdef"


def fill(state: ReplicatedState, keys: int) -> tuple[float, float]:
    """Put ``keys`` different keys, out of order; CPU seconds in all, and of the longest slot."""
    state.apply(1, Value.of(1, (Command(CLIENT, 0, 0, OPEN_SESSION),)))
    value, step = b"v" * VALUE_BYTES, 7_919 if keys % 7_919 else 7_907
    total_s = longest_s = 0.0
    for number, first in enumerate(range(0, keys, BATCH), 2):
        commands = tuple(
            Command(
                CLIENT, at + 1, max(1, first), encode_command(Put(key_of(at * step % keys, KEY_BYTES), value))
            )
            for at in range(first, min(first + BATCH, keys))
        )
        start_s = time.thread_time()
        state.apply(number, Value.of(number, commands))
        took_s = time.thread_time() - start_s
        total_s, longest_s = total_s + took_s, max(longest_s, took_s)
    return total_s, longest_s


def _key(number: int) -> bytes:
    return key_of(number, KEY_BYTES)


def stepped(steps: Iterator[Any]) -> tuple[list[Any], list[float]]:
    """All that ``steps`` gives, and the seconds of CPU that each step took."""
    given, took_s = [], []
    while True:
        start_s = time.thread_time()
        one = next(steps, None)
        took_s.append(time.thread_time() - start_s)
        if one is None:
            return given, took_s
        given.append(one)


def _non_empty(restoring: Iterator[Any]) -> Iterator[bool]:
    """Steps that are told apart from the end."""
    for _ in restoring:
        yield True


def measure(keys: int) -> dict[str, float]:
    """All figures; the garbage collector is set as a node sets it."""
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    before_bytes = memory_bytes(os.getpid())
    state = ReplicatedState(KeyValueStore())
    fill_s, slot_s = fill(state, keys)
    used_bytes = memory_bytes(os.getpid()) - before_bytes
    gc.freeze()
    start_s = time.perf_counter()
    snapshot = state.snapshot(())
    begin_s = time.perf_counter() - start_s
    pieces, piece_s = stepped(snapshot)
    other = ReplicatedState(KeyValueStore())
    _, restore_s = stepped(_non_empty(other.restore(iter(pieces))))
    assert isinstance(other.machine, KeyValueStore) and isinstance(state.machine, KeyValueStore)
    if other.machine.hash() != state.machine.hash():
        raise SystemExit("state: the restored state is another one")
    return {
        "keys": keys,
        "bytes_per_key_beyond_data": round(used_bytes / keys - KEY_BYTES - VALUE_BYTES, 1),
        "put_us": round(1e6 * fill_s / keys, 2),
        "longest_slot_ms": round(1e3 * slot_s, 2),
        "snapshot_mib": round(sum(map(len, pieces)) / (1 << 20), 1),
        "snapshot_begin_ms": round(1e3 * begin_s, 2),
        "snapshot_s": round(sum(piece_s), 2),
        "snapshot_longest_step_ms": round(1e3 * max(piece_s), 2),
        "restore_s": round(sum(restore_s), 2),
        "restore_longest_step_ms": round(1e3 * max(restore_s), 2),
    }


_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--keys", default=1_000_000, show_default=True, type=click.IntRange(1), help="How many.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write figures here."
)
def main(keys: int, json_file: Path | None) -> None:
    """Memory, snapshot and restore of a state with many keys."""
    figures = measure(keys)
    for name, value in figures.items():
        sys.stdout.write(f"{name:28} {value:,}\n")
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


if __name__ == "__main__":
    main()
