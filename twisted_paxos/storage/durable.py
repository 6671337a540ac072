"""`DurableObjectHandler`: one small object that survives crashes, in two checksummed copies.

The name, and the idea of two alternating files, are the seed's. Each save writes **both** files,
one after the other, each synced before the next step, and only then returns. A file holds one copy:

    crc32c u32 | magic "PXO1" | version u16 | name length u16 | payload length u32 | serial u64
    | name | payload (JSON) | zeros to the end of the block

Why no completed save is ever forgotten
---------------------------------------
Let n be the serial of the last completed save. When it returned, both files held n, synced. A later
save (n + 1) that did not complete touches file 0 first, and file 1 only after file 0 is synced with
n + 1. So at any moment at least one file is intact and not being written, and it holds n or n + 1:

* while file 0 is being written (torn, old or new after a crash), file 1 holds n;
* while file 1 is being written, file 0 holds n + 1, complete and synced.

`load` therefore finds:

* both good, same serial: that is it;
* both good, serials one apart: a save was interrupted between the copies. The newer is complete and
  follows n, so taking it forgets nothing. It is synced, and the other rewritten, before `load`
  returns; so nobody acts on a value that a second crash could take back;
* one bad or missing, the other good: either the bad one was being written, or it was damaged later.
  In both cases the good one holds n or n + 1, because the save of n wrote both. The bad one is
  rewritten and a line logged;
* anything else is `StorageDamaged`: both bad or missing (the files are made with the directory and
  never removed, so this is never a new node), serials further apart (a disk lost writes that it had
  confirmed, so the newer one is not to be trusted either), or one serial with two contents.

One damaged copy thus forgets nothing. Two damaged copies are noticed.
"""

from __future__ import annotations

import struct
from typing import Generic, NamedTuple, TypeVar

import msgspec
from crc32c import crc32c
from twisted.logger import Logger

from twisted_paxos.errors import StorageDamaged, StorageError
from twisted_paxos.storage.disk import IDisk, reason

log = Logger()

OBJECT_MAGIC = b"PXO1"
OBJECT_VERSION = 1
OBJECT_HEADER = struct.Struct("<I4sHHIQ")
BLOCK_BYTES = 4096
"""Copies are written in whole blocks of this size."""

OBJECT_MAX_BYTES = 1 << 20
"""The largest file read: a length beyond it is damage."""

T = TypeVar("T")


class Copy(NamedTuple):
    """One of the two files, as it was found.

    Attributes:
        file: its name.
        serial: which save it holds; 0 when it is not good.
        payload: the object as JSON.
        problem: empty when it is good.
        newer_version: a good copy, of a format that this program does not know.
        unreadable: the system refused to read it; what it holds may be good.
    """

    file: str
    serial: int = 0
    payload: bytes = b""
    problem: str = ""
    newer_version: bool = False
    unreadable: bool = False


def encode_copy(name: str, serial: int, payload: bytes) -> bytes:
    """The bytes of one file: whole blocks."""
    label = name.encode()
    header = OBJECT_HEADER.pack(0, OBJECT_MAGIC, OBJECT_VERSION, len(label), len(payload), serial)
    body = header[4:] + label + payload
    data = crc32c(body).to_bytes(4, "little") + body
    return data + bytes(-len(data) % BLOCK_BYTES)


def decode_copy(file: str, name: str, data: bytes) -> Copy:
    """The inverse of `encode_copy`; says in ``problem`` what is wrong, raises nothing."""
    if len(data) < OBJECT_HEADER.size:
        return Copy(file, problem=f"{len(data)} bytes are too few")
    crc, magic, version, name_bytes, payload_bytes, serial = OBJECT_HEADER.unpack_from(data)
    end = OBJECT_HEADER.size + name_bytes + payload_bytes
    if magic != OBJECT_MAGIC or end > len(data) or crc32c(memoryview(data)[4:end]) != crc:
        return Copy(file, problem="the checksum does not match")
    if version != OBJECT_VERSION:
        return Copy(file, problem=f"format version {version} is not known", newer_version=True)
    label = data[OBJECT_HEADER.size : OBJECT_HEADER.size + name_bytes]
    if label != name.encode():
        return Copy(file, problem=f"it holds {label.decode('utf-8', 'replace')!r} instead of {name!r}")
    return Copy(file, serial, data[OBJECT_HEADER.size + name_bytes : end])


def read_copies(disk: IDisk, name: str) -> tuple[Copy, Copy]:
    """Both files as they are, good or not; changes nothing."""
    first, second = (_read_copy(disk, name, f"{name}.{index}") for index in (0, 1))
    return first, second


def _read_copy(disk: IDisk, name: str, file: str) -> Copy:
    try:
        return decode_copy(file, name, disk.read_at(file, 0, OBJECT_MAX_BYTES))
    except FileNotFoundError:
        return Copy(file, problem="the file is missing")
    except OSError as error:
        return Copy(file, problem=f"it cannot be read ({reason(error)})", unreadable=True)


def choose_copy(path: str, copies: tuple[Copy, Copy]) -> Copy:
    """The copy that holds every completed save; the module's docstring has the argument.

    Raises:
        StorageDamaged: neither certainly does.
        StorageError: they are of a newer version of the program, or cannot be read at present.
    """
    for copy in copies:
        if copy.newer_version:
            raise StorageError(
                f"{path}/{copy.file}: {copy.problem}: use the program that wrote it, or a newer one"
            )
    good = [copy for copy in copies if not copy.problem]
    if not good:
        what = "; ".join(f"{copy.file}: {copy.problem}" for copy in copies)
        if any(copy.unreadable for copy in copies):
            # The wrong user, or a disk that fails now, says nothing of what is stored.
            raise StorageError(f"{path}: neither copy can be used ({what})")
        raise StorageDamaged(f"{path}: both copies are unusable ({what})")
    oldest, newest = sorted((good[0], good[-1]), key=lambda copy: copy.serial)
    if newest.serial - oldest.serial > 1:
        behind = newest.serial - oldest.serial
        raise StorageDamaged(f"{path}/{oldest.file}: {behind} saves behind {newest.file}: writes were lost")
    if newest.serial == oldest.serial and newest.payload != oldest.payload:
        raise StorageDamaged(f"{path}/{copies[0].file} and {copies[1].file} differ in save {newest.serial}")
    return newest


class DurableObjectHandler(Generic[T]):
    """Keeps one object of a msgspec type in ``<name>.0`` and ``<name>.1``.

    Args:
        disk: where; formatted with what `initial_files` gives.
        name: the object's name; part of the checksum, so files cannot be mixed up.
        kind: the object's type.
    """

    def __init__(self, disk: IDisk, name: str, kind: type[T]) -> None:
        self.name = name
        self._disk = disk
        self._encode = msgspec.json.Encoder(order="deterministic").encode
        self._decode = msgspec.json.Decoder(kind).decode
        self._serial = 0

    def initial_files(self, value: T) -> dict[str, bytes]:
        """Both files with ``value`` as their first save, for `IDisk.format`."""
        data = encode_copy(self.name, 1, self._encode(value))
        return {f"{self.name}.0": data, f"{self.name}.1": data}

    def load(self) -> T:
        """The object of the last completed save, or of the one that a crash interrupted. Once, before `save`.

        Raises:
            StorageDamaged: neither copy certainly holds every completed save.
            OSError: a damaged copy cannot be written again.
        """
        copies = read_copies(self._disk, self.name)
        chosen = choose_copy(self._disk.path, copies)
        value = self.decode(chosen)
        self._confirm(copies, chosen)
        self._serial = chosen.serial
        return value

    def decode(self, copy: Copy) -> T:
        """The object in a good copy.

        Raises:
            StorageDamaged: its checksum is right, its content is not.
        """
        try:
            return self._decode(copy.payload)
        except msgspec.DecodeError as error:
            raise StorageDamaged(f"{self._disk.path}/{copy.file}: {error}") from error

    def _confirm(self, copies: tuple[Copy, Copy], chosen: Copy) -> None:
        """Make both files hold ``chosen``, durably.

        What was read may come from the system's memory and never have reached the disk; so good copies
        are synced, and they before the other is touched.
        """
        stale = [copy for copy in copies if copy.serial != chosen.serial]
        for copy in copies:
            if copy.serial == chosen.serial:
                self._disk.sync(copy.file)
        for copy in stale:
            log.warn(
                "{path}/{file}: {problem}; written again from the other copy, nothing is lost",
                path=self._disk.path,
                file=copy.file,
                problem=copy.problem or "a save of it was interrupted",
            )
            self._write(copy.file, encode_copy(self.name, chosen.serial, chosen.payload))

    def _write(self, file: str, data: bytes) -> None:
        if file not in self._disk.names():
            self._disk.create(file, len(data))
            self._disk.sync_dir()
        self._disk.write_at(file, 0, data)
        self._disk.sync(file)

    def save(self, value: T) -> None:
        """Make ``value`` durable in both files before it returns.

        Raises:
            OSError: it is unknown which of the two values a later `load` finds.
        """
        self._serial += 1
        data = encode_copy(self.name, self._serial, self._encode(value))
        for index in (0, 1):
            self._disk.write_at(f"{self.name}.{index}", 0, data)
            self._disk.sync(f"{self.name}.{index}")
