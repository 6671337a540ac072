"""What every `IAcceptorStorage` must do; each provider's tests mix these in."""

from __future__ import annotations

from typing import Any

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyClass, verifyObject

from twisted_paxos.core.ballot import NO_BALLOT, ProposalID
from twisted_paxos.core.messages import Entry
from twisted_paxos.core.records import Identity, SaveAccepted, SaveChosen, SaveIdentity, SavePromise
from twisted_paxos.errors import StorageDamaged, StorageError, StorageFailed, StorageForeign, StorageLocked
from twisted_paxos.interfaces import IAcceptorStorage

CLUSTER = "abc"
FIRST = ProposalID(1, "A")
SECOND = ProposalID(2, "B")


def value(slot: int, size_bytes: int = 10) -> Raw:
    """A value that tells which slot it is of."""
    return Raw(b'"%d-%s"' % (slot, b"v" * size_bytes))


def accepted(slot: int, ballot: ProposalID = FIRST, size_bytes: int = 10) -> SaveAccepted:
    """A vote for `value` of that slot."""
    return SaveAccepted(slot, ballot, value(slot, size_bytes))


def plain(entries: dict[int, Entry]) -> dict[int, tuple[ProposalID, bytes]]:
    """Entries as things that compare."""
    return {slot: (entry.ballot, bytes(entry.value)) for slot, entry in entries.items()}


class StorageCase:
    """What contract tests need, over `make`, which the provider's test case defines.

    ``clock`` moves everything.
    """

    def setUp(self) -> None:
        """A clock, and nothing stored."""
        super().setUp()  # type: ignore[misc]
        self.clock = Clock()

    def make(self, uid: str = "A") -> Any:
        """Storage for ``uid``; the same place each time."""
        raise AssertionError("each provider says how")

    def started(self, uid: str = "A", incarnation: str = "one", cluster: str = CLUSTER) -> Any:
        """Storage that has recovered."""
        storage = self.make(uid)
        storage.recover(incarnation, cluster)
        return storage

    def settle(self, deferred: Deferred[Any]) -> Any:
        """Turn the clock until ``deferred`` has fired; its result."""
        for _ in range(20):
            if deferred.called:
                break
            self.clock.advance(0.001)
        return self.successResultOf(deferred)  # type: ignore[attr-defined]

    def settle_failure(self, deferred: Deferred[Any], kind: type[Exception]) -> Exception:
        """The same for one that must fail; the exception."""
        for _ in range(20):
            if deferred.called:
                break
            self.clock.advance(0.001)
        return self.failureResultOf(deferred, kind).value  # type: ignore[attr-defined]

    def restarted(self, storage: Any) -> Any:
        """Close, and open again: the new storage and what it found."""
        self.settle(storage.close())
        again = self.make()
        return again, again.recover("ignored", CLUSTER)


class StorageContract(StorageCase):
    """For every provider."""

    def test_interface(self) -> None:
        """It provides `IAcceptorStorage`, object and class."""
        storage = self.make()
        assert verifyObject(IAcceptorStorage, storage)
        assert verifyClass(IAcceptorStorage, type(storage))

    def test_fresh(self) -> None:
        """Storage that is made now has the given incarnation, boot 1, and nothing else."""
        found = self.make().recover("one", CLUSTER)
        self.assertEqual(found.identity, Identity("A", "one", CLUSTER, boot=1, starts=("one",)))
        self.assertEqual((found.promised, found.chosen_upto, found.log_start), (NO_BALLOT, 0, 1))
        self.assertEqual((found.entries, found.fresh), ({}, True))
        self.assertFalse(found.identity.lost)

    def test_lost(self) -> None:
        """Storage made in the place of lost storage says so."""
        self.assertTrue(self.make().recover("one", CLUSTER, lost=True).identity.lost)

    def test_never_fires_inside_the_call(self) -> None:
        """A write's Deferred fires in a later turn, also when there is nothing to write."""
        storage = self.started()
        for records in ([], [SavePromise(FIRST)], [accepted(1)]):
            deferred = storage.write(records)
            self.assertFalse(deferred.called)
            self.settle(deferred)
        reading = storage.read_chosen(1, 1, 1000)
        self.assertFalse(reading.called)
        self.settle(reading)

    def test_fires_in_order(self) -> None:
        """Deferreds fire in the order of the writes, those of one turn and those that came while it ran."""
        storage = self.started()
        order: list[int] = []
        last = storage.write([SavePromise(FIRST)])
        last.addCallback(lambda _: order.append(0))
        for slot in range(1, 4):
            last = storage.write([accepted(slot)])
            last.addCallback(lambda _, slot=slot: order.append(slot))
        self.clock.advance(0)
        for slot in range(4, 7):
            last = storage.write([accepted(slot)])
            last.addCallback(lambda _, slot=slot: order.append(slot))
        self.settle(last)
        self.assertEqual(order, list(range(7)))

    def test_then_is_called_when_synced(self) -> None:
        """`then` is called once, in order, before the Deferred fires; not for a write that fails."""
        storage = self.started()
        order: list[str] = []
        storage.write([SavePromise(FIRST)], lambda: order.append("then 1")).addCallback(
            lambda _: order.append("1")
        )
        last = storage.write([accepted(1)], lambda: order.append("then 2"))
        self.settle(last.addCallback(lambda _: order.append("2")))
        self.assertEqual([one for one in order if "then" in one], ["then 1", "then 2"])
        self.assertLess(order.index("then 1"), order.index("1"))
        self.assertLess(order.index("then 2"), order.index("2"))
        failing = storage.write([accepted(1, SECOND)], lambda: order.append("then 3"))
        self.settle_failure(failing, StorageFailed)
        self.assertNotIn("then 3", order)

    def test_read_sees_earlier_writes(self) -> None:
        """A read returns what was written before it, also when that is not synced yet."""
        storage = self.started()
        storage.write([SavePromise(FIRST), accepted(1), accepted(2)])
        found = self.settle(storage.read_chosen(1, 2, 1000))
        self.assertEqual([entry.slot for entry in found], [1, 2])
        self.assertEqual([bytes(entry.value) for entry in found], [bytes(value(1)), bytes(value(2))])
        self.assertEqual(found[0].ballot, FIRST)

    def test_read_ends(self) -> None:
        """A read ends at the asked slot, before the first missing one, and is empty where there is none."""
        storage = self.started()
        storage.write([SavePromise(FIRST), accepted(1), accepted(2), accepted(3), accepted(5)])
        for asked, expected in (
            ((1, 2), [1, 2]),
            ((2, 9), [2, 3]),
            ((4, 5), []),
            ((5, 9), [5]),
            ((7, 9), []),
        ):
            found = self.settle(storage.read_chosen(*asked, 1000))
            self.assertEqual([entry.slot for entry in found], expected, asked)

    def test_read_is_limited(self) -> None:
        """A read ends when the limit is passed, and returns one entry however large."""
        storage = self.started()
        storage.write([SavePromise(FIRST), *(accepted(slot, size_bytes=100) for slot in range(1, 9))])
        for limit_bytes in (1, 50, 100):
            self.assertEqual(len(self.settle(storage.read_chosen(1, 8, limit_bytes))), 1)
        found = self.settle(storage.read_chosen(1, 8, 3 * len(bytes(value(1, 100)))))
        self.assertEqual([entry.slot for entry in found], [1, 2, 3])

    def test_later_record_replaces(self) -> None:
        """The later record of a slot counts, whatever its kind."""
        storage = self.started()
        storage.write([SavePromise(FIRST), accepted(1), SavePromise(SECOND), accepted(1, SECOND, 20)])
        found = self.settle(storage.read_chosen(1, 1, 1000))
        self.assertEqual((found[0].ballot, bytes(found[0].value)), (SECOND, bytes(value(1, 20))))
        storage.write([SaveChosen(1, ProposalID(9, "C"), value(1, 30))])
        found = self.settle(storage.read_chosen(1, 1, 1000))
        self.assertEqual((found[0].ballot, bytes(found[0].value)), (ProposalID(9, "C"), bytes(value(1, 30))))

    def test_vote_above_promise_is_refused(self) -> None:
        """A vote above the promise is an error that ends all writing: it would be damage after a restart."""
        storage = self.started()
        self.settle(storage.write([SavePromise(FIRST)]))
        error = self.settle_failure(storage.write([accepted(1, SECOND)]), StorageFailed)
        self.assertIn("above the promise", str(error))

    def test_promise_never_goes_back(self) -> None:
        """A lower promise is an error that ends all writing."""
        storage = self.started()
        self.settle(storage.write([SavePromise(SECOND)]))
        self.settle_failure(storage.write([SavePromise(FIRST)]), StorageFailed)
        self.settle_failure(storage.write([SavePromise(SECOND)]), StorageFailed)

    def test_chosen_above_promise(self) -> None:
        """A chosen value may have any ballot: it is no vote of this node."""
        storage = self.started()
        self.settle(storage.write([SaveChosen(1, ProposalID(99, "Z"), value(1))]))
        self.assertEqual(len(self.settle(storage.read_chosen(1, 1, 1000))), 1)

    def test_log_bytes_grow(self) -> None:
        """`log_bytes` grows by about the size of the values."""
        storage = self.started()
        before_bytes = storage.log_bytes
        self.settle(storage.write([SavePromise(FIRST), accepted(1, size_bytes=50_000)]))
        self.assertGreaterEqual(storage.log_bytes - before_bytes, 40_000)

    def test_write_after_close(self) -> None:
        """After `close`, a write fails at once instead of waiting for ever."""
        storage = self.started()
        self.settle(storage.close())
        self.settle_failure(storage.write([SavePromise(FIRST)]), StorageFailed)

    def test_close_without_recover(self) -> None:
        """Storage that never opened can be closed."""
        self.settle(self.make().close())


class DurableContract(StorageContract):
    """For providers that survive a restart."""

    def test_round_trip(self) -> None:
        """After a restart everything is there: promise, votes, chosen values, how far slots are chosen."""
        storage = self.started()
        storage.write([SavePromise(SECOND), accepted(1), accepted(2), SaveChosen(3, FIRST, value(3))])
        storage.note_chosen(2)
        storage.write([accepted(5, SECOND, 100)])
        _, found = self.restarted(storage)
        self.assertEqual((found.promised, found.chosen_upto, found.fresh), (SECOND, 3, False))
        self.assertEqual(plain(found.entries), {5: (SECOND, bytes(value(5, 100)))})

    def test_chosen_record_is_proof(self) -> None:
        """What is learnt is stored in order: nobody need have noted it, and its ballots need no promise."""
        storage = self.started()
        self.settle(storage.write([SavePromise(FIRST), accepted(1), accepted(7)]))
        high = ProposalID(99, "Z")
        self.settle(storage.write([SaveChosen(slot, high, value(slot)) for slot in (2, 3, 4)]))
        again, found = self.restarted(storage)
        self.assertEqual((found.promised, found.chosen_upto, sorted(found.entries)), (FIRST, 4, [7]))
        self.assertEqual(len(self.settle(again.read_chosen(1, 4, 1000))), 4)

    def test_gap_below_a_chosen_record(self) -> None:
        """A slot that is missing below a learnt one is damage."""
        storage = self.started()
        self.settle(storage.write([SavePromise(FIRST), accepted(1), SaveChosen(3, FIRST, value(3))]))
        self.settle(storage.close())
        error = self.assertRaises(StorageDamaged, self.make().recover, "x", CLUSTER)
        self.assertIn("slot 2 is missing", str(error))

    def test_close_syncs(self) -> None:
        """`close` writes what waits, and what was only noted."""
        storage = self.started()
        storage.write([SavePromise(FIRST), accepted(1)])
        self.settle(storage.write([accepted(2)]))
        storage.note_chosen(2)
        _, found = self.restarted(storage)
        self.assertEqual((found.chosen_upto, found.entries), (2, {}))

    def test_chosen_upto_is_never_ahead(self) -> None:
        """What is noted beyond the stored slots is not believed after a restart."""
        storage = self.started()
        storage.write([SavePromise(FIRST), accepted(1), accepted(3)])
        storage.note_chosen(10)
        _, found = self.restarted(storage)
        self.assertEqual(found.chosen_upto, 1)

    def test_boot_counts_up(self) -> None:
        """Each start has a higher boot, and the incarnation of the first."""
        storage = self.started()
        for boot in (2, 3, 4):
            storage, found = self.restarted(storage)
            self.assertEqual((found.identity.boot, found.identity.incarnation), (boot, "one"))

    def test_identity_round_trip(self) -> None:
        """A saved identity is found again, with the next boot."""
        storage = self.started()
        identity = Identity(
            "A",
            "one",
            CLUSTER,
            boot=1,
            formed=True,
            members={uid: f"incarnation-{uid}" for uid in "ABCDE"},
            boots={"x": (3, "abc")},
        )
        self.settle(storage.write([SaveIdentity(identity)]))
        _, found = self.restarted(storage)
        self.assertEqual(
            (found.identity.members, found.identity.boots), (identity.members, {"x": (3, "abc")})
        )
        self.assertEqual((found.identity.formed, found.identity.boot), (True, 2))

    def test_large_identity(self) -> None:
        """An identity that needs more than one block is kept as well."""
        storage = self.started()
        boots = {f"incarnation-{number:032}": (number, "boot") for number in range(500)}
        self.settle(
            storage.write([SaveIdentity(Identity("A", "one", CLUSTER, boot=1, formed=True, boots=boots))])
        )
        _, found = self.restarted(storage)
        self.assertEqual(found.identity.boots, boots)

    def test_other_uid_is_refused(self) -> None:
        """Another node's storage is refused, and says whose it is."""
        self.settle(self.started().close())
        error = self.assertRaises(StorageForeign, self.make("B").recover, "x", CLUSTER)
        self.assertIn("'A'", str(error))
        self.assertNotIsInstance(error, StorageDamaged)

    def test_other_cluster_is_refused(self) -> None:
        """Another cluster's storage is refused; after that the right one opens it."""
        self.settle(self.started().close())
        self.assertRaises(StorageForeign, self.make().recover, "x", "other")
        self.assertEqual(self.make().recover("x", CLUSTER).identity.boot, 2)

    def test_set_aside(self) -> None:
        """What was set aside is not found again; new storage in its place knows that it was lost."""
        storage = self.started()
        self.settle(storage.write([SavePromise(FIRST), accepted(1)]))
        self.assertRaises(StorageLocked, self.make().set_aside)
        self.settle(storage.close())
        where = storage.set_aside()
        self.assertTrue(where.endswith(".set-aside"))
        again = self.make()
        found = again.recover("two", CLUSTER, lost=True)
        self.assertEqual((found.identity.incarnation, found.identity.lost, found.fresh), ("two", True, True))
        self.assertEqual((found.promised, found.entries), (NO_BALLOT, {}))
        self.settle(again.close())
        self.assertTrue(self.make().recover("three", CLUSTER).identity.lost)

    def test_set_aside_twice(self) -> None:
        """What was kept before is replaced; nothing is there to be moved is no error."""
        self.make().set_aside()
        for _ in range(2):
            self.settle(self.started().close())
            self.make().set_aside()
        self.assertTrue(self.make().recover("x", CLUSTER).fresh)

    def test_set_aside_is_remembered(self) -> None:
        """A process that dies after `set_aside`, before `recover`, leaves a trace: the storage was lost."""
        self.settle(self.started().close())
        self.make().set_aside()
        self.assertTrue(self.make().recover("two", CLUSTER).identity.lost)

    def test_set_aside_spares_others(self) -> None:
        """Storage of another node or cluster is in order, and stays where it is."""
        self.settle(self.started().close())
        self.assertRaises(StorageError, self.make("B").set_aside)
        other = self.make()
        self.assertRaises(StorageForeign, other.recover, "x", "other")
        self.assertRaises(StorageError, other.set_aside)
        self.assertEqual(self.make().recover("x", CLUSTER).identity.boot, 2)

    def test_second_open_is_refused(self) -> None:
        """While one has it open, a second one is refused; once it is closed, not."""
        storage = self.started()
        error = self.assertRaises(StorageLocked, self.make().recover, "x", CLUSTER)
        self.assertIn("runs already", str(error))
        self.settle(storage.write([SavePromise(FIRST)]))
        _, found = self.restarted(storage)
        self.assertEqual(found.promised, FIRST)

    def test_many_slots_in_any_order(self) -> None:
        """Slots written in any order, over several groups, read back in order."""
        storage = self.started()
        storage.write([SavePromise(FIRST)])
        slots = [(7 * number) % 100 + 1 for number in range(100)]
        for slot in slots:
            last = storage.write([accepted(slot)])
            if slot % 10 == 0:
                self.settle(last)
        again, found = self.restarted(storage)
        self.assertEqual(sorted(found.entries), list(range(1, 101)))
        read = self.settle(again.read_chosen(1, 100, 1 << 20))
        self.assertEqual(
            [bytes(entry.value) for entry in read], [bytes(value(slot)) for slot in range(1, 101)]
        )
