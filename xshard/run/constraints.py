"""From a plan to the sharding constraints that make XLA do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.sharding import Mesh, PartitionSpec

from xshard.ir.fold import Classes
from xshard.ir.graph import Graph, Op
from xshard.plan.plan import Plan
from xshard.rules import Rule
from xshard.run.annotate import Constraints, Key
from xshard.spec import Spec

BARRIER_BYTES = 1 << 16
"""A value of fewer bytes is not gathered again in the backward pass: its copy may live on."""

Path = Callable[[tuple[int, ...], float, Spec, Spec], tuple[Spec, ...]]


def constraints_of(
    plan: Plan,
    graph: Graph,
    classes: Classes,
    rules: Sequence[Rule],
    mesh: Mesh,
    path: Path,
) -> Constraints:
    """The constraints at the values and operands that the plan decides.

    Args:
      rules: one for each op class.
      path: (shape, itemsize, from, to) -> the specs to ask for in sequence.
    """
    results: dict[Key, PartitionSpec] = {}
    operands: dict[Key, tuple[PartitionSpec, ...]] = {}
    shared: dict[Key, Key] = {}
    barriers: set[Key] = set()
    first_use: dict[tuple[int, str, Spec], Key] = {}
    moved_in: dict[tuple[int, Spec], str] = {}
    op_class, value_class = classes.op_class.tolist(), classes.value_class.tolist()
    inner = _inner_values(plan, graph, classes, rules)
    for op in graph.ops:
        planned = plan.ops[op_class[op.id]]
        for r, v in enumerate(op.outputs):
            if graph.values[v].shape and v not in inner:
                results[op.address, r] = partition_spec(plan.values[value_class[v]], mesh)
        for k, v in enumerate(op.inputs):
            if v is None or not graph.values[v].shape:
                continue
            have, need = plan.values[value_class[v]], planned.operands[k]
            if have == need:
                continue
            value, key = graph.values[v], (op.address, k)
            stops = path(value.shape, value.itemsize, have, need)
            operands[key] = tuple(partition_spec(s, mesh) for s in stops)
            first = first_use.setdefault((v, op.phase, need), key)
            if first != key:
                shared[key] = first
            elif moved_in.setdefault((v, need), op.phase) != op.phase and (
                value.nbytes >= BARRIER_BYTES
            ):
                barriers.add(key)
    return Constraints(mesh, results, operands, shared, frozenset(barriers))


def partition_spec(spec: Spec, mesh: Mesh) -> PartitionSpec:
    """A `Spec` as JAX writes it."""
    names = [tuple(mesh.axis_names[a] for a in axes) for axes in spec]
    return PartitionSpec(*(n[0] if len(n) == 1 else n or None for n in names))


def _inner_values(
    plan: Plan, graph: Graph, classes: Classes, rules: Sequence[Rule]
) -> frozenset[int]:
    """Values inside an elementwise chain of one spec, which propagation fills in for certain.

    Both ends of such a chain are constrained. Values anywhere else must be too: XLA would split an
    open one further where a neighbour suggests it, and gather it again.
    """
    inner = set(range(len(graph.values))).difference(graph.outputs)
    for op in graph.ops:
        c = int(classes.op_class[op.id])
        same = _same_shape_values(graph, op) if rules[c].kind == "elementwise" else ()
        reads = [(v, plan.ops[c].operands[k]) for k, v in enumerate(op.inputs) if v is not None]
        moved = {v for v, need in reads if need != plan.values[int(classes.value_class[v])]}
        inner.difference_update(v for v, _ in reads if v not in same or v in moved)
        if not same or moved:
            inner.difference_update(op.outputs)
    return frozenset(inner)


def _same_shape_values(graph: Graph, op: Op) -> frozenset[int]:
    shape = graph.values[op.outputs[0]].shape
    return frozenset(v for v in op.inputs if v is not None and graph.values[v].shape == shape)
