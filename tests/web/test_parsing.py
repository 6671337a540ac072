"""JSON bodies in every form that clients may use."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.errors import KeyValueError
from twisted_paxos.statemachine.kvcommands import INT64_MAX, Put
from twisted_paxos.web.parsing import Reader
from twisted_paxos.web.requests import (
    LeaseGrantRequest,
    MemberRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchMessage,
)

RANGE = Reader(RangeRequest)
PUT = Reader(Put)
TXN = Reader(TxnRequest)


class ReadTests(SynchronousTestCase):
    """One message."""

    def refused(self, body: bytes, part: str, reader: Reader = RANGE) -> None:
        error = self.assertRaises(KeyValueError, reader.read, body)
        self.assertEqual(3, error.code)
        self.assertIn(part, error.message)
        self.assertNotIn("\n", error.message)

    def test_plain(self) -> None:
        """Proto's own names and kinds."""
        self.assertEqual(
            RangeRequest(b"a", b"b", 5, sort_order="DESCEND", keys_only=True),
            RANGE.read(
                b'{"key":"YQ==","range_end":"Yg==","limit":5,"sort_order":"DESCEND","keys_only":true}'
            ),
        )

    def test_names(self) -> None:
        """camelCase, also beside snake_case, also written with escapes; unknown names are passed over."""
        expected = RangeRequest(b"a", b"b", keys_only=True)
        for body in (
            b'{"key":"YQ==","rangeEnd":"Yg==","keysOnly":true}',
            b'{"key":"YQ==","range_end":"Yg==","keysOnly":true,"new":{"x":[1,null]}}',
            b'{"key":"YQ==","range\\u0045nd":"Yg==","keys_only":true}',
        ):
            self.assertEqual(expected, RANGE.read(body), body)

    def test_uppercase_names(self) -> None:
        """Names such as ID and TTL are what they are."""
        self.assertEqual(LeaseGrantRequest(5, 7), Reader(LeaseGrantRequest).read(b'{"TTL":5,"ID":"7"}'))
        self.assertEqual(LeaseGrantRequest(), Reader(LeaseGrantRequest).read(b'{"ttl":5,"id":7}'))

    def test_int64(self) -> None:
        """As numbers or as text, up to the limits, and nothing else."""
        for text, number in (("7", 7), ('"7"', 7), ('"-7"', -7), (f'"{INT64_MAX}"', INT64_MAX)):
            self.assertEqual(number, RANGE.read(b'{"key":"YQ==","limit":%s}' % text.encode()).limit)
        for text in (
            "5.0",
            "1e1",
            '"0x5"',
            '"05"',
            '""',
            '" 5"',
            "true",
            "[]",
            str(INT64_MAX + 1),
            '"9' + "9" * 30 + '"',
        ):
            self.refused(b'{"key":"YQ==","limit":%s}' % text.encode(), "int64")

    def test_uint64(self) -> None:
        """Ids of members need all 64 bits."""
        reader = Reader(MemberRequest)
        for text in (b"18446744073709551615", b'"18446744073709551615"'):
            self.assertEqual(2**64 - 1, reader.read(b'{"ID":%s}' % text).id)
        self.refused(b'{"ID":-1}', "uint64", reader)

    def test_enums(self) -> None:
        """By name or by number."""
        read = Reader(WatchMessage).read
        self.assertEqual("ASCEND", RANGE.read(b'{"key":"YQ==","sort_order":1}').sort_order)
        self.assertEqual("MOD", RANGE.read(b'{"key":"YQ==","sortTarget":3}').sort_target)
        created = read(b'{"create_request":{"filters":[1,"NOPUT"]}}').create_request
        assert created is not None
        self.assertEqual(("NODELETE", "NOPUT"), created.filters)
        for text in ("9", "-1", '"1"', '"ascend"', "true", "1.0"):
            self.refused(b'{"key":"YQ==","sort_order":%s}' % text.encode(), "unknown value")

    def test_numbers_of_enums(self) -> None:
        """They are proto's."""
        results = ("EQUAL", "GREATER", "LESS", "NOT_EQUAL")
        targets = ("VERSION", "CREATE", "MOD", "VALUE", "LEASE")
        for field, names in (("result", results), ("target", targets)):
            for number, name in enumerate(names):
                (compare,) = TXN.read(b'{"compare":[{"%s":%d}]}' % (field.encode(), number)).compare
                self.assertEqual(name, getattr(compare, field))

    def test_bytes(self) -> None:
        """Base64 in both alphabets, padded or not, with line ends; or a list of numbers."""
        for text, value in (
            ('"_-8="', b"\xff\xef"),
            ('"/+8="', b"\xff\xef"),
            ('"_-8"', b"\xff\xef"),
            ('"YQ"', b"a"),
            ('"YQ=="', b"a"),
            ('"YW\\nE="', b"aa"),
            ('"YW\\/h"', b"ao\xe1"),
            ("[97,98]", b"ab"),
            ('""', b""),
        ):
            self.assertEqual(value, PUT.read(b'{"key":%s}' % text.encode()).key, text)
        for text in ('"Y"', '"Y*=="', "5", "[256]", '["a"]', "{}", '"\\u00e9AAA"', "true"):
            self.refused(b'{"key":%s}' % text.encode(), "base64", PUT)

    def test_bool(self) -> None:
        """true and false, nothing else."""
        for text in ('"true"', "1", "[]"):
            self.refused(b'{"key":"YQ==","keys_only":%s}' % text.encode(), "no bool")

    def test_null(self) -> None:
        """null is "not set", anywhere but in a list."""
        self.assertEqual(RangeRequest(b""), RANGE.read(b'{"key":null,"limit":null,"sort_order":null}'))
        self.assertEqual(RangeRequest(b""), RANGE.read(b"null"))
        self.assertEqual(TxnRequest(success=(RequestOp(),)), TXN.read(b'{"success":[{"request_put":null}]}'))
        self.refused(b'{"success":[null]}', "no object", TXN)

    def test_empty(self) -> None:
        """An empty body is an empty message."""
        for body in (b"", b"{}", b" \r\n\t"):
            self.assertEqual(RangeRequest(b""), RANGE.read(body))

    def test_trailing(self) -> None:
        """What follows the first value does not count."""
        self.assertEqual(RangeRequest(b"a"), RANGE.read(b'{"key":"YQ=="} and more'))

    def test_nested(self) -> None:
        """Messages in messages, in either form."""
        request = TXN.read(
            b'{"compare":[{"key":"YQ==","createRevision":"3"}],"failure":[{"requestTxn":'
            b'{"success":[{"requestDeleteRange":{"key":"Yg==","prevKv":true}}]}}]}'
        )
        self.assertEqual(3, request.compare[0].create_revision)
        inner = request.failure[0].request_txn
        assert inner is not None and inner.success[0].request_delete_range is not None
        self.assertTrue(inner.success[0].request_delete_range.prev_kv)

    def test_no_json(self) -> None:
        """One line says where it ends to be JSON, or which kind it is."""
        self.refused(b"xx", "invalid JSON at byte 0")
        self.refused(b'{"key":', "invalid JSON at byte 7")
        self.refused(b"[]", "no object")
        self.refused(b'"text"', "no object")
        self.refused(b'{"key":NaN}', "NaN")
        self.refused(b'{"limit":' + b"9" * 5_000 + b"}", "")
        self.refused(b"\xff\xfe", "invalid JSON")

    def test_deep(self) -> None:
        """However deep it is nested: a refusal."""
        self.refused(b'{"x":' * 100_000, "nested")
        self.refused(b'{"success":[{"request_txn":' * 100_000, "nested", TXN)

    def test_stream(self) -> None:
        """Several messages in one body, with and without space between them."""
        reader = Reader(LeaseGrantRequest)
        found = list(reader.read_all(b'{"ID":1}{"ID":"2"}\n\n {"ID":3} '))
        self.assertEqual([1, 2, 3], [message.id for message in found])
        messages = reader.read_all(b'{"ID":1}{"ID":x}')
        self.assertEqual(1, next(messages).id)
        self.assertRaises(KeyValueError, next, messages)


NAMES = {
    "key": "key",
    "range_end": "rangeEnd",
    "limit": "limit",
    "sort_order": "sortOrder",
    "keys_only": "keysOnly",
}
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "key": st.sampled_from(["YQ==", "YWI=", "", "/+8="]),
        "range_end": st.sampled_from(["YQ==", "", "AA=="]),
        "limit": st.integers(-INT64_MAX - 1, INT64_MAX),
        "sort_order": st.sampled_from(["NONE", "ASCEND", "DESCEND"]),
        "keys_only": st.booleans(),
    },
)


class FormsTests(SynchronousTestCase):
    """Every form of a message reads the same."""

    @given(VALUES, st.sets(st.sampled_from(sorted(NAMES))), st.booleans())
    def test_same(self, values: dict, in_camel: set[str], as_text: bool) -> None:
        """Plain, in camelCase, with numbers as text: one message."""
        plain = RANGE.read(json.dumps(values).encode())
        other = {NAMES[name] if name in in_camel else name: value for name, value in values.items()}
        if as_text and "limit" in other:
            other["limit"] = str(other["limit"])
        self.assertEqual(plain, RANGE.read(json.dumps(other).encode()))
