"""Which ranges contain a key: a treap of ranges, each node knowing the furthest end below it.

Treaps: Seidel and Aragon, Randomized search trees (1996). Priorities follow from the order of
insertion through a fixed mixing function, so that no randomness is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from twisted_paxos.statemachine.ranges import Bounds

T = TypeVar("T")

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class _Node(Generic[T]):
    __slots__ = ("bounds", "furthest", "left", "priority", "right", "value")

    def __init__(self, bounds: Bounds, value: T, priority: int) -> None:
        self.bounds = bounds
        self.value = value
        self.priority = priority
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.furthest = bounds[1]

    def measure(self) -> None:
        """Work out ``furthest`` again from the children."""
        furthest = self.bounds[1]
        for child in (self.left, self.right):
            if child is not None and furthest is not None:
                furthest = None if child.furthest is None else max(furthest, child.furthest)
        self.furthest = furthest


class IntervalMap(Generic[T]):
    """Values by their range; one value a range."""

    def __init__(self) -> None:
        self._root: _Node[T] | None = None
        self._nodes: dict[Bounds, _Node[T]] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, bounds: Bounds) -> T | None:
        """The value of exactly this range."""
        node = self._nodes.get(bounds)
        return None if node is None else node.value

    def add(self, bounds: Bounds, value: T) -> None:
        """Add a range that is not there yet."""
        assert bounds not in self._nodes
        self._made += 1
        priority = self._made * _MIX & _MASK
        node = self._nodes[bounds] = _Node(bounds, value, priority ^ priority >> 31)
        self._root = _insert(self._root, node)

    def remove(self, bounds: Bounds) -> None:
        """Take a range out that is there."""
        del self._nodes[bounds]
        self._root = _remove(self._root, bounds)

    def containing(self, key: bytes) -> Iterator[T]:
        """The values of all ranges with ``key`` in them."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node is None or (node.furthest is not None and node.furthest <= key):
                continue
            stack.append(node.left)
            start, end = node.bounds
            if start <= key:
                stack.append(node.right)
                if end is None or key < end:
                    yield node.value


def _order(bounds: Bounds) -> tuple[bytes, bool, bytes]:
    """By start, then by end, no end last."""
    start, end = bounds
    return start, end is None, end or b""


def _insert(root: _Node[T] | None, node: _Node[T]) -> _Node[T]:
    if root is None:
        return node
    if node.priority > root.priority:
        node.left, node.right = _split(root, _order(node.bounds))
        node.measure()
        return node
    if _order(node.bounds) < _order(root.bounds):
        root.left = _insert(root.left, node)
    else:
        root.right = _insert(root.right, node)
    root.measure()
    return root


def _split(
    root: _Node[T] | None, order: tuple[bytes, bool, bytes]
) -> tuple[_Node[T] | None, _Node[T] | None]:
    """What is below ``order``, and what is above."""
    if root is None:
        return None, None
    if _order(root.bounds) < order:
        root.right, above = _split(root.right, order)
        root.measure()
        return root, above
    below, root.left = _split(root.left, order)
    root.measure()
    return below, root


def _remove(root: _Node[T] | None, bounds: Bounds) -> _Node[T] | None:
    assert root is not None
    if root.bounds == bounds:
        return _joined(root.left, root.right)
    if _order(bounds) < _order(root.bounds):
        root.left = _remove(root.left, bounds)
    else:
        root.right = _remove(root.right, bounds)
    root.measure()
    return root


def _joined(below: _Node[T] | None, above: _Node[T] | None) -> _Node[T] | None:
    if below is None or above is None:
        return above if below is None else below
    if below.priority > above.priority:
        below.right = _joined(below.right, above)
        below.measure()
        return below
    above.left = _joined(below, above.left)
    above.measure()
    return above
