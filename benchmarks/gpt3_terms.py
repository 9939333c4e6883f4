"""What each GPU does in a step of GPT-3, as its plan says: the terms of the predicted time.

A plan's time is a sum over ops and collectives. `Terms` holds their sizes and counts without the
time of any, so that the time under another device table takes some vectorised operations, and a
table can be fitted to measured steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.compute import matmul_efficiency
from xshard.cost.prices import is_free
from xshard.spec import MeshShape
from xshard.strategies import Strategy, strategies_of

PLENTY_BYTES = 10**15
OPS = ("flops", "bytes", "launches", "dims", "dtype", "inside")
MOVES = ("kind", "axes", "devices", "nbytes", "combined", "inside")


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run one model.

    Attributes:
      microbatch: sequences that all GPUs work on together.
      mesh: data × model, or model alone.
      remat: every layer is recomputed in the backward pass.
      layers: of the model; all are alike, so that two short models tell the time of a long one.
    """

    model: str
    microbatch: int
    mesh: tuple[int, ...]
    remat: bool
    layers: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one microbatch, and of what a step does once."""

    microbatch_s: float
    once_s: float

    def step_s(self, turns: int) -> float:
        """Of a step."""
        return turns * self.microbatch_s + self.once_s


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one plan, equal ones together: (`OPS` or `MOVES`, how often in a step)."""

    mesh: tuple[int, ...]
    turns: int
    ops: list[tuple[list[Any], int]]
    moves: list[tuple[list[Any], int]]

    def times(self, cluster: Cluster) -> Times:
        """By the cost model, on these devices."""
        turn, once = 0.0, 0.0
        parts = (self._ops_s(cluster), self.ops), (self._moves_s(cluster), self.moves)
        for seconds, terms in parts:
            inside = np.array([t[-1] for t, _ in terms], bool)
            turn += float(seconds[inside].sum()) / self.turns
            once += float(seconds[~inside].sum())
        return Times(turn, once)

    def _ops_s(self, cluster: Cluster) -> np.ndarray:
        """`compute.op_time_ns` of all ops at once, in seconds."""
        device = cluster.device
        flops, nbytes, launches = (np.array([t[i] for t, _ in self.ops]) for i in range(3))
        dims = np.array([t[3] or (1, 1, 1, 1) for t, _ in self.ops], float).T
        matmul = np.array([t[3] is not None for t, _ in self.ops])
        peak = np.array([device.flops_for(t[4]) for t, _ in self.ops])
        achieved: Any = matmul_efficiency(device.matmul, tuple(dims))  # type: ignore[arg-type]
        rate = np.where(matmul, peak * achieved, device.flops_for("float32"))
        bandwidth = device.memory_bandwidth_bytes_per_s * device.memory_efficiency
        count = np.array([c for _, c in self.ops])
        return count * (np.maximum(flops / rate, nbytes / bandwidth)
                        + launches * device.launch_overhead_s)  # fmt: skip

    def _moves_s(self, cluster: Cluster) -> np.ndarray:
        """`ClusterPrices.step_ns` of all collectives, in seconds."""
        model = CollectiveModel(cluster, MeshShape(("data", "model")[-len(self.mesh) :], self.mesh))
        found: list[float] = []
        for (kind, axes, devices, nbytes, combined, _), count in self.moves:
            alone = model.time_ns(kind, nbytes, tuple(axes), devices)
            if combined:
                start = model.time_ns(kind, 0, tuple(axes), devices)
                alone += start * (min(1.0, nbytes / cluster.device.combined_bytes) - 1)
            found.append(count * alone * 1e-9)
        return np.array(found)


def terms_of(case: Case, kind: str) -> Terms:
    """Plans a case by hand, as Megatron: heads, MLP and vocabulary over the second axis."""
    import jax

    import xshard
    from benchmarks.baselines import baselines
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    config = CONFIGS[case.model].replace(
        remat=case.remat, num_layers=case.layers, name=f"{case.model} {case.microbatch}"
    )
    axes, turns = ("data", "model")[-len(case.mesh) :], config.batch // case.microbatch
    fun, pins = make_train_step(config).train, {}
    if math.prod(case.mesh) > 1:
        mesh = jax.make_mesh(case.mesh, axes, (jax.sharding.AxisType.Auto,) * len(axes),
                             devices=jax.devices()[: math.prod(case.mesh)])  # fmt: skip
        way = next(b for b in baselines(config, mesh) if b.name == "Megatron")
        fun = way.step(config, mesh)
        pins = {"in_specs": (way.state, way.batch), "out_specs": way.out_specs}
    plan = xshard.plan(
        fun, state_avals(config), batch_avals(config), cluster=cluster_of(kind, case.mesh),
        mesh=MeshShape(axes, case.mesh), memory_limit=PLENTY_BYTES, microbatches=turns,
        time_limit=20, cost_db=False, **pins,
    )  # fmt: skip
    return Terms(case.mesh, turns, _listed(_ops(plan)), _listed(_moves(plan, turns)))


def cluster_of(kind: str, mesh: tuple[int, ...]) -> Cluster:
    """So many devices, eight on a host."""
    devices = math.prod(mesh)
    return Cluster.parse(f"{kind}:{-(-devices // 8)}x{min(devices, 8)}")


def _listed(terms: Iterator[tuple[tuple[Any, ...], int]]) -> list[tuple[list[Any], int]]:
    """Equal terms together."""
    total = Counter[tuple[Any, ...]]()
    for key, count in terms:
        total[key] += count
    return [(list(key), count) for key, count in total.items()]


def _ops(plan: Any) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The work of every op, with how often it runs."""
    prepared = plan._step.prepared
    graph, prices = prepared.request.traced.graph, prepared.prices
    for c, (members, done) in enumerate(zip(prepared.classes.members, plan.ops, strict=True)):
        op, rule = graph.ops[members[len(members) // 2]], prepared.rules[c]
        if is_free(op, rule) or op.prim == "transpose":
            continue
        strategy = next(s for s in _strategies(graph, op, rule, plan.mesh)
                        if s.factors == done.factors)  # fmt: skip
        w = prices.work(graph, op, rule, strategy)
        yield (w.flops, w.bytes_read + w.bytes_written, w.launches, w.dims, w.dtype,
               op.repeat > 1), done.count  # fmt: skip


def _strategies(graph: Any, op: Any, rule: Any, mesh: MeshShape) -> tuple[Strategy, ...]:
    ins = tuple(0 if v is None else len(graph.values[v].shape) for v in op.inputs)
    return strategies_of(rule, mesh, ins, tuple(len(graph.values[v].shape) for v in op.outputs))


def _moves(plan: Any, turns: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The collectives; one that costs less than it would alone is joined with others."""
    prices = plan._step.prepared.prices
    for c in plan.collectives:
        axes = tuple(plan.mesh.names.index(a) for a in c.axes)
        alone = c.count * prices.collectives.time_ns(c.kind, c.nbytes, axes)
        inside = c.count % turns == 0 and turns > 1
        yield (c.kind, axes, 0, c.nbytes, c.time_ns < 0.99 * alone, inside), c.count
