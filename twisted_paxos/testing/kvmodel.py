"""Runs random operations on a `KeyValueStore` and on `ReferenceStore`, and compares all that can be seen.

    python -m twisted_paxos.testing.kvmodel --operations 100000 --seed 1

prints one line with the result; the same seed gives the same run. Compared are every result, reads at
old revisions, leases, sizes, what watchers get (with queues so short that they fall behind all the
time), and, through snapshots that are read while operations go on, a second store.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter

from msgspec import structs

from twisted_paxos.statemachine.commands import Context, encode_opaque
from twisted_paxos.statemachine.kv import KeyValueStore
from twisted_paxos.statemachine.kvcommands import (
    COMPACTED,
    Compact,
    Compare,
    DeleteRange,
    Event,
    KvCommand,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Txn,
    decode_result,
    encode_command,
)
from twisted_paxos.statemachine.kvlimits import KvLimits
from twisted_paxos.statemachine.watches import WatchBatch, WatchRequest
from twisted_paxos.testing.kvreference import ReferenceStore, answer

KEYS = [b"a", b"a\0", b"ab", b"abc", b"b", b"ba", b"c", b"c\xff", b"d", b"e", b"ea", b"\xff", b"\xff\xff"]
ENDS = [b"", b"", b"", b"\0", b"b", b"bb", b"c", b"e\0", b"\xff", b"a"]

SMALL_LIMITS = KvLimits(
    request_max_bytes=2_000,
    txn_ops_max=6,
    quota_bytes=60_000,
    keep_revisions=150,
    keep_ms=60_000,
    keep_bytes=30_000,
    leases_max=12,
)
"""Limits that random operations reach often."""


class Difference(AssertionError):
    """The store and the model are not of one mind."""


def same(what: str, got: object, wanted: object) -> None:
    """Raise `Difference` unless both are equal."""
    if got != wanted:
        raise Difference(f"{what}: the store has {got!r}, the model {wanted!r}")


# ------------------------------------------------------------- random commands


class Commands:
    """Makes random commands that have a chance to mean something.

    Args:
        rng: where all chance comes from.
        model: whose revisions and leases are worth to name.
    """

    def __init__(self, rng: Random, model: ReferenceStore) -> None:
        self._rng = rng
        self._model = model

    def command(self) -> KvCommand:
        """Any command."""
        makers: dict[Callable[[], KvCommand], int] = {
            self.put: 40,
            self.delete: 12,
            self.range: 8,
            self.txn: 25,
            self._compact: 1,
            self._grant: 5,
            self._revoke: 2,
            self._keep_alive: 5,
        }
        return self._rng.choices(list(makers), list(makers.values()))[0]()

    def put(self) -> Put:
        """A put; now and then one that is refused."""
        rng = self._rng
        size_bytes = rng.choices((rng.randrange(20), 1_500, 2_100), (200, 2, 1))[0]
        lease = self._lease() if rng.random() < 0.25 else 0
        ignore_value, ignore_lease = rng.random() < 0.06, rng.random() < 0.06
        value = b"" if ignore_value and rng.random() < 0.8 else rng.randbytes(size_bytes)
        lease = 0 if ignore_lease and rng.random() < 0.8 else lease
        return Put(self._key(), value, lease, rng.random() < 0.3, ignore_value, ignore_lease)

    def delete(self) -> DeleteRange:
        """A deletion of one or more keys."""
        rng = self._rng
        end = rng.choice(ENDS) if rng.random() < 0.3 else b""
        return DeleteRange(self._key(), end, rng.random() < 0.4)

    def range(self) -> Range:
        """A read with any options."""
        rng = self._rng
        bounds = [self._revision() if rng.random() < 0.1 else 0 for _ in range(4)]
        return Range(
            self._key(),
            rng.choice(ENDS),
            rng.choice((0, 0, 1, 2, 5)),
            self._revision() if rng.random() < 0.4 else 0,
            rng.choice(("NONE", "NONE", "ASCEND", "DESCEND")),
            rng.choice(("KEY", "KEY", "VERSION", "CREATE", "MOD", "VALUE")),
            rng.random() < 0.2,
            rng.random() < 0.1,
            *bounds,
        )

    def txn(self, depth: int = 0) -> Txn:
        """A transaction, nested now and then."""
        rng = self._rng
        compares = tuple(self._compare() for _ in range(rng.choice((0, 1, 1, 2))))
        success = tuple(self._operation(depth) for _ in range(rng.choice((0, 1, 2, 3, 7 - depth))))
        failure = tuple(self._operation(depth) for _ in range(rng.choice((0, 1, 2))))
        return Txn(compares, success, failure)

    def _operation(self, depth: int) -> Operation:
        kinds = (0, 0, 0, 1, 2) if depth > 3 else (0, 0, 0, 1, 2, 3)
        kind = self._rng.choice(kinds)
        return (self.put, self.delete, self.range, lambda: self.txn(depth + 1))[kind]()

    def _compare(self) -> Compare:
        rng = self._rng
        key = self._key()
        present = self._model.states[self._model.revision].get(key)
        number = rng.randrange(4)
        return Compare(
            key,
            rng.choice(ENDS) if rng.random() < 0.3 else b"",
            rng.choice(("VERSION", "CREATE", "MOD", "VALUE", "LEASE")),
            rng.choice(("EQUAL", "GREATER", "LESS", "NOT_EQUAL")),
            version=present.version if present and rng.random() < 0.5 else number,
            create_revision=present.create_revision if present and rng.random() < 0.5 else number,
            mod_revision=present.mod_revision if present and rng.random() < 0.5 else self._revision(),
            value=present.value if present and rng.random() < 0.5 else b"x",
            lease=self._lease() if rng.random() < 0.5 else 0,
        )

    def _compact(self) -> Compact:
        return Compact(self._revision())

    def _grant(self) -> LeaseGrant:
        rng = self._rng
        ttl_s = rng.choices((rng.randrange(-1, 60), 10_000_000_000), (50, 1))[0]
        return LeaseGrant(ttl_s, rng.choice((0, rng.randrange(1, 12))))

    def _revoke(self) -> LeaseRevoke:
        return LeaseRevoke(self._lease())

    def _keep_alive(self) -> LeaseKeepAlive:
        return LeaseKeepAlive(self._lease())

    def _key(self) -> bytes:
        return self._rng.choice(KEYS) if self._rng.random() < 0.995 else b""

    def _lease(self) -> int:
        known = list(self._model.leases)
        return self._rng.choice(known) if known and self._rng.random() < 0.9 else self._rng.randrange(1, 14)

    def _revision(self) -> int:
        model, rng = self._model, self._rng
        lowest = max(model.compact_revision - 3, 0)
        if rng.random() < 0.02:
            return -rng.randint(1, 2)
        return rng.randint(lowest, model.revision + (1 if rng.random() < 0.2 else 0))


# ---------------------------------------------------------------- the comparison


@dataclass
class Watching:
    """A watcher and what it still has to get: everything from ``following`` on."""

    watch_id: int
    request: WatchRequest
    following: int
    woken: bool = False


@dataclass
class Copy:
    """A snapshot under way, and what was done since it began."""

    pieces: object
    revision: int
    taken: list[bytes] = field(default_factory=list)
    since: list[tuple[KvCommand | None, Context]] = field(default_factory=list)


class Comparison:
    """One run.

    Attributes:
        counts: what was done, and how often.
    """

    def __init__(self, rng: Random, limits: KvLimits = SMALL_LIMITS) -> None:
        self.counts: Counter[str] = Counter()
        self._rng = rng
        self._limits = limits
        self._model = ReferenceStore(limits)
        self._store = self._new_store()
        self._commands = Commands(rng, self._model)
        self._slot = 0
        self._time_ms = 0
        self._watchings: list[Watching] = []
        self._copy: Copy | None = None

    def _new_store(self) -> KeyValueStore:
        store = KeyValueStore(self._limits)
        store.watches.queue_max_events = 3
        store.watches.scan_revisions = 5
        return store

    def step(self) -> None:
        """One slot with a few commands, and perhaps something else."""
        rng = self._rng
        self._slot += 1
        self._time_ms += rng.choices((0, rng.randrange(500), rng.randrange(30_000)), (50, 40, 1))[0]
        context = Context(self._slot, -1, self._time_ms)
        self._do(None, context)
        for index in range(rng.randrange(4)):
            self._do(self._commands.command(), structs.replace(context, index=index))
        extras: list[Callable[[], None]] = [
            self.watch, self.unwatch, self.poll, self.read_old, self.copy, self.restore, self.opaque
        ]  # fmt: skip
        rng.choices([*extras, lambda: None], (4, 1, 20, 10, 4, 1, 1, 60))[0]()

    def _do(self, command: KvCommand | None, context: Context) -> None:
        """Apply a command, or, for None, advance."""
        if self._copy is not None:
            self._copy.since.append((command, context))
        if command is None:
            self._model.advance(context)
            self._store.advance(context)
        else:
            self.counts["commands"] += 1
            wanted = self._model.apply(command, context)
            got = decode_result(self._store.apply(encode_command(command), context))
            same(f"the result of {command}", got, wanted)
            self.counts[type(wanted).__name__] += 1
        same("revision", self._store.revision, self._model.revision)
        same("compact_revision", self._store.compact_revision, self._model.compact_revision)

    def opaque(self) -> None:
        """A value of the log means nothing to the store."""
        payload = encode_opaque(self._rng.choice((b"text", b"\xff\xfe")))
        same("an opaque result", bytes(self._store.apply(payload, Context(self._slot, 0, 0))), b"null")

    def read_old(self) -> None:
        """Everything at one revision that is not compacted, and leases and size."""
        model, rng = self._model, self._rng
        revision = rng.randint(max(model.compact_revision, 1), model.revision)
        request = Range(b"\0", b"\0", revision=revision)
        wanted = answer(request, model.states[revision], model.revision)
        same(f"revision {revision}", self._store.range(request), wanted)
        same("size_bytes", self._store.size_bytes, model.size_bytes())
        alive = sorted(lease for lease, (_, end) in model.leases.items() if end > model.time_ms)
        same("leases", self._store.leases(), alive)
        for lease in alive:
            left = self._store.lease_time_to_live(lease, keys=True)
            keys = sorted(each.key for each in model.states[model.revision].values() if each.lease == lease)
            ttl_s, end = model.leases[lease]
            same(f"lease {lease}", (left.ttl, left.granted_ttl), ((end - model.time_ms) // 1000, ttl_s))
            same(f"keys of lease {lease}", left.keys, tuple(keys))
        lease_ms = min((end for _, end in model.leases.values()), default=None)
        deadline_ms = self._store.deadline_ms
        if deadline_ms != lease_ms:  # then it is of history that grows old, which comes before
            age_ms = -1 if deadline_ms is None else deadline_ms
            sooner = model.time_ms < age_ms < (age_ms + 1 if lease_ms is None else lease_ms)
            same(f"deadline_ms {deadline_ms} before that of leases, {lease_ms}", sooner, True)
        self.counts["old reads"] += 1

    # ----------------------------------------------------------------- watches

    def watch(self) -> None:
        """One more watcher."""
        rng, model = self._rng, self._model
        if len(self._watchings) >= 12:
            return
        start = rng.choice((0, rng.randint(max(1, model.compact_revision - 2), model.revision + 5)))
        noput, nodelete, prev_kv = rng.random() < 0.1, rng.random() < 0.1, rng.random() < 0.5
        request = WatchRequest(rng.choice(KEYS), rng.choice(ENDS), start, noput, nodelete, prev_kv)
        following = start or model.revision + 1
        watching = Watching(0, request, following)
        watching.watch_id = self._store.watches.create(request, lambda: setattr(watching, "woken", True))
        self._watchings.append(watching)

    def unwatch(self) -> None:
        """One watcher less."""
        if self._watchings:
            watching = self._watchings.pop(self._rng.randrange(len(self._watchings)))
            same("cancelling", self._store.watches.cancel(watching.watch_id), True)

    def poll(self) -> None:
        """Let one watcher take a batch, or all there is."""
        if not self._watchings:
            return
        watching = self._rng.choice(self._watchings)
        take_all = self._rng.random() < 0.5
        while True:
            watching.woken = False
            batch = self._store.watches.poll(watching.watch_id, self._rng.choice((1, 30, 100_000)))
            if batch is None and not watching.woken:
                same(f"what {watching.request} still has to get", [], self._expected(watching))
                return
            if batch is not None:
                self.counts["batches"] += 1
                if batch.canceled:
                    self._canceled(watching, batch)
                    return
                self._got(watching, batch)
                if not take_all:
                    return

    def _expected(self, watching: Watching) -> list[Event]:
        request = watching.request
        events = self._model.events(request.key, request.range_end, watching.following, request.prev_kv)
        return [event for event in events if not (request.noput if event.kv.version else request.nodelete)]

    def _got(self, watching: Watching, batch: WatchBatch) -> None:
        expected = [event for event in self._expected(watching) if event.kv.mod_revision <= batch.revision]
        for got, wanted in zip(batch.events, expected, strict=False):
            before_compacted = got.kv.mod_revision - 1 < self._store.compact_revision
            without = got.prev_kv is None and before_compacted
            same(f"an event of {watching.request}", got, Event(wanted.kv) if without else wanted)
        same(f"the number of events of {watching.request}", len(batch.events), len(expected))
        self.counts["events"] += len(batch.events)
        watching.following = batch.revision + 1

    def _canceled(self, watching: Watching, batch: WatchBatch) -> None:
        self._watchings.remove(watching)
        request = watching.request
        if request.range_end not in (b"", b"\0") and request.range_end <= request.key:
            return
        same("why a watcher is cancelled", batch.cancel_reason, COMPACTED.message)
        same("compact_revision of a cancellation", batch.compact_revision, self._model.compact_revision)
        if watching.following >= batch.compact_revision:
            raise Difference(f"{request} was cancelled although its history is there")
        self.counts["cancelled watches"] += 1

    # --------------------------------------------------------------- snapshots

    def copy(self) -> None:
        """Begin a snapshot, or take some pieces of the one under way; check it when it is whole."""
        if self._copy is None:
            self._copy = Copy(self._store.snapshot(step=7), self._model.revision)
        copy = self._copy
        for _ in range(self._rng.randrange(1, 12)):
            piece = next(copy.pieces, None)  # type: ignore[call-overload]
            if piece is None:
                self._copy = None
                self._check_copy(copy)
                return
            copy.taken.append(piece)

    def _check_copy(self, copy: Copy) -> None:
        """A store from the snapshot, brought up to date, is the store."""
        other = self._new_store()
        data = b"".join(copy.taken)
        cut = self._rng.randrange(len(data))
        for _ in other.restore(iter((data[:cut], data[cut:]))):
            pass
        same("revision of a snapshot", other.revision, copy.revision)
        for command, context in copy.since:
            if command is None:
                other.advance(context)
            else:
                other.apply(encode_command(command), context)
        same("hash after a snapshot", other.hash(), self._store.hash())
        same("size after a snapshot", other.size_bytes, self._store.size_bytes)
        self.counts["snapshots"] += 1

    def restore(self) -> None:
        """Go on from a snapshot of this moment; watchers stay."""
        pieces = list(self._store.snapshot())
        for _ in self._store.restore(iter(pieces)):
            pass
        self._copy = None
        self.counts["restores"] += 1

    def finish(self) -> None:
        """Every watcher gets what is left; all that can be read is compared once."""
        for watching in list(self._watchings):
            while watching in self._watchings and self._expected(watching):
                self._watchings, others = [watching], self._watchings
                self.poll()
                left = self._watchings
                self._watchings = others if left else [each for each in others if each is not watching]
        for _ in range(10):
            self.read_old()


def run(operations: int, seed: int) -> Counter[str]:
    """Compare over ``operations`` commands; returns what was done.

    Raises:
        Difference: they differ; the message says in what.
    """
    comparison = Comparison(Random(seed))
    while comparison.counts["commands"] < operations:
        comparison.step()
    comparison.finish()
    return comparison.counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m twisted_paxos.testing.kvmodel", description=__doc__)
    parser.add_argument("--operations", type=int, default=5_000, help="commands to run (default 5000)")
    parser.add_argument("--seed", type=int, default=1, help="where all chance comes from (default 1)")
    options = parser.parse_args(arguments)
    started = perf_counter()
    try:
        counts = run(options.operations, options.seed)
    except Difference as difference:
        sys.stdout.write(f"seed {options.seed}: DIFFERENT: {difference}\n")
        return 1
    elapsed_s = perf_counter() - started
    done = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
    sys.stdout.write(f"seed {options.seed}: no difference in {elapsed_s:.1f} s: {done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
