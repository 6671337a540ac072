"""`PersistentPaxosNode`: one full member, or an observer, as a Twisted service.

It joins the parts: storage is recovered first, then ports are bound, then the roles run.
Everything that arrives becomes a call of the pure `core.replica.Replica`; everything that it
asks for goes through the one `EffectPerformer`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

import twisted_paxos
from twisted_paxos.applier import Applier
from twisted_paxos.config import NodeConfig
from twisted_paxos.core import limits
from twisted_paxos.core.effects import Effects
from twisted_paxos.core.messages import (
    Accepted,
    Command,
    Envelope,
    FetchPiece,
    Heartbeat,
    HeartbeatReply,
    Piece,
    Sender,
    SlotEntry,
)
from twisted_paxos.core.records import Recovered
from twisted_paxos.core.replica import Replica, ReplicaSettings
from twisted_paxos.errors import (
    NodeStopped,
    StorageDamaged,
    StorageError,
    StorageFull,
)
from twisted_paxos.figures import NodeFigures
from twisted_paxos.interfaces import INode, INodeStorage, IResultSink
from twisted_paxos.measures import Measures, Parts
from twisted_paxos.own_session import OwnSession
from twisted_paxos.protocols.acceptor import AcceptorProtocol
from twisted_paxos.protocols.base import NodeProtocol, Receiver
from twisted_paxos.protocols.effects import EffectPerformer
from twisted_paxos.protocols.learner import LearnerProtocol, SnapshotProtocol
from twisted_paxos.protocols.link import IncomingLinkFactory
from twisted_paxos.protocols.messenger import SocketMessenger
from twisted_paxos.protocols.proposer import MemberProtocol, ProposerProtocol
from twisted_paxos.protocols.turn import Turn
from twisted_paxos.reads import NodeReads
from twisted_paxos.reports import Reports
from twisted_paxos.snapshots import (
    DEFAULT_POLICY,
    Policy,
    SnapshotMaker,
    SnapshotReceiver,
    SnapshotServer,
    restore,
)
from twisted_paxos.statemachine.commands import NodeStatus, Result, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.machine import IStateMachine
from twisted_paxos.statemachine.opaque import OpaqueLog
from twisted_paxos.statemachine.replicated import Applied, Header, ReplicatedState, committed_sets
from twisted_paxos.statemachine.watches import WatchHub
from twisted_paxos.wire.peer import DATAGRAM_MAX_BYTES, PeerCodec

log = Logger()

RECEIVE_BUFFER_BYTES = 4 << 20
"""What is asked of the system for the UDP port: its default holds four large datagrams."""

EARLY_S = 0.0005
"""A timer that fires this much before its time is on time."""

SOON_S = 0.002
"""A timer that fires within this time need not be looked at: then it is seen what is due."""

_ROUTINE = (Accepted, Heartbeat, HeartbeatReply)  # see `_is_routine`

SHOWN_VALUE_CHARS = 120
"""Longer values are shortened in the log lines of chosen slots."""


@implementer(INode)
class PersistentPaxosNode(Service):
    """Proposer, acceptor and learner of one node, with durable state.

    Args:
        reactor: time, UDP and TCP.
        config: see `NodeConfig`.
        storage: durable state; recovered when the service starts.
        durable: False for storage that a restart forgets.
        entropy: gives random words (hex digits) for incarnation and start.
        random: gives numbers in [0, 1), for jitter.
        stop: called once with one line when the node must end: its storage failed. What could
            still leave is held back before.
        lost: called once with one line when this incarnation must end, and the node is to start
            again as a new one: its storage turned out to be an old copy.
        machine: the state machine that commands are applied to, empty; by default one that keeps
            the values in the log and makes nothing of them.
        snapshot_policy: when snapshots are made.

    Attributes:
        lost: storage was here before and was set aside: set before the start.
        recovered: fires once everything that was chosen before the start is applied.
    """

    def __init__(
        self,
        reactor: Any,
        config: NodeConfig,
        storage: INodeStorage,
        durable: bool,
        entropy: Callable[[], str],
        random: Callable[[], float],
        stop: Callable[[str], None],
        lost: Callable[[str], None],
        machine: IStateMachine | None = None,
        snapshot_policy: Policy = DEFAULT_POLICY,
    ) -> None:
        self.uid = config.uid
        self.config = config
        self.storage = storage
        self.cluster = config.fingerprint(durable)
        self._reactor = reactor
        self._entropy = entropy
        self._random = random
        self._stop = stop
        self._lost = lost
        self.machine = machine if machine is not None else OpaqueLog()
        self._snapshot_policy = snapshot_policy
        self._stopping = False
        self._restoring = False
        self._timer: Any = None
        self._armed_s = float("inf")
        self._tick_due = False
        self._recovered_upto = 0
        self._ports: list[Any] = []
        self._started_s = 0.0
        self.lost = False
        self._session: OwnSession | None = None
        self._chosen_listeners: list[Callable[[int], None]] = []

    # -- start and stop

    def startService(self) -> None:
        """Recover storage, then bind the port, then take part.

        Raises:
            StorageError: the storage cannot be used.
            CannotListenError: the port is taken.
        """
        self._started_s = self._reactor.seconds()
        recovered = self._recover()
        self._build(recovered)
        try:
            self._listen()
        except CannotListenError:
            self.storage.close()
            raise
        super().startService()
        recovered_upto = self._recovered_upto = self.replica.log.chosen_upto
        log.info(
            "node {uid} of cluster {cluster}: {storage}, start {boot}, "
            "chosen up to {chosen_upto}, promised {promised}",
            uid=self.uid,
            cluster=self.cluster,
            storage=self.storage.description,
            boot=self.replica.me.boot,
            chosen_upto=recovered_upto,
            promised=str(self.replica.acceptor.promised),
        )
        self.recovered = self.applier.when_applied(recovered_upto)
        self._restore(recovered.snapshot_slot)
        self._tick_soon()

    def _build(self, recovered: Recovered) -> None:
        """Make the parts and join them."""
        settings = ReplicaSettings(
            self.uid,
            tuple(self.config.members),
            self.config.heartbeat_ms / 1000,
            self.config.disk_stall_ms / 1000,
            self.config.client_told,
        )
        self.replica = Replica(settings, recovered, self._random, self._started_s)
        self._reports = Reports(self.replica, self._started_s)
        codec = PeerCodec(self.cluster, self.config.cluster_key)
        self.turn = Turn(self._reactor, self._settle, self._after_turn)
        self.receiver = Receiver(codec, self._reactor)
        self.messenger = SocketMessenger(
            self._reactor,
            codec,
            self.replica.me,
            self.config.peers,
            self.config.datagram_limit,
            self._random,
        )
        self.state = ReplicatedState(self.machine)
        self.applier = Applier(
            self._reactor,
            self.storage,
            self.state,
            self.replica.requests.owners_of,
            self._applied,
            self._fail,
            lambda: self.performer.stored_upto,
        )
        self.reads = NodeReads(self.replica.read, self.applier.when_applied, self.replica.reads.forget)
        self.performer = EffectPerformer(
            self.uid,
            self._reactor,
            self.storage,
            self.messenger,
            self._receive_own,
            self.applier.chosen,
            self.reads.confirmed,
            lambda source: self.snapshot_receiver.start(source),
            lambda: (self.replica.log.chosen_upto, self.replica.log.log_start),
            self._fail,
            self._end_incarnation,
            recovered.chosen_upto,
            self.turn,
        )
        self._make_snapshot_parts()
        self._make_measures()

    def _make_measures(self) -> None:
        parts = Parts(
            self.replica,
            self.performer,
            self.applier,
            self.storage,
            self.receiver,
            self.messenger,
            self.snapshot_maker,
            self.snapshot_receiver,
        )
        self._measures = Measures(self._reactor, parts, tuple(self.config.peers))

    def _make_snapshot_parts(self) -> None:
        self.snapshot_server = SnapshotServer(self._reactor, self.storage, self.messenger)
        self.snapshot_maker = SnapshotMaker(
            self._reactor,
            self.storage,
            self.state,
            lambda slot: committed_sets(self.replica.membership.sets, slot, limits.ALPHA),
            self.replica.compacted,
            self.snapshot_server.oldest,
            self._hold,
            self._snapshot_policy,
        )
        self.snapshot_receiver = SnapshotReceiver(
            self._reactor, self.storage, self.messenger, self._snapshot_stored, self._random
        )

    # -- snapshots

    def _hold(self, held: bool) -> None:
        """Commands wait while the log outgrows the snapshot that is being written."""
        self.replica.proposer.held = held
        self.turn.plan()

    def _restore(self, snapshot_slot: int) -> None:
        """Bring the state to the newest snapshot, then on along the log."""
        if not snapshot_slot:
            self.applier.resume(self.replica.log.chosen_upto)
            return
        if self._restoring:
            return  # One at a time: the newest comes next.
        self._restoring = True
        restoring = Deferred.fromCoroutine(restore(self._reactor, self.storage, self.state))
        restoring.addCallback(self._restored)
        restoring.addErrback(self._fail)

    def _restored(self, header: Header | None) -> None:
        self._restoring = False
        if self._stopping or header is None:
            return
        if self.storage.snapshot_slot > header.slot:
            # A newer one was fetched meanwhile; the log between the two is gone.
            self._restore(self.storage.snapshot_slot)
            return
        log.info("restored the snapshot of slot {slot}", slot=header.slot)
        if header.slot > self.replica.log.chosen_upto:
            now_s = self._reactor.seconds()
            self.performer.installed(header.slot)
            self._perform(self._decide(lambda: self.replica.install(header.slot, header.sets, now_s)))
        self.replica.applied((), header.log_time_ms, self.machine.deadline_ms)
        self.storage.compact(0).addCallbacks(self.replica.compacted, self._fail)
        self.applier.resume(self.replica.log.chosen_upto)

    def _snapshot_stored(self, slot: int) -> None:
        """A snapshot came from a peer: it takes the place of the state here, if it is ahead of it.

        Storage may have begun anew above it, also when the state here has come as far meanwhile.
        """
        if slot > self.applier.applied_upto:
            self.applier.pause()
            self._restore(slot)
        else:
            self.storage.compact(0).addCallbacks(self.replica.compacted, self._fail)

    def snapshot_message_received(self, sender: Sender, message: FetchPiece | Piece) -> None:
        """What the snapshot protocol calls."""
        if self._stopping:
            return
        if isinstance(message, Piece):
            self.snapshot_receiver.on_piece(sender, message)
        else:
            self.snapshot_server.on_fetch_piece(sender, message)

    def _recover(self) -> Recovered:
        """What storage holds; if that is damaged, it is set aside, and a new incarnation begins."""
        try:
            return self.storage.recover(self._entropy(), self.cluster, self.lost)
        except StorageDamaged as error:
            place = self.storage.set_aside()
            log.error(
                "node {uid}: {error}; kept as {place}. It comes back without a vote, fetches what was chosen"
                " from the others, and votes again once they have agreed to it",
                uid=self.uid,
                error=str(error),
                place=place,
            )
            return self.storage.recover(self._entropy(), self.cluster, lost=True)

    def _end_incarnation(self, reason: str) -> None:
        """This storage is an old copy: it may not speak again."""
        if not self._stopping:
            log.error("node {uid}: {reason}; it comes back as a new one", uid=self.uid, reason=reason)
            self._halt()
            self._lost(reason)

    def _listen(self) -> None:
        roles = (
            AcceptorProtocol(self, self.receiver, self._perform, self._reactor),
            ProposerProtocol(self, self.receiver, self._perform, self._reactor),
            LearnerProtocol(self, self.receiver, self._perform, self._reactor),
            SnapshotProtocol(self, self.receiver, self._perform, self._reactor),
            MemberProtocol(self, self.receiver, self._perform, self._reactor),
        )
        self.protocol = NodeProtocol(
            roles, self.receiver, self.messenger.heard, self.messenger.attach, self.turn
        )
        self.links = IncomingLinkFactory(self.receiver, self._by_link)
        bind = self.config.bind
        udp = self._reactor.listenUDP(bind.port, self.protocol, bind.host, DATAGRAM_MAX_BYTES + 1)
        self._ports.append(udp)
        _widen_buffer(udp)
        try:
            self._ports.append(self._reactor.listenTCP(udp.getHost().port, self.links, interface=bind.host))
        except CannotListenError:
            self._ports.pop().stopListening()
            raise

    def _by_link(self, envelope: Envelope) -> None:
        with self.turn:
            self.protocol.envelope_received(envelope, None)

    def stopService(self) -> Deferred[Any]:
        """Stop taking part; fires when ports are closed and storage is synced."""
        if not self.running:
            return succeed(None)
        super().stopService()
        # What it was told is noted with the last write: a note tells damage from a torn write later on.
        told = self._decide(self.replica.learn, self._reactor.seconds())
        if not told.lost:
            self._perform(told)
        self._halt()
        log.info("node {uid} stops", uid=self.uid)
        endings = [maybeDeferred(port.stopListening) for port in self._ports]
        self._ports = []
        endings.append(self.messenger.close())
        closing = gatherResults(endings, consumeErrors=True)
        closing.addBoth(lambda _: self.storage.close())
        return closing

    def _halt(self) -> None:
        """From here on nothing is decided, sent or applied."""
        self._stopping = True
        self.performer.stop()
        self.applier.stop()
        self.snapshot_maker.stop()
        self.snapshot_server.stop()
        self.snapshot_receiver.stop()
        self.links.close()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._session is not None:
            self._session.stop()
        self.reads.stop()

    def _fail(self, reason: str | Failure) -> None:
        """The node must end, now and with one line."""
        if self._stopping:
            return
        if isinstance(reason, Failure) and reason.check(StorageDamaged):
            # Found later than at the start, but the same: this incarnation has lost something.
            self._end_incarnation(reason.getErrorMessage())
            return
        self._halt()
        if isinstance(reason, Failure):
            text = reason.getErrorMessage()
            if not reason.check(StorageError):
                log.failure("node {uid} failed", failure=reason, uid=self.uid)
                # By itself, the text of a KeyError is a key, and that of an assertion may be nothing.
                text = f"unexpected {reason.value!r}"
            reason = text
        self._stop(f"node {self.uid} stops: {reason}")

    # -- messages and time

    def receive(self, sender: Any, message: Any, now_s: float) -> Effects:
        """What the role protocols call: the replica decides."""
        if self._stopping:
            return Effects()
        if isinstance(message, SnapshotProtocol.takes):
            self.snapshot_message_received(sender, message)
            return Effects()
        if self.performer.overfull and isinstance(message, (*AcceptorProtocol.takes, *LearnerProtocol.takes)):
            self.receiver.drop("disk_behind", sender.uid)
            return Effects()
        effects = self._decide(self.replica.receive, sender, message, now_s)
        routine = type(message) in _ROUTINE and self._is_routine(message, effects)
        if not routine or self.replica.election.is_round_due(now_s):
            self.turn.plan()
        return effects

    def _is_routine(self, message: Any, effects: Effects) -> bool:
        """Whether a message changed nothing that a turn's end has to see, not even a time.

        A vote after the majority's, and an idle cluster's heartbeats.
        """
        if type(message) is Heartbeat:
            quiet = len(effects.sends) == 1 and not (effects.records or effects.replies or effects.chosen)
        else:
            quiet = not effects
        return quiet and self.replica.learner.deadline_s is None and not self.replica.requests

    def _receive_own(self, message: Any) -> Effects:
        return self._decide(self.replica.receive, self.replica.me, message, self._reactor.seconds())

    def _decide(self, decision: Callable[..., Effects], *of: Any) -> Effects:
        """Ask the replica. A rule that does not hold ends the node: nothing may follow from it."""
        try:
            return decision(*of)
        except Exception:
            self._fail(Failure())
            return Effects()

    def _perform(self, effects: Effects) -> None:
        if effects and not self._stopping:
            self.performer.perform(effects)

    def _settle(self) -> None:
        """The end of a turn, first part: what others wait for. Half of it is the end of the node."""
        if self._stopping:
            return
        try:
            now_s = self._reactor.seconds()
            replica = self.replica
            ticks = self._tick_due or replica.election.is_round_due(now_s)
            if self.performer.has_records:
                if not replica.proposer.leading:
                    self.performer.write_now()  # The leader waits for the vote alone.
            elif replica.requests and not (ticks or replica.has_commands):
                self._apply_now()  # A client may wait for it, and nobody for what follows.
                now_s = self._reactor.seconds()
            if ticks:
                self._tick(now_s)
            if self.reads.asks:
                self._perform(self._decide(self.reads.ask, now_s))
            self._perform(self._decide(self.replica.flush, now_s, self._hurries))
            self.performer.write_now()
        except Exception:
            self._fail(Failure())

    def _hurries(self) -> bool:
        """Whether anybody here waits for what is chosen."""
        watches = self.watches
        return bool(self.applier.is_awaited or self._chosen_listeners or (watches and watches.watchers))

    def _after_turn(self) -> None:
        """The end of a turn, second part. A node that could not arm its timer would wait for ever."""
        if self._stopping:
            return
        try:
            self._apply_now()
            if self.reads.asks:
                # A read that needs no other node is answered while the turn is settled; this one followed it.
                self.turn.plan()
            self._rearm()
        except Exception:
            self._fail(Failure())

    def _apply_now(self) -> None:
        self.performer.apply_now(bool(self.replica.requests) or self.applier.is_awaited)

    def _timer_fired(self) -> None:
        """What it was armed for is often done by then: a proposal is chosen long before its retry."""
        self._armed_s = float("inf")
        if self._stopping:
            return
        now_s = self._reactor.seconds()
        try:
            early = self.replica.deadline_s(now_s) > now_s + EARLY_S
            (self._rearm if early else self._tick_soon)()
        except Exception:
            self._fail(Failure())

    def _tick_soon(self) -> None:
        self._tick_due = True
        with self.turn:
            self.turn.plan()

    def _tick(self, now_s: float) -> None:
        self._tick_due = False
        self.replica.disk_waiting_since_s = self.performer.waiting_since_s
        self.replica.disk_full = self.performer.full
        self.replica.voted, self.replica.voted_upto = self.performer.voted, self.performer.voted_upto
        self._perform(self._decide(self.replica.tick, now_s))
        if not self._stopping:
            self._reports.look(now_s)
            self._measures.look(now_s)

    def _rearm(self) -> None:
        """Keep one timer, at the time at which something is due."""
        if self._stopping:
            return
        now_s = self._reactor.seconds()
        if self._armed_s <= now_s + SOON_S:
            return
        delay_s = max(0.001, self.replica.deadline_s(now_s) - now_s)
        if self._armed_s <= now_s + delay_s + 0.001:
            return
        if self._armed_s == float("inf"):
            self._timer = self._reactor.callLater(delay_s, self._timer_fired)
        else:
            self._timer.reset(delay_s)
        self._armed_s = now_s + delay_s

    # -- commands

    def submit(self, commands: Sequence[Command], sink: IResultSink) -> None:
        """See `INode.submit`."""
        self._check_running()
        if self.performer.full and not self.replica.leader_works(self._reactor.seconds()):
            raise StorageFull(
                f"the disk of node {self.uid} is full, and no other node leads: make room there"
            )
        self.replica.submit(commands, sink)
        proposer = self.replica.proposer
        if not proposer.leading or proposer.in_flight or proposer.held or self.applier.is_applying:
            self.turn.plan()
            return
        with self.turn:  # Nothing is under way whose end would bring more to go with it.
            self.turn.plan()

    def _check_running(self) -> None:
        if self._stopping or not self.running:
            raise NodeStopped("the node is stopping; ask another one")

    def forget(self, sink: IResultSink) -> None:
        """See `INode.forget`."""
        self.replica.requests.forget(sink)

    def propose(self, command: bytes | str | Raw) -> Deferred[Result]:
        """Have a command chosen and applied, once.

        Args:
            command: an opaque value, or the JSON of any other payload as `msgspec.Raw`.

        Returns:
            fires with its `Result` when this node has applied it; fails with `NodeStopped`,
            after which the outcome is unknown.

        Raises:
            Overloaded: too much waits already.
            ValueTooLarge: it is over `limits.VALUE_MAX_BYTES`.
        """
        self._check_running()
        if self._session is None:
            self._session = OwnSession(self, self._entropy(), self._reactor.seconds)
        return self._session.propose(command if isinstance(command, Raw) else encode_opaque(command))

    def read(self) -> Deferred[None]:
        """Begin a linearizable read, at any node.

        Returns:
            fires when the state machine here has applied everything that any node had answered
            for before this call: then look at it in the same turn. Waits as long as there is no
            leader with a majority: cancel it when that is too long. Fails with `NodeStopped`.

        Raises:
            Overloaded: too many reads wait already.
        """
        self._check_running()
        waiting = self.reads.begin()
        self.turn.plan()
        return waiting

    def query(self, payload: Raw, serializable: bool = False) -> Deferred[Raw]:
        """Ask the state machine.

        Args:
            payload: the question, as `IStateMachine.query` takes it.
            serializable: answer from what is applied here, which may be old; else the answer
                contains all that any node had answered for before this call.

        Returns:
            fires with the answer; see `read` for how it can fail.

        Raises:
            Overloaded: too many reads wait already.
        """
        self._check_running()
        if serializable:
            return succeed(self.machine.query(payload))
        return self.read().addCallback(lambda _: self.machine.query(payload))

    @property
    def watches(self) -> WatchHub | None:
        """The watches of the key-value store; None with another state machine."""
        return self.machine.watches if isinstance(self.machine, KeyValueStore) else None

    # -- chosen slots

    def _applied(self, entry: SlotEntry, applied: Applied) -> None:
        self.replica.applied(applied.runs, self.state.log_time_ms, self.machine.deadline_ms)
        # What was known before this start was printed then.
        if self.config.print_chosen and entry.slot > self._recovered_upto:
            for index, command in enumerate(applied.commands):
                log.info(
                    "chosen: slot {slot}.{index} ballot {ballot} value {value}",
                    slot=entry.slot,
                    index=index,
                    ballot=str(entry.ballot),
                    value=_shown(command.payload),
                )
        self.snapshot_maker.applied()
        for listener in tuple(self._chosen_listeners):
            listener(entry.slot)

    def on_chosen(self, listener: Callable[[int], None]) -> Callable[[], None]:
        """See `INode.on_chosen`."""
        self._chosen_listeners.append(listener)
        return lambda: self._chosen_listeners.remove(listener)

    def read_log(self, from_slot: int, limit_bytes: int) -> Deferred[list[SlotEntry]]:
        """See `INode.read_log`."""
        stored_upto = self.performer.stored_upto
        from_slot = max(from_slot, self.replica.log.log_start)
        if from_slot > stored_upto:
            return succeed([])
        return self.storage.read_chosen(from_slot, stored_upto, min(limit_bytes, limits.FETCH_BYTES))

    # -- for people

    def status(self) -> NodeStatus:
        """See `INode.status`."""
        replica, now_s = self.replica, self._reactor.seconds()
        return NodeStatus(
            uid=self.uid,
            role=replica.role(),
            leader=replica.leader.uid,
            leader_works=replica.serves(now_s),
            log_start=replica.log.log_start,
            ballot=replica.leader,
            promised=replica.acceptor.promised,
            chosen_upto=replica.log.chosen_upto,
            applied=self.applier.applied_upto,
            storage=self.storage.description,
            log_bytes=self.storage.log_bytes,
            uptime_s=round(now_s - self._started_s, 3),
            incarnation=replica.me.incarnation,
            boot=replica.me.boot,
            client=self.config.client_told,
            waiting_for=replica.formation.waiting_for,
            dropped=dict(self.receiver.dropped),
            version=twisted_paxos.__version__,
        )

    def figures(self) -> NodeFigures:
        """See `INode.figures`; to be called once the node is started."""
        return self._measures.figures(self.status())


def _shown(payload: Raw) -> str:
    text = bytes(memoryview(payload)[: 4 * SHOWN_VALUE_CHARS]).decode("utf-8", "replace")
    if len(payload) > 4 * SHOWN_VALUE_CHARS or len(text) > SHOWN_VALUE_CHARS:
        return f"{text[:SHOWN_VALUE_CHARS]}... ({len(payload):,} bytes)"
    return text


def _widen_buffer(port: Any) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        port.socket.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
