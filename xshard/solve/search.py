r"""`solve`: the best choices of a problem, with a proof or a bound, the same on every run.

1. Without the rows (`exact.unconstrained`): a relaxation. The reductions shrink it, dual bounds
   rule most choices out, the reductions eliminate the rest: exact. If its choices fit, they are
   optimal.
2. Memory at a price (`dual`): a strong bound, and points on both sides of the limit.
   CP-SAT picks the best mixture of those points.
3. `exact.constrained`: the choices that a better answer could still contain, by their marginals at
   the best prices; CP-SAT on those alone proves the answer or improves it. Wide problems take
   `wide.limited` first.
4. If nothing fits (`peak.smallest_limit`): the least peak instead of the least cost.

Rows are added when an answer violates them; the bound of a relaxation is a bound of the problem.
Limits are in CP-SAT's deterministic seconds, so that the same problem and options give the same
choices; only where the machine is too slow for them does the clock end the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xshard.solve.check import Ledger
from xshard.solve.exact import MANY_CHOICES, constrained, num_choices, unconstrained
from xshard.solve.one_limit import OneLimit
from xshard.solve.peak import tidied
from xshard.solve.problem import Infeasible, Problem, Solution, Start
from xshard.solve.reduce import Reduced
from xshard.solve.spans import as_rows
from xshard.solve.state import LEAST_S, Budget, Choices, Progress, State

DETERMINISTIC_SHARE = 0.3
MANY_COUNTS = 1 << 20


def solve(
    problem: Problem,
    *,
    time_limit_s: float = 60.0,
    workers: int = 2,
    seed: int = 0,
    start: Start | None = None,
    enough_gap: float = 0.0,
    diagnose: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    began_s: float | None = None,
    below: int | None = None,
    quick: bool = False,
    catch_interrupt: bool = False,
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
      start: what is known from before, of a problem that differs in pins or the limit.
      diagnose: whether to look for the smallest limit when it is proven that nothing fits;
        otherwise the answer carries the smallest that the proof came by.
      enough_gap: the search ends at an answer that is proven to be this close to the best.
      on_progress: called after every stage.
      began_s: when the time limit began, a reading of time.monotonic(); default: now.
      below: only answers that cost less are wanted: the search ends when it is proven that none is
        `enough_gap` cheaper.
      quick: without rows too, the search ends within `enough_gap`, where it could be exact.
      catch_interrupt: Ctrl-C ends the search with the best so far, if there is any, and is raised
        otherwise. That of problems with many spans always is ended so.

    Returns:
      A Solution that `check` accepts; or Infeasible, with the smallest limit that is feasible, or
      with a bound that shows that nothing is below `below`.
    """
    base = _stated(problem.verify())
    began_s = time.monotonic() if began_s is None else began_s
    if start is not None and start.choices is not None:
        start = replace(start, choices=_extended(start.choices, base.problem))
    if len(base.problem.spans):
        from xshard.solve.large import solve_spans  # brings Numba, which plans do not need

        tell = on_progress or _silent
        answer = solve_spans(
            base.problem, time_limit_s=time_limit_s, workers=workers, seed=seed, began_s=began_s,
            start=start,
            report=lambda s, stage, best, bound: tell(Progress(s, stage, best, bound)),
        )  # fmt: skip
        return _inverted(base, answer)
    effort_s = time_limit_s * DETERMINISTIC_SHARE
    budget = Budget(effort_s, began_s + max(time_limit_s, LEAST_S), workers, seed, began_s)
    search = State(
        base.problem, Ledger.of(base.problem), budget, on_progress or _silent, enough_gap,
        diagnose, below, quick,
    )  # fmt: skip
    return _inverted(base, _searched(search, start, catch_interrupt=catch_interrupt))


def _stated(problem: Problem) -> Reduced:
    """The problem with one limit, and with rows unless its spans are many."""
    base = Reduced(problem, ()).then(OneLimit.find(problem))
    small = base.problem.rows or _is_small(base.problem)
    return Reduced(as_rows(base.problem), base.chain) if small else base


def _extended(choices: Choices, problem: Problem) -> Choices:
    """With the only choices of nodes that `OneLimit` added."""
    return (*choices, *[0] * (len(problem.nodes) - len(choices)))


def _inverted(base: Reduced, answer: Solution | Infeasible) -> Solution | Infeasible:
    """The answer in terms of the problem that was given."""
    if answer.choices is None:
        return answer
    return replace(answer, choices=base.invert(answer.choices))


def _searched(
    search: State, start: Start | None, *, catch_interrupt: bool
) -> Solution | Infeasible:
    """The stages, unless the start is an answer."""
    if start is not None:
        _begin(search, start)
    try:
        return search.answer() if search.is_done(0.0) or search.is_beaten() else _run(search)
    except KeyboardInterrupt:
        if not catch_interrupt or search.best is None:
            raise
        return search.solution()


def _begin(search: State, start: Start) -> None:
    search.bound, search.prices = start.bound, start.prices
    if start.choices is not None:
        search.offer(tuple(map(int, start.choices)))


def least_peak(problem: Problem) -> Choices | None:
    """If it is quickly proven that nothing fits the limit: the choices of the least peak found.

    None where nothing is proven, and for small problems.
    """
    if not problem.rows or not _is_wide(problem):
        return None
    from xshard.solve.wide import hopeless

    return hopeless(problem)


def _is_small(problem: Problem) -> bool:
    """Whether the exact search is the better one."""
    return not len(problem.spans) or (
        num_choices(problem) <= MANY_CHOICES
        and len(problem.spans) * len(np.unique(problem.spans[:, 1:])) <= MANY_COUNTS
    )


def _silent(_: Progress) -> None:
    pass


def _run(search: State) -> Solution | Infeasible:
    """The stages of the module's docstring, in order."""
    problem = search.problem
    if problem.rows and problem.limit is not None and _is_wide(problem):
        from xshard.solve.wide import limited  # brings Numba, which small problems do not need

        if limited(search):
            return search.answer()
    known = problem.rows and search.best is not None and search.bound > 0
    if not known and not unconstrained(search):
        return Infeasible(None)
    if problem.rows and not search.is_done() and not search.is_beaten():
        constrained(search, tidied(problem))
    return search.answer()


def _is_wide(problem: Problem) -> bool:
    """Whether its rows are priced by messages."""
    return num_choices(problem) > MANY_CHOICES
