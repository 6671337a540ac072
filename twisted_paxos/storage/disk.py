"""Files of one directory, as storage uses them: `IDisk`, and the real one, `OsDisk`.

Everything that the ``file:`` provider does to a disk goes through `IDisk`, so the simulated disk of
`twisted_paxos.testing.storage` can lose, tear and damage whatever a real one can. All methods block and
raise `OSError` as the system does; who calls them decides what that means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Iterator

from zope.interface import Attribute, Interface, implementer

from twisted_paxos.errors import StorageError, StorageLocked

ASIDE_SUFFIX = ".set-aside"
"""What is moved out of the way keeps its name, with this behind it."""

LOCK_NAME = "lock"
"""The file that the process which has the directory open holds locked."""

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says when there is no room."""

_OPEN_FILES_MAX = 64
_ZEROS = bytes(1 << 20)
_PAGE_BYTES = 4096

LARGE_WRITE_BYTES = 1 << 17
"""What was written in pieces of at least this size leaves the system's cache once it is synced: hardly
anybody reads it again, and fresh memory for every large value costs more than the write."""


class IDisk(Interface):
    """One flat directory of files. Offsets and sizes are bytes. Blocks; one thread at a time.

    What was written is durable after `sync` of that file; what was created, renamed or removed after
    `sync_dir`; nothing before, in no particular order, and in part.
    """

    path: str = Attribute("Where it is, for messages.")

    def open() -> None:
        """Fix where it is: a relative path counts from the current directory of this moment."""

    def exists() -> bool:
        """Whether there is a directory with anything in it; an empty one counts as not there."""

    def format(files: dict[str, bytes]) -> None:
        """Make the directory with these files, durably, all or nothing.

        Raises:
            FileExistsError: there is one already, which is not empty.
            StorageLocked: another process is making it at this moment.
        """

    def lock() -> None:
        """Take the directory for this process, until `close` or the end of the process.

        Raises:
            StorageLocked: another has it; the text says which process.
        """

    def names() -> list[str]:
        """The names of the files, sorted."""

    def size(name: str) -> int:
        """Size of a file in bytes."""

    def read(name: str) -> bytes:
        """A whole file."""

    def read_at(name: str, offset: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` from ``offset``; fewer at the end of the file."""

    def create(name: str, size_bytes: int) -> None:
        """Make a file of zeros with all its room reserved; on failure there is none. Not synced."""

    def fill(name: str, offset: int, size_bytes: int) -> None:
        """Write zeros where there is but room, so that a later sync has no metadata to change. Not synced."""

    def write_at(name: str, offset: int, data: bytes) -> None:
        """Write all of ``data`` into an existing file. Not synced."""

    def sync(name: str) -> None:
        """Return when everything written to the file is durable."""

    def descriptor(name: str) -> int | None:
        """The system's descriptor of an open file, until the disk is used again; or None. Never blocks."""

    def sync_dir() -> None:
        """Return when the names of all files are durable."""

    def rename(old: str, new: str) -> None:
        """Rename a file, replacing ``new`` if there is one. Not synced."""

    def remove(name: str) -> None:
        """Remove a file. Not synced."""

    def truncate(name: str, size_bytes: int) -> None:
        """Cut or extend a file. Not synced."""

    def set_aside() -> str:
        """Move the whole directory out of the way, durably, in place of what was moved so before.

        Returns where it is now. Afterwards it does not exist.
        """

    def aside() -> str:
        """Where `set_aside` put something, now or in an earlier life; empty if it never did."""

    def close() -> None:
        """Close every file and release the lock; does nothing when nothing is open."""


def is_full(error: OSError) -> bool:
    """Whether the system says that there is no room."""
    return error.errno in FULL_ERRNOS


def reason(error: BaseException) -> str:
    """A system's error in a few words, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def sync_fd(fd: int) -> None:
    """Bring a file's data to stable storage; macOS needs a stronger call than fsync for that."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: str) -> None:
    """Make a directory and those above it, each durable in the one above it."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    sync_directory(parent)


def take_lock(path: str) -> int:
    """Lock a file, made if need be, and write our process id into it; returns its descriptor.

    Raises:
        StorageLocked: another process, or another part of this one, holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        who = f"process {holder}" if holder else "another process"
        raise StorageLocked(f"{os.path.dirname(path)} is in use by {who}: this node runs already") from None
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _reserve(fd: int, size_bytes: int) -> None:
    """Reserve room; where the system has no call for that, by zeros."""
    if sys.platform != "darwin":
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    _write_zeros(fd, 0, size_bytes)


def _write_zeros(fd: int, offset: int, size_bytes: int) -> None:
    for done in range(0, size_bytes, len(_ZEROS)):
        _write_all(fd, _ZEROS[: size_bytes - done], offset + done)


def _drop_cached(fd: int, start: int, end: int) -> None:
    """Let go of the whole pages of a range that is synced; the last one in part is written again soon."""
    end -= end % _PAGE_BYTES
    if end > start and hasattr(os, "posix_fadvise"):
        # Advice that is not taken is no failure: what was synced is synced.
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


@implementer(IDisk)
class OsDisk:
    """A real directory. Descriptors stay open, at most `_OPEN_FILES_MAX` of them.

    Args:
        path: the directory; need not exist. A relative one is resolved by `open`.
        read_only: opens files for reading only, for those who look at a running node's.
    """

    def __init__(self, path: str, read_only: bool = False) -> None:
        self.path = path
        self._flags = os.O_RDONLY if read_only else os.O_RDWR
        self._fds: OrderedDict[str, int] = OrderedDict()
        self._unsynced: dict[str, tuple[int, int]] = {}
        self._lock_fd = -1

    def open(self) -> None:
        """See `IDisk`."""
        self.path = os.path.abspath(self.path)

    def exists(self) -> bool:
        """See `IDisk`."""
        try:
            return bool(os.listdir(self.path))
        except FileNotFoundError:
            return False

    def format(self, files: dict[str, bytes]) -> None:
        """See `IDisk`."""
        parent, name = os.path.split(self.path)
        make_directories(parent)
        draft = os.path.join(parent, f".{name}.new")
        with self._draft_lock(draft):
            self._fill(draft, files)
            try:
                os.rename(draft, self.path)
            except OSError as error:
                shutil.rmtree(draft, ignore_errors=True)
                raise self._rename_error(error) from error
            sync_directory(parent)

    @contextlib.contextmanager
    def _draft_lock(self, draft: str) -> Iterator[None]:
        """Hold the draft directory for us alone; the lock vanishes with the process."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(draft, 0o700)
        fd = os.open(draft, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(fd), os.stat(draft)):
                raise FileNotFoundError
            yield
        except BlockingIOError:
            raise StorageLocked(f"another process is making {self.path} at this moment") from None
        except FileNotFoundError:
            raise StorageLocked(f"another process has just made {self.path}: start again") from None
        finally:
            os.close(fd)

    def _fill(self, draft: str, files: dict[str, bytes]) -> None:
        for leftover in os.listdir(draft):
            os.remove(os.path.join(draft, leftover))
        try:
            for name, data in files.items():
                fd = os.open(os.path.join(draft, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    _write_all(fd, data, 0)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            sync_directory(draft)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _rename_error(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return FileExistsError(error.errno, f"{self.path} exists already")
        if error.errno in (errno.EBUSY, errno.EXDEV):
            return StorageError(f"{self.path} is a mount point: give a directory below it instead")
        return error

    def lock(self) -> None:
        """See `IDisk`."""
        self._lock_fd = take_lock(os.path.join(self.path, LOCK_NAME))
        # Whoever made the directory may have died before its name was durable.
        sync_directory(os.path.dirname(self.path))

    def names(self) -> list[str]:
        """See `IDisk`."""
        return sorted(os.listdir(self.path))

    def size(self, name: str) -> int:
        """See `IDisk`."""
        return os.fstat(self._fd(name)).st_size

    def read(self, name: str) -> bytes:
        """See `IDisk`."""
        return self.read_at(name, 0, self.size(name))

    def read_at(self, name: str, offset: int, size_bytes: int) -> bytes:
        """See `IDisk`."""
        fd = self._fd(name)
        data = os.pread(fd, size_bytes, offset)
        if len(data) == size_bytes or not data:
            return data
        parts = [data]
        missing = size_bytes - len(data)
        while missing and (more := os.pread(fd, missing, offset + size_bytes - missing)):
            parts.append(more)
            missing -= len(more)
        return b"".join(parts)

    def create(self, name: str, size_bytes: int) -> None:
        """See `IDisk`."""
        path = os.path.join(self.path, name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if size_bytes:
                _reserve(fd, size_bytes)
        except BaseException:
            os.close(fd)
            os.remove(path)
            raise
        self._keep(name, fd)

    def fill(self, name: str, offset: int, size_bytes: int) -> None:
        """See `IDisk`."""
        _write_zeros(self._fd(name), offset, size_bytes)

    def write_at(self, name: str, offset: int, data: bytes) -> None:
        """See `IDisk`."""
        _write_all(self._fd(name), data, offset)
        if len(data) >= LARGE_WRITE_BYTES:
            start, end = self._unsynced.get(name, (offset, offset))
            self._unsynced[name] = min(start, offset), max(end, offset + len(data))

    def sync(self, name: str) -> None:
        """See `IDisk`."""
        fd = self._fd(name)
        sync_fd(fd)
        if name in self._unsynced:
            start, end = self._unsynced.pop(name)
            _drop_cached(fd, start, end)

    def descriptor(self, name: str) -> int | None:
        """See `IDisk`."""
        return self._fds.get(name)

    def sync_dir(self) -> None:
        """See `IDisk`."""
        sync_directory(self.path)

    def rename(self, old: str, new: str) -> None:
        """See `IDisk`."""
        os.rename(os.path.join(self.path, old), os.path.join(self.path, new))
        self._unsynced.pop(old, None)
        self._forget(new)
        fd = self._fds.pop(old, -1)
        if fd >= 0:
            self._keep(new, fd)

    def remove(self, name: str) -> None:
        """See `IDisk`."""
        self._forget(name)
        os.remove(os.path.join(self.path, name))

    def truncate(self, name: str, size_bytes: int) -> None:
        """See `IDisk`."""
        os.ftruncate(self._fd(name), size_bytes)

    def set_aside(self) -> str:
        """See `IDisk`."""
        aside = f"{self.path}{ASIDE_SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(aside)
        os.rename(self.path, aside)
        sync_directory(os.path.dirname(self.path))
        return aside

    def aside(self) -> str:
        """See `IDisk`."""
        aside = f"{self.path}{ASIDE_SUFFIX}"
        return aside if os.path.exists(aside) else ""

    def close(self) -> None:
        """See `IDisk`."""
        for name in list(self._fds):
            self._forget(name)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _fd(self, name: str) -> int:
        fd = self._fds.get(name, -1)
        if fd < 0:
            fd = os.open(os.path.join(self.path, name), self._flags)
            self._keep(name, fd)
        return fd

    def _keep(self, name: str, fd: int) -> None:
        # What is closed here was synced: storage never leaves a file unsynced to go on with another.
        self._fds[name] = fd
        while len(self._fds) > _OPEN_FILES_MAX:
            os.close(self._fds.popitem(last=False)[1])

    def _forget(self, name: str) -> None:
        self._unsynced.pop(name, None)
        fd = self._fds.pop(name, -1)
        if fd >= 0:
            os.close(fd)
