"""Into what equal groups of neighbouring devices a cluster can be cut, and their meshes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.errors import PipelineError
from xshard.place import mesh_shapes
from xshard.spec import MeshShape


def groups_of(cluster: Cluster, groups: int) -> list[tuple[MeshShape, Cluster]]:
    """The meshes of one and two axes over one of so many groups of a cluster."""
    part = part_of(cluster, groups)
    return [(shape, part) for shape in mesh_shapes(part.num_devices)]


def part_of(cluster: Cluster, groups: int) -> Cluster:
    """The devices of one of so many equal groups of neighbours.

    Raises:
      PipelineError: there are none.
    """
    hosts, each = cluster.hosts, cluster.devices_per_host
    if hosts % groups == 0:
        return replace(cluster, hosts=hosts // groups)
    if groups % hosts == 0 and each % (groups // hosts) == 0:
        return replace(cluster, hosts=1, devices_per_host=each // (groups // hosts))
    raise PipelineError(
        f"the cluster {cluster} cannot be cut into {groups} equal groups of neighbouring devices"
    )


def read_stages(pipeline: Any, cluster: Cluster) -> list[int]:
    """The numbers of stages that an option means.

    Raises:
      PipelineError: it is neither a number from 1 on nor "auto", or the cluster cannot be cut so.
    """
    if pipeline == "auto":
        return numbers_of_stages(cluster)
    if type(pipeline) is not int or pipeline < 1:
        raise PipelineError(f'pipeline={pipeline!r} is no number of stages from 1 on, nor "auto"')
    part_of(cluster, pipeline)
    return [pipeline]


def numbers_of_stages(cluster: Cluster) -> list[int]:
    """More than one, into which a cluster can be cut."""
    found: list[int] = []
    for n in range(2, cluster.num_devices + 1):
        try:
            part_of(cluster, n)
        except PipelineError:
            continue
        found.append(n)
    return found
