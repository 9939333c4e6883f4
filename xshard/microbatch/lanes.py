"""Sums over the batch that are finished once a step, not once a turn.

Over a batch that is split over D devices, a turn's share of a gradient is itself a sum of D parts,
one on each device; to add them up in every turn takes a collective in every turn. With D *lanes* a
share keeps them apart, in a leading dimension of its own: lane d is what the turn's d-th block of
rows gives. A device that holds block d computes lane d and adds it to lane d of the carried sum;
after the loop one sum over the lanes, hence one collective, is left.

Only what is summed over the batch has lanes. An op that makes, or hands on, such shares is run on
each lane apart (`jax.vmap`); what has rows is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xshard.microbatch.factor import Use
from xshard.microbatch.status import Partial, Rows, Status


def has_lanes(use: Use) -> bool:
    """Whether an op reads or makes shares."""
    return any(isinstance(s, Partial) for s in (*use.ins, *use.outs))


def spread(x: Any, lanes: int) -> Any:
    """A value that is the same in every lane."""
    return jnp.broadcast_to(x, (lanes, *jnp.shape(x)))


def each_lane(
    f: Callable[..., Sequence[Any]], ins: Sequence[Any], use: Use, lanes: int
) -> list[Any]:
    """The results of `f` on each lane's rows and shares, shares with lanes, rows put together."""
    split = [_split(x, s, lanes) for x, s in zip(ins, use.ins, strict=True)]
    ins_axes, outs_axes = [_axis(s) for s in use.ins], tuple(_axis(s) for s in use.outs)
    outs = jax.vmap(lambda *xs: tuple(f(*xs)), ins_axes, outs_axes)(*split)
    return [_joined(x, s) for x, s in zip(outs, use.outs, strict=True)]


def _axis(status: Status) -> int | None:
    """Where a value has its lanes."""
    if isinstance(status, Rows):
        return status.dim
    return 0 if isinstance(status, Partial) else None


def _split(x: Any, status: Status, lanes: int) -> Any:
    """Rows with a dimension for the lanes, each a block of neighbours."""
    if not isinstance(status, Rows):
        return x
    d, outer, shape = status.dim, status.outer, jnp.shape(x)
    each = shape[d] // (outer * lanes)
    x = jnp.reshape(x, (*shape[:d], outer, lanes, each, *shape[d + 1 :]))
    if outer == 1:
        return jnp.squeeze(x, d)
    x = jnp.moveaxis(x, d + 1, d)
    return jnp.reshape(x, (*shape[:d], lanes, outer * each, *shape[d + 1 :]))


def _joined(x: Any, status: Status) -> Any:
    """What `_split` split."""
    if not isinstance(status, Rows):
        return x
    d, outer, (*before, lanes, rows) = status.dim, status.outer, jnp.shape(x)[: status.dim + 2]
    after = jnp.shape(x)[d + 2 :]
    x = jnp.moveaxis(jnp.reshape(x, (*before, lanes, outer, rows // outer, *after)), d, d + 1)
    return jnp.reshape(x, (*before, lanes * rows, *after))


def behind(x: Any, status: Status) -> Any:
    """A stack of shares that a loop goes over: the lanes behind the stack's dimension."""
    return jnp.moveaxis(x, 0, 1) if isinstance(status, Partial) else x


def before(x: Any, status: Status) -> Any:
    """The inverse of `behind`."""
    return jnp.moveaxis(x, 1, 0) if isinstance(status, Partial) else x
