r"""Dual bounds by diffusion, and the choices that they rule out.

Moving cost between nodes and edges changes no total:
$\theta'_i = \theta_i + \sum_j m_{ij}$, $\theta'_{ij} = \theta_{ij} - m_{ij} - m_{ji}$. For any
messages $m$,

$$L(m) = \sum_i \min \theta'_i + \sum_{ij} \min \theta'_{ij}$$

is a lower bound, and it stays one for all assignments with $c_i = a$ when the minima of the terms
that hold node $i$ are taken at $a$. `Diffusion.sweep` raises $L$ by block-coordinate ascent (every
node takes what its edges can give, then shares it out evenly: the sequential form of max-sum
diffusion, Werner, IEEE PAMI 29(7), 2007); `rule_out` keeps the choices whose bound does not exceed
a known objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import FORBIDDEN, Problem

Floats = NDArray[np.float64]
MARGIN = 1e-9
"""Relative safety of float bounds against integer objectives."""
_BIG = 1e15
"""Stands for a forbidden cost: far above any objective, small enough for exact sums."""


@dataclass(slots=True)
class Diffusion:
    """Reparametrised costs of a problem without rows.

    Attributes:
      nodes: theta' of each node.
      edges: theta' of each edge, shape (choices of a, choices of b).
      ends: the two nodes of each edge.
      at: for each node, its (edge, side).
    """

    nodes: list[Floats]
    edges: list[Floats]
    ends: list[tuple[int, int]]
    at: list[list[tuple[int, int]]]

    @staticmethod
    def of(problem: Problem) -> Diffusion:
        """Starts with all messages zero."""
        at: list[list[tuple[int, int]]] = [[] for _ in problem.nodes]
        for k, e in enumerate(problem.edges):
            at[e.a].append((k, 0))
            at[e.b].append((k, 1))
        nodes = [_bounded(n.costs) for n in problem.nodes]
        edges = [_bounded(e.costs) for e in problem.edges]
        return Diffusion(nodes, edges, [(e.a, e.b) for e in problem.edges], at)

    @property
    def bound(self) -> float:
        """A lower bound of every assignment."""
        return self.constant + sum(float(t.min()) for t in (*self.nodes, *self.edges))

    def sweep(self, order: Sequence[int]) -> None:
        """Raises the bound: each node collects from its edges and gives even shares back."""
        for i in order:
            places = self.at[i]
            if not places:
                continue
            total = self.nodes[i]
            for k, side in places:
                gives = self.edges[k].min(axis=1 - side)
                self.edges[k] -= gives[:, None] if side == 0 else gives[None, :]
                total = total + gives
            share = total / (len(places) + 1)
            for k, side in places:
                self.edges[k] += share[:, None] if side == 0 else share[None, :]
            self.nodes[i] = share

    def marginals(self, i: int) -> Floats:
        """For each choice of node `i`, a lower bound of all assignments that contain it."""
        extra = self.nodes[i] - self.nodes[i].min()
        for k, side in self.at[i]:
            least = self.edges[k].min(axis=1 - side)
            extra = extra + (least - least.min())
        return self.bound + extra

    def rule_out(self, upper: int) -> list[NDArray[np.int64]]:
        """For each node, the choices that some assignment of at most `upper` may contain."""
        limit, bound = upper * (1 + MARGIN) + 1, self.bound
        kept: list[NDArray[np.int64]] = []
        for i in range(len(self.nodes)):
            extra = self.nodes[i] - self.nodes[i].min()
            for k, side in self.at[i]:
                least = self.edges[k].min(axis=1 - side)
                extra = extra + (least - least.min())
            kept.append(np.flatnonzero(bound + extra <= limit))
        return kept

    def decode(self, problem: Problem, order: Sequence[int]) -> list[int]:
        """An assignment: each node's best given the ones before it, the rest at their minima."""
        choices = [-1] * len(self.nodes)
        for i in order:
            score = self.nodes[i].copy()
            for k, side in self.at[i]:
                other = choices[self.ends[k][1 - side]]
                table = self.edges[k] if side == 0 else self.edges[k].T
                score += table.min(axis=1) if other < 0 else table[:, other]
            choices[i] = int(score.argmin())
        return improve(problem, choices)


def improve(problem: Problem, choices: list[int], most_rounds: int = 50) -> list[int]:
    """Moves single nodes to their best choice until none gains."""
    at: list[list[tuple[int, int]]] = [[] for _ in problem.nodes]
    for k, e in enumerate(problem.edges):
        at[e.a].append((k, 0))
        at[e.b].append((k, 1))
    for _ in range(most_rounds):
        moved = False
        for i, node in enumerate(problem.nodes):
            score = _bounded(node.costs)
            for k, side in at[i]:
                e = problem.edges[k]
                score += _bounded(e.costs[:, choices[e.b]] if side == 0 else e.costs[choices[e.a]])
            best = int(score.argmin())
            if score[best] < score[choices[i]]:
                choices[i], moved = best, True
        if not moved:
            break
    return choices


def _bounded(costs: NDArray[np.int64]) -> Floats:
    return np.where(costs >= FORBIDDEN, _BIG, costs).astype(np.float64)
