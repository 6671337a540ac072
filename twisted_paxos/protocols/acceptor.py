"""The acceptor on the network."""

from __future__ import annotations

from twisted_paxos.core.acceptor import Acceptor
from twisted_paxos.protocols.base import RoleProtocol


class AcceptorProtocol(RoleProtocol):
    """Takes Prepare and Accept; Promise and Accepted leave after the sync that covers them."""

    takes = Acceptor.takes
