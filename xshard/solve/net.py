"""A contracted problem and the state of a walk on it, as arrays for `xshard.solve.walk`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xshard.solve.flat import Flat, offsets_of
from xshard.solve.jit import kernel
from xshard.solve.problem import FORBIDDEN, Ints, Problem

Floats = NDArray[np.float64]
MOST_PARENTS = 12
"""Nodes that a table of a block spans, next to the one it is minimised over."""
GUMBEL = -np.log(-np.log((np.arange(1 << 14) + 0.5) / (1 << 14)))
"""Quantiles of the standard Gumbel distribution."""


class Net(NamedTuple):
    """A flat problem with each edge stored for both ends, for `walk`.

    Neighbours of node i: near[first[i] : first[i + 1]]; the table of that pair starts at `at` and
    has the neighbour's choices as rows. `back` is the place of the same pair for the neighbour.
    Spans of node i: spans[span_first[i] : span_first[i + 1]].
    """

    offsets: Ints
    costs: Floats
    first: Ints
    near: Ints
    at: Ints
    back: Ints
    tables: Floats
    span_first: Ints
    spans: Ints
    span_from: Ints
    span_to: Ints
    span_starts: Ints
    usage: Ints
    room: Ints
    free: Ints

    @staticmethod
    def of(flat: Flat) -> Net:
        """For a problem that is contracted."""
        m, n = len(flat.ends), len(flat.sizes)
        both = flat.ends.reshape(-1)
        order = np.argsort(both, kind="stable")
        first = np.searchsorted(both[order], np.arange(n + 1)).astype(np.int64)
        place = np.empty(2 * m, np.int64)
        place[order] = np.arange(2 * m)
        edge, side = np.divmod(order, 2)
        near = both[2 * edge + 1 - side]
        back = place[2 * edge + 1 - side]
        starts = offsets_of(np.diff(flat.starts)[edge])
        tables = np.empty(int(starts[-1]))
        _orient(flat.offsets, flat.ends, flat.starts, flat.tables, edge, side, starts, tables)
        spans = np.argsort(flat.span_nodes, kind="stable")
        span_first = np.searchsorted(flat.span_nodes[spans], np.arange(n + 1)).astype(np.int64)
        free = np.flatnonzero(flat.sizes > 1)
        return Net(
            flat.offsets, flat.costs.astype(np.float64), first, near, starts[:-1].copy(), back,
            tables, span_first, spans, flat.span_from, flat.span_to, flat.span_starts, flat.usage,
            flat.room, free,
        )  # fmt: skip


@kernel
def _orient(
    offsets: Ints, ends: Ints, starts: Ints, tables: Ints, edge: Ints, side: Ints, at: Ints,
    out: Floats,
) -> None:  # fmt: skip
    for j in range(len(edge)):
        e = edge[j]
        na = offsets[ends[e, 0] + 1] - offsets[ends[e, 0]]
        nb = offsets[ends[e, 1] + 1] - offsets[ends[e, 1]]
        for i in range(na):
            for k in range(nb):
                o = k * na + i if side[j] == 0 else i * nb + k
                out[at[j] + o] = tables[starts[e] + i * nb + k]


def net_of(problem: Problem, most: int | None = None) -> Net:
    """Of a problem's costs alone; what is forbidden costs `most`, or more than all that is not."""
    if most is None:
        tables = [*(n.costs for n in problem.nodes), *(e.costs for e in problem.edges)]
        most = bound_of_costs(tables)
    nodes = tuple(replace(n, costs=np.minimum(n.costs, most)) for n in problem.nodes)
    edges = [replace(e, costs=np.minimum(e.costs, most), usage=None) for e in problem.edges]
    return Net.of(Flat.of(Problem(nodes, tuple(edges))))


def bound_of_costs(tables: Sequence[Ints]) -> int:
    """More than any allowed choices cost, and small enough to be added up in float64."""
    return min(FORBIDDEN, 1 + 4 * sum(int(t[t < FORBIDDEN].max(initial=0)) for t in tables))


def plus(net: Net, loads: Floats, prices: Floats) -> Floats:
    """The tables with `loads` (placed alike) added at a price for each place of `near`."""
    out = np.empty_like(net.tables)
    _plus(net.at, net.tables, loads, prices, out)
    return out


@kernel
def _plus(at: Ints, tables: Floats, loads: Floats, prices: Floats, out: Floats) -> None:
    for j in range(len(at)):
        stop = at[j + 1] if j + 1 < len(at) else len(tables)
        for x in range(at[j], stop):
            out[x] = tables[x] + prices[j] * loads[x]


class Desk(NamedTuple):
    """Where `walk` works: nothing in it matters between two calls.

    A block has `largest` nodes at most, in the order in which they joined; `parents` are those
    positions that a node's table spans, in rising order; `picks` the choices that are looked at,
    `at` the place in them of the one taken. `opening` are the messages to begin with.
    """

    block: Ints
    counts: Ints
    parents: Ints
    starts: Ints
    child: Ints
    sibling: Ints
    new: Ints
    own: Floats
    work: Floats
    joint: Floats
    low: Floats
    pick: NDArray[np.int32]
    where: Ints
    stamp: Ints
    tried: Ints
    frontier: Ints
    waiting: Ints
    waiting_parents: Ints
    waiting_counts: Ints
    delta: Ints
    noise: Floats
    picks: Ints
    widths: Ints
    at: Ints
    cells: Ints
    score: Floats
    total: Floats
    few: Floats
    inbox: Floats
    opening: Floats
    noisy: Floats
    local: Floats
    prefix: Floats
    marks: NDArray[np.bool_]
    inbox_at: Ints

    @staticmethod
    def of(net: Net, largest: int, entries: int, total: int) -> Desk:
        """For blocks of `largest` nodes, tables of `entries` and `total` of these at once."""
        n, widest = len(net.offsets) - 1, int(np.diff(net.offsets).max(initial=1))
        per = np.zeros(largest, np.int64)
        wide = np.zeros((largest, MOST_PARENTS), np.int64)
        sizes = np.diff(net.offsets)
        inbox_at = offsets_of(np.repeat(sizes, np.diff(net.first)))
        return Desk(
            per, per.copy(), wide, per.copy(), per.copy(), per.copy(), per.copy(),
            np.zeros((largest, widest)), np.zeros((largest, widest)),
            np.zeros(max(entries, widest * widest)),
            np.zeros(total), np.zeros(total, np.int32), np.zeros(n, np.int64),
            np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n + 1, np.int64),
            per.copy(), wide.copy(), per.copy(), np.zeros(len(net.room) + 1, np.int64), GUMBEL,
            np.zeros((largest, widest), np.int64), per.copy(), per.copy(), per.copy(),
            np.zeros((largest, widest)), np.zeros(widest), np.zeros(widest * widest),
            np.zeros(int(inbox_at[-1])), np.zeros(int(inbox_at[-1])),
            np.zeros((largest, widest)), np.zeros(len(net.room)), np.zeros(len(net.room) + 1),
            np.zeros(len(net.room), np.bool_), inbox_at[:-1].copy(),
        )  # fmt: skip


@dataclass(slots=True)
class Walker:
    """Where a walk is: `over[t]` is what is live at moment t beyond its room.

    `state` is (cost, least cost of an answer that fits, steps taken, tries refused, sums made,
    steps taken at a higher price).
    """

    choices: Ints
    over: Ints
    best: Ints
    state: Floats
    random: NDArray[np.uint64]
    desk: Desk

    @staticmethod
    def at(net: Net, choices: Ints, seed: int, desk: Desk) -> Walker:
        """At the given choices."""
        random = np.random.default_rng(seed).integers(1, 2**63, 1, np.uint64)
        cost, live = total_cost(net, choices), over(net, choices)
        fits = live.max(initial=0) <= 0
        state = np.array([cost, cost if fits else np.inf, 0, 0, 0, 0])
        return Walker(choices.copy(), live, choices.copy(), state, random, desk)


def over(net: Net, choices: Ints) -> Ints:
    """Live bytes beyond the room, one a moment."""
    out = np.zeros(len(net.room) + 1, np.int64)
    _over(net.span_first, net.spans, net.span_from, net.span_to, net.span_starts, net.usage,
          choices, out)  # fmt: skip
    return np.cumsum(out)[:-1] - net.room


@kernel
def _over(
    span_first: Ints, spans: Ints, span_from: Ints, span_to: Ints, span_starts: Ints,
    usage: Ints, choices: Ints, out: Ints,
) -> None:  # fmt: skip
    for v in range(len(choices)):
        for j in range(span_first[v], span_first[v + 1]):
            s = spans[j]
            amount = usage[span_starts[s] + choices[v]]
            out[span_from[s]] += amount
            out[span_to[s]] -= amount


def priced(net: Net, prices: Floats) -> Floats:
    """What the memory of each choice costs, with a price a byte on each moment."""
    out = np.zeros(len(net.costs))
    total = np.concatenate([[0.0], np.cumsum(prices)])
    _priced(net.offsets, net.span_first, net.spans, net.span_from, net.span_to, net.span_starts,
            net.usage, total, out)  # fmt: skip
    return out


@kernel
def _priced(
    offsets: Ints, span_first: Ints, spans: Ints, span_from: Ints, span_to: Ints,
    span_starts: Ints, usage: Ints, total: Floats, out: Floats,
) -> None:  # fmt: skip
    for v in range(len(span_first) - 1):
        for j in range(span_first[v], span_first[v + 1]):
            s = spans[j]
            price = total[span_to[s]] - total[span_from[s]]
            for c in range(offsets[v + 1] - offsets[v]):
                out[offsets[v] + c] += price * usage[span_starts[s] + c]


def total_cost(net: Net, choices: Ints) -> float:
    """The cost of the choices, without memory."""
    return _total(net.offsets, net.costs, net.first, net.near, net.at, net.tables, choices)


@kernel
def _total(
    offsets: Ints, costs: Floats, first: Ints, near: Ints, at: Ints, tables: Floats,
    choices: Ints,
) -> float:  # fmt: skip
    total = 0.0
    for v in range(len(choices)):
        size = offsets[v + 1] - offsets[v]
        total += costs[offsets[v] + choices[v]]
        for j in range(first[v], first[v + 1]):
            if near[j] > v:
                total += tables[at[j] + choices[near[j]] * size + choices[v]]
    return float(total)
