r"""Nodes that follow others, taken out: exact, and linear in the size of the tables.

`support` leaves out choices without an allowed pair on some edge (arc consistency). An edge on
which every choice of $a$ then allows one choice of $b$ makes $b$ a follower of $a$: `contract`
rewrites the tables and spans of $b$ over the choices of $a$ (`Contraction` is the way back), adds
up edges that have become parallel, and folds those within a group, and those to a node with one
choice, into costs. Usage that no choice changes leaves the room of its moments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xshard.solve import loops
from xshard.solve.flat import Flat, offsets_of
from xshard.solve.problem import FORBIDDEN, Ints

MOST_ROUNDS = 6
GROWTH = 2
"""A follower's tables may grow by this factor."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """Choice c of `leaders[i]` means choice maps[starts[i] + c] of node i."""

    leaders: Ints
    starts: Ints
    maps: Ints
    sizes: Ints

    @property
    def is_trivial(self) -> bool:
        """Whether nobody follows."""
        return bool((self.leaders == np.arange(len(self.leaders))).all())

    def invert(self, choices: Ints) -> Ints:
        """Choices of all nodes, from those of their leaders."""
        return self.maps[self.starts + choices[self.leaders]]

    def apply(self, choices: Ints) -> Ints:
        """Choices of leaders that mean these for themselves; the first where none does."""
        found = np.zeros_like(choices)
        for i in np.flatnonzero(self.leaders == np.arange(len(self.leaders))).tolist():
            open_to = self.maps[self.starts[i] : self.starts[i] + self.sizes[i]]
            found[i] = int((open_to == choices[i]).argmax())
        return found


def contracted(flat: Flat) -> tuple[Flat, tuple[Contraction, ...]] | None:
    """Contracts until nothing follows; None if forbidden pairs leave no choices."""
    steps: list[Contraction] = []
    for turn in range(MOST_ROUNDS):
        alive = support(flat)
        if alive is None:
            return None
        step = followers(flat, alive, bijections_only=turn == 0)
        if turn > 1 and alive.all() and step.is_trivial:
            break
        flat = contract(flat, step)
        steps.append(step)
    return flat, tuple(steps)


def support(flat: Flat) -> np.ndarray | None:
    """Which choices have an allowed partner on every edge; None if a node has none left."""
    alive = flat.costs < FORBIDDEN
    first, edges = incidence(flat)
    possible = loops.support(flat.offsets, flat.ends, flat.starts, flat.tables, first, edges, alive)
    return alive if possible else None


def incidence(flat: Flat) -> tuple[Ints, Ints]:
    """The edges on node i are edges[first[i] : first[i + 1]]."""
    both = flat.ends.reshape(-1)
    order = np.argsort(both, kind="stable")
    first = np.searchsorted(both[order], np.arange(len(flat.offsets)))
    return first.astype(np.int64), (order // 2).astype(np.int64)


def followers(flat: Flat, alive: np.ndarray, *, bijections_only: bool) -> Contraction:
    """Who follows whom, over the choices that are alive."""
    first, edges = incidence(flat)
    n = len(flat.sizes)
    left = np.add.reduceat(alive.astype(np.int64), flat.offsets[:-1])
    leaders = np.full(n, -1, np.int64)
    capacity = int(flat.sizes.sum() * (1 if bijections_only else GROWTH * 2) + flat.sizes.max())
    starts, maps = np.zeros(n, np.int64), np.zeros(capacity, np.int64)
    used = loops.followers(
        flat.offsets, flat.ends, flat.starts, flat.tables, first, edges, alive, left,
        leaders, starts, maps, 1 if bijections_only else GROWTH,
    )  # fmt: skip
    return Contraction(leaders, starts, maps[:used].copy(), left)


def contract(flat: Flat, step: Contraction) -> Flat:
    """The problem over the leaders; followers stay as nodes with one choice that costs nothing."""
    sizes = np.where(step.leaders == np.arange(len(step.leaders)), step.sizes, 1)
    offsets = offsets_of(sizes)
    costs = np.zeros(int(offsets[-1]), np.int64)
    loops.add_costs(flat.offsets, flat.costs, step.leaders, step.starts, step.maps, offsets, costs)
    a, b = step.leaders[flat.ends[:, 0]], step.leaders[flat.ends[:, 1]]
    inner = (a == b) | (sizes[a] == 1) | (sizes[b] == 1)
    low, high = np.minimum(a, b), np.maximum(a, b)
    keys, group = np.unique((low * len(sizes) + high)[~inner], return_inverse=True)
    ends = np.stack(np.divmod(keys, len(sizes)), axis=1)
    groups = np.full(len(inner), -1, np.int64)
    groups[~inner] = group
    starts = offsets_of(sizes[ends[:, 0]] * sizes[ends[:, 1]])
    tables = np.zeros(int(starts[-1]), np.int64)
    loops.add_tables(
        flat.offsets, flat.ends, flat.starts, flat.tables, step.leaders, step.starts, step.maps,
        groups, offsets, costs, starts, tables,
    )  # fmt: skip
    lead = step.leaders == np.arange(len(sizes))
    single = lead & (sizes == 1)
    constant = flat.constant + int(costs[offsets[:-1][single]].sum())
    costs[offsets[:-1][sizes == 1]] = 0
    return replace(
        _with_spans(flat, step, sizes),
        offsets=offsets, costs=np.minimum(costs, FORBIDDEN), ends=ends, starts=starts,
        tables=np.minimum(tables, FORBIDDEN), constant=constant,
    )  # fmt: skip


def _with_spans(flat: Flat, step: Contraction, sizes: Ints) -> Flat:
    """Spans of one leader over the same moments added up; what no choice changes taken out."""
    r = step.leaders[flat.span_nodes]
    keys = np.stack([r, flat.span_from, flat.span_to], axis=1)
    groups, group = np.unique(keys, axis=0, return_inverse=True)
    starts = offsets_of(sizes[groups[:, 0]])
    usage = np.zeros(int(starts[-1]), np.int64)
    loops.add_usage(
        flat.span_nodes, flat.span_starts, flat.usage, step.starts, step.maps,
        group.reshape(-1).astype(np.int64), starts, usage,
    )  # fmt: skip
    least = np.minimum.reduceat(usage, starts[:-1]) if len(groups) else usage
    room = flat.room - _profile(groups, least, len(flat.room))
    usage -= np.repeat(least, np.diff(starts))
    most = np.maximum.reduceat(usage, starts[:-1]) if len(groups) else usage
    kept = (most > 0) & (groups[:, 1] < groups[:, 2])
    sized = np.diff(starts)
    return replace(
        flat, span_nodes=groups[kept, 0], span_from=groups[kept, 1], span_to=groups[kept, 2],
        span_starts=offsets_of(sized[kept]), usage=usage[np.repeat(kept, sized)], room=room,
    )  # fmt: skip


def relevant(flat: Flat) -> Flat:
    """Without the moments at which everything fits whatever is chosen."""
    starts = flat.span_starts[:-1]
    most = np.maximum.reduceat(flat.usage, starts) if len(starts) else flat.usage
    groups = np.stack([flat.span_nodes, flat.span_from, flat.span_to], axis=1)
    kept = _profile(groups, most, len(flat.room)) > flat.room
    number = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return replace(
        flat, span_from=number[flat.span_from], span_to=number[flat.span_to], room=flat.room[kept]
    )


def _profile(groups: Ints, amounts: Ints, moments: int) -> Ints:
    change = np.zeros(moments + 1, np.int64)
    np.add.at(change, groups[:, 1], amounts)
    np.subtract.at(change, groups[:, 2], amounts)
    return np.cumsum(change)[:-1]
