"""Log reads of clients: chunk by chunk, no faster than the client takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure

from twisted_paxos.core.messages import SlotEntry
from twisted_paxos.interfaces import INode
from twisted_paxos.protocols.refusals import Channel, failure_for
from twisted_paxos.statemachine.commands import NodeStatus
from twisted_paxos.wire.client import Failure, LogEntries, ReadLog

log = Logger()

READ_CHUNK_BYTES: Final = 64 << 10
"""Values asked of the node for one `LogEntries` frame."""

READ_RETRY_S: Final = 0.02
READ_RETRIES_MAX: Final = 250
"""A slot is known as chosen a little before storage can give it back: how often, and how many times
it is asked for again before the read fails."""


class LogRead:
    """One `ReadLog` in progress: asks the node for the next chunk only when the client reads.

    Args:
        node: whose log.
        reactor: for what is tried again.
        channel: to the client.
        request: what it wants.
        ended: called once, when nothing more follows.
    """

    def __init__(
        self,
        node: INode,
        reactor: IReactorTime,
        channel: Channel,
        request: ReadLog,
        ended: Callable[[LogRead], None],
    ) -> None:
        self._node = node
        self._reactor = reactor
        self._channel = channel
        self._ended = ended
        self._request_id = request.request_id
        self._follow = request.follow
        self._next_slot = request.from_slot
        self._end_slot = 0  # Known as chosen; a plain read ends there.
        self._retries = 0
        self._asking: Deferred[Any] | None = None
        self._ask_again = False
        self._stopped = False
        self._stop_listening: Callable[[], None] | None = None

    def start(self) -> None:
        """Send the first chunk."""
        status = self._node.status()
        assert isinstance(status, NodeStatus)
        self._end_slot = status.chosen_upto
        self._next_slot = max(self._next_slot, status.log_start)
        if self._follow:
            self._stop_listening = self._node.on_chosen(self._chosen)
        self.go_on()

    def stop(self) -> None:
        """End without a word to the client."""
        self._stopped = True
        self._ended(self)
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def go_on(self) -> None:
        """Ask for the next chunk, unless one is under way or the client does not read."""
        if self._stopped or self._channel.paused:
            return
        if self._asking is not None:
            self._ask_again = True
            return
        self._ask_again = False
        asking = self._asking = self._node.read_log(self._next_slot, READ_CHUNK_BYTES)
        asking.addCallbacks(self._got, self._failed)
        asking.addErrback(self._broken)

    def _chosen(self, chosen_upto: int) -> None:
        self._end_slot = max(self._end_slot, chosen_upto)
        if chosen_upto >= self._next_slot:
            self.go_on()

    def _got(self, entries: Sequence[SlotEntry]) -> None:
        self._asking = None
        if self._stopped:
            return
        if not self._follow:
            entries = [entry for entry in entries if entry.slot <= self._end_slot]
        if entries:
            self._next_slot = entries[-1].slot + 1
            self._retries = 0
        elif self._next_slot <= self._end_slot:
            self._retry()
            return
        last = not self._follow and self._next_slot > self._end_slot
        if entries or last:
            self._channel.reply(LogEntries(self._request_id, tuple(entries), last))
        if last:
            self.stop()
        elif entries or self._ask_again:
            # Not from here: a node that answers at once would recurse, and starve its reactor.
            self._reactor.callLater(0, self.go_on)

    def _retry(self) -> None:
        """The next slot is chosen, and cannot be read yet."""
        self._retries += 1
        if self._retries <= READ_RETRIES_MAX:
            delay_s = 0 if self._ask_again else READ_RETRY_S
            self._reactor.callLater(delay_s, self.go_on)
            return
        self.stop()
        message = f"slot {self._next_slot} is chosen and cannot be read here; try another node"
        self._channel.reply(Failure(self._request_id, "unavailable", message))

    def _failed(self, failure: TwistedFailure) -> None:
        self._asking = None
        if not self._stopped:
            self.stop()
            self._channel.reply(failure_for(self._request_id, failure.value))

    def _broken(self, failure: TwistedFailure) -> None:
        log.failure("A log read for a client broke; its connection is cut", failure)
        self.stop()
        self._channel.abort()
