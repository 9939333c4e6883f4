"""Devices and links: the physical figures that predictions rest on, read from tables with sources.

A table is a JSON file in `devices/`. A figure in it is a number or `{"value": ..., "source": ...}`.
Rates of a table that says `"per_core": true` belong to one core of a machine whose cores all the
virtual devices share: see `Device.sharing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from xshard.errors import MeshError


@dataclass(frozen=True, slots=True)
class Link:
    """A class of links.

    Attributes:
      bandwidth_bytes_per_s: within a host: per device and direction; between hosts: per host and
        direction, shared by the host's devices that communicate at once.
      latency_s: of one message from a device to another, the software's part included.
      groups: the part of the bandwidth that fewer devices of a host reach among themselves, by
        their number, where not every link leads to every device. A number that is not listed
        reaches what the next larger one does.
    """

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float
    groups: Mapping[str, float] = field(default_factory=dict, hash=False)

    def among(self, devices: int) -> float:
        """Bytes per second that each of so many devices sends to the others."""
        larger = [int(n) for n in self.groups if int(n) >= devices]
        part = self.groups[str(min(larger))] if larger else 1.0
        return self.bandwidth_bytes_per_s * part


@dataclass(frozen=True, slots=True)
class MatmulCurve:
    """The achieved fraction of the peak by local size: see `compute.matmul_efficiency`."""

    max_efficiency: float
    half_m: float
    half_n: float
    half_k: float
    half_output: float


@dataclass(frozen=True, slots=True)
class Device:
    """One device as the cost model sees it.

    Attributes:
      memory_bytes: memory of the device.
      peak_flops: peak matmul FLOP/s by dtype name.
      memory_bandwidth_bytes_per_s: peak bandwidth of device memory.
      memory_efficiency: the part of it that large memory-bound kernels reach.
      launch_overhead_s: fixed time of one kernel.
      matmul: achieved fraction of the peak by local size.
      collectives: "ring" (links between devices) or "shared-memory" (virtual CPU devices).
      fused_reduce_scatter: False where a reduce-scatter runs as all-reduce and slice (CPU).
      random_words: the 32-bit words in memory of each random number of threefry: 2 where XLA leaves
        it to the readers to combine them.
      copies_operands: True where a matmul finds its operands in one order of dimensions only
        (batch, free, summed), and others are transposed in memory first, as XLA does on CPU.
      loops_apart: True where each result of fused ops has a loop of its own, and what they share is
        computed in each, as XLA does on CPU.
      kind_efficiency: memory efficiency of op kinds that reach less, by kind ("gather", ...).
      dtype_efficiency: the same by dtype, where the device emulates it.
      seconds_per_element: of elementwise kinds that arithmetic bounds ("random", "transcendental"),
        where it was measured.
      combined_bytes: gradients are summed by collectives of about so many bytes, joined by XLA.
      gradient_overlap: the part of such a collective's time that is hidden behind the rest of the
        backward pass; 0 unless XLA's latency-hiding scheduler is on.
      collective_costs: for "shared-memory": fitted parameters by kind, see `collectives.py`.
      keeps: primitives whose results are kept for the backward pass, where the compiler rather
        computes others again (`xshard.cost.recompute`); None where it keeps what is costly.
      compile_for: what XLA must know to compile for this device without having one: "platform"
        ("cuda", "tpu" or "cpu") and "target"; see `xshard.verify.target`. Empty: it cannot.
      generic: no table for this kind of device; the figures are guesses.
    """

    name: str
    memory_bytes: int
    peak_flops: Mapping[str, float] = field(hash=False)
    memory_bandwidth_bytes_per_s: float
    memory_efficiency: float
    launch_overhead_s: float
    matmul: MatmulCurve
    collectives: str = "ring"
    fused_reduce_scatter: bool = True
    random_words: int = 1
    copies_operands: bool = False
    loops_apart: bool = False
    kind_efficiency: Mapping[str, float] = field(default_factory=dict, hash=False)
    dtype_efficiency: Mapping[str, float] = field(default_factory=dict, hash=False)
    seconds_per_element: Mapping[str, float] = field(default_factory=dict, hash=False)
    combined_bytes: float = 30 * 2**20
    gradient_overlap: float = 0.0
    collective_costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    keeps: Sequence[str] | None = field(default=None, hash=False)
    compile_for: Mapping[str, Any] = field(default_factory=dict, hash=False)
    generic: bool = False

    def flops_for(self, dtype: str) -> float:
        """Peak FLOP/s for `dtype`; float32's where the table has none."""
        return self.peak_flops.get(dtype) or self.peak_flops["float32"]

    def sharing(self, devices: int, cores: int) -> Device:
        """This per-core device as one of `devices` that share a machine of `cores` cores."""
        part = cores / devices
        slower = ("latency_s", "s_per_byte", "s_per_byte_cached")
        scale: dict[str, float] = dict.fromkeys(slower, 1 / part)
        scale["cached_bytes"] = 1 / devices
        scale["idle_s"] = float(part < 1)  # devices with a core of their own waste none
        costs = {
            kind: {name: figure * scale.get(name, 1.0) for name, figure in cost.items()}
            for kind, cost in self.collective_costs.items()
        }
        return replace(
            self,
            memory_bytes=self.memory_bytes // devices,
            peak_flops={k: v * part for k, v in self.peak_flops.items()},
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s * part,
            seconds_per_element={k: v / part for k, v in self.seconds_per_element.items()},
            launch_overhead_s=self.launch_overhead_s / min(1.0, part),
            collective_costs=costs,
        )


def plain(figure: Any) -> Any:
    """A figure of a table without its sources, at any depth."""
    if isinstance(figure, Mapping):
        if "value" in figure:
            return figure["value"]
        return {k: plain(v) for k, v in figure.items() if k != "source"}
    return figure


def device_of(table: Mapping[str, Any]) -> Device:
    """The `Device` that a table describes.

    Raises:
      MeshError: a figure is missing or of the wrong type.
    """
    names = Device.__dataclass_fields__
    fields = {k: plain(v) for k, v in table.items() if k in names}
    try:
        fields["matmul"] = MatmulCurve(**fields["matmul"])
        fields["memory_bytes"] = int(fields["memory_bytes"])
        return Device(**fields)
    except (KeyError, TypeError) as error:
        raise MeshError(f"the device table {table.get('name')!r} is incomplete: {error}") from error


def link_of(figures: Mapping[str, Any]) -> Link:
    """The `Link` that a table's entry describes."""
    try:
        return Link(**plain(figures))
    except TypeError as error:
        raise MeshError(f"a link needs name, bandwidth and latency: {error}") from error


@cache
def tables() -> dict[str, dict[str, Any]]:
    """Every shipped device table by name."""
    folder = resources.files("xshard.cost") / "devices"
    files = [f for f in folder.iterdir() if f.name.endswith(".json")]
    loaded = [json.loads(f.read_text("utf-8")) for f in files]
    return {t["name"]: t for t in sorted(loaded, key=lambda t: t["name"])}


def known_kinds() -> str:
    """The names that `table_named` accepts, as text for messages."""
    return ", ".join(tables())


def table_named(name: str) -> dict[str, Any]:
    """The shipped table of that name or alias.

    Raises:
      MeshError: no such table; the message names the known kinds.
    """
    for table in tables().values():
        if name.lower() in (table["name"], *table.get("aliases", ())):
            return table
    raise MeshError(f"no device table {name!r}; known kinds are {known_kinds()}")


def table_for_kind(device_kind: str) -> dict[str, Any]:
    """The shipped table for what JAX calls `device_kind`; the generic one where there is none."""
    text = device_kind.lower()
    for table in tables().values():
        if any(text == kind.lower() for kind in table.get("device_kinds", ())):
            return table
    return tables()["generic"] | {"name": f"generic ({device_kind})", "generic": True}
