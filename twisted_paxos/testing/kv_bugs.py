"""Planted bugs of the key-value layer: leases, sessions, the store, reads, and what clients do with it all.

Those of watches and locks are in `kv_watch_bugs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

from msgspec import Raw, structs
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from twisted_paxos.client.kv import KeyValues
from twisted_paxos.client.lease import Lease
from twisted_paxos.core.messages import Command
from twisted_paxos.core.proposer import LogClock
from twisted_paxos.errors import OutcomeUnknown
from twisted_paxos.node import PersistentPaxosNode
from twisted_paxos.statemachine.commands import Context, Result
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import KeyValue
from twisted_paxos.statemachine.leases import Lease as StoredLease
from twisted_paxos.statemachine.leases import Leases
from twisted_paxos.statemachine.mvcc import Mvcc
from twisted_paxos.statemachine.sessions import Sessions
from twisted_paxos.testing.planting import Patch, mutant, wrap

kv_mutant = partial(mutant, load="kv")

# -- leases


@kv_mutant("5 log time")
def lease_from_receipt() -> Sequence[Patch]:
    """A holder counts from when the answer to its keep-alive came, not from when it asked."""

    def renewed(original: Any, self: Lease, sent_s: float) -> None:
        original(self, self._client.monotonic_s())

    return [wrap(Lease, "_renewed", renewed)]


@kv_mutant("5 log time")
def lease_sure_too_long() -> Sequence[Patch]:
    """A holder is sure of its lease for half its time longer than it was promised."""

    def renewed(original: Any, self: Lease, sent_s: float) -> None:
        original(self, sent_s + self.ttl_s / 2)

    return [wrap(Lease, "_renewed", renewed)]


@kv_mutant("5 log time")
def leader_change_moves_time() -> Sequence[Patch]:
    """The log time of a new leader begins a second ahead: leases expire because of the change."""

    def start(original: Any, self: LogClock, time_ms: int, now_s: float) -> None:
        original(self, time_ms + 1_000 if time_ms else 0, now_s)

    return [wrap(LogClock, "start", start)]


@kv_mutant("5 log time")
def pause_moves_time() -> Sequence[Patch]:
    """A leader that was stopped counts all that time at once when it goes on."""

    def read_ms(original: Any, self: LogClock, now_s: float) -> int:
        self._step_max_s = 1e9
        return int(original(self, now_s))

    return [wrap(LogClock, "read_ms", read_ms)]


@kv_mutant("5 leases")
def keep_alive_without_effect() -> Sequence[Patch]:
    """A keep-alive is answered, and the lease runs out all the same."""

    def keep_alive(self: Leases, lease_id: int, time_ms: int) -> int:
        return self._leases[lease_id].ttl_s if self.alive(lease_id, time_ms) else 0

    return [mock.patch.object(Leases, "keep_alive", keep_alive)]


@kv_mutant("5 leases")
def keep_alive_revives() -> Sequence[Patch]:
    """A keep-alive brings a lease back that has expired."""

    def keep_alive(original: Any, self: Leases, lease_id: int, time_ms: int) -> int:
        if lease_id not in self._leases:
            self.add(StoredLease(lease_id, 1, time_ms))
        self._leases[lease_id] = structs.replace(self._leases[lease_id], deadline_ms=time_ms + 1)
        return int(original(self, lease_id, time_ms))

    return [wrap(Leases, "keep_alive", keep_alive)]


@kv_mutant("5 leases")
def expired_keys_stay() -> Sequence[Patch]:
    """A lease that nobody keeps alive ends, and its keys stay."""
    return [mock.patch.object(KeyValueStore, "_delete_keys", lambda self, keys: None)]


@kv_mutant("5 leases")
def delete_keeps_attachment() -> Sequence[Patch]:
    """A key that is deleted, or put without its lease, still goes when the lease does."""
    return [mock.patch.object(Leases, "detach", lambda self, lease_id, key: None)]


@kv_mutant("5 leases")
def attachments_not_in_snapshot() -> Sequence[Patch]:
    """After a snapshot, keys do not go with their leases any more."""
    return [wrap(KeyValueStore, "restore", partial(_restore_and, lambda store: store._leases._keys.clear()))]


def _restore_and(forget: Any, original: Any, self: KeyValueStore, pieces: Iterator[bytes]) -> Iterator[None]:
    yield from original(self, pieces)
    forget(self)


@kv_mutant("5 log time")
def log_time_not_in_snapshot() -> Sequence[Patch]:
    """A lease that comes with a snapshot has its whole time to live again."""

    def forget(store: KeyValueStore) -> None:
        leases = store._leases
        for lease in leases.records():
            leases.add(structs.replace(lease, deadline_ms=store.time_ms + 1_000 * lease.ttl_s))

    return [wrap(KeyValueStore, "restore", partial(_restore_and, forget))]


# -- sessions


@kv_mutant("5 sessions")
def session_created_silently() -> Sequence[Patch]:
    """A command of a session that has expired begins a new one."""

    def admit(original: Any, self: Sessions, command: Command, slot: int, index: int) -> Any:
        if command.client not in self._sessions:
            original(self, structs.replace(command, sequence=0), slot, index)
        return original(self, command, slot, index)

    return [wrap(Sessions, "admit", admit)]


@kv_mutant("5 sessions")
def retry_gets_new_result() -> Sequence[Patch]:
    """A command that is tried again is told that it was applied now, and nothing of its result."""

    def admit(original: Any, self: Sessions, command: Command, slot: int, index: int) -> Any:
        result = original(self, command, slot, index)
        if result is not None and command.sequence and not result.error:
            result = Result(command.client, command.sequence, slot, index)
        return result

    return [wrap(Sessions, "admit", admit)]


@kv_mutant("5 sessions")
def session_never_expires_here() -> Sequence[Patch]:
    """Sessions that came with a snapshot are used from then on, and so expire later than at other nodes."""

    def load(original: Any, self: Sessions, saved: Any) -> None:
        original(self, [structs.replace(session, used_ms=self.log_time_ms) for session in saved])

    return [wrap(Sessions, "load", load)]


@kv_mutant("5 sessions")
def client_sends_again() -> Sequence[Patch]:
    """A client does a write whose outcome it does not know once more, as a new command."""

    def do(original: Any, self: KeyValues, command: Any, kind: Any, timeout_s: Any) -> Deferred[Any]:
        def again(failure: Failure) -> Deferred[Any]:
            failure.trap(OutcomeUnknown)
            return original(self, command, kind, timeout_s)

        return original(self, command, kind, timeout_s).addErrback(again)

    return [wrap(KeyValues, "_do", do)]


# -- the store


@kv_mutant("etcd: compare")
def compare_ignored() -> Sequence[Patch]:
    """A transaction always does what it would on success."""

    def branches(txn: Any, mvcc: Mvcc) -> Iterator[bool]:
        yield True
        for operation in txn.success:
            if type(operation) is type(txn):
                yield from branches(operation, mvcc)

    return [mock.patch("twisted_paxos.statemachine.kv.chosen_branches", branches)]


@kv_mutant("etcd: one revision")
def txn_not_atomic() -> Sequence[Patch]:
    """Each operation of a transaction makes a revision of its own."""

    def do(original: Any, self: KeyValueStore, operation: Any) -> Any:
        result = original(self, operation)
        if self._mvcc.pending:
            self._commit()
        return result

    return [wrap(KeyValueStore, "_do", do)]


@kv_mutant("etcd: compaction")
def compaction_removes_live() -> Sequence[Patch]:
    """Compaction forgets a version that nothing has superseded."""

    def forget(original: Any, self: Mvcc, kv: KeyValue) -> None:
        original(self, kv)
        if kv.version and self.get(kv.key) is kv:
            self.delete(kv.key)
            self.pending.clear()

    return [wrap(Mvcc, "_forget_before", forget)]


@kv_mutant("etcd: compaction")
def compacted_is_read() -> Sequence[Patch]:
    """A read of a revision that is compacted is answered with what is left of it."""
    return [mock.patch("twisted_paxos.statemachine.kv.refuse_range", lambda mvcc, request: None)]


@kv_mutant("etcd: lease")
def put_on_expired_lease() -> Sequence[Patch]:
    """A put may name a lease that is gone."""
    return [mock.patch.object(Leases, "alive", lambda self, lease_id, time_ms: True)]


@kv_mutant("5 log time")
def own_clock_in_the_store() -> Sequence[Patch]:
    """The store adds up how often it was asked, on its own, and takes that for time."""

    def advance(original: Any, self: KeyValueStore, context: Context) -> None:
        own_ms = vars(self).setdefault("own_ms", [0])
        own_ms[0] += 1
        original(self, structs.replace(context, time_ms=context.time_ms + own_ms[0]))

    return [wrap(KeyValueStore, "advance", advance)]


# -- reads


@kv_mutant("5 reads are confirmed")
def serializable_for_linearizable() -> Sequence[Patch]:
    """Every question is answered from what the node has applied."""

    def query(self: PersistentPaxosNode, payload: Raw, serializable: bool = False) -> Deferred[Raw]:
        return succeed(self.machine.query(payload))

    return [mock.patch.object(PersistentPaxosNode, "query", query)]
