"""Which results take the place of which arguments in the next step.

A train step returns its state in the structure in which it got it. So a subtree of the result with
the structure, shapes and dtypes of an argument (or of a part of one) is that argument's next value:
both should have one sharding, and a donated argument's memory is reused.
"""

from __future__ import annotations

from typing import Any

from xshard.ir.trace import Traced


def ties_of(traced: Traced) -> dict[int, int]:
    """Result value id -> argument value id."""
    graph = traced.graph
    found: dict[int, int] = {}
    for result, argument in next_leaves(traced):
        v, a = graph.outputs[result], graph.inputs[argument]
        if v is not None and v != a and v not in found and graph.values[v].producer >= 0:
            found[v] = a
    return found


def next_leaves(traced: Traced) -> list[tuple[int, int]]:
    """(leaf of the result, leaf of the arguments whose next value it is)."""
    results = _Side(traced.out_tree, traced.out_avals)
    arguments = _Side(traced.in_tree, traced.in_avals)
    taken: set[int] = set()
    return [
        pair
        for start, tree in arguments.children(0, arguments.tree)
        for pair in _match(arguments, tree, start, results, taken)
    ]


class _Side:
    """A tree with the avals of its leaves."""

    def __init__(self, tree: Any, avals: tuple[Any, ...]) -> None:
        self.tree = tree
        self.kinds = [(a.shape, str(a.dtype)) for a in avals]

    def children(self, start: int, tree: Any) -> list[tuple[int, Any]]:
        """(first leaf, subtree) of each child."""
        found: list[tuple[int, Any]] = []
        for child in tree.children():
            found.append((start, child))
            start += child.num_leaves
        return found

    def subtrees(self, start: int, tree: Any) -> list[tuple[int, Any]]:
        """(first leaf, subtree) of every node, the largest first where they nest."""
        found = [(start, tree)]
        for first, child in self.children(start, tree):
            found += self.subtrees(first, child)
        return found


def _match(
    arguments: _Side, tree: Any, start: int, results: _Side, taken: set[int]
) -> list[tuple[int, int]]:
    """(result leaf, argument leaf) pairs for an argument subtree, or for its parts."""
    n = tree.num_leaves
    wanted = arguments.kinds[start : start + n]
    if n and (n > 1 or wanted[0][0]):
        for first, candidate in results.subtrees(0, results.tree):
            fits = candidate == tree and results.kinds[first : first + n] == wanted
            if fits and not taken.intersection(range(first, first + n)):
                taken.update(range(first, first + n))
                return [(first + i, start + i) for i in range(n)]
    if n < 2:
        return []
    return [
        pair
        for first, child in arguments.children(start, tree)
        if child.num_leaves > 1
        for pair in _match(arguments, child, first, results, taken)
    ]
