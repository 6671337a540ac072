"""`core.spreading`: a majority first, the others with the word that it is chosen."""

from __future__ import annotations

from unittest.mock import patch

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, entry, lines
from twisted_paxos.core import limits
from twisted_paxos.core.effects import EVERYONE
from twisted_paxos.core.spreading import (
    SHARE_LATE_S,
    SHARE_S,
    SURVEY_S,
    TELL_S,
    WARY_SLOTS,
    Spreading,
)
from twisted_paxos.core.timing import LARGE_BYTES

NEAR = ("A", "B")
"""Where an Accept goes once B is known to be the nearest."""


class SpreadingCase(SynchronousTestCase):
    """Node A leads A, B and C with ballot 1.A; B is the nearest."""

    def setUp(self) -> None:
        self.spreading = Spreading("A")
        self.spreading.start(0)
        self.accept(0, 0)
        self.spreading.answered({"A", "B"})
        self.spreading.accept_to(1, Raw(b"x"), 0, 0.0, False)

    def accept(self, slot: int, upto: int, now_s: float = 0.1, awaited: bool = False) -> tuple[str, ...]:
        """Propose ``slot`` when everything up to ``upto`` is chosen."""
        return self.spreading.accept_to(slot, entry(slot, "1.A", slot).value, upto, now_s, awaited)

    def tell(self, upto: int, now_s: float = 0.1, busy: bool = True) -> list[str]:
        """What is told when everything up to ``upto`` is chosen."""
        return lines(self.spreading.tell(ballot("1.A"), upto, now_s, busy))

    def share(self, upto: int) -> list[str]:
        """What is told when nothing more is proposed."""
        return self.tell(upto) + self.tell(upto, 0.1 + TELL_S)


class NearestTests(SpreadingCase):
    """Who gets an Accept at once."""

    def test_allAreAskedFirst(self) -> None:
        """A new leader knows nothing of distances."""
        self.spreading.start(7)
        self.assertEqual(self.accept(8, 7), EVERYONE)
        self.assertEqual(self.accept(9, 7), EVERYONE)

    def test_thenTheNearest(self) -> None:
        """The first majority that answered is asked, and nobody else."""
        self.assertEqual(self.accept(2, 1), NEAR)
        self.spreading.answered({"A", "C"})
        self.assertEqual(self.accept(3, 2), EVERYONE, "B alone has slot 2: first it must be shared")
        self.share(3)
        self.assertEqual(self.accept(4, 3), ("A", "C"))

    def test_ownDiskIsTheSlowest(self) -> None:
        """When the others were faster than the leader itself, no vote of theirs can be done without."""
        self.spreading.answered({"B", "C"})
        self.assertEqual(self.accept(2, 1), EVERYONE)
        self.spreading.answered({"A", "C"})
        self.share(2)
        self.assertEqual(self.accept(3, 2), ("A", "C"))

    def test_nowAndThenAllAreAsked(self) -> None:
        """Distances change: one slot a second goes to all."""
        self.assertEqual(self.accept(2, 1, SURVEY_S), EVERYONE)
        self.assertEqual(self.accept(3, 2, SURVEY_S), NEAR)
        self.assertEqual(self.accept(4, 3, 2 * SURVEY_S), EVERYONE)

    def test_afterSilenceAllAreAsked(self) -> None:
        """One Accept that was not answered in time costs one wait, not many."""
        self.spreading.unanswered()
        sent = [self.accept(slot, slot - 1) for slot in range(2, WARY_SLOTS + 3)]
        self.assertEqual(sent, [EVERYONE] * WARY_SLOTS + [NEAR])

    def test_whoeverWaitsIsAsked(self) -> None:
        """A command of another node's client, and what follows until it is told, goes to all."""
        self.assertEqual(self.accept(2, 1, awaited=True), EVERYONE)
        self.assertEqual(self.accept(3, 1), EVERYONE)
        self.share(2)
        self.assertEqual(self.accept(4, 2), NEAR)

    def test_largeValuesGoToAll(self) -> None:
        """What no datagram holds goes by TCP: to wait for its time-out would take long."""
        large = Raw(b"x" * (LARGE_BYTES + 1))
        self.assertEqual(self.spreading.accept_to(2, large, 1, 0.1, False), EVERYONE)

    def test_fiveVoters(self) -> None:
        """Two others and the leader are a majority of five."""
        self.spreading.answered({"A", "C", "E"})
        self.share(1)
        self.assertEqual(self.accept(2, 1), ("A", "C", "E"))


class ShareTests(SpreadingCase):
    """When the others hear of it."""

    def setUp(self) -> None:
        super().setUp()
        self.accept(2, 1)
        self.accept(3, 1)

    def test_manySlotsInOneMessage(self) -> None:
        """Beside an Accept, once the oldest has waited long enough; the nearest needs no word of its own."""
        self.assertEqual(self.tell(2), [])
        self.accept(4, 3, 0.1)
        self.assertEqual(self.tell(3, 0.1 + SHARE_S / 2), [])
        told = self.tell(3, 0.1 + SHARE_S)
        self.assertEqual(told, ["to others but B: Commit 1.A upto 3 [2=1.A:v2 3=1.A:v3]"])
        self.assertEqual(self.tell(3, 0.1 + SHARE_S), [])

    def test_clientsComeFirst(self) -> None:
        """When nothing is under way, a client waits for what was just chosen: sharing waits a little more."""
        self.tell(2)
        self.accept(4, 2, 0.1)
        self.assertEqual(self.tell(2, 0.1 + SHARE_S, busy=False), [])
        self.assertEqual(self.spreading.deadline_s, 0.1 + SHARE_LATE_S)
        self.assertEqual(len(self.tell(2, 0.1 + SHARE_LATE_S, busy=False)), 1)

    def test_onlyWhatIsChosen(self) -> None:
        """Rule 6: what is still on its way is not shared; it follows when it is chosen."""
        self.spreading.awaited(3)
        self.assertEqual(
            self.tell(2), ["to B: Commit 1.A upto 2", "to others but B: Commit 1.A upto 2 [2=1.A:v2]"]
        )
        self.assertEqual(
            self.tell(3), ["to B: Commit 1.A upto 3", "to others but B: Commit 1.A upto 3 [3=1.A:v3]"]
        )

    def test_silenceTellsAll(self) -> None:
        """When no Accept leaves for a moment, nearest and others hear it."""
        self.assertEqual(self.tell(3), [])
        self.assertEqual(self.spreading.deadline_s, 0.1 + TELL_S)
        told = self.share(3)
        self.assertEqual([line.partition(":")[0] for line in told], ["to B", "to others but B"])
        self.assertIsNone(self.spreading.deadline_s)

    def test_nothingSparedNothingCarried(self) -> None:
        """Who got every Accept needs no values; one Commit is for all."""
        self.share(3)
        self.spreading.unanswered()
        self.accept(4, 3)
        self.assertEqual(self.share(4), ["to others: Commit 1.A upto 4"])

    def test_anAcceptToAllTellsAll(self) -> None:
        """With nothing left to share it says what is chosen, and no time is due any more."""
        self.share(3)
        self.spreading.unanswered()
        self.accept(4, 3)
        self.tell(4)
        self.accept(5, 4)
        self.assertEqual((self.tell(4, 1.0), self.spreading.deadline_s), ([], None))

    def test_whoWaitsForAnOldSlotIsTold(self) -> None:
        """The nearest heard of it by an Accept; the one that asks did not."""
        self.accept(4, 3)
        self.spreading.awaited(2)
        told = self.tell(3)
        self.assertEqual(told, ["to others but B: Commit 1.A upto 3 [2=1.A:v2 3=1.A:v3]"])

    def test_manyBytesDoNotWait(self) -> None:
        """More than a datagram is shared as soon as it is chosen, in messages that fit datagrams."""
        size = len(entry(2, "1.A", 2).value)
        with patch.object(limits, "BATCH_TARGET_BYTES", size):
            told = self.tell(3)
        self.assertEqual(
            told,
            [
                "to others but B: Commit 1.A upto 2 [2=1.A:v2]",
                "to others but B: Commit 1.A upto 3 [3=1.A:v3]",
            ],
        )

    def test_afterTheLeadershipNothing(self) -> None:
        """Rule 4: whoever gave way shares nothing."""
        self.spreading.stop()
        self.spreading.start(0)
        self.assertEqual(self.tell(0, 9.0), [])
        self.assertIsNone(self.spreading.deadline_s)
