"""Keys and values between the command line, files and the terminal: every byte comes through."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from twisted_paxos.cli import output
from twisted_paxos.core.limits import VALUE_MAX_BYTES
from twisted_paxos.errors import ValueTooLarge
from twisted_paxos.statemachine.kvcommands import KeyValue

EXIT_NO: Final = 4
"""The exit status for "no": the key is absent, the comparison failed, the lease is not there."""

ROW_COLUMNS: Final = ("key", "value", "created", "modified", "version", "lease")


def as_bytes(argument: str) -> bytes:
    """A word of the command line as the bytes that the shell passed."""
    return os.fsencode(argument)


def value_from(argument: str | None, file: Path | None) -> bytes:
    """The value of ``put``: the argument, a file, or standard input for ``-`` or for neither.

    Raises:
        ValueTooLarge: it is over the limit.
        OSError: it cannot be read.
    """
    if argument is not None and file is not None:
        raise click.UsageError("give the VALUE or --file, not both")
    if argument is not None and argument != "-":
        value = as_bytes(argument)
    elif file is not None:
        with file.open("rb") as source:
            value = source.read(VALUE_MAX_BYTES + 1)
    else:
        value = sys.stdin.buffer.read(VALUE_MAX_BYTES + 1)
    if len(value) > VALUE_MAX_BYTES:
        raise ValueTooLarge(f"the value is over the limit of {VALUE_MAX_BYTES:,} bytes; split it")
    return value


def write_raw(value: bytes) -> None:
    """``value`` to standard output, exactly as it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(value)
    sys.stdout.buffer.flush()


def text_document(name: str, value: bytes) -> dict[str, str]:
    """``value`` as JSON: text under ``name``, other bytes as ``name_base64``."""
    try:
        return {name: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode("ascii")}


def kv_document(kv: KeyValue, keys_only: bool = False) -> dict[str, Any]:
    """A version of a key as JSON."""
    document: dict[str, Any] = text_document("key", kv.key)
    if not keys_only:
        document |= text_document("value", kv.value)
    return document | {
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": kv.lease,
    }


def print_kvs(kvs: tuple[KeyValue, ...], keys_only: bool = False) -> None:
    """Keys: a table on a terminal, else a row for each, with tabs between key and value."""
    if not sys.stdout.isatty():
        for kv in kvs:
            key = output.printable(kv.key)
            print(key if keys_only else f"{key}\t{output.printable(kv.value)}")
        return
    rows = [kv_row(kv) for kv in kvs]
    if keys_only:
        output.print_table(
            [name for name in ROW_COLUMNS if name != "value"], [(row[0], *row[2:]) for row in rows]
        )
    else:
        output.print_table(ROW_COLUMNS, rows, yielding="value")


def kv_row(kv: KeyValue) -> tuple[str, ...]:
    """A row of the table."""
    return (
        output.printable(kv.key),
        output.shorten(kv.value),
        str(kv.create_revision),
        str(kv.mod_revision),
        str(kv.version),
        lease_text(kv.lease) if kv.lease else "-",
    )


def lease_text(lease_id: int) -> str:
    """A lease's id as people write it: in hexadecimal."""
    return f"{lease_id:x}" if lease_id >= 0 else str(lease_id)


class LeaseId(click.ParamType):
    """A lease's id on the command line: hexadecimal, as ``paxosctl lease grant`` prints it."""

    name = "lease"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if isinstance(value, int):
            return value
        try:
            number = int(value, 16)
        except ValueError:
            self.fail(f"{value!r} is no lease id; they are hexadecimal, see: paxosctl lease list", param, ctx)
        if not 0 < abs(number) < 1 << 63:
            self.fail(f"{value!r} is no lease id", param, ctx)
        return number
