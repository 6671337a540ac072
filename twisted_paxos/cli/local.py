"""The commands of paxosctl that work on this machine: inspect, verify and demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from twisted_paxos.cli import output
from twisted_paxos.cli.settings import Settings, common_options


@click.command("inspect")
@click.argument("directory", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def inspect_command(settings: Settings, directory: Path) -> int:
    """Show what is stored in DIRECTORY (such as paxos_data/A); reads only, also while the node runs.

    The exit status is 1 when something stored is damaged.
    """
    from twisted_paxos.cli.inspect import inspect_directory

    inspection = inspect_directory(directory)
    if settings.json:
        output.print_json(inspection)
    else:
        output.print_struct(inspection)
    return 1 if inspection.problems else 0


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def verify_command(settings: Settings, directory: Path) -> int:
    """Check everything that is stored in DIRECTORY; reads only, also while the node runs.

    Says what is wrong, where, and what the next start does about it. The exit status is 1 when
    something is damaged that the node cannot mend by itself.
    """
    from twisted_paxos.cli.verify import verify_directory

    report = verify_directory(directory)
    if settings.json:
        output.print_json(report)
    else:
        output.print_struct(report)
    return 1 if report.verdict == "damaged" else 0


@click.command("demo")
@common_options
@click.pass_obj
def demo_command(settings: Settings) -> int:
    """Start three nodes, propose, kill the leader, propose, restart it; keys, a lock; compare the logs.

    Everything happens in a temporary directory and on free ports; nothing is left behind.
    """
    from twisted_paxos.cli.demo import DemoFailed, demo
    from twisted_paxos.cli.running import run

    try:
        return run(lambda reactor: demo(reactor, settings.json))
    except DemoFailed as error:
        for line in error.lines:
            print(line, file=sys.stderr)
        raise
