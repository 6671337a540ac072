"""The commands of paxosctl that talk to nodes: propose, log, status."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import click
from msgspec import Struct
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from twisted_paxos.cli import output
from twisted_paxos.cli.lines import LineReader, LongLine
from twisted_paxos.cli.progress import Progress
from twisted_paxos.cli.running import run
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.client import (
    VALUE_MAX_BYTES,
    Client,
    LogReader,
    NodeStatus,
    Outcome,
    Result,
    ask_status,
    connect,
)
from twisted_paxos.errors import PaxosError, Unavailable, ValueTooLarge

ERRORS_SHOWN: Final = 10
"""Failed values told one by one; the rest is a number in the summary."""

STATUS_TIMEOUT_S: Final = 3.0
"""A node that does not answer by then is shown as unreachable."""


@click.command("propose")
@click.argument("values", nargs=-1, required=True, metavar="VALUE...", type=click.UNPROCESSED)
@click.option("--quiet", "-q", is_flag=True, help="Only the summary, no line for each value.")
@common_options
@click.pass_obj
def propose_command(settings: Settings, values: tuple[str, ...], quiet: bool) -> int:
    """Have each VALUE chosen; prints where it is in the log: slot, place in the slot, value.

    With "-" as the only VALUE, each line of standard input is a value (without its line end; an
    empty line is an empty value).
    """
    if values == ("-",):
        return run(lambda reactor: _propose_lines(reactor, settings, quiet))
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    return run(lambda reactor: _propose_values(reactor, settings, encoded, quiet))


async def _propose_values(reactor: Any, settings: Settings, values: Sequence[bytes], quiet: bool) -> int:
    client = await connect(reactor, settings.endpoints, timeout_s=settings.timeout_s)
    outcomes: dict[int, Outcome] = {}
    try:
        await client.propose_many(values, outcomes.__setitem__)
    finally:
        await client.close()
    documents = []
    for number, value in enumerate(values):
        outcome = outcomes[number]
        documents.append(_outcome_document(value, outcome))
        if isinstance(outcome, PaxosError):
            output.warn(f'value {number + 1}, "{output.shorten(value)}": {outcome}')
        elif not (quiet or settings.json):
            print(f"{outcome.slot}\t{outcome.index}\t{output.shorten(value)}")
    if settings.json:
        output.print_json({"results": documents})
    return 1 if any(isinstance(outcome, PaxosError) for outcome in outcomes.values()) else 0


def _outcome_document(value: bytes, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Result):
        return {"slot": outcome.slot, "index": outcome.index, **output.value_document(value)}
    return {"error": type(outcome).__name__, "message": str(outcome), **output.value_document(value)}


async def _propose_lines(reactor: Any, settings: Settings, quiet: bool) -> int:
    client = await connect(reactor, settings.endpoints, timeout_s=settings.timeout_s)
    pipe = _Pipe(reactor, client, settings.json, quiet)
    try:
        return await pipe.run()
    finally:
        pipe.progress.stop()
        await client.close()


class _Line(Struct):
    """A line under way.

    Attributes:
        number: its place in the input, from 1.
        value: all of it for JSON, else what is shown of it.
        size_bytes: of the whole line.
    """

    number: int
    value: bytes
    size_bytes: int


class _Pipe:
    """``propose -``: standard input in, a row for each line out."""

    def __init__(self, reactor: Any, client: Client, as_json: bool, quiet: bool) -> None:
        self._reactor = reactor
        self._client = client
        self._json = as_json
        self._quiet = quiet
        self._lines: dict[int, _Line] = {}
        self._read = 0
        self._chosen = 0
        self._failed = 0
        self._stop_at: _Line | None = None
        self._flushing = False
        self._broken = False
        shown = quiet or not sys.stdout.isatty()
        self.progress = Progress(shown, output.file_bytes(sys.stdin.fileno()))

    async def run(self) -> int:
        """Propose everything; the exit status."""
        started_s = time.monotonic()
        self.progress.start()
        await self._client.propose_many(self._values(), self._finished)
        self.progress.stop()
        self._summary(time.monotonic() - started_s)
        return 1 if self._failed else 0

    async def _values(self) -> AsyncIterator[bytes]:
        proposed = 0
        async for line in LineReader(self._reactor, sys.stdin.fileno(), VALUE_MAX_BYTES):
            if self._stop_at is not None or self._broken:
                return
            self._read += 1
            if isinstance(line, LongLine):
                self._too_long(line)
                continue
            kept = line if self._json else line[: 4 * output.VALUE_SHOWN_CHARS]
            self._lines[proposed] = _Line(self._read, kept, len(line))
            proposed += 1
            yield line

    def _too_long(self, line: LongLine) -> None:
        limit = f"{line.size_bytes:,} bytes are over the limit of {VALUE_MAX_BYTES:,}"
        self._fail(_Line(self._read, b"", line.size_bytes), ValueTooLarge(f"{limit}; split it"))

    def _finished(self, number: int, outcome: Outcome) -> None:
        if self._broken:
            raise BrokenPipeError
        line = self._lines.pop(number)
        self.progress.advance(line.size_bytes + 1)
        if isinstance(outcome, PaxosError):
            if self._stop_at is None and not isinstance(outcome, ValueTooLarge):
                self._stop_at = line
            self._fail(line, outcome)
            return
        self._chosen += 1
        if self._quiet:
            return
        if self._json:
            self._write({"line": line.number, **_outcome_document(line.value, outcome)})
        else:
            print(f"{outcome.slot}\t{outcome.index}\t{_shown(line)}")
        self._flush_soon()

    def _fail(self, line: _Line, error: PaxosError) -> None:
        self._failed += 1
        if self._json and not self._quiet:
            self._write({"line": line.number, "error": type(error).__name__, "message": str(error)})
            self._flush_soon()
        if self._failed <= ERRORS_SHOWN:
            self.progress.warn(f"line {line.number}: {error}")

    def _write(self, document: dict[str, Any]) -> None:
        output.print_json(document)

    def _flush_soon(self) -> None:
        """Rows of one turn leave together, and none waits for the next: input may come slowly."""
        if not self._flushing:
            self._flushing = True
            self._reactor.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            self._broken = True

    def _summary(self, elapsed_s: float) -> None:
        if self._failed > ERRORS_SHOWN:
            output.warn(f"{self._failed - ERRORS_SHOWN:,} more failed")
        if self._stop_at is not None:
            output.warn(f"stopped reading after line {self._read}; see: paxosctl status")
        rate = self._chosen / elapsed_s if elapsed_s > 0 else 0.0
        failed = f", {self._failed:,} failed" if self._failed else ""
        values = "value" if self._chosen == 1 else "values"
        summary = f"{self._chosen:,} {values} chosen in {elapsed_s:.2f} s, {rate:,.0f} per second{failed}"
        print(summary, file=sys.stderr)


def _shown(line: _Line) -> str:
    """What is shown of a line of which only the head was kept."""
    return output.shorten_head(line.value, line.size_bytes, "bytes")


@click.command("log")
@click.option(
    "--from",
    "from_slot",
    type=click.IntRange(min=0),
    default=0,
    help="The first slot.  [default: what there is]",
)
@click.option("--follow", "-f", is_flag=True, help="Wait for more at the end; Ctrl-C ends it.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many slots.")
@common_options
@click.pass_obj
def log_command(settings: Settings, from_slot: int, follow: bool, limit: int | None) -> int:
    """Print the chosen log: slot, ProposalID, value; a row for each command."""
    return run(lambda reactor: _print_log(reactor, settings, from_slot, follow, limit))


async def _print_log(
    reactor: Any, settings: Settings, from_slot: int, follow: bool, limit: int | None
) -> int:
    reader = LogReader(reactor, settings.endpoints, from_slot, follow)
    printed = 0
    try:
        async for entry in reader:
            if settings.json:
                output.print_json(output.log_document(entry))
            else:
                print("\n".join(output.log_rows(entry)))
            printed += 1
            if printed == limit:
                break
            if not reader.buffered:
                sys.stdout.flush()
    finally:
        reader.close()
    return 0


@click.command("status")
@click.option("--watch", "-w", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval-s", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS",
    help="How often --watch asks.",
)  # fmt: skip
@common_options
@click.pass_obj
def status_command(settings: Settings, watch: bool, interval_s: float) -> int:
    """Show every node: role, leader, ballot, how far its log goes, storage, uptime."""
    if watch:
        return run(lambda reactor: _watch_status(reactor, settings, interval_s))
    return run(lambda reactor: _print_status(reactor, settings))


async def _watch_status(reactor: Any, settings: Settings, interval_s: float) -> int:
    while True:
        if sys.stdout.isatty() and not settings.json:
            click.clear()
        await _print_status(reactor, settings)
        sys.stdout.flush()
        await deferLater(reactor, interval_s)


async def _print_status(reactor: Any, settings: Settings) -> int:
    timeout_s = min(settings.timeout_s, STATUS_TIMEOUT_S)
    asking = [
        Deferred.fromCoroutine(_status_or_why(reactor, endpoint, timeout_s))
        for endpoint in settings.endpoints
    ]
    nodes = list(zip(settings.endpoints, await gatherResults(asking, consumeErrors=True), strict=True))
    if settings.json:
        output.print_json({"nodes": [output.node_document(endpoint, status) for endpoint, status in nodes]})
    else:
        output.print_nodes(nodes)
    if all(isinstance(status, str) for _, status in nodes):
        output.warn("no node answers; start one with: twistd -n paxos --id A (or name them with --endpoints)")
        return 1
    return 0


async def _status_or_why(reactor: Any, endpoint: str, timeout_s: float) -> NodeStatus | str:
    try:
        return await ask_status(reactor, endpoint, timeout_s)
    except Unavailable as error:
        return str(error).removeprefix(f"{endpoint}: ")
