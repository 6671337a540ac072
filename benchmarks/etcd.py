"""etcd as a system under test: members with default settings, loaded by h2load and wrk."""

from __future__ import annotations

import base64
import json
import re
import shutil
import urllib.error
import urllib.request
from typing import Any

from benchmarks import grpc
from benchmarks.figures import Run, latencies
from benchmarks.load import LEASE_TTL_S, key_of
from benchmarks.processes import BenchmarkError, output_of, python, wait_for
from benchmarks.systems import FILL_IN_FLIGHT, GRACE_S, LONG_S, System, Task, fail_over_of
from twisted_paxos.testing.nodes import free_ports

CONNECTIONS_FROM = 64
"""From so many in flight on, h2load uses `CONNECTIONS` connections; with fewer, one."""
CONNECTIONS = 8
OPEN_LOOP_STREAMS = 5_000
"""Streams in an open loop: so many that none waits for another."""

WRK_CONNECTIONS_MAX = 512
SERVES_TRY_S = 1.0
KEY_BYTES = 16


class Etcd(System):
    """Three members, data on the same file system, fsync on (it always is)."""

    name = "etcd"

    @staticmethod
    def missing() -> list[str]:
        """See `System`."""
        packages = {"etcd": "etcd-server", "h2load": "nghttp2-client", "wrk": "wrk"}
        absent = [package for command, package in packages.items() if shutil.which(command) is None]
        return [f"apt-get install {' '.join(absent)}"] if absent else []

    def start(self) -> None:
        """See `System`."""
        uids = self.uids
        ports = free_ports(2 * len(uids))
        peers = {uid: f"http://127.0.0.1:{port}" for uid, port in zip(uids, ports, strict=False)}
        self._clients = {
            uid: f"http://127.0.0.1:{port}" for uid, port in zip(uids, ports[len(uids) :], strict=True)
        }
        cluster = ",".join(f"{uid}={url}" for uid, url in peers.items())
        for uid in uids:
            where = {
                "name": uid,
                "data-dir": str(self.directory / uid),
                "listen-peer-urls": peers[uid],
                "initial-advertise-peer-urls": peers[uid],
                "listen-client-urls": self._clients[uid],
                "advertise-client-urls": self._clients[uid],
                "initial-cluster": cluster,
                "initial-cluster-state": "new",
            }
            options = [f"--{name}={value}" for name, value in where.items()]
            self.processes.start(uid, ["etcd", *options])
        self._leader = wait_for("etcd has a leader", self._find_leader)

    def _find_leader(self) -> str | None:
        self.processes.check()
        for uid in self.uids:
            try:
                status = self._ask(uid, "maintenance/status", {})
            except (urllib.error.URLError, OSError):
                return None
            if status.get("leader") == status["header"]["member_id"]:
                return uid
        return None

    def _ask(self, uid: str, path: str, body: dict[str, Any], timeout_s: float = GRACE_S) -> Any:
        request = urllib.request.Request(f"{self._clients[uid]}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    @property
    def leader_address(self) -> str:
        """``host:port`` of the leader, for clients."""
        return self._clients[self._leader].removeprefix("http://")

    def _version(self, key: bytes) -> int:
        """How often a key was put, asked linearizably."""
        found = self._ask(self._leader, "kv/range", {"key": base64.b64encode(key).decode()})
        kvs = found.get("kvs", [])
        return int(kvs[0]["version"]) if kvs else 0

    # -- loads

    def run(self, task: Task) -> Run | None:
        """See `System`; h2load sends one body, so there is one key and no mix."""
        if task.keys > 1 or task.operation == "mix":
            return None
        key = key_of(0, KEY_BYTES)
        if task.operation == "put":
            path, body = grpc.PUT_PATH, grpc.put_body(key, b"v" * task.value_bytes)
        elif task.operation == "keepalive":
            lease = self._ask(self._leader, "lease/grant", {"TTL": LEASE_TTL_S})
            path, body = grpc.KEEP_ALIVE_PATH, grpc.keep_alive_body(int(lease["ID"]))
        else:
            path, body = grpc.RANGE_PATH, grpc.range_body(key, task.operation == "serializable")
        before, cpu_before = self._version(key), self.processes.cpu_s()
        run = self._h2load(task, path, body)
        cpu_after = self.processes.cpu_s()
        run["server_cpu_s"] = round(sum(cpu_after.values()) - sum(cpu_before.values()), 3)
        if task.operation == "put":
            self._check(task, self._version(key) - before, run["operations"])
        return run

    def _check(self, task: Task, stored: int, answered: int) -> None:
        # What was still under way when h2load ended may be stored as well; the warm-up is.
        if stored < answered:
            raise BenchmarkError(f"etcd, {task.name}: {answered} puts answered, {stored} stored")

    def _h2load(self, task: Task, path: str, body: bytes) -> Run:
        body_file = self.directory / "body.bin"
        log_file = self.directory / "h2load.log"
        body_file.write_bytes(body)
        log_file.unlink(missing_ok=True)
        connections = CONNECTIONS if task.in_flight >= CONNECTIONS_FROM else 1
        streams = OPEN_LOOP_STREAMS if task.rate_per_s else task.in_flight // connections
        command = [
            *("h2load", "-t", "1", "-c", str(connections), "-m", str(streams)),
            *("-D", f"{task.seconds * 1000:.0f}ms", f"--warm-up-time={task.warm_up_s * 1000:.0f}ms"),
            *("-d", str(body_file), f"--log-file={log_file}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        ]
        if task.rate_per_s:
            command.append(f"--rps={max(1, round(task.rate_per_s / connections))}")
        said = output_of(
            [*command, self._clients[self._leader] + path], task.seconds + task.warm_up_s + GRACE_S
        )
        return h2load_figures(said, log_file.read_text(), task.seconds)

    def fill(self, operations: int) -> None:
        """See `System`."""
        key = key_of(0, KEY_BYTES)
        body_file = self.directory / "body.bin"
        body_file.write_bytes(grpc.put_body(key, b"v" * 64))
        before = self._version(key)
        streams = str(FILL_IN_FLIGHT // CONNECTIONS)
        command = ["h2load", "-t", "1", "-c", str(CONNECTIONS), "-m", streams, "-n", str(operations)]
        command += ["-d", str(body_file), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        output_of([*command, self._clients[self._leader] + grpc.PUT_PATH], LONG_S)
        stored = self._version(key) - before
        if stored != operations:
            raise BenchmarkError(f"etcd: {operations} puts, {stored} stored")

    def revision(self, uid: str) -> int | None:
        """See `System`."""
        try:
            return int(self._ask(uid, "maintenance/status", {})["header"]["revision"])
        except (OSError, KeyError):
            return None

    def serves(self) -> bool | None:
        """See `System`."""
        for uid in self.uids:
            try:
                self._ask(uid, "kv/range", {"key": _base64(b"k")}, SERVES_TRY_S)
                return True
            except OSError:
                continue
        return None

    def gateway(self, task: Task) -> Run | None:
        """Puts by etcd's JSON gateway, by wrk.

        wrk counts the answers; ``version`` of the key proves them.
        """
        connections = min(task.in_flight, WRK_CONNECTIONS_MAX)
        key = key_of(1, KEY_BYTES)
        script = self.directory / "put.lua"
        body = {"key": _base64(key), "value": _base64(b"v" * task.value_bytes)}
        script.write_text(f"wrk.method = 'POST'\nwrk.body = '{json.dumps(body)}'\n")
        url = f"{self._clients[self._leader]}/v3/kv/put"
        threads, seconds = min(2, connections), max(1, round(task.seconds))
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
        said = output_of([*command, url], seconds + GRACE_S)
        run = wrk_figures(said)
        self._check(task, self._version(key), run["operations"])
        return run

    def fail_over(self) -> Run | None:
        """See `System`."""
        # Other loads came before: it may be another one by now.
        self._leader = wait_for("etcd has a leader", self._find_leader)
        urls = [self._clients[self._leader], *(u for n, u in self._clients.items() if n != self._leader)]
        return fail_over_of(self.processes, self._leader, python("-m", "benchmarks.etcdwriter", *urls))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def h2load_figures(said: str, log: str, seconds: float) -> Run:
    """Figures from h2load's output and its log (start in us, HTTP status, duration in us).

    Raises:
        BenchmarkError: a request failed, or the output is not understood.
    """
    rate = re.search(r"finished in [^,]*, ([\d.]+) req/s", said)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", said)
    if rate is None or failed is None or any(int(number) for number in failed.groups()):
        raise BenchmarkError(f"h2load: {failed[0] if failed else said.strip()[-200:]}")
    rows = (line.split("\t") for line in log.splitlines())
    took_s = [int(row[2]) / 1e6 for row in rows if len(row) >= 3 and row[1] == "200"]
    return {
        "operations": round(float(rate[1]) * seconds),
        "rate_per_s": round(float(rate[1]), 1),
        **latencies(took_s),
    }


def wrk_figures(said: str) -> Run:
    """Figures from wrk's output.

    Raises:
        BenchmarkError: a request failed, or the output is not understood.
    """
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    total = re.search(r"(\d+) requests in", said)
    if rate is None or total is None or "Non-2xx" in said or "Socket errors" in said:
        raise BenchmarkError(f"wrk: {said.strip()[-200:]}")
    run: Run = {"operations": int(total[1]), "rate_per_s": round(float(rate[1]), 1)}
    sizes = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    for name, share in (("p50_ms", "50%"), ("p99_ms", "99%")):
        match = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", said)
        if match:
            run[name] = float(match[1]) * sizes[match[2]]
    return run
