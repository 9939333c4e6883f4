"""The time of a collective on the axes of a mesh that lies over a cluster.

A mesh lies row-major over the cluster, last axis innermost, hosts in order. The devices that differ
only in the collective's axes form a group of p devices on h hosts, m on each host; g such groups
share a host's link to the others, since all of them communicate at once. With N bytes, L the
latency and B the bandwidth of a link (b = B_inter / g for a ring that leaves and enters each host
once), every algorithm takes a + c·N; the fastest is taken, as communication libraries do:

    all-gather, reduce-scatter   ring           (p−1)·L + (p−1)/p·N/b
    all-reduce                   ring           2·(p−1)·L + 2·(p−1)/p·N/b
                                 double tree    2·⌈log₂ p⌉·L + 2·N/b
    all three                    two levels     the ring within each host, then the ring between
                                                hosts on N/m bytes of each device at B_inter/(g·m)
    all-to-all                   pairwise       L + max(N·(m−1)/p/B_intra, N·(p−m)/p·g·m/B_inter)
    permute                      direct         L + N/b, b = B_inter/(g·m) between hosts

Sources: Thakur, Rabenseifner, Gropp (2005), "Optimization of collective communication operations
in MPICH"; Sanders, Speck, Träff (2009), "Two-tree algorithms for full bandwidth broadcast,
reduction and scan", which NCCL follows.

Virtual CPU devices share memory. There a collective is a meeting of its group's threads and a copy
through the caches, and beyond them through memory; with fitted parameters (`devices/cpu.json`):

    l + l_p·p + N·c_cached + max(0, N − N_cached)·(c − c_cached) + l_idle

l_idle only where all devices meet: the first have to wait for the last, and nothing else has the
cores meanwhile.

Byte conventions (N): all-reduce and reduce-scatter: the local operand; all-gather: the gathered
result; all-to-all and permute: the local operand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.cost.cluster import Cluster
from xshard.errors import MeshError
from xshard.spec import MeshShape

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "permute")


@dataclass(frozen=True, slots=True)
class Group:
    """Where the devices of one collective lie: p, h, m and g of the module's docstring."""

    size: int
    hosts: int
    per_host: int
    sharing: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Time over bytes as the least (or the largest) of lines a + c·N, in ns and ns per byte."""

    lines: tuple[tuple[float, float], ...]
    largest: bool = False

    def at(self, nbytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The times in ns for an array of bytes."""
        times = [a + c * nbytes for a, c in self.lines]
        pick = np.maximum if self.largest else np.minimum
        return pick.reduce(times) if times else np.zeros_like(nbytes)


class CollectiveModel:
    """Times of collectives for one mesh on one cluster.

    Raises:
      MeshError: the mesh has more devices than the cluster.
    """

    def __init__(self, cluster: Cluster, mesh: MeshShape) -> None:
        if mesh.num_devices > cluster.num_devices:
            raise MeshError(
                f"the mesh {mesh} needs {mesh.num_devices} devices, {cluster} has "
                f"{cluster.num_devices}; shrink the mesh or name a larger cluster"
            )
        self.cluster = cluster
        self.mesh = mesh
        self._pieces: dict[tuple[str, tuple[int, ...], int], Pieces] = {}

    def time_ns(self, kind: str, nbytes: float, axes: tuple[int, ...], devices: int = 0) -> int:
        """Nanoseconds of one collective over `axes`; zero for a group of one device.

        `devices`: the size of a group where it is less than the axes make.
        """
        return int(np.rint(self.pieces(kind, axes, devices).at(np.asarray(nbytes, np.float64))))

    def pieces(self, kind: str, axes: tuple[int, ...], devices: int = 0) -> Pieces:
        """The time over bytes of that kind over `axes`, as lines."""
        key = kind, tuple(sorted(axes)), devices or self.mesh.size_of(axes)
        if key not in self._pieces:
            self._pieces[key] = self._fit(*key)
        return self._pieces[key]

    def group(self, axes: tuple[int, ...]) -> Group:
        """Where the groups of a collective over `axes` lie on the hosts."""
        ids = np.arange(self.mesh.num_devices).reshape(self.mesh.sizes)
        size = self.mesh.size_of(axes)
        members = np.moveaxis(ids, axes, range(-len(axes), 0)).reshape(-1, size)
        hosts = members // self.cluster.devices_per_host
        touched = [np.unique(row, return_counts=True) for row in hosts]
        crossing = [places for places, _ in touched if len(places) > 1]
        sharing = np.bincount(np.concatenate(crossing)).max() if crossing else 1
        return Group(
            size,
            max(len(places) for places, _ in touched),
            max(int(counts.max()) for _, counts in touched),
            int(sharing),
        )

    def cut(self, axes: tuple[int, ...], devices: int) -> Group:
        """That group when only `devices` neighbours of it work together."""
        return _cut(self.group(axes), devices)

    def _fit(self, kind: str, axes: tuple[int, ...], devices: int) -> Pieces:
        """The lines of one kind over `axes`, in groups of `devices`."""
        if kind not in KINDS:
            raise ValueError(f"no collective {kind!r}; kinds are {', '.join(KINDS)}")
        device, group = self.cluster.device, self.cut(axes, devices)
        if group.size == 1:
            return Pieces(())
        if kind == "reduce-scatter" and not device.fused_reduce_scatter:
            return self.pieces("all-reduce", axes, devices)
        if device.collectives == "shared-memory" and group.hosts == 1:
            return self._shared_memory(kind, group)
        return Pieces(tuple((a * 1e9, c * 1e9) for a, c in self._algorithms(kind, group)))

    def _shared_memory(self, kind: str, group: Group) -> Pieces:
        """The two lines (in caches, beyond) of virtual devices of one host."""
        cost = self.cluster.device.collective_costs[kind]
        meeting = self.mesh.num_devices if kind == "permute" else group.size
        start = cost.get("latency_s", 0.0) + cost["latency_per_member_s"] * meeting
        start += cost.get("idle_s", 0.0) * (meeting == self.mesh.num_devices)
        cached, beyond = cost["s_per_byte_cached"], cost["s_per_byte"]
        later = start - cost["cached_bytes"] * (beyond - cached)
        return Pieces(((start * 1e9, cached * 1e9), (later * 1e9, beyond * 1e9)), largest=True)

    def _algorithms(self, kind: str, group: Group) -> list[tuple[float, float]]:
        """(seconds, seconds per byte) of every algorithm for `kind`."""
        if kind == "all-to-all":
            return [self._pairwise(group)]
        latency, seconds_per_byte = self._line(group, streams=1)
        if kind == "permute":
            return [(latency, self._line(group, streams=group.per_host)[1])]
        passes = 2 if kind == "all-reduce" else 1
        lines = [_ring(group.size, latency, seconds_per_byte, passes)]
        if kind == "all-reduce":
            lines.append((2 * math.ceil(math.log2(group.size)) * latency, 2 * seconds_per_byte))
        if group.hosts > 1 and group.per_host > 1:
            lines.append(self._two_levels(group, passes))
        return lines

    def _line(self, group: Group, streams: int) -> tuple[float, float]:
        """Latency and seconds per byte of the slowest link that a group's ring goes over.

        `streams`: how many of a group's devices on a host send to other hosts at once.
        """
        intra, inter = self.cluster.intra_host, self.cluster.inter_host
        rates = [intra.among(group.per_host)] if group.per_host > 1 else []
        if group.hosts > 1:
            rates.append(inter.bandwidth_bytes_per_s / (group.sharing * streams))
        return (inter if group.hosts > 1 else intra).latency_s, 1 / min(rates)

    def _pairwise(self, group: Group) -> tuple[float, float]:
        """The all-to-all of the module's docstring."""
        intra, inter = self.cluster.intra_host, self.cluster.inter_host
        p, m = group.size, group.per_host
        within = (m - 1) / p / intra.among(m)
        between = (p - m) / p * group.sharing * m / inter.bandwidth_bytes_per_s
        return (inter if group.hosts > 1 else intra).latency_s, max(within, between)

    def _two_levels(self, group: Group, passes: int) -> tuple[float, float]:
        """Rings within the hosts, then between them on an m-th of the bytes."""
        intra, inter = self.cluster.intra_host, self.cluster.inter_host
        m = group.per_host
        near = _ring(m, intra.latency_s, 1 / intra.among(m), passes)
        share = inter.bandwidth_bytes_per_s / (group.sharing * m)
        far = _ring(group.hosts, inter.latency_s, 1 / share, passes)
        return near[0] + far[0], near[1] + far[1] / m


def _cut(group: Group, devices: int) -> Group:
    """The group when only `devices` neighbours of it work together."""
    if devices == group.size:
        return group
    near = min(group.per_host, devices)
    parts = group.per_host // near if devices > near else 1
    return Group(devices, -(-devices // near), near, group.sharing * parts)


def _ring(p: int, latency: float, seconds_per_byte: float, passes: int) -> tuple[float, float]:
    """`passes` times around a ring of p devices in p−1 hops, an N/p-th of the bytes each hop."""
    return passes * (p - 1) * latency, passes * (p - 1) / p * seconds_per_byte
