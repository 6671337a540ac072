"""Frames: cut in any way they arrive whole, and what was written can leave at once."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.framing import LARGE_READ_BYTES, READ_BYTES, FrameReceiver


def frame(content: bytes) -> bytes:
    """``content`` with its length before it."""
    return struct.pack("!I", len(content)) + content


class Collecting(FrameReceiver):
    """Keeps what it gets; pauses itself after each frame when told to."""

    MAX_LENGTH = 1_000

    def __init__(self, pauses: bool = False) -> None:
        super().__init__()
        self.pauses = pauses
        self.got: list[bytes] = []
        self.too_long: list[int] = []

    def stringReceived(self, string: bytes) -> None:
        """Keep it."""
        self.got.append(string)
        if self.pauses:
            self.pauseProducing()

    def lengthLimitExceeded(self, length: int) -> None:
        """Note it."""
        self.too_long.append(length)


class Descriptor(FileDescriptor):
    """A transport whose system takes ``room`` bytes at once; none below 0, as when it fails.

    Attributes:
        taken: what it took.
        asked: how often the reactor was asked to write.
    """

    def __init__(self) -> None:
        super().__init__(MemoryReactor())
        self.connected = True
        self.taken = b""
        self.room = 1 << 20
        self.asked = 0

    def startWriting(self) -> None:
        """Count."""
        self.asked += 1

    def writeSomeData(self, data: bytes) -> int | Exception:
        """Take what fits."""
        if self.room < 0:
            return ConnectionLost()
        taken = data[: self.room]
        self.taken += taken
        self.room -= len(taken)
        return len(taken)


def receiver(pauses: bool = False) -> Collecting:
    """A connected one."""
    protocol = Collecting(pauses)
    protocol.makeConnection(StringTransport())
    return protocol


class ReceivingTests(SynchronousTestCase):
    """Frames in, strings out."""

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=20))
    def test_any_cut(self, contents: list[bytes], cuts: list[int]) -> None:
        """However the stream is cut, the same strings come out, in order."""
        protocol = receiver()
        stream = b"".join(map(frame, contents))
        for cut in cuts:
            protocol.dataReceived(stream[:cut])
            stream = stream[cut:]
        protocol.dataReceived(stream)
        self.assertEqual(contents, protocol.got)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 60))
    def test_pauses(self, contents: list[bytes], cut: int) -> None:
        """A receiver that pauses after each frame gets one for each time that it goes on."""
        protocol = receiver(pauses=True)
        stream = b"".join(map(frame, contents))
        protocol.dataReceived(stream[:cut])
        protocol.dataReceived(stream[cut:])
        for count in range(1, len(contents) + 1):
            self.assertEqual(contents[:count], protocol.got)
            protocol.resumeProducing()
        self.assertEqual(contents, protocol.got)

    def test_goes_on_inside(self) -> None:
        """A pause that ends while a frame is handed out lets no frame come inside another."""
        protocol = receiver()
        depth: list[int] = []

        def received(string: bytes) -> None:
            depth.append(len(depth) - len(protocol.got))
            protocol.pauseProducing()
            protocol.resumeProducing()
            protocol.got.append(string)

        protocol.stringReceived = received  # type: ignore[method-assign]
        protocol.dataReceived(frame(b"one") + frame(b"two") + frame(b"three")[:5])
        protocol.dataReceived(frame(b"three")[5:])
        self.assertEqual([b"one", b"two", b"three"], protocol.got)
        self.assertEqual([0, 0, 0], depth)

    @settings(deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=6),
        st.lists(st.integers(1, 200), min_size=1, max_size=30),
    )
    def test_any_cut_and_pause(self, contents: list[tuple[int, bool]], cuts: list[int]) -> None:
        """However a stream is cut and paused meanwhile, nothing is lost, doubled or out of order."""
        protocol = receiver()
        expected = [bytes([number]) * size_bytes for number, (size_bytes, _) in enumerate(contents)]
        stream = b"".join(map(frame, expected))
        for number, cut in enumerate(cuts):
            if contents[number % len(contents)][1]:
                protocol.pauseProducing()
            protocol.dataReceived(stream[:cut])
            stream = stream[cut:]
            if not contents[(number + 1) % len(contents)][1]:
                protocol.resumeProducing()
        protocol.resumeProducing()
        protocol.dataReceived(stream)
        self.assertEqual(expected, protocol.got)

    def test_reads_large_frames_in_large_pieces(self) -> None:
        """While the rest of a large frame is on its way, a read asks for more than Twisted's 64 KiB."""
        protocol = Collecting()
        protocol.MAX_LENGTH = 4 << 20  # type: ignore[misc]
        transport = Descriptor()
        protocol.makeConnection(transport)  # type: ignore[arg-type]
        stream = frame(bytes(1 << 20))
        protocol.dataReceived(stream[:1_000])
        self.assertEqual(LARGE_READ_BYTES, transport.bufferSize + 1_000 - 4)
        protocol.dataReceived(stream[1_000:] + frame(b"small"))
        self.assertEqual(READ_BYTES, transport.bufferSize)
        self.assertEqual([1 << 20, 5], [len(each) for each in protocol.got])

    def test_too_long(self) -> None:
        """A frame over the limit is told by its length alone; what came before it was handed out."""
        protocol = receiver()
        protocol.dataReceived(frame(b"fits") + struct.pack("!I", 1_001))
        self.assertEqual([b"fits"], protocol.got)
        protocol.dataReceived(frame(b"later"))
        self.assertEqual([b"fits"], protocol.got)
        self.assertEqual([1_001], protocol.too_long)

    def test_error(self) -> None:
        """What a receiver raises is raised, and the next frame is handed out all the same."""
        protocol = receiver()
        protocol.stringReceived = lambda string: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        self.assertRaises(ZeroDivisionError, protocol.dataReceived, frame(b"one") + frame(b"two")[:5])
        del protocol.stringReceived  # type: ignore[attr-defined]
        protocol.dataReceived(frame(b"two")[5:])
        self.assertEqual([b"two"], protocol.got)


class AtOnceTests(SynchronousTestCase):
    """What leaves at once, and what does not."""

    def send(self, before: bytes = b"", room: int = 1 << 20, **state: Any) -> Descriptor:
        """The transport, in this state, after a frame was sent; ``before`` was written and waits."""
        protocol = Collecting()
        transport = Descriptor()
        protocol.makeConnection(transport)  # type: ignore[arg-type]
        transport.room = room
        if before:
            transport.write(before)
        for name, value in state.items():
            setattr(transport, name, value)
        protocol.send_at_once(b"now")
        return transport

    def test_atOnce(self) -> None:
        """On a plain connection it leaves, and the reactor is not asked for anything."""
        transport = self.send()
        self.assertEqual((frame(b"now"), 0), (transport.taken, transport.asked))

    def test_leftToTheReactor(self) -> None:
        """With TLS, a full buffer, or a connection that closes it is left to the reactor."""
        for state in ("TLS", "producerPaused", "disconnecting"):
            self.assertEqual(b"", self.send(**{state: True}).taken, state)
        self.assertEqual(b"", self.send(connected=False).taken)

    def test_inOrder(self) -> None:
        """What waits in the buffer leaves before it."""
        transport = self.send(before=b"first")
        self.assertEqual(b"", transport.taken)
        transport.doWrite()
        self.assertEqual(b"first" + frame(b"now"), transport.taken)

    def test_rest(self) -> None:
        """What the system does not take at once follows when it does."""
        transport = self.send(room=3)
        self.assertEqual(frame(b"now")[:3], transport.taken)
        transport.room = 100
        transport.doWrite()
        self.assertEqual(frame(b"now"), transport.taken)

    def test_error(self) -> None:
        """An error of the connection is seen where the reactor writes."""
        transport = self.send(room=-1)
        self.assertEqual((b"", 1), (transport.taken, transport.asked))

    def test_otherTransports(self) -> None:
        """A transport that is no file descriptor is written to."""
        protocol = receiver()
        protocol.send_at_once(b"now")
        self.assertEqual(frame(b"now"), protocol.transport.value())
