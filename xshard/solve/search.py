r"""`solve`: the best choices of a problem, with a proof or a bound, the same on every run.

1. Without the rows (`_unconstrained`): a relaxation, usually eliminated to nothing by the
   reductions, so exact. If its choices fit, they are optimal.
2. With the rows that some relaxation violates (`_constrained`): reduce, CP-SAT, and add what the
   answer violates until nothing is. The bound of a relaxation is a bound of the problem.
3. If nothing fits (`smallest_limit`): the least peak instead of the least cost.

Limits are in CP-SAT's deterministic seconds; the wall clock is only a safety net at a multiple of
them. Same problem and options, same choices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from ortools.sat.python import cp_model

from xshard.solve.check import Ledger, evaluate
from xshard.solve.model import Model, minimise_cost, minimise_peak
from xshard.solve.problem import FORBIDDEN, Infeasible, Ints, Problem, Solution
from xshard.solve.reduce import reduce

WALL_FACTOR = 4.0
NO_LIMIT = 1 << 60
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
    """What the search may still spend, in deterministic seconds."""

    left_s: float
    workers: int
    seed: int
    began_s: float = field(default_factory=time.monotonic)
    calls: int = 0

    def run(self, model: Model, on_bound: Callable[[int], None] | None = None) -> Outcome:
        """Solves the model within what is left."""
        solver = cp_model.CpSolver()
        p = solver.parameters
        p.num_workers, p.random_seed = self.workers, self.seed
        p.interleave_search = self.workers > 1
        p.max_deterministic_time = max(self.left_s, 0.01)
        p.max_time_in_seconds = WALL_FACTOR * max(self.left_s, 1.0)
        status = solver.solve(model.variables.cp)
        self.left_s -= solver.response_proto.deterministic_time
        self.calls += 1
        found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        choices = _read(solver, model) if found else None
        bound = int(np.ceil(solver.best_objective_bound - 1e-6))
        low = model.constant + model.scale * bound
        return Outcome(choices, low, status == cp_model.INFEASIBLE, status == cp_model.OPTIMAL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer of CP-SAT: `infeasible` and `optimal` are proofs; `bound` holds in any case."""

    choices: Choices | None
    bound: int
    infeasible: bool
    optimal: bool


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
      time_limit_s: deterministic seconds, about as long as seconds on one core; after that the
        answer is the best found, with its bound.
      workers: threads of CP-SAT, interleaved so that the answer does not depend on timing.
      seed: of the search; another seed may find other choices of the same objective.
      hint: choices to start from; they need not fit.
      on_progress: called after every stage.

    Returns:
      A Solution that `check` accepts; or Infeasible, with the smallest limit that is feasible.
    """
    problem.verify()
    budget = Budget(time_limit_s, workers, seed)
    search = _Search(problem, Ledger.of(problem), budget, on_progress or _silent)
    if hint is not None:
        search.offer(tuple(int(c) for c in hint))
    return search.run()


def smallest_limit(problem: Problem, budget: Budget, ledger: Ledger) -> Infeasible:
    """The least peak of any allowed choices, over the rows that matter; costs only forbid."""
    nodes = tuple(replace(n, costs=_barred(n.costs)) for n in problem.nodes)
    edges = tuple(replace(e, costs=_barred(e.costs)) for e in problem.edges)
    free = Problem(nodes, edges, problem.rows, NO_LIMIT)
    active: set[int] = set()
    best: tuple[int, Choices] | None = None
    while True:
        reduced = reduce(_with_rows(free, active))
        outcome = budget.run(minimise_peak(reduced.problem))
        if outcome.infeasible or outcome.choices is None:
            return Infeasible(best and best[0], best and best[1], proven=outcome.infeasible)
        choices = reduced.invert(outcome.choices)
        live = ledger.live_bytes(problem, choices)
        peak = int(live.max(initial=0))
        best = min(best or (peak, choices), (peak, choices))
        if best[0] <= outcome.bound or not outcome.optimal:
            return Infeasible(best[0], best[1], proven=best[0] <= outcome.bound)
        active |= _summits(live, outcome.bound)


def _barred(costs: Ints) -> Ints:
    return np.where(costs < FORBIDDEN, 0, FORBIDDEN)


def _with_rows(problem: Problem, active: set[int]) -> Problem:
    return replace(problem, rows=tuple(problem.rows[t] for t in sorted(active)))


def _summits(live: Ints, limit: int) -> set[int]:
    """The rows over the limit that are higher than the row before and no lower than the next."""
    padded = np.concatenate([[-1], live, [-1]])
    before, after = padded[:-2], padded[2:]
    return set(np.flatnonzero((live > limit) & (live > before) & (live >= after)).tolist())


def _read(solver: cp_model.CpSolver, model: Model) -> Choices:
    values = [[solver.boolean_value(x) for x in picks] for picks in model.variables.picks]
    return tuple(line.index(True) for line in values)


def _silent(_: Progress) -> None:
    pass


@dataclass(slots=True)
class _Search:
    """The state of one `solve`: the best choices so far and the best bound."""

    problem: Problem
    ledger: Ledger
    budget: Budget
    report: Callable[[Progress], None]
    best: tuple[int, Choices] | None = None
    bound: int = 0

    def run(self) -> Solution | Infeasible:
        """The stages of the module's docstring, in order."""
        fits = self.relaxed(set())
        if fits is None:
            return Infeasible(None)
        active = fits
        while active and self.budget.left_s > 0:
            found = self.relaxed(active)
            if found is None:
                return self.infeasible()
            if not found:
                break
            active |= found
        if self.best is None:
            answer = self.infeasible()
            if answer.choices is None or not self.offer(answer.choices):
                return answer
        return self.solution()

    def relaxed(self, active: set[int]) -> set[int] | None:
        """Solves with some rows: the rows that its answer violates, None if there is no answer."""
        reduced = reduce(_with_rows(self.problem, active))
        below = None if self.best is None else self.best[0] + 1
        outcome = self.budget.run(minimise_cost(reduced.problem, below=below))
        if outcome.infeasible:
            return None
        self.bound = max(self.bound, outcome.bound)
        if outcome.choices is None:
            return set()
        choices = reduced.invert(outcome.choices)
        self.offer(choices)
        live = self.ledger.live_bytes(self.problem, choices)
        self.tell("rows" if active else "no rows")
        return _summits(live, self.limit)

    @property
    def limit(self) -> int:
        """The problem's limit, or one that nothing reaches."""
        return NO_LIMIT if self.problem.limit is None else self.problem.limit

    def offer(self, choices: Choices) -> bool:
        """Keeps the choices if they are allowed and better than the best."""
        objective, peak, _ = evaluate(self.problem, choices)
        fits = objective < FORBIDDEN and peak <= self.limit
        if fits and (self.best is None or objective < self.best[0]):
            self.best = objective, choices
        return fits

    def tell(self, stage: str) -> None:
        """Reports progress."""
        objective = None if self.best is None else self.best[0]
        self.report(Progress(self.wall_s, stage, objective, self.bound))

    @property
    def wall_s(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.budget.began_s

    def infeasible(self) -> Infeasible:
        """The least peak; allowed some more time than the limit when that is spent."""
        self.budget.left_s = max(self.budget.left_s, 5.0)
        return smallest_limit(self.problem, self.budget, self.ledger)

    def solution(self) -> Solution:
        """The best choices as an answer."""
        assert self.best is not None
        objective, choices = self.best
        notes: dict[str, int | float | str] = {"cp_sat_calls": self.budget.calls}
        return Solution(choices, objective, min(self.bound, objective), self.wall_s, notes)
