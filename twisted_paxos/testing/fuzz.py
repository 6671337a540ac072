"""Random and mutated datagrams at a node of a real cluster: it stays up, agrees on, and does not grow.

    python -m twisted_paxos.testing.fuzz --datagrams 1000000

One in four datagrams is random bytes; the others are real messages of every type (as a peer
would send them, with the right fingerprint) with bits flipped, bytes cut, doubled or exchanged.
A part of those gets a correct checksum after the mutation, so that it reaches the decoder.
Meanwhile a client proposes values.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from twisted_paxos.client import connect
from twisted_paxos.config import fingerprint
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    AskDescent,
    Chosen,
    Command,
    Commit,
    Descent,
    Fetch,
    Forward,
    ForwardReply,
    Heartbeat,
    HeartbeatReply,
    Join,
    Joined,
    Message,
    Nack,
    Prepare,
    Promise,
    Refused,
    Sender,
    SlotEntry,
    Status,
    encode_value,
)
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.commands import encode_opaque
from twisted_paxos.testing.nodes import ClusterProcesses, poll
from twisted_paxos.wire.peer import PeerCodec

BURST = 200
"""Datagrams sent at once; the receive buffer holds them."""

GROWTH_MAX_BYTES = 16 << 20
"""What a node's memory may grow by, the log of the values proposed meanwhile included."""


class FuzzFailed(PaxosError):
    """A node ended, stopped agreeing, or grew."""


class Summary(NamedTuple):
    """What was sent and what came of it.

    Attributes:
        sent: datagrams sent.
        dropped: how many of them the node dropped, by reason.
        proposed: values chosen meanwhile.
        grown_bytes: how much the node's resident memory grew, after a warm-up.
    """

    sent: int
    dropped: dict[str, int]
    proposed: int
    grown_bytes: int


def sample_messages() -> list[Message]:
    """One or more of each type; of ballot 0, which no mutation of a few digits makes a real one."""
    ballot = ProposalID(0, "Z")
    value = encode_value(0, [Command("0" * 16, 1, 1, encode_opaque("fuzz"))])
    entry = SlotEntry(1, ballot, value)
    return [
        Prepare(ballot, 1),
        Promise(ballot, 1, 0, 1, 0, (entry,)),
        Accept(ballot, 1, value, 0),
        Accepted(ballot, (1, 2)),
        Commit(ballot, 0),
        Nack(ballot, ballot),
        Heartbeat(1, Status()),
        HeartbeatReply(1, Status()),
        Fetch(1, 1, 2),
        Chosen(1, (), 0, 1),
        Forward(1, ()),
        ForwardReply(1, True),
        Join(1),
        Joined(1, False, {"A": "0", "B": "1"}),
        AskDescent("0"),
        Descent("0", True, 1, ballot, 0),
        Refused("0", 0, "0", "fuzz"),
    ]


class Mutator:
    """Makes bad datagrams out of good ones.

    Args:
        cluster: fingerprint, so that some get past the first checks.
        rng: the chance of everything.
    """

    def __init__(self, cluster: str, rng: random.Random) -> None:
        self._rng = rng
        codec = PeerCodec(cluster)
        sender = Sender("Z", "fuzz", 1, "fuzz")
        self._good = [codec.encode(sender, message) for message in sample_messages()]

    def next(self) -> bytes:
        """One datagram."""
        rng = self._rng
        if rng.random() < 0.25:
            return rng.randbytes(rng.choice((0, 1, 5, 6, 7, 50, 500, 1400, 9000)))
        data = bytearray(rng.choice(self._good))
        for _ in range(rng.randrange(1, 4)):
            self._mutate(data)
        if rng.random() < 0.5 and len(data) > 6:
            data[:2] = b"\x01c"
            data[2:6] = crc32c(bytes(data[6:]), crc32c(b"\x01c")).to_bytes(4, "big")
        return bytes(data)

    def _mutate(self, data: bytearray) -> None:
        rng = self._rng
        if not data:
            return
        place = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place : place + rng.randrange(1, 200)]
        elif kind == 3:
            data[place] = rng.choice(b'{}[]",:0123456789\x00\xff-e.')
        else:
            data[place:place] = rng.choice((b"9" * 40, b"[" * 2000, b"null", b"-1", b"1e999", b'"\xff\xfe"'))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Fuzz:
    """Runs it against node A of a fresh cluster."""

    def __init__(self, reactor: Any, cluster: ClusterProcesses, rng: random.Random) -> None:
        self._reactor = reactor
        self._cluster = cluster
        self._mutator = Mutator(fingerprint(list(cluster.nodes), True), rng)

    async def run(self, count: int, address: tuple[str, int], report: Any = None) -> Summary:
        """Send ``count`` datagrams to ``address``, the peer port of node A.

        Raises:
            FuzzFailed: the node did not take it well.
        """
        node = self._cluster.nodes["A"]
        client = await connect(self._reactor, self._cluster.endpoints)
        sent = proposed = warm_bytes = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            while sent < count:
                for _ in range(min(BURST, count - sent)):
                    out.sendto(self._mutator.next(), address)
                    sent += 1
                if sent % (BURST * 50) == 0 or sent >= count:
                    await client.propose(f"after {sent}", timeout_s=10)
                    proposed += 1
                    if not warm_bytes and sent >= count // 5 and node.pid is not None:
                        warm_bytes = resident_bytes(node.pid)
                    if report:
                        report(sent)
                await deferLater(self._reactor, 0)
        status = await poll(self._reactor, "node A answers", node.status)
        grown_bytes = resident_bytes(node.pid) - warm_bytes if node.pid and warm_bytes else 0
        await client.close()
        if grown_bytes > GROWTH_MAX_BYTES:
            raise FuzzFailed(f"node A grew by {grown_bytes:,} bytes")
        taken = sum(status.dropped.values())
        if taken < sent // 2:
            raise FuzzFailed(f"only {taken:,} of {sent:,} datagrams reached the node: send them more slowly")
        for other in self._cluster.nodes.values():
            await other.wait_ready()
        return Summary(sent, dict(status.dropped), proposed, grown_bytes)


async def _main(reactor: Any, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="paxos-fuzz-") as name:
        cluster = ClusterProcesses(reactor, Path(name))
        try:
            cluster.start()
            await cluster.wait_ready()
            fuzz = Fuzz(reactor, cluster, random.Random(options.seed))
            summary = await fuzz.run(options.datagrams, cluster.peer_address("A"))
        finally:
            await cluster.kill()
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.dropped.items()))
    print(
        f"{summary.sent:,} datagrams; dropped: {dropped}; {summary.proposed} values chosen meanwhile;"
        f" memory grew by {summary.grown_bytes:,} bytes"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m twisted_paxos.testing.fuzz", description=__doc__)
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args(arguments)
    react(lambda reactor: Deferred.fromCoroutine(_main(reactor, options)))


if __name__ == "__main__":
    main()
