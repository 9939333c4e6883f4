r"""Wide problems under a limit: memory at a price, by messages.

`Limited` is a `Pricing` whose points come near the minimum and bound it from below; the messages of
one point are the start of the next, so that a point takes milliseconds. All choices that it comes
by are kept: CP-SAT mixes answers from them.

`Limited.peak` is about the least peak: with prices $\lambda$ that add up to one,
$\min_c \sum_t \lambda_t (\mathrm{live}_t(c) - \mathrm{room}_t) > 0$ proves that nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from xshard.solve.bounds import MARGIN, orders_of, read
from xshard.solve.drop import Drop
from xshard.solve.messages import marginals, message_starts, sweep
from xshard.solve.net import Floats, Net, net_of, total_cost
from xshard.solve.price import Point, Prices
from xshard.solve.problem import FORBIDDEN, Ints, Problem
from xshard.solve.store import Rows

SWEEPS = 3
MOST_LOOKS = 12
STILL = 1e-5
"""Relative rise of the bound between two looks at which the sweeps end."""
PEAK_ROUNDS = 40
STEP = 0.5
"""Of the distance to the least peak so far."""


@dataclass(slots=True)
class Limited:
    """A wide problem with a limit, ready to be priced.

    Attributes:
      places: orders along which choices are read off messages (`orders_of`).
      points: choices that were read off, each once, with their objective and greatest excess.
      bound: the best of any prices so far.
      asked: whether `peak` was asked for.
    """

    problem: Problem
    rows: Rows
    places: list[Ints]
    starts: Ints
    messages: Floats
    points: dict[tuple[int, ...], tuple[int, int]] = field(
        default_factory=dict[tuple[int, ...], tuple[int, int]]
    )
    bound: int = 0
    asked: bool = False

    @staticmethod
    def of(problem: Problem) -> Limited:
        """All messages zero."""
        rows = Rows.of(problem)
        starts = message_starts(rows.net)
        return Limited(problem, rows, orders_of(problem), starts, np.zeros(int(starts[-1])))

    @property
    def is_exact(self) -> bool:
        """Points are near the minima."""
        return False

    def at(self, prices: Prices, weights: Prices | None = None) -> Point:
        """Choices near the cheapest at `prices`; with `weights` nodes pay so many times as much.

        The bound holds without weights only; with them it is 0.
        """
        theta, net = self.rows.priced(prices)
        if weights is None:
            bound, _ = self._settle(theta, net)
            messages, places = self.messages, self.places
        else:
            own = self.rows.net.costs
            theta = own + np.repeat(weights, np.diff(net.offsets)) * (theta - own)
            messages, places, bound = self.messages.copy(), self.places[:1], 0.0
            self._sweep(theta, net, messages)
        priced = net._replace(costs=theta)
        found = [read(net, theta, self.starts, messages, place) for place in places]
        point = min((self._point(prices, c) for c in found), key=lambda p: _paid(priced, p))
        if weights is not None:
            return point
        low = self._safe(bound, prices)
        self.bound = max(self.bound, low)
        return replace(point, bound=low)

    def within(self, prices: Prices, most: int) -> Drop:
        """Leaves out every choice that no choices of an objective of `most` or less contain."""
        theta, net = self.rows.priced(prices)
        bound, extra = self._settle(theta, net)
        low = self._safe(bound, prices) + extra * (1 - MARGIN)
        parts = np.split(low <= most, net.offsets[1:-1])
        kept = [np.flatnonzero(part) for part in parts]
        return Drop(tuple(k if len(k) else np.zeros(1, np.intp) for k in kept))

    def peak(self, go_on: Callable[[], bool], close: float = np.inf) -> bool:
        """Whether it is proven that nothing fits; the choices on the way are points.

        Args:
          close: also goes on until the least peak is within this share of its bound.
        """
        self.asked = True
        full = self.rows.over(np.array(self.nearest(), np.int64))
        prices = (full == full.max()).astype(np.float64)
        rows, place = replace(self.rows, net=_costless(self.problem)), self.places[0]
        messages, least, best = np.zeros(len(self.messages)), np.inf, -np.inf
        limit = self.problem.limit or 0
        for _ in range(PEAK_ROUNDS):
            prices = prices / prices.sum()
            theta, net = rows.priced(prices)
            self._sweep(theta, net, messages)
            bound = marginals(net, theta, self.starts, messages, np.zeros(len(theta)))
            bound -= float(prices @ rows.room) + MARGIN * float(prices @ np.abs(rows.room))
            excess = self._point(prices, read(net, theta, self.starts, messages, place)).excess
            least = min(least, float(excess.max()))
            slope = np.where((prices > 0) | (excess == excess.max()), excess - bound, 0.0)
            best = max(best, bound)
            known = best > 0 and least <= best + close * (best + limit)
            if known or least <= 0 or not go_on() or not slope.any():
                break
            prices = np.maximum(0.0, prices + STEP * (least - bound) / (slope @ slope) * slope)
        return best > 0

    def mixture(self, most: int) -> list[tuple[int, ...]]:
        """The `most` cheapest points that fit, as many that nearly fit, and as many of the last."""
        fitting = [p for p in self.points.items() if p[1][1] <= 0]
        full = [p for p in self.points.items() if p[1][1] > 0]
        cheapest = sorted(fitting, key=lambda p: p[1])[:most]
        nearly = sorted(full, key=lambda p: p[1][1])[:most]
        return [choices for choices, _ in (*cheapest, *nearly, *full[-most:])]

    def best(self) -> tuple[int, tuple[int, ...]] | None:
        """The cheapest point that fits, and its objective."""
        fitting = ((cost, c) for c, (cost, over) in self.points.items() if over <= 0)
        return min(fitting, default=None)

    def nearest(self) -> tuple[int, ...]:
        """The point with the least peak."""
        return min(self.points.items(), key=lambda p: p[1][1])[0]

    def least_peak(self) -> int:
        """The least peak of any point."""
        assert self.problem.limit is not None
        return self.problem.limit + min(over for _, over in self.points.values())

    def holders(self, prices: Prices) -> Ints:
        """Nodes whose choices matter to the rows that have a price, half of all that they hold."""
        theta, net = self.rows.priced(prices)
        paid, offsets = theta - self.rows.net.costs, net.offsets[:-1]
        held = np.maximum.reduceat(paid, offsets) - np.minimum.reduceat(paid, offsets)
        order = np.argsort(-held, kind="stable")
        return order[: int((np.cumsum(held[order]) < held.sum() / 2).sum()) + 1]

    def _point(self, prices: Prices, choices: Ints) -> Point:
        excess = np.rint(self.rows.over(choices)).astype(np.int64)
        cost = self.problem.constant + round(total_cost(self.rows.net, choices))
        key = tuple(choices.tolist())
        self.points[key] = cost, int(excess.max())
        return Point(prices, key, cost, excess, 0)

    def _safe(self, bound: float, prices: Prices) -> int:
        """The bound at these prices as a bound of the problem."""
        room = self.rows.room
        slack = MARGIN * (abs(bound) + float(prices @ np.abs(room)))
        return self.problem.constant + int(np.floor(bound - float(prices @ room) - slack))

    def _sweep(self, theta: Floats, net: Net, messages: Floats) -> None:
        place = self.places[0]
        sweep(net, theta, place, self.starts, messages, place, SWEEPS)

    def _settle(self, theta: Floats, net: Net) -> tuple[float, Floats]:
        """The bound after sweeps until it hardly rises, and how much each choice adds to it."""
        bound, extra = -np.inf, np.zeros(len(theta))
        for _ in range(MOST_LOOKS):
            self._sweep(theta, net, self.messages)
            last, bound = bound, marginals(net, theta, self.starts, self.messages, extra)
            if bound - last <= STILL * abs(bound):
                break
        return bound, extra


def _paid(net: Net, point: Point) -> float:
    return total_cost(net, np.array(point.choices, np.int64))


def _costless(problem: Problem) -> Net:
    """Nothing costs anything, but for what is forbidden."""
    nodes = tuple(replace(n, costs=_barred(n.costs)) for n in problem.nodes)
    edges = tuple(replace(e, costs=_barred(e.costs)) for e in problem.edges)
    return net_of(Problem(nodes, edges), most=1 << 50)


def _barred(costs: Ints) -> Ints:
    return np.where(costs < FORBIDDEN, 0, FORBIDDEN)
