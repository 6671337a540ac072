"""paxosctl lease: grant, revoke, keep-alive, ttl, list."""

from __future__ import annotations

from typing import Any

import click

from twisted_paxos.cli import output
from twisted_paxos.cli.keys import run_with_client
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.cli.values import EXIT_NO, LeaseId, lease_text, text_document
from twisted_paxos.client import Client
from twisted_paxos.client.lease import RENEW_SHARE
from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import LEASE_NOT_FOUND


@click.group("lease", invoke_without_command=False)
def lease_command() -> None:
    """Leases: keys that hang on one are deleted when it runs out. Ids are hexadecimal."""


@lease_command.command("grant")
@click.argument("ttl_s", type=click.IntRange(min=1), metavar="SECONDS")
@click.option("--id", "lease_id", type=LeaseId(), default=0, help="Its id; else one is picked.")
@common_options
@click.pass_obj
def grant_command(settings: Settings, ttl_s: int, lease_id: int) -> int:
    """Open a lease; prints its id."""
    return run_with_client(settings, lambda client: _grant(client, settings, ttl_s, lease_id))


async def _grant(client: Client, settings: Settings, ttl_s: int, lease_id: int) -> int:
    granted = await client.kv.lease_grant(ttl_s, lease_id)
    if settings.json:
        output.print_json({"id": lease_text(granted.id), "ttl_s": granted.ttl})
    else:
        print(lease_text(granted.id))
    return 0


@lease_command.command("revoke")
@click.argument("lease_id", type=LeaseId(), metavar="ID")
@common_options
@click.pass_obj
def revoke_command(settings: Settings, lease_id: int) -> int:
    """End a lease and delete its keys. The exit status is 4 when there is no such lease."""
    return run_with_client(settings, lambda client: _revoke(client, settings, lease_id))


async def _revoke(client: Client, settings: Settings, lease_id: int) -> int:
    try:
        result = await client.kv.lease_revoke(lease_id)
    except KeyValueError as error:
        if error.message != LEASE_NOT_FOUND.message:
            raise
        return _no_lease(lease_id)
    if settings.json:
        output.print_json({"revision": result.revision})
    else:
        print(f"lease {lease_text(lease_id)} revoked")
    return 0


@lease_command.command("keep-alive")
@click.argument("lease_id", type=LeaseId(), metavar="ID")
@click.option("--once", is_flag=True, help="Once, instead of until Ctrl-C.")
@common_options
@click.pass_obj
def keep_alive_command(settings: Settings, lease_id: int, once: bool) -> int:
    """Renew a lease, again and again. The exit status is 4 when it is gone."""
    return run_with_client(settings, lambda client: _keep_alive(client, settings, lease_id, once))


async def _keep_alive(client: Client, settings: Settings, lease_id: int, once: bool) -> int:
    from twisted.internet.task import deferLater

    while True:
        result = await client.kv.lease_keep_alive(lease_id)
        if result.ttl <= 0:
            return _no_lease(lease_id)
        document = {"id": lease_text(lease_id), "ttl_s": result.ttl}
        _show(settings, document, f"lease {lease_text(lease_id)}: {result.ttl} s from now")
        if once:
            return 0
        await deferLater(client.reactor, result.ttl * RENEW_SHARE)


@lease_command.command("ttl")
@click.argument("lease_id", type=LeaseId(), metavar="ID")
@common_options
@click.pass_obj
def ttl_command(settings: Settings, lease_id: int) -> int:
    """Show how long a lease has left, and its keys. The exit status is 4 when there is no such lease."""
    return run_with_client(settings, lambda client: _ttl(client, settings, lease_id))


async def _ttl(client: Client, settings: Settings, lease_id: int) -> int:
    found = await client.kv.lease_time_to_live(lease_id, keys=True)
    if found.ttl < 0:
        return _no_lease(lease_id)
    keys = [text_document("key", key) for key in found.keys]
    document = {"id": lease_text(lease_id), "ttl_s": found.ttl, "granted_s": found.granted_ttl, "keys": keys}
    text = f"lease {lease_text(lease_id)}: {found.ttl} of {found.granted_ttl} s left"
    _show(settings, document, "\n".join([text, *map(output.printable, found.keys)]))
    return 0


@lease_command.command("list")
@common_options
@click.pass_obj
def list_command(settings: Settings) -> int:
    """Show the ids of all open leases."""
    return run_with_client(settings, lambda client: _list(client, settings))


async def _list(client: Client, settings: Settings) -> int:
    leases = [lease_text(lease_id) for lease_id in await client.kv.leases()]
    if settings.json:
        output.print_json({"leases": leases})
    elif leases:
        print("\n".join(leases))
    return 0


def _show(settings: Settings, document: dict[str, Any], text: str) -> None:
    if settings.json:
        output.print_json(document)
    else:
        print(text, flush=True)


def _no_lease(lease_id: int) -> int:
    output.warn(f"there is no lease {lease_text(lease_id)}; it has run out, or was revoked")
    return EXIT_NO
