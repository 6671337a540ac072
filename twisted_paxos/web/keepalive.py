"""``lease/keepalive``: one answer for each request of the body, then the end."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.defer import Deferred

from twisted_paxos.statemachine.kvcommands import LeaseKeepAlive, LeaseKeepAliveResult
from twisted_paxos.web.gateway import Gateway
from twisted_paxos.web.replies import LeaseReply, int64
from twisted_paxos.web.requests import LeaseRequest
from twisted_paxos.web.streams import Stream


def keep_alive(gateway: Gateway, stream: Stream, requests: Iterator[LeaseRequest]) -> None:
    """``lease/keepalive``; a lease that is gone has no time to live in its answer."""
    serving = Deferred.fromCoroutine(_keep_alive(gateway, stream, requests))
    stream.on_lost = serving.cancel
    serving.addErrback(stream.fail)


async def _keep_alive(gateway: Gateway, stream: Stream, requests: Iterator[LeaseRequest]) -> None:
    for request in requests:
        result = await gateway.propose(LeaseKeepAlive(request.id), LeaseKeepAliveResult)
        stream.send(LeaseReply(gateway.header(result.revision), int64(result.id), int64(result.ttl)))
    stream.finish()
