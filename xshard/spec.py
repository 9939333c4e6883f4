"""Shardings as plain data: which mesh axes split which dimension.

A `Spec` is what `jax.sharding.PartitionSpec` says, with axes as indices into the mesh and one
(possibly empty) tuple per array dimension: `((0,), (), (1, 2))` splits dimension 0 over axis 0 and
dimension 2 over axes 1 and 2, axis 1 outermost. Within a dimension, axes stand in mesh order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Spec = tuple[tuple[int, ...], ...]

LEAST_PADDED = 32
"""Elements of a shard from which on a dimension is split that does not divide: padding adds less
than a thirty-second to what it holds."""


@dataclass(frozen=True, slots=True)
class MeshShape:
    """The names and sizes of a mesh's axes, without devices."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise ValueError(f"a mesh needs one distinct name per axis: {self}")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"a mesh axis has at least one device: {self}")

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    def size_of(self, axes: tuple[int, ...]) -> int:
        """Number of shards that `axes` together make."""
        return math.prod(self.sizes[a] for a in axes)

    def __str__(self) -> str:
        return "×".join(f"{n}={s}" for n, s in zip(self.names, self.sizes, strict=True))


def replicated(ndim: int) -> Spec:
    """The spec of an array that every device holds whole."""
    return ((),) * ndim


def axes_of(spec: Spec) -> tuple[int, ...]:
    """The mesh axes that `spec` uses, in mesh order."""
    return tuple(sorted(a for dim in spec for a in dim))


def num_shards(spec: Spec, mesh: MeshShape) -> int:
    """How many distinct shards an array of this spec has."""
    return math.prod(mesh.sizes[a] for dim in spec for a in dim)


def divides(spec: Spec, shape: tuple[int, ...], mesh: MeshShape) -> bool:
    """Whether every dimension is a multiple of its number of shards."""
    return all(n % mesh.size_of(axes) == 0 for n, axes in zip(shape, spec, strict=True))


def evened(spec: Spec, shape: tuple[int, ...], mesh: MeshShape) -> Spec:
    """The spec with dimensions whole that it does not split evenly."""
    sizes = map(mesh.size_of, spec)
    return tuple(
        axes if n % size == 0 else () for n, axes, size in zip(shape, spec, sizes, strict=True)
    )


def may_split(n: int, shards: int) -> bool:
    """Whether a dimension of `n` elements may be split so, evenly or nearly.

    XLA pads the last shards of what does not divide. Where each has many elements that is next to
    nothing, as of a vocabulary of 50257 words over 8 devices.
    """
    return n % shards == 0 or n >= LEAST_PADDED * shards


def local_shape(shape: tuple[int, ...], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """The shape of one shard; dimensions are rounded up."""
    return tuple(-(-n // mesh.size_of(axes)) for n, axes in zip(shape, spec, strict=True))


def to_text(spec: Spec, names: tuple[str, ...]) -> str:
    """`P('data', None)`-like text of a spec."""
    dims = ["+".join(names[a] for a in dim) if dim else "·" for dim in spec]
    return "[" + " ".join(dims) + "]"
