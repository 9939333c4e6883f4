"""The objective and the memory of given choices, recomputed from the problem without any solver.

`Ledger` holds the rows as two count matrices, $N$ (rows × nodes) and $M$ (rows × edges), so that
the live bytes of all rows are $\\mathrm{base} + N u + M w$, with $u$ and $w$ the usages chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xshard.solve.problem import FORBIDDEN, Ints, Problem
from xshard.solve.spans import peak_of_spans


class Violation(ValueError):
    """Choices that the problem does not allow."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of a problem as matrices. `edge_counts` has columns for `edges` only."""

    base: Ints
    node_counts: Ints
    edges: tuple[int, ...]
    edge_counts: Ints

    @staticmethod
    def of(problem: Problem) -> Ledger:
        """The rows of `problem`; counts of a node listed twice in a row add up."""
        using = tuple(k for k, e in enumerate(problem.edges) if e.usage is not None)
        column = np.full(len(problem.edges), -1)
        column[list(using)] = np.arange(len(using))
        node_counts = np.zeros((len(problem.rows), len(problem.nodes)), np.int64)
        edge_counts = np.zeros((len(problem.rows), len(using)), np.int64)
        for t, row in enumerate(problem.rows):
            np.add.at(node_counts[t], row.nodes, row.node_counts)
            columns = column[row.edges]
            np.add.at(edge_counts[t], columns[columns >= 0], row.edge_counts[columns >= 0])
        base = np.array([row.base for row in problem.rows], np.int64)
        return Ledger(base, node_counts, using, edge_counts)

    def live_bytes(self, problem: Problem, choices: Sequence[int]) -> Ints:
        """The live bytes of every row, shape (rows,)."""
        picked = zip(problem.nodes, choices, strict=True)
        nodes = np.array([node.usage[choice] for node, choice in picked], np.int64)
        edges = np.zeros(len(self.edges), np.int64)
        for column, k in enumerate(self.edges):
            edge = problem.edges[k]
            assert edge.usage is not None
            edges[column] = edge.usage[choices[edge.a], choices[edge.b]]
        return self.base + self.node_counts @ nodes + self.edge_counts @ edges


def objective_of(problem: Problem, choices: Sequence[int]) -> int:
    """The value of the choices; at least FORBIDDEN if a choice or a pair is not allowed."""
    nodes = sum(int(n.costs[c]) for n, c in zip(problem.nodes, choices, strict=True))
    edges = sum(int(e.costs[choices[e.a], choices[e.b]]) for e in problem.edges)
    return problem.constant + nodes + edges


def evaluate(problem: Problem, choices: Sequence[int]) -> tuple[int, int, int | None]:
    """(objective, peak bytes of any stage, index of the first row at the peak).

    The index is None without rows, and where the peak is at a time of the spans.
    """
    objective = objective_of(problem, choices)
    peak = peak_of_spans(problem, choices)[0] if len(problem.spans) else 0
    if not problem.rows:
        return objective, peak, None
    live = Ledger.of(problem).live_bytes(problem, choices)
    most = int(live.max())
    return objective, max(most, peak), int(live.argmax()) if most >= peak else None


def check(problem: Problem, choices: Sequence[int]) -> int:
    """The objective of allowed choices.

    Raises:
      Violation: naming the first node, edge or row that the choices violate.
    """
    if len(choices) != len(problem.nodes):
        raise Violation(f"{len(choices)} choices for {len(problem.nodes)} nodes")
    for node, choice in zip(problem.nodes, choices, strict=True):
        if not 0 <= choice < len(node.costs):
            raise Violation(f"node {node.name}: choice {choice} of {len(node.costs)}")
        if node.costs[choice] >= FORBIDDEN:
            raise Violation(f"node {node.name}: choice {choice} is forbidden")
    for edge in problem.edges:
        if edge.costs[choices[edge.a], choices[edge.b]] >= FORBIDDEN:
            a, b = problem.nodes[edge.a].name, problem.nodes[edge.b].name
            pair = f"({choices[edge.a]}, {choices[edge.b]})"
            raise Violation(f"edge {a} – {b}: the pair {pair} is forbidden")
    for stage in range(max(1, len(problem.limits))):
        peak, at = peak_of(problem, choices, stage)
        limit = problem.limit_of(stage)
        if limit is not None and peak > limit:
            where = f" in stage {stage}" if problem.limits else ""
            raise Violation(f"{at}{where}: {peak} bytes live, the limit is {limit}")
    return objective_of(problem, choices)


def peak_of(problem: Problem, choices: Sequence[int], stage: int = 0) -> tuple[int, str]:
    """The most bytes that are live in a stage at one time, and where that is."""
    peak, time = peak_of_spans(problem, choices, stage)
    at, here = f"time {time}", [t for t, row in enumerate(problem.rows) if row.stage == stage]
    if here:
        live = Ledger.of(problem).live_bytes(problem, choices)[here]
        if live.max() >= peak:
            worst = here[int(live.argmax())]
            peak, at = int(live.max()), f"row {problem.rows[worst].name or worst}"
    return peak, at
