"""Each check finds what it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.log import Log
from twisted_paxos.core.messages import (
    Accept,
    Accepted,
    Command,
    Confirm,
    Confirmed,
    Entry,
    Promise,
    ReadAt,
    ReadRequest,
    Sender,
    SlotEntry,
    encode_value,
)
from twisted_paxos.core.records import Identity, Recovered, SaveAccepted, SaveIdentity, SavePromise
from twisted_paxos.statemachine.commands import encode_opaque
from twisted_paxos.statemachine.replicated import ReplicatedState
from twisted_paxos.testing.checks import Checks, LogWatch
from twisted_paxos.testing.history import Op
from twisted_paxos.testing.registers import Registers, encode_write

ONE, TWO = ProposalID(1, "A"), ProposalID(2, "B")
MEMBERS = {uid: f"{uid}1" for uid in "ABC"}
LIVES = {uid: Sender(uid, f"{uid}1", 1, "x") for uid in "ABC"}


def value(name: str, key: str = "k") -> Raw:
    """A slot's value with one write."""
    return encode_value(0, [Command("c", 1, 1, encode_opaque(encode_write(name, key)))])


class ChecksTests(SynchronousTestCase):
    """A formed cluster of three, told by hand."""

    def setUp(self) -> None:
        """Three nodes, each formed."""
        self.stoppable: set[str] = set()
        self.checks = Checks("ABC", "ABC", lambda command: True, lambda uid: uid in self.stoppable)
        for life in LIVES.values():
            self.checks.recovered(life, self.recovered(life))
            self.checks.written(life, [SaveIdentity(self.identity(life))])

    def identity(self, life: Sender) -> Identity:
        """Of a formed node."""
        sets = ((1, MEMBERS),)
        return Identity(life.uid, life.incarnation, "x", life.boot, formed=True, members=MEMBERS, sets=sets)

    def recovered(self, life: Sender, **stored: Any) -> Recovered:
        """What a node finds."""
        return Recovered(identity=self.identity(life), **stored)

    def vote(self, uids: str, slot: int, ballot: ProposalID, what: Raw) -> None:
        """These nodes store a vote."""
        for uid in uids:
            self.checks.written(LIVES[uid], [SavePromise(ballot), SaveAccepted(slot, ballot, what)])

    def found(self, check: str, text: str) -> None:
        """This was found."""
        assert self.checks.violation is not None
        self.assertEqual(check, self.checks.violation[0], self.checks.violation[1])
        self.assertIn(text, self.checks.violation[1])

    def test_nothing(self) -> None:
        """What is right is not reported."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.chosen("C", [SlotEntry(1, ONE, value("v"))])
        self.checks.sent(LIVES["A"], Accepted(ONE, (1,)))
        self.checks.recovered(LIVES["A"], self.recovered(LIVES["A"], promised=ONE, chosen_upto=1))
        self.checks.finish([Op("k", "v", 1.0, 2.0, "done", 1, 0)])
        self.assertIsNone(self.checks.violation)

    def test_two_values(self) -> None:
        """Two values of one slot have a majority."""
        self.vote("AB", 1, ONE, value("v"))
        self.vote("BC", 1, TWO, value("w"))
        self.found("rules", "two chosen values")

    def test_unknown_incarnation(self) -> None:
        """The vote of an incarnation that is no member does not make a majority."""
        self.vote("A", 1, ONE, value("v"))
        stranger = Sender("B", "B2", 1, "x")
        self.checks.disks["B"].incarnation = "B2"
        self.checks.written(stranger, [SavePromise(ONE), SaveAccepted(1, ONE, value("v"))])
        self.checks.chosen("C", [SlotEntry(1, ONE, value("v"))])
        self.found("one value", "not chosen")

    def test_applied_too_early(self) -> None:
        """A node takes for chosen what has one vote."""
        self.vote("A", 1, ONE, value("v"))
        self.checks.chosen("A", [SlotEntry(1, ONE, value("v"))])
        self.found("one value", "not chosen")

    def test_value_of_a_lower_ballot(self) -> None:
        """What was accepted below the ballot that chose it is not taken, though the value is the same."""
        self.vote("AB", 1, TWO, value("v"))
        self.checks.chosen("C", [SlotEntry(1, ONE, value("v"))])
        self.found("rule 5", "chosen at 2.B")

    def test_storage_has_another(self) -> None:
        """Storage gives another value than the chosen one."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.stored_read("C", [SlotEntry(1, ONE, value("w"))])
        self.found("one value", "chosen is")

    def test_reply_without_storage(self) -> None:
        """An Accepted leaves before its vote is stored."""
        self.vote("A", 1, ONE, value("v"))
        self.checks.sent(LIVES["B"], Accepted(ONE, (1,)))
        self.found("rule 1", "its disk has")

    def test_promise_goes_back(self) -> None:
        """A lower promise is saved over a higher one."""
        self.checks.written(LIVES["A"], [SavePromise(TWO)])
        self.checks.written(LIVES["A"], [SavePromise(ONE)])
        self.found("promise", "after 2.B")

    def test_vote_above_promise(self) -> None:
        """A vote is saved whose ballot is not."""
        self.checks.written(LIVES["A"], [SaveAccepted(1, ONE, value("v"))])
        self.found("rule 4", "its promise is -")

    def test_forgotten_promise(self) -> None:
        """A start finds less than what was durable."""
        self.checks.written(LIVES["A"], [SavePromise(TWO)])
        self.checks.recovered(LIVES["A"], self.recovered(LIVES["A"], promised=ONE))
        self.found("durable", "promised 2.B")

    def test_forgotten_vote(self) -> None:
        """A vote is gone at the next start."""
        self.vote("A", 1, ONE, value("v"))
        self.checks.recovered(LIVES["A"], self.recovered(LIVES["A"], promised=ONE))
        self.found("durable", "stored slot 1")

    def test_kept_vote(self) -> None:
        """A vote that is there, at a later ballot even, is fine."""
        self.vote("A", 1, ONE, value("v"))
        entries = {1: Entry(TWO, value("v"))}
        self.checks.recovered(LIVES["A"], self.recovered(LIVES["A"], promised=TWO, entries=entries))
        self.assertIsNone(self.checks.violation)

    def test_lost_storage(self) -> None:
        """A new incarnation needs a reason."""
        new = Sender("A", "A2", 1, "x")
        self.checks.recovered(new, self.recovered(new))
        self.found("durable", "no fault explains it")

    def test_damaged_storage(self) -> None:
        """Damage is one."""
        self.checks.disks["A"].damaged = True
        new = Sender("A", "A2", 1, "x")
        self.checks.recovered(new, self.recovered(new))
        self.assertIsNone(self.checks.violation)

    def test_vote_of_a_stranger(self) -> None:
        """An incarnation that is no member votes."""
        stranger = Sender("B", "B2", 1, "x")
        self.checks.disks["B"].damaged = True
        self.checks.recovered(stranger, self.recovered(stranger, promised=ONE))
        self.checks.sent(stranger, Promise(ONE, 1, 0, 1, 0, ()))
        self.found("rule 5", "no member")

    def test_voters_that_nobody_chose(self) -> None:
        """A node stores a change of voters that is not chosen."""
        identity = msgspec.structs.replace(
            self.identity(LIVES["A"]), sets=((1, MEMBERS), (9, {**MEMBERS, "B": "B2"}))
        )
        self.checks.written(LIVES["A"], [SaveIdentity(identity)])
        self.found("rule 5", "nobody chose")

    def test_noted(self) -> None:
        """What is stored may be noted as chosen, and read; so may what a snapshot stands for."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.noted(LIVES["A"], 1, 0)
        self.checks.asked(LIVES["A"], 1, 0)
        self.checks.noted(LIVES["C"], 1, 1)
        self.checks.asked(LIVES["C"], 1, 1)
        self.assertIsNone(self.checks.violation)

    def test_noted_too_early(self) -> None:
        """A slot is noted as chosen while its disk has nothing of it."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.noted(LIVES["C"], 1, 0)
        self.found("rule 7", "notes slot 1")

    def test_older_value_is_noted(self) -> None:
        """A slot is noted as chosen while its disk has a value that was not."""
        self.vote("C", 1, ONE, value("w"))
        self.vote("AB", 1, TWO, value("v"))
        self.checks.noted(LIVES["C"], 1, 0)
        self.found("rule 7", "notes slot 1")

    def test_read_too_early(self) -> None:
        """A slot is read from storage as chosen before it is noted there."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.asked(LIVES["A"], 1, 0)
        self.found("rule 7", "reads slot 1")

    def test_snapshot_keeps_votes(self) -> None:
        """A vote above a snapshot is still known when that was installed."""
        self.vote("A", 5, ONE, value("v"))
        log = Log(4, 5, {5: Entry(ONE, value("v"))})
        self.checks.installed(LIVES["A"], 4, log)
        self.assertIsNone(self.checks.violation)
        log.entries.clear()
        self.checks.installed(LIVES["A"], 4, log)
        self.found("rule 7", "forgets its vote in slot 5")

    def leads(self, slot: int, what: Raw, *votes: SlotEntry, upto: int = 0) -> None:
        """A proposes at ballot 3 after promises of A, B and C; B and C report what they voted."""
        at = ProposalID(3, "A")
        self.checks.written(LIVES["A"], [SavePromise(at)])
        for uid, reported in zip("ABC", ((), *((vote,) for vote in votes), (), ()), strict=False):
            self.checks.took(LIVES["A"], LIVES[uid], Promise(at, 1, 0, 1, 0, reported))
        self.checks.sent(LIVES["A"], Accept(at, slot, what, upto))

    def test_highest_ballot(self) -> None:
        """A leader takes the value of the highest ballot reported; its own where a majority reports none."""
        self.leads(1, value("w"), SlotEntry(1, ONE, value("v")), SlotEntry(1, TWO, value("w")))
        self.assertIsNone(self.checks.violation)
        self.setUp()
        self.leads(1, value("new"), SlotEntry(2, ONE, value("v")))
        self.assertIsNone(self.checks.violation)

    def test_lower_ballot(self) -> None:
        """A leader proposes what no majority of promises allows."""
        reported = (SlotEntry(1, ONE, value("v")), SlotEntry(1, TWO, value("w")))
        self.leads(1, value("new"), *reported)
        self.found("rule 3", "slot 1")

    def test_gap(self) -> None:
        """A leader proposes in slot 2, and nothing in slot 1."""
        self.leads(2, value("v"))
        self.found("rule 3", "leaves slot 1 empty")

    def read(self, *events: str) -> None:
        """Leader A does these: takes a read of B, asks, takes the answers of C and of itself, answers B."""
        a, b, c = LIVES.values()
        does: dict[str, Callable[[], None]] = {
            "read": lambda: self.checks.took(a, b, ReadRequest(1, "x")),
            "ask": lambda: self.checks.sent(a, Confirm(ONE, 1)),
            "own answer": lambda: self.checks.took(a, a, Confirmed(ONE, 1)),
            "answer": lambda: self.checks.took(a, c, Confirmed(ONE, 1)),
            "done": lambda: self.checks.sent(a, ReadAt(1, 7, "x")),
        }
        for event in events:
            does[event]()

    def test_confirmed_read(self) -> None:
        """A read is answered when a majority answered what was asked after it."""
        self.read("read", "ask", "own answer", "answer", "done")
        self.assertIsNone(self.checks.violation)

    def test_unconfirmed_reads(self) -> None:
        """It is not before; nor when the question was asked before the read came."""
        for events in (
            ("read", "done"),
            ("read", "ask", "answer", "done"),
            ("ask", "read", "own answer", "answer", "done"),
            ("ask", "own answer", "answer", "done"),
        ):
            self.setUp()
            self.read(*events)
            self.found("confirmed", "unconfirmed")

    def test_older_copy_is_heard(self) -> None:
        """A start from an older copy of a directory must not be listened to."""
        self.checks.disks["A"].older_copy = True
        self.checks.recovered(LIVES["A"], self.recovered(LIVES["A"]))
        self.checks.started(LIVES["A"])
        self.checks.admitted(LIVES["B"], LIVES["A"])
        self.found("old copy", "hears")

    def state(self, *values: str) -> ReplicatedState:
        """The state after these values, a slot each."""
        from twisted_paxos.core.messages import decode_value

        state = ReplicatedState(Registers())
        opened = encode_value(0, [Command("c", 0, 0, Raw(b'{"type":"open_session"}'))])
        for slot, raw in enumerate([opened, *map(value, values)], 1):
            state.apply(slot, decode_value(raw))
        return state

    def test_states_differ(self) -> None:
        """Two nodes have different states after the same slot."""
        for life, name in zip(LIVES.values(), "vvw", strict=True):
            self.checks.applied(life, 8, [], self.state(name))
        self.found("state", "after slot 8")

    def test_applied_twice(self) -> None:
        """A command has its effect in two slots."""
        command = Command("c", 1, 1, encode_opaque("v k "))
        self.checks.applied(LIVES["A"], 3, [command], None)
        self.checks.applied(LIVES["B"], 4, [command], None)
        self.found("exactly once", "slots 3 and 4")

    def test_slot_applied_twice(self) -> None:
        """A node goes back."""
        self.checks.applied(LIVES["A"], 3, [], None)
        self.checks.applied(LIVES["A"], 3, [], None)
        self.found("exactly once", "after 3")

    def test_nobody_sent_it(self) -> None:
        """A command of nobody has an effect."""
        checks = Checks("ABC", "ABC", lambda command: False, lambda uid: False)
        checks.applied(LIVES["A"], 3, [Command("c", 1, 1, Raw(b'"x"'))], None)
        assert checks.violation is not None
        self.assertIn("nobody sent", checks.violation[1])

    def test_lost_write(self) -> None:
        """What was acknowledged is not in the log."""
        self.checks.finish([Op("k", "v", 1.0, 2.0, "done", 1, 0)])
        self.found("acknowledged", "is not at 1.0")

    def test_refused_write_happened(self) -> None:
        """What was refused is in the log."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.finish([Op("k", "v", 1.0, 2.0, "refused")])
        self.found("acknowledged", "was refused")

    def test_real_time(self) -> None:
        """A later write has the lower place."""
        self.vote("AB", 1, ONE, value("v"))
        self.vote("AB", 2, ONE, value("w"))
        early, late = Op("k", "w", 1.0, 2.0, "done", 2, 0), Op("j", "v", 3.0, 4.0, "done", 1, 0)
        self.checks.finish([early, late])
        self.found("real time", "ended before")

    def test_stale_read(self) -> None:
        """A read does not see a write that ended before it."""
        self.vote("AB", 1, ONE, value("v"))
        self.checks.finish([Op("k", "v", 1.0, 2.0, "done", 1, 0), Op("k", "", 3.0, 4.0, "done")])
        self.found("linearizable", "key k")

    def test_stops(self) -> None:
        """A node may stop by itself only where a fault allows it."""
        self.stoppable.add("A")
        self.checks.stopped("A", "disk")
        self.assertIsNone(self.checks.violation)
        self.checks.stopped("B", "no reason")
        self.found("stops", "no reason")

    def test_first_violation_stays(self) -> None:
        """What follows from the first violation is not reported."""
        self.checks.report("one", "a")
        self.checks.report("two", "b")
        self.found("one", "a")


class LogTests(SynchronousTestCase):
    """Whatever logs a failure is found."""

    def test_failures(self) -> None:
        """A failure or a critical event, and nothing less."""
        log, reports = Logger(), list[tuple[str, str]]()
        with LogWatch(lambda check, what: reports.append((check, what))):
            log.error("not so bad")
            self.assertEqual([], reports)
            log.critical("bad")
            try:
                raise ZeroDivisionError("worse")
            except ZeroDivisionError:
                log.failure("very bad")
        log.critical("nobody listens")
        self.assertEqual(["log", "log"], [check for check, _ in reports])
        self.assertIn("ZeroDivisionError", reports[1][1])
        self.flushLoggedErrors(ZeroDivisionError)
