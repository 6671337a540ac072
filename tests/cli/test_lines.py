"""Cutting input into lines."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.cli.lines import LineReader, LineSplitter, LongLine


def split(chunks: list[bytes], limit_bytes: int) -> list[bytes | LongLine]:
    """All lines of ``chunks``."""
    splitter = LineSplitter(limit_bytes)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*lines, *splitter.finish()]


class LineSplitterTests(SynchronousTestCase):
    """Lines from chunks."""

    def test_lines(self) -> None:
        """Every byte but the line end is kept; an empty line is a line; the last needs no end."""
        self.assertEqual([b"a\r", b"", b"\xff\x00", b"last"], split([b"a\r\n\n\xff", b"\x00\nla", b"st"], 10))
        self.assertEqual([b"a"], split([b"a\n"], 10))
        self.assertEqual([], split([], 10))

    def test_limit(self) -> None:
        """A line over the limit is counted and dropped, the next one is whole."""
        self.assertEqual([b"1234", LongLine(9), b"x"], split([b"1234\n12345", b"6789\nx"], 4))

    def test_memory(self) -> None:
        """Of an endless line nothing is kept."""
        splitter = LineSplitter(100)
        for _ in range(1_000):
            self.assertEqual([], list(splitter.feed(b"x" * 50)))
        self.assertLessEqual(sum(map(len, splitter._parts)), 100)
        self.assertEqual([LongLine(50_000)], list(splitter.finish()))

    @given(st.lists(st.text("ab\n").map(str.encode)))
    def test_chunks_do_not_matter(self, chunks: list[bytes]) -> None:
        """However input is cut into chunks, the lines are the same."""
        whole = b"".join(chunks)
        self.assertEqual(split([whole], 3), split(chunks, 3))


class ThreadReactor:
    """Runs what a thread hands over, in the test's own thread."""

    def __init__(self) -> None:
        import queue

        self._calls: queue.Queue[Any] = queue.Queue()

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        """See Twisted's reactor."""
        self._calls.put((function, arguments))

    def run_one(self) -> None:
        """Wait for one call, and make it."""
        function, arguments = self._calls.get(timeout=10)
        function(*arguments)


class LineReaderTests(SynchronousTestCase):
    """Lines from a file descriptor."""

    def read(self, descriptor: int) -> list[bytes | LongLine]:
        """Everything that comes from ``descriptor``."""
        reactor = ThreadReactor()
        lines: list[bytes | LongLine] = []

        async def run() -> None:
            async for line in LineReader(reactor, descriptor, 1_000):
                lines.append(line)

        reading = Deferred.fromCoroutine(run())
        while not reading.called:
            reactor.run_one()
        self.successResultOf(reading)
        return lines

    def test_pipe(self) -> None:
        """Everything up to the end of a pipe."""
        out, into = os.pipe()
        self.addCleanup(os.close, out)
        os.write(into, b"one\ntwo")
        os.close(into)
        self.assertEqual([b"one", b"two"], self.read(out))

    def test_error(self) -> None:
        """A descriptor that cannot be read fails the iteration."""
        out, into = os.pipe()
        os.close(out)
        self.addCleanup(os.close, into)
        reactor = ThreadReactor()
        reading = Deferred.fromCoroutine(LineReader(reactor, into, 10).__aiter__().__anext__())
        reactor.run_one()
        self.failureResultOf(reading, OSError)
