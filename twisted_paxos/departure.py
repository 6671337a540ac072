"""A message that leaves once a write is durable."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import TypeAlias

Datagram: TypeAlias = tuple[int, str, int, bytes, bytearray]
"""Descriptor of a UDP socket, IP address and port of the receiver, what is sent, and one byte: not zero
once it must not leave any more."""


class Departure:
    """Sends one message when it is called, from whatever thread; nothing once it was withdrawn.

    Args:
        send: sends it; must not block, nor raise.
        datagram: the same for who sends without calling (`storage.executor`): socket, IP address, port, data.
        refused: told the system's error number when the datagram was sent so, and the system refused it.
    """

    __slots__ = ("_datagram", "_send", "_withdrawn", "refused")

    def __init__(
        self,
        send: Callable[[], object],
        datagram: tuple[socket, str, int, bytes] | None = None,
        refused: Callable[[int], None] = lambda _errno: None,
    ) -> None:
        self.refused = refused
        self._send = send
        self._datagram = datagram
        self._withdrawn = bytearray(1)

    @property
    def datagram(self) -> Datagram | None:
        """What to send in place of a call; None when only a call will do.

        Of a socket that was closed the descriptor is -1: its number may be another's by now.
        """
        if self._datagram is None:
            return None
        sending, host, port, data = self._datagram
        return sending.fileno(), host, port, data, self._withdrawn

    def __call__(self) -> None:
        """Send it, unless it was withdrawn."""
        if not self._withdrawn[0]:
            self._send()

    def withdraw(self) -> None:
        """From now on it does not leave any more."""
        self._withdrawn[0] = 1
