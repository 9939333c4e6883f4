"""What a search knows and may spend: the best choices, the best bound, the rows that matter."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from xshard.solve.check import Ledger, evaluate
from xshard.solve.drop import Drop
from xshard.solve.model import Model, Outcome, minimise_cost
from xshard.solve.peak import NO_LIMIT, summits, with_rows
from xshard.solve.price import Prices
from xshard.solve.problem import FORBIDDEN, Infeasible, Problem, Solution
from xshard.solve.reduce import FEW_ENTRIES, Reduced, Reduction, reduce

LEAST_S = 15.0
"""Before that the clock ends nothing: short limits are limits of effort."""
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
        outcome = model.run(
            max(self.left_s * share, 0.01), max(self.end_s - time.monotonic(), 0.01),
            self.workers, self.seed,
        )  # fmt: skip
        self.left_s -= outcome.spent_s
        self.left_s = self.left_s if self.has_time() else 0.0
        self.calls += 1
        return outcome


@dataclass(slots=True)
class State:
    """The state of one `solve`.

    Attributes:
      enough_gap, below, diagnose, quick: as of `solve`.
      active: rows that some answer has violated, or that have a price.
      prices: of memory, by the names of rows: where pricing begins, and then where it ended.
      nothing_fits: the answer, if it is that.
    """

    problem: Problem
    ledger: Ledger
    budget: Budget
    report: Callable[[Progress], None]
    enough_gap: float = 0.0
    diagnose: bool = True
    below: int | None = None
    quick: bool = False
    best: tuple[int, Choices] | None = None
    bound: int = 0
    active: set[int] = field(default_factory=set[int])
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    nothing_fits: Infeasible | None = None

    def first_prices(self) -> Prices | None:
        """Prices of the rows to begin with; None where nothing is known of them."""
        found = np.array([self.prices.get(row.name, 0.0) for row in self.problem.rows])
        return found if found.any() else None

    def keep_prices(self, prices: Prices) -> None:
        """Those that the next search may begin with."""
        named = zip(self.problem.rows, prices.tolist(), strict=True)
        self.prices = {row.name: price for row, price in named if price > 0}

    def mix(self, base: Reduced, points: Sequence[Choices]) -> None:
        """Searches the choices that some point makes, node by node."""
        chosen = tuple(np.unique(line) for line in np.array(points).T)
        self.inside(base, Drop(chosen), 0.25 * self.budget.left_s, "mixed")

    def inside(self, base: Reduced, part: Reduction, effort_s: float, stage: str) -> int:
        """Searches a part of `base`; returns a bound of what it can still improve to."""
        bound, until = 0, self.budget.left_s - effort_s
        while self.budget.left_s > max(until, 0.0):
            some = Reduced(with_rows(base.problem, self.active), ()).then(part)
            rest = reduce(some.problem, most_entries=FEW_ENTRIES)
            below = None if self.best is None else self.best[0]
            share = 1 - until / self.budget.left_s
            outcome = self.budget.run(minimise_cost(rest.problem, below=below), share)
            if outcome.infeasible:
                bound = NO_LIMIT if below is None else below
                break
            bound = max(bound, outcome.bound)
            if outcome.choices is None:
                break
            if not self.visit(base.invert(some.invert(rest.invert(outcome.choices)))):
                break
        self.tell(stage)
        return bound

    def is_done(self, gap: float | None = None) -> bool:
        """Whether the best choices are close enough to the bound."""
        gap = self.enough_gap if gap is None else gap
        return self.best is not None and self.bound >= self.best[0] * (1 - gap)

    def is_beaten(self) -> bool:
        """Whether no choices are enough below `below`."""
        return self.below is not None and self.bound >= self.below * (1 - self.enough_gap)

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

    def answer(self) -> Solution | Infeasible:
        """What is known at the end."""
        if self.nothing_fits is not None:
            return self.nothing_fits
        if self.best is None and self.is_beaten():
            return Infeasible(None, bound=self.bound)
        return self.solution()

    def solution(self) -> Solution:
        """The best choices as an answer."""
        assert self.best is not None
        objective, choices = self.best
        wall_s = time.monotonic() - self.budget.began_s
        notes: dict[str, int | float | str] = {"cp_sat_calls": self.budget.calls}
        bound = min(self.bound, objective)
        return Solution(choices, objective, bound, wall_s, notes, self.prices)
