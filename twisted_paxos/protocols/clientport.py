"""The client port of a node: length-prefixed JSON frames over TCP (``docs/client-protocol.md``).

One `ClientPort` serves all clients of a node; each connection is one `ClientPortProtocol`,
which is the `IResultSink` of what its client submits. What must always hold:

* A client that does not read is not read from: the transport pauses this end as a producer,
  which stops its requests and its log streams. What was submitted before may still give
  results; those wait up to `BACKLOG_MAX_BYTES`, then the connection is dropped.
* What is applied at one time is told in one frame (or as few as fit), and at once.
* A connection that is gone leaves nothing behind in the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer

from twisted_paxos.core import limits
from twisted_paxos.core.runs import Names
from twisted_paxos.errors import WireError
from twisted_paxos.framing import FrameReceiver
from twisted_paxos.interfaces import INode, IResultSink
from twisted_paxos.protocols.logport import LogRead
from twisted_paxos.protocols.queryport import ANSWER_MAX_BYTES, QueryPort
from twisted_paxos.protocols.refusals import failure_for
from twisted_paxos.protocols.watchport import WatchPort
from twisted_paxos.statemachine.commands import NodeStatus, Result
from twisted_paxos.statemachine.watches import WatchHub
from twisted_paxos.wire.client import (
    CLIENT_VERSION,
    Failure,
    GetStatus,
    Hello,
    Query,
    ReadLog,
    Response,
    Results,
    StatusReply,
    StopWatch,
    Submit,
    Watch,
    decode_request,
    encode,
)

log = Logger()

CONNECTIONS_MAX: Final = 1_000
"""Clients connected at once; one more is told so and closed."""

COMMANDS_IN_PROGRESS_MAX: Final = 20_000
"""Submitted commands of one connection whose results are not out yet; beyond, ``overloaded``."""

READS_MAX: Final = 16
"""Log reads in progress on one connection; beyond, ``overloaded``."""

BACKLOG_MAX_BYTES: Final = 4 << 20
"""What is written for a client while it does not read; beyond, it is dropped."""

RESULTS_PER_FRAME: Final = 4_000
RESULTS_BYTES: Final = 1 << 20
"""Results in one frame, and their data: below the frame limit, with the longest client ids too."""

RESULT_TOO_LARGE: Final = "result_too_large"
"""The error of a result whose data fits no frame; the command was applied all the same."""

STATUS_FRESH_S: Final = 0.5
STATUS_STALE_S: Final = 2.5
"""How long one answer of the node on whether it is served does for all connections, and after what time
without asking nothing is known of the time between."""

HELLO_TIMEOUT_S: Final = 10.0
"""A connection that has not said Hello by then is closed."""

CLOSE_TIMEOUT_S: Final = 5.0
"""A closed connection whose client does not take the last bytes by then is cut."""


class ClientPort(Factory):
    """Serves ``node`` to clients; listen with it on any stream endpoint.

    Args:
        node: who does the work.
        reactor: for the time limits.
        cluster: fingerprint of the cluster, told to clients in `Hello`.
        connections_max: clients connected at once.

    Attributes:
        connections: the open ones.
        dropped: connections refused or dropped and bad frames, by reason.
    """

    noisy = False

    def __init__(
        self, node: INode, reactor: IReactorTime, cluster: str = "", connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self.node = node
        self.reactor = reactor
        self.cluster = cluster
        self.connections: set[ClientPortProtocol] = set()
        self.dropped: dict[str, int] = {}
        self._connections_max = connections_max
        self._asked_s = float("-inf")
        self._unserved_since_s: float | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """A protocol for one more client; over the limit, one that only says so."""
        refusal = ""
        if len(self.connections) >= self._connections_max:
            refusal = f"this node has {self._connections_max} clients already; try another node"
        return ClientPortProtocol(self, refusal)

    def unserved_s(self) -> float:
        """For how many seconds the node has had no leader that works, as far as was asked."""
        now_s = self.reactor.seconds()
        if now_s - self._asked_s >= STATUS_FRESH_S:
            status = self.node.status()
            assert isinstance(status, NodeStatus)
            if status.leader_works:
                self._unserved_since_s = None
            elif self._unserved_since_s is None or now_s - self._asked_s > STATUS_STALE_S:
                self._unserved_since_s = now_s
            self._asked_s = now_s
        return 0.0 if self._unserved_since_s is None else now_s - self._unserved_since_s

    def count(self, reason: str) -> None:
        """Count something dropped for ``reason``."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def close_all(self) -> None:
        """Close every connection, what was written is still sent: the node stops."""
        for connection in list(self.connections):
            connection.close()


@implementer(IResultSink)
class ClientPortProtocol(FrameReceiver):
    """One client's connection; made by `ClientPort`."""

    MAX_LENGTH = limits.FRAME_MAX_BYTES
    transport: Any

    def __init__(self, port: ClientPort, refusal: str = "") -> None:
        super().__init__()
        self.port = port
        self._refusal = refusal
        self._greeted = False
        self._closing = False
        self._pending = Names()
        self._limit_call: IDelayedCall | None = None
        self._reads: set[LogRead] = set()
        self._queries = QueryPort(port.node, port.reactor, self)
        self._watches: WatchPort | None = None
        self._backlog_bytes = 0

    # -- the connection ------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Say Hello, or why not."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)
        if self._refusal:
            self.port.count("too_many_connections")
            self.reply(Failure(0, "overloaded", self._refusal))
            self.close()
            return
        self.port.connections.add(self)
        self._limit_call = self.port.reactor.callLater(HELLO_TIMEOUT_S, self._hello_timeout)
        self.reply(Hello(CLIENT_VERSION, self.port.node.uid, self.port.cluster))

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        """Take back from the node all that this client still waited for."""
        self._closing = True
        self.port.connections.discard(self)
        self._end_limit()
        self._forget()

    def close(self) -> None:
        """Close after what was written is sent; no further request is taken."""
        if self._closing:
            return
        self._closing = True
        self._end_limit()
        self._forget()
        self.transport.unregisterProducer()
        self._limit_call = self.port.reactor.callLater(CLOSE_TIMEOUT_S, self.abort)
        self.transport.loseConnection()

    def _forget(self) -> None:
        for read in list(self._reads):
            read.stop()
        if self._pending:
            self._pending.clear()
            self.port.node.forget(self)
        self._queries.close()
        if self._watches is not None:
            self._watches.close()

    def _end_limit(self) -> None:
        if self._limit_call is not None and self._limit_call.active():
            self._limit_call.cancel()
        self._limit_call = None

    def _hello_timeout(self) -> None:
        self._limit_call = None
        self._bad_request("no_hello", f"no hello within {HELLO_TIMEOUT_S:g} seconds")

    def count(self, reason: str) -> None:
        """See `ClientPort.count`."""
        self.port.count(reason)

    def abort(self) -> None:
        """Cut the connection."""
        self._closing = True
        self.transport.abortConnection()

    # -- flow control: this end is the producer of what it writes --------------------------

    def resumeProducing(self) -> None:
        """The client reads again: go on with its requests and its log reads."""
        self._backlog_bytes = 0
        if self._closing:
            return
        super().resumeProducing()
        for read in list(self._reads):
            read.go_on()
        if self._watches is not None:
            self._watches.go_on()

    def reply(self, message: Response, at_once: bool = False) -> None:
        """Send ``message``; a client that lets too much wait is dropped."""
        frame = encode(message)
        if self.paused:
            self._backlog_bytes += len(frame)
            if self._backlog_bytes > BACKLOG_MAX_BYTES:
                self._drop_slow()
                return
        if at_once:
            self.send_at_once(frame)
        else:
            self.sendString(frame)

    def _drop_slow(self) -> None:
        if self._closing:
            return
        self.port.count("slow_reader")
        log.warn(
            "Dropped client {peer}: it does not read its answers, {limit} bytes of them waited",
            peer=self.transport.getPeer(),
            limit=BACKLOG_MAX_BYTES,
        )
        self.abort()

    # -- requests --------------------------------------------------------------------------

    def stringReceived(self, string: bytes) -> None:
        """One frame arrived."""
        if self._closing:
            return
        try:
            request = decode_request(string)
        except WireError as error:
            self._bad_request(error.reason, str(error))
            return
        if isinstance(request, Hello):
            self._hello(request)
        elif not self._greeted:
            self._bad_request("no_hello", "the first frame must be a hello")
        elif isinstance(request, Submit):
            self._submit(request)
        elif isinstance(request, Query):
            self._queries.ask(request)
        elif isinstance(request, Watch):
            self._watch(request)
        elif isinstance(request, StopWatch):
            if self._watches is not None:
                self._watches.stop(request.request_id)
        elif isinstance(request, ReadLog):
            self._read_log(request)
        else:
            self._get_status(request)

    def lengthLimitExceeded(self, length: int) -> None:
        """A frame is announced that will not be read."""
        self._bad_request("oversized", f"a frame of {length} bytes is over the limit of {self.MAX_LENGTH}")

    def _bad_request(self, reason: str, detail: str) -> None:
        self.port.count(reason)
        log.info(
            "Closing client {peer}, which does not speak the client protocol: {detail}",
            peer=self.transport.getPeer(),
            detail=detail,
        )
        self.reply(Failure(0, "bad_request", detail))
        self.close()

    def _hello(self, hello: Hello) -> None:
        if hello.version != CLIENT_VERSION:
            self._bad_request("version", f"client version {hello.version}, this node speaks {CLIENT_VERSION}")
            return
        self._greeted = True
        self._end_limit()

    def _submit(self, request: Submit) -> None:
        commands = request.commands
        if "" in [command.client for command in commands]:
            self.reply(Failure(request.request_id, "bad_request", "a command has no client id"))
            return
        new = self._pending.add(commands)
        if len(self._pending) > COMMANDS_IN_PROGRESS_MAX:
            self._pending.discard(new)
            message = f"{COMMANDS_IN_PROGRESS_MAX} commands of this connection are in progress already"
            self.reply(Failure(request.request_id, "overloaded", message))
            return
        try:
            self.port.node.submit(commands, self)
        except Exception as error:
            self._pending.discard(new)
            self.reply(failure_for(request.request_id, error))

    def _watch(self, request: Watch) -> None:
        if self._watches is None:
            hub = self.port.node.watches
            if not isinstance(hub, WatchHub):
                message = "this cluster's state machine has no watches"
                self.reply(Failure(request.request_id, "bad_request", message))
                return
            self._watches = WatchPort(hub, self.port.reactor, self, self.port.unserved_s)
        self._watches.start(request)

    def _get_status(self, request: GetStatus) -> None:
        status = self.port.node.status()
        assert isinstance(status, NodeStatus)
        self.reply(StatusReply(request.request_id, status))

    def _read_log(self, request: ReadLog) -> None:
        if request.from_slot < 0:
            self.reply(Failure(request.request_id, "bad_request", "slots start at 1"))
        elif len(self._reads) >= READS_MAX:
            message = f"{READS_MAX} log reads of this connection are in progress already"
            self.reply(Failure(request.request_id, "overloaded", message))
        else:
            read = LogRead(self.port.node, self.port.reactor, self, request, self._reads.discard)
            self._reads.add(read)
            read.start()

    # -- results (IResultSink) ---------------------------------------------------------------

    def applied(self, results: Sequence[Result]) -> None:
        """Some of this client's commands were applied, all at one time: they leave now, together."""
        self._pending.discard(results)
        for part in _parts(results):
            if self._closing:
                return
            self.reply(Results(part), at_once=True)


def _parts(results: Sequence[Result]) -> Iterator[tuple[Result, ...]]:
    """``results`` in frames' sizes; one that fits none is told without its data."""
    if 0 < len(results) <= RESULTS_PER_FRAME:
        all_bytes = sum([len(one.data) for one in results])
        if all_bytes <= RESULTS_BYTES and all_bytes <= ANSWER_MAX_BYTES:
            yield tuple(results)
            return
    part: list[Result] = []
    data_bytes = 0
    for result in results:
        size_bytes = len(result.data)
        if size_bytes > ANSWER_MAX_BYTES:
            result = Result(result.client, result.sequence, result.slot, result.index, RESULT_TOO_LARGE)
            size_bytes = 0
        if part and (len(part) == RESULTS_PER_FRAME or data_bytes + size_bytes > RESULTS_BYTES):
            yield tuple(part)
            part, data_bytes = [], 0
        part.append(result)
        data_bytes += size_bytes
    if part:
        yield tuple(part)
