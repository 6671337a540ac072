"""What can go wrong between two hosts, one direction at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from random import Random
from typing import Final

HISTORY_MAX_DATAGRAMS: Final = 256
"""How many past datagrams a link keeps for replay, while it replays."""

Address = tuple[str, int]

Arrival = tuple[float, tuple[bytes, Address, Address]]
"""When something arrives, and (datagram, address that it was sent to, address of the sender)."""


@dataclass(kw_only=True)
class Faults:
    """How a link treats what is sent over it. Probabilities are from 0 to 1, per datagram.

    Attributes:
        loss: is lost. A stream's segment is sent again after a timeout instead.
        duplicate: arrives twice.
        reorder: is late by up to ``reorder_delay_s``, so that later ones overtake it.
        corrupt: arrives with one bit flipped (never in streams: TCP has a checksum).
        replay: some earlier datagram of this link arrives once more.
        delay_min_s, delay_max_s: the way takes a time from this range.
        datagram_max_bytes: longer datagrams are lost.
        is_cut: nothing passes.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    replay: float = 0.0
    delay_min_s: float = 0.000_1
    delay_max_s: float = 0.000_3
    reorder_delay_s: float = 0.02
    datagram_max_bytes: int = 65_507
    is_cut: bool = False


_NAMES: Final = frozenset(field.name for field in fields(Faults))


@dataclass(kw_only=True)
class Link(Faults):
    """One direction between two hosts; its faults can be changed at any time.

    Attributes:
        source, destination: the hosts.
        sent: datagrams given to it.
        dropped: datagrams that it lost, by reason.
    """

    source: str
    destination: str
    sent: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    _last_arrival_s: float = 0.0
    _history: list[tuple[bytes, Address, Address]] = field(default_factory=list)

    def set(self, **faults: float | bool) -> None:
        """Change some of the `Faults`.

        Raises:
            TypeError: one is unknown.
        """
        for name, value in faults.items():
            if name not in _NAMES:
                raise TypeError(f"{name} is no fault; there are: {', '.join(sorted(_NAMES))}")
            setattr(self, name, value)

    def drop(self, reason: str) -> None:
        """Count a datagram that does not arrive."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def delay_s(self, random: Random) -> float:
        """How long the way takes this time."""
        low, high = self.delay_min_s, self.delay_max_s
        return low + (high - low) * random.random() if high > low else low

    def arrivals(
        self, now_s: float, data: bytes, to: Address, sender: Address, random: Random
    ) -> list[Arrival]:
        """What arrives of one datagram, and when: nothing, it, more than it."""
        self.sent += 1
        if self.is_cut:
            self.drop("cut")
            return []
        if len(data) > self.datagram_max_bytes:
            self.drop("oversize")
            return []
        if self.loss and random.random() < self.loss:
            self.drop("loss")
            return []
        arriving = [(self._arrival_s(now_s, random), (self._damaged(data, random), to, sender))]
        if self.duplicate and random.random() < self.duplicate:
            arriving.append((self._arrival_s(now_s, random), (self._damaged(data, random), to, sender)))
        if self.replay:
            if self._history and random.random() < self.replay:
                arriving.append((now_s + self.delay_s(random), random.choice(self._history)))
            self._remember(data, to, sender, random)
        return arriving

    def _arrival_s(self, now_s: float, random: Random) -> float:
        due_s = now_s + self.delay_s(random)
        if self.reorder and random.random() < self.reorder:
            return due_s + random.random() * self.reorder_delay_s
        # Without reordering the link is a queue, however the delays fall.
        if due_s < self._last_arrival_s:
            return self._last_arrival_s
        self._last_arrival_s = due_s
        return due_s

    def _damaged(self, data: bytes, random: Random) -> bytes:
        if not self.corrupt or not data or random.random() >= self.corrupt:
            return data
        changed = bytearray(data)
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        return bytes(changed)

    def _remember(self, data: bytes, to: Address, sender: Address, random: Random) -> None:
        """Keep a sample of all that passed: old ones hurt most, so they must not be pushed out."""
        if len(self._history) < HISTORY_MAX_DATAGRAMS:
            self._history.append((data, to, sender))
        elif random.random() < 0.1:
            self._history[random.randrange(HISTORY_MAX_DATAGRAMS)] = (data, to, sender)
