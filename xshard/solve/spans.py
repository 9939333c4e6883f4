"""Spans as a profile over time, and as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xshard.solve.flat import moments
from xshard.solve.problem import Problem, Row

_NONE = np.zeros(0, np.int64)


def peak_of_spans(
    problem: Problem, choices: Sequence[int], stage: int | None = None
) -> tuple[int, int]:
    """The most bytes that are alive at one time, and the first such time; (0, 0) without spans.

    Args:
      stage: spans of this one only; None: all.
    """
    spans = problem.spans if stage is None else problem.spans[problem.span_stages() == stage]
    nodes, first, last = (spans[:, k] for k in range(3))
    usage = [int(problem.nodes[i].usage[choices[i]]) for i in map(int, nodes)]
    amounts = np.array(usage, np.int64)
    times, at = np.unique(np.concatenate([first, last]), return_inverse=True)
    if not len(times):
        return 0, 0
    change = np.zeros(len(times), np.int64)
    np.add.at(change, at[: len(first)], amounts)
    np.subtract.at(change, at[len(first) :], amounts)
    live = np.cumsum(change)
    return int(live.max()), int(times[live.argmax()])


def as_rows(problem: Problem) -> Problem:
    """The same problem, of one limit, with a row for each moment that matters, and no spans."""
    if not len(problem.spans):
        return problem
    nodes = problem.spans[:, 0]
    first, last, count = moments(problem.spans[:, 1], problem.spans[:, 2])
    rows: list[Row] = []
    for t in range(count):
        live, counts = np.unique(nodes[(first <= t) & (t < last)], return_counts=True)
        rows.append(Row(live, counts.astype(np.int64), _NONE, _NONE, 0, f"moment {t}"))
    return replace(problem, rows=(*problem.rows, *rows), spans=problem.spans[:0])
