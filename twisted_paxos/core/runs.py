"""Commands, or results, that follow each other and belong to one client: what is done for them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar


class OfClient(Protocol):
    """Something that belongs to a client."""

    @property
    def client(self) -> str:
        """Whose it is."""


T = TypeVar("T", bound=OfClient)


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
