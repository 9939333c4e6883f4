"""From a folded graph to a `Problem`: nodes, resharding edges, rows of live memory.

Nodes of the problem (each stands for all members of a class):

  input    a graph input or constant: which spec it is kept in
  op       an op: its strategy
  result   the result of an op that may leave partial sums: the spec it is reduced into
  returned a result that the user wants in a certain spec: that spec
  copy     a value read more than once in a phase: the spec of the one resharded copy that its
           readers share (its own spec when there is none)

Edges carry the time of resharding from where a value is made to how it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from xshard.cost.fusion import Storage
from xshard.errors import PinError
from xshard.ir.fold import Classes, signature
from xshard.ir.graph import Graph, Op, Value
from xshard.rules.rule import Rule
from xshard.solve.draft import Draft, Ints, Pin, Prices, Returned, Use, copies_of
from xshard.solve.followers import followers
from xshard.solve.problem import FORBIDDEN
from xshard.spec import MeshShape, Spec, divides, num_shards
from xshard.strategies import Strategy, specs_of, strategies_of


def draft(
    graph: Graph,
    classes: Classes,
    mesh: MeshShape,
    rules: tuple[Rule, ...],
    storage: Storage,
    prices: Prices,
    pins: Mapping[int, Pin],
    ties: Mapping[int, int],
    results: Mapping[int, Pin] | None = None,
) -> Draft:
    """All nodes and edges; memory is added by `xshard.solve.memory`.

    Args:
      rules: one for each op class.
      pins: value id -> what the user fixed of its spec.
      ties: result value -> the input value whose place it takes in the next step.
      results: position among the results -> what the user fixed of it as it is returned.
    """
    leaders = followers(graph, classes, rules)
    sizes = np.bincount(leaders)
    chained = [bool(sizes[leader] > 1) for leader in leaders]
    returned = _returned_evenly(graph, mesh) | dict(results or {})
    d = Draft(
        graph, classes, mesh, rules, storage, prices, tuple(chained),
        gradients(graph, classes, rules), pins, ties, results=returned,
    )  # fmt: skip
    _add_inputs(d, pins)
    for c, leader in enumerate(leaders):
        _add_op(d, c, leader, pins)
    _add_uses(d)
    _add_ties(d, ties)
    _add_returned(d)
    return d


def _returned_evenly(graph: Graph, mesh: MeshShape) -> dict[int, Pin]:
    """Results that might be kept in padded shards: JAX returns even ones only."""
    shapes = [() if v is None else graph.values[v].shape for v in graph.outputs]
    even = {shape: all(divides(spec, shape, mesh) for spec in specs_of(shape, mesh))
            for shape in set(shapes)}  # fmt: skip
    return {i: (None,) * len(shape) for i, shape in enumerate(shapes) if not even[shape]}


def gradients(graph: Graph, classes: Classes, rules: Sequence[Rule]) -> tuple[bool, ...]:
    """For each value class, whether nothing but the update waits for it, views in between apart."""
    waits = [False] * len(graph.values)
    for v in graph.outputs:
        if v is not None:
            waits[v] = True
    for op in reversed(graph.ops):
        light = rules[int(classes.op_class[op.id])].kind in ("view", "elementwise")
        passes = light and not any(waits[v] for v in op.outputs)
        for v in op.inputs:
            if v is not None and op.phase != "update" and not passes:
                waits[v] = True
    found = [True] * len(classes.value_members)
    for v in graph.values:
        made_here = v.producer >= 0 and graph.ops[v.producer].phase == "bwd"
        if waits[v.id] or not made_here:
            found[int(classes.value_class[v.id])] = False
    return tuple(found)


def allowed(spec: Spec, pin: Pin | None) -> bool:
    """Whether `spec` is what the pin says."""
    return pin is None or all(p is None or p == s for p, s in zip(pin, spec, strict=True))


def local_bytes(value: Value, specs: tuple[Spec, ...], mesh: MeshShape) -> Ints:
    """Bytes of one shard under each spec."""
    return np.array([-(-value.nbytes // num_shards(s, mesh)) for s in specs], dtype=np.int64)


def _add_inputs(d: Draft, pins: Mapping[int, Pin]) -> None:
    for vc, members in enumerate(d.classes.value_members):
        value = d.value(vc)
        if value.producer >= 0:
            continue
        specs = d.specs(value.shape)
        keep = [
            i for i, s in enumerate(specs)
            if divides(s, value.shape, d.mesh) and all(allowed(s, pins.get(v)) for v in members)
        ]  # fmt: skip
        usage = local_bytes(value, specs, d.mesh)[keep]
        node = d.add_node(value.name or f"const %{value.id}", [0] * len(keep), usage)
        d.stored[vc] = node, np.array(keep, dtype=np.int64)


def _add_op(d: Draft, c: int, leader: int, pins: Mapping[int, Pin]) -> None:
    """A node of its own, or a share in the node of the chain that the op follows."""
    op = d.op(c)
    strategies, costs_of_one = _choices(d, c, op)
    count = len(d.classes.members[c]) * op.repeat
    costs = count * costs_of_one
    for k, v in enumerate(op.outputs):
        if v in pins and not any(s.partial for s in strategies):
            costs += _barred(d, v, pins[v], [s.results[k] for s in strategies])
    if leader == c:
        node = d.add_node(f"{op.prim} {op.scope}", costs)
    else:
        node = d.op_node[leader]
        d.nodes[node] = replace(d.nodes[node], costs=d.nodes[node].costs + costs)
    d.strategies.append(strategies)
    d.op_node.append(node)
    for k in range(len(op.outputs)):
        _add_result(d, c, k, count, pins)


def _choices(d: Draft, c: int, op: Op) -> tuple[tuple[Strategy, ...], Ints]:
    """The strategies of a class of ops, and what one run takes under each.

    Ops with equal signatures share them, however many classes they are in: a program without
    repeated layers has many equal ops all the same.
    """
    key = signature(d.graph, op), d.chained[c], d.prices.alike(op)
    if key not in d.choices:
        rule = d.rules[c]
        strategies = _op_strategies(d, op, rule)
        if d.chained[c]:
            by_result = {s.results[0]: s for s in strategies}
            specs = d.specs(d.graph.values[op.outputs[0]].shape)
            strategies = tuple(by_result[spec] for spec in specs)
        costs = [d.prices.op_ns(d.graph, op, rule, s) for s in strategies]
        d.choices[key] = strategies, np.array(costs, dtype=np.int64)
    return d.choices[key]


def _add_result(d: Draft, c: int, k: int, count: int, pins: Mapping[int, Pin]) -> None:
    """Where result `k` of a class is kept: with the op, or in a node that finishes its sums."""
    op, node, strategies = d.op(c), d.op_node[c], d.strategies[c]
    out = d.graph.values[op.outputs[k]]
    vc = int(d.classes.value_class[out.id])
    if any(s.partial for s in strategies):
        _add_sum(d, node, vc, out, strategies, k, count, pins.get(out.id))
        return
    specs = tuple(s.results[k] for s in strategies)
    if d.chained[c]:
        _set_usage(d, node, _local_elements(out, specs, d.mesh))
    elif d.is_stored(vc):
        _set_usage(d, node, d.nodes[node].usage + local_bytes(out, specs, d.mesh))
    d.stored[vc] = node, d.result_index(strategies, k, out.shape)


def _set_usage(d: Draft, node: int, usage: Ints) -> None:
    d.nodes[node] = replace(d.nodes[node], usage=usage)


def _local_elements(value: Value, specs: tuple[Spec, ...], mesh: MeshShape) -> Ints:
    """Elements of one shard: the usage of a chain's node, whose values differ in item size."""
    return np.array([-(-value.size // num_shards(s, mesh)) for s in specs], dtype=np.int64)


def _op_strategies(d: Draft, op: Op, rule: Rule) -> tuple[Strategy, ...]:
    ins = tuple(0 if v is None else len(d.graph.values[v].shape) for v in op.inputs)
    outs = tuple(len(d.graph.values[v].shape) for v in op.outputs)
    return strategies_of(rule, d.mesh, ins, outs)


def _barred(d: Draft, v: int, pin: Pin, specs: Sequence[Spec]) -> Ints:
    """What a pin adds to the costs: nothing where it allows the spec."""
    fits = np.array([allowed(spec, pin) for spec in specs])
    if not fits.any():
        value = d.graph.values[v]
        op = d.graph.ops[value.producer]
        raise PinError(
            f"the sharding that is asked for at {op.source or op.scope or 'a result'} cannot hold: "
            f"{op.prim} cannot make an array of shape {value.shape} split that way on the mesh "
            f"{d.mesh}; pin another dimension."
        )
    return np.where(fits, 0, FORBIDDEN)


def _add_sum(
    d: Draft, op_node: int, vc: int, out: Value,
    strategies: tuple[Strategy, ...], k: int, count: int, pin: Pin | None,
) -> None:  # fmt: skip
    specs = d.specs(out.shape)
    costs = _barred(d, out.id, pin, specs) if pin else np.zeros(len(specs), dtype=np.int64)
    usage = local_bytes(out, specs, d.mesh) * d.is_stored(vc)
    node = d.add_node(f"result of {d.nodes[op_node].name}", costs, usage)
    combined = d.is_gradient[vc]
    cache: dict[tuple[Spec, tuple[int, ...]], Ints] = {}
    rows: list[Ints] = []
    for s in strategies:
        key = s.results[k], s.partial
        if key not in cache:
            cache[key] = count * d.prices.reduce_ns(out.shape, out.itemsize, *key, combined)
        rows.append(cache[key])
    edge = d.add_edge(op_node, node, np.stack(rows))
    d.sum_edges[edge] = int(d.classes.op_class[out.producer]), k
    d.stored[vc] = node, np.arange(len(specs))


def _add_uses(d: Draft) -> None:
    """Edges from every value to its readers, through a shared copy where several read it."""
    groups: dict[tuple[int, str], list[Use]] = {}
    for use in _collect_uses(d):
        d.uses.append(use)
        together = d.stored[use.value][0] == d.op_node[use.op] and d.chained[use.op]
        if not together and len(d.specs(d.value(use.value).shape)) > 1:
            groups.setdefault((use.value, d.op(use.op).phase), []).append(use)
    for (vc, phase), uses in groups.items():
        node, index = d.stored[vc]
        if len(uses) > 1:
            node, index = _add_copy(d, vc, phase, copies_of(uses))
        for use in uses:
            _add_use(d, use, node, index)


def _add_use(d: Draft, use: Use, node: int, index: Ints) -> None:
    value = d.value(use.value)
    strategies = d.strategies[use.op]
    read = d.operand_index(strategies, use.k, value.shape)
    costs = use.count * d.prices.reshard_ns(value.shape, value.itemsize)[np.ix_(index, read)]
    reader = d.op_node[use.op]
    if node == reader:
        own = d.nodes[node]
        d.nodes[node] = replace(own, costs=own.costs + np.diagonal(costs))
    elif costs.any():
        d.use_edges[d.add_edge(node, reader, costs)] = use


def _add_copy(d: Draft, vc: int, phase: str, count: int) -> tuple[int, Ints]:
    value = d.value(vc)
    source, index = d.stored[vc]
    everything = np.arange(len(d.specs(value.shape)))
    node = d.add_node(f"copy of {d.nodes[source].name}", [0] * len(everything))
    costs = count * d.prices.reshard_ns(value.shape, value.itemsize)[np.ix_(index, everything)]
    d.copy_edges[d.add_edge(source, node, costs)] = (vc, phase)
    d.copies[vc, phase] = node, everything
    return node, everything


def _collect_uses(d: Draft) -> list[Use]:
    found: dict[tuple[int, int, int], dict[int, int]] = {}
    value_class, op_class = d.classes.value_class.tolist(), d.classes.op_class.tolist()
    for op in d.graph.ops:
        for k, v in enumerate(op.inputs):
            if v is not None:
                key = value_class[v], op_class[op.id], k
                times = found.setdefault(key, {})
                times[v] = max(times.get(v, 0), _times(d.graph, op, v))
    return [Use(*key, found[key]) for key in sorted(found)]


def _times(graph: Graph, op: Op, v: int) -> int:
    """How often a step reshards `v` for `op`: a slice made in a loop as often as the loop turns."""
    producer = graph.values[v].producer
    if producer < 0 or op.prim == "carry_out":
        return op.repeat
    return max(op.repeat, graph.ops[producer].repeat)


def _add_ties(d: Draft, ties: Mapping[int, int]) -> None:
    """A result that is the next step's argument is resharded into the argument's spec."""
    counts: dict[tuple[int, int], int] = {}
    for result, argument in ties.items():
        key = int(d.classes.value_class[result]), int(d.classes.value_class[argument])
        counts[key] = counts.get(key, 0) + 1
    d.ties.update(sorted(counts.items()))
    for (made, kept), count in d.ties.items():
        value = d.value(made)
        (a, i), (b, j) = d.stored[made], d.stored[kept]
        costs = count * d.prices.reshard_ns(value.shape, value.itemsize)[np.ix_(i, j)]
        if a != b and costs.any():
            d.add_edge(a, b, costs)


def _add_returned(d: Draft) -> None:
    """A result that the user wants in a certain spec is resharded into it at the end."""
    keys: set[Returned] = set()
    for i, pin in d.results.items():
        v = d.graph.outputs[i]
        if v is not None and v not in d.tied:
            keys.add((int(d.classes.value_class[v]), pin))
    for vc, pin in sorted(keys, key=str):
        value = d.value(vc)
        specs, (source, index) = d.specs(value.shape), d.stored[vc]
        fits = (allowed(s, pin) and divides(s, value.shape, d.mesh) for s in specs)
        keep = np.flatnonzero(list(fits)).astype(np.int64)
        node = d.add_node(f"returned {d.nodes[source].name}", [0] * len(keep))
        costs = d.prices.reshard_ns(value.shape, value.itemsize)[np.ix_(index, keep)]
        costs = costs * d.times_returned(vc, pin)
        if costs.any():
            d.add_edge(source, node, costs)
        d.returned[vc, pin] = node, keep
