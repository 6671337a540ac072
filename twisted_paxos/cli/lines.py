"""Lines of standard input, as bytes, without blocking the reactor and in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from msgspec import Struct
from twisted.internet.defer import Deferred

CHUNK_BYTES: Final = 64 << 10
"""What is read at once, and how far the reading thread may be ahead."""


class LongLine(Struct, frozen=True):
    """A line over the limit; its bytes were not kept.

    Attributes:
        size_bytes: without the line end.
    """

    size_bytes: int


class LineSplitter:
    """Cuts chunks of bytes into lines, which keep every byte but the ``\\n`` that ends them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._part_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | LongLine]:
        """The lines that ``chunk`` completes."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._take()
        self._keep(rest)

    def finish(self) -> Iterator[bytes | LongLine]:
        """The last line, when no line end came after it."""
        if self._part_bytes:
            yield self._take()

    def _keep(self, part: bytes) -> None:
        self._part_bytes += len(part)
        if self._part_bytes > self._limit_bytes:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> bytes | LongLine:
        parts, self._parts = self._parts, []
        size_bytes, self._part_bytes = self._part_bytes, 0
        return LongLine(size_bytes) if size_bytes > self._limit_bytes else b"".join(parts)


class LineReader:
    """An async iterator over the lines of a file descriptor, which a thread reads.

    A thread, because standard input may be a terminal, a pipe or a file, and setting it
    non-blocking would do the same to every process that shares it. It is a daemon thread: a
    read that never returns does not keep the program from ending.
    """

    def __init__(self, reactor: Any, descriptor: int, limit_bytes: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._splitter = LineSplitter(limit_bytes)
        self._wanted = threading.Semaphore(0)
        self._waiter: Deferred[bytes] | None = None
        self._thread: threading.Thread | None = None

    async def __aiter__(self) -> AsyncIterator[bytes | LongLine]:
        """Every line; raises OSError when reading fails."""
        while chunk := await self._next_chunk():
            for line in self._splitter.feed(chunk):
                yield line
        for line in self._splitter.finish():
            yield line

    def _next_chunk(self) -> Deferred[bytes]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="standard input", daemon=True)
            self._thread.start()
        self._waiter = Deferred()
        self._wanted.release()
        return self._waiter

    def _read(self) -> None:
        chunk: bytes | OSError = b"-"
        while chunk and not isinstance(chunk, OSError):
            self._wanted.acquire()
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except OSError as error:
                chunk = error
            self._reactor.callFromThread(self._got, chunk)

    def _got(self, chunk: bytes | OSError) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if isinstance(chunk, OSError):
            waiter.errback(chunk)
        else:
            waiter.callback(chunk)
