r"""The best prices on memory: Kelley's cutting planes with a step half-way, a few dozen sweeps.

Every point $k$ that `Pricing.at` returns is a cut, $D(\lambda) \le \mathrm{objective}_k + \lambda
\cdot \mathrm{excess}_k$. `master` maximises over the cuts (a small linear programme); the next
prices lie between its answer and the best so far. The points are also where good answers come
from: near the best prices some fit and some are cheap, and mixtures of the two are both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xshard.solve.price import Point, Prices
from xshard.solve.problem import Problem

MOST_SWEEPS = 40
FEW_SWEEPS = 12
"""Points of an ascent by messages for a narrow problem."""
FIRST_SHARE = 0.1
"""The first price makes the excess worth this part of the objective."""
FURTHER = 3.0
"""No price goes further than this many times the largest one that has proved good."""
TILTS = (0.16, 0.64)
CLOSE = 1e-6
Master = Callable[[Sequence[Point], Sequence[int], float], tuple[Prices, float]]


class Pricing(Protocol):
    """What an ascent needs: see `xshard.solve.price`."""

    @property
    def problem(self) -> Problem: ...

    def at(self, prices: Prices, weights: Prices | None = None) -> Point: ...


@dataclass(slots=True)
class Dual:
    """All points in order, the one with the best bound, and the rows that have had a price."""

    points: list[Point]
    best: Point
    rows: list[int]

    def mixture(self, most: int) -> list[Point]:
        """The `most` cheapest points that fit, as many that nearly fit, and as many of the last."""
        fitting = [p for p in self.points if p.excess.max(initial=0) <= 0]
        over = [p for p in self.points[1:] if p.excess.max(initial=0) > 0]
        nearly = sorted(over, key=lambda p: int(p.excess.max()))[:most]
        cheapest = sorted(fitting, key=lambda p: p.objective)[:most]
        return [*cheapest, *nearly, *over[-most:], self.best]


def climb(
    pricing: Pricing,
    master: Master,
    first_rows: Sequence[int],
    start: Prices | None = None,
    most_sweeps: int = MOST_SWEEPS,
    ceiling: float = np.inf,
    go_on: Callable[[], bool] = lambda: True,
) -> Dual:
    """Raises the bound until the cuts allow no more, or `most_sweeps` are spent.

    `start` are prices from before; without them nothing has a price at first. A bound above
    `ceiling`, which no allowed choices cost more than, proves that nothing fits.
    """
    point = pricing.at(np.zeros(len(pricing.problem.rows)) if start is None else start)
    dual = Dual([point], point, sorted({*first_rows, int(point.excess.argmax())}))
    first = max(float(point.prices.max(initial=0)), float(_first_step(point).max(initial=0)))
    reach = FURTHER * first or np.inf
    for _ in range(most_sweeps):
        aim, most = _aim(pricing, dual, master, reach)
        if most - dual.best.bound <= CLOSE * abs(most) and aim.max(initial=0) < reach:
            break
        if dual.best.bound > ceiling or not go_on():
            break
        point = pricing.at((aim + dual.best.prices) / 2)
        dual.points.append(point)
        if point.bound > dual.best.bound:
            dual.best = point
            reach = max(reach, FURTHER * float(point.prices.max()))
        if point.excess.max() > 0:
            dual.rows = sorted({*dual.rows, int(point.excess.argmax())})
    return dual


def _first_step(point: Point) -> Prices:
    """A price on the fullest row at which its excess is worth a part of the objective."""
    prices = np.zeros(len(point.excess))
    worst = int(point.excess.argmax())
    prices[worst] = FIRST_SHARE * point.objective / max(1, int(point.excess[worst]))
    return prices


def split(pricing: Pricing, dual: Dual) -> None:
    """Adds points that just fit: the first nodes pay more than the best prices, the rest less, and
    bisection finds how many have to pay more.

    At one price for all, chains of nodes change their layout together and the memory jumps across
    the limit; a tilt pays for one reshard in the middle of the chain.
    """
    size = len(pricing.problem.nodes)
    for tilt in TILTS:
        low, high = 0, size
        while low < high:
            middle = (low + high) // 2
            weights = np.where(np.arange(size) < middle, 1 + tilt, 1 - tilt)
            point = pricing.at(dual.best.prices, weights)
            dual.points.append(point)
            fits = point.excess.max(initial=0) <= 0
            low, high = (low, middle) if fits else (middle + 1, high)


def _aim(pricing: Pricing, dual: Dual, master: Master, reach: float) -> tuple[Prices, float]:
    """The master's prices for all rows, and the value it gives them."""
    some, most = master(dual.points, dual.rows, reach)
    prices = np.zeros(len(pricing.problem.rows))
    prices[dual.rows] = some
    return prices, most
