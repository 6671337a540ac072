"""A key-value store with short calls, for the tests of this directory."""

from __future__ import annotations

from typing import Any

from twisted_paxos.statemachine.commands import Context
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import (
    Compact,
    DeleteRange,
    KvCommand,
    Put,
    Range,
    RangeResult,
    decode_result,
    encode_command,
)
from twisted_paxos.statemachine.kvlimits import DEFAULT_LIMITS, KvLimits


class Store:
    """Applies commands, one slot each, at a log time that the test sets.

    Attributes:
        kv: the store.
        time_ms: log time.
    """

    def __init__(self, limits: KvLimits = DEFAULT_LIMITS) -> None:
        self.kv = KeyValueStore(limits)
        self.time_ms = 1_000
        self.slot = 0

    def do(self, command: KvCommand) -> Any:
        """The result of ``command``, without `advance`."""
        self.slot += 1
        context = Context(self.slot, 0, self.time_ms)
        return decode_result(self.kv.apply(encode_command(command), context))

    def put(self, key: bytes, value: bytes = b"v", **more: Any) -> Any:
        """Put."""
        return self.do(Put(key, value, **more))

    def delete(self, key: bytes, range_end: bytes = b"") -> Any:
        """Delete."""
        return self.do(DeleteRange(key, range_end))

    def compact(self, revision: int) -> Any:
        """Compact."""
        return self.do(Compact(revision))

    def advance(self, by_ms: int = 0) -> None:
        """A slot without commands, some time later."""
        self.slot += 1
        self.time_ms += by_ms
        self.kv.advance(Context(self.slot, -1, self.time_ms))

    def sweep(self) -> None:
        """Slots until memory is clean."""
        for _ in range(50):
            self.advance()

    def values(self, revision: int = 0) -> dict[bytes, bytes]:
        """Every key and value."""
        result = self.kv.range(Range(b"\0", b"\0", revision=revision))
        assert isinstance(result, RangeResult), result
        return {kv.key: kv.value for kv in result.kvs}


def reopened(store: Store, limits: KvLimits = DEFAULT_LIMITS) -> Store:
    """Another store, from a snapshot of ``store``."""
    other = Store(limits)
    for _ in other.kv.restore(iter(list(store.kv.snapshot()))):
        pass
    other.time_ms, other.slot = store.time_ms, store.slot
    return other
