"""Values that depend on where they stand: `iota` and random bits, made for some rows only.

A threefry generator numbers the elements of the array that it fills and hashes (key, number). So
the bits of some rows of the full batch's array can be made alone, and are the bits that the full
batch has. Other generators draw for the full batch, once, and rows are cut from that.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import JaxprEqn, threefry_bits
from xshard.microbatch.status import Rows

Words = tuple[jax.Array, jax.Array]
"""A 64-bit number: its upper and lower 32 bits."""


def made_by_position(eqn: JaxprEqn, rows: Rows) -> bool:
    """Whether `rows_of` can make these rows."""
    prim = eqn.primitive.name
    if prim == "iota":
        return True
    key: Any = eqn.invars[0].aval if prim == "random_bits" else None
    return (
        key is not None and key.shape == () and key.dtype.name == "key<fry>"
        and rows.dim < len(eqn.params["shape"]) and bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
    )  # fmt: skip


def rows_of(eqn: JaxprEqn, ins: list[Any], rows: Rows, numbers: jax.Array, batch: int) -> Any:
    """The rows `numbers` (int32 [rows]) of an iota or of random bits."""
    aval: Any = eqn.outvars[0].aval
    shape = aval.shape
    places = _places(rows, numbers, batch)
    local = (*shape[: rows.dim], places.size, *shape[rows.dim + 1 :])
    if eqn.primitive.name == "iota":
        axis, dtype = eqn.params["dimension"], eqn.params["dtype"]
        if axis != rows.dim:
            return jax.lax.broadcasted_iota(dtype, local, axis)
        return jax.lax.broadcast_in_dim(places.astype(dtype), local, (axis,))
    high, low = _numbers(shape, local, rows.dim, places)
    return threefry_bits(ins[0], high, low, eqn.params["bit_width"])


def _places(rows: Rows, numbers: jax.Array, batch: int) -> jax.Array:
    """Where a turn's elements of the dimension stand in the full one."""
    outer = jnp.arange(rows.outer, dtype=numbers.dtype)[:, None, None] * (batch * rows.inner)
    inner = jnp.arange(rows.inner, dtype=numbers.dtype)
    return (outer + numbers[:, None] * rows.inner + inner).reshape(-1)


def _numbers(shape: tuple[int, ...], local: tuple[int, ...], dim: int, places: jax.Array) -> Words:
    """The number of each element in row-major order of the full shape."""
    small = math.prod(shape) < 1 << 32
    total = jnp.zeros(local, jnp.uint32), jnp.zeros(local, jnp.uint32)
    for axis, n in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        index = places.astype(jnp.uint32) if axis == dim else jnp.arange(n, dtype=jnp.uint32)
        index = jax.lax.broadcast_in_dim(index, local, (axis,))
        if small:
            total = total[0], total[1] + index * jnp.uint32(stride)
        else:
            total = _add(total, _times(index, stride))
    return total


def _add(a: Words, b: Words) -> Words:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]).astype(jnp.uint32), low


def _times(x: jax.Array, factor: int) -> Words:
    """A 32-bit number times a constant below 2**64, modulo 2**64; by halves of 16 bits."""
    low, high = factor & 0xFFFFFFFF, factor >> 32
    product = _wide(x, low)
    return product[0] + x * jnp.uint32(high), product[1]


def _wide(x: jax.Array, factor: int) -> Words:
    """A 32-bit number times another, all 64 bits (Warren, Hacker's Delight, 8-2)."""
    x0, x1, f0, f1 = x & 0xFFFF, x >> 16, jnp.uint32(factor & 0xFFFF), jnp.uint32(factor >> 16)
    lowest = x0 * f0
    middle = x1 * f0 + (lowest >> 16)
    cross = (middle & 0xFFFF) + x0 * f1
    return x1 * f1 + (middle >> 16) + (cross >> 16), x * jnp.uint32(factor)
