"""Disks and executors for tests: everything that a real disk can do wrong, repeatably.

`SimulatedDisk` is an `IDisk` in memory that knows what was synced and what was only written. All
randomness comes from a `random.Random` that the caller passes; it schedules nothing and reads no clock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from zope.interface import implementer

from twisted_paxos.errors import StorageLocked
from twisted_paxos.storage.disk import ASIDE_SUFFIX, LOCK_NAME, IDisk
from twisted_paxos.storage.executor import TurnExecutor

SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""


class _Unsynced(NamedTuple):
    """A write, or, with ``data`` None, a change of size to ``offset``."""

    offset: int
    data: bytes | None


class _File:
    """A file's content as read, as it surely is on disk, and what lies between the two."""

    def __init__(self, data: bytes = b"", synced: bytes = b"") -> None:
        self.data = bytearray(data)
        self.synced = bytearray(synced)
        self.unsynced: list[_Unsynced] = []

    def write(self, offset: int, data: bytes) -> None:
        _put(self.data, offset, data)
        self.unsynced.append(_Unsynced(offset, bytes(data)))

    def resize(self, size_bytes: int) -> None:
        _resize(self.data, size_bytes)
        self.unsynced.append(_Unsynced(size_bytes, None))

    def sync(self) -> None:
        for change in self.unsynced:
            _apply(self.synced, change)
        self.unsynced.clear()

    def crash(self, random: Random) -> None:
        """Keep what was synced, and of the rest a prefix, a random part, all or nothing."""
        fate = random.choice(("none", "all", "prefix", "sectors"))
        kept = random.randint(0, len(self.unsynced)) if fate == "prefix" else len(self.unsynced)
        for change in [] if fate == "none" else self.unsynced[:kept]:
            for piece in _sectors(change) if fate == "sectors" else [change]:
                if fate != "sectors" or random.random() < 0.5:
                    _apply(self.synced, piece)
        if fate == "prefix" and kept < len(self.unsynced):
            self._tear(self.unsynced[kept], random)
        self.unsynced.clear()
        self.data = bytearray(self.synced)

    def _tear(self, change: _Unsynced, random: Random) -> None:
        pieces = _sectors(change)
        for piece in pieces[: random.randint(0, len(pieces))]:
            _apply(self.synced, piece)

    def change_both(self, offset: int, data: bytes) -> None:
        """Damage: what is on disk changes, and what is read."""
        _put(self.data, offset, data)
        _put(self.synced, offset, data)


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _resize(target: bytearray, size_bytes: int) -> None:
    del target[size_bytes:]
    target.extend(bytes(size_bytes - len(target)))


def _apply(target: bytearray, change: _Unsynced) -> None:
    if change.data is None:
        _resize(target, change.offset)
    else:
        _put(target, change.offset, change.data)


def _sectors(change: _Unsynced) -> list[_Unsynced]:
    """A write, cut at the disk's sector boundaries."""
    if change.data is None:
        return [change]
    pieces = []
    start = change.offset
    end = change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        pieces.append(_Unsynced(start, change.data[start - change.offset : stop - change.offset]))
        start = stop
    return pieces


@implementer(IDisk)
class SimulatedDisk:
    """One directory on a disk that can fail in every way; see `IDisk`.

    Attributes:
        fail_sync: every sync fails with EIO, and what it should have synced stays unsynced.
        fail_read: every read fails with EIO.
        read_only: every change fails with EROFS.
        capacity_bytes: files may hold this much together; more fails with ENOSPC. None: no limit.
        set_aside_files: what `set_aside` moved away.
        operations: how many writes, syncs and changes of names there were.
        stop_after: every operation after so many fails with EIO, as when the machine stops in the
            midst of them; `crash` says what is left. None: never.
        on_stop: called, once, when ``stop_after`` makes the first operation fail; may `crash` or `kill`.
    """

    def __init__(self, path: str = "/simulated") -> None:
        self.path = path
        self.fail_sync = False
        self.fail_read = False
        self.read_only = False
        self.capacity_bytes: int | None = None
        self.operations = 0
        self.stop_after: int | None = None
        self.on_stop: Callable[[], None] | None = None
        self.set_aside_files: dict[str, bytes] = {}
        self._files: dict[str, _File] = {}
        self._durable_files: dict[str, _File] = {}
        self._locked = False

    # What storage calls.

    def open(self) -> None:
        """See `IDisk`."""

    def exists(self) -> bool:
        """See `IDisk`."""
        return bool(self._files)

    def format(self, files: dict[str, bytes]) -> None:
        """See `IDisk`."""
        if self._files:
            raise FileExistsError(errno.EEXIST, f"{self.path} exists already")
        self._change()
        self._need(sum(map(len, files.values())))
        self._files = {name: _File(data, data) for name, data in files.items()}
        self._durable_files = dict(self._files)

    def lock(self) -> None:
        """See `IDisk`."""
        if self._locked:
            raise StorageLocked(f"{self.path} is in use by process 1: this node runs already")
        if LOCK_NAME not in self._files:
            self.create(LOCK_NAME, 0)
        self._locked = True

    def names(self) -> list[str]:
        """See `IDisk`."""
        return sorted(self._files)

    def size(self, name: str) -> int:
        """See `IDisk`."""
        return len(self._file(name).data)

    def descriptor(self, name: str) -> None:
        """See `IDisk`."""

    def read(self, name: str) -> bytes:
        """See `IDisk`."""
        return self.read_at(name, 0, self.size(name))

    def read_at(self, name: str, offset: int, size_bytes: int) -> bytes:
        """See `IDisk`."""
        if self.fail_read:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return bytes(self._file(name).data[offset : offset + size_bytes])

    def create(self, name: str, size_bytes: int) -> None:
        """See `IDisk`."""
        self._change()
        if name in self._files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._need(size_bytes)
        file = self._files[name] = _File()
        file.resize(size_bytes)

    def fill(self, name: str, offset: int, size_bytes: int) -> None:
        """See `IDisk`."""
        self.write_at(name, offset, bytes(size_bytes))

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """See `IDisk`."""
        self._change()
        file = self._file(name)
        self._need(max(0, offset + len(data) - len(file.data)))
        file.write(offset, data)

    def sync(self, name: str) -> None:
        """See `IDisk`."""
        self._change(sync=True)
        self._file(name).sync()

    def sync_dir(self) -> None:
        """See `IDisk`."""
        self._change(sync=True)
        self._durable_files = dict(self._files)

    def rename(self, old: str, new: str) -> None:
        """See `IDisk`."""
        self._change()
        self._files[new] = self._file(old)
        del self._files[old]

    def remove(self, name: str) -> None:
        """See `IDisk`."""
        self._change()
        self._file(name)
        del self._files[name]

    def truncate(self, name: str, size_bytes: int) -> None:
        """See `IDisk`."""
        self._change()
        self._need(max(0, size_bytes - self.size(name)))
        self._file(name).resize(size_bytes)

    def set_aside(self) -> str:
        """See `IDisk`."""
        self._change()
        self.set_aside_files = self.snapshot()
        self._files = {}
        self._durable_files = {}
        return f"{self.path}{ASIDE_SUFFIX}"

    def aside(self) -> str:
        """See `IDisk`."""
        return f"{self.path}{ASIDE_SUFFIX}" if self.set_aside_files else ""

    def close(self) -> None:
        """See `IDisk`."""
        self._locked = False

    # What tests do to it.

    def crash(self, random: Random) -> None:
        """Power goes: what was not synced stays, goes or is torn; so do names. Faults end."""
        lost_names = [name for name in self._durable_files if name not in self._files]
        new_names = [name for name in self._files if self._durable_files.get(name) is not self._files[name]]
        files = dict(self._durable_files)
        for name in new_names:
            if random.random() < 0.5:
                files = {kept: file for kept, file in files.items() if file is not self._files[name]}
                files[name] = self._files[name]
        for name in lost_names:
            if name in files and files[name] not in self._files.values() and random.random() < 0.5:
                del files[name]
        for file in files.values():
            file.crash(random)
        self._files = files
        self._durable_files = dict(files)
        self.stop_after = None
        self.fail_sync = self.fail_read = False
        self._locked = False

    def kill(self) -> None:
        """The process goes, the machine stays: everything written is still there, synced or not."""
        self.stop_after = None
        self._locked = False

    def flip_bit(self, name: str, offset: int, bit: int) -> None:
        """Damage one bit (0 to 7) of the byte at ``offset``."""
        file = self._files[name]
        file.change_both(offset, bytes([file.data[offset] ^ (1 << bit)]))

    def overwrite(self, name: str, offset: int, data: bytes) -> None:
        """Damage: other bytes in the place of what was there."""
        self._files[name].change_both(offset, data)

    def cut(self, name: str, size_bytes: int) -> None:
        """Damage: the end of a file is gone."""
        file = self._files[name]
        del file.data[size_bytes:], file.synced[size_bytes:]

    def lose(self, name: str) -> None:
        """Damage: a file is gone."""
        del self._files[name]
        self._durable_files.pop(name, None)

    def wipe(self) -> None:
        """Damage: the directory is empty."""
        self.restore({})

    def snapshot(self) -> dict[str, bytes]:
        """A copy of every file as it reads now."""
        return {name: bytes(file.data) for name, file in self._files.items()}

    def restore(self, files: dict[str, bytes]) -> None:
        """Put a copy back, durably, in the place of a stopped node's files."""
        self._locked = False
        self._files = {name: _File(data, data) for name, data in files.items()}
        self._durable_files = dict(self._files)

    @property
    def used_bytes(self) -> int:
        """What the files take."""
        return sum(len(file.data) for file in self._files.values())

    def _file(self, name: str) -> _File:
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _change(self, sync: bool = False) -> None:
        self.operations += 1
        if self.stop_after is not None and self.operations > self.stop_after:
            on_stop, self.on_stop = self.on_stop, None
            if on_stop is not None:
                on_stop()
            raise OSError(errno.EIO, "the machine has stopped")
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if sync and self.fail_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _need(self, more_bytes: int) -> None:
        if (
            self.capacity_bytes is not None
            and more_bytes
            and self.used_bytes + more_bytes > self.capacity_bytes
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ImmediateExecutor(TurnExecutor):
    """`IDiskExecutor` whose work runs at a later turn of a `Clock`, ``delay_s`` later, never inside `run`.

    Set ``delay_s`` for a slow disk; `stall` and `resume` stop and restart it. All that waits runs in
    one turn, as with `DiskThread`.
    """

    def stall(self) -> None:
        """From now on nothing runs."""
        self._stalled = True
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def resume(self) -> None:
        """What waits runs ``delay_s`` from now."""
        self._stalled = False
        if self._jobs or self._closing is not None:
            self._schedule()

    def abandon(self) -> None:
        """The process died: nothing that waits ever runs, no Deferred ever fires."""
        self.stall()
        self._jobs = []

    _stalled = False

    def _schedule(self) -> None:
        if not self._stalled:
            super()._schedule()
