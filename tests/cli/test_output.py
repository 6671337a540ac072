"""How values, entries, nodes and tables look."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any

from msgspec import Raw, Struct
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.cli import output
from twisted_paxos.client import NodeStatus, SlotEntry
from twisted_paxos.core.ballot import ProposalID
from twisted_paxos.core.messages import Command, encode_value
from twisted_paxos.statemachine.commands import OPEN_SESSION, encode_opaque

BALLOT = ProposalID(3, "B")


def printed(function: Any, *arguments: Any) -> str:
    """What ``function`` prints."""
    with redirect_stdout(io.StringIO()) as out:
        function(*arguments)
    return out.getvalue()


class ValueTests(SynchronousTestCase):
    """Values on one line."""

    def test_printable(self) -> None:
        """Control, format and surrogate characters are escaped; letters of any script are not."""
        for value, shown in (
            ("plain", "plain"),
            ("\x1b[2J", "\\x1b[2J"),
            ("a\tb\nc\r", "a\\tb\\nc\\r"),
            ("\u202egnp", "\\u202egnp"),
            ("\u00e4\u65e5", "\u00e4\u65e5"),
            (b"\xff\x00", "\\xff\\x00"),
            ("\udcff", "\\udcff"),
        ):
            self.assertEqual(shown, output.printable(value))

    def test_shorten(self) -> None:
        """What is cut says how long it was, and is never longer than asked."""
        self.assertEqual("x" * 60, output.shorten("x" * 60))
        self.assertEqual("x" * 41 + "... (61 characters)", output.shorten("x" * 61))
        for value in (
            "x" * 1_000,
            b"x" * 1_000,
            b"\x00" * 1_000,
            "\u00e4" * 1_000,
            b"\xc3\xa4" * 100,
            "\x01" * 30,
        ):
            shown = output.shorten(value, 40)
            self.assertLessEqual(len(shown), 40)
            self.assertIn("...", shown)

    def test_cut_within_a_character(self) -> None:
        """A value cut in the middle of a character does not show half of it."""
        head = ("\u00e4" * 100).encode()[:61]
        self.assertNotIn("\\x", output.shorten_head(head, 200, "bytes"))

    def test_duration(self) -> None:
        """Durations in one word."""
        self.assertEqual(
            ["0s", "59s", "1m", "1h", "2d"], [output.duration(s) for s in (0.4, 59, 61, 7_199, 180_000)]
        )


class LogTests(SynchronousTestCase):
    """Slots as rows and as JSON."""

    entry = SlotEntry(
        7,
        BALLOT,
        encode_value(
            5,
            [
                Command("cafe", 0, 0, OPEN_SESSION),
                Command("cafe", 1, 0, encode_opaque("a\tb")),
                Command("cafe", 2, 0, encode_opaque(b"\xff")),
                Command("cafe", 3, 0, Raw(b'{"type":"later_kind"}')),
                Command("cafe", 4, 0, Raw(b"[1]")),
            ],
        ),
    )

    def test_rows(self) -> None:
        """A row for each command, three columns whatever is in the value."""
        rows = [row.split("\t") for row in output.log_rows(self.entry)]
        self.assertEqual({("7", "3.B")}, {(slot, ballot) for slot, ballot, _ in rows})
        self.assertEqual(
            ["(open session cafe)", "a\\tb", "\\xff", "(later kind cafe)", "(unknown cafe)"],
            [value for _, _, value in rows],
        )

    def test_no_op(self) -> None:
        """An empty batch is a no-op."""
        self.assertEqual(["8\t3.B\t(no-op)"], output.log_rows(SlotEntry(8, BALLOT, encode_value(0, []))))

    def test_json(self) -> None:
        """The same with nothing lost: text as it is, other bytes in base64."""
        document = json.loads(printed(output.print_json, output.log_document(self.entry)))
        self.assertEqual((7, "3.B", 5), (document["slot"], document["ballot"], document["time_ms"]))
        opening, text, binary, later, unknown = document["commands"]
        self.assertEqual({"client": "cafe", "sequence": 0, "type": "open_session"}, opening)
        self.assertEqual("a\tb", text["value"])
        self.assertEqual("/w==", binary["base64"])
        self.assertEqual(["later_kind", "unknown"], [later["type"], unknown["type"]])


class StatusTests(SynchronousTestCase):
    """The table of nodes."""

    status = NodeStatus(
        "A",
        "follower",
        "B",
        BALLOT,
        BALLOT,
        1_234_567,
        1_234_567,
        "file:/var/lib/paxos/a/long/path",
        0,
        86_400.0,
    )

    def test_width(self) -> None:
        """Large numbers, long paths and unreachable nodes fit 80 columns; no number is cut."""
        text = printed(output.print_nodes, [("a:1", self.status), ("127.0.0.1:5101", "connection refused")])
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        for shown in (
            "1234567",
            "follower",
            "3.B",
            "1d",
            "unreachable",
            "127.0.0.1:5101 is unreachable: connection",
        ):
            self.assertIn(shown, text)

    def test_waiting(self) -> None:
        """A node that waits for others says for whom."""
        status = NodeStatus("A", "joining", waiting_for=("B", "C"))
        self.assertIn("A waits for B, C", printed(output.print_nodes, [("a:1", status)]))

    def test_json(self) -> None:
        """Each node with all its fields, or with the error."""
        up, down = output.node_document("a:1", self.status), output.node_document("b:2", "refused")
        self.assertEqual(
            ("a:1", True, "3.B", 1_234_567), (up["endpoint"], up["reachable"], up["ballot"], up["applied"])
        )
        self.assertEqual({"endpoint": "b:2", "reachable": False, "error": "refused"}, down)


class Part(Struct):
    """A part of something inspected."""

    name: str
    ended: bool


class Inspected(Struct):
    """Something inspected."""

    path: str
    promised: ProposalID
    records: dict[str, int]
    parts: list[Part]
    problems: list[str]


class StructTests(SynchronousTestCase):
    """Any struct as tables."""

    def test_all_fields(self) -> None:
        """Plain fields, tables within and lists of structs are all there."""
        found = Inspected("x", BALLOT, {"accepted": 5}, [Part("log-1", True), Part("log-2", False)], [])
        text = printed(output.print_struct, found)
        for shown in ("path", "3.B", "records.accepted", "log-1", "log-2", "yes", "no", "problems"):
            self.assertIn(shown, text)
