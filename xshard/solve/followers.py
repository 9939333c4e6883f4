"""Elementwise ops that read each other's results share one decision.

A chain of elementwise ops over one shape is one loop to XLA. Resharding inside it is never needed:
before its first op or after its last does as well, for the same bytes. So all elementwise op
classes that are connected by values of their common shape become one node whose choices are specs.
This is a part of what the plan's "best" means, as is the sharing within classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from xshard.ir.fold import Classes
from xshard.ir.graph import Graph, Op
from xshard.rules.rule import Dim, Rule


def followers(graph: Graph, classes: Classes, rules: Sequence[Rule]) -> list[int]:
    """For each op class, the first op class of its chain; itself where it follows nothing."""
    leader = list(range(len(classes.members)))
    op_class: list[int] = classes.op_class.tolist()
    pointwise = [_is_pointwise(rule) for rule in rules]
    seen: set[tuple[int, int]] = set()
    for op in graph.ops:
        c = op_class[op.id]
        if not pointwise[c]:
            continue
        for made_by in _same_shape_makers(graph, op, rules[c]):
            p = op_class[made_by]
            if pointwise[p] and (p, c) not in seen:
                seen.add((p, c))
                _join(leader, p, c)
    return [_root(leader, c) for c in range(len(leader))]


def _is_pointwise(rule: Rule) -> bool:
    """One result; each dimension its own factor; nothing blocked or reduced."""
    if rule.kind != "elementwise" or len(rule.results) != 1 or rule.blocked or rule.reduced:
        return False
    result = rule.results[0]
    return result is not None and all(
        dims is not None and _fits(dims, result) for dims in rule.operands
    )


def _fits(dims: tuple[Dim, ...], result: tuple[Dim, ...]) -> bool:
    """A scalar, or the result's dimensions, some of them of one element."""
    return not dims or all(dim in ((), own) for dim, own in zip(dims, result, strict=True))


def _same_shape_makers(graph: Graph, op: Op, rule: Rule) -> list[int]:
    return [
        graph.values[v].producer
        for v, dims in zip(op.inputs, rule.operands, strict=True)
        if v is not None and dims == rule.results[0] and graph.values[v].producer >= 0
    ]


def _root(leader: list[int], c: int) -> int:
    while leader[c] != c:
        leader[c] = leader[leader[c]]
        c = leader[c]
    return c


def _join(leader: list[int], a: int, b: int) -> None:
    a, b = _root(leader, a), _root(leader, b)
    leader[max(a, b)] = min(a, b)
