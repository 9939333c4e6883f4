r"""Dual bounds by diffusion: for problems without rows that are too wide to eliminate.

Moving cost between nodes and edges changes no total. With messages $\varphi_{e,i}$ for each edge
$e$ and each of its ends $i$,
$\theta'_i = \theta_i - \sum_e \varphi_{e,i}$ and
$\theta'_e(a, b) = \theta_e(a, b) + \varphi_{e,i}(a) + \varphi_{e,j}(b)$, and

$$L(\varphi) = \sum_i \min \theta'_i + \sum_e \min \theta'_e$$

is a lower bound; it holds for all assignments with $c_i = a$ when the minima of the terms that hold
node $i$ are taken at $a$ (`bounds`). A step of `_sweep` gives node $i$ all that its edges can
spare and shares it out evenly among itself and them, which never lowers $L$: max-sum diffusion
(Werner, IEEE PAMI 29(7), 2007), one node after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xshard.solve.problem import FORBIDDEN, Ints, Problem

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

MARGIN = 1e-7
"""Relative safety of float bounds against integer objectives."""
MOST_SWEEPS = 150
BETWEEN_LOOKS = 10
MANY_PLACES = 20_000
STILL = 1e-5
"""Relative rise of the bound between two looks at which the sweeps end."""


@dataclass(slots=True)
class Place:
    """One node and its edges.

    Attributes:
      theta: its costs.
      tables: for each choice, the rows of all its edges behind one another.
      mine: where its messages stand, shape (edges, choices).
      others: for each column of `tables`, where the other end's message stands.
      starts: first column of each edge.
      edges: (edge, side) in the order of the columns.
    """

    theta: Floats
    tables: Floats
    mine: Index
    others: Index
    starts: Index
    edges: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class View:
    """A node's own costs, and for each neighbour a row for each of its choices; last, the least."""

    own: Floats
    parts: list[tuple[int, Floats]]

    def score(self, choices: Sequence[int]) -> Floats:
        """The cost of each choice; a neighbour whose choice is -1 is at its least."""
        score = self.own
        for other, rows in self.parts:
            score = score + rows[choices[other]]
        return score


@dataclass(slots=True)
class Diffusion:
    """Messages of one problem; they stay as a start when costs change."""

    places: list[Place]
    messages: Floats
    ends: list[tuple[int, int]]
    big: float = field(default=0.0)

    @staticmethod
    def of(problem: Problem) -> Diffusion:
        """All messages zero."""
        at: list[list[tuple[int, int]]] = [[] for _ in problem.nodes]
        slot: dict[tuple[int, int], Index] = {}
        size = 0
        for k, e in enumerate(problem.edges):
            for side, i in enumerate((e.a, e.b)):
                at[i].append((k, side))
                n = len(problem.nodes[i].costs)
                slot[k, side] = np.arange(size, size + n)
                size += n
        places = [_place(edges, slot) for edges in at]
        found = Diffusion(places, np.zeros(size), [(e.a, e.b) for e in problem.edges])
        found.load([n.costs for n in problem.nodes], [e.costs for e in problem.edges])
        return found

    def edge_tables(self, edges: Sequence[Ints]) -> list[Ints]:
        """The matrices as they are (another engine compresses them)."""
        return list(edges)

    def load(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> None:
        """Takes other costs; the messages stay."""
        self.big = 4.0 * sum(_largest(t) for t in (*costs, *tables)) + 1.0
        for place, cost in zip(self.places, costs, strict=True):
            place.theta = self._bounded(cost)
            if place.edges:
                oriented = [tables[k] if side == 0 else tables[k].T for k, side in place.edges]
                place.tables = self._bounded(np.concatenate(oriented, axis=1))

    def minimise(
        self, costs: Sequence[Ints], tables: Sequence[Ints]
    ) -> tuple[int, tuple[int, ...]]:
        """A lower bound of the least total, and choices that come near it."""
        bound, views = self._settle(costs, tables), [self._view(p) for p in self.places]
        found = [self._decode(views, order) for order in self._orders()]
        choices = min(found, key=lambda c: self._total(c, tables))
        return _safely_below(min(bound, self._total(choices, tables))), tuple(choices)

    def _settle(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> float:
        """The bound after sweeps until it hardly rises."""
        self.load(costs, tables)
        order, bound = range(len(self.places)), -np.inf
        for sweep in range(1, MOST_SWEEPS + 1):
            self._sweep(order if sweep % 2 else order[::-1])
            if sweep % BETWEEN_LOOKS == 0:
                last, bound = bound, self._bound()
                if bound - last <= STILL * abs(bound):
                    return bound
        return self._bound()

    def raised(
        self,
        costs: Sequence[Ints],
        tables: Sequence[Ints],
        sweeps: int,
        go_on: Callable[[], bool],
    ) -> int:
        """A lower bound of the least total after some sweeps; the messages go on from before."""
        self.load(costs, tables)
        order = range(len(self.places))
        for sweep in range(sweeps):
            if not go_on():
                break
            self._sweep(order if sweep % 2 else order[::-1])
        return _safely_below(self._bound())

    def _orders(self) -> list[Sequence[int]]:
        """Forward, backward, and a few that are mixed, the same every time."""
        size = len(self.places)
        few = range(4 if size < MANY_PLACES else 1)
        mixed = [np.random.default_rng(seed).permutation(size).tolist() for seed in few]
        return [range(size), range(size)[::-1], *mixed]

    def bounds(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> list[Ints]:
        """For every node and choice, a lower bound of all totals that contain it."""
        bound = self._settle(costs, tables)
        return [np.array([_safely_below(bound + x) for x in self._extra(p)]) for p in self.places]

    def _sweep(self, order: Sequence[int]) -> None:
        for i in order:
            place = self.places[i]
            if place.edges:
                least = self._least(place)
                share = (place.theta + least.sum(axis=1)) / (len(place.edges) + 1)
                self.messages[place.mine] = (share[:, None] - least).T

    def _least(self, place: Place) -> Floats:
        """What each edge (column) can spare for each choice (row)."""
        seen = place.tables + self.messages[place.others]
        return np.minimum.reduceat(seen, place.starts, axis=1)

    def _own(self, place: Place) -> Floats:
        """theta' of a node."""
        return place.theta - self.messages[place.mine].sum(axis=0)

    def _extra(self, place: Place) -> Floats:
        """By how much each choice raises the bound."""
        extra = self._own(place)
        extra = extra - extra.min()
        if place.edges:
            each = self._least(place) + self.messages[place.mine].T
            extra = extra + (each - each.min(axis=0)).sum(axis=1)
        return extra

    def _bound(self) -> float:
        total = sum(float(self._own(place).min()) for place in self.places)
        for place in self.places:
            first = [n for n, (_, side) in enumerate(place.edges) if side == 0]
            if first:
                each = self._least(place) + self.messages[place.mine].T
                total += float(each[:, first].min(axis=0).sum())
        return total

    def _decode(self, views: Sequence[View], order: Sequence[int]) -> list[int]:
        """Each node's best given the ones before it, the rest at their minima; then improved."""
        choices = [-1] * len(self.places)
        for i in order:
            choices[i] = int(views[i].score(choices).argmin())
        for _ in range(4):
            changed = False
            for i in order:
                score = views[i].score(choices)
                if score[choices[i]] > score.min():
                    choices[i], changed = int(score.argmin()), True
            if not changed:
                break
        return choices

    def _view(self, place: Place) -> View:
        """What a node's choice costs, by the choices of its neighbours."""
        if not place.edges:
            return View(self._own(place), [])
        seen = place.tables + self.messages[place.others]
        ends = np.append(place.starts[1:], seen.shape[1])
        mine = self.messages[place.mine]
        parts: list[tuple[int, Floats]] = []
        for n, (k, side) in enumerate(place.edges):
            part = seen[:, place.starts[n] : ends[n]].T + mine[n]
            parts.append((self.ends[k][1 - side], np.vstack([part, part.min(axis=0)])))
        return View(self._own(place), parts)

    def _total(self, choices: Sequence[int], tables: Sequence[Ints]) -> float:
        nodes = sum(float(p.theta[c]) for p, c in zip(self.places, choices, strict=True))
        pairs = zip(tables, self.ends, strict=True)
        return nodes + sum(min(float(t[choices[a], choices[b]]), self.big) for t, (a, b) in pairs)

    def _bounded(self, costs: Ints) -> Floats:
        return np.where(costs >= FORBIDDEN, self.big, costs).astype(np.float64)


def _place(edges: list[tuple[int, int]], slot: dict[tuple[int, int], Index]) -> Place:
    none = np.zeros(0, np.intp)
    mine = np.array([slot[e] for e in edges]) if edges else none.reshape(0, 1)
    others = [slot[k, 1 - side] for k, side in edges]
    sizes = [len(x) for x in others]
    starts = np.cumsum([0, *sizes[:-1]]) if edges else none
    together = np.concatenate(others) if edges else none
    return Place(np.zeros(0), np.zeros((0, 0)), mine, together, starts, edges)


def _largest(costs: Ints) -> float:
    allowed = costs[costs < FORBIDDEN]
    return float(allowed.max()) if allowed.size else 0.0


def _safely_below(bound: float) -> int:
    return int(np.floor(bound - MARGIN * abs(bound)))
