"""The search for wide problems under a limit: prices by messages, mixtures, neighbourhoods.

1. Prices of memory (`xshard.solve.dual` on a `Limited`): a bound, and points on both sides of the
   limit. Where none fits after a few, the least peak may prove that nothing does.
2. CP-SAT picks the best mixture of the points, tilted ones among them.
3. Neighbourhoods: CP-SAT frees the nodes around one that holds much memory at the fullest moments,
   one on which the points differ, or any, and leaves the others as they are. Choices that the bound
   rules out are left out. They end after `MOST_MISSES` without an improvement.
4. Where the bound leaves few choices, they are searched exactly (`xshard.solve.exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from xshard.solve.dual import Dual, climb, split
from xshard.solve.exact import ceiling, constrained, num_choices
from xshard.solve.fix import Fix
from xshard.solve.limited import Limited
from xshard.solve.master import master
from xshard.solve.merge import Merge
from xshard.solve.price import MOST_CHOICES_TO_ELIMINATE
from xshard.solve.problem import Infeasible, Ints, Problem
from xshard.solve.reduce import Reduced
from xshard.solve.state import Choices, State
from xshard.solve.trim import Trim

MOST_POINTS = 40
FEW_POINTS = 6
"""Where none of so many points fits, the least peak is looked for; also all points of an ascent
that begins at prices from before."""
MIX = 6
CLOSE = 0.1
"""Where nothing fits, the least peak is looked for until it is this close to its bound."""
SIZE = 100
"""Nodes of a neighbourhood."""
MOST_MISSES = 3
REGION_S = 0.1
"""Effort for one neighbourhood."""
Mask = NDArray[np.bool_]


def limited(s: State) -> bool:
    """Searches; False if it is left to the exact search, which says why nothing fits."""
    base = Reduced(s.problem, ()).then(Trim()).then(Merge())
    prices = Limited.of(base.problem)

    def goes_on() -> bool:
        return _goes_on(s, base, prices)

    dual = _climb(s, base, prices, goes_on)
    s.keep_prices(dual.best.prices)
    goes_on()
    s.tell("memory priced")
    if s.best is None:
        return s.is_beaten() or (s.nothing_fits is not None and not s.diagnose)
    if not _is_enough(s):
        _mix(s, base, prices, dual)
        _neighbourhoods(s, base, prices, dual)
        rest = base.then(prices.within(dual.best.prices, s.best[0] - 1))
        if not _is_enough(s) and num_choices(rest.problem) <= MOST_CHOICES_TO_ELIMINATE:
            constrained(s, rest)
    return True


def _climb(s: State, base: Reduced, prices: Limited, goes_on: Callable[[], bool]) -> Dual:
    """The ascent of the prices; short where it begins at good ones and something fits."""
    first, most = s.first_prices(), ceiling(s, base)
    if first is not None:
        dual = climb(prices, master, [], first, FEW_POINTS, most, goes_on)
        goes_on()
        if s.best is not None or s.nothing_fits is not None:
            return dual
        first = dual.best.prices
    return climb(prices, master, [], first, MOST_POINTS, most, goes_on)


def hopeless(problem: Problem) -> Choices | None:
    """The choices of the least peak found, if it is proven that nothing fits."""
    base = Reduced(problem, ()).then(Trim()).then(Merge())
    prices = Limited.of(base.problem)
    fits = prices.at(np.zeros(len(problem.rows))).excess.max() <= 0
    if fits or not prices.peak(lambda: True, CLOSE):
        return None
    return base.invert(prices.nearest())


def _is_enough(s: State) -> bool:
    return s.is_done() or s.is_beaten() or not s.budget.has_time()


def _goes_on(s: State, base: Reduced, prices: Limited) -> bool:
    """Takes the best point and the bound; whether more prices may help."""
    best = prices.best()
    if best is not None and (s.best is None or best[0] < s.best[0]):
        s.offer(base.invert(best[1]))
    s.bound = max(s.bound, prices.bound if s.best is None else min(prices.bound, s.best[0]))
    doubtful = s.best is None and len(prices.points) >= FEW_POINTS and not prices.asked
    if doubtful and prices.peak(s.budget.has_time):
        nearest = base.invert(prices.nearest())
        s.nothing_fits = Infeasible(prices.least_peak(), nearest, proven=False)
    return s.nothing_fits is None and not _is_enough(s)


def _mix(s: State, base: Reduced, prices: Limited, dual: Dual) -> None:
    """Points that just fit, and the best mixture of points."""
    split(prices, dual)
    _goes_on(s, base, prices)
    s.active |= set(dual.rows)
    s.mix(base, prices.mixture(MIX))


def _neighbourhoods(s: State, base: Reduced, prices: Limited, dual: Dual) -> None:
    """Frees some nodes at a time, until nothing more is found."""
    starts = _starts(prices, dual)
    around, random = _around(base.problem), np.random.default_rng(s.budget.seed)
    misses = 0
    for turn in count():
        assert s.best is not None
        if misses >= MOST_MISSES or _is_enough(s) or s.budget.left_s <= 0:
            break
        free = _region(around, starts[turn % len(starts)], random)
        kept = prices.within(dual.best.prices, s.best[0] - 1).kept
        fix = Fix.find(base.problem, tuple(_allowed(kept, free, s.best[1])))
        before = s.best[0]
        s.inside(base, fix, REGION_S, "neighbourhoods")
        misses = misses + 1 if s.best[0] == before else 0


def _allowed(kept: tuple[Ints, ...], free: Mask, choices: tuple[int, ...]) -> Iterator[Ints]:
    for k, is_free, own in zip(kept, free, choices, strict=True):
        yield np.union1d(k, [own]) if is_free else np.array([own])


def _starts(prices: Limited, dual: Dual) -> list[Ints]:
    """Nodes from which neighbourhoods grow, by kind."""
    points = np.array(prices.mixture(MIX))
    everyone: Ints = np.arange(points.shape[1], dtype=np.int64)
    differing = np.flatnonzero(np.ptp(points, axis=0))
    kinds: list[Ints] = [prices.holders(dual.best.prices), differing, everyone]
    return [kind for kind in kinds if len(kind)]


def _around(problem: Problem) -> list[list[int]]:
    around: list[list[int]] = [[] for _ in problem.nodes]
    for e in problem.edges:
        around[e.a].append(e.b)
        around[e.b].append(e.a)
    return around


def _region(around: list[list[int]], starts: Ints, random: np.random.Generator) -> Mask:
    """Nodes around one of `starts`, the nearest ones."""
    free = np.zeros(len(around), bool)
    found = [int(random.choice(starts))]
    free[found] = True
    for at in count():
        if at == len(found) or len(found) >= SIZE:
            return free
        for i in random.permutation(around[found[at]]).tolist():
            if not free[i] and len(found) < SIZE:
                free[i] = True
                found.append(i)
    return free
