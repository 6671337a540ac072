"""Replies that last: one JSON document and a newline per chunk, each written at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_paxos.web.errors import status_of
from twisted_paxos.web.replies import Chunk, StreamError, StreamErrorReply, encode

log = Logger()

STALL_MAX_S: Final = 60.0
"""A client that takes nothing for so long, while something waits for it, is dropped."""


@implementer(IPushProducer)
class Stream:
    """One such reply; begins with the first message.

    Args:
        request: a `http.GatewayRequest`.
        reactor: for the time limit.

    Attributes:
        paused: the client takes nothing at the moment; what may wait should.
        open: more can be sent.
        on_resume: called when the client takes more again.
        on_lost: called once when the stream is over, unless by `finish`.
    """

    __slots__ = ("_reactor", "_request", "_stalling", "on_lost", "on_resume", "open", "paused")

    def __init__(self, request: Any, reactor: IReactorTime) -> None:
        self._request = request
        self._reactor = reactor
        self._stalling: IDelayedCall | None = None
        self.paused = False
        self.open = True
        self.on_resume: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        request.on_lost = self._lost
        request.registerProducer(self, True)
        if request.channel.blocked:  # by an earlier reply
            self.pauseProducing()

    def send(self, message: Struct) -> None:
        """Send ``message`` as a result."""
        self.send_encoded(encode(Chunk(message)) + b"\n")

    def send_encoded(self, chunk: bytes) -> None:
        """Send a message that is encoded already, with its newline."""
        if self.open:
            if not self._request.startedWriting:
                self._request.begin_stream()
            self._request.write(chunk)

    def writable(self) -> Deferred[None]:
        """Fires, in a turn of the reactor of its own, when the client takes more; for one caller."""
        if not self.paused:
            return deferLater(self._reactor, 0)
        waiting: Deferred[None] = Deferred()
        self.on_resume = lambda: None if waiting.called else waiting.callback(None)
        return waiting

    def finish(self) -> None:
        """That was all."""
        if self.open:
            if not self._request.startedWriting:
                self._request.begin_stream()
            self._close()
            self._request.finish()

    def fail(self, failure: Failure) -> None:
        """End with an error: as the reply, or, where that has begun, as its last message."""
        if not self.open:
            return
        status = status_of(failure)
        on_lost = self.on_lost
        if self._request.startedWriting:
            http = status.http
            error = StreamError(status.code, http.value, status.message, http.phrase, status.code)
            self.send_encoded(encode(StreamErrorReply(error)) + b"\n")
            self.finish()
        else:
            self._close()
            self._request.refuse(status)
        if on_lost is not None:
            on_lost()

    def _close(self) -> None:
        self.open = False
        self._request.on_lost = None
        self._request.unregisterProducer()
        self._stop_stalling()
        self.on_resume = self.on_lost = None

    def _lost(self) -> None:
        on_lost = self.on_lost
        self.open = False
        self._stop_stalling()
        self.on_resume = self.on_lost = None
        if on_lost is not None:
            on_lost()

    def _stop_stalling(self) -> None:
        if self._stalling is not None:
            self._stalling.cancel()
            self._stalling = None

    def _stalled(self) -> None:
        self._stalling = None
        log.info("Dropped a client: it reads nothing of its stream for {limit} s", limit=STALL_MAX_S)
        self._request.drop("stalled")

    # -- IPushProducer, of what is sent

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self.paused = True
        if self._stalling is None and self.open:
            self._stalling = self._reactor.callLater(STALL_MAX_S, self._stalled)

    def resumeProducing(self) -> None:
        """It has taken everything."""
        self.paused = False
        self._stop_stalling()
        if self.on_resume is not None:
            self.on_resume()

    def stopProducing(self) -> None:
        """The connection ends; `on_lost` follows."""
