"""Where the forward pass can be cut: between its layers, found by how little crosses there."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from xshard._jax import scan_counts
from xshard.stages.assign import Body
from xshard.stages.flat import Flat
from xshard.stages.kinds import Kinds, nbytes
from xshard.stages.places import sources
from xshard.stages.unstack import stacks_of


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the forward pass that goes to a stage as a whole, up to where the next begins.

    Attributes:
      start: number of the forward node that it begins with.
      layer: if that is a scan over layers, of the layer that it begins with.
      work: of its forward nodes, for balance.
      crossing_bytes: what goes from the units before it to it and the later ones, for a microbatch.
    """

    start: int
    layer: int
    work: float
    crossing_bytes: int


def units_of(flat: Flat, kinds: Kinds, body: Body, *, fine: bool) -> tuple[Unit, ...]:
    """The units of the forward pass: one for each layer of a scan, and each stretch between cuts.

    Args:
      fine: cuts may be between any two matmuls, not only where little crosses.
    """
    heavy = [i for i, n in enumerate(body.forward) if kinds.kind(n) in ("heavy", "opaque")]
    crossing = _crossing(flat, body)
    gaps = [
        min(range(a + 1, b + 1), key=lambda i: (crossing[i], -i))
        for a, b in itertools.pairwise(heavy)
    ]
    starts = [0, *(gaps if fine else _cheap(gaps, crossing))]
    work = [kinds.work(n) for n in body.forward]
    stacks = set(stacks_of(flat))
    found: list[Unit] = []
    for a, b in itertools.pairwise([*starts, len(work)]):
        scan = next((i for i in range(a, b) if body.forward[i] in stacks), None)
        if scan is None:
            found.append(Unit(a, 0, sum(work[a:b]), crossing[a]))
        else:
            found += _layers(flat, body, work, a, b, scan, crossing[a])
    return tuple(found)


def _layers(
    flat: Flat, body: Body, work: list[float], start: int, stop: int, scan: int, crossing: int
) -> list[Unit]:
    """The layers of a scan; the first with what comes before, the last with what comes after."""
    node = body.forward[scan]
    consts, carries = scan_counts(node.eqn.params)
    layers = node.eqn.params["length"]
    each = work[scan] / layers
    carried = sum(nbytes(flat.aval(a)) for a in node.ins[consts : consts + carries])
    found = [Unit(start, 0, each + sum(work[start:scan]), crossing)]
    found += [Unit(scan, k, each, carried) for k in range(1, layers)]
    found[-1] = replace(found[-1], work=found[-1].work + sum(work[scan + 1 : stop]))
    return found


def contents_of(body: Body, kinds: Kinds, units: Sequence[Unit]) -> tuple[Hashable, ...]:
    """Of each unit its ops, which layer of a scan it is, and the bytes that cross its ends."""
    starts = [*(u.start for u in units), len(body.forward)]
    crossing = [*(u.crossing_bytes for u in units), 0]
    return tuple(
        (
            tuple(kinds.signature(n) for n in body.forward[starts[k] : starts[k + 1]]),
            u.layer > 0, *crossing[k : k + 2],
        )
        for k, u in enumerate(units)
    )  # fmt: skip


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
_FACTOR = 2.2
"""A cut costs at most so many times what the cheapest among so many gaps on each side costs."""


def _cheap(gaps: Sequence[int], crossing: Sequence[int]) -> list[int]:
    """Gaps that cost no more than their neighbours, and not much more than any near them."""
    costs = [crossing[g] for g in gaps]

    def is_cheap(i: int) -> bool:
        near = costs[max(0, i - _NEAR) : i + _NEAR + 1]
        return costs[i] <= min(*costs[max(0, i - 1) : i + 2], _FACTOR * min(near))

    return [gap for i, gap in enumerate(gaps) if is_cheap(i)]


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
