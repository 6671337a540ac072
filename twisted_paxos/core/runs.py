"""Commands, or results, that follow each other and belong to one client: what is done for them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar


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


class ClientRun(NamedTuple):
    """Where a run is.

    Attributes:
        client: whose.
        start, end: from which place on, and up to but without which.
    """

    client: str
    start: int
    end: int


def client_runs(items: Sequence[OfClient]) -> Iterator[ClientRun]:
    """The runs of ``items``, each as long as it can be, in order."""
    clients = [item.client for item in items]
    start, length = 0, len(clients)
    while start < length:
        client = clients[start]
        end = start + 1
        if not start and clients.count(client) == length:
            # The usual case, and quickly found.
            end = length
        while end < length and clients[end] == client:
            end += 1
        yield ClientRun(client, start, end)
        start = end


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

    def missing(self, items: Sequence[T]) -> Sequence[T]:
        """Those of ``items`` that are not in here, in their order."""
        missing: list[T] = []
        for client, start, end in client_runs(items):
            run = items[start:end]
            known = self._by_client.get(client)
            if known:
                run = [item for item in run if item.sequence not in known]
            missing += run
        return missing

    def add(self, items: Sequence[Numbered]) -> None:
        """Add the names of ``items``."""
        for client, start, end in client_runs(items):
            known = self._by_client.setdefault(client, set())
            before = len(known)
            known.update([item.sequence for item in items[start:end]])
            self._count += len(known) - before

    def discard(self, items: Sequence[Numbered]) -> None:
        """Take out the names of ``items``, those that are in here."""
        for client, start, end in client_runs(items):
            known = self._by_client.get(client)
            if known is not None:
                before = len(known)
                known.difference_update([item.sequence for item in items[start:end]])
                self._count -= before - len(known)
                if not known:
                    del self._by_client[client]
