"""What watchers and holders of locks were promised, judged by the chosen log; see `kvchecks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted_paxos.statemachine.kvcommands import COMPACTED, Event, Range
from twisted_paxos.statemachine.watches import WatchBatch
from twisted_paxos.testing.history import Op
from twisted_paxos.testing.kvchecks import KvCheck
from twisted_paxos.testing.kvhistory import Grant, Watching
from twisted_paxos.testing.kvreference import answer
from twisted_paxos.testing.witness import Violation


class Watched(KvCheck):
    """Every watcher gets each event of its range once, in order, whole revisions together, to its end."""

    name = "kv watch"

    def finish(self, ops: Sequence[Op]) -> None:
        """Each watch."""
        for watching in self._run.history.watchings:
            self._check_start(watching)
            self._check_batches(watching)
            self._check_events(watching)
            self._check_end(watching)

    def _check_start(self, watching: Watching) -> None:
        """One from the present begins behind what its client had seen, and not behind what nobody has."""
        if watching.request.start_revision or not watching.first_revision:
            return
        known = max(self._run.revision_at(watching.started_s), watching.seen_revision)
        if not watching.seen_revision < watching.first_revision <= known + 1:
            raise Violation(f"{watching}: it had seen {watching.seen_revision}, and {known} was there")

    def _check_batches(self, watching: Watching) -> None:
        """In order, no revision in two of them, nothing before its time, nothing behind what is done with."""
        done = 0
        for at_s, batch in watching.batches:
            revisions = [event.kv.mod_revision for event in batch.events]
            if revisions != sorted(revisions) or (revisions and revisions[0] <= done):
                raise Violation(f"{watching}: after {done} came {revisions}")
            if batch.revision < max([done, *revisions]) and batch.events:
                raise Violation(f"{watching}: a batch of {revisions} says that it is up to {batch.revision}")
            if not batch.events and batch.revision < done:
                raise Violation(f"{watching}: after {done} came the progress {batch.revision}")
            done = max([done, batch.revision, *revisions])
            if self._run.revision_s(done) > at_s:
                raise Violation(f"{watching}: {done} came at {at_s:.4f} s, when no node had it")

    def _check_events(self, watching: Watching) -> None:
        given = [event for _, batch in watching.batches for event in batch.events]
        expected = list(self._expected(watching, self._upto(watching)))
        for number, event in enumerate(expected):
            if number >= len(given) or given[number].kv != event.kv:
                what = given[number].kv if number < len(given) else "nothing"
                raise Violation(f"{watching}: {event.kv} should have come as number {number}, and {what} did")
            self._check_before(watching, given[number], event)
        if len(given) > len(expected):
            raise Violation(f"{watching}: {given[len(expected)].kv} came, and should not have")

    def _upto(self, watching: Watching) -> int:
        """The last revision of which all must have been given."""
        if not watching.ended:
            return self._run.replay.store.revision
        batches: list[WatchBatch] = [batch for _, batch in watching.batches]
        return max((batch.revision for batch in batches), default=0)

    def _expected(self, watching: Watching, upto: int) -> Iterator[Event]:
        asked, store = watching.request, self._run.replay.store
        if not watching.first_revision:
            return
        for event in store.events(asked.key, asked.range_end, watching.first_revision, asked.prev_kv):
            filtered = asked.noput if event.type == "PUT" else asked.nodelete
            if event.kv.mod_revision <= upto and not filtered:
                yield event

    def _check_before(self, watching: Watching, given: Event, expected: Event) -> None:
        """The version before may be compacted when an event is given; it is never a wrong one."""
        if given.prev_kv == expected.prev_kv:
            return
        compacted = given.kv.mod_revision - 1 < self._run.replay.store.compact_revision
        if given.prev_kv is not None or not compacted:
            raise Violation(f"{watching}: {given} has another version before than {expected}")

    def _check_end(self, watching: Watching) -> None:
        """It ends only when it is closed, or when history that it needs is gone."""
        if not watching.ended:
            if watching.next_revision <= self._run.replay.store.revision:
                raise Violation(f"{watching} stands still at {watching.next_revision}")
        elif watching.ended not in ("closed", "died"):
            replay = self._run.replay
            needed = max(self._upto(watching) + 1, watching.first_revision)
            gone = any(
                revision == watching.compact_revision and self._run.slot_s(slot) <= watching.ended_s
                for slot, revision in replay.compacted
            )
            reason = COMPACTED.message in watching.ended
            if not (reason and gone and watching.compact_revision > needed):
                end = f"{watching.compact_revision}: {watching.ended}"
                raise Violation(f"{watching} needs {needed}, and was ended at {end}")


class Exclusion(KvCheck):
    """Locks and elections: one holder at a time, as far as clocks go, and fencing tokens that go up."""

    name = "kv lock"

    def finish(self, ops: Sequence[Op]) -> None:
        """All turns, all uses."""
        for name in sorted({grant.name for grant in self._run.history.grants}):
            grants = [grant for grant in self._run.history.grants if grant.name == name]
            self._check_tokens(grants)
            for grant in grants:
                self._check_turn(grant)
            self._check_uses(name)
        self._check_observers()

    def _check_tokens(self, grants: Sequence[Grant]) -> None:
        """Each is the revision that created the holder's key: unique, and higher for each later holder."""
        created = {
            (change.key, change.create_revision)
            for changes in self._run.replay.store.changes.values()
            for change in changes
        }
        highest = 0
        for grant in grants:
            if (grant.key, grant.token) not in created:
                raise Violation(f"{grant}: its token is not the revision that made its key")
            if grant.token == highest or (grant.token < highest and not self._slack_s(grant.at_s)):
                raise Violation(f"{grant}: the fencing token before it was {highest}")
            highest = max(highest, grant.token)

    def _slack_s(self, at_s: float) -> float:
        """By how much log time may have run ahead lately."""
        return self._run.slack_s(at_s)

    def _check_turn(self, grant: Grant) -> None:
        """Whoever came before was gone when it was somebody's turn, and the lease was sure."""
        if not grant.held:
            raise Violation(f"{grant}: its lease was not sure any more")
        revision = self._run.revision_at(grant.at_s)
        prefix = grant.name.encode() + b"/"
        state = self._run.replay.store.states[revision]
        found = answer(Range(prefix, prefix[:-1] + b"0"), state, revision)
        before = [kv.key for kv in found.kvs if kv.create_revision < grant.token]
        if before:
            raise Violation(f"{grant}: it was not its turn: {before} came before and are there")

    def _check_uses(self, name: str) -> None:
        """Nobody who looked just before was overtaken; nobody else held it then, as far as they knew."""
        history, highest = self._run.history, 0
        holders: dict[int, bytes] = {}
        for use in history.uses:
            if use.name != name:
                continue
            slack_s = self._slack_s(use.at_s)
            if holders.setdefault(use.token, use.key) != use.key:
                raise Violation(f"{use}: another holder has the same token")
            # Where no clock jumped, `held` alone counts, whatever the lease says.
            if use.looked and (use.sure_s > slack_s or not slack_s):
                if use.token < highest:
                    raise Violation(f"{use}: {highest} was used before")
                if any(sure_s > slack_s or not slack_s for _, sure_s in use.others):
                    raise Violation(f"{use}: others hold it too")
            highest = max(highest, use.token)

    def _check_observers(self) -> None:
        """No observer of an election is shown a leader after its successor."""
        last: dict[str, int] = {}
        for seen in self._run.history.seen:
            if seen.token < last.get(seen.observer, 0):
                raise Violation(f"{seen}: it was shown {last[seen.observer]} before")
            last[seen.observer] = seen.token
