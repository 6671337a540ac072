"""``paxosctl``: the key-value store, locks and elections, the log and the nodes, storage, the demo.

Only what every call needs is imported here; a command's module is imported when it is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from twisted_paxos import __version__
from twisted_paxos.cli.settings import common_options
from twisted_paxos.errors import PaxosError

COMMANDS: Final = {
    "put": "twisted_paxos.cli.keys",
    "get": "twisted_paxos.cli.keys",
    "del": "twisted_paxos.cli.keys",
    "txn": "twisted_paxos.cli.txn",
    "watch": "twisted_paxos.cli.watch",
    "lease": "twisted_paxos.cli.lease",
    "lock": "twisted_paxos.cli.lock",
    "elect": "twisted_paxos.cli.lock",
    "compact": "twisted_paxos.cli.keys",
    "propose": "twisted_paxos.cli.client",
    "log": "twisted_paxos.cli.client",
    "status": "twisted_paxos.cli.client",
    "inspect": "twisted_paxos.cli.local",
    "verify": "twisted_paxos.cli.local",
    "demo": "twisted_paxos.cli.local",
    "bench": "twisted_paxos.cli.bench",
    "completion": "twisted_paxos.cli.completion",
}
"""Each command and the module that has it, under its name with ``_command`` behind it."""

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE_CLOSED: Final = 141
"""As a shell reports a process that ended by SIGINT and by SIGPIPE."""


class LazyGroup(click.Group):
    """Finds its commands in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command ``cmd_name``, or None."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="paxosctl")
@common_options
def cli() -> None:
    """Talk to twisted_paxos nodes: keys and values, locks, elections, the log, how the nodes are."""


def run_cli(arguments: Sequence[str]) -> int:
    """Run ``paxosctl`` with ``arguments``; returns the exit status, every error is one line by then."""
    try:
        status = cli.main(list(arguments), prog_name="paxosctl", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_PIPE_CLOSED
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "paxosctl"
        return _complain(f"{error.format_message().rstrip('.')}; try: {command} --help", EXIT_USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), EXIT_ERROR)
    except (PaxosError, OSError) as error:
        return _complain(str(error), EXIT_ERROR)


def _complain(message: str, status: int) -> int:
    click.echo(f"paxosctl: {' '.join(message.split())}", err=True)
    return status


def _silence_stdout() -> None:
    """Nobody reads any more: keep the interpreter's last flush from complaining about it."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends


def main() -> None:
    """The entry point of ``paxosctl``."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_cli(sys.argv[1:]))
