"""What is worth measuring, the most telling first: for a step on some meshes, or in general.

A step's matmuls and convolutions are measured in the local shapes of every strategy, those of the
fastest strategies first; the loops of its kinds and dtypes, and the collectives of every set of
mesh axes, at a few sizes between which prices are interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from xshard.cost.collectives import KINDS, CollectiveModel
from xshard.cost.prices import ClusterPrices, is_free
from xshard.cost.signature import (
    BY_ELEMENT,
    DOT,
    Signature,
    collective,
    loop,
    of_op,
)
from xshard.ir.fold import Classes
from xshard.rules.rule import Rule
from xshard.spec import MeshShape
from xshard.strategies import strategies_of

BYTES = {1 << 16: 0, 1 << 21: 2, 1 << 12: 4, 1 << 18: 4, 1 << 24: 4}
"""Sizes of loops, and the round that each is measured in; collectives are a round later."""
LOOP_KINDS = ("elementwise", "reduce", "transcendental", "gather", "scatter", "random")
FLOATS = ("float32", "bfloat16", "float16", "float64")
SWEEP_DTYPES = ("float32", "bfloat16")
SWEEP_SIDES = (32, 128, 512, 2048)
SWEEP_MATMULS = ("a b, b c -> a c", "a b, c b -> a c", "a b, a c -> b c")
"""A layer's matmul forward, and its two gradients."""


@dataclass(frozen=True, slots=True)
class Target:
    """One signature, and for a collective the mesh and the axes that it is measured on.

    Attributes:
      turn: the round in which it is measured; all of a round before any of the next.
      weight: within a round, the heavier first.
      expected_ns: analytic time of one run, so that what would take too long is left out.
    """

    signature: Signature
    turn: int
    weight: float = 0.0
    expected_ns: float = 0.0
    mesh: MeshShape | None = None
    axes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A step to measure for: its classes and their rules, and prices on one mesh."""

    classes: Classes
    rules: Sequence[Rule]
    prices: ClusterPrices


def of_steps(steps: Sequence[Step]) -> list[Target]:
    """For one step on one or several meshes."""
    largest = max((v.nbytes for s in steps for v in s.prices.graph.values), default=0)
    found = [t for s in steps for t in (*_ops(s), *_loops(s, largest))]
    models = [s.prices.collectives for s in steps]
    return _ordered([*found, *(t for m in models for t in _collectives(m, largest))])


def sweep(model: CollectiveModel, matmuls: Sequence[int] = SWEEP_SIDES) -> list[Target]:
    """In general: matmuls of all sides, loops of all kinds, collectives of all axes."""
    found: list[Target] = []
    for dtype in SWEEP_DTYPES:
        for kind in LOOP_KINDS if dtype == "float32" else LOOP_KINDS[:3]:
            found += [_loop(kind, dtype, n, turn) for n, turn in _sizes(math.inf)]
        for text, sides in itertools.product(SWEEP_MATMULS, itertools.product(matmuls, repeat=3)):
            signature = Signature(DOT, f"{text} {dtype} {dtype} {dtype}", sides)
            device = model.cluster.device
            expected_ns = 2 * math.prod(sides) / device.flops_for(dtype) * 1e9
            found.append(Target(signature, 3, 1 / math.prod(sides), expected_ns))
    return _ordered([*found, *_collectives(model, math.inf)])


def _ordered(targets: Iterable[Target]) -> list[Target]:
    """Each signature once, in the order of rounds and weights."""
    first: dict[Signature, Target] = {}
    for target in sorted(targets, key=lambda t: (t.turn, -t.weight, t.signature)):
        first.setdefault(target.signature, target)
    return list(first.values())


def _ops(step: Step) -> Iterator[Target]:
    """Matmuls and convolutions: one strategy a round, the fastest first."""
    graph, mesh = step.prices.graph, step.prices.mesh
    for rule, members in zip(step.rules, step.classes.members, strict=True):
        if rule.kind != "heavy":
            continue
        op = graph.ops[members[len(members) // 2]]
        ins = [None if v is None else graph.values[v] for v in op.inputs]
        outs = [graph.values[v] for v in op.outputs]
        ranks = [tuple(len(v.shape) if v else 0 for v in side) for side in (ins, outs)]
        priced: list[tuple[float, Signature]] = []
        for strategy in strategies_of(rule, mesh, *ranks):
            signature = of_op(op, rule, strategy, mesh, ins, outs)
            if signature is not None and min(signature.sizes, default=0) > 0:
                ns = ClusterPrices.op_ns(step.prices, graph, op, rule, strategy)
                priced.append((ns, signature))
        for turn, (ns, signature) in enumerate(sorted(dict.fromkeys(priced))):
            yield Target(signature, 2 * turn, len(members) * op.repeat * ns, ns)


def _loops(step: Step, largest: float) -> Iterator[Target]:
    """Loops of the kinds and dtypes of this step."""
    graph, seen = step.prices.graph, set[str]()
    for rule, members in zip(step.rules, step.classes.members, strict=True):
        op = graph.ops[members[0]]
        if rule.kind == "heavy" or is_free(op, rule):
            continue
        ranks = [
            tuple(0 if v is None else len(graph.values[v].shape) for v in side)
            for side in (op.inputs, op.outputs)
        ]
        whole = strategies_of(rule, MeshShape((), ()), *ranks)[0]
        work = step.prices.work(graph, op, rule, whole)
        kind, dtype = loop(work.kind, work.dtype, 0).family.split(" ", 1)
        if kind in LOOP_KINDS and dtype in FLOATS and f"{kind} {dtype}" not in seen:
            seen.add(f"{kind} {dtype}")
            yield from (_loop(kind, dtype, n, turn) for n, turn in _sizes(2 * largest))


def _loop(kind: str, dtype: str, nbytes: int, turn: int) -> Target:
    width = 2 if dtype in ("bfloat16", "float16") else 8 if dtype == "float64" else 4
    size = nbytes // (2 * width) if kind in BY_ELEMENT else nbytes
    return Target(loop(kind, dtype, size), turn)


def _collectives(model: CollectiveModel, largest: float) -> Iterator[Target]:
    """All kinds over every set of axes."""
    mesh = model.mesh
    axes = [a for a, size in enumerate(mesh.sizes) if size > 1]
    fused = model.cluster.device.fused_reduce_scatter
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            names = tuple(mesh.names[a] for a in chosen)
            for (n, turn), kind in itertools.product(_sizes(largest), KINDS):
                if kind == "reduce-scatter" and not fused:
                    continue
                signature = collective(kind, model.group(chosen), n)
                yield Target(signature, turn + 1, mesh=mesh, axes=names)


def _sizes(largest: float) -> Iterator[tuple[int, int]]:
    """(bytes, round), up to the first that is as large as `largest`."""
    for n, turn in sorted(BYTES.items()):
        yield n, turn
        if n >= largest:
            return
