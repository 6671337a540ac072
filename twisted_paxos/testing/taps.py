"""Listens in on the nodes of a `SimulatedCluster`: their storage, their messages, what they apply.

The production code has no hooks for this; attributes of its objects are wrapped here, one object
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

from twisted_paxos.core.ballot import NO_BALLOT
from twisted_paxos.core.messages import Accept, Commit, Envelope, Heartbeat, Sender, SlotEntry
from twisted_paxos.core.records import Record, Recovered
from twisted_paxos.departure import Departure
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.snapshots import Policy
from twisted_paxos.statemachine.machine import IStateMachine
from twisted_paxos.statemachine.replicated import Applied
from twisted_paxos.testing.checks import Checks
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode
from twisted_paxos.testing.registers import Registers
from twisted_paxos.testing.rulechecks import TAKEN
from twisted_paxos.testing.witness import tells_of
from twisted_paxos.wire.peer import PeerCodec

SENT_TO_ALL: Final = (Accept, Commit, Heartbeat)
"""Messages that go to every node at once; nothing in them can be changed."""

DECODED_MAX: Final = 64
"""So many of them are remembered."""


class Taps:
    """Tells `Checks` what every node does.

    Args:
        cluster: whose nodes.
        checks: told.
        trace: told (node, what, to, message) for each message sent.
        applied: told the id of a node that applied a slot.
        policy: when nodes make snapshots.
        machine: makes an empty state machine.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        checks: Checks,
        trace: Callable[[str, Sequence[str], Any], None],
        applied: Callable[[str], None],
        policy: Policy,
        machine: Callable[[], IStateMachine] = Registers,
    ) -> None:
        self._checks = checks
        self._trace = trace
        self._applied = applied
        self._policy = policy
        self._machine = machine
        self.lives: dict[str, Sender] = {}
        self._decoded: dict[bytes, Envelope] = {}
        cluster.on_storage.append(self._storage_made)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While this lasts, every node that starts is listened to."""
        start = PersistentPaxosNode.startService
        taps = self

        def start_service(node: PersistentPaxosNode) -> None:
            node.machine, node._snapshot_policy = taps._machine(), taps._policy
            start(node)
            taps._node_started(node)

        with mock.patch.object(PersistentPaxosNode, "startService", start_service):
            yield

    # -- storage

    def _storage_made(self, node: SimulatedNode, storage: Any) -> None:
        checks, uid = self._checks, node.uid
        recover, write, read, note = storage.recover, storage.write, storage.read_chosen, storage.note_chosen
        life = Sender(uid, "", 0, "")

        def recover_and_tell(fresh: str, cluster: str, lost: bool = False) -> Recovered:
            nonlocal life
            recovered = recover(fresh, cluster, lost)
            life = Sender(uid, recovered.identity.incarnation, recovered.identity.boot, "")
            checks.recovered(life, recovered)
            return recovered

        def write_and_tell(records: Sequence[Record], then: Callable[[], None] | None = None) -> Any:
            def tell() -> None:
                checks.written(life, records)
                if then is not None:
                    then()

            return write(records, tell)

        def read_and_tell(from_slot: int, upto_slot: int, limit_bytes: int) -> Any:
            def tell(entries: list[SlotEntry]) -> list[SlotEntry]:
                checks.stored_read(uid, entries)
                return entries

            checks.asked(life, upto_slot, storage.snapshot_slot)
            return read(from_slot, upto_slot, limit_bytes).addCallback(tell)

        def note_and_tell(chosen_upto: int) -> None:
            checks.noted(life, chosen_upto, storage.snapshot_slot)
            note(chosen_upto)

        storage.recover, storage.write = recover_and_tell, write_and_tell
        storage.read_chosen, storage.note_chosen = read_and_tell, note_and_tell

    # -- nodes

    def _decode_once(self, codec: PeerCodec) -> None:
        """What goes to all nodes is decoded by the first of them: equal bytes are equal messages."""
        decode, known = codec.decode, self._decoded

        def decode_once(data: bytes) -> Envelope:
            envelope = known.get(data)
            if envelope is None:
                envelope = decode(data)
                if isinstance(envelope.message, SENT_TO_ALL):
                    if len(known) >= DECODED_MAX:
                        known.clear()
                    known[data] = envelope
            return envelope

        codec.decode = decode_once  # type: ignore[method-assign]

    def _node_started(self, node: PersistentPaxosNode) -> None:
        replica: Any = node.replica
        life = self.lives[node.uid] = node.replica.me
        messenger: Any = node.messenger
        performer: Any = node.performer
        admit = replica.formation.admit
        receive, send, apply = replica.receive, messenger.send, performer._apply
        prepare, messenger.prepare = messenger.prepare, lambda *of: prepare_and_tell(*of)
        install = replica.install
        checks, trace = self._checks, self._trace

        def receive_and_tell(sender: Sender, message: Any, now_s: float) -> Any:
            if tells_of(message, life.uid) is not NO_BALLOT and _listens_to(replica, sender):
                checks.delivered(life, message)
            if isinstance(message, TAKEN):
                checks.took(life, sender, message)
            effects = receive(sender, message, now_s)
            if type(message) is Commit:
                checks.shared(life, replica.log)
            return effects

        def admit_and_tell(sender: Sender, message: Any) -> Any:
            admitted = admit(sender, message)
            if admitted[0] and checks.older_copies and replica.membership.is_member(sender):
                checks.admitted(life, sender)
            return admitted

        def install_and_tell(slot: int, sets: Any, now_s: float) -> Any:
            effects = install(slot, sets, now_s)
            checks.installed(life, slot, replica.log)
            return effects

        def send_and_tell(uids: Sequence[str], message: Any) -> None:
            checks.sent(life, message)
            trace(life.uid, uids, message)
            send(uids, message)

        def prepare_and_tell(uid: str, message: Any) -> Any:
            prepared = prepare(uid, message)

            def send_and_tell() -> None:
                checks.sent(life, message)
                trace(life.uid, (uid,), message)
                prepared()

            return prepared and Departure(send_and_tell)

        def apply_and_tell(entries: Sequence[SlotEntry]) -> None:
            checks.chosen(life.uid, entries)
            apply(entries)

        def applied(entry: SlotEntry, done: Applied) -> None:
            checks.applied(life, entry.slot, done.commands, node.state)
            self._applied(life.uid)

        checks.started(life)
        self._decode_once(node.receiver.codec)
        replica.formation.admit, replica.install = admit_and_tell, install_and_tell
        replica.receive, messenger.send, performer._apply = receive_and_tell, send_and_tell, apply_and_tell
        node.applier.listeners.append(applied)


def _listens_to(replica: Any, sender: Sender) -> bool:
    """Whether a node takes messages of this start of a voter; see `Formation.admit`."""
    formation = replica.formation
    if sender.uid == formation.me.uid:
        return sender == formation.me
    recorded = formation._recorded.get(sender.incarnation) == (sender.boot, sender.boot_id)
    return recorded and formation.membership.is_member(sender)
