"""The proposer on the network, with what a proposer needs to know before it proposes."""

from __future__ import annotations

from twisted_paxos.core.messages import (
    Admit,
    AskDescent,
    Confirm,
    Confirmed,
    Descent,
    Forward,
    ForwardReply,
    Heartbeat,
    HeartbeatReply,
    Join,
    Joined,
    ReadAt,
    ReadRequest,
    Refused,
)
from twisted_paxos.core.proposer import Proposer
from twisted_paxos.protocols.base import RoleProtocol


class ProposerProtocol(RoleProtocol):
    """Takes Promise and Nack."""

    takes = Proposer.takes


class MemberProtocol(RoleProtocol):
    """Takes what decides who may propose and for whom: heartbeats, forwards, reads, formation."""

    takes = (
        Heartbeat,
        HeartbeatReply,
        Forward,
        ForwardReply,
        ReadRequest,
        ReadAt,
        Confirm,
        Confirmed,
        Join,
        Joined,
        Admit,
        AskDescent,
        Descent,
        Refused,
    )
