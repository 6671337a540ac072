"""Every zope Interface: the seams at which parts can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import Attribute, Interface

from twisted_paxos.core.messages import Command, Message, SlotEntry
from twisted_paxos.core.records import Record, Recovered
from twisted_paxos.departure import Departure
from twisted_paxos.statemachine.machine import IStateMachine as IStateMachine
from twisted_paxos.statemachine.machine import ITypedMachine as ITypedMachine

if TYPE_CHECKING:
    from twisted_paxos.statemachine.commands import Result


class IAcceptorStorage(Interface):
    """A node's durable state: identity, promise, and accepted or chosen values.

    One process has it open at a time. Every method is called on the reactor's thread.
    """

    description: str = Attribute("What and where it is, for status tables: ``file:paxos_data/A``.")
    log_bytes: int = Attribute("Size of the stored log in bytes, for status tables.")

    def recover(word: str, cluster: str, lost: bool = False) -> Recovered:
        """Open, check and read everything; called once, before any other method.

        Blocks (nothing else runs yet). Where nothing is stored, makes new storage in one
        atomic step, with ``word`` as its incarnation, whose ``lost`` says that other storage was
        here before. This start, ``boot`` counted up and ``word`` as the last of ``starts``, is in
        the identity and durable on return.

        Raises:
            StorageLocked: another process has it open.
            StorageDamaged: something synced is missing or changed.
            StorageForeign: it belongs to another cluster or uid; it must not be set aside.
            StorageError: it cannot be opened or made.
        """

    def write(records: Sequence[Record], then: Callable[[], None] | None = None) -> Deferred[None]:
        """Make ``records`` durable; fires when they, and all written before them, are synced.

        ``then`` is called at that moment, before the Deferred fires, where the disk's work runs: perhaps
        in another thread. It must not block, nor raise. It is not called when the write fails. A
        `Departure` need not be called: its datagram may be sent instead.

        Writes are ordered: one queue, Deferreds fire in the order of the calls, never
        inside the call. A SavePromise is on disk, in both copies, before any record behind
        it. Does not block the reactor; what waits together shares one sync. The records
        belong to storage from the call on.

        Fails with:
            StorageFull: nothing of this write is stored; storage goes on, and so may the caller.
            StorageFailed: what is durable is unknown; every later write fails as well.
        """

    def note_chosen(chosen_upto: int) -> None:
        """Remember with the next write, without a sync of its own, how far slots are chosen."""

    def read_chosen(from_slot: int, upto_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """Read entries ``from_slot``, ``from_slot + 1``, ... without a gap, for catch-up.

        The caller asks only for slots that it knows as chosen. Ends at ``upto_slot``, before
        the first slot that is not stored, or when ``limit_bytes`` of values are passed (at
        least one entry is returned where there is one). Sees every write made before the call.

        Fails with:
            StorageDamaged: a stored entry is not what was written.
            StorageUnreadable: the system cannot read it, now.
        """

    def close() -> Deferred[None]:
        """Sync what was written and noted, release the lock. Nothing may be called after it."""

    def set_aside() -> str:
        """Before `recover`, or after `close`: move what is stored out of the way; it cannot be trusted.

        Keeps it, under another name, for people to look at; what was kept so before is removed. Blocks.
        Returns where it is now. Afterwards `recover` makes new storage (call it with ``lost=True``).

        Raises:
            StorageLocked: another process has it open.
            StorageError: it cannot be moved.
        """


class ISnapshotStorage(Interface):
    """Snapshots of the replicated state, and what they let go of the log.

    Provided by the same object as `IAcceptorStorage`, after its `recover`. One complete snapshot
    is kept beside one being written.
    """

    snapshot_slot: int = Attribute("The slot of the newest complete snapshot; 0 when there is none.")
    snapshot_bytes: int = Attribute("Its size; 0 when there is none.")

    def begin_snapshot(slot: int) -> ISnapshotWriter:
        """Start to write the snapshot of the state after ``slot``; one that was under way is aborted."""

    def open_snapshot() -> ISnapshotReader | None:
        """Read the newest complete snapshot; it stays readable while newer ones replace it."""

    def compact(upto_slot: int) -> Deferred[int]:
        """Let go of log entries up to ``upto_slot``, as far as is practical (whole segments).

        The caller has a complete snapshot at or above ``upto_slot``. Fires with the lowest slot
        that is still stored, or would be next.
        """


class ISnapshotWriter(Interface):
    """One snapshot on its way to disk."""

    slot: int = Attribute("Of which slot it is.")

    def write(piece: bytes) -> Deferred[None]:
        """Add a piece of at most 1 MiB; fires when it is synced. Write the next one after that.

        Fails with `StorageFull`: the snapshot must be aborted; or with `StorageFailed`.
        """

    def finish() -> Deferred[None]:
        """Make it the newest complete snapshot, atomically.

        Fires when that is durable and the older one is gone.
        """

    def abort() -> None:
        """Drop what was written of it."""


class ISnapshotReader(Interface):
    """A complete snapshot, piece by piece."""

    slot: int = Attribute("Of which slot it is.")
    pieces: int = Attribute("How many pieces it has.")
    size_bytes: int = Attribute("Their size together.")

    def read(number: int) -> Deferred[bytes]:
        """Piece ``number``, from 0, as it was written.

        Fails with `StorageDamaged`: it is not what was written; or with `StorageUnreadable`: the system
        cannot read it, now.
        """

    def close() -> None:
        """Done with it."""


class INodeStorage(IAcceptorStorage, ISnapshotStorage):
    """All that a node keeps."""


class IStorageProvider(IPlugin):
    """Makes `INodeStorage` from ``--storage SCHEME:LOCATION``; found as a ``twisted.plugins`` plugin."""

    scheme: str = Attribute("The word before the colon.")
    durable: bool = Attribute("False when a restart forgets: such nodes are not mixed with others.")
    syntax: str = Attribute("For help texts: ``file:DIR``.")

    def open(location: str, uid: str, reactor: object) -> INodeStorage:
        """Storage at ``location`` (what follows the colon) for node ``uid``; touches nothing yet.

        Raises:
            ConfigError: the location cannot be understood.
        """


class IMessenger(Interface):
    """Carries messages to other nodes. Any message may be lost, doubled, delayed or reordered."""

    def send(uids: Sequence[str], message: Message) -> None:
        """Send to each of ``uids``, or, for `core.effects.OTHERS` and
        `core.effects.others_but`, to every other node that is known, or all but those.

        Encodes once. Unknown ids are ignored, nothing is raised.
        """

    def prepare(uid: str, message: Message) -> Departure | None:
        """Encode a message now; what is returned sends it, from whatever thread.

        None when ``uid`` is not known, or the message cannot be sent that way: use `send`.
        """


class IDiskExecutor(Interface):
    """Where blocking disk work runs: a thread, or, in tests, a fake clock."""

    def run(work: Callable[[], object]) -> Deferred:
        """Run ``work`` after all that was given before; fires on the reactor's thread with its result."""

    def append(
        disk: Any,
        name: str,
        offset: int,
        data: bytes,
        then: Callable[[], None] | None,
        failed: Callable[[Exception], Exception],
    ) -> Deferred[None]:
        """Write ``data`` into a file of an `IDisk`, sync the file, then call ``then``: in the order of `run`.

        As `run` would, but a `Departure` with a datagram may leave without the interpreter. Nothing else
        may use the disk until it fires. When the write or the sync fails, ``failed`` is called before
        anything else runs, ``then`` is not, and the Deferred fails with what ``failed`` returned.
        """

    def close() -> Deferred[None]:
        """Fires when all given work has run; takes no more."""


class IResultSink(Interface):
    """Takes the results of the commands that one client connection submitted."""

    def applied(results: Sequence[Result]) -> None:
        """Results of some of the commands, in the order in which they applied; all that come at one time."""


class INode(Interface):
    """What a client port, a gateway or an embedding program sees of a node."""

    uid: str = Attribute("The node's id.")

    def submit(commands: Sequence[Command], sink: IResultSink) -> None:
        """Have ``commands`` proposed until each is applied here; tell ``sink`` the results.

        Raises:
            Overloaded: too much waits already; none of them was taken.
            ValueTooLarge: one is over the limit; none of them was taken.
        """

    def forget(sink: IResultSink) -> None:
        """Stop trying for what ``sink`` submitted; what went out may still be chosen."""

    machine: object = Attribute("The `IStateMachine`; to be looked at, and never changed.")

    watches: object = Attribute("The `WatchHub` of the key-value store; None with another state machine.")

    def query(payload: Raw, serializable: bool = False) -> Deferred[Raw]:
        """Ask the state machine; see `PersistentPaxosNode.query`.

        Raises:
            Overloaded: too many reads wait already.
        """

    def status() -> object:
        """A `twisted_paxos.statemachine.commands.NodeStatus` of this moment."""

    def figures() -> object:
        """The `twisted_paxos.figures.NodeFigures` of this moment; cheap enough for a few times a second."""

    def read_log(from_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """Chosen entries from ``from_slot`` on, as many as fit; empty when there are none yet.

        Begins with the lowest slot that is still stored, where that is higher.
        """

    def on_chosen(listener: Callable[[int], None]) -> Callable[[], None]:
        """Call ``listener(chosen_upto)`` whenever slots were applied; returns what ends it."""
