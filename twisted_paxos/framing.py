"""Frames with a length of four bytes before them, as every TCP connection of ours has.

Two things that `Int32StringReceiver` leaves to be wished for: a frame of a megabyte arrives in
many pieces, which it joins anew at each; and what is written leaves one turn of the reactor later.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.protocols.basic import Int32StringReceiver

_LENGTH_BYTES = 4
_NEVER = 1 << 62

READ_BYTES = 1 << 16
"""What one read asks the system for, as Twisted does."""

LARGE_READ_BYTES = 1 << 20
"""The same while the rest of a large frame is on its way: a turn of the reactor for each 64 KiB costs
more than the copy of them."""


class FrameReceiver(Int32StringReceiver):
    """An `Int32StringReceiver` that joins the pieces of a frame once, and can send at once.

    After `lengthLimitExceeded` it takes nothing more.
    """

    transport: Any

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have_bytes = 0
        self._need_bytes = _LENGTH_BYTES
        self._delivering = False
        self._reads_large = False

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived, or (with none) this end reads again after a pause."""
        if data and self._need_bytes != _NEVER:
            self._pieces.append(data)
            self._have_bytes += len(data)
        if self._delivering or self._have_bytes < self._need_bytes:
            return
        self._delivering = True
        try:
            self._deliver()
        finally:
            self._delivering = False
        missing_bytes = self._need_bytes - self._have_bytes
        if self._reads_large or missing_bytes > READ_BYTES:
            self._size_reads(missing_bytes)

    def _size_reads(self, missing_bytes: int) -> None:
        """Read the rest of a large frame in large pieces, and all else in small ones."""
        self._reads_large = READ_BYTES < missing_bytes < _NEVER - READ_BYTES
        transport = self.transport
        if isinstance(transport, FileDescriptor):
            transport.bufferSize = min(missing_bytes, LARGE_READ_BYTES) if self._reads_large else READ_BYTES

    def _deliver(self) -> None:
        """Hand out the frames that are complete, one by one, until this end is paused."""
        while not self.paused and self._have_bytes >= self._need_bytes:
            rest_bytes = self._have_bytes - self._need_bytes
            if self._need_bytes > _LENGTH_BYTES and rest_bytes < len(self._pieces[-1]):
                self._deliver_pieces(rest_bytes)
            else:
                self._deliver_joined()

    def _deliver_pieces(self, rest_bytes: int) -> None:
        """Hand out the frame that the last piece completes: each of its bytes is copied once.

        Args:
            rest_bytes: of that piece behind the frame.
        """
        pieces: list[memoryview] = [memoryview(piece) for piece in self._pieces]
        pieces[0] = pieces[0][_LENGTH_BYTES:]
        last = self._pieces[-1]
        self._pieces.clear()
        if rest_bytes:
            frame_bytes = len(last) - rest_bytes
            self._pieces.append(last[frame_bytes:])
            pieces[-1] = pieces[-1][: len(pieces[-1]) - rest_bytes]
        self._have_bytes, self._need_bytes = rest_bytes, _LENGTH_BYTES
        self.stringReceived(b"".join(pieces))

    def _deliver_joined(self) -> None:
        """Hand out the frames that are complete in all that is here."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        taken_bytes = 0
        try:
            while (
                taken_bytes < len(data)
                and not self.paused
                and (string := self._next(data, taken_bytes)) is not None
            ):
                taken_bytes += _LENGTH_BYTES + len(string)
                self._have_bytes -= _LENGTH_BYTES + len(string)
                self.stringReceived(string)
        finally:
            # What came while frames were handed out (a pause ended in between) is behind this.
            if taken_bytes < len(data):
                self._pieces.insert(0, data[taken_bytes:])

    def _next(self, data: bytes, start: int) -> bytes | None:
        """The frame at ``start``; None when it is not complete, or will not be read."""
        self._need_bytes = _LENGTH_BYTES
        frame_start = start + _LENGTH_BYTES
        if len(data) < frame_start:
            return None
        length_bytes = int.from_bytes(data[start:frame_start], "big")
        if length_bytes > self.MAX_LENGTH:
            self.lengthLimitExceeded(length_bytes)
            self._need_bytes = _NEVER
            return None
        if len(data) < frame_start + length_bytes:
            self._need_bytes += length_bytes
            return None
        return data[frame_start : frame_start + length_bytes]

    def send_at_once(self, string: bytes) -> None:
        """Send a frame that somebody waits for now, instead of one turn of the reactor later.

        Where there is more to it (TLS, something in the buffer, a connection that closes), it is left
        to the reactor, in its order.
        """
        transport = self.transport
        frame = len(string).to_bytes(_LENGTH_BYTES, "big") + string
        if (
            isinstance(transport, FileDescriptor)
            and transport.connected
            and not (transport.dataBuffer or transport._tempDataBuffer)
            and not (transport.disconnecting or transport.producerPaused or getattr(transport, "TLS", False))
        ):
            written = transport.writeSomeData(frame)
            if isinstance(written, int):
                if written == len(frame):
                    return
                frame = frame[written:]
            # What went wrong here goes wrong again, and is then seen, when the reactor writes.
        transport.write(frame)
