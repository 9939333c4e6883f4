"""From a plan to the sharding constraints that make XLA do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.sharding import Mesh, PartitionSpec

from xshard.cost.prices import reduction
from xshard.errors import PlanError
from xshard.ir.fold import Classes
from xshard.ir.graph import Graph, Op, Value
from xshard.plan.plan import Plan
from xshard.rules import Rule
from xshard.run.annotate import Constraints, Key
from xshard.spec import MeshShape, Spec
from xshard.strategies import Strategy, strategy_of

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
    results: dict[Key, tuple[PartitionSpec, ...]] = {}
    operands: dict[Key, tuple[PartitionSpec, ...]] = {}
    shared: dict[Key, Key] = {}
    barriers: set[Key] = set()
    first_use: dict[tuple[int, str, Spec], Key] = {}
    moved_in: dict[tuple[int, Spec], str] = {}
    op_class: list[int] = classes.op_class.tolist()
    value_class: list[int] = classes.value_class.tolist()
    copies: dict[tuple[int, str], Spec] = {(vc, phase): s for vc, phase, s in plan.copies}
    inner = _inner_values(plan, graph, classes, rules)
    strategies = [_strategy(plan, graph, classes, c, rule) for c, rule in enumerate(rules)]
    for op in graph.ops:
        planned, strategy = plan.ops[op_class[op.id]], strategies[op_class[op.id]]
        for r, v in enumerate(op.outputs):
            value, spec = graph.values[v], plan.values[value_class[v]]
            if value.shape and v not in inner:
                stops = _stops(value, strategy, r, spec, plan.mesh, path)
                results[op.address, r] = tuple(partition_spec(s, mesh) for s in stops)
        for k, v in enumerate(op.inputs):
            if v is None or not graph.values[v].shape:
                continue
            have, need = plan.values[value_class[v]], planned.operands[k]
            if have == need:
                continue
            value, key = graph.values[v], (op.address, k)
            copy = copies.get((value_class[v], op.phase), have)
            stops = (
                *path(value.shape, value.itemsize, have, copy),
                *path(value.shape, value.itemsize, copy, need),
            )
            operands[key] = tuple(partition_spec(s, mesh) for s in stops)
            first = first_use.setdefault((v, op.phase, need), key)
            if first != key:
                shared[key] = first
            elif moved_in.setdefault((v, need), op.phase) != op.phase and (
                value.nbytes >= BARRIER_BYTES
            ):
                barriers.add(key)
    outputs = _outputs(plan, graph, classes, mesh, path)
    return Constraints(mesh, results, operands, shared, frozenset(barriers), outputs)


def _strategy(plan: Plan, graph: Graph, classes: Classes, c: int, rule: Rule) -> Strategy:
    """The strategy of a class of ops, whose specs a plan's `factors` say."""
    op = graph.ops[classes.members[c][0]]
    ins = tuple(0 if v is None else len(graph.values[v].shape) for v in op.inputs)
    outs = tuple(len(graph.values[v].shape) for v in op.outputs)
    found = strategy_of(rule, plan.mesh, plan.ops[c].factors, ins, outs)
    if found is None:
        raise PlanError(f"the plan splits {op.prim} at {op.source} in a way that does not divide")
    return found


def _stops(
    value: Value, strategy: Strategy, r: int, final: Spec, mesh: MeshShape, path: Path
) -> tuple[Spec, ...]:
    """The specs of result `r` from where the op leaves it, its sums finished, to where it is kept.

    Without the first one XLA would choose another strategy for the op, one that ends in the last.
    """
    _, made = reduction(
        strategy.results[r], strategy.partial, final, value.shape, value.itemsize, mesh
    )
    return (made, *path(value.shape, value.itemsize, made, final))


def _outputs(
    plan: Plan, graph: Graph, classes: Classes, mesh: Mesh, path: Path
) -> dict[int, tuple[PartitionSpec, ...]]:
    """By result of the step, the specs on its way from where it is kept to where it is returned."""
    found: dict[int, tuple[PartitionSpec, ...]] = {}
    planned = iter(plan.results)
    for i, v in enumerate(graph.outputs):
        if v is None:
            continue
        value, have, need = (
            graph.values[v],
            plan.values[int(classes.value_class[v])],
            next(planned).spec,
        )
        if have != need:
            stops = path(value.shape, value.itemsize, have, need)
            found[i] = tuple(partition_spec(s, mesh) for s in stops)
    return found


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
