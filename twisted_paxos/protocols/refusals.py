"""What the parts of a client's connection share: the way to the client, and how it is told of an error."""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.errors import Overloaded, PaxosError, StorageError, StorageFull, ValueTooLarge
from twisted_paxos.wire.client import Failure, Response

log = Logger()


class Channel(Protocol):
    """A connection as those see it who answer on it.

    Attributes:
        paused: the client takes nothing at the moment; what may wait should.
    """

    paused: bool

    def reply(self, message: Response) -> None:
        """Send ``message``."""

    def abort(self) -> None:
        """Cut the connection."""

    def count(self, reason: str) -> None:
        """Count a request that was refused for ``reason``."""


def failure_for(request_id: int, error: BaseException | None) -> Failure:
    """How the client is told of ``error``; what nobody foresaw is logged here."""
    if isinstance(error, Overloaded):
        return Failure(request_id, "overloaded", str(error))
    if isinstance(error, ValueTooLarge):
        return Failure(request_id, "value_too_large", str(error))
    if isinstance(error, StorageError) and not isinstance(error, StorageFull):
        return Failure(request_id, "internal", str(error))
    if isinstance(error, PaxosError):
        return Failure(request_id, "unavailable", str(error) or "the node cannot do this now")
    log.failure("A client's request failed", TwistedFailure(error))
    return Failure(request_id, "internal", "the node failed to do this; its log says why")
