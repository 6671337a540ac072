"""put, get, del and compact."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from twisted_paxos.cli import output
from twisted_paxos.cli.running import run
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.cli.values import (
    EXIT_NO,
    LeaseId,
    as_bytes,
    kv_document,
    print_kvs,
    value_from,
    write_raw,
)
from twisted_paxos.client import Client, connect
from twisted_paxos.client.keys import range_of
from twisted_paxos.statemachine.kvcommands import DeleteRange, DeleteRangeResult, Put, Range, RangeResult

SORT_TARGETS = ("key", "version", "create", "mod", "value")


async def with_client(reactor: Any, settings: Settings, work: Callable[[Client], Awaitable[int]]) -> int:
    """Do ``work`` with a connected client; its exit status."""
    client = await connect(reactor, settings.endpoints, timeout_s=settings.timeout_s)
    try:
        return await work(client)
    finally:
        await client.close()


def run_with_client(settings: Settings, work: Callable[[Client], Awaitable[int]]) -> int:
    """`with_client` on the reactor."""
    return run(lambda reactor: with_client(reactor, settings, work))


def range_options(function: Any) -> Any:
    """The options that make a range of a key."""
    for option in (
        click.option("--from-key", is_flag=True, help="Every key from KEY on."),
        click.option("--range-end", metavar="KEY", help="Every key up to, but without, this one."),
        click.option("--prefix", "-p", is_flag=True, help='Every key that begins with KEY; "" for all.'),
    ):
        function = option(function)
    return function


def parse_range(key: str, range_end: str | None, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """The range that the options mean.

    Raises:
        click.UsageError: they contradict each other.
    """
    if not (key or prefix or from_key):
        raise click.UsageError("a key is not empty; for all keys: --prefix ''")
    try:
        return range_of(as_bytes(key), as_bytes(range_end or ""), prefix, from_key)
    except ValueError:
        raise click.UsageError("give only one of --prefix, --range-end and --from-key") from None


@click.command("put")
@click.argument("key", type=click.UNPROCESSED)
@click.argument("value", required=False, type=click.UNPROCESSED)
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="The value is in this file.")
@click.option("--lease", type=LeaseId(), default=0, help="The lease that KEY hangs on.")
@click.option("--prev", is_flag=True, help="Also show the version before.")
@common_options
@click.pass_obj
def put_command(
    settings: Settings, key: str, value: str | None, file: Path | None, lease: int, prev: bool
) -> int:
    """Set KEY to VALUE, to the contents of a file, or, with "-" or without VALUE, to standard input."""
    put = Put(as_bytes(key), value_from(value, file), lease, prev)
    return run_with_client(settings, lambda client: _put(client, settings, put))


async def _put(client: Client, settings: Settings, put: Put) -> int:
    result = await client.kv.put(put.key, put.value, lease=put.lease, prev_kv=put.prev_kv)
    if settings.json:
        previous = {"prev_kv": kv_document(result.prev_kv)} if result.prev_kv else {}
        output.print_json({"revision": result.revision, **previous})
        return 0
    print(f"revision {result.revision}")
    if result.prev_kv:
        print_kvs((result.prev_kv,))
    return 0


@click.command("get")
@click.argument("key", type=click.UNPROCESSED)
@range_options
@click.option("--revision", type=click.IntRange(min=0), default=0, help="As of this revision.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many keys.")
@click.option("--sort", type=click.Choice(SORT_TARGETS), help="Order by this.")
@click.option("--descending", is_flag=True, help="The greatest first.")
@click.option("--keys-only", is_flag=True, help="Without values.")
@click.option("--count-only", is_flag=True, help="Only how many keys there are.")
@click.option("--serializable", is_flag=True, help="From what one node has; fast, and may be old.")
@click.option("--raw", is_flag=True, help="The value's bytes, and nothing else; for one key.")
@common_options
@click.pass_obj
def get_command(
    settings: Settings,
    key: str,
    range_end: str | None,
    prefix: bool,
    from_key: bool,
    revision: int,
    limit: int,
    sort: str | None,
    descending: bool,
    keys_only: bool,
    count_only: bool,
    serializable: bool,
    raw: bool,
) -> int:
    """Show KEY, or a range of keys.

    Without a terminal: a row for each key, a tab between key and value, what is not printable
    escaped; --raw and --json keep every byte. The exit status is 4 when the one KEY is absent.
    """
    start, end = parse_range(key, range_end, prefix, from_key)
    if raw and (end or keys_only or count_only or settings.json):
        raise click.UsageError("--raw is for the value of one key")
    order: Any = "NONE" if not (sort or descending) else "DESCEND" if descending else "ASCEND"
    target: Any = (sort or "key").upper()
    request = Range(start, end, limit, revision, order, target, keys_only, count_only)
    return run_with_client(settings, lambda client: _get(client, settings, request, serializable, raw))


async def _get(client: Client, settings: Settings, request: Range, serializable: bool, raw: bool) -> int:
    found = await client.kv.read(request, serializable=serializable)
    if settings.json:
        output.print_json(range_document(found, request.keys_only))
    elif request.count_only:
        print(found.count)
    elif raw:
        for kv in found.kvs:
            write_raw(kv.value)
    else:
        _print_range(found, request)
    return 0 if request.range_end or found.count else EXIT_NO


def _print_range(found: RangeResult, request: Range) -> None:
    if found.kvs:
        print_kvs(found.kvs, request.keys_only)
    if found.more:
        output.warn(f"{found.count - len(found.kvs):,} more keys are not shown; see --limit")


def range_document(found: RangeResult, keys_only: bool = False) -> dict[str, Any]:
    """What was read, as JSON."""
    return {
        "revision": found.revision,
        "count": found.count,
        "more": found.more,
        "kvs": [kv_document(kv, keys_only) for kv in found.kvs],
    }


@click.command("del")
@click.argument("key", type=click.UNPROCESSED)
@range_options
@click.option("--prev", is_flag=True, help="Show what was deleted.")
@common_options
@click.pass_obj
def del_command(
    settings: Settings, key: str, range_end: str | None, prefix: bool, from_key: bool, prev: bool
) -> int:
    """Delete KEY, or a range of keys; prints how many. The exit status is 4 when there were none."""
    start, end = parse_range(key, range_end, prefix, from_key)
    request = DeleteRange(start, end, prev)
    return run_with_client(settings, lambda client: _delete(client, settings, request))


async def _delete(client: Client, settings: Settings, request: DeleteRange) -> int:
    result = await client.kv.delete(request.key, range_end=request.range_end, prev_kv=request.prev_kv)
    if settings.json:
        output.print_json(delete_document(result))
    else:
        print(f"{result.deleted} deleted")
        if result.prev_kvs:
            print_kvs(result.prev_kvs)
    return 0 if result.deleted else EXIT_NO


def delete_document(result: DeleteRangeResult) -> dict[str, Any]:
    """What was deleted, as JSON."""
    previous = [kv_document(kv) for kv in result.prev_kvs]
    return {"revision": result.revision, "deleted": result.deleted, "prev_kvs": previous}


@click.command("compact")
@click.argument("revision", type=click.IntRange(min=1))
@common_options
@click.pass_obj
def compact_command(settings: Settings, revision: int) -> int:
    """Forget what was superseded before REVISION. The store does so by itself too, by size and age."""
    return run_with_client(settings, lambda client: _compact(client, settings, revision))


async def _compact(client: Client, settings: Settings, revision: int) -> int:
    result = await client.kv.compact(revision)
    if settings.json:
        output.print_json({"revision": result.revision, "compact_revision": revision})
    else:
        print(f"compacted up to revision {revision}; the present one is {result.revision}")
    return 0
