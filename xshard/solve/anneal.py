r"""Good answers for problems with spans: blocks drawn at falling temperatures, within the limit.

1. `Anneal.begin`: the prices, the messages and the choices of an `Ascent`.
2. `Anneal.repair`: where the choices do not fit, the prices of overfull moments rise until they do;
   `Anneal.settle` looks for the least memory if that does not end.
3. `Anneal.cool`: blocks are drawn anew (`walk`) at temperatures that fall, within the limit at
   every step, at changing fractions of the prices.

Effort is counted in sums, so that it is the same on every machine; the clock only shortens it, at
a multiple of what the sums should take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from xshard.solve.ascent import Ascent
from xshard.solve.net import Desk, Floats, Net, Walker, over, total_cost
from xshard.solve.problem import Ints
from xshard.solve.walk import walk

LARGEST = 400
EVERY = 1 << 20
TOTAL = 1 << 22
WIDEST = 1 << 18
HOT, COLD = 3.0, 0.001
"""First and last temperature, over what an answer costs for each node."""
FLOOR = 0.01
"""The least price with which a moment that does not fit begins: the limit for this share of the
cost."""
RISE = 1.3
MOST_REPAIRS = 60
SUMS_PER_S = 5e8
"""What a core does in a second at least."""


@dataclass(frozen=True, slots=True)
class Rung:
    """`steps` steps with blocks of up to `largest` nodes, of each the `most` most promising
    choices, and tables of up to `entries`."""

    largest: int
    entries: int
    steps: int
    most: int = EVERY
    ranked: bool = False


LADDER = (
    Rung(16, 1 << 10, 40),
    Rung(60, 1 << 12, 20, 16),
    Rung(100, 1 << 12, 8, 24),
    Rung(200, 1 << 14, 4, 16),
    Rung(LARGEST, 1 << 14, 2, 16),
    Rung(LARGEST, 1 << 16, 2, 20),
)
SELDOM = (
    (8, Rung(LARGEST, WIDEST, 1, 10, ranked=True)),
    (4, Rung(LARGEST, 1 << 16, 1, 16, ranked=True)),
    (2, Rung(LARGEST, 1 << 14, 1, 20, ranked=True)),
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
    start: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    reference: float = np.inf

    @staticmethod
    def of(net: Net, orders: Ints, limit: int, seed: int) -> Anneal:
        """At the choices of least usage."""
        desk = Desk.of(net, LARGEST, WIDEST, TOTAL)
        walker = Walker.at(net, np.zeros(len(net.offsets) - 1, np.int64), seed, desk)
        return Anneal(net, orders, walker, max(limit, 1), prices=np.zeros(len(net.room)))

    def run(self, rung: Rung, temperature: float, prices: Floats, weight: float, limited: bool):
        """Walks one rung."""
        w = self.walker
        order = self.orders if rung.ranked else self.orders[:0]
        walk(
            self.net, w.desk, w.choices, w.over, w.best, w.state, w.random, prices, rung.steps,
            float(temperature), rung.largest, rung.entries, rung.most, limited, float(weight),
            FLOOR * max(1.0, abs(float(w.state[0]))) / self.limit, order,
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

    def begin(self, ascent: Ascent, start: Ints | None = None) -> None:
        """At the prices of an ascent, with its messages, and at its best choices or at `start`."""
        self.prices = ascent.prices.copy()
        self.walker.desk.opening[:] = ascent.opening()
        self.start = ascent.nearly.copy()
        if start is None:
            self.go(ascent.choices if np.isfinite(ascent.cost) else ascent.nearly)
            return
        if np.isfinite(ascent.cost):
            self.go(ascent.choices)
        self.go(start)

    def repair(self, clock: Clock) -> None:
        """Raises the prices of overfull moments until the choices fit."""
        prices = self.prices.copy()
        for turn in range(MOST_REPAIRS):
            if self.fits or clock.share(0, 1) > 0.2:
                break
            prices = self.press(LADDER[1 + turn % (len(LADDER) - 1)], 0.0, prices)
        if not self.fits:
            self.settle(clock)
        w = self.walker
        self.reference = max(1.0, float(w.state[1] if self.fits else w.state[0]))

    def force(self, clock: Clock, temperature: float) -> None:
        """Presses until the present choices fit; the best answer if they do not in time."""
        prices = self.prices
        for turn in range(MOST_REPAIRS):
            if self.walker.over.max(initial=0) <= 0 or clock.share(0, 1) >= 1:
                break
            prices = self.press(LADDER[1 + turn % (len(LADDER) - 1)], temperature, prices)
        if self.walker.over.max(initial=0) > 0 and self.fits:
            self.go(self.walker.best.copy())

    def press(self, rung: Rung, temperature: float, prices: Floats) -> Floats:
        """Walks a rung without the limit; the prices after it, higher where too much is live."""
        w = self.walker
        self.run(rung, temperature, prices, 1.0, False)
        self.keep()
        floor = FLOOR * max(1.0, abs(float(w.state[0]))) / self.limit
        return np.where(w.over > 0, np.maximum(RISE * prices, floor), prices)

    def settle(self, clock: Clock, rounds: int = 60) -> None:
        """Looks for choices that fit; keeps those with the least peak if there are none."""
        w, moments = self.walker, len(self.net.room)
        prices = np.full(moments, 1.0 / max(moments, 1))
        extra = prices
        least, peak = w.choices.copy(), w.over.max(initial=0)
        for turn in range(rounds):
            scale = 1e9 * max(1.0, abs(w.state[0])) / self.limit
            extra = prices * scale
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

    def cool(self, clock: Clock, effort: float, heat: float = 1.0, *, afresh: bool = False) -> None:
        """Cools once, beginning at `heat` of the highest temperature.

        From the best answer; or `afresh` from the last choices of the ascent, made to fit in
        another way: what is found near the first answer need not be near the best.
        """
        w, begun, prices = self.walker, self.walker.state[4], self.prices
        if afresh:
            self.go(self.start.copy())
            self.force(clock, self.reference / max(len(self.net.free), 1) * HOT)
        elif self.fits:
            self.go(w.best.copy())
        hot = self.reference / max(len(self.net.free), 1) * HOT * heat
        ratio = COLD / HOT / heat
        while (share := clock.share(w.state[4] - begun, effort)) < 1:
            now = hot * ratio ** min(share / 0.9, 1) if share < 0.95 else 0.0
            if self.fits:
                fraction = SHARES[(self.steps // len(LADDER)) % len(SHARES)]
                self.run(self.rung(), now, self.prices, fraction, True)
            else:
                prices = self.press(self.rung(), now, prices)

    def rung(self) -> Rung:
        """The rungs in turn."""
        self.steps += 1
        turn, at = divmod(self.steps, len(LADDER))
        if at == 0:
            part = max(1, len(self.net.free) // LARGEST)
            return next((rung for n, rung in SELDOM if turn % (n * part) == 0), LADDER[0])
        return LADDER[at]
