"""paxosctl lock and elect: hold something as long as a command runs, or until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twisted_paxos.cli import output
from twisted_paxos.cli.keys import run_with_client
from twisted_paxos.cli.settings import Settings, common_options
from twisted_paxos.cli.values import EXIT_NO, as_bytes, kv_document
from twisted_paxos.client import Client
from twisted_paxos.client.recipes import TTL_S, Election, Lock, Place
from twisted_paxos.errors import ConfigError, NotAcquired, PaxosError

EXIT_LOST: Final = 5
"""The exit status when what was held was lost meanwhile."""

TERM_S: Final = 5.0
"""How long a command has between SIGTERM and SIGKILL."""

GIVE_UP_S: Final = 1.0
"""How long telling the cluster may take that this process waits no more."""

TOKEN_VARIABLE: Final = "PAXOS_FENCING_TOKEN"
NAME_VARIABLE: Final = "PAXOS_LOCK_NAME"

_ttl_option = click.option(
    "--ttl-s",
    type=click.IntRange(min=2),
    default=TTL_S,
    show_default=True,
    metavar="SECONDS",
    help="How long others wait when this process dies.",
)
_wait_option = click.option(
    "--wait-s", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait no longer for it."
)


class Command(ProcessProtocol):
    """The command that runs under a lock, with this process's input and output.

    Attributes:
        status: its exit status once it has ended, as a shell reports it.
    """

    def __init__(self, reactor: Any) -> None:
        self.status: int | None = None
        self._reactor = reactor
        self._waiting: list[Deferred[int]] = []
        self._process: Any = None
        self._killing: Any = None

    def start(self, words: Sequence[str], environment: dict[str, str]) -> None:
        """Start it."""
        sys.stdout.flush()
        descriptors = {0: 0, 1: 1, 2: 2}
        # As bytes, so that a word of any bytes arrives as it is.
        encoded = [os.fsencode(word) for word in words]
        self._process = self._reactor.spawnProcess(
            self, encoded[0], encoded, environment, childFDs=descriptors
        )

    def ended(self) -> Deferred[int]:
        """Fires with its exit status."""
        done: Deferred[int] = Deferred()
        if self.status is not None:
            done.callback(self.status)
        else:
            self._waiting.append(done)
        return done

    def end(self) -> None:
        """SIGTERM, and after `TERM_S` SIGKILL."""
        if self._process is not None and self._killing is None:
            self._killing = self._reactor.callLater(TERM_S, self._signal, "KILL")
            self._signal("TERM")

    def _signal(self, name: str) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess(name)

    def processEnded(self, reason: Failure) -> None:
        """It has ended."""
        self._process = None
        if self._killing is not None and self._killing.active():
            self._killing.cancel()
        value: Any = reason.value
        status = 0 if isinstance(value, ProcessDone) else value.exitCode
        self.status = status if status is not None else 128 + (value.signal or signal.SIGKILL)
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(self.status)


@click.command("lock")
@click.argument("name", type=click.UNPROCESSED)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@_ttl_option
@_wait_option
@common_options
@click.pass_obj
def lock_command(
    settings: Settings, name: str, command: tuple[str, ...], ttl_s: int, wait_s: float | None
) -> int:
    """Run COMMAND while holding the lock NAME; its exit status is this one's.

    The command finds the fencing token in PAXOS_FENCING_TOKEN: a number that is higher for each
    later holder. When the lock is lost, the command gets SIGTERM, five seconds later SIGKILL, and
    the exit status is 5. It is 4 when the lock was not free in time.
    """
    _check_executable(command[0])
    return run_with_client(settings, lambda client: _lock(client, as_bytes(name), command, ttl_s, wait_s))


def _check_executable(word: str) -> None:
    import shutil

    if shutil.which(word) is None:
        raise ConfigError(f"there is no command {output.printable(word)}")


async def _lock(client: Client, name: bytes, words: Sequence[str], ttl_s: int, wait_s: float | None) -> int:
    lock = Lock(client, name, ttl_s=ttl_s)
    try:
        token = await _wait(client, lock, lock.acquire(wait_s))
    except NotAcquired as error:
        output.warn(str(error))
        return EXIT_NO
    command = Command(client.reactor)
    lost: list[str] = []

    def on_lost(why: str) -> None:
        lost.append(why)
        output.warn(f"the lock is lost: {why}; ending the command")
        command.end()

    lock.lost.addCallback(on_lost)
    command.start(words, _environment(name, token))
    try:
        status = await command.ended()
    finally:
        command.end()
        await command.ended()  # Nobody else may have the lock before that.
        await _let_go(lock)
    return EXIT_LOST if lost else status


def _environment(name: bytes, token: int) -> dict[str, str]:
    return {**os.environ, TOKEN_VARIABLE: str(token), NAME_VARIABLE: os.fsdecode(name)}


async def _wait(client: Client, place: Place, turn: Deferred[int]) -> int:
    """The fencing token; when it does not come, others behind this place need not wait for its lease."""
    try:
        return await turn
    except (PaxosError, CancelledError):
        with contextlib.suppress(PaxosError, CancelledError, TimeoutError):
            await place.release().addTimeout(GIVE_UP_S, client.reactor)
        raise


async def _let_go(place: Place) -> None:
    try:
        await place.release()
    except PaxosError as error:
        output.warn(f"others wait until the lease runs out: {error}")


@click.command("elect")
@click.argument("name", type=click.UNPROCESSED)
@click.argument("value", required=False, type=click.UNPROCESSED)
@click.option("--listen", "-l", is_flag=True, help="Show who leads, and each change, instead.")
@_ttl_option
@_wait_option
@common_options
@click.pass_obj
def elect_command(
    settings: Settings, name: str, value: str | None, listen: bool, ttl_s: int, wait_s: float | None
) -> int:
    """Stand in the election NAME with VALUE; leads from the printed line on, until Ctrl-C.

    The line has the fencing token and the value. The exit status is 5 when the leadership was
    lost, 4 when it was not won within --wait-s.
    """
    if listen == (value is not None):
        raise click.UsageError("give a VALUE to stand with, or --listen")

    async def work(client: Client) -> int:
        election = Election(client, as_bytes(name), ttl_s=ttl_s)
        if listen:
            return await _listen(election, settings)
        return await _lead(client, election, as_bytes(value or ""), settings, wait_s)

    return run_with_client(settings, work)


async def _listen(election: Election, settings: Settings) -> int:
    async for leader in election.observe():
        if settings.json:
            output.print_json(kv_document(leader))
        else:
            print(f"{leader.create_revision}\t{output.printable(leader.value)}")
        sys.stdout.flush()
    return 0


async def _lead(
    client: Client, election: Election, value: bytes, settings: Settings, wait_s: float | None
) -> int:
    try:
        token = await _wait(client, election, election.campaign(value, wait_s))
    except NotAcquired as error:
        output.warn(str(error))
        return EXIT_NO
    if settings.json:
        output.print_json({"token": token, **output.value_document(value)})
    else:
        print(f"{token}\t{output.printable(value)}")
    sys.stdout.flush()
    try:
        why = await election.lost
    finally:
        await _let_go(election)
    output.warn(f"this candidate leads no more: {why}")
    return EXIT_LOST
