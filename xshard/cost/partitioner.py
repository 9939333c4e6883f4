"""What XLA's SPMD partitioner does to bring an array from one tiling to another.

It tries these in turn (`moves`), as read from XLA's `spmd_partitioner.cc` and checked against
compiled programs by the tests:

 1. the same tiles on other devices: one collective-permute (`exchange`);
 2. the same numbers of tiles on other dimensions: one all-to-all, and a permute if the devices do
    not match then (`_swap_dims`);
 3. finer tiles, from copies: a free slice, and a permute if the devices do not match (`_slice`);
 4. coarser tiles: a permute if the devices do not match, then one all-gather a dimension
    (`_gather`);
 5. a mixture: split a dimension's tiles in two and go on with 2 (`_split`), gather one dimension
    first (`_gather_first`), or slice first (`_slice_first`), where each leads to one of the above;
 6. failing all that, all-gather every dimension whose number of tiles changes, and slice
    (`_rematerialize`): "involuntary full rematerialization".

So a change of mesh axis on one dimension costs a permute and not an all-to-all, and a gather of one
axis with an all-to-all of another may well gather the whole array. A route that a planner would
find shorter is no use to it: the partitioner does not take it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xshard.cost.moves import Move, all_to_all, batches, exchange, gather_parts, refined, swaps
from xshard.cost.tiling import Tiling, tiling

Moves = list[Move] | None
"""None: this way is not open."""
Way = Callable[[Tiling, Tiling], Moves]


def moves(src: Tiling, dst: Tiling) -> list[Move]:
    """The collectives from `src` to `dst`."""
    found = _direct(src, dst)
    if found is None and not src.replicated and not dst.replicated:
        found = _mixture(src, dst)
    return _rematerialize(src, dst) if found is None else found


def _rematerialize(src: Tiling, dst: Tiling) -> list[Move]:
    """Way 6: gathers every dimension but those with the same number of tiles, then slices."""
    dims = [d for d, n in enumerate(src.tiles) if n != dst.tiles[d]]
    middle = src
    for dim in dims:
        middle = middle.gathered(dim)
    ratios = [n if d in dims else 1 for d, n in enumerate(src.tiles)]
    return gather_parts(src, ratios) + ([] if middle.replicated else moves(middle, dst))


def _direct(src: Tiling, dst: Tiling) -> Moves:
    """Ways 1 to 4."""
    if src.same(dst) or src.replicated:
        return []
    if src.devices.shape == dst.devices.shape:
        return exchange(src, dst)
    found = _swap_dims(src, dst)
    if found is None and src.partly and not dst.replicated:
        found = _first(_slice, _swap_then_slice, src, dst)
    if found is None and dst.partly:
        found = _first(_gather, _gather_then_swap, src, dst)
    return found


def _first(one: Way, other: Way, src: Tiling, dst: Tiling) -> Moves:
    """The first of two ways that is open."""
    found = one(src, dst)
    return other(src, dst) if found is None else found


def _strict(src: Tiling, dst: Tiling) -> Moves:
    """Ways 1 to 5: everything but gathering the whole array."""
    found = _direct(src, dst)
    if found is None and not dst.replicated:
        found = _mixture(src, dst)
    return found


def _swap_dims(src: Tiling, dst: Tiling) -> Moves:
    pairs = swaps(src, dst)
    if pairs is None:
        return None
    found, now = [], src
    for batch in batches(pairs):
        move, now = all_to_all(now, batch)
        found.append(move)
    return found + exchange(now, dst)


def _slice(src: Tiling, dst: Tiling) -> Moves:
    middle = refined(src, dst)
    return None if middle is None else exchange(middle, dst)


def _swap_then_slice(src: Tiling, dst: Tiling) -> Moves:
    """Way 2 on all the copies' tiles; where dst's tiles are src's, one dimension on."""
    middle = _one_dim_on(src, dst)
    found = None if middle is None else _swap_dims(src, middle)
    return None if middle is None or found is None else found + moves(middle, dst)


def _gather_then_swap(src: Tiling, dst: Tiling) -> Moves:
    middle = _one_dim_on(dst, src)
    found = None if middle is None else _swap_dims(middle, dst)
    return None if middle is None or found is None else moves(src, middle) + found


def _one_dim_on(partly: Tiling, cut: Tiling) -> Tiling | None:
    """`cut` with its last cut dimension whole, if `partly` is `cut` shifted by a dimension.

    As in [1, 4, 2 holders] and [4, 2]: a pattern that the partitioner happens to know.
    """
    if cut.holders > 1 or partly.devices.shape != (1, *cut.tiles):
        return None
    if not np.array_equal(partly.devices.ravel(), cut.devices.ravel()):
        return None
    last = max(d for d, n in enumerate(cut.tiles) if n > 1)
    return cut.gathered(last) if cut.tiles[last] == partly.holders else None


def _gather(src: Tiling, dst: Tiling) -> Moves:
    middle = refined(dst, src)
    if middle is None:
        return None
    ratios = [a // b for a, b in zip(middle.tiles, dst.tiles, strict=True)]
    return exchange(src, middle) + gather_parts(middle, ratios)


def _mixture(src: Tiling, dst: Tiling) -> Moves:
    """Way 5; the first pattern that matches decides."""
    split = _split(src, dst)
    if split is not None:
        return _strict(*split)
    if dst.partly:
        for dim, count in enumerate(src.tiles):
            if count > 1 and count * src.holders == dst.holders:
                return _after(src, src.gathered(dim), dst)
    if src.partly and not dst.partly:
        return _slice_first(src, dst)
    return None


def _after(src: Tiling, middle: Tiling, dst: Tiling) -> Moves:
    """By way of `middle`."""
    rest = _strict(middle, dst)
    return None if rest is None else moves(src, middle) + rest


def _slice_first(src: Tiling, dst: Tiling) -> Moves:
    for dim, (a, b) in enumerate(zip(src.tiles, dst.tiles, strict=True)):
        if a == 1 and b != 1 and b % src.holders == 0:
            shape = tuple(src.holders if d == dim else n for d, n in enumerate(src.tiles))
            middle = tiling(np.swapaxes(src.devices, dim, -1).reshape(*shape, 1))
            return _after(src, middle, dst)
    return None


def _split(src: Tiling, dst: Tiling) -> tuple[Tiling, Tiling] | None:
    """Both tilings with one dimension's tiles split in two, such that way 2 may go on."""
    if src.holders != dst.holders:
        return None
    rank = len(src.tiles)
    differ = [d for d in range(rank) if src.tiles[d] != dst.tiles[d]]
    for place, first in enumerate(differ):
        for second in differ[place + 1 :]:
            found = _split_at(src, dst, first, second)
            if found is not None:
                i, j, inner = found
                split = [*src.tiles[:i], inner, src.tiles[i] // inner, *src.tiles[i + 1 :]]
                goal = list(split)
                other = j + (j > i)
                goal[i + 1], goal[other] = goal[other], goal[i + 1]
                if math.prod(goal) == math.prod(dst.tiles):
                    return (
                        Tiling(src.devices.reshape(*split, -1)),
                        Tiling(dst.devices.reshape(*goal, -1)),
                    )
    return None


def _split_at(src: Tiling, dst: Tiling, i: int, j: int) -> tuple[int, int, int] | None:
    """(dimension to split, the other, tiles that stay outermost) for one pair of dimensions."""
    a, b = src.tiles, dst.tiles
    ones = (a[i], a[j], b[i], b[j]).count(1)
    if ones == 1 and a[i] * a[j] == b[i] * b[j]:
        if a[i] == 1 or b[i] == 1:
            i, j = j, i
        return i, j, a[i] if b[j] == 1 else b[i]
    if ones == 0:
        if a[i] < b[i]:
            i, j = j, i
        if a[i] == b[i] * b[j]:
            return i, j, b[i]
    return None
