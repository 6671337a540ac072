"""How a client of the JSON API is told of an error: gRPC code, etcd's own text, HTTP status.

Clients match on the texts, so the texts are etcd's wherever it has one for the case.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, NamedTuple

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_paxos.errors import (
    KeyValueError,
    NodeStopped,
    Overloaded,
    SessionExpired,
    StorageError,
    StorageFull,
    Unavailable,
    ValueTooLarge,
)
from twisted_paxos.statemachine.kvcommands import NO_SPACE, REQUEST_TOO_LARGE

log = Logger()

UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
"""gRPC's codes, as far as they are used here."""

HTTP_STATUS: Final[dict[int, HTTPStatus]] = {
    1: HTTPStatus.REQUEST_TIMEOUT,
    UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    4: HTTPStatus.GATEWAY_TIMEOUT,
    NOT_FOUND: HTTPStatus.NOT_FOUND,
    6: HTTPStatus.CONFLICT,
    PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    FAILED_PRECONDITION: HTTPStatus.PRECONDITION_FAILED,
    10: HTTPStatus.CONFLICT,
    11: HTTPStatus.BAD_REQUEST,
    UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    15: HTTPStatus.INTERNAL_SERVER_ERROR,
    16: HTTPStatus.UNAUTHORIZED,
}
"""What etcd 3.4's gateway makes of each gRPC code."""

NO_LEADER: Final = "etcdserver: no leader"
TIMED_OUT: Final = "etcdserver: request timed out"
TOO_MANY_REQUESTS: Final = "etcdserver: too many requests"
STOPPED: Final = "etcdserver: server stopped"
INTERNAL_ERROR: Final = "internal error; the log of the node says more"


class Status(NamedTuple):
    """An error as the client sees it: gRPC ``code`` and ``message``."""

    code: int
    message: str

    @property
    def http(self) -> HTTPStatus:
        """The HTTP status that goes with the code."""
        return HTTP_STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR)


# The first class that fits counts.
_KNOWN: Final[tuple[tuple[type[BaseException], Status], ...]] = (
    (Overloaded, Status(RESOURCE_EXHAUSTED, TOO_MANY_REQUESTS)),
    (ValueTooLarge, Status(INVALID_ARGUMENT, REQUEST_TOO_LARGE.message)),
    (NodeStopped, Status(UNAVAILABLE, STOPPED)),
    (Unavailable, Status(UNAVAILABLE, NO_LEADER)),
    # Whether it was done is not known: exactly what this text means with etcd.
    (SessionExpired, Status(UNAVAILABLE, TIMED_OUT)),
    (CancelledError, Status(UNAVAILABLE, TIMED_OUT)),
    (StorageFull, Status(RESOURCE_EXHAUSTED, NO_SPACE.message)),
    (StorageError, Status(UNAVAILABLE, STOPPED)),
)


def status_of(failure: Failure) -> Status:
    """What the client is told; what nobody foresaw is logged here, and never shown."""
    error = failure.value
    if isinstance(error, KeyValueError):
        return Status(error.code, error.message)
    for kind, status in _KNOWN:
        if isinstance(error, kind):
            return status
    log.failure("A request of the JSON API failed", failure=failure)
    return Status(INTERNAL, INTERNAL_ERROR)
