"""put, get, del, compact, txn, watch, lease and bench, against nodes in memory."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from tests.cli.test_client import CommandCase
from twisted_paxos import cli
from twisted_paxos.cli import bench, keys, lease, running
from twisted_paxos.cli.bench import percentile_s


class Output(io.StringIO):
    """Standard output that takes bytes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = io.BytesIO()


class KeysCase(CommandCase):
    """Runs ``paxosctl`` with its arguments against the nodes in memory."""

    def setUp(self) -> None:
        """Commands run on the reactor in memory."""
        super().setUp()
        for module in (keys, running):
            self.patch(module, "run", self.run_here)

    def run_here(self, work: Any) -> int:
        """Takes the place of `running.run`."""
        done = Deferred.fromCoroutine(work(self.reactor))
        self.network.run(0.3)
        outcome: list[Any] = []
        done.addBoth(outcome.append)
        self.assertEqual(1, len(outcome), "the command goes on")
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        status: int = outcome[0]
        return status

    def paxosctl(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str]:
        """Exit status and output; errors are in ``err``."""
        self.out, self.err = Output(), io.StringIO()
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with redirect_stdout(self.out), redirect_stderr(self.err):
            status = cli.run_cli(["--endpoints", "127.0.0.1:5100,127.0.0.1:5101", *arguments])
        return status, self.out.getvalue()

    def json(self, *arguments: str) -> Any:
        """What ``--json`` prints."""
        return json.loads(self.paxosctl("--json", *arguments)[1])


class KeysTests(KeysCase):
    """put, get, del, compact."""

    def test_put_and_get(self) -> None:
        """A row for each key, with tabs; status 4 for an absent key, 0 for an empty range."""
        self.assertEqual((0, "revision 2\n"), self.paxosctl("put", "k", "v"))
        self.assertEqual((0, "k\tv\n"), self.paxosctl("get", "k"))
        self.assertEqual((4, ""), self.paxosctl("get", "absent"))
        self.assertEqual((0, ""), self.paxosctl("get", "absent", "--prefix"))
        self.assertEqual((0, "revision 3\nk\tv\n"), self.paxosctl("put", "k", "w", "--prev"))

    def test_every_byte(self) -> None:
        """Any bytes come in from standard input, a file and the command line, and out by --raw and --json."""
        data = bytes(range(256))
        self.assertEqual(0, self.paxosctl("put", "bin", "-", stdin=data)[0])
        self.paxosctl("get", "bin", "--raw")
        self.assertEqual(data, self.out.buffer.getvalue())
        path = Path(self.mktemp())
        path.write_bytes(b"\xff\x00\n")
        self.assertEqual(0, self.paxosctl("put", "file", "--file", str(path))[0])
        self.assertEqual("/wAK", self.json("get", "file")["kvs"][0]["value_base64"])
        self.assertEqual((0, "file\t\\xff\\x00\\n\n"), self.paxosctl("get", "file"))
        self.paxosctl("put", os.fsdecode(b"\xfe"), os.fsdecode(b"\xfd"))
        self.assertEqual("/g==", self.json("get", "f", "--from-key")["kvs"][-1]["key_base64"])

    def test_ranges(self) -> None:
        """The options of a range and of order."""
        for key in ("a", "b1", "b2", "c"):
            self.paxosctl("put", key, key.upper())
        self.assertEqual("b1\tB1\nb2\tB2\n", self.paxosctl("get", "b", "-p")[1])
        self.assertEqual("a\nb1\n", self.paxosctl("get", "a", "--range-end", "b2", "--keys-only")[1])
        self.assertEqual("4\n", self.paxosctl("get", "", "--prefix", "--count-only")[1])
        self.assertEqual("c\tC\n", self.paxosctl("get", "", "-p", "--limit", "1", "--descending")[1])
        self.assertIn("3 more", self.err.getvalue())
        self.assertEqual("a\tA\n", self.paxosctl("get", "", "-p", "--revision", "2")[1])
        self.assertEqual("c\tC\n", self.paxosctl("get", "b3", "--from-key", "--serializable")[1])
        self.assertEqual((0, "2 deleted\nb1\tB1\nb2\tB2\n"), self.paxosctl("del", "b", "-p", "--prev"))
        self.assertEqual((4, "0 deleted\n"), self.paxosctl("del", "b", "-p"))
        self.assertEqual({"revision": 6, "deleted": 0, "prev_kvs": []}, self.json("del", "zz"))

    def test_compact(self) -> None:
        """Old revisions cannot be read any more; refusals are one line, in etcd's words."""
        for value in "1234":
            self.paxosctl("put", "k", value)
        self.assertEqual(0, self.paxosctl("compact", "4")[0])
        for arguments in (
            ("compact", "4"),
            ("get", "k", "--revision", "2"),
            ("get", "k", "--revision", "99"),
        ):
            self.assertEqual((1, ""), self.paxosctl(*arguments))
            self.assertRegex(self.err.getvalue(), r"\Apaxosctl: etcdserver: mvcc: [^\n]*\n\Z")

    def test_mistakes(self) -> None:
        """Each is one line and status 2."""
        for arguments in (
            ("get", ""),
            ("get", "k", "-p", "--from-key"),
            ("get", "k", "-p", "--raw"),
            ("put", "k", "v", "--file", "x"),
            ("put", "k", "v", "--lease", "no"),
            ("put", "k", "v", "--lease", "0"),
            ("compact", "0"),
            ("elect", "e"),
            ("elect", "e", "v", "--listen"),
            ("lock", "l"),
            ("lease", "ttl", "zz"),
            ("completion", "tcsh"),
        ):
            self.assertEqual((2, ""), self.paxosctl(*arguments), arguments)
            self.assertRegex(self.err.getvalue(), r"\Apaxosctl: [^\n]+ --help\n\Z")

    def test_too_long(self) -> None:
        """A value over the limit is refused before anything is sent."""
        self.assertEqual(1, self.paxosctl("put", "k", stdin=b"x" * ((1 << 20) + 1))[0])
        self.assertIn("over the limit", self.err.getvalue())
        self.assertEqual([], self.network.links)


class TxnTests(KeysCase):
    """A transaction in its text form."""

    TEXT = b"""
        if   # a comment
          value "k" = "v"
        then
          put k w
          get "" --prefix
          del absent
        else
          get k
    """

    def test_from_stdin(self) -> None:
        """Then, and the next time else: status 0, and 4."""
        self.paxosctl("put", "k", "v")
        expected = "the comparisons hold: then\nput\nget: 1 key\nk\tw\n0 deleted\n"
        self.assertEqual((0, expected), self.paxosctl("txn", stdin=self.TEXT))
        expected = "a comparison does not hold: else\nget: 1 key\nk\tw\n"
        self.assertEqual((4, expected), self.paxosctl("txn", "-", stdin=self.TEXT))

    def test_from_a_file(self) -> None:
        """With --json, every result."""
        path = Path(self.mktemp())
        path.write_bytes(self.TEXT)
        document = self.json("txn", str(path))
        self.assertFalse(document["succeeded"])
        self.assertEqual([], document["responses"][0]["get"]["kvs"])

    def test_mistake(self) -> None:
        """A line that cannot be understood is named, and nothing is done."""
        self.assertEqual((1, ""), self.paxosctl("txn", stdin=b"then\nput k\n"))
        self.assertEqual("paxosctl: line 2: put takes a key and a value\n", self.err.getvalue())
        self.assertEqual([], self.network.links)

    def test_typed(self) -> None:
        """On a terminal each section is asked for, and a mistake is told and asked for again."""
        self.paxosctl("put", "k", "v")
        lines = iter(['value k = "v"\n', "nonsense\n", "\n", "put k w\n", "\n", 'get "open\n', "\n"])

        class Terminal:
            def isatty(self) -> bool:
                return True

            def readline(self) -> str:
                return next(lines)

        err = io.StringIO()
        self.patch(sys, "stdin", Terminal())
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(err):
            status = cli.run_cli(["--endpoints", "127.0.0.1:5100", "txn"])
        self.assertEqual((0, "the comparisons hold: then\nput\n"), (status, out.getvalue()))
        self.assertIn("a comparison is", err.getvalue())
        self.assertIn("does not end", err.getvalue())


class LeaseTests(KeysCase):
    """The lease commands."""

    def test_life(self) -> None:
        """Grant, put with it, ttl, list, keep-alive, revoke; status 4 when it is gone."""
        status, text = self.paxosctl("lease", "grant", "30")
        lease_id = text.strip()
        self.assertEqual((0, int(lease_id, 16)), (status, self.nodes[0].machine.leases()[0]))
        self.paxosctl("put", "k", "v", "--lease", lease_id)
        self.assertEqual(
            (0, f"lease {lease_id}: 30 of 30 s left\nk\n"), self.paxosctl("lease", "ttl", lease_id)
        )
        self.assertEqual((0, f"{lease_id}\n"), self.paxosctl("lease", "list"))
        self.assertEqual({"id": lease_id, "ttl_s": 30}, self.json("lease", "keep-alive", lease_id, "--once"))
        self.assertEqual(0, self.paxosctl("lease", "revoke", lease_id)[0])
        for command in (("revoke", lease_id), ("ttl", lease_id), ("keep-alive", lease_id)):
            self.assertEqual((4, ""), self.paxosctl("lease", *command))
            self.assertIn("there is no lease", self.err.getvalue())
        self.assertEqual({"id": "ab", "ttl_s": 9}, self.json("lease", "grant", "9", "--id", "ab"))

    def test_kept_alive(self) -> None:
        """Without --once it goes on, until the lease is gone."""
        self.paxosctl("lease", "grant", "3", "--id", "7")
        running = self.start(
            keys.with_client(
                self.reactor, self.settings, lambda c: lease._keep_alive(c, self.settings, 7, False)
            ),
            seconds=2.5,
        )
        self.assertNoResult(running)
        self.assertEqual(3, self.out.getvalue().count("lease 7: 3 s from now"))
        self.nodes[0].advance(10)
        with redirect_stdout(self.out), redirect_stderr(self.err):
            self.network.run(1.5)
        self.assertEqual(4, self.successResultOf(running))


class WatchTests(KeysCase):
    """paxosctl watch."""

    def test_rows(self) -> None:
        """Revision, kind, key and value; --limit ends it."""
        for value in "12":
            self.paxosctl("put", "k", value)
        self.paxosctl("del", "k")
        arguments = ("watch", "k", "--revision", "2", "--limit", "3", "--prev")
        self.assertEqual(
            (0, "2\tPUT\tk\t1\n3\tPUT\tk\t2\t(was 1)\n4\tDELETE\tk\t(was 2)\n"), self.paxosctl(*arguments)
        )
        _, text = self.paxosctl("--json", *arguments)
        documents = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(["PUT", "PUT", "DELETE"], [document["type"] for document in documents])
        self.assertEqual("2", documents[2]["prev_kv"]["value"])
        self.assertNotIn("value", documents[2]["kv"])

    def test_compacted(self) -> None:
        """A watch that cannot be is one line and status 1."""
        for value in "1234":
            self.paxosctl("put", "k", value)
        self.paxosctl("compact", "4")
        self.assertEqual((1, ""), self.paxosctl("watch", "k", "--revision", "2"))
        self.assertRegex(
            self.err.getvalue(), r"\Apaxosctl: the watch was cancelled: .* begins at revision 4\n\Z"
        )


class OtherTests(KeysCase):
    """bench, completion, status --watch."""

    def test_bench(self) -> None:
        """It does what it should, and prints rate and latencies."""
        self.patch(bench.time, "perf_counter", lambda: self.reactor.seconds())
        document = self.json("bench", "mixed", "--seconds", "0.2", "--count", "40", "-n", "4", "--keys", "3")
        self.assertEqual((40, 0), (document["operations"], document["failed"]))
        self.assertLessEqual(document["p50_ms"], document["max_ms"])
        self.assertEqual(3, len(self.nodes[0].machine))

    def test_percentiles(self) -> None:
        """Of ordered latencies."""
        ordered_s = [float(number) for number in range(100)]
        self.assertEqual([50.0, 99.0, 99.0], [percentile_s(ordered_s, p) for p in (50, 99, 100)])
        self.assertEqual(0.0, percentile_s([], 50))

    def test_completion(self) -> None:
        """A script for each shell."""
        for shell in ("bash", "zsh", "fish"):
            status, text = self.paxosctl("completion", shell)
            self.assertEqual(0, status)
            self.assertIn("_PAXOSCTL_COMPLETE", text)

    def test_status_watch(self) -> None:
        """The table comes again and again."""
        from twisted_paxos.cli import client as commands

        running = self.start(commands._watch_status(self.reactor, self.settings, 1.0), seconds=2.5)
        self.assertNoResult(running)
        self.assertEqual(3, self.out.getvalue().count("node "))
        running.cancel()
        self.failureResultOf(running)
