"""`core.log`: the moving part of the log."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.core.transcript import ballot, entries, entry, value
from twisted_paxos.core.log import Log


class LogTests(SynchronousTestCase):
    """Entries above chosen_upto."""

    def test_movesOverChosenSlotsOnly(self) -> None:
        """It stops at the first slot that is not known as chosen."""
        log = Log(entries=entries(s1=("1.A", 1), s2=("1.A", 2), s3=("1.A", 3)))
        log.mark_chosen(1, ballot("1.A"))
        log.mark_chosen(3, ballot("1.A"))
        moved, unsaved = log.advance()
        self.assertEqual(moved, [entry(1, "1.A", 1)])
        self.assertEqual(unsaved, [])
        self.assertEqual((log.chosen_upto, log.highest_chosen, log.highest), (1, 3, 3))

    def test_entryBelowTheChosenBallotIsNotTheValue(self) -> None:
        """P2b speaks of ballots at or above the chosen one only."""
        log = Log(entries=entries(s1=("1.A", 1)))
        log.mark_chosen(1, ballot("2.B"))
        self.assertEqual(log.advance(), ([], []))

    def test_entryAboveTheChosenBallotIsTheValue(self) -> None:
        """Whatever was proposed above a chosen ballot is the same value."""
        log = Log(entries=entries(s1=("3.C", 1)))
        log.mark_chosen(1, ballot("2.B"))
        self.assertEqual(log.advance()[0], [entry(1, "3.C", 1)])

    def test_lowestChosenBallotCounts(self) -> None:
        """Chosen at two ballots: the lower one lets more entries stand for it."""
        log = Log(entries=entries(s1=("2.B", 1)))
        log.mark_chosen(1, ballot("3.C"))
        log.mark_chosen(1, ballot("2.B"))
        self.assertEqual(len(log.advance()[0]), 1)

    def test_tellsWhatStorageLacks(self) -> None:
        """Entries that were only heard are told apart, so that they can be saved."""
        log = Log()
        log.put(1, ballot("1.A"), value(1), saved=False)
        log.put(2, ballot("1.A"), value(2), saved=True)
        for slot in (1, 2):
            log.mark_chosen(slot, ballot("1.A"))
        moved, unsaved = log.advance()
        self.assertEqual(([e.slot for e in moved], [e.slot for e in unsaved]), ([1, 2], [1]))
        self.assertEqual((log.bytes, log.entries, log.unsaved), (0, {}, set()))

    def test_chosenIsFinal(self) -> None:
        """Nothing can be put where the log has moved on."""
        self.assertRaises(AssertionError, Log(5).put, 5, ballot("1.A"), value(1), True)

    def test_refusesEntriesBelowChosenUpto(self) -> None:
        """Storage that hands out entries at or below chosen_upto is wrong."""
        self.assertRaises(AssertionError, Log, 1, 1, entries(s1=("1.A", 1)))

    def test_marksBelowAreNothingNew(self) -> None:
        """A mark for a slot that is behind leaves no trace."""
        log = Log(5)
        log.mark_chosen(4, ballot("1.A"))
        self.assertEqual(log.highest_chosen, 5)
