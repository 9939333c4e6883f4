"""Several memory limits stated as one: exact, so that all that follows knows a single limit.

Let $L_s$ be the limit of stage $s$ and $L$ the largest. $\\mathrm{live} \\le L_s$ is the same as
$\\mathrm{live} + (L - L_s) \\le L$: a row's base takes the difference. Spans of a stage get a
stretch of time of their own, through which a node without a choice holds the difference. The least
peak of the result is $L$ plus what all limits must be raised by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from xshard.solve.problem import Ints, Node, Problem, Row


@dataclass(frozen=True, slots=True)
class OneLimit:
    """`nodes` of the problem are kept, those behind them are added."""

    nodes: int

    @staticmethod
    def find(problem: Problem) -> OneLimit:
        """For this problem, of any number of stages."""
        return OneLimit(len(problem.nodes))

    def apply(self, problem: Problem) -> Problem:
        """The problem with one limit; itself if it has no stages."""
        if not problem.limits:
            return problem
        most = max(problem.limits)
        rows = tuple(_row(row, most - problem.limits[row.stage]) for row in problem.rows)
        held, spans = list[int](), [_moved(problem)]
        for missing, first, last in _stretches(problem, most):
            spans.append(np.array([[self.nodes + len(held), first, last]], np.int64))
            held.append(missing)
        one = np.zeros(1, np.int64)
        added = (Node("other limits", one, np.array([n], np.int64)) for n in held)
        return replace(
            problem, nodes=(*problem.nodes, *added), rows=rows, spans=np.concatenate(spans),
            limit=most, limits=(), stages=problem.stages[:0],
        )  # fmt: skip

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """Without those of the nodes that were added."""
        return choices[: self.nodes]


def _row(row: Row, missing: int) -> Row:
    return replace(row, base=row.base + missing, stage=0)


def _moved(problem: Problem) -> Ints:
    """The spans, those of each stage behind those of the stages before."""
    spans = problem.spans
    if not len(spans):
        return spans
    shift = problem.span_stages() * (spans[:, 2].max() - spans[:, 1].min())
    return np.stack([spans[:, 0], spans[:, 1] + shift, spans[:, 2] + shift], axis=1)


def _stretches(problem: Problem, most: int) -> Iterator[tuple[int, int, int]]:
    """(what is missing to the largest limit, first and last time) of each stage with spans."""
    spans, of_stage = _moved(problem), problem.span_stages()
    for stage, limit in enumerate(problem.limits):
        here = spans[of_stage == stage]
        if len(here) and limit < most:
            yield most - limit, int(here[:, 1].min()), int(here[:, 2].max())
