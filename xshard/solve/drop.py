"""Choices that another one can always replace. Exact, and keeps every node."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xshard.solve.classes import joint, slices
from xshard.solve.problem import FORBIDDEN, Edge, Ints, Node, Problem


@dataclass(frozen=True, slots=True)
class Drop:
    r"""Choices that another one can always replace: `kept[i]` are those of node $i$ that stay.

    $d$ replaces $c$ where $\mathrm{cost}[d] - \mathrm{cost}[c]
    + \sum_e \max_j (\mathrm{cost}_e[d, j] - \mathrm{cost}_e[c, j]) \le 0$ and $d$ uses no more
    memory, in the node and with every $j$ (Goldstein's criterion). `find` proves it with all the
    nodes at once; that is sound because the maxima only fall when neighbours lose choices.
    """

    kept: tuple[NDArray[np.intp], ...]

    @staticmethod
    def find(problem: Problem) -> Drop:
        """The choices of `problem` that no other one replaces."""
        rises = [_node_rise(n) for n in problem.nodes]
        for e in problem.edges:
            rises[e.a] = _plus(rises[e.a], _edge_rise(e.costs, e.usage))
            usage = None if e.usage is None else e.usage.T
            rises[e.b] = _plus(rises[e.b], _edge_rise(e.costs.T, usage))
        return Drop(tuple(map(_survivors, problem.nodes, rises)))

    def apply(self, problem: Problem) -> Problem:
        """The problem with the kept choices only."""
        nodes = tuple(
            replace(n, costs=n.costs[k], usage=n.usage[k])
            for n, k in zip(problem.nodes, self.kept, strict=True)
        )
        return replace(problem, nodes=nodes, edges=tuple(map(self._edge, problem.edges)))

    def _edge(self, edge: Edge) -> Edge:
        index = np.ix_(self.kept[edge.a], self.kept[edge.b])
        usage = None if edge.usage is None else edge.usage[index]
        return replace(edge, costs=edge.costs[index], usage=usage)

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The kept choices by their old numbers."""
        return tuple(int(k[c]) for k, c in zip(self.kept, choices, strict=True))


def _node_rise(node: Node) -> Ints:
    """At [d, c], what the node's own cost rises by from c to d; FORBIDDEN where usage rises."""
    rise = _difference(node.costs[:, None], node.costs)
    return np.where(node.usage[:, None] > node.usage, FORBIDDEN, rise)


def _edge_rise(costs: Ints, usage: Ints | None) -> Ints:
    """At [d, c], the most that the edge's cost may rise by from row c to row d."""
    if usage is None:
        rows, columns = slices(costs, 0), slices(costs, 1).firsts
    else:
        rows = joint([slices(costs, 0).labels, slices(usage, 0).labels], len(costs))
        columns = joint([slices(costs, 1).labels, slices(usage, 1).labels], costs.shape[1]).firsts
        usage = usage[np.ix_(rows.firsts, columns)]
    costs = costs[np.ix_(rows.firsts, columns)]
    rise = np.empty((len(costs), len(costs)), np.int64)
    for d in range(len(costs)):
        rise[d] = _difference(costs[d], costs).max(axis=1)
        if usage is not None:
            rise[d][(usage[d] > usage).any(axis=1)] = FORBIDDEN
    return rise[np.ix_(rows.labels, rows.labels)]


def _difference(new: Ints, old: Ints) -> Ints:
    """new - old, where what is forbidden already cannot get worse."""
    rise = np.where(new >= FORBIDDEN, FORBIDDEN, new - old)
    return np.where(old >= FORBIDDEN, -FORBIDDEN, rise)


def _plus(a: Ints, b: Ints) -> Ints:
    return np.clip(a + b, -FORBIDDEN, FORBIDDEN)


def _survivors(node: Node, rise: Ints) -> NDArray[np.intp]:
    """The choices that none replaces; among choices that replace each other, the first."""
    order = np.arange(len(rise))
    replaces = (rise <= 0) & ((rise.T > 0) | (order[:, None] < order))
    kept = np.flatnonzero(~replaces.any(axis=0) & (node.costs < FORBIDDEN))
    return kept if len(kept) else np.zeros(1, np.intp)
