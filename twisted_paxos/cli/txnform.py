r"""The text form of transactions, as ``paxosctl txn`` takes it.

    if
      value   config/mode = "blue"
      version jobs/lock   = 0
    then
      put config/mode green
      get config/ --prefix
    else
      get config/mode

Lines under ``if`` are comparisons: what (value, version, create, mod or lease), a key, one of ``= != < >``,
and a value or number. Lines under ``then`` and ``else`` are operations:

    put KEY VALUE [--lease ID] [--prev]
    get KEY [--prefix | --range-end KEY | --from-key] [--limit N] [--revision N] [--keys-only] [--count-only]
    del KEY [--prefix | --range-end KEY | --from-key] [--prev]

Words are separated by blanks. A word in double quotes may have blanks, and ``\"``, ``\\``, ``\n``,
``\r``, ``\t`` and ``\xNN`` (any byte) in it. ``#`` at the beginning of a word starts a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import click

from twisted_paxos.cli.values import LeaseId
from twisted_paxos.client.keys import range_of
from twisted_paxos.client.kv import Condition
from twisted_paxos.errors import PaxosError
from twisted_paxos.statemachine.kvcommands import (
    INT64_MAX,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    Operation,
    Put,
    Range,
    Txn,
)

SECTIONS: Final = ("if", "then", "else")

_TARGETS: Final[dict[bytes, CompareTarget]] = {
    b"value": "VALUE",
    b"version": "VERSION",
    b"create": "CREATE",
    b"mod": "MOD",
    b"lease": "LEASE",
}
_RESULTS: Final[dict[bytes, CompareResult]] = {
    b"=": "EQUAL",
    b"!=": "NOT_EQUAL",
    b"<": "LESS",
    b">": "GREATER",
}
_WORD = re.compile(
    rb'\s*(?:(?P<comment>#.*)|"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\s|$)|(?P<plain>[^\s"]\S*))', re.DOTALL
)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b'"': b'"', b"\\": b"\\"}

Option = tuple[str, bool]
_RANGE_OPTIONS: Final = {b"--prefix": False, b"--from-key": False, b"--range-end": True}
_OPTIONS: Final[dict[bytes, dict[bytes, bool]]] = {
    b"put": {b"--lease": True, b"--prev": False},
    b"get": {
        **_RANGE_OPTIONS,
        b"--limit": True,
        b"--revision": True,
        b"--keys-only": False,
        b"--count-only": False,
    },
    b"del": {**_RANGE_OPTIONS, b"--prev": False},
}
"""The options of each operation, and whether a word follows."""


class TxnSyntaxError(PaxosError):
    """A line of a transaction that cannot be understood."""


def parse_txn(lines: Iterable[bytes]) -> Txn:
    """The transaction that ``lines`` describe.

    Raises:
        TxnSyntaxError: with the number of the line.
    """
    sections: dict[str, list[Any]] = {name: [] for name in SECTIONS}
    section = ""
    for number, line in enumerate(lines, 1):
        try:
            words = split(line)
            name = words[0].decode("ascii", "replace") if len(words) == 1 else ""
            if name in SECTIONS:
                section = name
            elif words and not section:
                raise TxnSyntaxError('begin with a line "if" or "then"')
            elif words:
                sections[section].append(parse_line(section, words))
        except TxnSyntaxError as error:
            raise TxnSyntaxError(f"line {number}: {error}") from None
    return Txn(tuple(sections["if"]), tuple(sections["then"]), tuple(sections["else"]))


def parse_line(section: str, words: list[bytes]) -> Compare | Operation:
    """One line of a section.

    Raises:
        TxnSyntaxError: it means nothing there.
    """
    return _compare(words) if section == "if" else _operation(words)


def split(line: bytes) -> list[bytes]:
    """The words of a line.

    Raises:
        TxnSyntaxError: a quote does not end, or an escape is unknown.
    """
    words = []
    line = line.strip()
    position = 0
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None:
            raise TxnSyntaxError("a quoted word does not end, or text follows its end")
        if match["comment"] is not None:
            break
        words.append(match["plain"] if match["quoted"] is None else _unescape(match["quoted"]))
        position = match.end()
    return words


def _unescape(text: bytes) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code.startswith(b"x") and len(code) == 3:
            return bytes((int(code[1:], 16),))
        if code not in _ESCAPES:
            raise TxnSyntaxError(f"unknown escape {_shown(match[0])}; use \\xNN for any byte")
        return _ESCAPES[code]

    return _ESCAPE.sub(replace, text)


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")


def _number(word: bytes) -> int:
    text = word.decode("ascii", "replace")
    if not re.fullmatch(r"\d{1,19}", text) or int(text) > INT64_MAX:
        raise TxnSyntaxError(f"{_shown(word)!r} is no number")
    return int(text)


def _compare(words: list[bytes]) -> Compare:
    if len(words) != 4 or words[0] not in _TARGETS or words[2] not in _RESULTS:
        raise TxnSyntaxError("a comparison is: value|version|create|mod|lease KEY =|!=|<|> VALUE")
    target = _TARGETS[words[0]]
    if target == "VALUE":
        operand: bytes | int = words[3]
    else:
        operand = _lease(words[3]) if target == "LEASE" and words[3] != b"0" else _number(words[3])
    return Condition(target, words[1]).compare(_RESULTS[words[2]], operand)


def _operation(words: list[bytes]) -> Operation:
    name, *rest = words
    if name not in _OPTIONS:
        raise TxnSyntaxError(f"unknown operation {_shown(name)!r}; there are put, get and del")
    arguments, options = _options(rest, _OPTIONS[name])
    wanted = 2 if name == b"put" else 1
    if len(arguments) != wanted:
        raise TxnSyntaxError(f"{_shown(name)} takes {'a key and a value' if wanted == 2 else 'one key'}")
    if name == b"put":
        lease = _lease(options[b"--lease"]) if b"--lease" in options else 0
        return Put(arguments[0], arguments[1], lease, b"--prev" in options)
    try:
        range_end = options.get(b"--range-end", b"")
        start, end = range_of(arguments[0], range_end, b"--prefix" in options, b"--from-key" in options)
    except ValueError:
        raise TxnSyntaxError("give only one of --prefix, --range-end and --from-key") from None
    if name == b"del":
        return DeleteRange(start, end, b"--prev" in options)
    limit, revision = (_number(options.get(option, b"0")) for option in (b"--limit", b"--revision"))
    keys_only, count_only = b"--keys-only" in options, b"--count-only" in options
    return Range(start, end, limit, revision, keys_only=keys_only, count_only=count_only)


def _lease(word: bytes) -> int:
    try:
        return LeaseId().convert(_shown(word), None, None)
    except click.BadParameter as error:
        raise TxnSyntaxError(error.message) from None


def _options(words: list[bytes], known: dict[bytes, bool]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The plain words, and the options with the words that belong to them."""
    arguments: list[bytes] = []
    options: dict[bytes, bytes] = {}
    remaining = iter(words)
    for word in remaining:
        if word not in known:
            if word.startswith(b"--"):
                raise TxnSyntaxError(f"unknown option {_shown(word)}")
            arguments.append(word)
        elif known[word]:
            following = next(remaining, None)
            if following is None:
                raise TxnSyntaxError(f"{_shown(word)} wants a word behind it")
            options[word] = following
        else:
            options[word] = b""
    return arguments, options
