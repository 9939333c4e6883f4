"""A program whose sums round otherwise.

A gradient that is zero but for rounding, as that of a bias before a normalisation, is so for all
inputs: changing these shows what one order of adding makes of it, and a sharded program has
another. Here each addend of each sum, and the sum, is changed as inputs are
(`difference.PERTURBATION`), up or down by chance. Each sum has its own chances: two sums of the
same numbers may round alike on one device, and not on several.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from xshard._jax import JaxprEqn
from xshard.compare.difference import PERTURBATION
from xshard.run.annotate import Numbers

_SUMS = frozenset({
    "conv_general_dilated", "cumsum", "dot_general", "ragged_dot_general", "reduce_sum",
    "reduce_window_sum", "scatter-add", "scatter_add", "select_and_scatter_add",
})  # fmt: skip
_ODD = 2654435769
"""2^32 over the golden ratio: the highest bit of its multiples looks drawn by chance."""


def rounding_otherwise(numbers: Numbers) -> Numbers:
    """The numbers with every addend of a sum changed, and the sum."""

    seeds = itertools.count(1)

    def bind(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> Sequence[Any]:
        if eqn.primitive.name not in _SUMS:
            return numbers.bind(eqn, ins, mesh)
        sums = numbers.bind(eqn, [_moved(x, next(seeds)) for x in ins], mesh)
        return [_moved(x, next(seeds)) for x in sums]

    return replace(numbers, bind=bind)


def _moved(x: Any, seed: int) -> Any:
    """Every number of an array, a little larger or smaller."""
    dtype = jax.typeof(x).dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return x
    place = (jax.lax.iota(jnp.uint32, x.size) + jnp.uint32(seed)) * jnp.uint32(_ODD)
    mixed = (place ^ (place >> 15) ^ jnp.uint32(seed)) * jnp.uint32(_ODD)
    change = max(PERTURBATION, float(jnp.finfo(dtype).eps))
    up, down = (jnp.asarray(1 + sign * change, dtype) for sign in (1, -1))
    by = jnp.where(mixed >> 31 == 1, up, down)
    return x * by.reshape(x.shape)
