"""Server processes of a system under test: started in a directory of their own, always stopped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from benchmarks.machine import cpu_s, memory_bytes

READY_S = 30.0
STOP_S = 10.0
POLL_S = 0.05
ROOT = Path(__file__).resolve().parents[1]
"""The checkout: children import twisted_paxos and benchmarks from there."""

T = TypeVar("T")


class BenchmarkError(Exception):
    """A system did not do what it should; one line."""


def environment() -> dict[str, str]:
    """The environment of children."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def python(*arguments: str) -> list[str]:
    """A command for the Python that runs this."""
    return [sys.executable, *arguments]


def wait_for(what: str, condition: Callable[[], T | None], deadline_s: float = READY_S) -> T:
    """Ask ``condition`` again and again until it gives something.

    Raises:
        BenchmarkError: it does not in time.
    """
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        found = condition()
        if found is not None:
            return found
        time.sleep(POLL_S)
    raise BenchmarkError(f"{what}: not within {deadline_s:g} s")


class Processes:
    """Named server processes; a context manager that kills what is left.

    Args:
        directory: output goes to ``NAME.out`` there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a server."""
        self._commands[name] = command
        with self._output(name).open("ab") as output:
            self._running[name] = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _output(self, name: str) -> Path:
        return self.directory / f"{name}.out"

    def check(self) -> None:
        """Raises `BenchmarkError` when one has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                lines = self._output(name).read_text(errors="replace").splitlines()
                last = lines[-1] if lines else "no output"
                raise BenchmarkError(f"{name} ended with status {process.returncode}: {last}")

    def kill(self, name: str) -> float:
        """SIGKILL; returns when, on the monotonic clock, in seconds."""
        process = self._running.pop(name)
        process.kill()
        killed_s = time.monotonic()
        process.wait()
        return killed_s

    def kill_all(self) -> list[str]:
        """SIGKILL to all at once; their names."""
        names = list(self._running)
        for process in self._running.values():
            process.kill()
        for name in names:
            self._running.pop(name).wait()
        return names

    def start_again(self, name: str) -> None:
        """Start one that was killed, as it was."""
        self.start(name, self._commands[name])

    def memory_bytes(self) -> Mapping[str, int]:
        """Memory of each that is in use."""
        return {name: memory_bytes(process.pid) for name, process in self._running.items()}

    def cpu_s(self) -> Mapping[str, float]:
        """CPU time that each has used, in seconds."""
        return {name: cpu_s(process.pid) for name, process in self._running.items()}

    def stop(self) -> None:
        """Ask all to end, and kill those that do not."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def output_of(command: Sequence[str], timeout_s: float) -> str:
    """What a client command prints.

    Raises:
        BenchmarkError: it fails, or takes longer.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{command[0]} takes longer than {timeout_s:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BenchmarkError(f"{Path(command[0]).name} failed: {said[-1] if said else done.returncode}")
    return done.stdout
