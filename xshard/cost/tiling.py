"""A sharding as XLA's partitioner sees it: tiles per dimension and which device holds which tile.

Mesh axes are forgotten here. That is why the partitioner moves data between devices when the axis
of a dimension changes and not the number of its tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from xshard.spec import MeshShape, Spec


@dataclass(frozen=True, eq=False)
class Tiling:
    """Devices arranged by the tile that they hold.

    Attributes:
      devices: shape (tiles of dimension 0, ..., tiles of the last, holders of each tile).
    """

    devices: NDArray[np.int64]

    @cached_property
    def tiles(self) -> tuple[int, ...]:
        """How many parts each dimension is cut into."""
        return self.devices.shape[:-1]

    @property
    def holders(self) -> int:
        """How many devices hold the same tile."""
        return self.devices.shape[-1]

    @property
    def fraction(self) -> float:
        """The part of the array that one device holds."""
        return 1 / math.prod(self.tiles)

    @property
    def replicated(self) -> bool:
        return math.prod(self.tiles) == 1

    @property
    def partly(self) -> bool:
        """Cut, with several holders of each tile."""
        return self.holders > 1 and not self.replicated

    def same(self, other: Tiling) -> bool:
        """Whether every device holds the same tile in both."""
        return self.devices.shape == other.devices.shape and np.array_equal(
            self.devices, other.devices
        )

    def arranged(
        self, split: tuple[int, ...], order: tuple[int, ...], tiles: tuple[int, ...]
    ) -> Tiling:
        """The devices reshaped to `split`, transposed by `order` and cut into `tiles`."""
        return tiling(self.devices.reshape(split).transpose(order).reshape(*tiles, -1))

    def gathered(self, dim: int) -> Tiling:
        """Dimension `dim` made whole: the holders of its tiles together hold what they make."""
        return tiling(
            np.expand_dims(np.moveaxis(self.devices, dim, -2), dim).reshape(
                *(1 if i == dim else n for i, n in enumerate(self.tiles)), -1
            )
        )

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """For each device, its tile's index in every dimension; shape (devices, dimensions)."""
        found = np.empty((self.devices.size, len(self.tiles)), np.int64)
        for index, device in np.ndenumerate(self.devices):
            found[device] = index[:-1]
        return found


def tiling(devices: NDArray[np.int64]) -> Tiling:
    """A `Tiling` whose holders stand in order, so that equal ones compare equal."""
    return Tiling(np.sort(devices, axis=-1))


@lru_cache(maxsize=1 << 14)
def of_spec(spec: Spec, mesh: MeshShape) -> Tiling:
    """The tiling of an array of that spec."""
    ids = np.arange(mesh.num_devices).reshape(mesh.sizes)
    used = [axis for axes in spec for axis in axes]
    unused = [axis for axis in range(len(mesh.sizes)) if axis not in used]
    tiles = (mesh.size_of(axes) for axes in spec)
    return tiling(ids.transpose(used + unused).reshape(*tiles, -1))


@lru_cache(maxsize=64)
def coordinates(mesh: MeshShape) -> NDArray[np.int64]:
    """Each device's place on the mesh; shape (axes, devices)."""
    return np.stack(np.unravel_index(np.arange(mesh.num_devices), mesh.sizes))


def within(fine: Tiling, coarse: Tiling) -> bool:
    """Whether each device's tile of `fine` lies within its tile of `coarse`."""
    if any(a % b for a, b in zip(fine.tiles, coarse.tiles, strict=True)):
        return False
    ratio = np.array([a // b for a, b in zip(fine.tiles, coarse.tiles, strict=True)])
    return bool((fine.owners // ratio == coarse.owners).all())
