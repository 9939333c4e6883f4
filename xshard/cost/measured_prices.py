"""Prices from measurements where there are any: exact, between two sizes, else analytic.

What is looked up, and how:

  matmuls and convolutions   their signature; one whose two neighbours are not there is priced
                             analytically, times the median of measured over analytic time of its
                             family (or of all families), so that what happens to be measured is
                             neither favoured nor passed over
  memory-bound ops           the curve of their kind and dtype over the bytes that they read and
                             write in memory, which fusion decides; a reader that is fused into
                             another loop saves the fixed time of a loop of its own
  random, transcendental     the same over elements
  collectives                the curve of their kind and group over bytes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from statistics import median

import numpy as np

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel, Pieces
from xshard.cost.compute import bandwidth, op_time_ns
from xshard.cost.device import Device
from xshard.cost.fusion import Storage
from xshard.cost.measured import Curve, Floats, Measured, Price, Source
from xshard.cost.prices import ClusterPrices, Work, is_free, misplaced, work_ns
from xshard.cost.reshard import Step
from xshard.cost.signature import BY_ELEMENT, DOT, LOOP, collective, einsum_of, loop, of_op
from xshard.cost.signature import Signature as Sig
from xshard.cost.versions import jax_version
from xshard.ir.graph import Graph, Op
from xshard.rules.rule import Rule, parse
from xshard.spec import MeshShape
from xshard.strategies import Strategy


def prices_of(
    graph: Graph, storage: Storage, cluster: Cluster, mesh: MeshShape, measured: Measured | None
) -> ClusterPrices:
    """Prices for a mesh on a cluster, by measurements if there are any."""
    if not measured:
        return ClusterPrices(graph, storage, cluster, mesh)
    return MeasuredPrices(graph, storage, cluster, mesh, measured)


class MeasuredCollectives(CollectiveModel):
    """Times of collectives by the curves of what was measured."""

    def __init__(self, cluster: Cluster, mesh: MeshShape, measured: Measured) -> None:
        super().__init__(cluster, mesh)
        self._measured = measured

    def source(self, step: Step) -> Source:
        """Where the time of a collective is from."""
        pieces = self.pieces(step.kind, step.axes, step.devices)
        return pieces.curve.source(step.nbytes) if isinstance(pieces, Times) else "analytic"

    def _fit(self, kind: str, axes: tuple[int, ...], devices: int) -> Pieces:
        analytic = super()._fit(kind, axes, devices)
        if not analytic.lines:
            return analytic
        if kind == "reduce-scatter" and not self.cluster.device.fused_reduce_scatter:
            return self.pieces("all-reduce", axes, devices)
        family = collective(kind, self.cut(axes, devices), 0).family
        curve = self._measured.curve(kind, family, analytic.at)
        return analytic if curve is None else Times((), curve=curve)


@dataclass(frozen=True, slots=True)
class Times(Pieces):
    """A measured curve in the place of lines."""

    curve: Curve = field(kw_only=True)

    def at(self, nbytes: Floats) -> Floats:
        """The times in ns for an array of bytes."""
        return self.curve.at(nbytes)


class MeasuredPrices(ClusterPrices):
    """See the module's docstring."""

    def __init__(
        self, graph: Graph, storage: Storage, cluster: Cluster, mesh: MeshShape, measured: Measured
    ) -> None:
        collectives = MeasuredCollectives(cluster, mesh, measured)
        super().__init__(graph, storage, cluster, mesh, collectives)
        self._source = collectives.source
        self._measured = measured
        self._curve = cache(self._curve_of)
        self._correction = cache(self._correction_of)

    def op_ns(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> int:
        """Nanoseconds of one run of an op under a strategy, collectives apart."""
        return round(self.op_price(graph, op, rule, strategy).ns)

    def op_price(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> Price:
        """The same, and where it is from."""
        if rule.kind == "heavy":
            return self._heavy(graph, op, rule, strategy)
        if op.prim == "transpose" or is_free(op, rule):
            return Price(super().op_ns(graph, op, rule, strategy), "analytic")
        return self._loop(self.work(graph, op, rule, strategy))

    def step_source(self, step: Step) -> Source:
        """Where the time of a collective is from."""
        return self._source(step)

    def notes(self) -> tuple[str, ...]:
        """What the user should know of the prices."""
        known, here = self._measured.jax, jax_version()
        if known in ("", here):
            return super().notes()
        return (*super().notes(), f"costs were measured with jax {known}, and this is jax {here}")

    def _heavy(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> Price:
        ins = [None if v is None else graph.values[v] for v in op.inputs]
        outs = [graph.values[v] for v in op.outputs]
        signature = of_op(op, rule, strategy, self.mesh, ins, outs)
        found = self._measured.find(signature) if signature else None
        if found is not None:
            return found
        ns = super().op_ns(graph, op, rule, strategy)
        right = self._correction(signature.family) if signature and signature.kind == DOT else 1.0
        return Price(ns * right, "analytic")

    def _correction_of(self, family: str) -> float:
        """Measured over analytic time: median of the family's rows, or else of all families."""
        families = sorted(f for kind, f in self._measured.families if kind == DOT)
        if family not in families:
            known = [self._correction(f) for f in families]
            return median(known) if len(known) >= _ENOUGH_FAMILIES else 1.0
        rows = self._measured.of_family(DOT, family)
        return median(t / dot_ns(self.cluster.device, s) for s, t in rows.items())

    def _loop(self, work: Work) -> Price:
        """A fused loop, never less than its arithmetic takes."""
        by_element = work.kind in BY_ELEMENT
        size = work.elements if by_element else work.bytes_read + work.bytes_written
        curve = self._curve(loop(work.kind, work.dtype, 0).family, work.kind, work.dtype)
        least = op_time_ns(
            self.cluster.device, "elementwise", flops=work.flops, bytes_read=0, bytes_written=0,
            dtype=work.dtype, launches=work.launches,
        )  # fmt: skip
        if curve is None or size < 1:
            return Price(work_ns(self.cluster.device, work), "analytic")
        ns = float(curve.at(np.array(float(size)))) - (0 if work.launches else curve.times_ns[0])
        return Price(max(ns, least), curve.source(size))

    def _curve_of(self, family: str, kind: str, dtype: str) -> Curve | None:
        return self._measured.curve(LOOP, family, _loop_line(self.cluster.device, kind, dtype))


def _loop_line(device: Device, kind: str, dtype: str) -> Callable[[Floats], Floats]:
    """The analytic time of a loop over bytes, or elements."""
    slope = 1 / bandwidth(device, kind, dtype)
    if kind in BY_ELEMENT:
        slope = max(device.seconds_per_element.get(kind, 0.0), 4 * slope)
    return lambda sizes: (device.launch_overhead_s + slope * sizes) * 1e9


def dot_ns(device: Device, signature: Sig) -> int:
    """The analytic time of a matmul's signature, with copies of misplaced operands."""
    (left, right, out), dtypes = einsum_of(signature.family)
    sizes = dict(zip(dict.fromkeys((*left, *right, *out)), signature.sizes, strict=True))
    batch = [f for f in left if f in right and f in out]
    inner = [f for f in left if f in right and f not in out]
    rows, columns = ([f for f in side if f in out and f not in batch] for side in (left, right))
    b, m, n, k = (math.prod(sizes[f] for f in part) for part in (batch, rows, columns, inner))
    width = _ITEMSIZE.get(dtypes[0], 4)
    text = ", ".join(map(" ".join, (left, right))) + " -> " + " ".join(out)
    shapes = [tuple(sizes[f] for f in side) for side in (left, right, out)]
    wrong = misplaced(parse(text, tuple(shapes[:2]), (shapes[2],)))
    nbytes = sum(2 * width * math.prod(s) for s, w in zip(shapes, wrong, strict=False) if w)
    copies_ns = nbytes / bandwidth(device, "transpose", dtypes[0]) * 1e9 * device.copies_operands
    return round(copies_ns) + op_time_ns(
        device, "matmul", flops=2.0 * b * m * n * k, bytes_read=width * b * (m * k + k * n),
        bytes_written=width * b * m * n, dtype=dtypes[0], dims=(b, m, n, k),
    )  # fmt: skip


_ENOUGH_FAMILIES = 3
"""Matmuls of so many forms say how far the model is off for others, too."""
_ITEMSIZE = {"float64": 8, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
