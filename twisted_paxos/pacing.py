"""When a snapshot is due, and whether one that is being written keeps up with the log: all in bytes."""

from __future__ import annotations

from twisted_paxos.interfaces import INodeStorage
from twisted_paxos.statemachine.replicated import ReplicatedState

GROWTH_SHARE = 0.75
"""At most this share of what comes into the log counts as growth of the state, see `Growth`."""

PACE_FIRST_SHARE = 1 / 2
"""Of what the log may grow by while a snapshot is written, so much may come at once."""


class Growth:
    """How much more the log has grown than the state, since some moment.

    What the state has grown by may be on disk twice (in the log and, later, in a snapshot) without harm to
    the bound of twice the state: so it needs no early snapshot.

    Args:
        storage: whose log.
        state: the state.
        data_share: what the state takes on disk, of the size that it says; it counts what it takes in
            memory as well. Since that is a guess, no more than `GROWTH_SHARE` of the log's growth counts.
    """

    def __init__(self, storage: INodeStorage, state: ReplicatedState, data_share: float) -> None:
        self._storage = storage
        self._state = state
        self._data_share = data_share
        self._log_bytes, self._state_bytes = storage.log_bytes, state.size_bytes

    def excess_bytes(self) -> float:
        """By how much more."""
        log_bytes = max(0, self._storage.log_bytes - self._log_bytes)
        state_bytes = self._data_share * max(0, self._state.size_bytes - self._state_bytes)
        return log_bytes - min(state_bytes, GROWTH_SHARE * log_bytes)


class Pace:
    """Whether the snapshot being written keeps up with the log that grows meanwhile.

    Args:
        growth: of the log, beyond that of the state, since its beginning.
        expected_bytes: how large it will be, about.
        room_bytes: what that may come to until it is complete.

    Attributes:
        written_bytes: how much of it is on disk.
    """

    def __init__(self, growth: Growth, expected_bytes: int, room_bytes: int) -> None:
        self.written_bytes = 0
        self._growth = growth
        self._expected_bytes = max(1, expected_bytes)
        self._room_bytes = room_bytes

    def used(self) -> float:
        """The share that is used of what the log may have grown by as of now."""
        done = min(1.0, self.written_bytes / self._expected_bytes)
        share = PACE_FIRST_SHARE + (1 - PACE_FIRST_SHARE) * done
        return self._growth.excess_bytes() / (share * self._room_bytes)
