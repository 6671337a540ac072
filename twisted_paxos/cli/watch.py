"""paxosctl watch: changes as they happen."""

from __future__ import annotations

import sys
from typing import Any

import click

from twisted_paxos.cli import output
from twisted_paxos.cli.keys import parse_range, range_options, run_with_client
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.cli.values import kv_document
from twisted_paxos.client import Client
from twisted_paxos.statemachine.kvcommands import Event
from twisted_paxos.statemachine.watches import WatchRequest


@click.command("watch")
@click.argument("key", type=click.UNPROCESSED)
@range_options
@click.option("--revision", type=click.IntRange(min=0), default=0, help="Begin with this revision.")
@click.option("--prev", is_flag=True, help="Also show the version before.")
@click.option("--no-put", is_flag=True, help="Leave out puts.")
@click.option("--no-delete", is_flag=True, help="Leave out deletions.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many changes.")
@common_options
@click.pass_obj
def watch_command(
    settings: Settings,
    key: str,
    range_end: str | None,
    prefix: bool,
    from_key: bool,
    revision: int,
    prev: bool,
    no_put: bool,
    no_delete: bool,
    limit: int | None,
) -> int:
    """Show changes of KEY, or of a range of keys: revision, PUT or DELETE, key, value. Ctrl-C ends it.

    It goes on over failures of nodes: every change once, in order.
    """
    start, end = parse_range(key, range_end, prefix, from_key)
    request = WatchRequest(start, end, revision, no_put, no_delete, prev)
    return run_with_client(settings, lambda client: _watch(client, settings, request, limit))


async def _watch(client: Client, settings: Settings, request: WatchRequest, limit: int | None) -> int:
    shown = 0
    async with client.start_watch(request) as watch:
        async for batch in watch:
            for event in batch.events:
                _print_event(event, settings.json)
                shown += 1
                if shown == limit:
                    return 0
            sys.stdout.flush()
    return 0


def _print_event(event: Event, as_json: bool) -> None:
    if as_json:
        output.print_json(event_document(event))
        return
    kv = event.kv
    row = f"{kv.mod_revision}\t{event.type}\t{output.printable(kv.key)}"
    if event.type == "PUT":
        row += f"\t{output.shorten(kv.value) if sys.stdout.isatty() else output.printable(kv.value)}"
    if event.prev_kv:
        row += f"\t(was {output.shorten(event.prev_kv.value)})"
    print(row)


def event_document(event: Event) -> dict[str, Any]:
    """A change as JSON."""
    previous = {"prev_kv": kv_document(event.prev_kv)} if event.prev_kv else {}
    return {"type": event.type, "kv": kv_document(event.kv, keys_only=event.type == "DELETE"), **previous}
