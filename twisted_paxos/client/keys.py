"""Keys and ranges as callers write them, in the terms of the store."""

from __future__ import annotations

from typing import TypeAlias

from twisted_paxos.statemachine.kvcommands import FROM_KEY, prefix_end

Key: TypeAlias = bytes | str
"""A key, or a value: bytes, or text that stands for its UTF-8 bytes."""


def to_bytes(key: Key) -> bytes:
    """``key`` as the store has it."""
    return key.encode("utf-8", "surrogateescape") if isinstance(key, str) else bytes(key)


def range_of(
    key: Key, range_end: Key = b"", prefix: bool = False, from_key: bool = False
) -> tuple[bytes, bytes]:
    """The key and range end that mean this.

    Args:
        key: the first key, or the prefix.
        range_end: the first key behind the range; empty for the one key.
        prefix: every key that begins with ``key``; all keys if that is empty.
        from_key: every key from ``key`` on.

    Raises:
        ValueError: more than one of ``range_end``, ``prefix`` and ``from_key``.
    """
    start, end = to_bytes(key), to_bytes(range_end)
    if bool(end) + prefix + from_key > 1:
        raise ValueError("only one of range_end, prefix and from_key can be given")
    if prefix:
        return (start, prefix_end(start)) if start else (FROM_KEY, FROM_KEY)
    if from_key:
        return start or FROM_KEY, FROM_KEY
    return start, end
