"""The linear programmes of cutting planes, by OR-tools' Glop: see `dual` and `peak`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ortools.linear_solver.python import model_builder

from xshard.solve.price import Point, Prices

STEEPEST = 100.0


def master(points: Sequence[Point], rows: Sequence[int], steepest: float) -> tuple[Prices, float]:
    """Prices on `rows` that maximise the least cut, and its value; see `dual`."""
    cost = float(max(1, *(p.objective for p in points)))
    size = float(max(1, *(abs(int(p.excess.max())) for p in points)))
    return _maximise_least_cut(points, rows, steepest, cost, size)


def share_out(
    points: Sequence[Point], rows: Sequence[int], steepest: float
) -> tuple[Prices, float]:
    """Prices on `rows` that add up to one and maximise the least cut; see `peak`."""
    del steepest
    size = float(max(1, *(abs(int(p.excess.max())) for p in points)))
    return _maximise_least_cut(points, rows, 1.0, size, size, one=True)


def _maximise_least_cut(
    points: Sequence[Point],
    rows: Sequence[int],
    steepest: float,
    cost: float,
    size: float,
    *,
    one: bool = False,
) -> tuple[Prices, float]:
    """In units of `cost` ns and `size` bytes, which keep the numbers near 1."""
    lp = model_builder.Model()
    value = lp.new_num_var(-np.inf, np.inf, "")
    most = min(steepest * size / cost, STEEPEST)
    prices = [lp.new_num_var(0, most, "") for _ in rows]
    if one:
        lp.add(sum(prices) <= 1.0)
    for p in points:
        paid = [-float(p.excess[t]) / size for t in rows]
        terms = model_builder.LinearExpr.weighted_sum(  # pyright: ignore[reportUnknownMemberType]
            [value, *prices], [1.0, *paid]
        )
        lp.add(terms <= p.objective / cost)
    lp.maximize(value)
    solver = model_builder.Solver("glop")
    solver.solve(lp)
    found = np.array([max(solver.value(x), 0.0) for x in prices])
    return found * cost / size, solver.value(value) * cost
