r"""`solve`: the best choices of a problem, with a proof or a bound, the same on every run.

1. Without the rows (`_Search.unconstrained`): a relaxation, usually eliminated to nothing by the
   reductions, so exact. If its choices fit, they are optimal.
2. Memory at a price (`_Search.price`): a strong bound, and points on both sides of the limit.
   CP-SAT picks the best mixture of those points.
3. `_Search.close`: the choices that a better answer could still contain, by their marginals at the
   best prices; CP-SAT on those alone proves the answer or improves it.
4. Problems that are too wide for prices: CP-SAT on everything (`_Search.inside` of it all).
5. If nothing fits (`peak.smallest_limit`): the least peak instead of the least cost.

Rows are added when an answer violates them; the bound of a relaxation is a bound of the problem.
Limits are in CP-SAT's deterministic seconds; the wall clock is only a safety net at a multiple of
them. Same problem and options, same choices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ortools.linear_solver.python import model_builder
from ortools.sat.python import cp_model

from xshard.solve.check import Ledger, evaluate
from xshard.solve.drop import Drop
from xshard.solve.dual import Dual, climb, split
from xshard.solve.merge import Merge
from xshard.solve.model import Model, Outcome, minimise_cost
from xshard.solve.peak import NO_LIMIT, smallest_limit, summits, with_rows
from xshard.solve.price import Point, Prices, Pricing
from xshard.solve.problem import FORBIDDEN, Infeasible, Problem, Solution
from xshard.solve.reduce import FEW_ENTRIES, MOST_ENTRIES, Reduced, reduce
from xshard.solve.trim import Trim

DETERMINISTIC_SHARE = 0.3
MANY_CHOICES = 1500
WALL_FACTOR = 4.0
MIX = 4
Choices = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the search knows so far: the best objective (None: nothing fits yet) and a bound."""

    wall_s: float
    stage: str
    objective: int | None
    bound: int


@dataclass(slots=True)
class Budget:
    """What the search may still spend, in CP-SAT's deterministic seconds."""

    left_s: float
    workers: int
    seed: int
    began_s: float = field(default_factory=time.monotonic)
    calls: int = 0

    def run(self, model: Model, share: float = 1.0) -> Outcome:
        """Solves the model within a share of what is left."""
        solver = cp_model.CpSolver()
        p = solver.parameters
        p.num_workers, p.random_seed = self.workers if self.workers > 2 else 1, self.seed
        p.interleave_search = p.num_workers > 1
        p.linearization_level = 2
        p.max_deterministic_time = max(self.left_s * share, 0.01)
        p.max_time_in_seconds = WALL_FACTOR / DETERMINISTIC_SHARE * max(self.left_s * share, 1.0)
        outcome = model.run(solver)
        self.left_s -= solver.response_proto.deterministic_time
        self.calls += 1
        return outcome


def solve(
    problem: Problem,
    *,
    time_limit_s: float = 60.0,
    workers: int = 2,
    seed: int = 0,
    hint: Sequence[int] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Solution | Infeasible:
    """The cheapest choices that fit the problem's limit.

    Args:
      problem: what to solve; verified first.
      time_limit_s: about so many seconds of one core, counted in operations so that the answer
        does not depend on the machine; after that the answer is the best found, with its bound.
      workers: cores to use. Up to two, one search is faster than two interleaved ones (1.3 against
        3.7 deterministic seconds); more are interleaved, so that timing does not matter.
      seed: of the search; another seed may find other choices of the same objective.
      hint: choices to start from; they need not fit.
      on_progress: called after every stage.

    Returns:
      A Solution that `check` accepts; or Infeasible, with the smallest limit that is feasible.
    """
    problem.verify()
    budget = Budget(time_limit_s * DETERMINISTIC_SHARE, workers, seed)
    search = _Search(problem, Ledger.of(problem), budget, on_progress or _silent)
    if hint is not None:
        search.offer(tuple(int(c) for c in hint))
    return search.run()


def _silent(_: Progress) -> None:
    pass


def _master(points: Sequence[Point], rows: Sequence[int], steepest: float) -> tuple[Prices, float]:
    """Prices on `rows` that maximise the least cut, and its value; see `dual`."""
    cost = float(max(1, *(p.objective for p in points)))
    size = float(max(1, *(abs(int(p.excess.max())) for p in points)))
    return _maximise_least_cut(points, rows, steepest, cost, size)


def _share_out(
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
    prices = [lp.new_num_var(0, steepest, "") for _ in rows]
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


@dataclass(slots=True)
class _Search:
    """The state of one `solve`: the best choices and the best bound, and the rows that matter."""

    problem: Problem
    ledger: Ledger
    budget: Budget
    report: Callable[[Progress], None]
    best: tuple[int, Choices] | None = None
    bound: int = 0
    active: set[int] = field(default_factory=set[int])
    nothing_fits: Infeasible | None = None

    def run(self) -> Solution | Infeasible:
        """The stages of the module's docstring, in order."""
        if not self.unconstrained():
            return Infeasible(None)
        if self.best is None or self.bound < self.best[0]:
            base = Reduced(self.problem, ()).then(Trim()).then(Merge())
            self.constrained(base.then(Drop.find(base.problem)))
        return self.nothing_fits or self.solution()

    def constrained(self, base: Reduced) -> None:
        """Stages 2 to 5 on `base`, which has all the rows."""
        pricing = Pricing.of(base.problem) if base.problem.rows else None
        dual = None if pricing is None else self.price(base, pricing)
        found = None if self.best else self.feasible(base)
        if self.best is None:
            return
        if pricing is None or dual is None:
            self.bound = max(self.bound, self.inside(base, 1.0, "all choices"))
            return
        if found is not None:
            self.mix(base, [*(p.choices for p in dual.points), found])
        self.close(base, pricing, dual)

    def unconstrained(self) -> bool:
        """Solves without the rows; False if forbidden pairs leave no choices."""
        reduced = reduce(with_rows(self.problem, set()), most_entries=MOST_ENTRIES)
        outcome = self.budget.run(minimise_cost(reduced.problem), 0.5)
        if outcome.infeasible:
            return False
        self.bound = max(self.bound, outcome.bound)
        if outcome.choices is not None:
            self.visit(reduced.invert(outcome.choices))
        self.tell("without memory")
        return True

    def price(self, base: Reduced, pricing: Pricing) -> Dual:
        """Prices the rows; takes the points that fit, and the best mixture of the points."""
        dual = climb(pricing, _master, sorted(self.active))
        split(pricing, dual)
        for point in dual.points:
            self.offer(base.invert(point.choices))
        self.active |= set(dual.rows)
        self.bound = max(self.bound, dual.best.bound)
        self.tell("memory priced")
        self.mix(base, [p.choices for p in dual.mixture(MIX)])
        return dual

    def mix(self, base: Reduced, points: Sequence[Choices]) -> None:
        """Searches the choices that some point makes, node by node."""
        chosen = tuple(np.unique(line) for line in np.array(points).T)
        self.inside(base.then(Drop(chosen)), 0.25, "mixed")

    def close(self, base: Reduced, pricing: Pricing, dual: Dual) -> None:
        """Searches among what a better answer could contain, from near the bound outwards."""
        for part in (8, 2, 1):
            if self.best is None or self.bound >= self.best[0] or self.budget.left_s <= 0:
                return
            low = dual.best.bound
            most = low + (self.best[0] - 1 - low) // part
            kept = pricing.within(dual.best.prices, most)
            bound = self.inside(
                base.then(kept), 1.0 if part == 1 else 0.4, f"within 1/{part} of the gap"
            )
            before, self.bound = self.bound, max(self.bound, min(bound, most + 1))
            if self.bound == before and sum(map(len, kept.kept)) > MANY_CHOICES:
                return

    def inside(self, base: Reduced, share: float, stage: str) -> int:
        """Searches the choices of `base`; returns a bound of what they can still improve to."""
        bound, until = 0, self.budget.left_s * (1 - share)
        while self.budget.left_s > until:
            reduced = reduce(with_rows(base.problem, self.active), most_entries=FEW_ENTRIES)
            below = None if self.best is None else self.best[0]
            part = 1 - until / self.budget.left_s
            outcome = self.budget.run(minimise_cost(reduced.problem, below=below), part)
            if outcome.infeasible:
                bound = NO_LIMIT if below is None else below
                break
            bound = max(bound, outcome.bound)
            if outcome.choices is None:
                break
            if not self.visit(base.invert(reduced.invert(outcome.choices))):
                break
        self.tell(stage)
        return bound

    def feasible(self, base: Reduced) -> Choices | None:
        """Finds choices of `base` that fit, or else sets `nothing_fits`; has time of its own."""
        self.budget.left_s = max(self.budget.left_s, 5.0)
        run, ledger = self.budget.run, Ledger.of(base.problem)
        answer = smallest_limit(base.problem, ledger, run, _share_out)
        choices = None if answer.choices is None else base.invert(answer.choices)
        if choices is not None and self.offer(choices):
            return answer.choices
        self.nothing_fits = replace(answer, choices=choices)
        return None

    @property
    def limit(self) -> int:
        """The problem's limit, or one that nothing reaches."""
        return NO_LIMIT if self.problem.limit is None else self.problem.limit

    def visit(self, choices: Choices) -> bool:
        """Offers the choices; True if they violate rows, which are active from now on."""
        self.offer(choices)
        found = summits(self.ledger.live_bytes(self.problem, choices), self.limit)
        self.active |= found
        return bool(found)

    def offer(self, choices: Choices) -> bool:
        """Keeps the choices if they are allowed and better than the best."""
        objective, peak, _ = evaluate(self.problem, choices)
        fits = objective < FORBIDDEN and peak <= self.limit
        if fits and (self.best is None or objective < self.best[0]):
            self.best = objective, choices
        return fits

    def tell(self, stage: str) -> None:
        """Reports progress."""
        wall_s = time.monotonic() - self.budget.began_s
        self.report(Progress(wall_s, stage, self.best and self.best[0], self.bound))

    def solution(self) -> Solution:
        """The best choices as an answer."""
        assert self.best is not None
        objective, choices = self.best
        wall_s = time.monotonic() - self.budget.began_s
        notes: dict[str, int | float | str] = {"cp_sat_calls": self.budget.calls}
        return Solution(choices, objective, min(self.bound, objective), wall_s, notes)
