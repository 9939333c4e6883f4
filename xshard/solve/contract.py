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

from xshard.solve.flat import Flat, offsets_of
from xshard.solve.jit import kernel
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
    possible = _support(flat.offsets, flat.ends, flat.starts, flat.tables, first, edges, alive)
    return alive if possible else None


def incidence(flat: Flat) -> tuple[Ints, Ints]:
    """The edges on node i are edges[first[i] : first[i + 1]]."""
    both = flat.ends.reshape(-1)
    order = np.argsort(both, kind="stable")
    first = np.searchsorted(both[order], np.arange(len(flat.offsets)))
    return first.astype(np.int64), (order // 2).astype(np.int64)


@kernel
def _support(offsets, ends, starts, tables, first, edges, alive):
    m = len(ends)
    queue = np.arange(m)
    waiting = np.ones(m, np.bool_)
    head, count = 0, m
    while count > 0:
        e = queue[head]
        head = (head + 1) % m
        count -= 1
        waiting[e] = False
        a, b = ends[e, 0], ends[e, 1]
        na, nb = offsets[a + 1] - offsets[a], offsets[b + 1] - offsets[b]
        oa, ob, at = offsets[a], offsets[b], starts[e]
        for side in range(2):
            v = a if side == 0 else b
            n, o = (na, oa) if side == 0 else (nb, ob)
            other, oo = (nb, ob) if side == 0 else (na, oa)
            by, along = (nb, 1) if side == 0 else (1, nb)
            shrunk = False
            left = 0
            for c in range(n):
                if not alive[o + c]:
                    continue
                found = False
                for d in range(other):
                    if alive[oo + d] and tables[at + c * by + d * along] < FORBIDDEN:
                        found = True
                        break
                if found:
                    left += 1
                else:
                    alive[o + c] = False
                    shrunk = True
            if left == 0:
                return False
            if shrunk:
                for j in range(first[v], first[v + 1]):
                    f = edges[j]
                    if not waiting[f]:
                        waiting[f] = True
                        queue[(head + count) % m] = f
                        count += 1
    for i in range(len(offsets) - 1):
        left = 0
        for c in range(offsets[i], offsets[i + 1]):
            left += alive[c]
        if left == 0:
            return False
    return True


def followers(flat: Flat, alive: np.ndarray, *, bijections_only: bool) -> Contraction:
    """Who follows whom, over the choices that are alive."""
    first, edges = incidence(flat)
    n = len(flat.sizes)
    left = np.add.reduceat(alive.astype(np.int64), flat.offsets[:-1])
    leaders = np.full(n, -1, np.int64)
    capacity = int(flat.sizes.sum() * (1 if bijections_only else GROWTH * 2) + flat.sizes.max())
    starts, maps = np.zeros(n, np.int64), np.zeros(capacity, np.int64)
    used = _followers(
        flat.offsets, flat.ends, flat.starts, flat.tables, first, edges, alive, left,
        leaders, starts, maps, 1 if bijections_only else GROWTH,
    )  # fmt: skip
    return Contraction(leaders, starts, maps[:used].copy(), left)


@kernel
def _followers(
    offsets, ends, starts, tables, first, edges, alive, left, leaders, at, maps, growth
):  # fmt: skip
    """Breadth first from the nodes with the most choices; maps over the alive choices."""
    n = len(leaders)
    order = np.argsort(-left, kind="mergesort")
    queue = np.empty(n, np.int64)
    used = 0
    for root in order:
        if leaders[root] >= 0:
            continue
        size = left[root]
        if used + size > len(maps):
            return -1
        leaders[root] = root
        at[root] = used
        k = 0
        for c in range(offsets[root], offsets[root + 1]):
            if alive[c]:
                maps[used + k] = c - offsets[root]
                k += 1
        used += size
        if size < 2:
            continue
        queue[0] = root
        head, tail = 0, 1
        while head < tail:
            v = queue[head]
            head += 1
            for j in range(first[v], first[v + 1]):
                e = edges[j]
                mine = 0 if ends[e, 0] == v else 1
                w = ends[e, 1 - mine]
                if leaders[w] >= 0 or left[w] < 2 or left[w] * growth < size:
                    continue
                if left[w] != size and (growth == 1 or (first[w + 1] - first[w]) > 64):
                    continue
                nb = offsets[ends[e, 1] + 1] - offsets[ends[e, 1]]
                by, along = (nb, 1) if mine == 0 else (1, nb)
                if used + size > len(maps):
                    continue
                single = True
                for c in range(offsets[v + 1] - offsets[v]):
                    if not alive[offsets[v] + c]:
                        continue
                    found = 0
                    for d in range(offsets[w + 1] - offsets[w]):
                        if alive[offsets[w] + d]:
                            found += tables[starts[e] + c * by + d * along] < FORBIDDEN
                    if found != 1:
                        single = False
                        break
                if not single:
                    continue
                leaders[w] = root
                at[w] = used
                for k in range(size):
                    c = maps[at[v] + k]
                    for d in range(offsets[w + 1] - offsets[w]):
                        if (
                            alive[offsets[w] + d]
                            and tables[starts[e] + c * by + d * along] < FORBIDDEN
                        ):
                            maps[used + k] = d
                used += size
                queue[tail] = w
                tail += 1
    return used


def contract(flat: Flat, step: Contraction) -> Flat:
    """The problem over the leaders; followers stay as nodes with one choice that costs nothing."""
    sizes = np.where(step.leaders == np.arange(len(step.leaders)), step.sizes, 1)
    offsets = offsets_of(sizes)
    costs = np.zeros(int(offsets[-1]), np.int64)
    _add_costs(flat.offsets, flat.costs, step.leaders, step.starts, step.maps, offsets, costs)
    a, b = step.leaders[flat.ends[:, 0]], step.leaders[flat.ends[:, 1]]
    inner = (a == b) | (sizes[a] == 1) | (sizes[b] == 1)
    low, high = np.minimum(a, b), np.maximum(a, b)
    keys, group = np.unique((low * len(sizes) + high)[~inner], return_inverse=True)
    ends = np.stack(np.divmod(keys, len(sizes)), axis=1)
    groups = np.full(len(inner), -1, np.int64)
    groups[~inner] = group
    starts = offsets_of(sizes[ends[:, 0]] * sizes[ends[:, 1]])
    tables = np.zeros(int(starts[-1]), np.int64)
    _add_tables(
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


@kernel
def _add_costs(offsets, costs, leaders, at, maps, new_offsets, out):
    for v in range(len(leaders)):
        r = leaders[v]
        o = new_offsets[r]
        for k in range(new_offsets[r + 1] - o):
            out[o + k] = min(out[o + k] + costs[offsets[v] + maps[at[v] + k]], FORBIDDEN)


@kernel
def _add_tables(
    offsets, ends, starts, tables, leaders, at, maps, groups, new_offsets, costs, new_starts, out
):  # fmt: skip
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        ra, rb = leaders[a], leaders[b]
        na, nb = new_offsets[ra + 1] - new_offsets[ra], new_offsets[rb + 1] - new_offsets[rb]
        width = offsets[b + 1] - offsets[b]
        g = groups[e]
        if g >= 0:
            ka, kb = (nb, 1) if ra < rb else (1, na)
            for i in range(na):
                row = starts[e] + maps[at[a] + i] * width
                for j in range(nb):
                    o = new_starts[g] + i * ka + j * kb
                    out[o] = min(out[o] + tables[row + maps[at[b] + j]], FORBIDDEN)
        elif ra == rb:
            for i in range(na):
                o = new_offsets[ra] + i
                value = tables[starts[e] + maps[at[a] + i] * width + maps[at[b] + i]]
                costs[o] = min(costs[o] + value, FORBIDDEN)
        elif na == 1:
            for j in range(nb):
                o = new_offsets[rb] + j
                value = tables[starts[e] + maps[at[a]] * width + maps[at[b] + j]]
                costs[o] = min(costs[o] + value, FORBIDDEN)
        else:
            for i in range(na):
                o = new_offsets[ra] + i
                value = tables[starts[e] + maps[at[a] + i] * width + maps[at[b]]]
                costs[o] = min(costs[o] + value, FORBIDDEN)


def _with_spans(flat: Flat, step: Contraction, sizes: Ints) -> Flat:
    """Spans of one leader over the same moments added up; what no choice changes taken out."""
    r = step.leaders[flat.span_nodes]
    keys = np.stack([r, flat.span_from, flat.span_to], axis=1)
    groups, group = np.unique(keys, axis=0, return_inverse=True)
    starts = offsets_of(sizes[groups[:, 0]])
    usage = np.zeros(int(starts[-1]), np.int64)
    _add_usage(
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


@kernel
def _add_usage(nodes, starts, usage, at, maps, group, new_starts, out):
    for s in range(len(nodes)):
        o = new_starts[group[s]]
        for k in range(new_starts[group[s] + 1] - o):
            out[o + k] += usage[starts[s] + maps[at[nodes[s]] + k]]


def _profile(groups: Ints, amounts: Ints, moments: int) -> Ints:
    change = np.zeros(moments + 1, np.int64)
    np.add.at(change, groups[:, 1], amounts)
    np.subtract.at(change, groups[:, 2], amounts)
    return np.cumsum(change)[:-1]
