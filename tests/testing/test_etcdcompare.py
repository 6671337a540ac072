"""The comparison with etcd finds what differs, and only that; tests/process compares real servers."""

from __future__ import annotations

import base64
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from twisted_paxos.errors import PaxosError
from twisted_paxos.testing import etcddifferences, etcdrandom
from twisted_paxos.testing.etcdanswers import Answer, comparable, split_revisions
from twisted_paxos.testing.etcdcases import cases
from twisted_paxos.testing.etcdcompare import compare, compare_cases, options, report, summary
from twisted_paxos.testing.etcdexchange import Exchange, Peer, decoded
from twisted_paxos.testing.etcdrequests import (
    ASCEND,
    PLAIN,
    Call,
    Chosen,
    Place,
    Rev,
    Spelling,
    Stream,
    get,
    operation,
    path_of,
    put,
    txn,
    written,
)
from twisted_paxos.testing.etcdservers import Servers

JSON = "application/json"


class FakePeer(Peer):
    """A side that answers from a table by path."""

    def __init__(self, name: str, answers: dict[str, Any]) -> None:
        super().__init__(Servers(name, {}, {}, Path()))
        self.answers = answers
        self.begun = 0

    def begin(self) -> None:
        """Nothing is to be removed."""
        self.begun += 1

    def ask(self, call: Call) -> Answer:
        """The next answer for the path, or the only one."""
        answer = self.answers[call.path]
        return answer.pop(0) if isinstance(answer, list) else answer


def ok(**fields: Any) -> Answer:
    """An answer with status 200."""
    return Answer(200, JSON, [fields])


class WrittenTests(SynchronousTestCase):
    """How requests are spelt."""

    def test_plain(self) -> None:
        """Bytes are base64, numbers numbers, enumerations names, revisions count from the beginning."""
        body = {"key": b"\xff\xfe", "limit": 3, "sort_order": ASCEND, "revision": Rev(2), "keys_only": True}
        self.assertEqual(
            {"key": "//4=", "limit": 3, "sort_order": "ASCEND", "revision": 12, "keys_only": True},
            written(body, PLAIN, Place(base=10)),
        )

    def test_other_spellings(self) -> None:
        """camelCase, numbers as text and enumerations by number, also deep inside; the prefix changes."""
        spelling = Spelling(camel=True, text_numbers=True, enum_numbers=True, prefix="/v3beta")
        call = txn((), [operation(get(b"a", range_end=b"b", sort_order=ASCEND, min_mod_revision=Rev(0)))])
        self.assertEqual(
            {
                "success": [
                    {
                        "requestRange": {
                            "key": "YQ==",
                            "rangeEnd": "Yg==",
                            "sortOrder": 1,
                            "minModRevision": "7",
                        }
                    }
                ]
            },
            written(call.body, spelling, Place(base=7)),
        )
        self.assertEqual("/v3beta/kv/txn", path_of(Call("kv/txn", {}, spelling)))
        self.assertEqual("/health", path_of(Call("/health", b"", spelling)))

    def test_chosen_leases(self) -> None:
        """A lease whose id the server chose is named by its place."""
        place = Place(leases=[1 << 40])
        self.assertEqual([1 << 40, 0], written([Chosen(0), Chosen(1)], PLAIN, place))

    def test_what_cannot_be_sent(self) -> None:
        """An object of another kind is an error, not some text."""
        self.assertRaises(TypeError, written, {"a": object()}, PLAIN, Place())

    def test_cases(self) -> None:
        """There are hundreds of hand-written requests, and names do not repeat."""
        sequences = list(cases())
        self.assertEqual(len(sequences), len({name for name, _ in sequences}))
        self.assertGreater(sum(len(sequence) for _, sequence in sequences), 500)


class ComparableTests(SynchronousTestCase):
    """What is a server's own choice, and what is not."""

    def documents(self, path: str, *documents: Any, place: Place | None = None) -> list[Any]:
        return comparable(Call(path, {}), 200, JSON, documents, place or Place()).documents

    def test_header(self) -> None:
        """Ids and the term count only as being there and as text; revisions from the beginning."""
        header = {"cluster_id": "77", "member_id": "8", "raft_term": "2", "revision": "12"}
        [found] = self.documents("kv/put", {"header": header}, place=Place(base=10))
        own = "own str"
        self.assertEqual(
            {"cluster_id": own, "member_id": own, "raft_term": own, "revision": "base+2"}, found["header"]
        )

    def test_numbers_are_told_from_text(self) -> None:
        """A revision that is a number in JSON stays different from one that is text."""
        self.assertNotEqual(
            self.documents("kv/put", {"header": {"revision": 5}}),
            self.documents("kv/put", {"header": {"revision": "5"}}),
        )

    def test_chosen_lease(self) -> None:
        """Ids that a server chose are equal; those that were given are compared."""
        place = Place()
        found = self.documents("lease/grant", {"ID": str(1 << 50), "TTL": "5"}, place=place)
        self.assertEqual([{"ID": "chosen", "TTL": "5"}], found)
        self.assertEqual([1 << 50], place.leases)
        self.assertEqual([{"ID": "7"}], self.documents("lease/revoke", {"ID": "7"}))

    def test_lock_keys(self) -> None:
        """A lock's key ends with the chosen lease, which is taken out; a given one stays."""
        chosen, given = (base64.b64encode(key).decode() for key in (b"l/00f1e2d3c4b5", b"l/b"))
        self.assertEqual([{"key": "b'l'/chosen"}], self.documents("lock/lock", {"key": chosen}))
        self.assertEqual([{"key": given}], self.documents("lock/lock", {"key": given}))

    def test_time_passes(self) -> None:
        """What a lease has left may be a little less than granted, not more and not much less."""
        for left, same in (("100", True), ("97", True), ("101", False), ("40", False)):
            [found] = self.documents("lease/timetolive", {"grantedTTL": "100", "TTL": left})
            self.assertEqual(same, found["TTL"] == "about grantedTTL", left)

    def test_watch_messages(self) -> None:
        """Events count one by one, with their order, whatever messages they came in."""
        first, second = ({"kv": {"key": key, "mod_revision": "3"}} for key in ("YQ==", "Yg=="))
        together = {"result": {"header": {"revision": "9"}, "events": [first, second]}}
        apart = [{"result": {"header": {"revision": "3"}, "events": [event]}} for event in (first, second)]
        swapped = {"result": {"header": {}, "events": [second, first]}}
        self.assertEqual(self.documents("watch", together), self.documents("watch", *apart))
        self.assertNotEqual(self.documents("watch", together), self.documents("watch", swapped))
        self.assertEqual((["3"], []), (split_revisions(apart), split_revisions([together])))

    def test_body(self) -> None:
        """A body is JSON documents line by line, or text."""
        self.assertEqual([{"a": 1}, {"b": 2}], decoded(b'{"a":1}\n{"b":2}\n'))
        self.assertEqual(["404 page not found\n"], decoded(b"404 page not found\n"))
        self.assertEqual([], decoded(b""))


class ExchangeTests(SynchronousTestCase):
    """Two sides that answer from tables."""

    def exchange(self, theirs: dict[str, Any], ours: dict[str, Any]) -> Exchange:
        return Exchange(FakePeer("etcd", theirs), FakePeer("ours", ours), stream_s=0.0)

    def test_same(self) -> None:
        """Equal answers are counted and give nothing."""
        exchange = self.exchange({"kv/put": ok(a="1")}, {"kv/put": ok(a="1")})
        self.assertEqual([], exchange.run([put(b"a"), put(b"b")]))
        self.assertEqual(2, exchange.compared)

    def test_different(self) -> None:
        """A field, a status and a content type that differ are each found, with both answers shown."""
        for other in (ok(a=1), Answer(201, JSON, [{"a": "1"}]), Answer(200, "text/plain", [{"a": "1"}])):
            exchange = self.exchange({"kv/put": ok(a="1")}, {"kv/put": other})
            [difference] = exchange.run([put(b"a")])
            self.assertIn("POST /v3/kv/put", str(difference))
            self.assertIn('etcd: 200 application/json {"a": "1"}', str(difference))

    def test_accepted(self) -> None:
        """Different words for malformed JSON are accepted and counted; other messages and codes are not."""

        def refused(status: int, code: int, message: str) -> Answer:
            return Answer(status, JSON, [{"error": message, "message": message, "code": code}])

        go = refused(400, 3, "json: cannot unmarshal")
        exchange = self.exchange({"kv/put": go}, {"kv/put": refused(400, 3, "key is no base64")})
        self.assertEqual([], exchange.run([put(b"a")]))
        self.assertEqual({"malformed": 1}, dict(exchange.accepted))
        for theirs, ours in (
            (go, refused(400, 5, "key is no base64")),
            (go, refused(500, 3, "key is no base64")),
            (refused(400, 3, "etcdserver: key is not provided"), refused(400, 3, "no key")),
        ):
            exchange = self.exchange({"kv/put": theirs}, {"kv/put": ours})
            self.assertEqual(1, len(exchange.run([put(b"a")])))

    def test_until(self) -> None:
        """A call that waits for an answer is sent again until that comes."""
        exchange = self.exchange({"kv/range": [ok(n="1"), ok(n="2")]}, {"kv/range": ok(n="2")})
        self.assertEqual([], exchange.run([Call("kv/range", {}, until='"n":"2"')]))

    def test_nodes_in_turn(self) -> None:
        """A sequence is sent to the node that it is for."""
        placed = Exchange._placed(Stream(Call("watch", {}, node=1)), first=2)
        self.assertEqual(3, placed.call.node if isinstance(placed, Stream) else None)

    def test_without_hypothesis(self) -> None:
        """Where it is missing, one line says so before anything is started."""
        hidden = {"hypothesis": None, "twisted_paxos.testing.etcdrandom": None}
        with mock.patch.dict(sys.modules, hidden), self.assertRaisesRegex(PaxosError, "--requests 0"):
            compare(Path("nowhere"), options().parse_args([]))

    def test_report(self) -> None:
        """Differences are printed with the name of their sequence, and counted in the last line."""
        lines: list[str] = []
        with mock.patch("twisted_paxos.testing.etcdcompare.cases", return_value=[("one", [put(b"a")])]):
            other = self.exchange({"kv/put": ok(a="1")}, {"kv/put": ok(a="2")})
            report(compare_cases(other), lines.append)
        self.assertTrue(lines[0].startswith("[one] POST /v3/kv/put"))
        self.assertIn("1 requests compared in 2 s, 1 differences", summary(other, 1, 2.0))
        self.assertEqual(5, options().parse_args(["--requests", "5"]).requests)


class RandomTests(SynchronousTestCase):
    """Random sequences, without streams."""

    def compare(self, theirs: Answer, ours: Answer) -> tuple[int, list[str]]:
        """Differences and lines, when two sides answer so to every put, and equally to the rest."""
        sides = [
            FakePeer(name, defaultdict(ok, {"kv/put": put_answer}))
            for name, put_answer in (("etcd", theirs), ("ours", ours))
        ]
        lines: list[str] = []
        plain = st.tuples(st.integers(0, 2), st.lists(etcdrandom.calls(), min_size=2, max_size=8))
        with mock.patch.object(etcdrandom, "SEQUENCES", plain):
            count = etcdrandom.compare_random(Exchange(*sides, stream_s=0.0), 50, 1, lines.append)
        return count, lines

    def test_same(self) -> None:
        """Equal answers give nothing."""
        self.assertEqual((0, []), self.compare(ok(a="1"), ok(a="1")))

    def test_cut_down(self) -> None:
        """A difference is found, counted, and shown after the sequence that makes it."""
        count, lines = self.compare(ok(a="1"), ok(a="2"))
        self.assertTrue(1 <= count <= 8)
        steps, differences = lines[:-count], lines[-count:]
        self.assertTrue(all(line.startswith("[random, seed 1] step") for line in steps))
        self.assertTrue(all("/kv/put" in line for line in differences))

    def test_seed(self) -> None:
        """The same seed fails in the same way."""
        self.assertEqual(self.compare(ok(a="1"), ok(a="2")), self.compare(ok(a="1"), ok(a="2")))

    def test_junk(self) -> None:
        """Damaged requests are bytes to send."""
        bodies: list[object] = []

        @settings(max_examples=50, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(etcdrandom.damaged())
        def look(call: Call) -> None:
            bodies.append(call.body)

        look()
        self.assertTrue(all(isinstance(body, bytes) for body in bodies))


class DifferenceTests(SynchronousTestCase):
    """What each accepted difference explains, and what it does not."""

    refused = staticmethod(
        lambda status, code, message: Answer(
            status, JSON, [{"error": message, "message": message, "code": code}]
        )
    )

    def name(self, call: Call, theirs: Answer, ours: Answer) -> str | None:
        """The accepted difference that explains them."""
        found = etcddifferences.accepted(call, theirs, ours)
        return found.name if found else None

    def test_base64(self) -> None:
        """Ours may read what etcd refuses, not the other way round."""
        refused = self.refused(400, 3, "illegal base64 data at input byte 0")
        self.assertEqual("base64", self.name(get(), refused, ok()))
        self.assertIsNone(self.name(get(), ok(), refused))

    def test_enumeration(self) -> None:
        """Ours may refuse an unknown value, and nothing else that etcd takes."""
        call = get()
        self.assertEqual("enumeration", self.name(call, ok(), self.refused(400, 3, "unknown value 9: ...")))
        self.assertIsNone(self.name(call, ok(), self.refused(400, 3, "etcdserver: key is not provided")))

    def test_token(self) -> None:
        """Only for a request with a token."""
        refused = self.refused(401, 16, "etcdserver: invalid auth token")
        self.assertEqual(
            "token", self.name(Call("kv/range", {}, headers={"authorization": "x"}), refused, ok())
        )
        self.assertIsNone(self.name(get(), refused, ok()))

    def test_deletion_at_start(self) -> None:
        """A deletion at the revision from which is watched may be missing; a later one, or a put, may not."""
        watch = Call("watch", {"create_request": {"key": b"a", "start_revision": Rev(0)}})

        def deletion(revision: str, kind: str = "DELETE") -> Answer:
            return Answer(200, JSON, [{"event": {"type": kind, "kv": {"mod_revision": revision}}}])

        nothing = Answer(200, JSON, [])
        self.assertIsNotNone(self.name(watch, nothing, deletion("base+0")))
        self.assertIsNone(self.name(watch, nothing, deletion("base+1")))
        self.assertIsNone(self.name(watch, nothing, deletion("base+0", "PUT")))

    def test_malformed_later(self) -> None:
        """Only where etcd's stream goes on, and ours says that it was no request."""
        call = Call("watch", b"{}x")
        goes_on = Answer(200, JSON, [{"result": {}}, "open"])

        def ended(code: int) -> Answer:
            return Answer(200, JSON, [{"result": {}}, {"error": {"grpc_code": code}}, "ended"])

        self.assertEqual("malformed later", self.name(call, goes_on, ended(2)))
        self.assertIsNone(self.name(call, goes_on, ended(14)))
        self.assertIsNone(self.name(call, Answer(200, JSON, ["ended"]), ended(2)))

    def test_duplicate(self) -> None:
        """Only where a deletion's end is not behind its key; the sequence ends there, however it is spelt."""
        refused = self.refused(400, 3, "etcdserver: duplicate key given in txn request")
        for end, known in ((b"\0", True), (b"a", True), (b"c", False), (b"", False)):
            call = txn(
                (), [operation(put(b"b")), operation(Call("kv/deleterange", {"key": b"a", "range_end": end}))]
            )
            raw = json.dumps(written(call.body, Spelling(camel=True), Place())).encode()
            for form in (call, Call("kv/txn", raw)):
                self.assertEqual(known, self.name(form, ok(), refused) == "duplicate key", (end, form))
        self.assertIsNone(self.name(Call("kv/txn", b"{"), ok(), refused))

    def test_parted(self) -> None:
        """After a difference that leaves the stores different, the rest of the sequence is not compared."""
        refused = self.refused(400, 3, "etcdserver: duplicate key given in txn request")
        deletion = operation(Call("kv/deleterange", {"key": b"a", "range_end": b"\0"}))
        exchange = Exchange(
            FakePeer("etcd", {"kv/put": ok(), "kv/txn": ok()}),
            FakePeer("ours", {"kv/put": ok(), "kv/txn": refused}),
        )
        steps = [put(b"z"), txn((), [operation(put(b"b")), deletion]), put(b"z")]
        self.assertEqual(([], 2), (exchange.run(steps), exchange.compared))
        self.assertEqual(([], 4), (exchange.run(steps), exchange.compared))


class DocumentTests(SynchronousTestCase):
    """The table of accepted differences."""

    def test_names(self) -> None:
        """Each has a name of its own."""
        names = [entry.name for entry in etcddifferences.ACCEPTED]
        self.assertEqual(len(names), len(set(names)))

    def test_documented(self) -> None:
        """The documentation shows the table as it is."""
        document = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"
        if not document.exists():
            raise SkipTest("not started from a checkout")
        self.assertIn(etcddifferences.markdown(), document.read_text())
