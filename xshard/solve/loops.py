# pyright: standard
"""The loops of `xshard.solve.contract` and `xshard.solve.dominate`, over the arrays of a `Flat`."""

from __future__ import annotations

import numpy as np

from xshard.solve.jit import kernel
from xshard.solve.problem import FORBIDDEN


@kernel
def support(offsets, ends, starts, tables, first, edges, alive):
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


@kernel
def followers(
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


@kernel
def add_costs(offsets, costs, leaders, at, maps, new_offsets, out):
    for v in range(len(leaders)):
        r = leaders[v]
        o = new_offsets[r]
        for k in range(new_offsets[r + 1] - o):
            out[o + k] = min(out[o + k] + costs[offsets[v] + maps[at[v] + k]], FORBIDDEN)


@kernel
def add_tables(
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


@kernel
def add_usage(nodes, starts, usage, at, maps, group, new_starts, out):
    for s in range(len(nodes)):
        o = new_starts[group[s]]
        for k in range(new_starts[group[s] + 1] - o):
            out[o + k] += usage[starts[s] + maps[at[nodes[s]] + k]]


@kernel
def compare(
    offsets, costs, ends, starts, tables, first, edges, span_first, spans, span_starts, usage, kept
):  # fmt: skip
    for v in range(len(offsets) - 1):
        o, k = offsets[v], offsets[v + 1] - offsets[v]
        for c in range(k):
            for d in range(k):
                if d == c or not kept[o + d]:
                    continue
                rise = costs[o + d] - costs[o + c]
                worse = rise > 0
                for j in range(span_first[v], span_first[v + 1]):
                    if worse:
                        break
                    at = span_starts[spans[j]]
                    worse = usage[at + d] > usage[at + c]
                for j in range(first[v], first[v + 1]):
                    if worse:
                        break
                    e = edges[j]
                    na = offsets[ends[e, 0] + 1] - offsets[ends[e, 0]]
                    nb = offsets[ends[e, 1] + 1] - offsets[ends[e, 1]]
                    mine = ends[e, 0] == v
                    others, by, along = (nb, nb, 1) if mine else (na, 1, nb)
                    most = -FORBIDDEN
                    for i in range(others):
                        new = tables[starts[e] + d * by + i * along]
                        old = tables[starts[e] + c * by + i * along]
                        if old < FORBIDDEN:
                            most = max(most, FORBIDDEN if new >= FORBIDDEN else new - old)
                    rise += most
                    worse = rise >= FORBIDDEN // 2
                if not worse and rise <= 0:
                    kept[o + c] = False
                    break
