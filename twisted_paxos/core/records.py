"""What a node makes durable, and what it finds again after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from msgspec import Raw, Struct
from msgspec.structs import replace

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Entry

STARTS_KEPT = 100
"""An identity with so many still fits the first block of its file."""


class Identity(Struct, frozen=True):
    """Who this node's storage says that it is.

    Attributes:
        uid: the node's id.
        incarnation: random, made with the storage; a new one for a new life.
        cluster: fingerprint of the configuration that it was made for.
        boot: how often it was started, from 1.
        starts: the random words of its latest starts, at most ``STARTS_KEPT``, this one last: a
            copy of the storage, however often it is started, goes on with words of its own.
        lost: it was made in place of storage that was lost: it may never take part in a first
            formation, since the cluster may have been formed before.
        formed: whether the first formation is complete, with or without this incarnation.
        members: while not formed, the incarnations recorded so far; then those that founded
            the cluster.
        sets: the voting incarnations: ``[from_slot, {uid: incarnation}]``, as changed by Replace.
        boots: per incarnation, the highest start seen of a peer: ``[boot, boot_id]``.
    """

    uid: str
    incarnation: str
    cluster: str
    boot: int = 0
    lost: bool = False
    formed: bool = False
    members: dict[str, str] = {}
    sets: tuple[tuple[int, dict[str, str]], ...] = ()
    boots: dict[str, tuple[int, str]] = {}
    starts: tuple[str, ...] = ()

    def started(self, word: str) -> Identity:
        """This identity at its next start, which ``word``, random, tells from all others."""
        return replace(self, boot=self.boot + 1, starts=(*self.starts, word)[-STARTS_KEPT:])


class SaveIdentity(Struct, frozen=True):
    """Replaces the stored identity."""

    identity: Identity


class SavePromise(Struct, frozen=True):
    """Replaces the stored promise; kept in two copies, both synced."""

    ballot: ProposalID


class SaveAccepted(Struct, frozen=True):
    """This acceptor accepted ``value`` in ``slot`` at ``ballot``."""

    slot: int
    ballot: ProposalID
    value: Raw


class SaveChosen(Struct, frozen=True):
    """``value`` was chosen in ``slot``; learnt from another node, this one cast no vote with it."""

    slot: int
    ballot: ProposalID
    value: Raw


Record: TypeAlias = SaveIdentity | SavePromise | SaveAccepted | SaveChosen


class Recovered(NamedTuple):
    """What storage holds when it is opened.

    Attributes:
        identity: counted up for this start, which is durable already.
        promised: the highest ballot promised.
        chosen_upto: every slot up to here is chosen and stored. May be behind what was
            known before the stop, never ahead of it.
        log_start: the lowest slot stored (1 unless compacted).
        entries: what is stored above chosen_upto: accepted, or chosen with a gap below.
        fresh: the storage was made by this start.
        snapshot_slot: the slot of the newest complete snapshot, at most chosen_upto; 0 if none.
    """

    identity: Identity
    promised: ProposalID = NO_BALLOT
    chosen_upto: int = 0
    log_start: int = 1
    entries: Mapping[int, Entry] = MappingProxyType({})
    fresh: bool = False
    snapshot_slot: int = 0
