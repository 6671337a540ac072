"""What the role protocols share: bytes come in, a role decides, effects are performed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.udp import Port
from twisted.logger import Logger

from twisted_paxos.core.effects import Effects
from twisted_paxos.core.messages import Envelope, Sender
from twisted_paxos.errors import WireError
from twisted_paxos.wire.peer import PeerCodec

log = Logger()

TURN_BYTES = 16 << 10
"""When so much of a flood was read, each datagram a turn, others get theirs; one datagram may be larger."""

REPORT_INTERVAL_S = 10.0
"""Dropped messages of one kind are logged at most this often."""


class Role(Protocol):
    """Decides: `core.acceptor.Acceptor` and the others, or a whole `core.replica.Replica`."""

    def receive(self, sender: Sender, message: Any, now_s: float) -> Effects:
        """Take one message."""


class Receiver:
    """Turns received bytes into messages; counts and drops what is none.

    Args:
        codec: checks and decodes.
        clock: the reactor.

    Attributes:
        codec: as given.
        dropped: how many were dropped, by reason; the reasons are few and fixed.
        received: how many messages came, by type.
        received_bytes: their size together.
    """

    def __init__(self, codec: PeerCodec, clock: IReactorTime) -> None:
        self.dropped: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.received_bytes = 0
        self.codec = codec
        self._clock = clock
        self._reported_s: dict[str, float] = {}

    def decode(self, data: bytes, source: object) -> Envelope | None:
        """The message in ``data``, or None when it is dropped."""
        try:
            envelope = self.codec.decode(data)
        except WireError as error:
            self.drop(error.reason, source, str(error))
            return None
        name = type(envelope.message).__name__
        self.received_bytes += len(data)
        self.received[name] = self.received.get(name, 0) + 1
        return envelope

    def drop(self, reason: str, source: object, detail: str = "") -> None:
        """Count a drop, and log it unless one like it was logged lately."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        now_s = self._clock.seconds()
        if now_s - self._reported_s.get(reason, float("-inf")) >= REPORT_INTERVAL_S:
            self._reported_s[reason] = now_s
            log.warn(
                "dropped a message from {source}: {detail} ({count} like it so far)",
                source=source,
                detail=(detail or reason)[:200],
                count=self.dropped[reason],
            )


class RoleProtocol(DatagramProtocol):
    """One role on a UDP port: alone, or behind a `NodeProtocol` that it shares the port with.

    Args:
        role: decides.
        receiver: decodes; needed when it is alone on its port.
        perform: performs what the role asks for.
        clock: the reactor.
        attach: told the transport, so that a messenger can send through it.
    """

    takes: tuple[type, ...] = ()

    def __init__(
        self,
        role: Role,
        receiver: Receiver,
        perform: Callable[[Effects], None],
        clock: IReactorTime,
        attach: Callable[[Any], None] | None = None,
    ) -> None:
        self._role = role
        self._receiver = receiver
        self._perform = perform
        self._clock = clock
        self._attach = attach

    def startProtocol(self) -> None:
        """The port is bound."""
        if self._attach is not None:
            self._attach(self.transport)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Bytes from the network: a message for this role, or nothing."""
        envelope = self._receiver.decode(datagram, addr)
        if envelope is None:
            return
        if isinstance(envelope.message, self.takes):
            self.message_received(envelope.sender, envelope.message)
        else:
            self._receiver.drop("not_for_this_role", addr)

    def message_received(self, sender: Sender, message: Any) -> None:
        """A message, decoded and authenticated."""
        self._perform(self._role.receive(sender, message, self._clock.seconds()))


class NodeProtocol(DatagramProtocol):
    """The one UDP port of a node: decodes once, hands each message to the role that takes its type.

    Args:
        roles: their ``takes`` must not overlap.
        receiver: decodes.
        heard: told who speaks from which address, before the role is.
        attach: told the transport.
        turn: each datagram is one: what it asks for leaves before the port looks for another.
    """

    def __init__(
        self,
        roles: Sequence[RoleProtocol],
        receiver: Receiver,
        heard: Callable[[Sender, Any], bool],
        attach: Callable[[Any], None],
        turn: AbstractContextManager[None],
    ) -> None:
        self._roles = tuple(roles)
        self._receiver = receiver
        self._heard = heard
        self._attach = attach
        self._turn = turn
        self._by_type = {kind: role for role in roles for kind in role.takes}
        assert len(self._by_type) == sum(len(role.takes) for role in roles), "one role takes each type"

    def startProtocol(self) -> None:
        """The port is bound: roles share its transport."""
        self._attach(self.transport)
        if isinstance(self.transport, Port):
            self.transport.maxThroughput = TURN_BYTES
        for role in self._roles:
            role.makeConnection(self.transport)  # type: ignore[arg-type]

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Bytes from the network."""
        envelope = self._receiver.decode(datagram, addr)
        if envelope is not None:
            with self._turn:
                self.envelope_received(envelope, addr)

    def envelope_received(self, envelope: Envelope, addr: Any) -> None:
        """A message by datagram or by link; ``addr`` is None for a link."""
        if not self._heard(envelope.sender, addr):
            self._receiver.drop("unknown_sender", addr, f"unknown sender {envelope.sender.uid!r}")
            return
        self._by_type[type(envelope.message)].message_received(envelope.sender, envelope.message)
