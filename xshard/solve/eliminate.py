"""Nodes without memory eliminated: R0, R1, R2 of PBQP, and small-width parts as a whole.

Up to two neighbours, elimination leaves a problem of nodes and edges behind. With more, tables are
wider for a while; `find` goes back to the last state without wide ones if they do not disappear.
The cheapest node goes first; sums are bounded by counts of table entries, never by the clock, so
that the result is the same on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import Edge, Ints, Problem, Row
from xshard.solve.tables import State, Step, Table

MOST_ENTRIES = 1 << 22
MOST_WORK = 1 << 26


@dataclass(frozen=True, slots=True)
class Eliminate:
    """Eliminated nodes (`steps`, in order) and what that made of the rest.

    `kept` are the nodes that stay; `costs` their costs; `edges` the new edges without usage, by
    the nodes' old numbers.
    """

    kept: tuple[int, ...]
    costs: tuple[Ints, ...]
    edges: tuple[Edge, ...]
    constant: int
    steps: tuple[Step, ...]

    @staticmethod
    def find(problem: Problem, *, most_entries: int = MOST_ENTRIES) -> Eliminate:
        """Eliminates all that can be, with tables of at most `most_entries`."""
        state = _state(problem)
        free = [i for i, has in enumerate(has_memory(problem)) if not has]
        state = _run(state, free, 2, most_entries)
        for part in _parts(state, _left(state, free)):
            state = _run(state, part, len(problem.nodes), most_entries)
        return _record(problem, state)

    def apply(self, problem: Problem) -> Problem:
        """The problem of the kept nodes."""
        number = np.full(len(problem.nodes), -1)
        number[list(self.kept)] = np.arange(len(self.kept))
        nodes = tuple(
            replace(problem.nodes[i], costs=c) for i, c in zip(self.kept, self.costs, strict=True)
        )
        using = [k for k, e in enumerate(problem.edges) if e.usage is not None]
        column = np.full(len(problem.edges), -1)
        column[using] = np.arange(len(using))
        edges = [replace(e, a=int(number[e.a]), b=int(number[e.b])) for e in self._edges(problem)]
        rows = tuple(_renumbered(row, number, column) for row in problem.rows)
        return Problem(nodes, tuple(edges), rows, problem.limit, self.constant)

    def _edges(self, problem: Problem) -> list[Edge]:
        return [e for e in problem.edges if e.usage is not None] + list(self.edges)

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The kept choices, and the best ones for the eliminated nodes."""
        out = [-1] * (len(self.kept) + len(self.steps))
        for node, choice in zip(self.kept, choices, strict=True):
            out[node] = choice
        for step in reversed(self.steps):
            step.restore(out)
        return tuple(out)


def has_memory(problem: Problem) -> NDArray[np.bool_]:
    """Which nodes some row counts, or an edge with usage touches (after `Trim`)."""
    mask = np.array([bool(n.usage.any()) for n in problem.nodes], bool)
    for edge in problem.edges:
        if edge.usage is not None:
            mask[[edge.a, edge.b]] = True
    return mask


def _renumbered(row: Row, number: Ints, column: Ints) -> Row:
    nodes, edges = number[row.nodes], column[row.edges]
    n, e = nodes >= 0, edges >= 0
    return replace(
        row,
        nodes=nodes[n],
        node_counts=row.node_counts[n],
        edges=edges[e],
        edge_counts=row.edge_counts[e],
    )


def _state(problem: Problem) -> State:
    touching: list[set[int]] = [set() for _ in problem.nodes]
    state = State([n.costs for n in problem.nodes], {}, touching, problem.constant)
    for e in problem.edges:
        if e.usage is None:
            labels = [np.arange(size, dtype=np.intp) for size in (len(e.costs), len(e.costs.T))]
            state.add(Table.of((e.a, e.b), labels, e.costs))
    return state


def _run(state: State, nodes: Iterable[int], widest: int, most_entries: int) -> State:
    """Eliminates the cheapest of `nodes` while it has at most `widest` neighbours and is cheap."""
    latest = {i: state.entries(i) for i in nodes}
    heap = sorted((entries, i) for i, entries in latest.items())
    saved: State | None = None
    while heap and heap[0][0] <= most_entries and state.work <= MOST_WORK:
        entries, node = heapq.heappop(heap)
        if latest.get(node) != entries or len(around := state.neighbours(node)) > widest:
            continue
        if len(around) > 2 and saved is None:
            saved = state.copy()
        state.eliminate(node)
        del latest[node]
        for i in around:
            if i in latest:
                latest[i] = state.entries(i)
                heapq.heappush(heap, (latest[i], i))
        saved = saved if state.wide else None
    return saved or state


def _left(state: State, nodes: Iterable[int]) -> list[int]:
    gone = {step.node for step in state.steps}
    return [i for i in nodes if i not in gone]


def _parts(state: State, nodes: list[int]) -> list[list[int]]:
    """`nodes` by connected component, paths going through `nodes` only."""
    unseen = set(nodes)
    parts: list[list[int]] = []
    for start in nodes:
        if start not in unseen:
            continue
        unseen.discard(start)
        part, stack = [start], [start]
        while stack:
            found = [i for i in state.neighbours(stack.pop()) if i in unseen]
            unseen.difference_update(found)
            part += found
            stack += found
        parts.append(part)
    return parts


def _record(problem: Problem, state: State) -> Eliminate:
    kept = tuple(_left(state, range(len(problem.nodes))))
    costs = tuple(state.costs[i] for i in kept)
    edges = tuple(Edge(t.scope[0], t.scope[1], t.dense()) for t in state.tables.values())
    return Eliminate(kept, costs, edges, state.constant, tuple(state.steps))
