"""The gRPC requests that h2load sends to etcd: protobuf by hand, so that no compiler is needed."""

from __future__ import annotations

PUT_PATH = "/etcdserverpb.KV/Put"
RANGE_PATH = "/etcdserverpb.KV/Range"
KEEP_ALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH_PATH = "/etcdserverpb.Watch/Watch"

_BYTES = 2
_VARINT = 0


def varint(number: int) -> bytes:
    """Protobuf's variable-length integer; ``number`` is not negative."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: bytes | int) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(value)
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def frame(message: bytes) -> bytes:
    """A gRPC message: not compressed, its length in four bytes."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def put_body(key: bytes, value: bytes) -> bytes:
    """The body of an etcd Put."""
    return frame(field(1, key) + field(2, value))


def range_body(key: bytes, serializable: bool) -> bytes:
    """The body of an etcd Range of one key."""
    return frame(field(1, key) + (field(7, 1) if serializable else b""))


def keep_alive_body(lease_id: int) -> bytes:
    """The body of one keep-alive of a lease; its stream ends after it."""
    return frame(field(1, lease_id))


def watch_body(key: bytes, range_end: bytes) -> bytes:
    """One message of a Watch stream: begin a watch of a range."""
    return frame(field(1, field(1, key) + field(2, range_end)))
