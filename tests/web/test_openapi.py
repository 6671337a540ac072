"""The description of the JSON API, and every endpoint fuzzed by it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.web.schemas import Fitting
from tests.web.sites import WebCase
from twisted_paxos.web.endpoints import PREFIXES, endpoints
from twisted_paxos.web.openapi import describe, operation_of, operations
from twisted_paxos.web.replies import StatusReply

REQUESTS = 1_000
"""Requests of one fuzzing test."""

DELIBERATE = {500: 2, 501: 12, 503: 14}
"""Errors of the 500s that are meant: by HTTP status, the gRPC code."""

DESCRIPTION = describe(operations(), "1.0")
SCHEMAS = DESCRIPTION["components"]["schemas"]
POSTS = {path: item["post"] for path, item in DESCRIPTION["paths"].items() if "post" in item}


def schema_of(path: str) -> dict[str, Any]:
    """What an endpoint reads."""
    return POSTS[path]["requestBody"]["content"]["application/json"]["schema"]


class DescriptionTests(SynchronousTestCase):
    """What it says."""

    def test_complete(self) -> None:
        """Every endpoint is described, and nothing else."""
        self.assertEqual({path.decode() for path in endpoints()}, set(POSTS))

    def test_references(self) -> None:
        """Whatever is referred to is there."""
        wanted = {
            text.partition('"')[0] for text in json.dumps(DESCRIPTION).split("#/components/schemas/")[1:]
        }
        self.assertEqual(set(), wanted - SCHEMAS.keys())

    def test_replies(self) -> None:
        """The reply is the one that the endpoint's function says it gives."""
        reply = operation_of("x", StatusReply, _serve_later).reply
        self.assertEqual(StatusReply, reply)
        content = POSTS["/v3/kv/range"]["responses"]["200"]["content"]["application/json"]["schema"]
        self.assertEqual({"$ref": "#/components/schemas/RangeReply"}, content)

    def test_requests_are_lenient(self) -> None:
        """Numbers may be text, enumerations numbers; nothing is required, and our own tags are not shown."""
        fields = SCHEMAS["RangeRequest"]["properties"]
        self.assertEqual(["integer", "string"], [choice["type"] for choice in fields["limit"]["anyOf"]])
        self.assertEqual(2, fields["sort_order"]["anyOf"][1]["maximum"])
        self.assertNotIn("required", SCHEMAS["RangeRequest"])
        self.assertNotIn("type", SCHEMAS["Put"]["properties"])

    def test_replies_are_strict(self) -> None:
        """64-bit numbers of replies are text."""
        self.assertEqual("string", SCHEMAS["Kv"]["properties"]["mod_revision"]["type"])


def _serve_later(gateway: object, request: object) -> StatusReply:
    """Nothing calls it."""
    raise AssertionError


def _broken(gateway: object, request: object) -> StatusReply:
    raise ZeroDivisionError


class ServedTests(WebCase):
    """``/openapi.json``."""

    def test_served(self) -> None:
        """It is there for GET, as JSON."""
        reply = self.get("/openapi.json")
        self.assertEqual(200, reply.code)
        self.assertEqual(set(DESCRIPTION["paths"]), set(reply.json["paths"]))
        self.assertEqual(405, self.get("/openapi.json", method="POST").code)


class FuzzTests(WebCase):
    """No request has an answer that was not meant, and none leaves a traceback."""

    def fuzz(self, junk: int) -> set[int]:
        """Send values of the description to all endpoints; the statuses that were answered."""
        seen: set[int] = set()
        fitting = Fitting(SCHEMAS, junk)
        # Both prefixes lead to the same objects; one is as good as the other.
        paths = [path for path in POSTS if path.startswith(PREFIXES[0])]
        values = st.sampled_from(paths).flatmap(
            lambda path: st.tuples(st.just(path), fitting.value(schema_of(path)))
        )

        @settings(
            max_examples=REQUESTS // 2,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(values, min_size=2, max_size=2))
        def send(requests: list[tuple[str, Any]]) -> None:
            for path, value in requests:
                seen.add(self.answer_to(path, json.dumps(value).encode()))

        send()
        self.assertEqual([], self.flushLoggedErrors())
        return seen

    def answer_to(self, path: str, body: bytes) -> int:
        """The status of the answer, which must be a proper one; 0 for a wait that goes on."""
        client = self.connect()
        client.send(path, body)
        self.clock.advance(0.01)
        sent = client.transport.value()
        if not sent:
            client.leave()
            return 0
        status = int(sent.split(b" ", 2)[1])
        self.assertNotIn(b"Traceback", sent)
        self.assertIn(str(status), POSTS[path]["responses"], (path, body, sent))
        if status >= 500:
            self.assertEqual(client.reply().json["code"], DELIBERATE[status], (path, body, sent))
        client.leave()
        return status

    def test_finds_a_bug(self) -> None:
        """An endpoint that raises what nobody foresaw is noticed."""
        path = b"/v3/kv/put"
        self.site.endpoints[path] = self.site.endpoints[path]._replace(serve=_broken)
        with self.assertRaises(self.failureException):
            self.answer_to(path.decode(), b"{}")
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_described(self) -> None:
        """What fits the description is answered, or refused with an error of etcd's."""
        self.assertTrue({200, 400, 404} <= self.fuzz(junk=0))

    def test_junk(self) -> None:
        """What nearly fits is refused, or read leniently."""
        self.assertTrue({200, 400} <= self.fuzz(junk=6))

    def test_bodies(self) -> None:
        """Bodies that are no JSON at all have an error for an answer at every endpoint."""
        for path in POSTS:
            for body in (b"{", b"x", b"[]", b"1", b'"x"', b"\xff", b"\0", b"[" * 10_000, b"{}" * 100):
                self.answer_to(path, body)
        self.assertEqual([], self.flushLoggedErrors())
