"""The native client: proposes values, reads the log, asks nodes how they are.

client = await connect(reactor, ["127.0.0.1:5100", "127.0.0.1:5101", "127.0.0.1:5102"])
result = await client.propose("hello")
print(result.slot)
await client.close()
"""

from twisted_paxos.client.connection import ask_status, parse_endpoint
from twisted_paxos.client.logreader import LogReader
from twisted_paxos.client.payloads import Payload, Special, payload_of, value_of
from twisted_paxos.client.pending import Outcome
from twisted_paxos.client.session import Client, connect
from twisted_paxos.core.limits import VALUE_MAX_BYTES
from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.statemachine.commands import NodeStatus, Result

__all__ = [
    "VALUE_MAX_BYTES",
    "Client",
    "LogReader",
    "NodeStatus",
    "Outcome",
    "Payload",
    "Result",
    "SlotEntry",
    "Special",
    "ask_status",
    "connect",
    "parse_endpoint",
    "payload_of",
    "value_of",
]
