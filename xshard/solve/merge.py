"""Parallel edges merged and separable costs folded into the nodes. Exact, and keeps every node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xshard.solve.problem import FORBIDDEN, Edge, Ints, Problem, Row


@dataclass(frozen=True, slots=True)
class Merge:
    r"""Parallel edges become one; what an edge charges to one end alone goes to that node.

    An edge without usage is reparametrised so that its every row and column has a zero:
    $\mathrm{cost}_{ij} = r_i + c_j + \mathrm{rest}_{ij}$; edges with no rest (constant or
    separable ones) disappear. The least cost of a node goes into the problem's constant.
    """

    def apply(self, problem: Problem) -> Problem:
        """The problem with at most one edge without usage between two nodes."""
        costs = [n.costs.copy() for n in problem.nodes]
        merged: list[Edge] = []
        where: dict[int, int] = {}
        for group in _parallel(problem.edges):
            for k, edge in _sum_of(problem.edges, group):
                rest = _normalised(edge, costs)
                if rest is None:
                    continue
                where.update(dict.fromkeys(k, len(merged)))
                merged.append(rest)
        least = [int(c.min()) if c.min() < FORBIDDEN else 0 for c in costs]
        nodes = tuple(
            replace(n, costs=np.where(c < FORBIDDEN, c - low, FORBIDDEN))
            for n, c, low in zip(problem.nodes, costs, least, strict=True)
        )
        rows = tuple(_renumbered(r, where) for r in problem.rows)
        constant = problem.constant + sum(least)
        return replace(problem, nodes=nodes, edges=tuple(merged), rows=rows, constant=constant)

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The choices themselves."""
        return choices


def _parallel(edges: Sequence[Edge]) -> list[list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for k, e in enumerate(edges):
        groups.setdefault((min(e.a, e.b), max(e.a, e.b)), []).append(k)
    return list(groups.values())


def _sum_of(edges: Sequence[Edge], group: list[int]) -> list[tuple[list[int], Edge]]:
    """All costs of the group on its first edge, and one edge for each usage."""
    first = min(group, key=lambda k: edges[k].usage is None)
    a, b = edges[first].a, edges[first].b
    total = sum((_oriented(edges[k], a) for k in group), start=np.zeros((), np.int64))
    zero = np.zeros_like(total)
    using = [k for k in group if edges[k].usage is not None and k != first]
    head = ([first], Edge(a, b, np.minimum(total, FORBIDDEN), edges[first].usage))
    others = [([k], replace(edges[k], costs=zero if edges[k].a == a else zero.T)) for k in using]
    return [head, *others]


def _oriented(edge: Edge, a: int) -> Ints:
    costs = np.minimum(edge.costs, FORBIDDEN)
    return costs if edge.a == a else costs.T


def _normalised(edge: Edge, costs: list[Ints]) -> Edge | None:
    """The rest of the edge once `costs` (changed in place) has taken its rows and columns."""
    values = edge.costs
    for end, axis in ((edge.a, 1), (edge.b, 0)):
        least = values.min(axis=axis)
        costs[end] = np.minimum(costs[end] + least, FORBIDDEN)
        shift = np.expand_dims(np.where(least < FORBIDDEN, least, 0), axis)
        values = np.where(values < FORBIDDEN, values - shift, FORBIDDEN)
        values = np.where(np.expand_dims(least, axis) < FORBIDDEN, values, 0)
    return replace(edge, costs=values) if values.any() or edge.usage is not None else None


def _renumbered(row: Row, where: dict[int, int]) -> Row:
    kept = np.array([int(k) in where for k in row.edges], bool)
    edges = np.array([where[int(k)] for k in row.edges if int(k) in where], np.int64)
    return replace(row, edges=edges, edge_counts=row.edge_counts[kept])
