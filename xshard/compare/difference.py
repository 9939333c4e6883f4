"""How far two arrays are apart, against how far a change of the inputs by rounding moves them.

A sharded step adds in another order than an unsharded one, so its numbers differ by rounding, which
some programs amplify: a sum that cancels, a gradient that is zero but for rounding and that Adam
divides by its own size. Changing every number of the input by 1e-6 of itself, up or down by chance,
moves each result of the *unsharded* step by what that program makes of small errors. A difference
many times larger than that is no rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

PERTURBATION = 1e-6
"""Relative change of each input number: some sixteen roundings in float32."""

TOLERATED = 10.0
"""A difference is of rounding up to so many times what the perturbation caused."""

ULPS = 32
"""What is tolerated of values that no input moves, in units of the dtype's precision."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One array of the sharded step against the same of the unsharded one.

    Attributes:
      name: the path of the result, or what the equation makes.
      dtype, shape: of the array.
      off: the largest difference of an element; of integers, booleans and random keys the number of
        elements that differ.
      noise: the same between the unsharded step and itself on perturbed inputs.
      scale: the largest element's magnitude.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    off: float
    noise: float
    scale: float

    @property
    def allowed(self) -> float:
        """The largest `off` that rounding explains."""
        exact = not np.isfinite(self.scale)
        units = 0.0 if exact else ULPS * _precision(self.dtype) * self.scale
        return max(TOLERATED * self.noise, units)

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference."""
        return self.off <= self.allowed


def difference(name: str, actual: Any, expected: Any, perturbed: Sequence[Any]) -> Difference:
    """Holds an array against what is expected; `perturbed` are results on perturbed inputs."""
    aval = jax.typeof(expected)
    a, b, *others = (wide(x) for x in (actual, expected, *perturbed))
    floats = b.dtype.kind in "fc"
    apart = _apart if floats else _unequal
    finite = np.abs(b[np.isfinite(b)]) if floats else np.zeros(0)
    return Difference(
        name, aval.dtype.name, aval.shape,
        off=apart(a, b),
        noise=max((apart(x, b) for x in others), default=0.0),
        scale=float(finite.max(initial=0)),
    )  # fmt: skip


def perturbed(x: Any, seed: int) -> Any:
    """An array with each number changed by `PERTURBATION`, or by one unit of a coarser dtype.

    Integers, booleans and random keys are left as they are.
    """
    dtype = jax.typeof(x).dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return x
    change = max(PERTURBATION, float(jnp.finfo(dtype).eps))
    host = np.asarray(x)
    sign = np.random.default_rng(seed).choice([-change, change], host.shape)
    wider = np.result_type(host.dtype if host.dtype.kind in "fc" else np.float32, np.float64)
    return jnp.asarray((host.astype(wider) * (1 + sign)).astype(host.dtype))


def wide(x: Any) -> NDArray[Any]:
    """The array on the host, in a dtype that numpy computes with: keys as their words."""
    dtype = jax.typeof(x).dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x))
    host = np.asarray(x)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return host.astype(np.complex128)
    return host.astype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else host


def _apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest difference; infinite where only one of two is a number."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0))


def _unequal(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a != b).sum())


def _precision(dtype: str) -> float:
    """The distance of 1 to the next number of a dtype; 0 for what is exact."""
    try:
        return float(jnp.finfo(dtype).eps)
    except (TypeError, ValueError):
        return 0.0
