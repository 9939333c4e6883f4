r"""`solve`: the best choices of a problem, with a proof or a bound, the same on every run.

1. Without the rows (`_Search.unconstrained`): a relaxation. The reductions shrink it, dual bounds
   rule most choices out, the reductions eliminate the rest: exact. If its choices fit, they are
   optimal.
2. Memory at a price (`_Search.price`): a strong bound, and points on both sides of the limit.
   CP-SAT picks the best mixture of those points.
3. `_Search.close`: the choices that a better answer could still contain, by their marginals at the
   best prices; CP-SAT on those alone proves the answer or improves it.
4. If nothing fits (`peak.smallest_limit`): the least peak instead of the least cost.

Rows are added when an answer violates them; the bound of a relaxation is a bound of the problem.
Limits are in CP-SAT's deterministic seconds, so that the same problem and options give the same
choices; only where the machine is too slow for them does the clock end the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ortools.linear_solver.python import model_builder
from ortools.sat.python import cp_model

from xshard.solve.check import Ledger, evaluate, objective_of
from xshard.solve.drop import Drop
from xshard.solve.dual import FEW_SWEEPS, MOST_SWEEPS, Dual, climb, split
from xshard.solve.model import Model, Outcome, minimise_cost
from xshard.solve.peak import NO_LIMIT, smallest_limit, summits, tidied, with_rows
from xshard.solve.price import Point, Prices, Pricing, engine_of
from xshard.solve.problem import FORBIDDEN, Infeasible, Problem, Solution
from xshard.solve.reduce import FEW_ENTRIES, MOST_ENTRIES, Reduced, reduce
from xshard.solve.spans import as_rows

DETERMINISTIC_SHARE = 0.3
MANY_CHOICES = 1500
MANY_COUNTS = 1 << 20
FIRST_S = 5.0
"""Effort that the search for any answer at all has of its own."""
LEAST_S = 15.0
"""Before that the clock ends nothing: short limits are limits of effort."""
MIX = 4
STEEPEST = 100.0
MOST_ROUNDS = 4
HARD_GAP = 0.02
"""Where the reductions leave many choices, CP-SAT is not faster than the dual bounds below this."""
WORTH_PRICING = 0.7
"""Choices are priced again when at most this share of them is left."""
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
    """What the search may still spend: CP-SAT's deterministic seconds, until `end_s` (clock)."""

    left_s: float
    end_s: float
    workers: int
    seed: int
    began_s: float = field(default_factory=time.monotonic)
    calls: int = 0

    def has_time(self) -> bool:
        """Whether the clock allows more."""
        return time.monotonic() < self.end_s

    def run(self, model: Model, share: float = 1.0) -> Outcome:
        """Solves the model within a share of what is left."""
        solver = cp_model.CpSolver()
        p = solver.parameters
        p.num_workers, p.random_seed = self.workers if self.workers > 2 else 1, self.seed
        p.interleave_search = p.num_workers > 1
        p.linearization_level = 2
        p.max_deterministic_time = max(self.left_s * share, 0.01)
        p.max_time_in_seconds = max(self.end_s - time.monotonic(), 0.01)
        outcome = model.run(solver)
        self.left_s -= solver.response_proto.deterministic_time
        self.left_s = self.left_s if self.has_time() else 0.0
        self.calls += 1
        return outcome


def solve(
    problem: Problem,
    *,
    time_limit_s: float = 60.0,
    workers: int = 2,
    seed: int = 0,
    hint: Sequence[int] | None = None,
    enough_gap: float = 0.0,
    diagnose: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    began_s: float | None = None,
    below: int | None = None,
) -> Solution | Infeasible:
    """The cheapest choices that fit the problem's limit.

    Args:
      problem: what to solve; verified first.
      time_limit_s: seconds. Effort is counted in operations, so that the answer does not depend on
        the machine unless it is too slow; at the limit the answer is the best found, with its
        bound. The clock allows LEAST_S at least, and so much more to find a first answer.
      workers: cores to use. Up to two, one search is faster than two interleaved ones (1.3 against
        3.7 deterministic seconds); more are interleaved, so that timing does not matter.
      seed: of the search; another seed may find other choices of the same objective.
      hint: choices to start from; they need not fit.
      diagnose: whether to look for the smallest limit when it is proven that nothing fits;
        otherwise the answer carries the smallest that the proof came by.
      enough_gap: the search ends at an answer that is proven to be this close to the best.
      on_progress: called after every stage.
      began_s: when the time limit began, a reading of time.monotonic(); default: now.
      below: only answers that cost less are wanted: the search ends when it is proven that none is
        `enough_gap` cheaper.

    Returns:
      A Solution that `check` accepts; or Infeasible, with the smallest limit that is feasible, or
      with a bound that shows that nothing is below `below`.
    """
    problem.verify()
    tell = on_progress or _silent
    if len(problem.spans) and not problem.rows and not _is_small(problem):
        from xshard.solve.large import solve_spans  # brings Numba, which plans do not need

        return solve_spans(
            problem, time_limit_s=time_limit_s, workers=workers, seed=seed, began_s=began_s,
            report=lambda s, stage, best, bound: tell(Progress(s, stage, best, bound)),
        )  # fmt: skip
    problem = as_rows(problem) if len(problem.spans) else problem
    began_s = time.monotonic() if began_s is None else began_s
    effort_s = time_limit_s * DETERMINISTIC_SHARE
    budget = Budget(effort_s, began_s + max(time_limit_s, LEAST_S), workers, seed, began_s)
    search = _Search(problem, Ledger.of(problem), budget, tell, enough_gap, diagnose, below)
    if hint is not None:
        search.offer(tuple(int(c) for c in hint))
    return search.run()


def _is_small(problem: Problem) -> bool:
    """Whether the exact search is the better one."""
    return (
        _num_choices(problem) <= MANY_CHOICES
        and len(problem.spans) * len(np.unique(problem.spans[:, 1:])) <= MANY_COUNTS
    )


def _ceiling(problem: Problem) -> int:
    """No allowed choices cost more."""
    tables = [*(n.costs for n in problem.nodes), *(e.costs for e in problem.edges)]
    return problem.constant + sum(int(t[t < FORBIDDEN].max(initial=0)) for t in tables)


def _num_choices(problem: Problem) -> int:
    return sum(len(n.costs) for n in problem.nodes)


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


@dataclass(slots=True)
class _Search:
    """The state of one `solve`: the best choices and the best bound, and the rows that matter."""

    problem: Problem
    ledger: Ledger
    budget: Budget
    report: Callable[[Progress], None]
    enough_gap: float = 0.0
    diagnose: bool = True
    below: int | None = None
    best: tuple[int, Choices] | None = None
    bound: int = 0
    active: set[int] = field(default_factory=set[int])
    nothing_fits: Infeasible | None = None

    def run(self) -> Solution | Infeasible:
        """The stages of the module's docstring, in order."""
        if not self.unconstrained():
            return Infeasible(None)
        if self.problem.rows and not self.is_done() and not self.is_beaten():
            self.constrained(tidied(self.problem))
        if self.best is None and self.is_beaten():
            return Infeasible(None, bound=self.bound)
        return self.nothing_fits or self.solution()

    def constrained(self, base: Reduced) -> None:
        """Stages 2 to 5 on `base`, which has all the rows."""
        pricing = Pricing.of(base.problem)
        dual = self.price(base, pricing)
        if self.best is None and self.bound > _ceiling(self.problem) and not self.diagnose:
            self.nothing_fits = self.smallest_seen(base, dual)
            return
        if self.is_beaten():
            return
        found = None if self.best else self.feasible(base)
        if self.best is None:
            return
        if found is not None:
            self.mix(base, [*(p.choices for p in dual.points), found])
        for _ in range(MOST_ROUNDS):
            smaller = base.then(pricing.within(dual.best.prices, self.best[0] - 1))
            few = _num_choices(smaller.problem) <= WORTH_PRICING * _num_choices(base.problem)
            if self.is_done() or self.is_beaten() or not few:
                break
            base, pricing = smaller, Pricing.of(smaller.problem)
            dual = self.price(base, pricing, dual.best.prices)
        self.close(base, pricing, dual)

    def unconstrained(self) -> bool:
        """Solves without the rows; False if forbidden pairs leave no choices."""
        reduced = reduce(with_rows(self.problem, set()), most_entries=FEW_ENTRIES)
        if reduced.problem.nodes:
            reduced = self.within_reach(reduced)
            rest = reduce(reduced.problem, most_entries=MOST_ENTRIES)
            reduced = Reduced(rest.problem, (*reduced.chain, *rest.chain))
        few = _num_choices(reduced.problem) <= MANY_CHOICES
        if self.best is None or not self.is_done(0.0 if few else max(self.enough_gap, HARD_GAP)):
            outcome = self.budget.run(minimise_cost(reduced.problem), 0.5 if few else 0.15)
            if outcome.infeasible:
                return False
            self.bound = max(self.bound, outcome.bound)
            if outcome.choices is not None:
                self.visit(reduced.invert(outcome.choices))
        self.tell("without memory")
        return True

    def within_reach(self, reduced: Reduced) -> Reduced:
        """Less the choices that dual bounds rule out; offers those that go with the bounds."""
        problem = reduced.problem
        engine = engine_of(problem)
        costs = [n.costs for n in problem.nodes]
        tables = engine.edge_tables([e.costs for e in problem.edges])
        least, choices = engine.minimise(costs, tables)
        most = objective_of(problem, choices)
        if most >= FORBIDDEN:
            return reduced
        self.bound = max(self.bound, problem.constant + least)
        self.visit(reduced.invert(choices))
        bounds = engine.bounds(costs, tables)
        return reduced.then(
            Drop(tuple(np.flatnonzero(b + problem.constant <= most) for b in bounds))
        )

    def price(self, base: Reduced, pricing: Pricing, start: Prices | None = None) -> Dual:
        """Prices the rows; takes the points that fit, and the best mixture of the points.

        The bound holds for what `base` has left: what it lacks is no better than the best.
        """
        most = MOST_SWEEPS if pricing.is_exact else FEW_SWEEPS
        dual = climb(
            pricing, _master, sorted(self.active), start, most, self.ceiling(base),
            self.budget.has_time,
        )  # fmt: skip
        if pricing.is_exact and self.budget.has_time():
            split(pricing, dual)
        for point in dual.points:
            self.offer(base.invert(point.choices))
        self.active |= set(dual.rows)
        low = dual.best.bound
        self.bound = max(self.bound, low if self.best is None else min(low, self.best[0]))
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
            if self.best is None or self.is_done() or self.is_beaten() or self.budget.left_s <= 0:
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
        self.budget.left_s = max(self.budget.left_s, FIRST_S)
        self.budget.end_s = max(self.budget.end_s, time.monotonic() + LEAST_S)
        run, ledger = self.budget.run, Ledger.of(base.problem)
        answer = smallest_limit(base.problem, ledger, run, _share_out, self.budget.has_time)
        choices = None if answer.choices is None else base.invert(answer.choices)
        if choices is not None and self.offer(choices):
            return answer.choices
        self.nothing_fits = replace(answer, choices=choices)
        return None

    def is_done(self, gap: float | None = None) -> bool:
        """Whether the best choices are close enough to the bound."""
        gap = self.enough_gap if gap is None else gap
        return self.best is not None and self.bound >= self.best[0] * (1 - gap)

    def is_beaten(self) -> bool:
        """Whether no choices are enough below `below`."""
        return self.below is not None and self.bound >= self.below * (1 - self.enough_gap)

    def ceiling(self, base: Reduced) -> int:
        """A bound above it ends an ascent: nothing that costs more is allowed, or wanted."""
        return min(_ceiling(base.problem), self.below or NO_LIMIT)

    def smallest_seen(self, base: Reduced, dual: Dual) -> Infeasible:
        """The least peak among the points of a dual ascent."""
        allowed = [p for p in dual.points if p.objective < FORBIDDEN]
        if not allowed:
            return Infeasible(None, proven=False)
        choices = base.invert(min(allowed, key=lambda p: int(p.excess.max())).choices)
        return Infeasible(evaluate(self.problem, choices)[1], choices, proven=False)

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
