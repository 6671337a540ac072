"""The options that every command of paxosctl has, before or after the command's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

DEFAULT_ENDPOINTS: Final = ("127.0.0.1:5100", "127.0.0.1:5101", "127.0.0.1:5102")
"""The client ports of the built-in cluster A, B, C."""

DEFAULT_TIMEOUT_S: Final = 30.0

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass
class Settings:
    """What the common options say.

    Attributes:
        endpoints: client ports of nodes.
        json: print JSON.
        timeout_s: how long a value waits for its result.
    """

    endpoints: tuple[str, ...] = DEFAULT_ENDPOINTS
    json: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S


def _set_endpoints(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    settings = context.ensure_object(Settings)
    from_environment = context.get_parameter_source("endpoints") is ParameterSource.ENVIRONMENT
    if from_environment and context.parent is not None:
        return  # The group has read it; here it would override what was written before the command.
    if value is not None:
        endpoints = tuple(part.strip() for part in value.split(",") if part.strip())
        if not endpoints:
            raise click.BadParameter("name at least one node as HOST:PORT")
        settings.endpoints = endpoints


def _set_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    settings = context.ensure_object(Settings)
    settings.json = settings.json or value


def _set_timeout_s(context: click.Context, parameter: click.Parameter, value: float | None) -> None:
    settings = context.ensure_object(Settings)
    if value is not None:
        settings.timeout_s = value


def common_options(function: _Function) -> _Function:
    """Adds them to a command; they go into the context's `Settings`, not into its arguments."""
    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=_set_json, help="Print JSON."),
        click.option(
            "--timeout-s",
            type=click.FloatRange(min=0, min_open=True, max=86_400),
            expose_value=False,
            callback=_set_timeout_s,
            metavar="SECONDS",
            help=f"How long a value waits for its result.  [default: {DEFAULT_TIMEOUT_S:g}]",
        ),
        click.option(
            "--endpoints",
            envvar="PAXOSCTL_ENDPOINTS",
            expose_value=False,
            callback=_set_endpoints,
            metavar="HOST:PORT,...",
            help="Client ports of nodes.  [default: 127.0.0.1:5100,...:5101,...:5102]",
        ),
    ):
        function = option(function)
    return function
