"""The linearizability checker, on histories whose verdict is known."""

from __future__ import annotations

import math
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.testing.linearizability import EMPTY, Call, find_violation


def read(gave: str, start_s: float, end_s: float) -> Call:
    """A read."""
    return Call(start_s, end_s, "", gave)


def swap(value: str, gave: str | None, start_s: float, end_s: float = math.inf) -> Call:
    """A write that gave the value before it; of unknown outcome when that is None."""
    return Call(start_s, end_s, value, gave)


class KnownHistories(SynchronousTestCase):
    """Histories from the textbook."""

    def good(self, *calls: Call) -> None:
        """It is linearizable."""
        self.assertEqual("", find_violation(calls))

    def bad(self, *calls: Call) -> None:
        """It is not."""
        self.assertNotEqual("", find_violation(calls))

    def test_empty(self) -> None:
        """Nothing happened."""
        self.good()

    def test_in_turn(self) -> None:
        """One after the other, each sees the one before."""
        self.good(read(EMPTY, 0, 1), swap("a", EMPTY, 2, 3), swap("b", "a", 4, 5), read("b", 6, 7))

    def test_stale_read(self) -> None:
        """A read that begins after a write has ended does not see what was before it."""
        self.bad(swap("a", EMPTY, 0, 1), read(EMPTY, 2, 3))

    def test_concurrent_read(self) -> None:
        """A read beside a write sees either."""
        self.good(swap("a", EMPTY, 0, 3), read(EMPTY, 1, 2))
        self.good(swap("a", EMPTY, 0, 3), read("a", 1, 2))

    def test_reads_go_back(self) -> None:
        """Of two reads in turn beside one write, the second does not see the older value."""
        self.bad(swap("a", EMPTY, 0, 9), read("a", 1, 2), read(EMPTY, 3, 4))
        self.good(swap("a", EMPTY, 0, 9), read(EMPTY, 1, 2), read("a", 3, 4))

    def test_lost_write(self) -> None:
        """Two writes that both replaced the same value: one of them is lost."""
        self.bad(swap("a", EMPTY, 0, 1), swap("b", EMPTY, 0, 1))

    def test_unknown_outcome(self) -> None:
        """It may happen late, or never, but only once and not before its start."""
        unknown = swap("a", None, 1)
        self.good(unknown, read(EMPTY, 2, 3))
        self.good(unknown, read(EMPTY, 2, 3), read("a", 4, 5))
        self.bad(unknown, read("a", 2, 3), read(EMPTY, 4, 5))
        self.bad(read("a", 0, 0.5), unknown)
        self.bad(unknown, read("a", 2, 3), swap("b", "a", 4, 5), read("a", 6, 7))

    def test_unknown_compare_and_swap(self) -> None:
        """It needs its value: without that it has no effect, whenever it comes."""
        unknown = Call(1, math.inf, "b", None, "a")
        self.good(swap("a", EMPTY, 0, 2), unknown, read("b", 4, 5))
        self.good(swap("a", EMPTY, 0, 2), unknown, read("a", 4, 5))
        self.bad(unknown, read("b", 4, 5))
        self.bad(swap("a", EMPTY, 0, 0.5), swap("c", "a", 0.6, 0.7), unknown, read("b", 4, 5))

    def test_value_from_nowhere(self) -> None:
        """What nobody wrote is not read."""
        self.bad(read("z", 0, 1))

    def test_unknown_reads_say_nothing(self) -> None:
        """A read without an answer constrains nothing."""
        self.good(Call(0, math.inf, "", None), swap("a", EMPTY, 1, 2), read("a", 3, 4))

    def test_many_unknown(self) -> None:
        """Many writes of unknown outcome cost little, whether the history is good or not."""
        lost = [swap(f"u{n}", None, 0) for n in range(60)]
        self.good(*lost, read("u7", 1, 2), swap("x", "u7", 3, 4), read("u9", 5, 6))
        self.bad(*lost, read("u7", 1, 2), swap("x", "u7", 3, 4), read("u7", 5, 6))


def brute_force(calls: list[Call]) -> bool:
    """By the definition: try every order of every choice of the unknown calls."""
    known = [call for call in calls if call.gave is not None]
    unknown = [call for call in calls if call.gave is None and call.writes]
    for choice in range(1 << len(unknown)):
        taken = known + [call for number, call in enumerate(unknown) if choice >> number & 1]
        if any(explains(order) for order in permutations(taken)):
            return True
    return False


def explains(order: tuple[Call, ...]) -> bool:
    """Whether this order keeps to real time and to what a register does."""
    state = EMPTY
    for place, call in enumerate(order):
        if any(later.end_s < call.start_s for later in order[place + 1 :]):
            return False
        if call.gave is not None and call.gave != state:
            return False
        state = call.writes or state
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Short histories of few values, half of them nearly right."""
    calls = []
    for number in range(draw(st.integers(0, 5))):
        start_s = draw(st.integers(0, 8))
        end_s = start_s + draw(st.integers(0, 4))
        gave = draw(st.sampled_from([EMPTY, "w0", "w1", "w2"]))
        kind = draw(st.sampled_from(["read", "swap", "unknown"]))
        if kind == "read":
            calls.append(Call(start_s, end_s, "", gave))
        else:
            outcome = (end_s, gave) if kind == "swap" else (math.inf, None)
            calls.append(Call(start_s, outcome[0], f"w{number}", outcome[1]))
    return calls


class AgainstBruteForce(SynchronousTestCase):
    """The checker and the definition agree."""

    @settings(max_examples=300, deadline=None)
    @given(histories())
    def test_agree(self, calls: list[Call]) -> None:
        """On random histories."""
        self.assertEqual(brute_force(calls), find_violation(calls) == "")
