"""`ProposalID`, the ballot: who may propose, and in which order (Paxos Made Simple, section 2.2)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from msgspec import Meta

from twisted_paxos.core import limits


class ProposalID(NamedTuple):
    """A ballot; ordered by number, then by uid, so no two nodes ever share one.

    Attributes:
        number: the round, from 1; grows with every take-over.
        uid: the id of the node that made it.
    """

    number: Annotated[int, Meta(ge=0, le=limits.NUMBER_MAX)]
    uid: Annotated[str, Meta(max_length=limits.UID_MAX_CHARS)]

    def __str__(self) -> str:
        return f"{self.number}.{self.uid}" if self.number else "-"

    def next_for(self, uid: str) -> ProposalID:
        """The lowest ballot of node ``uid`` that is certainly above this one."""
        return ProposalID(self.number + 1, uid)


NO_BALLOT = ProposalID(0, "")
"""Below every real ballot: nothing promised, nobody followed."""
