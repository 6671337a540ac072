"""The HTTP port of real nodes, by a plain HTTP client."""

from __future__ import annotations

import json
from base64 import b64encode
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, readBody

from tests.process.support import SLOW_S, ProcessCase
from twisted_paxos.testing.nodes import free_ports, poll

K = b64encode(b"k").decode("ascii")


class Lines(Protocol):
    """Takes a stream; ``messages`` are its lines."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.ended: Deferred[None] = Deferred()
        self._rest = b""

    def dataReceived(self, data: bytes) -> None:
        """More of it."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.messages += [json.loads(line) for line in lines]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self.ended.callback(None)


class HttpTests(ProcessCase):
    """Three nodes."""

    async def post(self, uid: str, path: str, message: object) -> tuple[int, Any]:
        """Status and body of the answer of a node."""
        response = await self.request(uid, path, message)
        return response.code, json.loads(await readBody(response))

    async def request(self, uid: str, path: str, message: object) -> Any:
        """The answer's beginning."""
        body = FileBodyProducer(BytesIO(json.dumps(message).encode()))
        url = f"http://127.0.0.1:{self.ports[uid]}/v3/{path}".encode("ascii")
        return await Agent(self.reactor).request(b"POST", url, bodyProducer=body)

    async def test_cluster(self) -> None:
        """Any node serves; a watch is live; without a majority it ends, and writes are refused in time."""
        cluster = self.cluster()
        self.ports = dict(zip("ABC", free_ports(3), strict=True))
        for uid, node in cluster.nodes.items():
            node.options += ["--http", f"127.0.0.1:{self.ports[uid]}"]
        cluster.start()
        await cluster.wait_ready(SLOW_S)
        watch = Lines()
        (await self.request("B", "watch", {"create_request": {"key": K}})).deliverBody(watch)
        for uid in "ABC":
            status, _ = await self.post(uid, "kv/put", {"key": K, "value": K})
            self.assertEqual(200, status)
        status, found = await self.post("C", "kv/range", {"key": K})
        self.assertEqual((200, "3"), (status, found["kvs"][0]["version"]))

        async def all_events() -> bool | None:
            events = [event for message in watch.messages for event in message["result"].get("events", ())]
            return True if [event["kv"]["version"] for event in events] == ["1", "2", "3"] else None

        await poll(self.reactor, "the watch has told everything", all_events, SLOW_S)
        for uid in "AC":
            await cluster.nodes[uid].kill()
        status, refused = await self.post("B", "kv/put", {"key": K})
        self.assertEqual((503, 14), (status, refused["code"]))
        await watch.ended
        self.assertEqual("etcdserver: no leader", watch.messages[-1]["error"]["message"])
        self.assertNotIn("Traceback", "\n".join(cluster.nodes["B"].lines))
