"""The learner on the network."""

from __future__ import annotations

from twisted_paxos.core.learner import Learner
from twisted_paxos.core.messages import FetchPiece, Piece
from twisted_paxos.protocols.base import RoleProtocol


class LearnerProtocol(RoleProtocol):
    """Takes Accepted, and Fetch and Chosen for catch-up."""

    takes = Learner.takes


class SnapshotProtocol(RoleProtocol):
    """Takes pieces of snapshots, and requests for them."""

    takes = (FetchPiece, Piece)
