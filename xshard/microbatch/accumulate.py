"""Shares of the microbatches, combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

COMBINE = {
    "sum": jax.lax.add, "max": jax.lax.max, "min": jax.lax.min, "prod": jax.lax.mul,
    "and": jax.lax.bitwise_and, "or": jax.lax.bitwise_or, "xor": jax.lax.bitwise_xor,
    "last": lambda _, share: share,
}  # fmt: skip
"""Two shares combined; by `Accumulator.how`."""


@dataclass(frozen=True, slots=True)
class Accumulator:
    """What is carried through the loop for one value.

    Sums and products of floats of less than 32 bits are carried in float32 and rounded once, at
    the end, as a matrix product over the full batch is. Lanes (see `lanes.py`) are combined at the
    end, too.
    """

    aval: Any
    how: str
    lanes: int = 1

    def start(self) -> jax.Array:
        """What combines with anything to just that."""
        apart = (self.lanes,) * (self.lanes > 1)
        return jnp.full((*apart, *self.aval.shape), neutral(self.how, self._dtype), self._dtype)

    def add(self, total: Any, share: Any) -> Any:
        """One more share."""
        return COMBINE[self.how](total, jax.lax.convert_element_type(share, self._dtype))

    def end(self, total: Any) -> Any:
        """All of them, as the step has it."""
        if self.lanes > 1:
            start = np.asarray(neutral(self.how, self._dtype), self._dtype)
            total = jax.lax.reduce(total, start, COMBINE[self.how], (0,))
        return jax.lax.convert_element_type(total, self.aval.dtype)

    @property
    def _dtype(self) -> Any:
        narrow = jnp.issubdtype(self.aval.dtype, jnp.floating) and self.aval.dtype.itemsize < 4
        return np.dtype(np.float32) if narrow and self.how in ("sum", "prod") else self.aval.dtype


def neutral(how: str, dtype: Any) -> Any:
    """What combines with any scalar to just that."""
    if how in ("sum", "or", "xor", "last"):
        return False if dtype == np.bool_ else 0
    if how == "prod":
        return 1
    if dtype == np.bool_:
        return how in ("and", "min")
    if how == "and":
        return np.invert(np.zeros((), dtype))
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if how == "max" else np.inf
    return jnp.iinfo(dtype).min if how == "max" else jnp.iinfo(dtype).max
