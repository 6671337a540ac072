"""Damage to the files of a stopped node, as disks, file systems and people do it.

Each function damages something and says what, or says nothing when there was nothing to damage. The last
write of a log is spared: it cannot be told from a torn one, the documented exception.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.limits import NUMBER_MAX
from twisted_paxos.errors import PaxosError, StorageError
from twisted_paxos.storage.disk import LOCK_NAME
from twisted_paxos.storage.durable import choose_copy, read_copies
from twisted_paxos.storage.format import segment_id
from twisted_paxos.storage.recovery import Floor, examine
from twisted_paxos.storage.wal import identity_object, read_base
from twisted_paxos.testing.cluster import SimulatedNode
from twisted_paxos.testing.storage import SECTOR_BYTES


def stored_identity(node: SimulatedNode) -> tuple[str, int] | None:
    """Incarnation and start of what is on a stopped node's disk, if it can be told."""
    try:
        copy = choose_copy(node.disk.path, read_copies(node.disk, "identity"))
        identity = identity_object(node.disk).decode(copy).identity
    except StorageError:
        return None
    return identity.incarnation, identity.boot


def wipe(node: SimulatedNode, random: Random) -> str:
    """The directory is gone; half of the time what was set aside earlier as well."""
    node.disk.wipe()
    if random.random() < 0.5:
        node.disk.set_aside_files = {}
    return "its directory is gone"


def lose_file(node: SimulatedNode, random: Random) -> str:
    """A file is gone."""
    name = random.choice([name for name in node.disk.names() if name != LOCK_NAME] or [""])
    if name:
        node.disk.lose(name)
    return f"{name} is gone" if name else ""


def flip(node: SimulatedNode, random: Random) -> str:
    """A bit is another one."""
    place = _place(node, random)
    if place is None:
        return ""
    node.disk.flip_bit(*place, random.randrange(8))
    return f"a bit of {place[0]} is flipped at byte {place[1]}"


def zero(node: SimulatedNode, random: Random) -> str:
    """A sector reads as zeros."""
    place = _place(node, random)
    if place is None:
        return ""
    name, offset = place
    start = offset // SECTOR_BYTES * SECTOR_BYTES
    end = min(start + SECTOR_BYTES, _end_of_damage(node, name))
    node.disk.overwrite(name, start, bytes(end - start))
    return f"a sector of {name} reads as zeros from byte {start} to {end}"


def cut_file(node: SimulatedNode, random: Random) -> str:
    """The end of a file is gone."""
    place = _place(node, random)
    if place is None:
        return ""
    node.disk.cut(*place)
    return f"{place[0]} ends at byte {place[1]}"


def _place(node: SimulatedNode, random: Random) -> tuple[str, int] | None:
    """A byte of some file that damage may hit; small files and the log alike."""
    names = [n for n in node.disk.names() if n != LOCK_NAME and _end_of_damage(node, n) > 0]
    if not names:
        return None
    logs = [name for name in names if segment_id(name)]
    name = logs[-1] if logs and random.random() < 0.4 else random.choice(names)
    return name, random.randrange(_end_of_damage(node, name))


def _end_of_damage(node: SimulatedNode, name: str) -> int:
    """Where the part of a file ends that may be damaged: before what may not be synced."""
    disk = node.disk
    logs = [other for other in disk.names() if segment_id(other)]
    if not logs or name != logs[-1]:
        return disk.size(name)
    try:
        state = examine(disk, ProposalID(NUMBER_MAX, "~"), Floor(), read_base(disk))
    except PaxosError:
        return 0
    return state.unsynced_offset


DAMAGES: Final[dict[str, Callable[[SimulatedNode, Random], str]]] = {
    "flip": flip,
    "zero": zero,
    "cut_file": cut_file,
    "lose_file": lose_file,
    "wipe": wipe,
}
"""By the kind of fault."""
