"""Where the forward pass can be cut: between its layers, found by how little crosses there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from xshard.stages.assign import Body, sources
from xshard.stages.flat import Flat
from xshard.stages.kinds import Kinds, nbytes


@dataclass(frozen=True, slots=True)
class Unit:
    """Forward nodes start:stop, which go to a stage together.

    Attributes:
      work: of its forward nodes, for balance.
      crossing_bytes: what goes from the units before it to it and the later ones, for a microbatch.
    """

    start: int
    stop: int
    work: float
    crossing_bytes: int


def units_of(flat: Flat, kinds: Kinds, body: Body) -> tuple[Unit, ...]:
    """The units of the forward pass: one for each stretch between cheap cuts."""
    heavy = [i for i, n in enumerate(body.forward) if kinds.kind(n) in ("heavy", "opaque")]
    crossing = _crossing(flat, body)
    gaps = [
        min(range(a + 1, b + 1), key=lambda i: (crossing[i], -i))
        for a, b in itertools.pairwise(heavy)
    ]
    starts = [0, *_cheap(gaps, crossing)]
    work = [kinds.work(n) for n in body.forward]
    return tuple(
        Unit(a, b, sum(work[a:b]), crossing[a])
        for a, b in zip(starts, [*starts[1:], len(work)], strict=True)
    )


def _crossing(flat: Flat, body: Body) -> list[int]:
    """Bytes that nodes from i on read of nodes before i."""
    behind = sources(flat, body.free)
    made = {v: i for i, n in enumerate(body.forward) for v in n.outs}
    last = dict(made)
    for i, node in enumerate(body.forward):
        for r in node.reads:
            last.update((v, i) for v in behind.get(r, (r,)) if v in made)
    change = [0] * (len(body.forward) + 2)
    for v, end in last.items():
        change[made[v] + 1] += nbytes(flat.avals[v])
        change[end + 1] -= nbytes(flat.avals[v])
    total, found = 0, []
    for step in change[:-1]:
        total += step
        found.append(total)
    return found


_NEAR = 8
"""Gaps on each side of which a cut may not be much more expensive than the cheapest."""
_FACTOR = 1.25


def _cheap(gaps: Sequence[int], crossing: Sequence[int]) -> list[int]:
    """Gaps that are about as cheap as the cheapest near them."""
    costs = [crossing[g] for g in gaps]
    return [
        gap
        for i, gap in enumerate(gaps)
        if costs[i] <= _FACTOR * min(costs[max(0, i - _NEAR) : i + _NEAR + 1])
    ]


def balanced(work: Sequence[float], parts: int) -> tuple[int, ...]:
    """How many of consecutive items each part gets, so that the largest part is least."""
    n, sums = len(work), [0.0]
    for w in work:
        sums.append(sums[-1] + w)
    best = [[float("inf")] * (n + 1) for _ in range(parts + 1)]
    cut = [[0] * (n + 1) for _ in range(parts + 1)]
    best[0][0] = 0.0
    for p in range(1, parts + 1):
        for j in range(p, n + 1):
            for i in range(p - 1, j):
                value = max(best[p - 1][i], sums[j] - sums[i])
                if value < best[p][j]:
                    best[p][j], cut[p][j] = value, i
    ends = [n]
    for p in range(parts, 0, -1):
        ends.append(cut[p][ends[-1]])
    return tuple(b - a for a, b in zip(ends[::-1], ends[-2::-1], strict=False))
