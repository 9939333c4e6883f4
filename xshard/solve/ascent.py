r"""The price of memory: the Lagrangian of the limit by messages and subgradients.

With prices $\lambda \ge 0$ on the bytes of each moment, no answer costs less than

$$\min_c \Big(\mathrm{cost}(c) + \sum_t \lambda_t\, \mathrm{live}_t(c)\Big)
  - \sum_t \lambda_t\, \mathrm{room}_t,$$

and messages bound the first term from below (`xshard.solve.messages`). A round of `Ascent` sweeps,
reads choices off the messages and moves the prices by what is live beyond the room with these
choices. Only the fullest moments get a price: most others are less full for the same reason. Where
the choices fit they are an answer, often the best one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from xshard.solve.messages import decode, marginals, message_starts, spare, sweep
from xshard.solve.net import Floats, Net, over, priced, total_cost
from xshard.solve.problem import Ints

SWEEPS = 10
FULLEST = 0.99
"""A moment gets a price where it exceeds its room by this share of the largest excess."""
STEP = 0.2
"""Of the distance to the cost aimed at; halved where the bound does not rise."""
PATIENCE = 12
SHRINK = 0.7
LEAST_STEP = 0.004
UNKNOWN = 0.3
"""While no answer is known, the cost aimed at is above the bound by this share."""
MARGIN = 1e-9
"""Relative safety of float sums."""


@dataclass(slots=True)
class Ascent:
    """Prices and messages; the best ones so far are `prices`, `messages` and `bound`.

    `order` is the order of the nodes along which messages go, `sums` the effort so far, `choices`
    are those that fit with the least `cost`, and `nearly` the last ones.
    """

    net: Net
    order: Ints
    rank: Ints
    starts: Ints
    messages: Floats
    prices: Floats
    choices: Ints
    nearly: Ints
    bound: float = -np.inf
    cost: float = np.inf
    sums: float = 0.0
    step: float = STEP
    _trial: tuple[Floats, Floats] = field(init=False)
    _since: int = 0

    def __post_init__(self) -> None:
        self._trial = self.prices.copy(), self.messages.copy()

    @staticmethod
    def of(net: Net, rank: Ints) -> Ascent:
        """Without prices; `rank` orders the nodes."""
        nodes = len(net.offsets) - 1
        order = np.argsort(rank, kind="stable").astype(np.int64)
        place = np.empty(nodes, np.int64)
        place[order] = np.arange(nodes)
        starts = message_starts(net)
        zeros = np.zeros(nodes, np.int64)
        return Ascent(
            net, order, place, starts, np.zeros(int(starts[-1])), np.zeros(len(net.room)), zeros,
            zeros.copy(),
        )  # fmt: skip

    def climb(self, share: Callable[[float], float]) -> None:
        """Rounds until `share` of the sums made is 1 or the steps are small."""
        while share(self.sums) < 1 and self.step > LEAST_STEP:
            if not self._round():
                break

    def again(self, cost: float) -> None:
        """With an answer of this cost known, long steps once more."""
        self.cost, self.step, self._since = min(self.cost, cost), STEP, 0
        self._trial = self.prices.copy(), self.messages.copy()

    def opening(self) -> Floats:
        """What each edge can spare at the best messages, for each choice of each of its ends."""
        out = np.zeros(int(self.starts[-1]))
        spare(self.net, self.starts, self.messages, out)
        return out

    def _bound(self, theta: Floats, prices: Floats, messages: Floats) -> float:
        bound = marginals(self.net, theta, self.starts, messages, np.zeros(len(theta)))
        paid = float(prices @ self.net.room)
        return bound - paid - MARGIN * (abs(bound) + abs(paid))

    def _round(self) -> bool:
        """One step of the prices; whether there is more to gain."""
        net, (prices, messages) = self.net, self._trial
        theta = net.costs + priced(net, prices)
        sweep(net, theta, self.rank, self.starts, messages, self.order, SWEEPS)
        self.sums += (2 * SWEEPS + 3) * len(net.tables) + 8 * len(net.room)
        bound = self._bound(theta, prices, messages)
        self._keep(bound)
        decode(net, theta, self.starts, messages, self.order, self.rank, self.nearly)
        excess = over(net, self.nearly).astype(np.float64)
        cost = total_cost(net, self.nearly)
        if excess.max(initial=0) <= 0 and cost < self.cost:
            self.cost, self.choices = cost, self.nearly.copy()
        most = max(float(excess.max(initial=0)), 0.0)
        slope = np.where((self._trial[0] > 0) | (excess > FULLEST * most), excess, 0.0)
        norm = float(slope @ slope)
        if norm == 0:
            return False
        aim = min(self.cost, self.bound + UNKNOWN * abs(self.bound) + 1)
        length = self.step * max(aim - bound, 1e-3 * abs(bound)) / norm
        self._trial = np.maximum(0.0, self._trial[0] + length * slope), self._trial[1]
        return True

    def _keep(self, bound: float) -> None:
        prices, messages = self._trial
        if bound > self.bound:
            far = bound > self.bound + 1e-4 * abs(self.bound)
            self.bound, self.prices, self.messages = bound, prices.copy(), messages.copy()
            self._since = 0 if far else self._since + 1
        else:
            self._since += 1
        if self._since >= PATIENCE:
            self._since, self.step = 0, self.step * SHRINK
            self._trial = self.prices.copy(), self.messages.copy()
