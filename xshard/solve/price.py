r"""Memory at a price: the Lagrangian of the rows, evaluated exactly by a `Sweep`.

A point is the cheapest choice of everything at given prices. Its objective and its excess over the
limit, row by row, are a cut for the next prices; its `bound` holds for the problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xshard.solve.check import Ledger, objective_of
from xshard.solve.drop import Drop
from xshard.solve.problem import FORBIDDEN, Ints, Problem
from xshard.solve.sweep import Sweep

Prices = NDArray[np.float64]
ROUNDING = 1e-12


class Engine(Protocol):
    """Minimises node costs and edge tables, exactly or from below."""

    def edge_tables(self, edges: Sequence[Ints]) -> list[Ints]:
        """Edge matrices in the form that the other methods take."""
        ...

    def minimise(
        self, costs: Sequence[Ints], tables: Sequence[Ints]
    ) -> tuple[int, tuple[int, ...]]:
        """A lower bound of the least total, and choices that come near it."""
        ...

    def bounds(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> list[Ints]:
        """For every node and choice, a lower bound of all totals that contain it."""
        ...


def engine_of(problem: Problem) -> Engine:
    """Elimination for a small problem, messages for a large one."""
    if sum(len(n.costs) for n in problem.nodes) <= MOST_CHOICES_TO_ELIMINATE:
        sweep = Sweep.of(problem)
        if sweep is not None:
            return sweep
    from xshard.solve.bounds import Messages  # brings Numba, which small problems do not need

    return Messages.of(problem)


MOST_CHOICES_TO_ELIMINATE = 3000
"""Above that a first elimination is not worth its time: messages are as good."""


@dataclass(frozen=True, slots=True)
class Point:
    """The cheapest choices at `prices` (ns a byte, one a row).

    Attributes:
      objective: what they cost, in ns, without the prices.
      excess: live bytes over the limit, one a row; negative where they fit.
      bound: no feasible choices cost less.
    """

    prices: Prices
    choices: tuple[int, ...]
    objective: int
    excess: Ints
    bound: int


@dataclass(frozen=True, slots=True)
class Pricing:
    """A problem with a limit, ready to be priced."""

    problem: Problem
    ledger: Ledger
    engine: Engine
    costs: list[Ints]
    usages: list[Ints | None]

    @staticmethod
    def of(problem: Problem) -> Pricing:
        """By exact elimination where that is small enough, by messages elsewhere."""
        engine = engine_of(problem)
        dense = [(e.costs, e.usage) for e in problem.edges]
        costs = engine.edge_tables([c for c, _ in dense])
        filled = [np.zeros_like(c) if u is None else u for c, u in dense]
        small = engine.edge_tables(filled)
        usages = [None if u is None else s for (_, u), s in zip(dense, small, strict=True)]
        return Pricing(problem, Ledger.of(problem), engine, costs, usages)

    @property
    def is_exact(self) -> bool:
        """Whether points are minima, not only near them."""
        return isinstance(self.engine, Sweep)

    def at(self, prices: Prices, weights: Prices | None = None) -> Point:
        """The cheapest choices at `prices`; with `weights` nodes pay so many times as much.

        The bound holds without weights only; with them it is 0.
        """
        costs, tables = self._priced(prices, weights)
        least, choices = self.engine.minimise(costs, tables)
        assert self.problem.limit is not None
        excess = self.ledger.live_bytes(self.problem, choices) - self.problem.limit
        bound = self.problem.constant + least - self._refund(prices)
        objective = objective_of(self.problem, choices)
        return Point(prices, choices, objective, excess, bound if weights is None else 0)

    def within(self, prices: Prices, most: int) -> Drop:
        """Leaves out every choice that no feasible answer of `most` or less contains."""
        costs, tables = self._priced(prices)
        marginals = self.engine.bounds(costs, tables)
        most_priced = most - self.problem.constant + self._refund(prices)
        kept = [np.flatnonzero(m <= min(most_priced, FORBIDDEN - 1)) for m in marginals]
        return Drop(tuple(k if len(k) else np.zeros(1, np.intp) for k in kept))

    def _refund(self, prices: Prices) -> int:
        """At least what the prices pay back for memory up to the limit, in ns."""
        assert self.problem.limit is not None
        room = (self.problem.limit - self.ledger.base).astype(np.float64)
        paid = prices * room
        return int(np.ceil(paid.sum() + ROUNDING * np.abs(paid).sum()))

    def _priced(
        self, prices: Prices, weights: Prices | None = None
    ) -> tuple[list[Ints], list[Ints]]:
        each = prices @ self.ledger.node_counts
        each = each if weights is None else each * weights
        nodes = zip(self.problem.nodes, each, strict=True)
        costs = [_plus(n.costs, float(price), n.usage) for n, price in nodes]
        tables = list(self.costs)
        for k, price in zip(self.ledger.edges, prices @ self.ledger.edge_counts, strict=True):
            usage = self.usages[k]
            assert usage is not None
            tables[k] = _plus(tables[k], float(price), usage)
        return costs, tables


def _plus(costs: Ints, price: float, usage: Ints) -> Ints:
    """costs + price × usage, rounded down; what is forbidden stays so."""
    if price == 0.0:
        return costs
    extra = np.floor(usage * (price * (1 - ROUNDING))).astype(np.int64)
    return np.where(costs < FORBIDDEN, costs + extra, FORBIDDEN)
