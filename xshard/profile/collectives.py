"""SPMD programs with and without one collective, between pieces of work.

Devices that have just met go on together, and meet again for less than they do in a step, where
each comes from work of its own and all wait for the slowest. So each turn works first (a chain of
small matmuls), and the collective's time is what the turn takes more than the work alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard.profile.programs import filled, looped
from xshard.profile.timing import Run

_CHUNK_S = 1e-3
"""Work between two collectives: about that between those of a layer."""
_SIDE = 256
_MOST_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Work:
    """`repeats` matmuls of `side` one after the other."""

    side: int
    repeats: int = 1

    def chain(self, x: Any) -> Any:
        """The end of the chain."""
        y = x
        for _ in range(self.repeats):
            y = (y @ x) * (1.0 / self.side)
        return y


def fitting_work(seconds_of: Callable[[Run], float], mesh: Mesh) -> Work:
    """Work of about `_CHUNK_S` on this mesh."""
    side = _SIDE
    while side < _MOST_SIDE:
        w = filled(mesh, (side, side), "float32")
        taken = seconds_of(looped(Work(side).chain, mesh, (w,)))
        if taken >= _CHUNK_S / 4:
            return Work(side, max(1, round(_CHUNK_S / taken)))
        side *= 2
    return Work(side)


class Collectives:
    """Programs of collectives on the same devices, which share what they are compared with."""

    def __init__(self, flat: Mesh, work: Work) -> None:
        self._flat = flat
        self._work = work
        self._operand = filled(flat, (work.side, work.side), "float32")
        self._alone: dict[int, Run] = {}

    def programs(
        self, kind: str, nbytes: int, mesh: Mesh, axes: tuple[str, ...]
    ) -> tuple[Run, Run]:
        """(the program with the collective over `axes`, the one with the work alone).

        Args:
          nbytes: by the conventions of `CollectiveModel`.
        """
        size = math.prod(mesh.shape[axis] for axis in axes)
        local = nbytes // 4 // (size if kind == "all-gather" else 1)
        local = max(size, local - local % size)
        communicate = _body(kind, axes, size)

        def both(x: Any, w: Any) -> Any:
            return communicate(lax.optimization_barrier(self._compute(x, w)))

        if local not in self._alone:
            self._alone[local] = looped(self._compute, self._flat, self._args(self._flat, local))
        return looped(both, mesh, self._args(mesh, local)), self._alone[local]

    def _compute(self, x: Any, w: Any) -> Any:
        return x + self._work.chain(w)[0, 0]

    def _args(self, mesh: Mesh, local: int) -> tuple[Any, Any]:
        spec = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        return filled(mesh, (local,), "float32"), jax.device_put(self._operand, spec)


def _body(kind: str, axes: tuple[str, ...], size: int) -> Callable[[Any], jax.Array]:
    ring = [(i, (i + 1) % size) for i in range(size)]
    bodies: dict[str, Callable[[Any], Any]] = {
        "all-reduce": lambda x: lax.psum(x, axes),
        "all-gather": lambda x: lax.all_gather(x, axes, tiled=True),
        "reduce-scatter": lambda x: lax.psum_scatter(x, axes, tiled=True),
        "all-to-all": lambda x: lax.all_to_all(x, axes, 0, 0, tiled=True),
        "permute": lambda x: lax.ppermute(x, axes, ring),
    }
    return bodies[kind]
