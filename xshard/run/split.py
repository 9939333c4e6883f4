"""`SplitArray`: an array whose rows lie on several groups of devices, in unequal parts.

JAX's own arrays have equal shards. Where layers of a scan go to stages in unequal numbers, their
stacked weights are one of these instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from xshard.errors import MeshError


class SplitArray:
    """A leaf of a pipeline's state that stands for one array, which nobody holds as a whole.

    NumPy takes it as the array that it stands for, and `jnp.asarray` makes that. JAX's functions
    take arrays of JAX only: `whole()` is one, and `step.portable(state)` makes a state of them.

    Attributes:
      pieces: its rows in order, each a `jax.Array` on its group of devices.
      sharding: of the whole array, over all devices.
    """

    __slots__ = ("dtype", "pieces", "shape", "sharding")

    def __init__(self, pieces: Sequence[jax.Array], sharding: NamedSharding) -> None:
        self.pieces = tuple(pieces)
        self.sharding = sharding
        self.shape = (sum(p.shape[0] for p in pieces), *pieces[0].shape[1:])
        self.dtype = pieces[0].dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(p.nbytes for p in self.pieces)

    @property
    def is_fully_addressable(self) -> bool:
        """Whether all pieces are on devices of this process."""
        return all(p.is_fully_addressable for p in self.pieces)

    def whole(self) -> jax.Array:
        """One array over all devices, of the pieces of one process.

        Raises:
          MeshError: other processes have some of them.
        """
        return jax.device_put(np.asarray(self), self.sharding)

    def block_until_ready(self) -> SplitArray:
        """As of `jax.Array`."""
        jax.block_until_ready(self.pieces)
        return self

    def delete(self) -> None:
        """As of `jax.Array`."""
        for piece in self.pieces:
            piece.delete()

    def is_deleted(self) -> bool:
        """As of `jax.Array`."""
        return any(p.is_deleted() for p in self.pieces)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.is_fully_addressable:
            raise MeshError(
                f"parts of a {self.dtype}{list(self.shape)} lie on devices of other processes; "
                "step.portable(state) gives the state as arrays over all of them"
            )
        return np.concatenate([np.asarray(p) for p in self.pieces]).astype(dtype or self.dtype)

    def __jax_array__(self) -> jax.Array:
        return self.whole()

    def __getitem__(self, at: Any) -> Any:
        return self.whole()[at]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        rows = "+".join(str(p.shape[0]) for p in self.pieces)
        return f"SplitArray({self.dtype}{list(self.shape)}, rows {rows})"
