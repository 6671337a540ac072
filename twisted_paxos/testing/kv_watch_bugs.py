"""Planted bugs of watches, locks and elections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

from msgspec import structs
from twisted.internet.defer import Deferred

from twisted_paxos.client.recipes.place import Place
from twisted_paxos.client.watches import Watch, Watches
from twisted_paxos.errors import WatchCanceled
from twisted_paxos.statemachine.kvcommands import Event
from twisted_paxos.statemachine.watches import WatchBatch, Watcher, WatchHub
from twisted_paxos.testing.kv_bugs import kv_mutant
from twisted_paxos.testing.planting import Patch, wrap

# -- watches


@kv_mutant("etcd: watch resumes")
def watch_skips_on_resume() -> Sequence[Patch]:
    """A watch that goes on at another node begins one revision too late."""

    def start_request(original: Any, self: Watch, request_id: int) -> Any:
        resumed = self.request_id > 0 and self.next_revision > 0
        request = original(self, request_id)
        if not resumed:
            return request
        later = structs.replace(request.request, start_revision=self.next_revision + 1)
        return structs.replace(request, request=later)

    return [wrap(Watch, "start_request", start_request)]


@kv_mutant("etcd: once")
def watch_repeats_on_resume() -> Sequence[Patch]:
    """A watch that goes on at another node gives its last revision again."""

    def detached(original: Any, self: Watch) -> None:
        original(self)
        self.next_revision = max(self.next_revision - 1, min(self.next_revision, 1))

    return [wrap(Watch, "detached", detached)]


@kv_mutant("etcd: once")
def watch_keeps_half_a_batch() -> Sequence[Patch]:
    """What came of an unfinished batch is kept when the connection is lost, and comes again with the rest."""

    def detached(self: Watch) -> None:
        self.live = False

    return [mock.patch.object(Watch, "detached", detached)]


@kv_mutant("etcd: whole revisions")
def revision_split_by_node() -> Sequence[Patch]:
    """A node gives the events of one revision one by one."""

    def from_queue(self: WatchHub, watcher: Watcher, limit_bytes: int) -> WatchBatch:
        return self._batch(watcher, [watcher.queue.popleft()])

    return [mock.patch.object(WatchHub, "_from_queue", from_queue)]


@kv_mutant("etcd: whole revisions")
def revision_split_by_client() -> Sequence[Patch]:
    """A client gives the parts of a large batch as they come."""

    def deliver(original: Any, self: Watch, batch: WatchBatch, more: bool) -> None:
        original(self, batch, False)

    return [wrap(Watch, "deliver", deliver)]


@kv_mutant("etcd: every event")
def watch_overflow_loses() -> Sequence[Patch]:
    """What does not fit into a watcher's queue is lost."""

    def enqueue(original: Any, self: WatchHub, watcher: Watcher, event: Event) -> None:
        if len(watcher.queue) < self.queue_max_events:
            original(self, watcher, event)

    return [wrap(WatchHub, "_enqueue", enqueue)]


@kv_mutant("etcd: every event")
def watch_misses_snapshot() -> Sequence[Patch]:
    """A watcher goes on after a snapshot as if nothing had happened in between."""

    def moved(self: WatchHub, mvcc: Any) -> None:
        self._mvcc = mvcc

    return [mock.patch.object(WatchHub, "moved", moved)]


@kv_mutant("etcd: in order")
def watch_goes_back_after_snapshot() -> Sequence[Patch]:
    """After a snapshot a watcher is given history again from where it once began."""

    def moved(original: Any, self: WatchHub, mvcc: Any) -> None:
        original(self, mvcc)
        for watcher in self.watchers.values():
            watcher.behind_from = watcher.min_revision = max(1, watcher.request.start_revision)

    def deliver(self: Watch, batch: WatchBatch, more: bool) -> None:
        self._parts.extend(batch.events)
        if not more:
            events, self._parts = tuple(self._parts), []
            self._give(WatchBatch(0, batch.revision, events))
            self.next_revision = batch.revision + 1

    return [wrap(WatchHub, "moved", moved), mock.patch.object(Watch, "deliver", deliver)]


@kv_mutant("etcd: explicit cancellation")
def watch_skips_compacted() -> Sequence[Patch]:
    """A watch whose history is compacted goes on from what is left, without a word."""

    def from_history(original: Any, self: WatchHub, watcher: Watcher, limit_bytes: int) -> Any:
        watcher.behind_from = max(watcher.behind_from, self._mvcc.compact_revision)
        return original(self, watcher, limit_bytes)

    return [wrap(WatchHub, "_from_history", from_history)]


@kv_mutant("etcd: never silent")
def watch_stays_silent() -> Sequence[Patch]:
    """A watch whose consumer was slow is not started again."""
    return [mock.patch.object(Watches, "go_on", lambda self, watch: None)]


@kv_mutant("etcd: never silent")
def watch_rests_without_a_node() -> Sequence[Patch]:
    """A watch whose consumer has caught up while there was no connection is not started again."""

    def go_on(original: Any, self: Watches, watch: Watch) -> None:
        if self._connection is not None:
            original(self, watch)

    return [wrap(Watches, "go_on", go_on)]


@kv_mutant("etcd: explicit cancellation")
def watch_ends_without_need() -> Sequence[Patch]:
    """A watch ends when its node lacks history, whether it wants that history or not."""

    def events(original: Any, self: Watches, watch: Watch, response: Any) -> None:
        batch = response.batch
        if batch.canceled and batch.compact_revision:
            self._end(watch, WatchCanceled(batch.cancel_reason, batch.compact_revision))
        else:
            original(self, watch, response)

    return [wrap(Watches, "_events", events)]


@kv_mutant("etcd: progress")
def progress_ahead_of_events() -> Sequence[Patch]:
    """A client takes what its node has for what it was given itself."""

    def started(original: Any, self: Watch, revision: int) -> None:
        original(self, revision)
        self.next_revision = max(self.next_revision, revision + 1)

    return [wrap(Watch, "started", started)]


# -- locks


@kv_mutant("recipes: first come, first served")
def lock_does_not_wait() -> Sequence[Patch]:
    """A place in the queue counts as the turn."""

    async def blocker(self: Place) -> None:
        return None

    return [mock.patch.object(Place, "_blocker", blocker)]


@kv_mutant("recipes: first come, first served")
def lock_does_not_look_again() -> Sequence[Patch]:
    """When the one before is gone it is taken for the turn, although others came before that one."""

    async def wait_for_turn(self: Place) -> None:
        blocker = await self._blocker()
        if blocker is not None:
            await self._wait_for_deletion(blocker)

    return [mock.patch.object(Place, "_wait_for_turn", wait_for_turn)]


@kv_mutant("recipes: fencing")
def fencing_token_repeats() -> Sequence[Patch]:
    """The fencing token is the version of the holder's key, not its revision."""

    def acquire(original: Any, self: Place, value: bytes, timeout_s: float | None) -> Deferred[int]:
        taking: Deferred[int] = original(self, value, timeout_s)
        return taking.addCallback(lambda token: 1)

    return [wrap(Place, "_acquire", acquire)]


@kv_mutant("recipes: fencing")
def fencing_token_too_low() -> Sequence[Patch]:
    """The fencing token is the revision before the one that made the holder's key."""

    async def take(original: Any, self: Place, value: bytes) -> int:
        await original(self, value)
        return self.token - 1

    return [wrap(Place, "_take", take)]


@kv_mutant("recipes: held")
def held_after_the_lease() -> Sequence[Patch]:
    """A holder that was stopped believes that it holds its lock until it is told otherwise."""
    return [mock.patch.object(Place, "held", property(lambda self: self._state == "held"))]


@kv_mutant("recipes: lost")
def turn_taken_without_lease() -> Sequence[Patch]:
    """Nobody looks whether the lease is sure when the turn comes."""
    return [mock.patch.object(Place, "_check_lease", lambda self: None)]
