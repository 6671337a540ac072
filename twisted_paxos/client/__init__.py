"""The native client: keys and values, watches, leases; proposes values, reads the log, asks for status.

client = await connect(reactor, ["127.0.0.1:5100", "127.0.0.1:5101", "127.0.0.1:5102"])
await client.kv.put("greeting", "hello")
async with client.kv.watch("gre", prefix=True, start_revision=1) as watch:
    async for batch in watch:
        print(batch.revision, batch.events)
        break
await client.close()

Locks, elections and the like are in `twisted_paxos.client.recipes`, comparisons and operations of
transactions in `twisted_paxos.client.kv`.
"""

from twisted_paxos.client.client import Client, connect
from twisted_paxos.client.connection import ask_status, parse_endpoint
from twisted_paxos.client.kv import KeyValues
from twisted_paxos.client.lease import Lease
from twisted_paxos.client.logreader import LogReader
from twisted_paxos.client.payloads import Payload, Special, payload_of, value_of
from twisted_paxos.client.pending import Outcome
from twisted_paxos.client.watches import Watch
from twisted_paxos.core.limits import VALUE_MAX_BYTES
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.statemachine.commands import NodeStatus, Result
from twisted_paxos.statemachine.kvcommands import Event, KeyValue
from twisted_paxos.statemachine.watches import WatchBatch

__all__ = [
    "VALUE_MAX_BYTES",
    "Client",
    "Event",
    "KeyValue",
    "KeyValues",
    "Lease",
    "LogReader",
    "NodeStatus",
    "Outcome",
    "Payload",
    "Result",
    "SlotEntry",
    "Special",
    "Watch",
    "WatchBatch",
    "ask_status",
    "connect",
    "parse_endpoint",
    "payload_of",
    "value_of",
]
