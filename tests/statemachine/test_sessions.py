"""`statemachine.sessions`: a command that is tried again applies once."""

from __future__ import annotations

from unittest.mock import patch

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core import limits
from twisted_paxos.core.messages import Command
from twisted_paxos.statemachine.commands import OPEN_SESSION, Result
from twisted_paxos.statemachine.sessions import EXPIRED, FULL, REPEATED, TOO_MANY, SavedSession, Sessions

DATA = Raw(b'"done"')


def command(sequence: int, floor: int = 1, client: str = "c") -> Command:
    """A command of a session."""
    return Command(client, sequence, floor, Raw(b'"v"'))


def opening(client: str = "c") -> Command:
    """The command that opens a session."""
    return Command(client, 0, 0, OPEN_SESSION)


class SessionsCase(SynchronousTestCase):
    """Sessions that forget after a second of log time."""

    def setUp(self) -> None:
        self.sessions = Sessions(idle_ms=1_000)
        self.slot = 0

    def apply(self, one: Command) -> Result:
        """Apply in the next slot; the state machine answers ``DATA``."""
        self.slot += 1
        result = self.sessions.admit(one, self.slot, 0)
        if result is None:
            self.sessions.remember(one, self.slot, 0, DATA)
            result = Result(one.client, one.sequence, self.slot, 0, "", DATA)
        return result

    def applies(self, one: Command) -> bool:
        """Whether it applies now."""
        before = self.slot
        return self.apply(one).slot == before + 1 and one.sequence > 0


class OnceTests(SessionsCase):
    """Rule 9, at apply."""

    def test_rule9RepetitionGetsTheFirstResult(self) -> None:
        """Rule 9: the second time nothing applies, and the result is the first one's, data included."""
        self.apply(opening())
        first = self.apply(command(1))
        self.assertEqual(first, Result("c", 1, 2, 0, "", DATA))
        self.assertEqual(self.apply(command(1)), first)
        self.assertEqual(self.sessions.admit(command(1), 9, 0), first)

    def test_outOfOrder(self) -> None:
        """Pipelined commands may arrive in any order; each applies once."""
        self.apply(opening())
        self.assertEqual(
            [self.applies(command(number)) for number in (3, 1, 2, 1, 3)], [True, True, True, False, False]
        )

    def test_unknownSessionIsAnError(self) -> None:
        """A session is never created silently: its commands could have been applied already."""
        self.assertEqual(self.apply(command(1)).error, EXPIRED)
        self.assertEqual(len(self.sessions), 0)

    def test_openingTwiceIsOnce(self) -> None:
        """An opening that is tried again keeps what the session remembers."""
        self.apply(opening())
        self.apply(command(1))
        self.apply(opening())
        self.assertFalse(self.applies(command(1)))

    def test_sessionsAreApart(self) -> None:
        """The same number of another client is another command."""
        self.apply(opening())
        self.apply(opening("d"))
        self.assertEqual([self.applies(command(1)), self.applies(command(1, client="d"))], [True, True])

    def test_floorForgetsWhatTheClientHas(self) -> None:
        """Below the floor results are gone: a late repetition is told so, and applies nothing."""
        self.apply(opening())
        for number in range(1, 6):
            self.apply(command(number))
        self.apply(command(6, floor=4))
        self.assertEqual([self.apply(command(number)).error for number in (3, 4)], [REPEATED, ""])

    def test_floorMayJumpFar(self) -> None:
        """A floor far ahead costs what is remembered, not the distance."""
        self.apply(opening())
        self.apply(command(1))
        self.assertTrue(self.applies(command(10**15, floor=10**15)))
        self.assertEqual(self.apply(command(1)).error, REPEATED)

    def test_floorNeverGoesBack(self) -> None:
        """A late command with a lower floor does not lower it."""
        self.apply(opening())
        self.apply(command(5, floor=5))
        self.apply(command(6, floor=1))
        self.assertEqual(self.apply(command(4)).error, REPEATED)


class BoundTests(SessionsCase):
    """Limits, and log time."""

    def test_expiresByLogTime(self) -> None:
        """A session that sent nothing for long enough is forgotten; use keeps it."""
        self.apply(opening("idle"))
        self.apply(opening("busy"))
        self.sessions.advance(900)
        self.apply(command(1, client="busy"))
        self.sessions.advance(1_000)
        self.assertEqual(self.apply(command(2, client="idle")).error, EXPIRED)
        self.assertEqual(self.apply(command(2, client="busy")).error, "")

    def test_logTimeNeverGoesBack(self) -> None:
        """A no-op's stamp of 0, or an older one, changes nothing."""
        self.sessions.advance(500)
        self.sessions.advance(0)
        self.assertEqual(self.sessions.log_time_ms, 500)

    def test_resultsAreBounded(self) -> None:
        """A client that never raises its floor is refused beyond the limit."""
        self.apply(opening())
        with patch.object(limits, "SESSION_RESULTS_MAX", 2):
            errors = [self.apply(command(number)).error for number in (1, 2, 3)]
        self.assertEqual(errors, ["", "", FULL])

    def test_sessionsAreBounded(self) -> None:
        """Beyond the limit no session opens; an open one can be opened again."""
        with patch.object(limits, "SESSIONS_MAX", 1):
            errors = [self.apply(opening(client)).error for client in ("c", "d", "c")]
        self.assertEqual(errors, ["", TOO_MANY, ""])


class SnapshotTests(SessionsCase):
    """Sessions are part of snapshots."""

    def saved(self) -> list[SavedSession]:
        """All of a snapshot."""
        _, groups = self.sessions.snapshot(2)
        found = [one for group in groups for one in group]
        self.sessions.end_snapshot()
        return found

    def test_repetitionIsKnownAfterwards(self) -> None:
        """Rule 9 over a snapshot: loaded elsewhere, a repetition still gets the first result."""
        self.apply(opening())
        first = self.apply(command(1))
        other = Sessions(idle_ms=1_000)
        other.load(self.saved())
        self.assertEqual(other.admit(command(1), 99, 0), first)

    def test_frozenWhileItIsWritten(self) -> None:
        """What applies between two groups does not show in a snapshot that has begun."""
        for client in "abcd":
            self.apply(opening(client))
        count, groups = self.sessions.snapshot(2)
        next(groups)
        self.apply(command(1, client="d"))
        self.sessions.advance(5_000)
        (c, d) = next(groups)
        self.assertEqual((count, c.results, d.results, d.client), (2, (), (), "d"))
        self.assertEqual(len(self.sessions), 0)

    def test_orderOfUseIsKept(self) -> None:
        """Loaded sessions expire in the same order as before."""
        for client in "ab":
            self.apply(opening(client))
        self.sessions.advance(500)
        self.apply(command(1, client="a"))
        other = Sessions(idle_ms=1_000, log_time_ms=500)
        other.load(self.saved())
        other.advance(1_200)
        self.assertEqual([one.client for one in self.saved()], ["b", "a"])
        expired = other.admit(command(2, client="b"), 9, 0)
        self.assertEqual(expired and expired.error, EXPIRED)
        self.assertIsNone(other.admit(command(2, client="a"), 9, 0))
