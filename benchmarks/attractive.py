"""Plans in which splitting pays however small the arrays are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from xshard import Cluster, Plan

SOLVER_S = 10.0


def attractive_cluster(devices: int) -> Cluster:
    """Slow devices with fast links and no latency."""
    from xshard import Cluster
    from xshard.cost.device import Link

    like = Cluster.for_devices("cpu", devices)
    link = Link("fast", 1e15, 0.0)
    device = replace(
        like.device, launch_overhead_s=0.0, memory_bandwidth_bytes_per_s=1e6,
        peak_flops={"float32": 1e6}, collectives="ring", collective_costs={},
        seconds_per_element={}, kind_efficiency={}, dtype_efficiency={}, copies_operands=False,
    )  # fmt: skip
    return replace(like, device=device, intra_host=link, inter_host=link)


def attractive_plan(
    fun: Callable[..., Any], args: tuple[Any, ...], mesh: Mesh, *, tight: bool = False
) -> Plan:
    """The plan of `fun(*args)` for an attractive cluster; with the least memory if `tight`."""
    import xshard
    from xshard.spec import MeshShape

    def make(limit: int | str | None) -> Plan:
        return xshard.plan(
            fun, *args, cluster=attractive_cluster(mesh.size), memory_limit=limit,
            mesh=MeshShape(tuple(map(str, mesh.axis_names)), mesh.devices.shape),
            donate_argnums=(), time_limit=SOLVER_S,
        )  # fmt: skip

    try:
        return make(1 if tight else "1TB")
    except xshard.InfeasibleError as error:
        return make(error.smallest_limit_bytes)
