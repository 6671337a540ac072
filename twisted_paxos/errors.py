"""Every exception of twisted_paxos.

Each one's text is a single line that says what is wrong and, where the reader
can do something about it, what to do next: the command line prints it as it is.
"""

from __future__ import annotations


class PaxosError(Exception):
    """The base of everything that this package raises on purpose."""


class ConfigError(PaxosError):
    """An option or a configuration file cannot be used."""


class StorageError(PaxosError):
    """What is on disk cannot be used, or cannot be written."""


class StorageLocked(StorageError):
    """Another process has this storage open: the node runs already."""


class StorageDamaged(StorageError):
    """Stored bytes are not what was written; going on could forget a promise."""


class StorageUnreadable(StorageError):
    """The system cannot read what is stored, now: nothing says that it is lost, so nothing is set aside."""


class StorageForeign(StorageError):
    """The storage is another node's, or another cluster's: it is in order, and must stay where it is."""


class StorageFull(StorageError):
    """There is no room; nothing of the refused write is stored."""


class StorageFailed(StorageError):
    """A write or a sync failed; what is durable is unknown, so the node must stop."""


class WireError(PaxosError):
    """Received bytes are not a message of ours.

    Attributes:
        reason: a short fixed word for counters (``malformed``, ``oversized``, ...).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class ValueTooLarge(PaxosError):
    """A command is larger than ``limits.VALUE_MAX_BYTES``; split it or store it elsewhere."""


class Overloaded(PaxosError):
    """The node has as many commands waiting as it may; nothing was done, try again later."""


class Unavailable(PaxosError):
    """No node could be asked, or the asked one has no leader to turn to."""


class OutcomeUnknown(PaxosError):
    """The command may or may not be chosen: the wait for it ended first."""


class SessionExpired(PaxosError):
    """The cluster does not know this session (any more); open a new one."""


class NodeStopped(PaxosError):
    """The node was stopped before it could answer."""


class KeyValueError(PaxosError):
    """The key-value store refused a request; nothing of it was done.

    Attributes:
        code: gRPC's number of the kind of error.
        message: etcd's own text.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class WatchCanceled(PaxosError):
    """A watch cannot go on.

    Attributes:
        reason: why, in one line.
        compact_revision: when above 0, history below it is gone: read anew, and watch from there.
    """

    def __init__(self, reason: str, compact_revision: int = 0) -> None:
        hint = f"; history begins at revision {compact_revision}" if compact_revision else ""
        super().__init__(f"the watch was cancelled: {reason}{hint}")
        self.reason = reason
        self.compact_revision = compact_revision


class LeaseLost(PaxosError):
    """A lease is over, or nobody can be sure that it is not: what hung on it is not held any more."""


class NotAcquired(PaxosError):
    """It was not this client's turn in time; nothing is held, and its place is given up."""
