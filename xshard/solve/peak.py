r"""The smallest limit: the least peak instead of the least cost.

The same three steps as for costs. Prices $\lambda_t \ge 0$ with $\sum_t \lambda_t \le 1$ make
$\min_c \sum_t \lambda_t \mathrm{live}_t(c)$ a bound of every peak; points near the best prices mix
into good answers; and what the marginals leave is searched for a better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from xshard.solve.check import Ledger, objective_of
from xshard.solve.drop import Drop
from xshard.solve.dual import FEW_SWEEPS, MOST_SWEEPS, Dual, Master, climb
from xshard.solve.merge import Merge
from xshard.solve.model import Model, Outcome, minimise_peak
from xshard.solve.price import MOST_CHOICES_TO_ELIMINATE, Pricing
from xshard.solve.problem import FORBIDDEN, Infeasible, Ints, Problem
from xshard.solve.reduce import FEW_ENTRIES, Reduced, reduce
from xshard.solve.trim import Trim

NO_LIMIT = 1 << 60
MIX = 4
Run = Callable[[Model, float], Outcome]


@dataclass(slots=True)
class Descent:
    """The search for the least peak of `problem` (costs are 0 or FORBIDDEN).

    Attributes:
      enough: a peak that nothing below is wanted of.
      go_on: whether there is time for more.
      best: the least peak so far, and choices that reach it.
      bound: no choices have a lower peak.
    """

    problem: Problem
    ledger: Ledger
    run: Run
    enough: int
    go_on: Callable[[], bool]
    best: tuple[int, tuple[int, ...]] | None = None
    bound: int = 0
    active: set[int] = field(default_factory=set[int])

    def offer(self, choices: tuple[int, ...]) -> Ints:
        """Keeps the choices if they are the best so far; returns their live bytes."""
        live = self.ledger.live_bytes(self.problem, choices)
        peak = int(live.max(initial=0))
        if objective_of(self.problem, choices) < FORBIDDEN:
            self.best = min(self.best or (peak, choices), (peak, choices))
        return live

    def price(self, base: Reduced, pricing: Pricing, master: Master) -> Dual:
        """Raises the bound by prices; takes the points and their best mixture."""
        most = MOST_SWEEPS if pricing.is_exact else FEW_SWEEPS
        dual = climb(pricing, master, [], most_sweeps=most, go_on=self.go_on)
        self.bound = max(self.bound, dual.best.bound)
        for point in dual.points:
            self.offer(base.invert(point.choices))
        self.active |= {t for t in dual.rows if dual.best.prices[t] > 0}
        chosen = sorted(dual.points, key=lambda p: int(p.excess.max()))[:MIX]
        mixed = np.array([p.choices for p in [*chosen, *dual.points[-MIX:]]])
        self.inside(base.then(Drop(tuple(map(np.unique, mixed.T)))), 0.3)
        return dual

    def inside(self, base: Reduced, share: float) -> int:
        """Searches the choices of `base`; returns a bound of the peaks that they can reach."""
        while True:
            reduced = reduce(with_rows(base.problem, self.active), most_entries=FEW_ENTRIES)
            below = None if self.best is None else self.best[0]
            outcome = self.run(minimise_peak(reduced.problem, below=below), share)
            if outcome.infeasible:
                return NO_LIMIT if below is None else below
            if outcome.choices is None:
                return outcome.bound
            live = self.offer(base.invert(reduced.invert(outcome.choices)))
            new = summits(live, outcome.bound) - self.active
            if (
                not new
                or not outcome.optimal
                or not self.go_on()
                or (self.best and self.best[0] <= outcome.bound)
            ):
                return outcome.bound
            self.active |= new

    def done(self) -> bool:
        """Whether there is nothing left to find."""
        return self.best is not None and self.best[0] <= max(self.bound, self.enough)


def smallest_limit(
    problem: Problem,
    ledger: Ledger,
    run: Run,
    master: Master,
    go_on: Callable[[], bool] = lambda: True,
) -> Infeasible:
    """The least peak of any allowed choices; stops early at one that fits the problem's limit."""
    enough = -1 if problem.limit is None else problem.limit
    free = _costless(problem)
    search = Descent(free, ledger, run, enough, go_on)
    base = tidied(free)
    pricing = Pricing.of(replace(base.problem, limit=0))
    if problem.rows:
        dual = search.price(base, pricing, master)
        if search.best is not None and not search.done():
            base = base.then(pricing.within(dual.best.prices, search.best[0] - 1))
    if not search.done():
        search.bound = max(search.bound, search.inside(base, 1.0))
    peak, choices = search.best or (None, None)
    proven = search.bound >= (NO_LIMIT if peak is None else peak)
    return Infeasible(peak, choices, proven)


def tidied(problem: Problem) -> Reduced:
    """Trimmed and merged; rid of dominated choices where that is not slower than it helps."""
    base = Reduced(problem, ()).then(Trim()).then(Merge())
    if sum(len(n.costs) for n in base.problem.nodes) > MOST_CHOICES_TO_ELIMINATE:
        return base
    return base.then(Drop.find(base.problem))


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
