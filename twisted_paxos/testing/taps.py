"""Listens in on the nodes of a `SimulatedCluster`: their storage, their messages, what they apply.

The production code has no hooks for this; attributes of its objects are wrapped here, one object
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from twisted_paxos.core.messages import Command, Sender, SlotEntry
from twisted_paxos.core.records import Record, Recovered
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.snapshots import Policy
from twisted_paxos.statemachine.machine import IStateMachine
from twisted_paxos.testing.checks import Checks
from twisted_paxos.testing.cluster import SimulatedCluster, SimulatedNode
from twisted_paxos.testing.registers import Registers


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
        recover, write, read = storage.recover, storage.write, storage.read_chosen
        life = Sender(uid, "", 0, "")

        def recover_and_tell(fresh: str, cluster: str, lost: bool = False) -> Recovered:
            nonlocal life
            recovered = recover(fresh, cluster, lost)
            life = Sender(uid, recovered.identity.incarnation, recovered.identity.boot, "")
            checks.recovered(life, recovered)
            return recovered

        def write_and_tell(records: Sequence[Record]) -> Any:
            written = write(records)
            written.addCallback(lambda _: checks.written(life, records))
            return written

        def read_and_tell(from_slot: int, upto_slot: int, limit_bytes: int) -> Any:
            def tell(entries: list[SlotEntry]) -> list[SlotEntry]:
                checks.stored_read(uid, entries)
                return entries

            return read(from_slot, upto_slot, limit_bytes).addCallback(tell)

        storage.recover, storage.write, storage.read_chosen = recover_and_tell, write_and_tell, read_and_tell

    # -- nodes

    def _node_started(self, node: PersistentPaxosNode) -> None:
        replica: Any = node.replica
        life = self.lives[node.uid] = node.replica.me
        messenger: Any = node.messenger
        performer: Any = node.performer
        admit = replica.formation.admit
        receive, send, apply = replica.receive, messenger.send, performer._apply
        checks, trace = self._checks, self._trace

        def receive_and_tell(sender: Sender, message: Any, now_s: float) -> Any:
            if _listens_to(replica, sender):
                checks.delivered(life, message)
            return receive(sender, message, now_s)

        def admit_and_tell(sender: Sender, message: Any) -> Any:
            admitted = admit(sender, message)
            if admitted[0]:
                checks.admitted(life, sender, message)
            return admitted

        def send_and_tell(uids: Sequence[str], message: Any) -> None:
            checks.sent(life, message)
            trace(life.uid, uids, message)
            send(uids, message)

        def apply_and_tell(entries: Sequence[SlotEntry]) -> None:
            checks.chosen(life.uid, entries)
            apply(entries)

        def applied(slot: int, ballot: Any, commands: Sequence[Command]) -> None:
            checks.applied(life, slot, commands, node.state)
            self._applied(life.uid)

        checks.started(life)
        replica.formation.admit = admit_and_tell
        replica.receive, messenger.send, performer._apply = receive_and_tell, send_and_tell, apply_and_tell
        node.applier.listeners.append(applied)


def _listens_to(replica: Any, sender: Sender) -> bool:
    """Whether a node takes messages of this start of a voter; see `Formation.admit`."""
    formation = replica.formation
    if sender.uid == formation.me.uid:
        return sender == formation.me
    recorded = formation._recorded.get(sender.incarnation) == (sender.boot, sender.boot_id)
    return recorded and formation.membership.is_member(sender)
