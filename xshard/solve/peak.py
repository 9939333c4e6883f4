"""The smallest limit: the least peak instead of the least cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xshard.solve.check import Ledger
from xshard.solve.model import Model, Outcome, minimise_peak
from xshard.solve.problem import FORBIDDEN, Infeasible, Ints, Problem
from xshard.solve.reduce import FEW_ENTRIES, reduce

NO_LIMIT = 1 << 60


def smallest_limit(problem: Problem, ledger: Ledger, run: Callable[[Model], Outcome]) -> Infeasible:
    """The least peak of any allowed choices, over the rows that turn out to matter."""
    free = _costless(problem)
    active: set[int] = set()
    best: tuple[int, tuple[int, ...]] | None = None
    while True:
        reduced = reduce(with_rows(free, active), most_entries=FEW_ENTRIES)
        outcome = run(minimise_peak(reduced.problem))
        if outcome.choices is None:
            return Infeasible(best and best[0], best and best[1], proven=outcome.infeasible)
        choices = reduced.invert(outcome.choices)
        live = ledger.live_bytes(problem, choices)
        peak = int(live.max(initial=0))
        best = min(best or (peak, choices), (peak, choices))
        if best[0] <= outcome.bound or not outcome.optimal:
            return Infeasible(best[0], best[1], proven=best[0] <= outcome.bound)
        active |= summits(live, outcome.bound)


def _costless(problem: Problem) -> Problem:
    nodes = tuple(replace(n, costs=_barred(n.costs)) for n in problem.nodes)
    edges = tuple(replace(e, costs=_barred(e.costs)) for e in problem.edges)
    return Problem(nodes, edges, problem.rows, NO_LIMIT)


def _barred(costs: Ints) -> Ints:
    return np.where(costs < FORBIDDEN, 0, FORBIDDEN)


def with_rows(problem: Problem, rows: set[int]) -> Problem:
    """The problem with some of its rows only: a relaxation."""
    return replace(problem, rows=tuple(problem.rows[t] for t in sorted(rows)))


def summits(live: Ints, limit: int) -> set[int]:
    """The rows over the limit that are higher than the row before and no lower than the next."""
    padded = np.concatenate([[-1], live, [-1]])
    before, after = padded[:-2], padded[2:]
    return set(np.flatnonzero((live > limit) & (live > before) & (live >= after)).tolist())
