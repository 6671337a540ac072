"""Clients of a simulated cluster: the real native client, over simulated TCP, and what they saw."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Raw
from twisted.python.failure import Failure

from twisted_paxos.client import Client, connect
from twisted_paxos.core.messages import Command
from twisted_paxos.errors import Overloaded, PaxosError, SessionExpired, Unavailable, ValueTooLarge
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.testing.cluster import CLIENT_PORT, SimulatedCluster
from twisted_paxos.testing.history import Op
from twisted_paxos.testing.registers import decode_write, encode_write

CLIENTS: Final = 3
OPS_PER_S: Final = 10.0
KEYS: Final = 6
TIMEOUT_S: Final = 4.0
"""How long a client waits for a result."""

RECONNECT_S: Final = 0.5
READ_SHARE: Final = 0.25
"""How many of the operations are linearizable reads."""

NEW_SESSION_SHARE: Final = 0.004
"""How often a client begins anew, and leaves what it did before to its fate."""


class Workload:
    """Three clients, each ten operations a second.

    Args:
        cluster: whose.
        random: the chance of it.
        value_max_bytes: of the values.

    Attributes:
        ops: everything that was done.
        running: new operations begin.
    """

    def __init__(self, cluster: SimulatedCluster, random: Random, value_max_bytes: int) -> None:
        self.ops: list[Op] = []
        self.running = True
        self._cluster = cluster
        self._random = random
        self._value_max_bytes = value_max_bytes
        self._values: dict[str, str] = {}
        self._clients: list[_Client] = []

    def start(self) -> None:
        """Begin."""
        for number in range(CLIENTS):
            client = _Client(self._cluster, self._random, number)
            self._clients.append(client)
            self._plan(client)

    def sent(self, command: Command) -> bool:
        """Whether one of these clients sent this."""
        write = decode_write(command.payload)
        return write is not None and self._values.get(write.value) == write.key

    def _plan(self, client: _Client) -> None:
        clock = self._cluster.clock
        delay_s = self._random.expovariate(OPS_PER_S)
        clock.push(clock.now_s + delay_s, self._next, (client,))

    def _next(self, client: _Client) -> None:
        if not self.running:
            return
        self._plan(client)
        random = self._random
        key = f"k{random.randrange(KEYS)}"
        if random.random() < READ_SHARE:
            self._read(key)
            return
        if random.random() < NEW_SESSION_SHARE:
            client.begin_anew()
        if client.client is not None:
            self._write(client.client, key)

    def _write(self, client: Client, key: str) -> None:
        random = self._random
        value = f"v{len(self._values) + 1}"
        self._values[value] = key
        padding = int(random.random() ** 4 * self._value_max_bytes)
        op = self._begin(key, value)
        proposing = client.propose(encode_write(value, key, padding), TIMEOUT_S)
        proposing.addCallbacks(self._written, self._not_written, (op,), {}, (op,), {})

    def _begin(self, key: str, value: str) -> Op:
        op = Op(key, value, self._cluster.clock.now_s)
        self.ops.append(op)
        return op

    def _end(self, op: Op, outcome: str) -> None:
        op.end_s = self._cluster.clock.now_s
        op.outcome = outcome

    def _written(self, result: Result, op: Op) -> None:
        op.slot, op.index = result.slot, result.index
        op.result = msgspec.json.decode(result.data, type=str)
        self._end(op, "done")

    def _not_written(self, failure: Failure, op: Op) -> None:
        failure.trap(PaxosError)
        refused = failure.check(Overloaded, Unavailable, ValueTooLarge) and not failure.check(SessionExpired)
        self._end(op, "refused" if refused else "unknown")

    def _read(self, key: str) -> None:
        """A linearizable read, as a program that embeds a node does it."""
        nodes = [n for n in self._cluster.nodes.values() if n.node is not None and n.node.running]
        nodes = [n for n in nodes if n.reactor is not None and not n.reactor.is_paused]
        if not nodes:
            return
        node: Any = self._random.choice(nodes).node
        op = self._begin(key, "")
        try:
            reading = node.query(Raw(msgspec.json.encode(key)))
        except PaxosError:
            self._end(op, "refused")
            return

        def read(answer: Raw) -> None:
            op.result = msgspec.json.decode(answer, type=str)
            self._end(op, "done")

        reading.addCallbacks(read, lambda _: self._end(op, "refused"))

    def open_ops(self) -> Sequence[Op]:
        """Writes that have no outcome yet."""
        return [op for op in self.ops if op.outcome == "open" and not op.is_read]


class _Client:
    """One client on a host of its own; connects again when it cannot."""

    def __init__(self, cluster: SimulatedCluster, random: Random, number: int) -> None:
        self.client: Client | None = None
        self._cluster = cluster
        self._random = random
        self._reactor = cluster.network.reactor(f"10.0.1.{number + 1}")
        self.begin_anew()

    def begin_anew(self) -> None:
        """A new session, with the nodes in another order."""
        if self.client is not None:
            self.client.close()
            self.client = None
        endpoints = [f"{node.host}:{CLIENT_PORT}" for node in self._cluster.nodes.values()]
        self._random.shuffle(endpoints)
        rng = Random(self._random.getrandbits(64))
        connecting = connect(self._reactor, endpoints, rng=rng, timeout_s=TIMEOUT_S)
        connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, client: Client) -> None:
        self.client = client

    def _not_connected(self, failure: Failure) -> None:
        failure.trap(PaxosError)
        self._reactor.callLater(RECONNECT_S, self.begin_anew)
