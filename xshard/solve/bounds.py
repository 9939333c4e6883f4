r"""Dual bounds of problems without rows that are too wide to eliminate, by messages.

`Messages` is what `xshard.solve.price` calls an engine: it bounds the least total of node costs and
edge tables from below, finds choices that come near it, and bounds all totals that hold a choice.
The messages of `xshard.solve.messages` stay as a start when costs change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xshard.solve.flat import Flat
from xshard.solve.messages import decode, marginals, message_starts, polish, sweep
from xshard.solve.net import Floats, Net, net_of, total_cost
from xshard.solve.problem import Ints, Problem
from xshard.solve.ranks import ranks

MARGIN = 1e-7
"""Relative safety of float bounds against integer objectives."""
SWEEPS = 5
MOST_LOOKS = 30
STILL = 1e-6
"""Relative rise of the bound between two looks at which the sweeps end."""
POLISHES = 4


def orders_of(problem: Problem) -> list[Ints]:
    """Orders of the nodes along which choices are read off messages: its place, for each node."""
    own = np.arange(len(problem.nodes))
    bare = tuple(replace(e, usage=None) for e in problem.edges)
    last = ranks(Flat.of(Problem(problem.nodes, bare)), 1)[0]
    return [own, own[::-1].copy(), np.argsort(np.argsort(-last, kind="stable"), kind="stable")]


@dataclass(slots=True)
class Messages:
    """Messages of one problem; `places` are as `orders_of` makes them."""

    problem: Problem
    places: list[Ints]
    starts: Ints
    messages: Floats

    @staticmethod
    def of(problem: Problem) -> Messages:
        """All messages zero."""
        starts = message_starts(net_of(problem))
        return Messages(problem, orders_of(problem), starts, np.zeros(int(starts[-1])))

    def edge_tables(self, edges: Sequence[Ints]) -> list[Ints]:
        """The matrices as they are (another engine compresses them)."""
        return list(edges)

    def minimise(
        self, costs: Sequence[Ints], tables: Sequence[Ints]
    ) -> tuple[int, tuple[int, ...]]:
        """A lower bound of the least total, and choices that come near it."""
        net = self._net(costs, tables)
        bound, _ = self._settle(net)
        found = [read(net, net.costs, self.starts, self.messages, p) for p in self.places]
        least, at = min((total_cost(net, c), i) for i, c in enumerate(found))
        return _safely_below(min(bound, least)), tuple(found[at].tolist())

    def bounds(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> list[Ints]:
        """For every node and choice, a lower bound of all totals that contain it."""
        net = self._net(costs, tables)
        bound, extra = self._settle(net)
        low = bound + extra
        safe = np.floor(low - MARGIN * np.abs(low)).astype(np.int64)
        return np.split(safe, net.offsets[1:-1])

    def _net(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> Net:
        nodes = zip(self.problem.nodes, costs, strict=True)
        edges = zip(self.problem.edges, tables, strict=True)
        return net_of(Problem(
            tuple(replace(n, costs=c) for n, c in nodes),
            tuple(replace(e, costs=t, usage=None) for e, t in edges),
        ))  # fmt: skip

    def _settle(self, net: Net) -> tuple[float, Floats]:
        """The bound after sweeps until it hardly rises, and how much each choice adds to it."""
        place, extra = self.places[0], np.zeros(len(net.costs))
        bound = -np.inf
        for _ in range(MOST_LOOKS):
            sweep(net, net.costs, place, self.starts, self.messages, place, SWEEPS)
            last, bound = bound, marginals(net, net.costs, self.starts, self.messages, extra)
            if bound - last <= STILL * abs(bound):
                break
        return bound, extra


def read(net: Net, theta: Floats, starts: Ints, messages: Floats, place: Ints) -> Ints:
    """Choices read off the messages along an order, then improved one by one."""
    order, choices = np.argsort(place), np.zeros(len(place), np.int64)
    decode(net, theta, starts, messages, order, place, choices)
    polish(net, theta, order, choices, POLISHES)
    return choices


def _safely_below(bound: float) -> int:
    return int(np.floor(bound - MARGIN * abs(bound)))
