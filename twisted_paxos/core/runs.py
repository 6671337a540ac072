"""Commands, or results, that follow each other and belong to one client: what is done for them at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar


class OfClient(Protocol):
    """Something that belongs to a client."""

    @property
    def client(self) -> str:
        """Whose it is."""


class Numbered(OfClient, Protocol):
    """Something of a client that has the client's number."""

    @property
    def sequence(self) -> int:
        """The number."""


T = TypeVar("T", bound=Numbered)


def client_runs(items: Sequence[OfClient]) -> Sequence[tuple[str, int, int]]:
    """The runs of ``items``, each as long as it can be, in order: client, start, and end (not included)."""
    length = len(items)
    if length == 1:
        return ((items[0].client, 0, 1),)
    clients = [item.client for item in items]
    if length and clients.count(clients[0]) == length:
        # The usual case, and quickly found.
        return ((clients[0], 0, length),)
    runs: list[tuple[str, int, int]] = []
    start = 0
    while start < length:
        client = clients[start]
        end = start + 1
        while end < length and clients[end] == client:
            end += 1
        runs.append((client, start, end))
        start = end
    return runs


class Names:
    """A set of (client, sequence), by client: numbers are cheaper to look up than pairs."""

    __slots__ = ("_by_client", "_count")

    def __init__(self) -> None:
        self._by_client: dict[str, set[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def clear(self) -> None:
        """Forget all."""
        self._by_client.clear()
        self._count = 0

    def add(self, items: Sequence[T]) -> Sequence[T]:
        """Add the names of ``items``; returns those that were not in here, in their order."""
        new: list[T] = []
        for client, start, end in client_runs(items):
            known = self._by_client.get(client)
            if known is None:
                known = self._by_client[client] = set()
            before = len(known)
            if end - start == 1:
                item = items[start]
                if item.sequence not in known:
                    known.add(item.sequence)
                    new.append(item)
            else:
                fresh = [item for item in items[start:end] if item.sequence not in known]
                known.update([item.sequence for item in fresh])
                new += fresh
            self._count += len(known) - before
        return new

    def discard(self, items: Sequence[Numbered]) -> None:
        """Take out the names of ``items``, those that are in here."""
        for client, start, end in client_runs(items):
            self.discard_of(client, [item.sequence for item in items[start:end]])

    def discard_of(self, client: str, sequences: Collection[int]) -> None:
        """Take out those of ``client``'s ``sequences`` that are in here."""
        known = self._by_client.get(client)
        if known is not None:
            before = len(known)
            known.difference_update(sequences)
            self._count -= before - len(known)
            if not known:
                del self._by_client[client]
