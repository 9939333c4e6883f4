"""`ClusterPrices`: what ops, reshardings and reductions of one graph cost on one cluster's mesh."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.compute import Dims, bandwidth, op_time_ns
from xshard.cost.device import Device
from xshard.cost.fusion import ALIASES, EXPENSIVE, Storage
from xshard.cost.measured import Price, Source
from xshard.cost.reshard import Resharder, Step, indirect, one_stop
from xshard.ir.graph import Graph, Op, Value
from xshard.rules.rule import Rule
from xshard.spec import MeshShape, Spec, divides, num_shards
from xshard.strategies import Strategy, specs_of

Ints = NDArray[np.int64]

_FLOPS_PER_ELEMENT = 2.0
_FLOPS_PER_COSTLY_ELEMENT = 12.0
_FLOPS_PER_RANDOM_WORD = 100.0
"""Arithmetic of one element: plain ops, transcendental ones, and a threefry block (20 rounds of an
add, a rotation and a xor on two words: Salmon et al., SC 2011)."""

_INDIRECT_NS = 1 << 50
"""Of a reshard that must take a stop on the way."""

_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator")
_TRANSCENDENTAL = EXPENSIVE - {*_RANDOM, "cumsum", "div", "sqrt", "rsqrt"}


@dataclass(frozen=True, slots=True)
class Work:
    """What one op does on one device: the arguments of `op_time_ns`."""

    kind: str
    flops: float
    bytes_read: float
    bytes_written: float
    dtype: str
    dims: Dims | None
    elements: float
    launches: int


class ClusterPrices:
    """Prices of one graph on a mesh laid over a cluster; implements `xshard.solve.draft.Prices`.

    All of them are analytic; `measured_prices.MeasuredPrices` puts measurements in their place.
    """

    def __init__(
        self, graph: Graph, storage: Storage, cluster: Cluster, mesh: MeshShape,
        collectives: CollectiveModel | None = None,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.storage = storage
        self.cluster = cluster
        self.mesh = mesh
        self.collectives = collectives or CollectiveModel(cluster, mesh)
        self.resharder = Resharder(self.collectives)
        self._tables: dict[tuple[tuple[int, ...], float], tuple[Ints, Ints]] = {}
        self._reduced: dict[tuple[object, ...], Ints] = {}
        self._specs = cache(lambda shape: specs_of(shape, mesh))

    def op_ns(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> int:
        """Nanoseconds of one run of an op under a strategy, collectives apart."""
        if op.prim == "transpose":
            return self._transpose_ns(graph, op, strategy)
        if is_free(op, rule):
            return 0
        work = self.work(graph, op, rule, strategy)
        ins = [None if v is None else graph.values[v] for v in op.inputs]
        copies_ns = self._copies_ns(rule, ins, strategy) if work.dims else 0
        return copies_ns + work_ns(self.cluster.device, work)

    def alike(self, op: Op) -> Hashable:
        """Equal for ops that cost the same if their signatures are equal: what has a buffer."""
        stored = tuple(v is not None and self.storage.stored[v] for v in (*op.inputs, *op.outputs))
        read = tuple(self.storage.readers[v] for v in op.outputs) if self._apart else ()
        return stored, tuple(v is not None and self.storage.is_stored(v) for v in op.inputs), read

    def op_price(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> Price:
        """The same, and where it is from."""
        return Price(self.op_ns(graph, op, rule, strategy), "analytic")

    def step_source(self, step: Step) -> Source:
        """Where the time of a collective is from."""
        return "analytic"

    def notes(self) -> tuple[str, ...]:
        """What the user should know of the prices."""
        device = self.cluster.device
        return (
            (f"no table for the device kind {device.name}: figures are guesses",)
            if device.generic
            else ()
        )

    def work(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> Work:
        """What one run of an op does on one device."""
        ins = [None if v is None else graph.values[v] for v in op.inputs]
        outs = [graph.values[v] for v in op.outputs]
        read = sum(
            self._local(v, spec)
            for v, spec in zip(ins, strategy.operands, strict=True)
            if v is not None and self.storage.is_stored(v.id)
        )
        written = sum(
            self._local(v, spec)
            for v, spec in zip(outs, strategy.results, strict=True)
            if self.storage.stored[v.id]
        )
        dims = _matmul_dims(rule, strategy, self.mesh) if rule.kind == "heavy" else None
        loops = self.storage.loops(op, rule) if self._apart else 1
        return Work(
            "matmul" if dims else _kind(op, rule),
            loops * (rule.flops or _flops(op, outs)) / strategy.splits(self.mesh),
            loops * read,
            written,
            _dtype(ins, outs),
            dims,
            loops * sum(v.size for v in outs) / strategy.splits(self.mesh),
            int(any(self.storage.stored[v.id] for v in outs)),
        )

    @property
    def _apart(self) -> bool:
        return self.cluster.device.loops_apart

    def _copies_ns(self, rule: Rule, ins: list[Value | None], strategy: Strategy) -> int:
        """Time to transpose a matmul's operands, on devices where that takes a copy."""
        device = self.cluster.device
        if not device.copies_operands:
            return 0
        wrong = misplaced(rule)
        nbytes = sum(
            2 * self._local(v, spec)
            for v, spec, moved in zip(ins, strategy.operands, wrong, strict=False)
            if v is not None and moved
        )
        dtype = _dtype(ins, [])
        return round(nbytes / bandwidth(device, "transpose", dtype) * 1e9)

    def _transpose_ns(self, graph: Graph, op: Op, strategy: Strategy) -> int:
        """Free where layouts are; else each reader goes over the array across its rows."""
        device, value = self.cluster.device, graph.values[op.outputs[0]]
        if not device.copies_operands or _keeps_rows(op, value):
            return 0
        readers = max(1, self.storage.readers[value.id])
        nbytes = 2 * self._local(value, strategy.results[0]) * readers
        return round(nbytes / bandwidth(device, "transpose", value.dtype) * 1e9)

    def reshard_ns(self, shape: tuple[int, ...], itemsize: float) -> Ints:
        """From every to every of `specs_of(shape)`, by way of a third where that is cheaper."""
        return self._table(shape, itemsize)[0]

    def path(
        self, shape: tuple[int, ...], itemsize: float, src: Spec, dst: Spec
    ) -> tuple[Spec, ...]:
        """The specs to ask for in sequence on the cheapest way from `src` to `dst`."""
        if src == dst:
            return ()
        specs = self._specs(shape)
        via = int(self._table(shape, itemsize)[1][specs.index(src), specs.index(dst)])
        return (dst,) if via < 0 else (specs[via], dst)

    def steps(self, shape: tuple[int, ...], itemsize: float, src: Spec, dst: Spec) -> list[Step]:
        """The collectives on that way."""
        nbytes, found = math.prod(shape) * itemsize, list[Step]()
        for stop in self.path(shape, itemsize, src, dst):
            found += self.resharder.steps(src, stop, nbytes)
            src = stop
        return found

    def step_ns(self, step: Step, combined: bool = False) -> int:
        """Nanoseconds of one collective, alone, or joined with others and not waited for."""
        alone, device = self.resharder.step_ns(step), self.cluster.device
        if not combined:
            return alone
        start = self.collectives.time_ns(step.kind, 0, step.axes, step.devices)
        share = min(1.0, step.nbytes / device.combined_bytes)
        joined = alone - start + round(start * share)
        return round(joined * (1 - device.gradient_overlap))

    def _table(self, shape: tuple[int, ...], itemsize: float) -> tuple[Ints, Ints]:
        key = shape, itemsize
        if key not in self._tables:
            specs = self._specs(shape)
            times = self.resharder.table(specs, math.prod(shape) * itemsize)
            times[indirect(specs, shape, self.mesh)] = _INDIRECT_NS
            self._tables[key] = one_stop(times)
        return self._tables[key]

    def reduce_ns(
        self,
        shape: tuple[int, ...],
        itemsize: float,
        raw: Spec,
        partial: tuple[int, ...],
        combined: bool = False,
    ) -> Ints:
        """From sums that are partial over `partial` to each of `specs_of(shape)`.

        Args:
          combined: nothing waits for the result before the backward pass ends, so XLA's combiner
            joins it with others of its kind: only its bytes count, and a share of the latency.
        """
        key = shape, itemsize, raw, partial, combined
        if key not in self._reduced:
            self._reduced[key] = self._reduce_ns(*key)
        return self._reduced[key]

    def _reduce_ns(
        self,
        shape: tuple[int, ...],
        itemsize: float,
        raw: Spec,
        partial: tuple[int, ...],
        combined: bool,
    ) -> Ints:
        specs = self._specs(shape)
        if not partial:
            return self.reshard_ns(shape, itemsize)[specs.index(raw)]
        table = self.reshard_ns(shape, itemsize)
        position = {spec: i for i, spec in enumerate(specs)}
        times = np.empty(len(specs), dtype=np.int64)
        for j, final in enumerate(specs):
            steps, middle = reduction(raw, partial, final, shape, itemsize, self.mesh)
            cost = sum(self.step_ns(s, combined) for s in steps)
            times[j] = cost + table[position[middle], j]
        return times

    def _local(self, value: Value, spec: Spec) -> float:
        return value.nbytes / num_shards(spec, self.mesh)


def is_free(op: Op, rule: Rule) -> bool:
    """Whether an op moves and computes nothing."""
    return rule.kind in ("port", "pin") or op.prim in ALIASES


def work_ns(device: Device, work: Work) -> int:
    """Nanoseconds of some work by the roofline of `compute.op_time_ns`."""
    return op_time_ns(
        device, work.kind, flops=work.flops, bytes_read=work.bytes_read,
        bytes_written=work.bytes_written, dtype=work.dtype, dims=work.dims,
        elements=work.elements, launches=work.launches,
    )  # fmt: skip


def reduction(
    raw: Spec,
    partial: tuple[int, ...],
    final: Spec,
    shape: tuple[int, ...],
    itemsize: float,
    mesh: MeshShape,
) -> tuple[tuple[Step, ...], Spec]:
    """The collectives that finish partial sums on the way to `final`, and the spec they end in.

    Axes over which `final` splits a dimension are summed by a reduce-scatter into it, the others by
    an all-reduce of what is left. All are summed by an all-reduce where that would not divide,
    would make tiles in another order (an axis cuts the tiles that there are, so it comes behind
    theirs), or would scatter into several dimensions, which XLA does not.
    """
    goal = {a: dim for dim, axes in enumerate(final) for a in axes if a in partial}
    scattered = tuple(a for a in partial if a in goal)
    rest = tuple(a for a in partial if a not in goal)
    middle = tuple(
        (*axes, *scattered) if d in goal.values() else axes for d, axes in enumerate(raw)
    )
    in_order = all(axes == tuple(sorted(axes)) for axes in middle)
    if len(set(goal.values())) > 1 or not in_order or not divides(middle, shape, mesh):
        scattered, rest, middle = (), partial, raw
    local = math.prod(shape) * itemsize / num_shards(raw, mesh)
    steps: list[Step] = []
    if scattered:
        steps.append(Step("reduce-scatter", scattered, local, mesh.size_of(scattered)))
        local /= mesh.size_of(scattered)
    if rest:
        steps.append(Step("all-reduce", rest, local, mesh.size_of(rest)))
    return tuple(steps), middle


def _matmul_dims(rule: Rule, strategy: Strategy, mesh: MeshShape) -> Dims | None:
    """Local (batch, m, n, k) of a contraction of two operands, from its factors."""
    left, right = (_factors(g) for g in rule.operands[:2]) if len(rule.operands) > 1 else ((), ())
    if not left or not right:
        return None
    out = _factors(rule.results[0])
    dims = [1, 1, 1, 1]
    for factor, size in rule.sizes.items():
        if factor in left and factor in right:
            place = 0 if factor in out else 3
        else:
            place = 1 if factor in left else 2
        axes = tuple(a for a, f in enumerate(strategy.factors) if f == factor)
        dims[place] *= max(1, size // mesh.size_of(axes))
    return dims[0], dims[1], dims[2], dims[3]


def misplaced(rule: Rule) -> tuple[bool, bool]:
    """Whether the left and the right operand of a matmul are out of order.

    Batch factors come first. The left operand's free factors come before the summed ones; the right
    operand's behind them, unless it is a matrix, which kernels read in both orders.
    """
    left, right = ([f for dim in g or () for f in dim] for g in rule.operands[:2])
    out = _factors(rule.results[0])
    batch = {f for f in left if f in right and f in out}
    matrix = len(right) - len(batch) <= 2
    place = [0 if f in batch else 2 if f in rule.reduced else 1 for f in left]
    other = [0 if f in batch else 1 if f in rule.reduced or matrix else 2 for f in right]
    return place != sorted(place), other != sorted(other)


def _keeps_rows(op: Op, value: Value) -> bool:
    """Whether a transpose leaves the innermost dimension that has several elements where it is."""
    order = [d for d, n in zip(op.params["permutation"], value.shape, strict=True) if n > 1]
    return not order or order[-1] == max(order)


def _factors(dims: tuple[tuple[str, ...], ...] | None) -> set[str]:
    return {f for dim in dims or () for f in dim}


def _kind(op: Op, rule: Rule) -> str:
    """What the device table calls an op that is no matmul."""
    if op.prim in _RANDOM:
        return "random"
    if op.prim.startswith("scatter"):
        return "scatter"
    return "transcendental" if op.prim in _TRANSCENDENTAL else rule.kind


def _flops(op: Op, outs: list[Value]) -> float:
    elements = sum(v.size for v in outs)
    if op.prim in _RANDOM:
        return elements * _FLOPS_PER_RANDOM_WORD
    costly = op.prim in EXPENSIVE
    return elements * (_FLOPS_PER_COSTLY_ELEMENT if costly else _FLOPS_PER_ELEMENT)


def _dtype(ins: list[Value | None], outs: list[Value]) -> str:
    return next((v.dtype for v in ins if v is not None), outs[0].dtype if outs else "float32")
