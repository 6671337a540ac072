"""PySyncObj as a system under test: it is a library, so the load runs inside a member.

python -m benchmarks.pysync SELF OTHER,OTHER            a node
python -m benchmarks.pysync SELF OTHER,OTHER '{task}'   a node that does a task once there is a leader
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Run, latencies
from benchmarks.load import key_of
from benchmarks.processes import BenchmarkError, output_of, python
from benchmarks.systems import GRACE_S, UIDS, System, Task
from twisted_paxos.testing.nodes import free_ports

KEY_BYTES = 16


class PySyncObj(System):
    """Three members in memory: without a journal it writes nothing to disk; with one it does not sync."""

    name = "pysyncobj"

    @staticmethod
    def missing() -> list[str]:
        """See `System`."""
        return [] if importlib.util.find_spec("pysyncobj") else ["pip install pysyncobj"]

    def start(self) -> None:
        """See `System`: the members are started with each task, empty; nothing is kept without them."""

    def _start_two(self) -> None:
        self.processes.stop()
        self._addresses = [f"127.0.0.1:{port}" for port in free_ports(len(UIDS))]
        for at in range(2):
            others = ",".join(a for a in self._addresses if a != self._addresses[at])
            self.processes.start(UIDS[at], python("-m", "benchmarks.pysync", self._addresses[at], others))

    def run(self, task: Task) -> Run | None:
        """See `System`."""
        if task.operation != "put" or task.keys > 1 or task.rate_per_s:
            return None
        self._start_two()
        request = json.dumps(
            {
                "in_flight": task.in_flight,
                "seconds": task.seconds,
                "warm_up_s": task.warm_up_s,
                "value_bytes": task.value_bytes,
            }
        )
        node = python("-m", "benchmarks.pysync", self._addresses[2], ",".join(self._addresses[:2]), request)
        run: Run = json.loads(output_of(node, task.seconds + task.warm_up_s + GRACE_S))
        self.processes.check()
        if run.pop("stored") != run.pop("acknowledged"):
            raise BenchmarkError(f"pysyncobj, {task.name}: not what was acknowledged is stored")
        return run


def node(address: str, others: list[str]) -> Any:
    """A member with a dictionary that counts its puts."""
    from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-untyped]

    class Store(SyncObj):
        def __init__(self) -> None:
            super().__init__(address, others, SyncObjConf())
            self.values: dict[bytes, bytes] = {}
            self.puts = 0

        @replicated
        def put(self, key: bytes, value: bytes) -> None:
            self.values[key] = value
            self.puts += 1

    return Store()


def load(store: Any, task: dict[str, Any]) -> Run:
    """A closed loop of puts."""
    key, value = key_of(0, KEY_BYTES), b"v" * task["value_bytes"]
    lock, state = threading.Lock(), {"measuring": False, "stopped": False, "acknowledged": 0}
    took_s: list[float] = []
    before = store.puts

    def answered(start_s: float) -> Callable[[Any, Any], None]:
        def done(_: Any, error: Any) -> None:
            with lock:
                if not error:
                    state["acknowledged"] += 1
                    if state["measuring"]:
                        took_s.append(time.perf_counter() - start_s)
            if not state["stopped"]:
                put()

        return done

    def put() -> None:
        store.put(key, value, callback=answered(time.perf_counter()))

    for _ in range(task["in_flight"]):
        put()
    time.sleep(task["warm_up_s"])
    state["measuring"], began_s = True, time.perf_counter()
    time.sleep(task["seconds"])
    state["measuring"], lasted_s = False, time.perf_counter() - began_s
    state["stopped"] = True
    time.sleep(1.0)
    return {
        "operations": len(took_s),
        "rate_per_s": round(len(took_s) / lasted_s, 1),
        "acknowledged": state["acknowledged"],
        "stored": store.puts - before,
        **latencies(took_s),
    }


def main() -> None:
    """See the module."""
    store = node(sys.argv[1], sys.argv[2].split(","))
    if len(sys.argv) < 4:
        threading.Event().wait()
    end_s = time.monotonic() + GRACE_S / 2
    while not (store.isReady() and store._getLeader()):
        if time.monotonic() > end_s:
            raise SystemExit("pysync: there is no leader")
        time.sleep(0.05)
    sys.stdout.write(json.dumps(load(store, json.loads(sys.argv[3]))) + "\n")
    sys.stdout.flush()
    store.destroy()


if __name__ == "__main__":
    main()
