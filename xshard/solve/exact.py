"""The exact search of `xshard.solve.search`, stages 1 to 5, on a `State`."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from xshard.solve.check import Ledger, evaluate, objective_of
from xshard.solve.drop import Drop
from xshard.solve.dual import FEW_SWEEPS, MOST_SWEEPS, Dual, climb, split
from xshard.solve.improve import improved
from xshard.solve.master import master, share_out
from xshard.solve.merge import Merge
from xshard.solve.model import minimise_cost
from xshard.solve.peak import NO_LIMIT, smallest_limit, with_rows
from xshard.solve.price import MOST_CHOICES_TO_ELIMINATE, Prices, Pricing, engine_of
from xshard.solve.problem import FORBIDDEN, Infeasible, Problem
from xshard.solve.reduce import FEW_ENTRIES, MOST_ENTRIES, Reduced, reduce
from xshard.solve.state import LEAST_S, Choices, State
from xshard.solve.trim import Trim

MANY_CHOICES = 1500
FIRST_S = 5.0
"""Effort that the search for any answer at all has of its own."""
MIX = 4
MOST_ROUNDS = 4
WORTH_PRICING = 0.7
"""Choices are priced again when at most this share of them is left."""


def constrained(s: State, base: Reduced) -> None:
    """Stages 2 to 5 on `base`, which has all the rows."""
    pricing = Pricing.of(base.problem)
    dual = _price(s, base, pricing, s.first_prices())
    if s.best is None and s.bound > _most(s.problem) and not s.diagnose:
        s.nothing_fits = _smallest_seen(s, base, dual)
        return
    if s.is_beaten():
        return
    found = None if s.best else _feasible(s, base)
    if s.best is None:
        return
    if found is not None:
        s.mix(base, [*(p.choices for p in dual.points), found])
    for _ in range(MOST_ROUNDS):
        smaller = base.then(pricing.within(dual.best.prices, s.best[0] - 1))
        few = num_choices(smaller.problem) <= WORTH_PRICING * num_choices(base.problem)
        if s.is_done() or s.is_beaten() or not few:
            break
        base, pricing = smaller, Pricing.of(smaller.problem)
        dual = _price(s, base, pricing, dual.best.prices)
    _close(s, base, pricing, dual)


def unconstrained(s: State) -> bool:
    """Solves without the rows; False if forbidden pairs leave no choices."""
    free = with_rows(s.problem, set())
    if num_choices(free) > MOST_CHOICES_TO_ELIMINATE:
        reduced = _within_reach(s, Reduced(free, ()).then(Trim()).then(Merge()))
    else:
        reduced = reduce(free, most_entries=FEW_ENTRIES)
        reduced = _within_reach(s, reduced) if reduced.problem.nodes else reduced
    if s.is_beaten() or (s.quick and s.is_done()):
        s.tell("without memory")
        return True
    if reduced.problem.nodes:
        rest = reduce(reduced.problem, most_entries=MOST_ENTRIES)
        reduced = Reduced(rest.problem, (*reduced.chain, *rest.chain))
    few = num_choices(reduced.problem) <= MANY_CHOICES
    if s.best is None or (few and not s.is_done(0.0)):
        outcome = s.budget.run(minimise_cost(reduced.problem), 0.5)
        if outcome.infeasible:
            return False
        s.bound = max(s.bound, outcome.bound)
        if outcome.choices is not None:
            s.visit(reduced.invert(outcome.choices))
    s.tell("without memory")
    return True


def _within_reach(s: State, reduced: Reduced) -> Reduced:
    """Less the choices that dual bounds rule out; offers those that go with the bounds."""
    problem = reduced.problem
    engine = engine_of(problem)
    costs = [n.costs for n in problem.nodes]
    tables = engine.edge_tables([e.costs for e in problem.edges])
    least, choices = engine.minimise(costs, tables)
    s.bound = max(s.bound, problem.constant + least)
    if s.is_beaten() or (s.quick and s.is_done()):
        return reduced
    enough = s.bound + int(s.enough_gap * s.bound)
    choices = improved(problem, choices, enough, s.budget.seed)
    most = objective_of(problem, choices)
    if most >= FORBIDDEN:
        return reduced
    s.visit(reduced.invert(choices))
    if s.quick and s.is_done():
        return reduced
    bounds = engine.bounds(costs, tables)
    return reduced.then(Drop(tuple(np.flatnonzero(b + problem.constant <= most) for b in bounds)))


def _price(s: State, base: Reduced, pricing: Pricing, start: Prices | None = None) -> Dual:
    """Prices the rows; takes the points that fit, and the best mixture of the points.

    The bound holds for what `base` has left: what it lacks is no better than the best.
    """
    most = MOST_SWEEPS if pricing.is_exact else FEW_SWEEPS
    dual = climb(
        pricing, master, sorted(s.active), start, most, ceiling(s, base),
        s.budget.has_time,
    )  # fmt: skip
    if pricing.is_exact and s.budget.has_time():
        split(pricing, dual)
    for point in dual.points:
        s.offer(base.invert(point.choices))
    s.active |= set(dual.rows)
    s.keep_prices(dual.best.prices)
    low = dual.best.bound
    s.bound = max(s.bound, low if s.best is None else min(low, s.best[0]))
    s.tell("memory priced")
    s.mix(base, [p.choices for p in dual.mixture(MIX)])
    return dual


def _close(s: State, base: Reduced, pricing: Pricing, dual: Dual) -> None:
    """Searches among what a better answer could contain, from near the bound outwards."""
    for part in (8, 2, 1):
        if s.best is None or s.is_done() or s.is_beaten() or s.budget.left_s <= 0:
            return
        low = dual.best.bound
        most = low + (s.best[0] - 1 - low) // part
        kept = pricing.within(dual.best.prices, most)
        effort_s = s.budget.left_s * (1.0 if part == 1 else 0.4)
        bound = s.inside(base, kept, effort_s, f"within 1/{part} of the gap")
        before, s.bound = s.bound, max(s.bound, min(bound, most + 1))
        if s.bound == before and sum(map(len, kept.kept)) > MANY_CHOICES:
            return


def _feasible(s: State, base: Reduced) -> Choices | None:
    """Finds choices of `base` that fit, or else sets `nothing_fits`; has time of its own."""
    s.budget.left_s = max(s.budget.left_s, FIRST_S)
    s.budget.end_s = max(s.budget.end_s, time.monotonic() + LEAST_S)
    run, ledger = s.budget.run, Ledger.of(base.problem)
    answer = smallest_limit(base.problem, ledger, run, share_out, s.budget.has_time)
    choices = None if answer.choices is None else base.invert(answer.choices)
    if choices is not None and s.offer(choices):
        return answer.choices
    s.nothing_fits = _lower(replace(answer, choices=choices), s.nothing_fits)
    return None


def _lower(found: Infeasible, before: Infeasible | None) -> Infeasible:
    """The answer, or the one before where that came by a lower peak."""
    if before is None or before.smallest_limit is None or found.smallest_limit is None:
        return found
    return found if found.smallest_limit <= before.smallest_limit else before


def ceiling(s: State, base: Reduced) -> int:
    """A bound above it ends an ascent: nothing that costs more is allowed, or wanted."""
    return min(_most(base.problem), s.below or NO_LIMIT)


def _smallest_seen(s: State, base: Reduced, dual: Dual) -> Infeasible:
    """The least peak among the points of a dual ascent."""
    allowed = [p for p in dual.points if p.objective < FORBIDDEN]
    if not allowed:
        return Infeasible(None, proven=False)
    choices = base.invert(min(allowed, key=lambda p: int(p.excess.max())).choices)
    return Infeasible(evaluate(s.problem, choices)[1], choices, proven=False)


def num_choices(problem: Problem) -> int:
    """Of all nodes together."""
    return sum(len(n.costs) for n in problem.nodes)


def _most(problem: Problem) -> int:
    """No allowed choices cost more."""
    tables = [*(n.costs for n in problem.nodes), *(e.costs for e in problem.edges)]
    return problem.constant + sum(int(t[t < FORBIDDEN].max(initial=0)) for t in tables)
