"""Memory that no choice can change, taken out of the choices. Exact, and keeps every node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import Edge, Ints, Problem, Row


@dataclass(frozen=True, slots=True)
class Trim:
    """Memory that no choice can change goes into the rows' base; the rest stays in the rows.

    Without a limit all the rows go. Afterwards a node or an edge has usage only if a row counts it.
    """

    def apply(self, problem: Problem) -> Problem:
        """The problem with the least memory accounts that mean the same."""
        rows = problem.rows if problem.limit is not None else ()
        node_counted = _counted(len(problem.nodes), ((r.nodes, r.node_counts) for r in rows))
        edge_counted = _counted(len(problem.edges), ((r.edges, r.edge_counts) for r in rows))
        node_least = np.array([n.usage.min() for n in problem.nodes], np.int64)
        edge_least = np.array([_least(e) for e in problem.edges], np.int64)
        nodes = tuple(
            replace(n, usage=n.usage - least if counted else np.zeros_like(n.usage))
            for n, counted, least in zip(problem.nodes, node_counted, node_least, strict=True)
        )
        edges = tuple(
            _without_constant_usage(e, int(least), bool(counted))
            for e, counted, least in zip(problem.edges, edge_counted, edge_least, strict=True)
        )
        node_used = np.array([bool(n.usage.any()) for n in nodes], bool)
        edge_used = np.array([e.usage is not None for e in edges], bool)
        kept = tuple(_trim_row(r, node_least, edge_least, node_used, edge_used) for r in rows)
        return replace(problem, nodes=nodes, edges=edges, rows=kept)

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The choices themselves."""
        return choices


def _counted(size: int, entries: Iterable[tuple[Ints, Ints]]) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    for indices, counts in entries:
        mask[indices[counts > 0]] = True
    return mask


def _least(edge: Edge) -> int:
    return 0 if edge.usage is None else int(edge.usage.min())


def _without_constant_usage(edge: Edge, least: int, counted: bool) -> Edge:
    if edge.usage is None or not counted or (edge.usage == least).all():
        return replace(edge, usage=None)
    return replace(edge, usage=edge.usage - least)


def _trim_row(
    row: Row,
    node_least: Ints,
    edge_least: Ints,
    node_used: NDArray[np.bool_],
    edge_used: NDArray[np.bool_],
) -> Row:
    nodes = node_used[row.nodes] & (row.node_counts > 0)
    edges = edge_used[row.edges] & (row.edge_counts > 0)
    fixed = node_least[row.nodes] @ row.node_counts + edge_least[row.edges] @ row.edge_counts
    return Row(
        row.nodes[nodes],
        row.node_counts[nodes],
        row.edges[edges],
        row.edge_counts[edges],
        row.base + int(fixed),
        row.name,
    )
