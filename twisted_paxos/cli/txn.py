"""paxosctl txn: a transaction from a file, from standard input, or typed on a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from twisted_paxos.cli import output
from twisted_paxos.cli.keys import delete_document, range_document, run_with_client
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.cli.txnform import SECTIONS, TxnSyntaxError, parse_line, parse_txn, split
from twisted_paxos.cli.values import EXIT_NO, kv_document, print_kvs
from twisted_paxos.client import Client
from twisted_paxos.statemachine.kvcommands import (
    DeleteRangeResult,
    OperationResult,
    PutResult,
    RangeResult,
    Txn,
    TxnResult,
)

TEXT_MAX_BYTES: Final = 16 << 20

HINTS: Final = {
    "if": 'comparisons, such as: value KEY = "VALUE"; an empty line ends them',
    "then": "operations if all hold, such as: put KEY VALUE",
    "else": "operations if not, such as: get KEY",
}


@click.command("txn")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@common_options
@click.pass_obj
def txn_command(settings: Settings, file: Path | None) -> int:
    r"""Do a transaction: compare, then do one of two lists of operations, as one change.

    It comes from FILE, from standard input (also "-"), or is asked for on a terminal. Its form:

    \b
        if
          value   config/mode = "blue"
          version jobs/lock   = 0
        then
          put config/mode green
          get config/ --prefix
        else
          get config/mode

    Compared can be value, version, create (revision), mod (revision) and lease, with = != < >.
    Operations are put, get and del, with the options that these commands have. In double quotes \n,
    \xNN and the like stand for any byte. The exit status is 4 when a comparison did not hold.
    """
    typed = file is None and sys.stdin.isatty()
    txn = _ask() if typed else parse_txn(_read(file).split(b"\n"))
    return run_with_client(settings, lambda client: _do(client, settings, txn))


def _read(file: Path | None) -> bytes:
    if file is None or str(file) == "-":
        text = sys.stdin.buffer.read(TEXT_MAX_BYTES + 1)
    else:
        with file.open("rb") as source:
            text = source.read(TEXT_MAX_BYTES + 1)
    if len(text) > TEXT_MAX_BYTES:
        raise TxnSyntaxError(f"a transaction is at most {TEXT_MAX_BYTES:,} bytes long")
    return text


def _ask() -> Txn:
    """Have it typed, section by section."""
    sections: dict[str, list[Any]] = {name: [] for name in SECTIONS}
    for name in SECTIONS:
        print(f"{name}: {HINTS[name]}", file=sys.stderr)
        while words := _ask_line(f"{name:>4}> "):
            try:
                sections[name].append(parse_line(name, words))
            except TxnSyntaxError as error:
                output.warn(str(error))
    return Txn(tuple(sections["if"]), tuple(sections["then"]), tuple(sections["else"]))


def _ask_line(prompt: str) -> list[bytes]:
    while True:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        try:
            return split(os.fsencode(line)) if line.strip() else []
        except TxnSyntaxError as error:
            output.warn(str(error))


async def _do(client: Client, settings: Settings, txn: Txn) -> int:
    result = await client.kv.txn(txn.compare, txn.success, txn.failure)
    if settings.json:
        output.print_json(_txn_document(result))
    else:
        print("the comparisons hold: then" if result.succeeded else "a comparison does not hold: else")
        for response in result.responses:
            _print_response(response)
    return 0 if result.succeeded else EXIT_NO


def _print_response(response: OperationResult) -> None:
    if isinstance(response, PutResult):
        print("put")
        if response.prev_kv:
            print_kvs((response.prev_kv,))
    elif isinstance(response, DeleteRangeResult):
        print(f"{response.deleted} deleted")
        if response.prev_kvs:
            print_kvs(response.prev_kvs)
    elif isinstance(response, RangeResult):
        count = "1 key" if response.count == 1 else f"{response.count:,} keys"
        print(f"get: {count}")
        if response.kvs:
            print_kvs(response.kvs)


def _txn_document(result: TxnResult) -> dict[str, Any]:
    responses = [_response_document(response) for response in result.responses]
    return {"revision": result.revision, "succeeded": result.succeeded, "responses": responses}


def _response_document(response: OperationResult) -> dict[str, Any]:
    if isinstance(response, PutResult):
        return {"put": {"prev_kv": kv_document(response.prev_kv)} if response.prev_kv else {}}
    if isinstance(response, DeleteRangeResult):
        return {"del": delete_document(response)}
    if isinstance(response, RangeResult):
        return {"get": range_document(response)}
    return {"txn": _txn_document(response)}
