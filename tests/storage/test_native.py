"""`NativeDiskThread`: appends without the interpreter, everything else as ever."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from functools import partial
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyClass, verifyObject

from tests.storage.contract import CLUSTER, FIRST, SECOND, DurableContract, accepted, value
from tests.storage.threads import WAIT_S, ThreadReactor
from twisted_paxos.core.records import SaveChosen, SavePromise
from twisted_paxos.departure import Departure
from twisted_paxos.errors import StorageFailed
from twisted_paxos.interfaces import IDiskExecutor
from twisted_paxos.storage import executor
from twisted_paxos.storage.disk import OsDisk
from twisted_paxos.storage.executor import DiskThread, NativeDiskThread, disk_thread
from twisted_paxos.storage.wal import FileStorage

if executor.DiskQueue is None:
    skip = "twisted_paxos.storage._diskqueue was not built: is there a C compiler?"

NAME = "log"

PRIORITY = """
import os, threading
from twisted_paxos.storage._diskqueue import DiskQueue

def work():
    queue.take()
    print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

print(os.getpriority(os.PRIO_PROCESS, os.getpid()))
queue = DiskQueue(os.open(os.devnull, os.O_WRONLY))
queue.put(None)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def broken(error: Exception) -> Exception:
    """What a caller makes of an error."""
    return StorageFailed(f"errno {getattr(error, 'errno', 0)} on {threading.current_thread().name}")


class ThreadCase(SynchronousTestCase):
    """A thread, a file of zeros, and a socket that hears votes."""

    def setUp(self) -> None:
        self.reactor = ThreadReactor()
        self.thread = NativeDiskThread(self.reactor)
        path = os.path.join(self.mktemp(), "A")
        self.disk = OsDisk(path)
        self.disk.open()
        self.disk.format({NAME: bytes(64)})
        self.disk.read(NAME)  # so it is open, as a log's segment is
        self.addCleanup(self.end)
        self.here, self.there = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.there.bind(("127.0.0.1", 0))
        self.there.setblocking(False)
        self.refused: list[int] = []
        self.called: list[str] = []
        self.order: list[Any] = []

    def end(self) -> None:
        """Close and join."""
        self.thread.close()
        while self.reactor.readers:
            self.assertTrue(self.reactor.read())
        if self.thread._thread is not None:
            self.thread._thread.join(WAIT_S)
            self.assertFalse(self.thread._thread.is_alive())
        self.disk.close()
        self.here.close()
        self.there.close()

    def vote(self, data: bytes = b"vote", host: str = "127.0.0.1") -> Departure:
        """A datagram to the socket that hears votes."""
        port = self.there.getsockname()[1]
        datagram = (self.here, host, port, data)
        return Departure(lambda: self.called.append(host), datagram, self.refused.append)

    def append(self, offset: int, data: bytes, then: Any = None) -> Deferred[None]:
        """Append to the file."""
        return self.thread.append(self.disk, NAME, offset, data, then, broken)

    def result(self, deferred: Deferred[Any]) -> Any:
        """Turn the reactor until it has fired; its result."""
        while not deferred.called:
            self.assertTrue(self.reactor.read(), "nothing ends")
        return self.successResultOf(deferred)

    def failure(self, deferred: Deferred[Any]) -> str:
        """Turn the reactor until it has failed; the text."""
        while not deferred.called:
            self.assertTrue(self.reactor.read(), "nothing ends")
        return self.failureResultOf(deferred, StorageFailed).getErrorMessage()

    def heard(self) -> list[bytes]:
        """The votes that arrived by now: over the loopback none is under way."""
        votes: list[bytes] = []
        while True:
            try:
                votes.append(self.there.recv(1 << 16))
            except BlockingIOError:
                return votes


class NativeTests(ThreadCase):
    """What is special about it."""

    def test_interfaces(self) -> None:
        """It is an executor, and a reader of the reactor's."""
        verifyClass(IDiskExecutor, NativeDiskThread)
        verifyObject(IDiskExecutor, self.thread)
        verifyObject(IReadDescriptor, self.thread)

    def test_appends(self) -> None:
        """What was given is in the file, at its place, once it fires; nobody was called from the thread."""
        self.result(self.append(8, b"first"))
        self.result(self.append(16, b"second"))
        self.assertEqual(self.disk.read(NAME)[8:24], b"first\0\0\0second\0\0")
        self.assertTrue(self.reactor.asked.empty())

    def test_voteLeavesAfterTheSync(self) -> None:
        """The vote arrives, with no call of Python's, and what it reports is in the file by then."""
        self.there.settimeout(WAIT_S)
        done = self.append(0, b"record", self.vote())
        self.assertEqual(self.there.recv(100), b"vote")
        self.assertEqual(self.disk.read_at(NAME, 0, 6), b"record")
        self.there.setblocking(False)
        self.result(done)
        self.assertEqual((self.called, self.refused), ([], []))

    def test_withdrawn(self) -> None:
        """A vote that was withdrawn while its record waited does not leave; the record is written."""
        gate = threading.Event()
        self.thread.run(lambda: gate.wait(WAIT_S))
        vote = self.vote()
        done = self.append(0, b"record", vote)
        vote.withdraw()
        gate.set()
        self.result(done)
        self.assertEqual((self.heard(), self.disk.read_at(NAME, 0, 6)), ([], b"record"))

    def test_socketIsClosedMeanwhile(self) -> None:
        """The caller may close its socket, and its number may belong to something else by then."""
        gate = threading.Event()
        self.thread.run(lambda: gate.wait(WAIT_S))
        done = self.append(0, b"record", self.vote())
        number = self.here.fileno()
        self.here.close()
        other = os.open(os.path.join(self.disk.path, "other"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, other)
        self.assertEqual(other, number)
        gate.set()
        self.result(done)
        self.assertEqual((self.heard(), os.fstat(other).st_size), ([b"vote"], 0))

    def test_refusedBySystem(self) -> None:
        """A datagram that the system does not take is a lost one, and counted; the write stands."""
        self.result(self.append(0, b"record", self.vote(bytes(70_000))))
        self.assertEqual((self.refused, self.heard()), ([errno.EMSGSIZE], []))

    def test_order(self) -> None:
        """Appends and other work run and end in the order in which they were given."""
        endings = []
        for number in range(10):
            endings.append(self.append(number, b"%d" % number))
            endings.append(self.thread.run(lambda number=number: bytes(self.disk.read(NAME)[: number + 2])))
        for number, ending in enumerate(endings):
            ending.addCallback(lambda found, number=number: self.order.append((number, found)))
        self.result(endings[-1])
        self.assertEqual([number for number, _ in self.order], list(range(20)))
        digits = b"0123456789\0"
        self.assertEqual(
            [found for _, found in self.order[1::2]], [digits[: n + 1] + b"\0" for n in range(10)]
        )

    def test_whatMustBeCalledIsCalled(self) -> None:
        """A call that is no datagram is made on the thread, after the sync; so is one to a name."""
        names: list[str] = []
        self.result(self.append(0, b"one", lambda: names.append(threading.current_thread().name)))
        self.result(self.append(3, b"two", self.vote(host="localhost")))
        self.assertEqual((names, self.called), (["paxos-disk"], ["localhost"]))
        self.assertEqual(self.disk.read_at(NAME, 0, 6), b"onetwo")

    def test_closedSocket(self) -> None:
        """A vote through a socket that is closed is left to Python's; its record is written."""
        vote = self.vote()
        self.here.close()
        self.result(self.append(0, b"record", vote))
        self.assertEqual((self.called, self.disk.read_at(NAME, 0, 6)), (["127.0.0.1"], b"record"))

    def test_fileThatIsNotOpen(self) -> None:
        """The reactor's thread opens no file: that is the disk's."""
        self.disk._forget(NAME)
        opened: list[str] = []
        inner = self.disk._keep
        self.patch(
            self.disk, "_keep", lambda *of: (opened.append(threading.current_thread().name), inner(*of))
        )
        self.result(self.append(0, b"record"))
        self.assertEqual((opened, self.disk.read_at(NAME, 0, 6)), (["paxos-disk"], b"record"))

    def test_largeWorkIsLetGo(self) -> None:
        """What a call held is free once it has run, also while the thread waits for the next."""

        class Large:
            """Something that memory is needed for."""

        large = Large()
        gone = weakref.ref(large)
        self.result(self.thread.run(partial(isinstance, large, Large)))
        del large
        self.result(self.append(0, b"record"))
        self.assertIsNone(gone())

    def test_signalsAreForOtherThreads(self) -> None:
        """None may cut a sync short."""
        mask = self.result(self.thread.run(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        self.assertIn(signal.SIGCHLD, mask)

    def test_priorityStays(self) -> None:
        """Short slices are all that the thread asks for: it keeps the priority that its process was given."""
        asked = subprocess.run(
            ["nice", "-n", "5", sys.executable, "-c", PRIORITY], capture_output=True, text=True, check=True
        )
        own, of_thread = map(int, asked.stdout.split())
        self.assertEqual((own - os.getpriority(os.PRIO_PROCESS, 0), of_thread), (5, own))

    def test_core(self) -> None:
        """An append that sends nothing runs on this thread's core; all else where it might before."""
        if not hasattr(os, "sched_setaffinity"):
            raise SkipTest("this system has no affinity")
        thread, all_cores = self.thread, os.sched_getaffinity(0)
        self.result(self.append(0, b"x", self.vote()))
        taker = thread._thread.native_id
        self.assertEqual(os.sched_getaffinity(taker), all_cores)
        self.result(self.append(0, b"x"))
        pinned = os.sched_getaffinity(taker)
        if len(all_cores) > 1 and pinned == all_cores:
            raise SkipTest("this kernel grants no short time slices")
        self.assertEqual(len(pinned), 1)
        self.assertTrue(pinned <= all_cores)
        self.result(self.append(0, b"x", self.vote()))
        self.assertEqual(os.sched_getaffinity(taker), all_cores)
        others = {max(all_cores)}
        os.sched_setaffinity(taker, others)
        self.result(self.append(0, b"x"))
        self.result(thread.run(lambda: None))
        self.assertEqual(os.sched_getaffinity(taker), others)

    def test_ipv6(self) -> None:
        """An address of version six will do."""
        try:
            there = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self.addCleanup(there.close)
            there.bind(("::1", 0))
        except OSError:
            self.skipTest("no IPv6 here")
        here = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.addCleanup(here.close)
        datagram = (here, "::1", there.getsockname()[1], b"vote")
        self.result(self.append(0, b"record", Departure(self.fail, datagram, self.refused.append)))
        there.settimeout(WAIT_S)
        self.assertEqual((there.recv(10), self.refused), (b"vote", []))


class ReadOnlyDisk(OsDisk):
    """Gives descriptors that cannot be written to."""

    def descriptor(self, name: str) -> int:
        """One for reading."""
        self.fd = os.open(os.path.join(self.path, name), os.O_RDONLY)
        return self.fd


class FailureTests(ThreadCase):
    """A disk that fails."""

    def test_nothingFollowsAFailure(self) -> None:
        """Its vote does not leave, nothing behind it is written, and each has the error."""
        gate = threading.Event()
        self.thread.run(lambda: gate.wait(WAIT_S))
        failing = ReadOnlyDisk(self.disk.path)
        first = self.thread.append(failing, NAME, 0, b"record", self.vote(), broken)
        self.addCleanup(os.close, failing.fd)
        second = self.append(8, b"another", self.vote())
        gate.set()
        told = f"errno {errno.EBADF} on paxos-disk"
        self.assertEqual([self.failure(first), self.failure(second)], [told, told])
        self.assertEqual((self.disk.read(NAME), self.heard(), self.called), (bytes(64), [], []))

    def test_otherWorkGoesOn(self) -> None:
        """What is no append still runs: whoever gave it decides what a failure means."""
        failing = ReadOnlyDisk(self.disk.path)
        self.failure(self.thread.append(failing, NAME, 0, b"record", None, broken))
        os.close(failing.fd)
        self.assertEqual(self.result(self.thread.run(lambda: 5)), 5)

    def test_fullDevice(self) -> None:
        """No room where room was reserved is a failure like any other."""
        full = os.open("/dev/full", os.O_RDWR)
        self.addCleanup(os.close, full)
        self.patch(self.disk, "descriptor", lambda name: full)
        self.assertEqual(self.failure(self.append(0, b"record")), f"errno {errno.ENOSPC} on paxos-disk")


class LifeTests(ThreadCase):
    """Start and end."""

    def test_closeWaits(self) -> None:
        """`close` fires after all that was given; then nothing more is taken, and nothing stays open."""
        self.append(0, b"record").addCallback(lambda _: self.order.append("written"))
        closing = self.thread.close()
        closing.addCallback(lambda _: self.order.append("closed"))
        self.result(closing)
        self.assertEqual(self.order, ["written", "closed"])
        self.failureResultOf(self.append(0, b"late"), RuntimeError)
        self.failureResultOf(self.thread.run(int), RuntimeError)
        self.assertEqual((self.reactor.readers, self.reactor.triggers), ([], {}))
        self.assertRaises(OSError, os.fstat, self.thread.fileno())

    def test_endsWithTheReactor(self) -> None:
        """A program that forgets to close can still exit."""
        self.result(self.append(0, b"record"))
        self.reactor.triggers["after", "shutdown"]()
        self.thread._thread.join(WAIT_S)
        self.assertFalse(self.thread._thread.is_alive())

    def test_chosenWhereItCanWork(self) -> None:
        """A reactor that watches descriptors gets it, any other the thread in Python."""
        self.assertIs(type(disk_thread(self.reactor)), NativeDiskThread)
        self.assertIs(type(disk_thread(object())), DiskThread)
        self.patch(executor, "DiskQueue", None)
        self.assertIs(type(disk_thread(self.reactor)), DiskThread)


class NativeFileTests(DurableContract, SynchronousTestCase):
    """The contract of ``file:`` on a real directory, with a real thread."""

    def setUp(self) -> None:
        """A reactor for a clock."""
        super().setUp()
        self.clock = ThreadReactor()
        self.made: list[FileStorage] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close whatever is open."""
        for storage in self.made:
            self.settle(storage.close())

    def make(self, uid: str = "A") -> Any:
        """See `StorageContract`."""
        self.path = getattr(self, "path", None) or os.path.join(self.mktemp(), "A")
        thread = NativeDiskThread(self.clock)
        self.made.append(FileStorage(OsDisk(self.path), uid, thread, segment_bytes=1 << 16))
        return self.made[-1]


class RecordingThread(NativeDiskThread):
    """Remembers what was appended."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.appended: list[int] = []

    def append(self, disk: Any, name: str, offset: int, data: bytes, then: Any, failed: Any) -> Any:
        """Likewise."""
        self.appended.append(len(data))
        return super().append(disk, name, offset, data, then, failed)


class ShortWayTests(SynchronousTestCase):
    """Which writes of ``file:`` are plain appends: none that needs more than one file, or a promise."""

    def setUp(self) -> None:
        """Recovered, with a promise."""
        self.reactor = ThreadReactor()
        self.thread = RecordingThread(self.reactor)
        self.path = os.path.join(self.mktemp(), "A")
        self.storage = FileStorage(OsDisk(self.path), "A", self.thread, segment_bytes=1 << 18)
        self.storage.recover("one", CLUSTER)
        self.addCleanup(lambda: self.settle(self.storage.close()))
        self.settle(self.storage.write([SavePromise(FIRST)]))

    def settle(self, deferred: Deferred[Any]) -> Any:
        """Turn until it has fired."""
        while not deferred.called:
            self.reactor.advance(0)
        return self.successResultOf(deferred)

    def appends(self, *records: Any) -> bool:
        """Write; whether it went the short way."""
        before = len(self.thread.appended)
        self.settle(self.storage.write(records))
        return len(self.thread.appended) > before

    def test_votesAndWhatWasLearnt(self) -> None:
        """Votes under the promise, and chosen values; a note of what is chosen goes with them."""
        self.assertTrue(self.appends(accepted(1), accepted(2)))
        self.storage.note_chosen(2)
        self.assertTrue(self.appends(SaveChosen(3, FIRST, value(3))))
        self.settle(self.storage.close())
        again = FileStorage(OsDisk(self.path), "A", NativeDiskThread(self.reactor))
        found = again.recover("two", CLUSTER)
        self.settle(again.close())
        self.assertEqual((found.chosen_upto, found.entries), (3, {}))

    def test_promises(self) -> None:
        """A promise is two files of its own, and a vote may not overtake it."""
        self.assertFalse(self.appends(SavePromise(SECOND), accepted(1, SECOND)))
        self.assertTrue(self.appends(accepted(2, SECOND)))
        self.assertEqual(self.storage._backend._promised, SECOND)

    def test_largeOnes(self) -> None:
        """A large write leaves the system's cache afterwards: that is the thread's work."""
        self.assertFalse(self.appends(accepted(1, size_bytes=150_000)))

    def test_nextSegment(self) -> None:
        """Where the segment ends, the thread goes on in the next one."""
        ways = [self.appends(accepted(slot, size_bytes=60_000)) for slot in range(1, 9)]
        self.assertEqual((ways[0], ways[4]), (True, False))
        self.assertEqual(
            [entry.slot for entry in self.settle(self.storage.read_chosen(1, 8, 1 << 30))], [*range(1, 9)]
        )

    def test_whileTheThreadWorks(self) -> None:
        """Nothing is planned here while the thread may look at the same log."""
        gate = threading.Event()
        busy = self.storage._run(lambda: gate.wait(WAIT_S))
        writing = self.storage.write([accepted(1)])
        self.assertEqual(self.thread.appended, [])
        gate.set()
        self.settle(writing)
        self.successResultOf(busy)
        self.assertTrue(self.appends(accepted(2)))

    def test_whatWaitsGoesTogether(self) -> None:
        """Writes that came while one was under way are one group, which the thread sorts out."""
        first, *others = (self.storage.write([accepted(slot)]) for slot in range(1, 5))
        for writing in (first, *others):
            self.settle(writing)
        self.assertEqual(len(self.thread.appended), 1)

    def test_cannotBeGivenToTheDisk(self) -> None:
        """What was planned, and then never reached the disk, is a failure for good: its number is used up."""
        self.assertTrue(self.appends(accepted(1)))

        def no_descriptors(*_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        self.patch(self.thread, "append", no_descriptors)
        self.failed_for_good()
        self.settle(self.storage.close())
        again = FileStorage(OsDisk(self.path), "A", NativeDiskThread(self.reactor))
        self.assertEqual(sorted(again.recover("two", CLUSTER).entries), [1])
        self.settle(again.close())

    def failed_for_good(self) -> None:
        """Nothing is written any more, the short way or the other."""
        self.storage.note_chosen(1)
        for records in ([accepted(2)], [accepted(3)], [SavePromise(SECOND)]):
            failing = self.storage.write(records)
            while not failing.called:
                self.reactor.advance(0)
            self.assertIn("so the node stops", self.failureResultOf(failing, StorageFailed).getErrorMessage())

    def test_cancelledReadStillRuns(self) -> None:
        """Who cancels a read does not end it: nothing is planned here meanwhile."""
        gate = threading.Event()
        busy = self.storage._run(lambda: gate.wait(WAIT_S))
        busy.addErrback(lambda failure: failure.trap(CancelledError))
        busy.cancel()
        writing = self.storage.write([accepted(1)])
        self.assertEqual(self.thread.appended, [])
        gate.set()
        self.settle(writing)

    def test_failedForGood(self) -> None:
        """A failed append ends all writing."""
        full = os.open("/dev/full", os.O_RDWR)
        self.addCleanup(os.close, full)
        self.patch(self.storage._backend._disk, "descriptor", lambda name: full)
        self.failed_for_good()
        self.assertEqual(len(self.thread.appended), 1)
