r"""Good answers for problems with spans: contraction, priced annealing, and a Lagrangian bound.

1. Nodes that follow others are contracted (`contract`); what is left is walked on (`walk`).
2. The least memory first (`_Anneal.settle`): the prices of the fullest moments rise until all fit.
3. A cycle (`_Anneal.cycle`) cools twice. First freely, while prices follow the memory by projected
   subgradients, $\lambda \leftarrow \max(0, \lambda + \gamma\, \mathrm{cost}\; g / \|g\|^2)$ with
   $g$ the bytes over the limit: this finds prices and the region where good answers are. Then
   within the limit, at fractions of these prices.
4. The last cycle starts from the best answer of all and cools within the limit only.

Effort is counted in sums, so that it is the same on every machine; the clock only shortens it, at
a multiple of what the sums should take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xshard.solve.net import Desk, Floats, Net, Walker, over, priced, total_cost
from xshard.solve.problem import Ints
from xshard.solve.walk import walk

LARGEST = 400
TOTAL = 1 << 22
WIDEST = 1 << 18
HOT, COLD = 0.1, 0.01
"""Temperatures: the first over the cost of an answer, the last over that for each node."""
REHEATED = 0.1
"""Where cooling within the limit begins, over HOT."""
FAST, SLOW = 0.1, 0.003
"""First and last γ of the prices."""
SUMS_PER_S = 5e8
"""What a core does in a second at least."""


@dataclass(frozen=True, slots=True)
class Rung:
    """`steps` steps with blocks of up to `largest` nodes and tables of up to `entries`."""

    largest: int
    entries: int
    steps: int
    ranked: bool = False


LADDER = (
    Rung(16, 1 << 10, 40),
    Rung(60, 1 << 10, 20),
    Rung(100, 1 << 12, 8),
    Rung(200, 1 << 13, 4),
    Rung(LARGEST, 1 << 14, 2),
    Rung(LARGEST, 1 << 16, 1),
)
SELDOM = (
    (16, Rung(LARGEST, WIDEST, 1, ranked=True)),
    (4, Rung(LARGEST, 1 << 16, 1, ranked=True)),
    (2, Rung(LARGEST, 1 << 14, 1, ranked=True)),
)
"""(n, rung): once in n turns of the ladder, instead of its first rung; more seldom by as much as
the problem is larger than a block, since these are good where they see all of it."""
SHARES = (1.0, 0.5, 0.25, 0.1, 0.0)
"""Fractions of the prices, in turn, while the limit holds."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a part of the search is: by its sums, or by the time where that is shorter."""

    began_s: float
    limit_s: float
    stopped: Callable[[], bool]

    def share(self, spent: float, total: float) -> float:
        """From 0 to 1."""
        elapsed = (time.monotonic() - self.began_s) / max(self.limit_s, 1e-9)
        return 1.0 if self.stopped() else max(spent / total, elapsed)


@dataclass(slots=True)
class Anneal:
    """One worker's search on a contracted problem; see the module's docstring."""

    net: Net
    orders: Ints
    walker: Walker
    limit: int
    steps: int = 0
    prices: Floats = field(default_factory=lambda: np.zeros(0))
    reference: float = np.inf

    @staticmethod
    def of(net: Net, orders: Ints, limit: int, seed: int) -> Anneal:
        """At the choices of least usage."""
        desk = Desk.of(net, LARGEST, WIDEST, TOTAL)
        walker = Walker.at(net, np.zeros(len(net.offsets) - 1, np.int64), seed, desk)
        return Anneal(net, orders, walker, max(limit, 1), prices=np.zeros(len(net.room)))

    def run(self, rung: Rung, temperature: float, extra: Floats, weight: float, limited: bool):
        """Walks one rung."""
        w = self.walker
        order = self.orders if rung.ranked else self.orders[:0]
        walk(
            self.net, w.desk, w.choices, w.over, w.best, w.state, w.random, extra, rung.steps,
            float(temperature), rung.largest, rung.entries, limited, float(weight), order,
        )  # fmt: skip

    def go(self, choices: Ints) -> None:
        """Walks on from these choices."""
        w = self.walker
        w.choices[:] = choices
        w.over[:] = over(self.net, choices)
        w.state[0] = total_cost(self.net, choices)
        self.keep()

    def keep(self) -> None:
        """Keeps the present choices if they fit and are the best so far."""
        w = self.walker
        if w.over.max(initial=0) <= 0 and w.state[0] < w.state[1]:
            w.state[1] = w.state[0]
            w.best[:] = w.choices

    @property
    def fits(self) -> bool:
        """Whether an answer within the limit is known."""
        return bool(np.isfinite(self.walker.state[1]))

    def settle(self, clock: Clock, rounds: int = 60) -> None:
        """Looks for choices that fit; keeps those with the least peak if there are none."""
        w, moments = self.walker, len(self.net.room)
        prices = np.full(moments, 1.0 / max(moments, 1))
        extra = np.zeros(len(self.net.costs))
        least, peak = w.choices.copy(), w.over.max(initial=0)
        for turn in range(rounds):
            scale = 1e9 * max(1.0, abs(w.state[0])) / self.limit
            extra = priced(self.net, prices * scale)
            self.run(Rung(60, 1 << 10, len(self.net.free) // 8 + 8), 0.0, extra, 1.0, False)
            w.state[0] = total_cost(self.net, w.choices)
            self.keep()
            if w.over.max(initial=0) < peak:
                least, peak = w.choices.copy(), w.over.max(initial=0)
            if self.fits or (turn and clock.share(0, 1) > 0.3):
                break
            prices *= np.exp(np.clip(20 * w.over / self.limit, -1, 1))
            prices /= prices.sum()
        self.go(least)
        if self.fits:
            self.run(Rung(100, 1 << 12, len(self.net.free) // 4 + 4), 0.0, extra, 0.0, True)
        self.reference = max(1.0, w.state[0])

    def cycle(self, clock: Clock, effort: float, free: float) -> None:
        """Cools once, the first `free` share without the limit."""
        w, begun = self.walker, self.walker.state[4]
        extra, mean, weight = priced(self.net, self.prices), np.zeros(len(self.prices)), 0.0
        unlimited = free > 0
        hot, ratio = self.reference * HOT, COLD / HOT / max(len(self.net.free), 1)
        while (share := clock.share(w.state[4] - begun, effort)) < 1:
            if share < free:
                part = share / free
                heat = hot * ratio ** min(part / 0.9, 1)
                self.run(self.rung(), heat, extra, 1.0, False)
                if self.steps % len(LADDER) == 0:
                    rate = FAST * (SLOW / FAST) ** part
                    self.reprice(rate)
                    extra = priced(self.net, self.prices)
                    if part > 0.5:
                        mean, weight = mean + rate * self.prices, weight + rate
                continue
            if unlimited and self.fits:
                unlimited = False
                self.prices = mean / weight if weight else self.prices
                extra = priced(self.net, self.prices)
                self.go(w.best)
            part = (share - free) / (1 - free)
            start = REHEATED if free > 0 else REHEATED / 10
            heat = hot * start * min(ratio / start, 1.0) ** min(part / 0.85, 1)
            fraction = SHARES[(self.steps // len(LADDER)) % len(SHARES)] if self.fits else 1.0
            self.run(self.rung(), heat if part < 0.93 else 0.0, extra, fraction, self.fits)
            if not self.fits:
                self.reprice(FAST)
                extra = priced(self.net, self.prices)

    def rung(self) -> Rung:
        """The rungs in turn."""
        self.steps += 1
        turn, at = divmod(self.steps, len(LADDER))
        if at == 0:
            part = max(1, len(self.net.free) // LARGEST)
            return next((rung for n, rung in SELDOM if turn % (n * part) == 0), LADDER[0])
        return LADDER[at]

    def reprice(self, rate: float) -> None:
        """One step of the prices; keeps the choices if they fit."""
        w = self.walker
        self.keep()
        self.reference = min(self.reference, max(w.state[0], 1.0))
        above: NDArray[np.bool_] = (self.prices > 0) | (w.over > 0)
        excess = np.where(above, w.over, 0).astype(np.float64)
        norm = float(excess @ excess)
        if norm > 0:
            step = rate * abs(float(w.state[0])) / norm
            self.prices = np.maximum(0.0, self.prices + step * excess)
