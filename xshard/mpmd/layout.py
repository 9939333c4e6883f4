"""`Layout`: the devices of each group, and how values lie on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xshard.errors import MeshError

Body = Callable[..., Sequence[Any]]
"""A program as a function of what it reads."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a staged step runs.

    Attributes:
      meshes: by group, its devices. Their axes are Auto.
      specs: (value, group) -> how the value lies there; whole on every device if left out.
      bodies: by a program's place, what is run in its stead: the same with sharding constraints.
    """

    meshes: tuple[Mesh, ...]
    specs: Mapping[tuple[int, int], PartitionSpec] = field(default_factory=dict)
    bodies: Mapping[int, Body] = field(default_factory=dict)

    def sharding(self, value: int, group: int) -> NamedSharding:
        """How a value lies on a group."""
        return NamedSharding(self.meshes[group], self.specs.get((value, group), PartitionSpec()))

    def is_here(self, group: int) -> bool:
        """Whether this process has devices of the group, and so takes part in what it does."""
        me = jax.process_index()
        return any(d.process_index == me for d in self.meshes[group].devices.flat)


def submeshes(
    devices: Any, names: Sequence[str], groups: int, axis: str | None = None
) -> tuple[Mesh, ...]:
    """Equal parts of an array of devices, cut along one axis of it.

    Args:
      names: of the array's axes.
      axis: the one to cut, which falls away if nothing is left of it; None: the first that divides.

    Raises:
      MeshError: no axis divides by the number of groups.
    """
    sizes = dict(zip(names, devices.shape, strict=True))
    fits = [n for n in names if sizes[n] % groups == 0 and axis in (None, n)]
    if not fits:
        shape = "×".join(f"{n}={s}" for n, s in sizes.items())
        raise MeshError(
            f"the mesh {shape} cannot be cut into {groups} equal groups of devices for the stages "
            f"of a pipeline{f' along {axis!r}' if axis else ''}; use a number that divides an axis"
        )
    at = names.index(fits[0])
    parts = np.split(devices, groups, axis=at)
    if devices.shape[at] == groups and devices.ndim > 1:
        parts = [np.squeeze(part, at) for part in parts]
        names = [n for n in names if n != fits[0]]
    axis_types = (AxisType.Auto,) * len(names)
    return tuple(Mesh(part, tuple(names), axis_types=axis_types) for part in parts)
