"""The single collectives that XLA's partitioner knows, on tilings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xshard.cost.tiling import Tiling, within

Pair = tuple[int, int]
"""Dimensions (from, to)."""
Order = Literal["kept", "rows", "elements"]
"""How an array is rearranged in memory for a collective: not, in whole rows, or transposed."""


@dataclass(frozen=True, slots=True)
class Move:
    """One collective: its kind, the part of the whole array's bytes, and the groups of devices.

    Attributes:
      groups: shape (groups, devices in one); for a permute, (devices, 2): from and to.
      order: what of the array the collective does not find or leave in order: see `Order`.
    """

    kind: str
    fraction: float
    groups: NDArray[np.int64]
    order: Order = "kept"


def gathered_order(dim: int, rank: int) -> Order:
    """How an array must be rearranged when its dimension `dim` is gathered.

    XLA gathers along the outermost dimension in memory, so it makes `dim` that one.
    """
    if dim == 0:
        return "kept"
    return "elements" if dim == rank - 1 else "rows"


def exchange(src: Tiling, dst: Tiling) -> list[Move]:
    """The permute between two tilings of equal shape; none if they are the same."""
    if src.same(dst):
        return []
    pairs = np.stack([src.devices.ravel(), dst.devices.ravel()], axis=1)
    return [Move("permute", src.fraction, pairs)]


def batches(pairs: list[Pair]) -> list[list[Pair]]:
    """The swaps by all-to-all: those without a common dimension in one, if they are several."""
    seen: set[int] = set()
    batch, rest = [], []
    for pair in sorted(pairs, key=lambda p: p[1]):
        free = not seen & set(pair)
        (batch if free else rest).append(pair)
        seen |= set(pair) if free else set()
    return [batch, *([p] for p in rest)] if len(batch) > 1 else [[p] for p in pairs]


def swaps(src: Tiling, dst: Tiling) -> list[Pair] | None:
    """Which dimensions exchange their numbers of tiles: (from, to) one after the other."""
    if src.holders != dst.holders or sorted(src.tiles) != sorted(dst.tiles):
        return None
    goal, pairs = dst.tiles, []
    waiting: dict[int, list[int]] = {}
    for dim, count in enumerate(src.tiles):
        if count != goal[dim]:
            waiting.setdefault(count, []).append(dim)
    while any(waiting.values()):
        small = min(count for count, dims in waiting.items() if dims)
        to = waiting[small][-1]
        if goal[to] == small:
            waiting[small].pop()
            continue
        if goal[to] % small:
            return None
        dims = waiting[goal[to]]
        good = [d for d in dims if (goal[d] != 1 if small == 1 else goal[d] == small)]
        source = good[0] if good else dims[-1]
        pairs.append((source, to))
        waiting[small][-1] = source
        dims.remove(source)
    return pairs


def all_to_all(src: Tiling, pairs: list[Pair]) -> tuple[Move, Tiling]:
    """One all-to-all: each pair's surplus tiles go from its first dimension to its second."""
    now, factor, size = src, np.zeros(src.devices.size, np.int64), 1
    for source, to in pairs:
        share = now.tiles[source] // now.tiles[to]
        size *= share
        factor = factor * share + now.owners[:, source] % share
        now = _moved(now, source, to)
    return Move("all-to-all", src.fraction, _groups_apart(factor, src, now, size), "rows"), now


def _moved(src: Tiling, source: int, to: int) -> Tiling:
    """`src` with the surplus of `source`'s tiles put on `to`, innermost."""
    counts, split, places = src.tiles, [], []
    for dim, count in enumerate(counts):
        places.append(len(split))
        if dim == source:
            split += [counts[to], count // counts[to]]
        elif dim == to:
            split += [count, 1]
        else:
            split.append(count)
    order = list(range(len(split) + 1))
    a, b = places[source] + 1, places[to] + 1
    order[a], order[b] = order[b], order[a]
    tiles = list(counts)
    tiles[source], tiles[to] = tiles[to], tiles[source]
    return src.arranged((*split, src.holders), tuple(order), tuple(tiles))


def _groups_apart(
    factor: NDArray[np.int64], before: Tiling, after: Tiling, size: int
) -> NDArray[np.int64]:
    """Groups of `size` devices that differ in `factor` and in nothing else."""
    common = _common_part(before, after)
    keys = np.concatenate([common, _holder_rank(before)[:, None]], axis=1)
    order = np.lexsort((factor, *keys.T))
    return order.reshape(-1, size)


def _common_part(before: Tiling, after: Tiling) -> NDArray[np.int64]:
    """For each device the coarser of its two tiles in every dimension."""
    a, b = before.owners, after.owners
    common = a.copy()
    for dim, (n, m) in enumerate(zip(before.tiles, after.tiles, strict=True)):
        if n > m:
            common[:, dim] = a[:, dim] * m // n
        elif m > n:
            common[:, dim] = b[:, dim] * n // m
    return common


def _holder_rank(src: Tiling) -> NDArray[np.int64]:
    """For each device, its place among the holders of its tile."""
    ranks = np.empty(src.devices.size, np.int64)
    ranks[src.devices.ravel()] = np.tile(np.arange(src.holders), src.devices.size // src.holders)
    return ranks


def refined(coarse: Tiling, fine: Tiling) -> Tiling | None:
    """A tiling with the tiles of `fine` that lies within `coarse`: `fine` itself if it does."""
    if any(f % c for f, c in zip(fine.tiles, coarse.tiles, strict=True)):
        return None
    if within(fine, coarse):
        return fine
    rank, extra, order = len(coarse.tiles), [], []
    for dim, (f, c) in enumerate(zip(fine.tiles, coarse.tiles, strict=True)):
        order.append(dim)
        if f > c:
            order.append(rank + len(extra))
            extra.append(f // c)
    split = (*coarse.tiles, *extra, fine.holders)
    return coarse.arranged(split, (*order, len(split) - 1), fine.tiles)


def gather_parts(src: Tiling, ratios: list[int]) -> list[Move]:
    """All-gathers of groups of `ratios[d]` neighbouring tiles of each dimension, the last first."""
    found, fraction, ranks = [], src.fraction, _holder_rank(src)
    for dim in reversed(range(len(ratios))):
        if ratios[dim] == 1:
            continue
        fraction *= ratios[dim]
        owners = src.owners.copy()
        inner = owners[:, dim].copy()
        owners[:, dim] //= ratios[dim]
        order = np.lexsort((inner, ranks, *owners.T))
        groups = order.reshape(-1, ratios[dim])
        found.append(Move("all-gather", fraction, groups, gathered_order(dim, len(ratios))))
    return found
