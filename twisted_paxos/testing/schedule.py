"""What happens in one simulated run, drawn from its seed: faults, limits and sizes, as plain data.

A `Schedule` can be printed, cut down and run again. Each seed enables some kinds of faults only
(swarm testing: Groce and others, "Swarm Testing", ISSTA 2012): a run with everything at once
seldom gets far enough to break anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, Final, NamedTuple

from twisted_paxos.errors import ConfigError

FAULTY_S: Final = 13.0
"""How long faults go on, in simulated seconds; after that everything heals."""

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "network": ("loss", "duplicate", "reorder", "delay", "corrupt", "replay", "lag"),
    "partition": ("split", "oneway", "partial", "isolate", "chain", "usurp"),
    "crash": ("kill", "power", "kill_all", "power_all"),
    "pause": ("pause",),
    "clock": ("clock_rate", "clock_jump"),
    "effect": ("at_disk", "at_send", "at_apply"),
    "disk": ("slow", "stall", "fail_sync", "fail_read", "full", "read_only"),
    "damage": ("flip", "zero", "cut_file", "lose_file", "wipe", "old_copy"),
}
"""Classes of faults, and their kinds; ``--faults`` takes both."""

LOADS: Final = ("registers", "kv", "both")
"""What clients do: small registers, the key-value store with all that it has, or both."""

WEIGHTS: Final = {"damage": 0.5, "disk": 0.7, "network": 1.0, "partition": 1.5, "crash": 1.5, "effect": 1.5}
"""How often a fault is of one class, against 1.0 for the others."""


class Fault(NamedTuple):
    """One thing that goes wrong.

    Attributes:
        at_s: when, in simulated seconds.
        kind: what, see `CLASSES`.
        seconds: for how long.
        amount: how much, from 0 to 1; what it means depends on the kind.
        draw: seed of everything else: which node, which bit.
    """

    at_s: float
    kind: str
    seconds: float
    amount: float
    draw: int

    def __str__(self) -> str:
        return f"{self.at_s:9.4f}  {self.kind:<10} for {self.seconds:.3f} s, amount {self.amount:.3f}"


class Sizes(NamedTuple):
    """Limits of one run, drawn so that rare paths are common.

    Attributes:
        limits: values for names in `twisted_paxos.core.limits`.
        applier: values for names in `twisted_paxos.applier`.
        segment_bytes: of the write-ahead log.
        datagram_max_bytes: larger messages go by link.
        value_max_bytes: of the clients' values.
        key: whether messages are authenticated.
        observers: nodes without a vote.
        sync_s: how long a sync takes.
        snapshot_slots, snapshot_log_bytes: after how many slots, or bytes of log, a snapshot is made.
        keep_slots: how many slots below a snapshot stay in the log.
    """

    limits: dict[str, int]
    applier: dict[str, int]
    segment_bytes: int
    datagram_max_bytes: int
    value_max_bytes: int
    key: bool
    observers: int
    sync_s: float
    snapshot_slots: int
    snapshot_log_bytes: int
    keep_slots: int


class Schedule(NamedTuple):
    """One run.

    Attributes:
        seed: what it was drawn from; also the seed of the network's chance.
        size: number of voters.
        sizes: see there.
        start_s: when each node starts first.
        faults: in order of time.
        faulty_s: when everything heals, at the latest.
        load: what clients do, one of `LOADS`.
    """

    seed: int
    size: int
    sizes: Sizes
    start_s: tuple[float, ...]
    faults: tuple[Fault, ...]
    faulty_s: float
    load: str = "registers"


def parse_kinds(names: str) -> tuple[str, ...]:
    """The kinds of faults that a comma-separated list of kinds and classes names.

    Raises:
        ConfigError: a name is unknown.
    """
    kinds: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name == "all":
            kinds += all_kinds()
        elif name in CLASSES:
            kinds += CLASSES[name]
        elif name in all_kinds():
            kinds.append(name)
        elif name != "none":
            raise ConfigError(f"{name!r} is no fault; there are: {', '.join([*CLASSES, *all_kinds()])}")
    return tuple(dict.fromkeys(kinds))


def all_kinds() -> list[str]:
    """Every kind of fault."""
    return [kind for kinds in CLASSES.values() for kind in kinds]


def draw_load(seed: int) -> str:
    """What the clients of ``seed`` do, unless somebody wants something certain."""
    return Random(f"load {seed}").choice(("registers", *LOADS))


def draw_schedule(
    seed: int,
    size: int | None = None,
    kinds: Iterable[str] | None = None,
    faulty_s: float = FAULTY_S,
    load: str = "registers",
) -> Schedule:
    """The schedule of ``seed``.

    Args:
        size: number of voters; 3 or 5, from the seed, when None.
        kinds: the kinds of faults that may occur; all when None.
        faulty_s: how long they go on.
        load: what clients do.
    """
    random = Random(f"schedule {seed}")
    size = size if size is not None else random.choice((3, 3, 5))
    sizes = draw_sizes(random)
    late = random.random() < 0.3
    start_s = tuple(random.uniform(0.0, 1.0) if late else 0.0 for _ in range(size + sizes.observers))
    faults = draw_faults(random, tuple(all_kinds() if kinds is None else kinds), faulty_s)
    return Schedule(seed, size, sizes, start_s, faults, faulty_s, load)


def draw_sizes(random: Random) -> Sizes:
    """Half of the time each limit is as it is in production, else tiny."""

    def some(usual: int, *tiny: int) -> int:
        return usual if random.random() < 0.4 else random.choice(tiny)

    alpha = some(64, 3, 4, 8, 16)
    limits = {
        "ALPHA": alpha,
        "WINDOW_SLOTS": alpha * random.choice((1, 2, 4)),
        "PIPELINE_SLOTS": some(4, 1, 2, 8),
        "BATCH_TARGET_BYTES": some(56_000, 100, 400, 2_000),
        "WINDOW_MAX_BYTES": some(64 << 20, 150_000, 400_000),
        "FETCH_BYTES": some(1 << 20, 2_000, 10_000),
        "BALLOTS_PER_SLOT": some(8, 2, 3),
    }
    applier = {"BACKLOG_MAX_BYTES": some(16 << 20, 300, 3_000), "READ_BYTES": some(1 << 20, 200, 2_000)}
    return Sizes(
        limits,
        applier,
        segment_bytes=some(64 << 10, 4_096, 8_192),
        datagram_max_bytes=some(60_000, 600, 1_400),
        value_max_bytes=some(40, 300, 3_000, 70_000),
        key=random.random() < 0.3,
        observers=int(random.random() < 0.2),
        sync_s=random.choice((0.0, 0.000_5, 0.000_5, 0.005, 0.03)),
        snapshot_slots=some(10_000, 3, 10, 40),
        snapshot_log_bytes=some(64 << 20, 2_000, 20_000),
        keep_slots=some(1_000, 10, 30, 100),
    )


def draw_faults(random: Random, kinds: tuple[str, ...], faulty_s: float) -> tuple[Fault, ...]:
    """Faults of some of ``kinds``, few or many."""
    enabled = [kind for kind in kinds if random.random() < 0.6] or list(kinds[:1])
    if not enabled:
        return ()
    class_of = {kind: name for name, members in CLASSES.items() for kind in members}
    weights = [WEIGHTS.get(class_of[kind], 1.0) for kind in enabled]
    mean_s = random.choice((0.1, 0.25, 0.5, 1.0, 2.0))
    at_s = random.uniform(0.0, 2.0)
    faults: list[Fault] = []
    while at_s < faulty_s:
        kind = random.choices(enabled, weights)[0]
        seconds = min(random.expovariate(1.0 / random.choice((0.05, 0.5, 2.0))), faulty_s - at_s)
        faults.append(Fault(at_s, kind, seconds, random.random(), random.getrandbits(32)))
        at_s += random.expovariate(1.0 / mean_s)
    return tuple(faults)


def describe(schedule: Schedule) -> list[str]:
    """Lines for people."""
    sizes: dict[str, Any] = schedule.sizes._asdict()
    unusual = ", ".join(f"{name}={value}" for name, value in sizes.items())
    lines = [f"seed {schedule.seed}: {schedule.load}, {schedule.size} voters, {unusual}"]
    lines += [str(fault) for fault in schedule.faults]
    lines.append(f"{schedule.faulty_s:9.4f}  everything heals")
    return lines
