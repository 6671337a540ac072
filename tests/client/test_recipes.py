"""Locks, elections and the other recipes, against nodes in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from tests.client.support import ClientCase
from twisted_paxos.client import Client
from twisted_paxos.client.recipes import (
    Barrier,
    Counter,
    Election,
    Lock,
    Place,
    Queue,
    ReadWriteLock,
    Semaphore,
    ServiceRegistry,
)
from twisted_paxos.errors import LeaseLost, NotAcquired, PaxosError
from twisted_paxos.statemachine.kvcommands import KeyValue


class RecipeCase(ClientCase):
    """Two clients; log time goes with the clock."""

    def setUp(self) -> None:
        """Connect them."""
        super().setUp()
        self.one: Client = self.connect(timeout_s=5.0)
        self.two = Client(self.reactor, ["127.0.0.1:5101"], rng=None, timeout_s=5.0)
        self.addCleanup(self.two.close)
        connecting = Deferred.fromCoroutine(self.two._first_connection())
        self.finish(connecting)

    def pass_time(self, seconds: float) -> None:
        """Here and in the log."""
        for _ in range(round(seconds / 0.1)):
            self.nodes[0].advance(0.1)
            self.network.run(0.1, step_s=0.05)

    def keys(self, prefix: str = "") -> list[str]:
        """What the store has."""
        return [kv.key.decode() for kv in self.finish(self.one.kv.get(prefix, prefix=True)).kvs]

    def take(self, place: Place) -> int:
        """The fencing token."""
        token: int = self.finish(place.acquire(), 0.05)
        return token


class LockTests(RecipeCase):
    """One at a time, first come, first served."""

    def test_in_turn(self) -> None:
        """The second gets it when the first lets go, with a higher token."""
        first, second = Lock(self.one, "l"), Lock(self.two, "l")
        token = self.take(first)
        waiting = second.acquire()
        self.network.run(1.0)
        self.assertNoResult(waiting)
        self.assertEqual((True, False), (first.held, second.held))
        self.finish(first.release())
        self.assertGreater(self.finish(waiting, 0.05), token)
        self.assertEqual((False, True), (first.held, second.held))
        self.finish(second.release())
        self.assertEqual([], self.keys())

    def test_fair(self) -> None:
        """Waiters get it in the order in which they came."""
        locks = [Lock(self.one, "l") for _ in range(5)]
        waits = []
        for lock in locks:
            waits.append(lock.acquire())
            self.network.run(0.05)
        tokens = []
        for lock, wait in zip(locks, waits, strict=True):
            tokens.append(self.finish(wait, 0.05))
            self.assertEqual([lock], [other for other in locks if other.held])
            self.finish(lock.release())
        self.assertEqual(sorted(tokens), tokens)

    def test_with(self) -> None:
        """It can be held in `async with`."""

        async def work(lock: Lock) -> tuple[bool, int]:
            async with lock:
                return lock.held, lock.token

        lock = Lock(self.one, "l")
        self.assertEqual((True, 2), self.finish(Deferred.fromCoroutine(work(lock)), 0.05))
        self.network.run(0.05)
        self.assertEqual(([], False), (self.keys(), lock.held))

    def test_holder_dies(self) -> None:
        """The lock of a client that is gone is free when its lease has run out."""
        self.take(Lock(self.one, "l", ttl_s=3))
        second = Lock(self.two, "l", ttl_s=3)
        waiting = second.acquire()
        self.network.run(0.05)
        self.one.close()
        self.pass_time(2.5)
        self.assertNoResult(waiting)
        self.pass_time(1.0)
        self.assertTrue(self.successResultOf(waiting) and second.held)

    def test_waiter_dies(self) -> None:
        """Who waits behind a waiter that is gone waits for the holder only."""
        first, third = Lock(self.two, "l", ttl_s=60), Lock(self.two, "l", ttl_s=60)
        self.take(first)
        Lock(self.one, "l", ttl_s=3).acquire().addErrback(lambda _: None)
        self.network.run(0.05)
        waiting = third.acquire()
        self.network.run(0.05)
        self.one.close()
        self.pass_time(4)
        self.assertNoResult(waiting)
        self.finish(first.release())
        self.finish(waiting, 0.1)

    def test_lost(self) -> None:
        """A holder that cannot renew hears of it before anybody else gets the lock."""
        lock = Lock(self.one, "l", ttl_s=3)
        self.take(lock)
        for number in (5100, 5102):
            self.network.kill(number)
        self.one._endpoints = ["127.0.0.1:5100"]
        self.one.close()  # Its connections are gone for good; only its timers run on.
        other = Lock(self.two, "l", ttl_s=3)
        waiting = other.acquire()
        for _ in range(60):
            self.pass_time(0.1)
            self.assertFalse(lock.held and other.held)
        self.successResultOf(waiting)
        self.assertIn("renewed", self.successResultOf(lock.lost))

    def test_key_deleted(self) -> None:
        """A holder whose key is deleted by somebody hears of it at once."""
        lock = Lock(self.one, "l")
        self.take(lock)
        self.finish(self.two.kv.delete("l/", prefix=True))
        self.network.run(0.05)
        self.assertIn("deleted", self.successResultOf(lock.lost))
        self.assertFalse(lock.held)
        self.finish(lock.release())
        self.assertGreater(self.take(lock), 2, "it can be taken again")

    def test_waiting_key_deleted(self) -> None:
        """A waiter whose key is gone is told, instead of waiting for ever."""
        first, second = Lock(self.one, "l"), Lock(self.two, "l")
        self.take(first)
        waiting = second.acquire()
        self.network.run(0.05)
        self.finish(self.one.kv.delete(second.key))
        self.finish(first.release())
        self.network.run(0.1)
        self.failureResultOf(waiting, LeaseLost)

    def test_timeout(self) -> None:
        """Not in time means NotAcquired, at that time, and no place in the queue."""
        first, second = Lock(self.one, "l"), Lock(self.two, "l")
        self.take(first)
        waiting = second.acquire(timeout_s=1.0)
        self.network.run(0.95)
        self.assertNoResult(waiting)
        self.network.run(0.1)
        self.failureResultOf(waiting, NotAcquired)
        self.network.run(0.1)
        self.assertEqual(1, len(self.keys("l/")))

    def test_told_before_the_end(self) -> None:
        """After a wait that was too long, `release` is done when the place is gone, not before."""
        first, second = Lock(self.two, "l"), Lock(self.one, "l")
        self.take(first)
        waiting = second.acquire(timeout_s=1.0)
        self.network.run(0.9)
        self.nodes[0].hold = True
        self.network.run(0.2)
        self.failureResultOf(waiting, NotAcquired)
        told = second.release()
        self.assertNoResult(told)
        self.nodes[0].release()
        self.assertNoResult(told)
        self.finish(told, 0.05)
        self.assertEqual([first.key.decode()], self.keys("l/"))

    def test_timeout_without_a_cluster(self) -> None:
        """Without any node, it is not acquired in time either, and nobody waits for longer."""
        for number in (5100, 5101, 5102):
            self.network.kill(number)
        waiting = Lock(self.two, "l").acquire(timeout_s=1.0)
        self.network.run(1.05)
        self.failureResultOf(waiting, NotAcquired)

    def test_cancel(self) -> None:
        """A cancelled wait gives its place up."""
        first, second = Lock(self.one, "l"), Lock(self.two, "l")
        self.take(first)
        waiting = second.acquire()
        self.network.run(0.05)
        waiting.cancel()
        self.failureResultOf(waiting)
        self.network.run(0.1)
        self.assertEqual([first.key.decode()], self.keys("l/"))

    def test_abandoned_put(self) -> None:
        """A place whose put has no result yet is given up too: the put never takes effect afterwards."""
        lease = self.finish(self.one.lease(60))
        self.addCleanup(lease.abandon)
        self.finish(self.one.kv.put("warm", "up"))
        self.nodes[0].hold = True
        lock = Lock(self.one, "l", lease=lease)
        waiting = lock.acquire()
        self.network.run(0.05)
        (held,) = self.nodes[0].held
        waiting.cancel()
        self.failureResultOf(waiting)
        self.network.run(0.05)
        # The deletion is applied first; only then does the late put come up.
        self.nodes[0].held.sort(key=lambda entry: entry is held)
        self.nodes[0].release()
        self.network.run(0.1)
        self.assertEqual([], self.keys("l/"))

    def test_released_before_the_watch_is_there(self) -> None:
        """A release between the look at the queue and the start of the watch is not missed."""
        first, second = Lock(self.one, "l"), Lock(self.two, "l")
        self.take(first)
        self.network.silent.add(5101)  # No new connection: the watch must wait for one.
        waiting = second.acquire()
        self.network.run(0.2)
        self.finish(first.release(), 0.1)
        self.assertNoResult(waiting)
        self.network.silent.clear()
        self.finish(waiting, 1.5)

    def test_shared_lease(self) -> None:
        """Two locks can share a lease; it is not revoked with them."""
        lease = self.finish(self.one.lease(10))
        self.addCleanup(lease.abandon)
        first, second = Lock(self.one, "a", lease=lease), Lock(self.one, "a", lease=lease)
        self.take(first)
        waiting = second.acquire()
        self.network.run(0.1)
        self.assertNoResult(waiting)
        self.finish(first.release(), 0.05)
        self.finish(waiting, 0.05)
        self.finish(second.release(), 0.05)
        self.assertTrue(lease.sure)
        self.assertEqual([], self.keys())

    def test_one_turn_at_a_time(self) -> None:
        """One object stands in the queue once."""
        lock = Lock(self.one, "l")
        self.take(lock)
        again = lock.acquire()
        self.failureResultOf(again, RuntimeError)
        self.assertTrue(lock.held)


class ReadWriteLockTests(RecipeCase):
    """Readers together, writers alone."""

    def test_readers_share(self) -> None:
        """Readers hold it together; a writer waits for all of them, later readers for the writer."""
        locks = [ReadWriteLock(self.one, "rw") for _ in range(4)]
        first, second, writer, late = locks[0].reader, locks[1].reader, locks[2].writer, locks[3].reader
        self.take(first)
        self.take(second)
        writing = writer.acquire()
        self.network.run(0.05)
        reading = late.acquire()
        self.network.run(0.1)
        self.assertNoResult(writing)
        self.assertNoResult(reading)
        self.finish(first.release(), 0.1)
        self.assertNoResult(writing)
        self.finish(second.release(), 0.1)
        self.successResultOf(writing)
        self.assertNoResult(reading)
        self.finish(writer.release(), 0.1)
        self.successResultOf(reading)

    def test_reader_whose_key_is_gone(self) -> None:
        """A reader whose key was deleted while it waited is told."""
        lock = ReadWriteLock(self.one, "rw")
        other = ReadWriteLock(self.two, "rw")
        self.take(lock.writer)
        reading = other.reader.acquire()
        self.network.run(0.05)
        self.finish(self.one.kv.delete(other.reader.key))
        self.finish(lock.writer.release(), 0.1)
        self.failureResultOf(reading, LeaseLost)


class SemaphoreTests(RecipeCase):
    """So many at a time."""

    def test_limit(self) -> None:
        """No more than the limit; the next one follows whoever lets go."""
        places = [Semaphore(self.one, "s", 2) for _ in range(4)]
        waits = []
        for place in places:
            waits.append(place.acquire())
            self.network.run(0.05)
        self.assertEqual([True, True, False, False], [place.held for place in places])
        self.finish(places[1].release(), 0.1)
        self.assertEqual([True, False, True, False], [place.held for place in places])
        self.finish(places[0].release(), 0.1)
        self.assertEqual([False, False, True, True], [place.held for place in places])
        self.assertRaises(ValueError, Semaphore, self.one, "s", 0)


class ElectionTests(RecipeCase):
    """One leader, known to all."""

    def observe(self, election: Election) -> list[KeyValue]:
        """What it tells from now on."""
        seen: list[KeyValue] = []

        async def follow() -> None:
            async for leader in election.observe():
                seen.append(leader)

        following = Deferred.fromCoroutine(follow())
        following.addErrback(lambda _: None)
        self.addCleanup(following.cancel)
        self.network.run(0.05)
        return seen

    def test_campaign(self) -> None:
        """The first candidate leads, its successor follows; observers see each, and each new value."""
        one, two = Election(self.one, "e"), Election(self.two, "e")
        seen = self.observe(Election(self.two, "e"))
        self.assertIsNone(self.finish(one.leader()))
        token = self.finish(one.campaign("first"), 0.05)
        campaigning = two.campaign("second")
        self.network.run(0.05)
        self.assertNoResult(campaigning)
        self.finish(one.proclaim("first, renamed"), 0.05)
        leader = self.finish(two.leader())
        self.assertEqual((b"first, renamed", token), (leader.value, leader.create_revision))
        self.finish(one.resign(), 0.1)
        self.assertGreater(self.successResultOf(campaigning), token)
        self.network.run(0.05)
        self.assertEqual([b"first", b"first, renamed", b"second"], [kv.value for kv in seen])

    def test_proclaim_without_leading(self) -> None:
        """Who does not lead cannot speak; who was deposed hears of it."""
        election = Election(self.one, "e")
        self.failureResultOf(election.proclaim("x"), LeaseLost)
        self.finish(election.campaign("x"), 0.05)
        self.nodes[0].hold = True
        proclaiming = election.proclaim("y")
        self.network.run(0.01)
        self.finish(self.two.kv.delete("e/", prefix=True))
        self.nodes[0].release()
        self.network.run(0.05)
        self.failureResultOf(proclaiming, LeaseLost)
        self.successResultOf(election.lost)


class DataTests(RecipeCase):
    """Barrier, counter, queue."""

    def test_barrier(self) -> None:
        """Waiters go on when it is released, and not before."""
        barrier = Barrier(self.one, "b")
        self.finish(Barrier(self.two, "b").wait())
        self.assertTrue(self.finish(barrier.hold()))
        self.assertFalse(self.finish(Barrier(self.two, "b").hold()))
        waiting = Barrier(self.two, "b").wait()
        late = Barrier(self.two, "b").wait(timeout_s=0.5)
        self.network.run(1.0)
        self.assertNoResult(waiting)
        self.failureResultOf(late, NotAcquired)
        self.finish(barrier.release(), 0.05)
        self.successResultOf(waiting)

    def test_counter(self) -> None:
        """Additions at the same time all count."""
        counters = [Counter(self.one, "c"), Counter(self.two, "c")]
        adding = [counter.add(2) for counter in counters for _ in range(10)]
        self.network.run(0.5)
        self.assertEqual(list(range(2, 41, 2)), sorted(map(self.successResultOf, adding)))
        self.assertEqual(40, self.finish(counters[0].get()))
        self.finish(self.one.kv.put("c", "no number"))
        failing = counters[0].add()
        self.network.run(0.05)
        self.failureResultOf(failing, PaxosError)

    def test_queue(self) -> None:
        """Values come in order; each is taken once; who waits is served."""
        queue, other = Queue(self.one, "q"), Queue(self.two, "q")
        for value in ("a", "b", "c"):
            self.finish(queue.put(value))
        self.assertEqual(3, self.finish(other.size()))
        taken = [q.take() for q in (queue, other, queue, other)]
        self.network.run(0.2)
        self.assertEqual([b"a", b"b", b"c"], sorted(self.successResultOf(t) for t in taken if t.called))
        (waiting,) = [t for t in taken if not t.called] or [other.take()]
        self.finish(queue.put("d"))
        self.assertEqual(b"d", self.finish(waiting, 0.05))
        late = queue.take(timeout_s=0.5)
        self.network.run(0.6)
        self.failureResultOf(late, NotAcquired)


class RegistryTests(RecipeCase):
    """Instances come and go."""

    def test_register(self) -> None:
        """What is registered is seen, and gone when it is closed."""
        registry = ServiceRegistry(self.one)
        seen: list[dict[bytes, bytes]] = []

        async def follow() -> None:
            async for instances in ServiceRegistry(self.two).watch("web"):
                seen.append(instances)

        following = Deferred.fromCoroutine(follow())
        following.addErrback(lambda _: None)
        self.addCleanup(following.cancel)
        self.network.run(0.05)
        registration = self.finish(registry.register("web", "1", "host:80"), 0.05)
        self.assertTrue(registration.registered)
        other = self.finish(registry.register("web", "2", "other:80"), 0.05)
        self.assertEqual({b"1": b"host:80", b"2": b"other:80"}, self.finish(registry.instances("web")))
        self.assertEqual({}, self.finish(registry.instances("we")))
        self.finish(registration.close(), 0.05)
        self.assertEqual(
            [{}, {b"1": b"host:80"}, {b"1": b"host:80", b"2": b"other:80"}, {b"2": b"other:80"}], seen
        )
        self.finish(other.close())

    def test_registers_again(self) -> None:
        """An instance whose lease is lost comes back by itself."""
        registry = ServiceRegistry(self.one)
        registration: Any = self.finish(registry.register("web", "1", "host:80", ttl_s=3), 0.05)
        self.finish(self.two.kv.lease_revoke(registration._lease.id))
        self.assertEqual({}, self.finish(registry.instances("web")))
        self.pass_time(3.0)
        self.assertEqual({b"1": b"host:80"}, self.finish(registry.instances("web")))
        self.finish(registration.close(), 0.05)
        self.pass_time(5.0)
        self.assertEqual({}, self.finish(registry.instances("web")))
