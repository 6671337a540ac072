"""How paxosctl shows values, log entries, nodes and tables: text for people, JSON for programs."""

from __future__ import annotations

import base64
import codecs
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from twisted_paxos.client import NodeStatus, Payload, SlotEntry, payload_of, value_of

VALUE_SHOWN_CHARS: Final = 60
"""How much of a value is shown where it only reminds of which one it is."""

COLUMNS_MAX: Final = 7
"""More columns than that do not fit next to each other."""

FALLBACK_WIDTH: Final = 80
"""Columns of output that goes to no terminal."""

encode_json = msgspec.json.Encoder().encode


def print_json(document: object) -> None:
    """One JSON document on a line of its own."""
    print(encode_json(document).decode("utf-8", "backslashreplace"))


def warn(message: str) -> None:
    """One line on standard error, in the manner of every error."""
    print(f"paxosctl: {message}", file=sys.stderr)


def printable(value: str | bytes) -> str:
    """``value`` on one line: what would move the cursor or hide text is escaped."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shorten(value: str | bytes, width: int = VALUE_SHOWN_CHARS) -> str:
    """`printable`, and at most ``width`` characters; says how long the whole is when it cuts."""
    if isinstance(value, bytes):
        return shorten_head(value[: 4 * width], len(value), "bytes", width)
    return shorten_head(value[: width + 1], len(value), "characters", width)


def shorten_head(head: str | bytes, size: int, unit: str, width: int = VALUE_SHOWN_CHARS) -> str:
    """`shorten` for a value of ``size`` ``unit`` of which only the ``head`` was kept."""
    if isinstance(head, bytes):
        # Not final while there is more: a character cut in two is left away, not escaped.
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        head_text = decoder.decode(head, final=len(head) == size)
    else:
        head_text = head
    shown = printable(head_text)
    if len(head) == size and len(shown) <= width:
        return shown
    tail = f"... ({size:,} {unit})"
    room = max(8, width - len(tail))
    pieces: list[str] = []
    for piece in map(printable, head_text):
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return "".join(pieces) + tail


def terminal_width() -> int:
    """Columns of standard output."""
    if not sys.stdout.isatty():
        return FALLBACK_WIDTH
    return max(20, shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns)


def payload_text(payload: Payload, client: str = "") -> str:
    """A command in a row of the log."""
    if isinstance(payload, str):
        return printable(payload)
    if isinstance(payload, bytes):
        return printable(payload)
    kind = payload.kind.replace("_", " ")
    return printable(f"({kind} {client})" if client else f"({kind})")


def log_rows(entry: SlotEntry) -> list[str]:
    """The rows of one slot: slot, ProposalID and value, with tabs between; a row for each command."""
    start = f"{entry.slot}\t{entry.ballot}\t"
    commands = value_of(entry).commands
    if not commands:
        return [f"{start}(no-op)"]
    width = terminal_width() - len(start.expandtabs()) if sys.stdout.isatty() else 0
    rows = []
    for command in commands:
        payload = payload_of(command)
        if width and isinstance(payload, (str, bytes)):
            rows.append(start + shorten(payload, max(20, width)))
        else:
            rows.append(start + payload_text(payload, command.client))
    return rows


def log_document(entry: SlotEntry) -> dict[str, Any]:
    """One slot as JSON."""
    value = value_of(entry)
    return {
        "slot": entry.slot,
        "ballot": str(entry.ballot),
        "time_ms": value.time_ms,
        "commands": [
            {"client": command.client, "sequence": command.sequence, **payload_document(payload_of(command))}
            for command in value.commands
        ],
    }


def payload_document(payload: Payload) -> dict[str, Any]:
    """A command's payload as JSON: text as ``value``, other bytes as ``base64``."""
    if isinstance(payload, str):
        return {"type": "value", "value": payload}
    if isinstance(payload, bytes):
        try:
            return {"type": "value", "value": payload.decode("utf-8")}
        except UnicodeDecodeError:
            return {"type": "value", "base64": base64.b64encode(payload).decode("ascii")}
    return {"type": payload.kind}


def value_document(value: bytes) -> dict[str, Any]:
    """A proposed value as JSON."""
    return {name: text for name, text in payload_document(value).items() if name != "type"}


def duration(seconds: float) -> str:
    """A time span in one short word: ``42s``, ``3m``, ``5h``, ``12d``."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


# -- tables, by rich; imported when one is shown ------------------------------------------------


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", yielding: str = ""
) -> None:
    """A table as wide as the terminal, or 80 columns; without colours where nobody sees them.

    Where a row does not fit, the cells of column ``yielding`` go on below; without one, all cells may.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=title or None, title_justify="left", padding=(0, 2, 0, 0), pad_edge=False)
    cells = [[printable(cell) for cell in row] for row in rows]
    for position, name in enumerate(columns):
        widest = max([len(name), *(len(row[position]) for row in cells)])
        fixed = bool(yielding) and name != yielding
        table.add_column(name, overflow="fold", no_wrap=fixed, min_width=widest if fixed else None)
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(width=terminal_width(), highlight=False, file=sys.stdout)
    console.print(table)


STATUS_COLUMNS: Final = (
    "node", "role", "leader", "ballot", "promised", "chosen", "applied", "storage", "uptime",
)  # fmt: skip


def print_nodes(nodes: Sequence[tuple[str, NodeStatus | str]]) -> None:
    """The table of ``paxosctl status``; each node's endpoint with its status, or why there is none."""
    rows: list[tuple[str, ...]] = []
    notes = []
    for endpoint, status in nodes:
        if isinstance(status, str):
            rows.append(("?", "unreachable", "", "", "", "", "", endpoint, ""))
            notes.append(f"{endpoint} is unreachable: {status}")
            continue
        rows.append(_status_row(status))
        if status.waiting_for:
            waiting_for = ", ".join(status.waiting_for)
            notes.append(f"{status.uid} waits for {waiting_for}: a first start needs every node once")
    print_table(STATUS_COLUMNS, rows, yielding="storage")
    for note in notes:
        print(printable(note))


def _status_row(status: NodeStatus) -> tuple[str, ...]:
    return (
        status.uid,
        status.role,
        status.leader or "-",
        str(status.ballot),
        str(status.promised),
        str(status.chosen_upto),
        str(status.applied),
        status.storage,
        duration(status.uptime_s),
    )


def node_document(endpoint: str, status: NodeStatus | str) -> dict[str, Any]:
    """One node as JSON."""
    if isinstance(status, str):
        return {"endpoint": endpoint, "reachable": False, "error": status}
    document = msgspec.to_builtins(status)
    document["ballot"], document["promised"] = str(status.ballot), str(status.promised)
    return {"endpoint": endpoint, "reachable": True, **document}


def print_struct(struct: msgspec.Struct, title: str = "") -> None:
    """Any struct: its plain fields as a table of two columns, then a table for each list of structs."""
    if title:
        print(printable(title))
    fields = msgspec.structs.asdict(struct)
    lists = {name: value for name, value in fields.items() if _is_list_of_structs(value)}
    plain = [row for name, value in fields.items() if name not in lists for row in _rows(name, value)]
    print_table(("field", "value"), plain)
    for name, items in lists.items():
        _print_list(name, [msgspec.structs.asdict(item) for item in items])


def _is_list_of_structs(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], msgspec.Struct)


def _print_list(name: str, items: Sequence[Mapping[str, Any]]) -> None:
    """A row for each item; where that is too wide, a small table for each."""
    columns = list(items[0])
    if len(columns) <= COLUMNS_MAX:
        print_table(columns, [[_cell(item[column]) for column in columns] for item in items], name)
        return
    for number, item in enumerate(items, 1):
        rows = [(key, _cell(value)) for key, value in item.items()]
        print_table(("field", "value"), rows, f"{name} {number}")


def _rows(name: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict) and value:
        return [(f"{name}.{key}", _cell(item)) for key, item in value.items()]
    return [(name, _cell(value))]


def _cell(value: object) -> str:
    if isinstance(value, tuple) and type(value) is not tuple:
        return str(value)  # A ProposalID knows how it is written.
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)


def file_bytes(descriptor: int) -> int | None:
    """Size of the regular file that ``descriptor`` is; None for a pipe or a terminal."""
    import stat

    status = os.fstat(descriptor)
    return status.st_size if stat.S_ISREG(status.st_mode) else None
