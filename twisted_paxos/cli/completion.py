"""paxosctl completion: what makes a shell complete commands and options."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from twisted_paxos.errors import ConfigError

SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> int:
    """Print the completion script for SHELL.

    \b
        bash: eval "$(paxosctl completion bash)"        in ~/.bashrc
        zsh:  eval "$(paxosctl completion zsh)"         in ~/.zshrc
        fish: paxosctl completion fish | source         in config.fish
    """
    from twisted_paxos.cli import cli

    completion = get_completion_class(shell)
    if completion is None:
        raise ConfigError(f"there is no completion for {shell}")
    print(completion(cli, {}, "paxosctl", "_PAXOSCTL_COMPLETE").source())
    return 0
