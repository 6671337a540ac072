"""`OsDisk` and `SimulatedDisk`: one contract, then what is special to each."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from random import Random

from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from twisted_paxos.errors import StorageError, StorageLocked
from twisted_paxos.storage import disk as disk_module
from twisted_paxos.storage.disk import IDisk, OsDisk
from twisted_paxos.testing.storage import SimulatedDisk


class DiskContract:
    """What every `IDisk` does; `make` gives another view of the same directory."""

    def make(self) -> IDisk:
        """The disk."""
        raise AssertionError("each disk says how")

    def formatted(self) -> IDisk:
        """A directory with two files."""
        disk = self.make()
        disk.open()
        disk.format({"lock": b"", "a": b"hello"})
        return disk

    def test_interface(self) -> None:
        """It provides `IDisk`, object and class."""
        disk = self.make()
        assert verifyObject(IDisk, disk)
        assert verifyClass(IDisk, type(disk))

    def test_format(self) -> None:
        """A directory exists once it is formatted, with exactly the given files, and only once."""
        disk = self.make()
        disk.open()
        self.assertFalse(disk.exists())
        disk.format({"lock": b"", "a": b"hello"})
        self.assertTrue(disk.exists())
        self.assertEqual(disk.names(), ["a", "lock"])
        self.assertRaises(FileExistsError, disk.format, {"a": b"other"})
        self.assertEqual(disk.read("a"), b"hello")

    def test_reads(self) -> None:
        """Reads are short at the end of a file; a missing file is an error."""
        disk = self.formatted()
        self.assertEqual(
            (disk.size("a"), disk.read_at("a", 1, 3), disk.read_at("a", 3, 99)), (5, b"ell", b"lo")
        )
        self.assertEqual(disk.read_at("a", 99, 1), b"")
        self.assertRaises(FileNotFoundError, disk.read, "b")

    def test_create_and_write(self) -> None:
        """A created file is zeros; writes change what they cover and may extend it."""
        disk = self.formatted()
        disk.create("b", 100)
        self.assertEqual(disk.read("b"), bytes(100))
        disk.write_at("b", 98, b"xyz")
        disk.sync("b")
        self.assertEqual(disk.read("b"), bytes(98) + b"xyz")
        self.assertRaises(FileExistsError, disk.create, "b", 1)
        self.assertRaises(FileNotFoundError, disk.write_at, "c", 0, b"x")

    def test_names(self) -> None:
        """Files can be renamed, over others too, removed and cut."""
        disk = self.formatted()
        disk.create("b", 10)
        disk.write_at("b", 0, b"1")
        disk.rename("b", "a")
        disk.sync_dir()
        self.assertEqual((disk.names(), disk.read("a")), (["a", "lock"], b"1" + bytes(9)))
        disk.write_at("a", 1, b"2")
        disk.truncate("a", 2)
        self.assertEqual(disk.read("a"), b"12")
        disk.remove("a")
        self.assertEqual(disk.names(), ["lock"])
        self.assertRaises(FileNotFoundError, disk.read, "a")

    def test_set_aside(self) -> None:
        """The whole directory moves away, also over an earlier one, and a new one can be made."""
        for _ in range(2):
            disk = self.formatted()
            where = disk.set_aside()
            self.assertEqual((disk.exists(), disk.aside()), (False, where))

    def test_lock(self) -> None:
        """A second lock is refused until the first is closed."""
        disk = self.formatted()
        disk.lock()
        other = self.make()
        other.open()
        self.assertRaises(StorageLocked, other.lock)
        disk.close()
        other.lock()
        other.close()


class SimulatedDiskTests(DiskContract, SynchronousTestCase):
    """`SimulatedDisk`: the contract, and how it fails."""

    def make(self) -> IDisk:
        """See `DiskContract`."""
        self.disk = getattr(self, "disk", None) or SimulatedDisk()
        return self.disk

    def test_crash_keeps_what_is_synced(self) -> None:
        """Whatever the fate of the rest, synced bytes stay."""
        for seed in range(50):
            self.disk = SimulatedDisk()
            disk = self.formatted()
            disk.write_at("a", 0, b"SYNCED")
            disk.sync("a")
            disk.write_at("a", 6, b"later")
            self.disk.crash(Random(seed))
            self.assertEqual(disk.read("a")[:6], b"SYNCED")

    def test_crash_tears_by_sectors(self) -> None:
        """An unsynced write is kept, lost or torn at sector boundaries; each happens."""
        fates = set()
        for seed in range(100):
            self.disk = SimulatedDisk()
            disk = self.formatted()
            disk.create("b", 2048)
            disk.sync("b")
            disk.sync_dir()
            disk.write_at("b", 256, b"x" * 1536)
            self.disk.crash(Random(seed))
            found = disk.read("b")
            self.assertEqual(len(found), 2048)
            sectors = [found[256:512], found[512:1024], found[1024:1536], found[1536:1792]]
            for sector in sectors:
                self.assertIn(set(sector), ({0}, {120}))
            fates.add(tuple(sector[0] for sector in sectors))
        self.assertIn((0, 0, 0, 0), fates)
        self.assertIn((120, 120, 120, 120), fates)
        self.assertIn((120, 0, 0, 0), fates)
        self.assertIn((0, 120, 0, 120), fates)

    def test_crash_takes_names_back(self) -> None:
        """Names are sure only after `sync_dir`."""
        fates = set()
        for seed in range(40):
            self.disk = SimulatedDisk()
            disk = self.formatted()
            disk.create("b", 1)
            disk.sync("b")
            disk.sync_dir()
            disk.rename("b", "c")
            disk.remove("a")
            disk.create("d", 1)
            self.disk.crash(Random(seed))
            self.assertEqual(len({"b", "c"} & set(disk.names())), 1)
            fates.update(disk.names())
        self.assertEqual(fates, {"a", "b", "c", "d", "lock"})

    def test_same_seed_same_crash(self) -> None:
        """A seed gives the same outcome each time."""
        outcomes = []
        for _ in range(2):
            self.disk = SimulatedDisk()
            disk = self.formatted()
            disk.write_at("a", 0, bytes(range(256)) * 20)
            disk.create("b", 5)
            self.disk.crash(Random(7))
            outcomes.append(self.disk.snapshot())
        self.assertEqual(outcomes[0], outcomes[1])

    def test_faults(self) -> None:
        """Each fault gives the system's error, and ends when it is switched off."""
        disk = self.formatted()
        self.disk.fail_sync = True
        self.assertEqual(self.assertRaises(OSError, disk.sync, "a").errno, errno.EIO)
        self.assertEqual(self.assertRaises(OSError, disk.sync_dir).errno, errno.EIO)
        self.disk.fail_sync = False
        disk.sync("a")
        self.disk.read_only = True
        self.assertEqual(self.assertRaises(OSError, disk.write_at, "a", 0, b"x").errno, errno.EROFS)
        self.disk.read_only = False
        self.disk.capacity_bytes = self.disk.used_bytes + 10
        self.assertEqual(self.assertRaises(OSError, disk.create, "b", 11).errno, errno.ENOSPC)
        self.assertEqual(self.assertRaises(OSError, disk.write_at, "a", 5, b"x" * 11).errno, errno.ENOSPC)
        disk.write_at("a", 5, b"x" * 10)
        self.assertNotIn("b", disk.names())

    def test_stop_after(self) -> None:
        """After so many operations everything fails, until the crash."""
        disk = self.formatted()
        self.disk.stop_after = self.disk.operations + 1
        disk.write_at("a", 0, b"1")
        self.assertRaises(OSError, disk.sync, "a")
        self.assertRaises(OSError, disk.write_at, "a", 0, b"2")
        self.disk.crash(Random(0))
        disk.write_at("a", 0, b"3")

    def test_damage(self) -> None:
        """Flipped bits, cuts and lost files survive a crash."""
        disk = self.formatted()
        self.disk.flip_bit("a", 0, 0)
        self.disk.crash(Random(0))
        self.assertEqual(disk.read("a"), b"iello")
        self.disk.cut("a", 2)
        self.assertEqual(disk.read("a"), b"ie")
        self.disk.lose("a")
        self.disk.crash(Random(0))
        self.assertEqual(disk.names(), ["lock"])
        self.disk.wipe()
        self.assertFalse(disk.exists())


class OsDiskTests(DiskContract, SynchronousTestCase):
    """`OsDisk`: the contract, and what only a real directory has."""

    def make(self) -> OsDisk:
        """See `DiskContract`."""
        self.path = getattr(self, "path", None) or os.path.join(self.mktemp(), "deep", "A")
        return OsDisk(self.path)

    def test_empty_directory_is_used(self) -> None:
        """An existing empty directory counts as not there."""
        disk = self.make()
        os.makedirs(self.path)
        disk.open()
        self.assertFalse(disk.exists())
        disk.format({"a": b"1"})
        self.assertEqual(disk.names(), ["a"])

    def test_relative_path(self) -> None:
        """A relative path counts from where `open` runs, and stays there."""
        base = self.mktemp()
        os.mkdir(base)
        disk = OsDisk("data")
        before = os.getcwd()
        os.chdir(base)
        try:
            disk.open()
        finally:
            os.chdir(before)
        disk.format({"a": b"1"})
        self.assertEqual(os.listdir(os.path.join(base, "data")), ["a"])

    def test_failed_format_leaves_nothing(self) -> None:
        """When a file cannot be synced, neither the directory nor a draft of it stays."""
        disk = self.make()
        disk.open()

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "broken")

        os.makedirs(os.path.dirname(disk.path))
        self.patch(disk_module.os, "fsync", fail)
        self.assertRaises(OSError, disk.format, {"a": b"1"})
        self.assertEqual(os.listdir(os.path.dirname(disk.path)), [])

    def test_draft_of_a_crash_is_replaced(self) -> None:
        """A draft that a crash left behind does not disturb the next start."""
        disk = self.make()
        disk.open()
        parent, name = os.path.split(disk.path)
        os.makedirs(os.path.join(parent, f".{name}.new"))
        with open(os.path.join(parent, f".{name}.new", "rubbish"), "w") as file:
            file.write("x")
        disk.format({"a": b"1"})
        self.assertEqual((disk.names(), os.listdir(parent)), (["a"], [name]))

    def test_private(self) -> None:
        """Directory and files are for their owner only."""
        disk = self.formatted()
        self.assertEqual(stat.S_IMODE(os.stat(disk.path).st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(os.stat(os.path.join(disk.path, "a")).st_mode), 0o600)

    def test_lock_tells_who(self) -> None:
        """The refusal names the process that has it."""
        disk = self.formatted()
        disk.lock()
        other = self.make()
        other.open()
        error = self.assertRaises(StorageLocked, other.lock)
        self.assertIn(f"process {os.getpid()}", str(error))
        disk.close()

    def test_lock_between_processes(self) -> None:
        """Another process is refused, and the lock goes with its holder, however that ends."""
        disk = self.formatted()
        code = (
            "import sys\nfrom twisted_paxos.storage.disk import OsDisk\n"
            "disk = OsDisk(sys.argv[1])\ndisk.open()\ndisk.lock()\n"
            "print('locked', flush=True)\nsys.stdin.read()"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, disk.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        )
        try:
            self.assertEqual(holder.stdout.readline(), b"locked\n")
            error = self.assertRaises(StorageLocked, disk.lock)
            self.assertIn(f"process {holder.pid}", str(error))
        finally:
            holder.kill()
            holder.communicate()
        disk.lock()
        disk.close()

    def test_full_leaves_no_file(self) -> None:
        """A file for which there is no room is not left behind half."""
        disk = self.formatted()

        def full(fd: int, size_bytes: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(disk_module, "_reserve", full)
        self.assertRaises(OSError, disk.create, "b", 1 << 20)
        self.assertEqual(disk.names(), ["a", "lock"])

    def test_reserved_and_filled(self) -> None:
        """A new file has its size without a byte written; zeros go where they are asked for."""
        disk = self.formatted()
        write_all = disk_module._write_all
        written: list[tuple[int, int]] = []

        def noted(fd: int, data: bytes, offset: int) -> None:
            written.append((offset, len(data)))
            write_all(fd, data, offset)

        self.patch(disk_module, "_write_all", noted)
        disk.create("b", 3 << 20)
        self.assertEqual(written, [] if sys.platform != "darwin" else [(n << 20, 1 << 20) for n in range(3)])
        written.clear()
        disk.write_at("b", 0, b"kept")
        disk.fill("b", 1000, (2 << 20) - 1000)
        self.assertEqual(written, [(0, 4), (1000, 1 << 20), ((1 << 20) + 1000, (1 << 20) - 1000)])
        disk.sync("b")
        self.assertEqual(disk.read("b"), b"kept".ljust(3 << 20, b"\0"))

    def test_reserved_by_zeros(self) -> None:
        """Where the system cannot reserve, zeros do."""
        if sys.platform == "darwin":
            raise SkipTest("the system has no such call at all")

        def refused(fd: int, offset: int, size_bytes: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        self.patch(os, "posix_fallocate", refused)
        disk = self.formatted()
        disk.create("b", (1 << 20) + 5)
        self.assertEqual(disk.read("b"), bytes((1 << 20) + 5))

    def test_large_writes_leave_the_cache(self) -> None:
        """Once they are synced, the whole pages of large writes are let go; small ones stay."""
        if not hasattr(os, "posix_fadvise"):
            raise SkipTest("no posix_fadvise here")
        disk = self.formatted()
        dropped: list[tuple[int, int]] = []
        self.patch(os, "posix_fadvise", lambda fd, start, size, advice: dropped.append((start, size)))
        disk.create("b", 0)
        disk.write_at("b", 0, b"small")
        disk.sync("b")
        self.assertEqual(dropped, [])
        size_bytes = disk_module.LARGE_WRITE_BYTES
        disk.write_at("b", 5, bytes(size_bytes))
        disk.write_at("b", 5 + size_bytes, bytes(size_bytes))
        self.assertEqual(dropped, [])
        disk.sync("b")
        disk.sync("b")
        self.assertEqual(dropped, [(5, 2 * size_bytes - 5)])

    def test_refused_advice(self) -> None:
        """A system that takes no advice on its cache costs nothing: the sync was complete before."""
        if not hasattr(os, "posix_fadvise"):
            raise SkipTest("no posix_fadvise here")
        disk = self.formatted()
        asked: list[int] = []

        def refuse(fd: int, start: int, size: int, advice: int) -> None:
            asked.append(size)
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        self.patch(os, "posix_fadvise", refuse)
        disk.create("b", 0)
        disk.write_at("b", 0, bytes(disk_module.LARGE_WRITE_BYTES))
        disk.sync("b")
        self.assertEqual(asked, [disk_module.LARGE_WRITE_BYTES])

    def test_mount_point(self) -> None:
        """A directory that cannot be replaced, as a mount point, is one clear line."""
        disk = self.make()
        disk.open()

        def busy(old: str, new: str) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        self.patch(disk_module.os, "rename", busy)
        error = self.assertRaises(StorageError, disk.format, {"a": b"1"})
        self.assertIn("mount point", str(error))

    def test_many_files(self) -> None:
        """More files than descriptors are kept open can be written and read."""
        disk = self.formatted()
        for number in range(100):
            disk.create(f"f{number}", 10)
            disk.write_at(f"f{number}", 0, b"%d" % number)
            disk.sync(f"f{number}")
        self.assertLessEqual(len(disk._fds), 64)
        for number in range(100):
            self.assertEqual(disk.read(f"f{number}").rstrip(b"\0"), b"%d" % number)
        disk.close()

    def test_read_only_view(self) -> None:
        """A read-only view reads, and cannot write."""
        self.formatted()
        view = OsDisk(self.path, read_only=True)
        view.open()
        self.assertEqual(view.read("a"), b"hello")
        self.assertRaises(OSError, view.write_at, "a", 0, b"x")
        view.close()
