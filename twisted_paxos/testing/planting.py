"""How bugs are planted: a register of functions, each of which makes patches for run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, TypeAlias
from unittest import mock

from twisted_paxos.core import limits
from twisted_paxos.core.effects import Effects

Patch: TypeAlias = AbstractContextManager[Any]
"""Something that is different for a while."""


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        name: its function's.
        rule: what it breaks, in DESIGN.md.
        what: one line.
        plant: makes the patches.
        load: what clients do in the runs that should find it.
    """

    name: str
    rule: str
    what: str
    plant: Callable[[], Sequence[Patch]]
    load: str = "registers"


MUTANTS: Final[dict[str, Mutant]] = {}


Plant: TypeAlias = Callable[[], Sequence[Patch]]


def mutant(rule: str, load: str = "registers") -> Callable[[Plant], Plant]:
    """Register a function that makes patches; its docstring says what is wrong then."""

    def register(plant: Plant) -> Plant:
        what = (plant.__doc__ or "").split("\n")[0].rstrip(".")
        MUTANTS[plant.__name__] = Mutant(plant.__name__, rule, what, plant, load)
        return plant

    return register


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> Patch:
    """Replace a method by ``around(original, self, *arguments)``."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *arguments, **named: around(original, *arguments, **named))


def without(kind: type, effects: Effects) -> Effects:
    """``effects`` without the records of one kind."""
    if effects.records:
        effects.records = [record for record in effects.records if not isinstance(record, kind)]
    return effects


class OtherLimits:
    """`limits`, with some values changed, for one module."""

    def __init__(self, **changed: int) -> None:
        self._changed = changed

    def __getattr__(self, name: str) -> Any:
        return self._changed.get(name) or getattr(limits, name)
