"""All but some nodes fixed: a neighbourhood of given choices, as a problem of its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import Edge, Ints, Node, Problem, Row

Kept = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Fix:
    """Nodes with one choice in `allowed` are fixed there, the others keep the allowed choices.

    Fixed nodes go: what they cost and use becomes part of their neighbours, the constant and the
    rows' base. But those stay, with one choice, that an edge with usage ties to a free node.
    """

    allowed: tuple[Kept, ...]
    stays: NDArray[np.bool_]

    @staticmethod
    def find(problem: Problem, allowed: tuple[Kept, ...]) -> Fix:
        """For these choices, of which there is at least one of each node."""
        free = np.array([len(k) > 1 for k in allowed], bool)
        stays = free.copy()
        for e in problem.edges:
            if e.usage is not None and (free[e.a] or free[e.b]):
                stays[[e.a, e.b]] = True
        return Fix(allowed, stays)

    def apply(self, problem: Problem) -> Problem:
        """The problem of the nodes that stay."""
        stays, number = self.stays, np.cumsum(self.stays) - 1
        costs = [n.costs[k] for n, k in zip(problem.nodes, self.allowed, strict=True)]
        constant = problem.constant
        edges: list[Edge] = []
        place = np.full(len(problem.edges), -1, np.int64)
        used = np.zeros(len(problem.edges), np.int64)
        for k, e in enumerate(problem.edges):
            table = e.costs[np.ix_(self.allowed[e.a], self.allowed[e.b])]
            if stays[e.a] and stays[e.b]:
                place[k] = len(edges)
                usage = e.usage
                if usage is not None:
                    usage = usage[np.ix_(self.allowed[e.a], self.allowed[e.b])]
                edges.append(Edge(int(number[e.a]), int(number[e.b]), table, usage))
            elif stays[e.a] or stays[e.b]:
                end, line = (e.a, table[:, 0]) if stays[e.a] else (e.b, table[0])
                costs[end] = costs[end] + line
            else:
                constant += int(table[0, 0])
            if e.usage is not None and place[k] < 0:
                used[k] = e.usage[self.allowed[e.a][0], self.allowed[e.b][0]]
        gone = np.flatnonzero(~stays)
        constant += sum(int(costs[i][0]) for i in gone)
        held = np.zeros(len(problem.nodes), np.int64)
        held[gone] = [problem.nodes[i].usage[self.allowed[i][0]] for i in gone]
        return Problem(
            tuple(
                Node(n.name, c, n.usage[k])
                for n, c, k, s in zip(problem.nodes, costs, self.allowed, stays, strict=True)
                if s
            ),
            tuple(edges),
            tuple(_row(r, np.where(stays, number, -1), place, held, used) for r in problem.rows),
            problem.limit,
            constant,
        )

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """Choices of all nodes; of those that are fixed, theirs."""
        own = iter(choices)
        picked = zip(self.allowed, self.stays, strict=True)
        return tuple(int(kept[next(own)] if stays else kept[0]) for kept, stays in picked)


def _row(row: Row, number: Ints, place: Ints, held: Ints, used: Ints) -> Row:
    nodes, edges = number[row.nodes], place[row.edges]
    fixed = int(held[row.nodes] @ row.node_counts + used[row.edges] @ row.edge_counts)
    n, e = nodes >= 0, edges >= 0
    counts = row.node_counts[n], row.edge_counts[e]
    return Row(nodes[n], counts[0], edges[e], counts[1], row.base + fixed, row.name)
