"""`Leaf`: how an argument or result lies: on one group of devices, or in parts on several.

The layers of a scan lie on the groups of their stages. Where these have equally many of them, split
alike, all are one `jax.Array` over the groups whose shards are the parts': to take it apart and to
put it together copies nothing. Otherwise they are a `SplitArray`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard.mpmd.transfer import empty, is_here, place
from xshard.run.split import SplitArray

STAGES = "stages"
"""The axis over groups of devices in the mesh of an array that lies on several."""


@dataclass(frozen=True, slots=True)
class Part:
    """A value of a staged step on a group of devices.

    Attributes:
      start, stop: its rows in the whole array; None: all of it.
    """

    value: int
    group: int
    shape: tuple[int, ...]
    sharding: NamedSharding
    start: int | None = None
    stop: int | None = None

    @property
    def rows(self) -> slice:
        """Where its rows are in the whole array."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Leaf:
    """An argument or result.

    Attributes:
      parts: in the order of their rows.
      meshes: of all groups.
    """

    parts: tuple[Part, ...]
    dtype: Any
    meshes: tuple[Mesh, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        if len(self.parts) == 1:
            return self.parts[0].shape
        return (sum(p.shape[0] for p in self.parts), *self.parts[0].shape[1:])

    @cached_property
    def sharding(self) -> NamedSharding:
        """An array that lies so is taken as it is, unless the parts are unequal."""
        return self.joined or self.everywhere

    @cached_property
    def joined(self) -> NamedSharding | None:
        """Of the one array that has the parts' shards; None if there is no such array."""
        first = self.parts[0]
        if len(self.parts) == 1:
            return first.sharding
        groups = {p.group for p in self.parts}
        specs = {_entries(p.sharding.spec, len(p.shape)) for p in self.parts}
        if len(groups) < len(self.parts) or len({p.shape for p in self.parts}) > 1:
            return None
        if len(specs) > 1:
            return None
        mesh = over([self.meshes[p.group] for p in self.parts])
        rows, *rest = specs.pop()
        return NamedSharding(mesh, PartitionSpec((STAGES, *rows), *(e or None for e in rest)))

    @cached_property
    def everywhere(self) -> NamedSharding:
        """Over the devices of all groups, split over the groups too where a dimension divides."""
        mesh = over(self.meshes)
        entries = list(_entries(self.parts[0].sharding.spec, len(self.shape)))
        for k, n in enumerate(self.shape):
            if n and n % (len(self.meshes) * math.prod(mesh.shape[a] for a in entries[k])) == 0:
                entries[k] = (STAGES, *entries[k])
                break
        return NamedSharding(mesh, PartitionSpec(*(e or None for e in entries)))

    def taken(self, x: Any) -> list[Any]:
        """The parts of an array that lies as `put` leaves it; what is not here has no shards."""
        if len(self.parts) == 1:
            return [x]
        if isinstance(x, SplitArray):
            return list(x.pieces)
        return [_shards(x, p, self.meshes[p.group]) for p in self.parts]

    def given(self, parts: Sequence[Any]) -> Any:
        """The array that has these parts."""
        if len(parts) == 1:
            return parts[0]
        if self.joined is None:
            return SplitArray(parts, self.everywhere)
        shards = [s.data for x in parts for s in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(
            self.shape, self.joined, shards, dtype=self.dtype
        )

    def put(self, x: Any) -> Any:
        """The array as the step takes it, wherever it lies."""
        if self.joined is not None:
            return place(x, self.joined)
        if isinstance(x, SplitArray) and self._fits(x):
            return x
        whole = x.whole() if isinstance(x, SplitArray) else x
        return self.given([place(whole, p.sharding, p.rows) for p in self.parts])

    def found(self, here: Mapping[int, Any]) -> Any:
        """The array of the parts' values that this process has."""
        return self.given([
            here[p.value] if p.value in here else empty(p.shape, self.dtype, p.sharding)
            for p in self.parts
        ])  # fmt: skip

    def _fits(self, x: SplitArray) -> bool:
        return [a.shape for a in x.pieces] == [p.shape for p in self.parts] and all(
            a.sharding.is_equivalent_to(p.sharding, a.ndim)
            for a, p in zip(x.pieces, self.parts, strict=True)
        )


def over(meshes: Sequence[Mesh]) -> Mesh:
    """The meshes of groups as one, with an axis over the groups before the others."""
    devices = np.stack([m.devices for m in meshes])
    types = meshes[0].axis_types
    return Mesh(devices, (STAGES, *meshes[0].axis_names), axis_types=(types[0], *types))


def _shards(x: jax.Array, part: Part, mesh: Mesh) -> jax.Array:
    if not is_here(mesh):
        return empty(part.shape, x.dtype, part.sharding)
    devices = part.sharding.device_set
    shards = [s.data for s in x.addressable_shards if s.device in devices]
    return jax.make_array_from_single_device_arrays(
        part.shape, part.sharding, shards, dtype=x.dtype
    )


def _entries(spec: PartitionSpec, ndim: int) -> tuple[tuple[str, ...], ...]:
    """The mesh axes of each dimension."""
    found = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    return (*found, *[()] * (ndim - len(found)))
