"""The text form of transactions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_paxos.cli.txnform import TxnSyntaxError, parse_txn, split
from twisted_paxos.statemachine.kvcommands import Compare, DeleteRange, Put, Range, Txn


class FormTests(SynchronousTestCase):
    """What a text means, and what it cannot."""

    def parse(self, text: str) -> Txn:
        """The transaction."""
        return parse_txn(text.encode().split(b"\n"))

    def test_everything(self) -> None:
        """Each comparison, each operation, each option."""
        txn = self.parse("""
            if
              value k = v
              version "k k" != 1
              create k < 2
              mod k > 3
              lease k = ff
            then
              put k "v v" --lease a --prev
              get k --prefix --limit 3 --revision 4 --keys-only
              get k --range-end l --count-only
              del k --from-key --prev
            else
              del k
        """)
        self.assertEqual(
            (
                Compare(b"k", target="VALUE", value=b"v"),
                Compare(b"k k", target="VERSION", result="NOT_EQUAL", version=1),
                Compare(b"k", target="CREATE", result="LESS", create_revision=2),
                Compare(b"k", target="MOD", result="GREATER", mod_revision=3),
                Compare(b"k", target="LEASE", lease=255),
            ),
            txn.compare,
        )
        self.assertEqual(
            (
                Put(b"k", b"v v", 10, True),
                Range(b"k", b"l", 3, 4, keys_only=True),
                Range(b"k", b"l", count_only=True),
                DeleteRange(b"k", b"\0", True),
            ),
            txn.success,
        )
        self.assertEqual((DeleteRange(b"k"),), txn.failure)

    def test_words(self) -> None:
        """Quotes, escapes and comments."""
        self.assertEqual([b"a", b'b "c"', b"\x00\xff\n", b""], split(rb'a "b \"c\"" "\x00\xff\n" "" # end'))
        self.assertEqual([b"a#b"], split(b"a#b #c"))
        self.assertEqual([], split(b"   "))

    def test_mistakes(self) -> None:
        """Each names its line."""
        for text in (
            "put k v",
            "if\nvalue k = ",
            "if\nvalue k ~ v",
            "if\nversion k = x",
            "if\nversion k = 99999999999999999999",
            "if\nlease k = xyz",
            "then\nfrob k",
            "then\nput k",
            "then\nput k v w",
            "then\nget k --frob",
            "then\nget k --limit",
            "then\nget k --limit -1",
            "then\nget k --prefix --from-key",
            'then\nput k "open',
            'then\nput k "a"b',
            'then\nput k "\\q"',
            "then\nput k v --lease 0",
        ):
            with self.assertRaises(TxnSyntaxError, msg=text) as caught:
                self.parse(text)
            self.assertRegex(str(caught.exception), r"^line [12]: [^\n]+$")

    @given(st.lists(st.binary(), max_size=4))
    def test_any_bytes(self, words: list[bytes]) -> None:
        """Any bytes can be written, each as \\xNN."""
        line = b" ".join(b'"' + b"".join(b"\\x%02x" % byte for byte in word) + b'"' for word in words)
        self.assertEqual(words, split(line))

    @given(st.binary(max_size=40))
    def test_anything(self, line: bytes) -> None:
        """Whatever a line is, it is understood or refused."""
        try:
            words = split(line.replace(b"\n", b""))
        except TxnSyntaxError:
            return
        self.assertTrue(all(isinstance(word, bytes) for word in words))
