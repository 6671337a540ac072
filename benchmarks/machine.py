"""What the figures were measured on: versions, machine, and the three limits of any such system."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import twisted_paxos
from benchmarks.figures import percentile
from twisted_paxos.storage.executor import DiskQueue

SYNCS = 200
ROUND_TRIPS = 2_000
CALLS = 100_000
_COMMANDS = {"etcd": "--version", "h2load": "--version", "wrk": "--version"}


def versions() -> dict[str, str]:
    """Versions of all that takes part; what is not there is left out."""
    found = {
        "python": f"{sys.version.split()[0]} ({os.path.realpath(sys.executable)})",
        "twisted_paxos": f"{twisted_paxos.__version__} (disk queue: {'native' if DiskQueue else 'Python'})",
    }
    for package in ("twisted", "msgspec", "crc32c", "pysyncobj"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for command, option in _COMMANDS.items():
        if shutil.which(command):
            said = subprocess.run([command, option], capture_output=True, text=True, check=False)
            match = re.search(r"\d+\.\d+(\.\d+)?", said.stdout + said.stderr)
            found[command] = match[0] if match else "unknown"
    return found


def machine(directory: Path) -> dict[str, Any]:
    """The machine, and what its disk and its loopback take."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "load_1min": round(os.getloadavg()[0], 1),
        "fdatasync_ms": fdatasync_ms(directory),
        "loopback_round_trip_ms": loopback_round_trip_ms(),
        "interpreter_call_ns": interpreter_call_ns(),
    }


def fdatasync_ms(directory: Path) -> dict[str, float]:
    """Median and 99th percentile of writing 300 bytes into a reserved file and syncing it."""
    path = directory / "fdatasync.probe"
    took = []
    with path.open("wb") as file:
        os.pwrite(file.fileno(), bytes(1 << 20), 0)
        os.fsync(file.fileno())
        for number in range(SYNCS):
            os.pwrite(file.fileno(), b"x" * 300, number * 300)
            start_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - start_s)
    path.unlink()
    return _spread(took)


def loopback_round_trip_ms() -> dict[str, float]:
    """Median and 99th percentile of one small datagram there and back, with plain sockets."""
    with _bound() as here, _bound() as there:
        echo = threading.Thread(target=_echo, args=(there,), daemon=True)
        echo.start()
        took = []
        for _ in range(ROUND_TRIPS):
            start_s = time.perf_counter()
            here.sendto(b"x" * 300, there.getsockname())
            here.recv(512)
            took.append(time.perf_counter() - start_s)
        here.sendto(b"", there.getsockname())
        echo.join()
    return _spread(took)


class _Called:
    def __init__(self) -> None:
        self.number = 1

    def call(self, other: int) -> int:
        return self.number + other


def interpreter_call_ns() -> float:
    """Best of ten: one call of a method that adds two numbers, with its turn of a loop.

    Builds of one and the same Python differ by a third here.
    """
    call, best_s = _Called().call, math.inf
    for _ in range(10):
        start_s = time.perf_counter()
        for number in range(CALLS):
            call(number)
        best_s = min(best_s, time.perf_counter() - start_s)
    return round(1e9 * best_s / CALLS, 1)


def _bound() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.settimeout(5)
    return made


def _echo(bound: socket.socket) -> None:
    while True:
        data, sender = bound.recvfrom(512)
        if not data:
            return
        bound.sendto(data, sender)


def _spread(took: list[float]) -> dict[str, float]:
    took.sort()
    return {"p50": round(1000 * percentile(took, 0.5), 3), "p99": round(1000 * percentile(took, 0.99), 3)}


def cpu_s(pid: int) -> float:
    """CPU time that all threads of a process have used, in seconds; not a number where there is no /proc."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        return math.nan
    total_ns = 0
    for task in tasks.iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where there is no /proc."""
    status = Path(f"/proc/{pid}/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
