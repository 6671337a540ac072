"""Sends the same requests to etcd and to a cluster of ours, and compares all answers field by field.

    python -m twisted_paxos.testing.etcdcompare --requests 1000 --seed 1

starts both on free ports, sends the hand-written sequences and then random ones, prints each difference and
one line with the counts. Exit status 1 if anything differs that `etcddifferences` does not list. With
``--control`` a second etcd stands in for ours: what it shows is wrong with the comparison itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing.etcdcases import cases
from twisted_paxos.testing.etcdexchange import Difference, Exchange, Peer
from twisted_paxos.testing.etcdservers import ServerFailed, etcd, missing_etcd, ours

REPORTED_MAX = 200
"""Differences that are printed; the rest is counted."""


def compare_cases(exchange: Exchange, only: str = "") -> list[tuple[str, Difference]]:
    """All hand-written sequences, or those with ``only`` in the name; what differed, and where."""
    found = []
    for number, (name, sequence) in enumerate(cases()):
        if only in name:
            try:
                found += [(name, difference) for difference in exchange.run(sequence, first=number)]
            except ServerFailed as error:
                raise ServerFailed(f"at or before the sequence {name!r}: {error}") from None
    return found


def report(found: Sequence[tuple[str, Difference]], say: Callable[[str], None]) -> None:
    """Print what differed."""
    for name, difference in found[:REPORTED_MAX]:
        say(f"[{name}] {difference}")
    if len(found) > REPORTED_MAX:
        say(f"... and {len(found) - REPORTED_MAX} more")


def summary(exchange: Exchange, differences: int, seconds: float) -> str:
    """The one line at the end."""
    met = ", ".join(f"{name} {count}" for name, count in sorted(exchange.accepted.items()))
    return (
        f"{exchange.compared:,} requests compared in {seconds:.0f} s, {differences} differences; "
        f"accepted ones met: {met or 'none'}"
    )


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000, help="random requests, at least [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of the random requests [%(default)s]")
    parser.add_argument("--only", default="", help="hand-written sequences with this in their name")
    parser.add_argument("--control", action="store_true", help="compare etcd with etcd")
    parser.add_argument("--etcd-members", type=int, default=1, choices=(1, 3), help="[%(default)s]")
    parser.add_argument("--members", type=int, default=3, choices=(1, 2, 3), help="of ours [%(default)s]")
    return parser


def _random() -> Callable[..., int]:
    """What sends random requests; that takes a package that nothing else here needs."""
    try:
        from twisted_paxos.testing.etcdrandom import compare_random
    except ModuleNotFoundError as missing:
        raise PaxosError(f"random requests need {missing.name}: install it, or say --requests 0") from None
    return compare_random


def compare(
    directory: Path, arguments: argparse.Namespace, say: Callable[[str], None] = print
) -> tuple[Exchange, int]:
    """Do all of it in an empty directory; the counts, and how many differences there are.

    Raises:
        PaxosError: a server does not start.
    """
    wanted = 0 if arguments.only else arguments.requests
    compare_random = _random() if wanted else None
    second = etcd(directory / "control") if arguments.control else ours(directory / "ours", arguments.members)
    with etcd(directory / "etcd", arguments.etcd_members) as theirs, second as mine:
        exchange = Exchange(Peer(theirs), Peer(mine))
        try:
            found = compare_cases(exchange, arguments.only)
            report(found, say)
            count = len(found)
            if compare_random is not None:
                count += compare_random(exchange, wanted, arguments.seed, say)
        finally:
            exchange.close()
        # A traceback is wrong even where the answer is right.
        traces = [line for line in mine.output() if line.startswith("Traceback")]
        if traces:
            say(f"{len(traces)} tracebacks in our nodes' output")
    return exchange, count + len(traces)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = options().parse_args(argv)
    reason = missing_etcd()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="etcdcompare-") as place:
        try:
            exchange, differences = compare(Path(place), arguments)
        except PaxosError as error:
            print(f"etcdcompare: {error}", file=sys.stderr)
            return 2
    print(summary(exchange, differences, time.monotonic() - start_s))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
