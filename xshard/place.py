"""Where a step runs: the devices of its mesh, on how many hosts, with how much memory."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from xshard.cost.cluster import Cluster
from xshard.errors import MeshError
from xshard.plan.plan import Plan
from xshard.run.hosts import host_of_processes
from xshard.spec import MeshShape


@dataclass(frozen=True, slots=True)
class Place:
    """Devices that are here, and the mesh shapes to try over them.

    Attributes:
      devices: as an array of the mesh's shape.
      explicit: the user's mesh, if all its axes are Explicit: arguments and results have its types.
    """

    devices: Any
    shapes: list[MeshShape]
    explicit: Mesh | None = None

    @classmethod
    def of(cls, mesh: Mesh | int | None) -> Place:
        """The place that a mesh, a number of devices or None (all of them) means.

        Raises:
          MeshError: it is none of these, or there are not so many devices.
        """
        if isinstance(mesh, Mesh):
            shape = MeshShape(tuple(map(str, mesh.axis_names)), mesh.devices.shape)
            explicit = set(mesh.axis_types) == {AxisType.Explicit}
            return cls(mesh.devices, [shape], mesh if explicit else None)
        if mesh is not None and not isinstance(mesh, int):
            raise MeshError(
                f"mesh must be a jax.sharding.Mesh or a number of devices, not {mesh!r}"
            )
        devices = jax.devices()
        wanted = len(devices) if mesh is None else mesh
        if not 0 < wanted <= len(devices):
            raise MeshError(
                f"a mesh of {wanted} devices was asked for, but there are {len(devices)}; "
                "ask for fewer, or start more processes"
            )
        return cls(np.array(devices[:wanted]), mesh_shapes(wanted))

    @property
    def cluster(self) -> Cluster:
        """The devices as the cost model knows them."""
        return Cluster.for_devices(self._first.device_kind, self.devices.size, self._hosts())

    @property
    def memory_bytes(self) -> int | None:
        """What a device says that it has; None where it does not say (CPU)."""
        mine = [d for d in self.devices.flat if d.process_index == jax.process_index()]
        stats = mine[0].memory_stats() if mine and not self._on_cpu else None
        return stats.get("bytes_limit") if stats else None

    def mesh_of(self, plan: Plan) -> Mesh:
        """The mesh of a plan's arguments and results."""
        if self.explicit is not None:
            return self.explicit
        axis_types = (AxisType.Auto,) * len(plan.mesh.names)
        devices = self.devices.reshape(plan.mesh.sizes)
        return Mesh(devices, plan.mesh.names, axis_types=axis_types)

    def compiler_options(
        self, limit: int | None, *, recomputes: bool = False
    ) -> dict[str, Any] | None:
        """XLA's, where it would do otherwise than planned.

        Under a limit it is to order ops for memory (on CPU; elsewhere it does), and to leave it to
        the plan what is recomputed: on GPUs it would do that itself above some 80% of the memory,
        in percent of which it is told more. Where layers are recomputed it must not remove the
        barriers before it merges equal ops (older versions on CPU do).
        """
        options: dict[str, Any] = {}
        if self._first.platform in ("gpu", "cuda") and limit is not None:
            options["xla_gpu_memory_limit_slop_factor"] = 1000
        if self._on_cpu and limit is not None:
            options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        if self._on_cpu and recomputes:
            options["xla_disable_hlo_passes"] = "cse_barrier_expander"
        return options or None

    @property
    def _first(self) -> Any:
        return self.devices.flat[0]

    @property
    def _on_cpu(self) -> bool:
        return self._first.platform == "cpu"

    def _hosts(self) -> int:
        """How many hosts there are; processes on CPU, which meet through the network."""
        processes = {d.process_index for d in self.devices.flat}
        hosts = len(processes if self._on_cpu else {host_of_processes()[p] for p in processes})
        return hosts if self.devices.size % hosts == 0 else 1


MeshLike = MeshShape | Mesh | AbstractMesh | Mapping[str, int] | Sequence[int]
"""A mesh without its devices: names and sizes, or sizes alone."""


def shapes_over(mesh: MeshLike | None, cluster: Cluster) -> list[MeshShape]:
    """The stated mesh, or all that are tried over a cluster.

    Raises:
      MeshError: it is no mesh, or has another number of devices.
    """
    if mesh is None:
        return mesh_shapes(cluster.num_devices)
    shape = shape_of(mesh)
    if shape.num_devices != cluster.num_devices:
        raise MeshError(
            f"the mesh {shape} has {shape.num_devices} devices, the cluster {cluster} has "
            f"{cluster.num_devices}; make them equal"
        )
    return [shape]


def shape_of(mesh: MeshLike) -> MeshShape:
    """The names and sizes of a mesh; of sizes alone, with the usual names.

    Raises:
      MeshError: it is no mesh.
    """
    if isinstance(mesh, MeshShape):
        return mesh
    axes: Any = mesh.shape if isinstance(mesh, Mesh | AbstractMesh) else mesh
    try:
        if isinstance(axes, Mapping):
            return MeshShape(tuple(axes), tuple(operator.index(n) for n in axes.values()))
        return named(tuple(operator.index(n) for n in axes))
    except (TypeError, ValueError) as error:
        raise MeshError(
            f"mesh={mesh!r} is no mesh; write sizes such as (2, 4), names and sizes such as "
            "{'data': 2, 'model': 4}, or give a jax.sharding.Mesh"
        ) from error


def mesh_shapes(devices: int) -> list[MeshShape]:
    """All meshes of one and two axes over so many devices."""
    pairs = [(devices // b, b) for b in range(2, devices // 2 + 1) if devices % b == 0]
    return [named((devices,)), *map(named, pairs)]


def named(sizes: tuple[int, ...]) -> MeshShape:
    """A mesh of these sizes with the usual names."""
    names = ("data", "model", "seq")
    return MeshShape((*names, *(f"axis{i}" for i in range(3, len(sizes))))[: len(sizes)], sizes)


def read_bytes(text: int | float | str | None) -> int | None:
    """Bytes from a number or from text such as "30GB" (powers of 1000) or "24GiB" (of 1024).

    Raises:
      MeshError: the text is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d+)?\s*([kKMGT]?)(i?)B?\s*", str(text))
    nbytes = 0
    if match is not None:
        base = 1024 if match[4] else 1000
        power = " KMGT".index(match[3].upper() or " ")
        nbytes = int(float(match[1] + (match[2] or "")) * base**power)
    if nbytes < 1:
        raise MeshError(f"{text!r} is no size; write bytes, or text such as '30GB' or '24GiB'")
    return nbytes
