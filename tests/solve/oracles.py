"""Two other ways to what `draft` and `solve` answer: exact elimination, and costs added up anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from xshard.cost.cluster import Cluster
from xshard.cost.fusion import storage
from xshard.cost.prices import ClusterPrices
from xshard.ir.fold import Classes, fold, unfolded
from xshard.ir.trace import trace
from xshard.rules import rule_of
from xshard.solve.build import draft
from xshard.solve.draft import Assignment, Draft
from xshard.solve.problem import Problem
from xshard.spec import MeshShape
from xshard.ties import ties_of

Table = tuple[tuple[int, ...], Any]
"""Nodes, and costs with an axis for each of them."""


def drafted(
    fun: Callable[..., Any], args: tuple[Any, ...], mesh: MeshShape, *,
    folded: bool = False, pins: Any = None, tied: bool = False,
) -> Draft:  # fmt: skip
    """The draft of a function on that many V100s of one host."""
    traced = trace(fun, args)
    graph = traced.graph
    classes: Classes = fold(graph, pins) if folded else unfolded(graph)
    rules = tuple(rule_of(graph, graph.ops[m[len(m) // 2]]) for m in classes.members)
    stored = storage(graph, [rules[c] for c in classes.op_class.tolist()])
    cluster = Cluster.parse(f"v100-sxm2-32gb:{mesh.num_devices}")
    prices = ClusterPrices(graph, stored, cluster, mesh)
    ties = ties_of(traced) if tied else {}
    return draft(graph, classes, mesh, rules, stored, prices, pins or {}, ties)


def problem_of(d: Draft) -> Problem:
    return Problem(tuple(d.nodes), tuple(d.edges)).verify()


def eliminated(problem: Problem) -> int:
    """The least objective without rows: one node after the other is minimised away."""
    tables: list[Table] = [((i,), n.costs) for i, n in enumerate(problem.nodes)]
    tables += [
        ((e.a, e.b), e.costs) if e.a < e.b else ((e.b, e.a), e.costs.T) for e in problem.edges
    ]
    left = set(range(len(problem.nodes)))
    while left:
        node = min(left, key=lambda i: _size(problem, _around(tables, i)))
        nodes = _around(tables, node)
        here = [t for t in tables if node in t[0]]
        tables = [t for t in tables if node not in t[0]]
        total = sum(_spread(t, nodes) for t in here)
        rest = tuple(i for i in nodes if i != node)
        tables.append((rest, np.min(total, axis=nodes.index(node))))
        left.remove(node)
    return problem.constant + sum(int(costs) for _, costs in tables)


def _around(tables: list[Table], node: int) -> tuple[int, ...]:
    return tuple(sorted(reduce(set.union, (set(t[0]) for t in tables if node in t[0]), {node})))


def _size(problem: Problem, nodes: tuple[int, ...]) -> int:
    return int(np.prod([len(problem.nodes[i].costs) for i in nodes], dtype=object))


def _spread(table: Table, nodes: tuple[int, ...]) -> Any:
    """The costs with an axis, of one element if need be, for each of `nodes`."""
    own, costs = table
    shape = iter(np.shape(costs))
    return np.reshape(costs, [next(shape) if i in own else 1 for i in nodes])


def added_up(d: Draft, a: Assignment) -> int:
    """The time of an assignment of an unfolded draft: ops, sums, resharded reads, ties."""
    total = 0
    for op, s in zip(d.graph.ops, a.strategies, strict=True):
        total += op.repeat * d.prices.op_ns(d.graph, op, d.rules[op.id], s)
        for v, raw in zip(op.outputs, s.results, strict=True):
            x = d.graph.values[v]
            combined = d.is_gradient[v]
            sums = d.prices.reduce_ns(x.shape, x.itemsize, raw, s.partial, combined)
            total += op.repeat * int(sums[d.spec_index(x.shape, a.specs[v])])
    total += sum(_reshard(d, result, a.specs[result], a.specs[v]) for result, v in d.tied.items())
    return total + _reads(d, a)


def _reads(d: Draft, a: Assignment) -> int:
    """All resharding of operands: straight to its only reader in a phase, or by a shared copy."""
    readers: Counter[tuple[int, str]] = Counter()
    for op in d.graph.ops:
        readers.update((v, op.phase) for v in op.inputs if v is not None)
    total = 0
    for (v, phase), count in readers.items():
        copy = a.copies.get((v, phase), a.specs[v])
        assert count > 1 or copy == a.specs[v]
        total += _reshard(d, v, a.specs[v], copy)
        for op in d.graph.ops:
            here = [k for k, x in enumerate(op.inputs) if x == v and op.phase == phase]
            total += sum(_reshard(d, v, copy, a.strategies[op.id].operands[k]) for k in here)
    return total


def _reshard(d: Draft, v: int, src: Any, dst: Any) -> int:
    x = d.graph.values[v]
    place = d.spec_index(x.shape, src), d.spec_index(x.shape, dst)
    return int(d.prices.reshard_ns(x.shape, x.itemsize)[place])
