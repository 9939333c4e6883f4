"""From a solution to a `Plan`: specs, collectives, the tensors at the peak, alternatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from xshard.cost.measured import Source
from xshard.cost.prices import ClusterPrices, reduction
from xshard.cost.reshard import Step
from xshard.curve import memory_curve
from xshard.errors import InfeasibleError
from xshard.ir.graph import Value
from xshard.ir.trace import Traced
from xshard.plan.plan import Plan
from xshard.plan.records import (
    Alternative,
    CostSources,
    LiveTensor,
    PlannedArray,
    PlannedCollective,
    PlannedOp,
)
from xshard.solve.draft import Assignment, Draft, Use, copies_of, decode
from xshard.solve.memory import Timeline
from xshard.solve.problem import FORBIDDEN, Solution
from xshard.spec import Spec, num_shards

_MOST_PEAK_TENSORS = 10
Located = tuple[PlannedCollective, Source, int | None]
"""A collective, where its time is from, and the class of ops that it runs with, if any."""


def describe(
    d: Draft,
    timeline: Timeline,
    solution: Solution,
    prices: ClusterPrices,
    traced: Traced,
    *,
    fingerprint: str,
    limit: int | None,
) -> Plan:
    """The plan that a solution means."""
    a = decode(d, solution.choices)
    compute = sum(int(n.costs[c]) for n, c in zip(d.nodes, solution.choices, strict=True))
    ops = tuple(_op(d, a, prices, c) for c in range(len(d.classes.members)))
    located = tuple(_collectives(d, a, prices))
    collectives = tuple(collective for collective, _, _ in located)
    class_ns = [op.time_ns for op in ops]
    for collective, _, c in located:
        if c is not None:
            class_ns[c] += collective.time_ns
    return Plan(
        fingerprint=fingerprint,
        mesh=d.mesh,
        cluster=str(prices.cluster),
        arguments=_arguments(d, a, traced.in_paths),
        results=_results(d, a, [f"result{p}" for p in traced.out_paths]),
        ops=ops,
        values=a.specs,
        copies=tuple((vc, phase, spec) for (vc, phase), spec in sorted(a.copies.items())),
        collectives=collectives,
        peak=peak_tensors(d, timeline, solution.choices),
        objective_ns=solution.objective,
        bound_ns=solution.bound,
        compute_ns=compute,
        communication_ns=solution.objective - compute,
        peak_bytes=int(timeline.curve(d, solution.choices).max(initial=0)),
        memory_limit=limit,
        memory=(memory_curve(d, timeline, solution.choices, class_ns, solution.objective),),
        sources=_sources(d, a, prices, ops, located),
        notes=tuple(_notes(ops, prices)),
    )


def _arguments(d: Draft, a: Assignment, names: Sequence[str]) -> tuple[PlannedArray, ...]:
    return tuple(
        _array(d, name, v, a.specs[int(d.classes.value_class[v])], pinned=v in d.pins)
        for name, v in zip(names, d.graph.inputs, strict=True)
    )


def _results(d: Draft, a: Assignment, names: Sequence[str]) -> tuple[PlannedArray, ...]:
    return tuple(
        _array(d, name, v, _returned(d, a, i, v), pinned=_stated(d, i) or v in d.pins)
        for i, (name, v) in enumerate(zip(names, d.graph.outputs, strict=True))
        if v is not None
    )


def _stated(d: Draft, i: int) -> bool:
    """Whether the user stated how result `i` is returned."""
    pin = d.results.get(i)
    return pin is not None and (not pin or any(axes is not None for axes in pin))


def _returned(d: Draft, a: Assignment, i: int, v: int) -> Spec:
    """The spec in which result `i`, the value `v`, is returned."""
    vc = int(d.classes.value_class[d.tied.get(v, v)])
    return a.returned[vc, d.results[i]] if i in d.results and v not in d.tied else a.specs[vc]


def _array(d: Draft, name: str, v: int, spec: Spec, *, pinned: bool) -> PlannedArray:
    value = d.graph.values[v]
    nbytes = -(-value.nbytes // num_shards(spec, d.mesh))
    return PlannedArray(name, value.shape, value.dtype, spec, nbytes, pinned)


def _op(d: Draft, a: Assignment, prices: ClusterPrices, c: int) -> PlannedOp:
    op, rule, strategy = d.op(c), d.rules[c], a.strategies[c]
    members = len(d.classes.members[c])
    results = tuple(a.specs[int(d.classes.value_class[v])] for v in op.outputs)
    time_ns = members * op.repeat * prices.op_ns(d.graph, op, rule, strategy)
    return PlannedOp(
        op.prim, op.phase, op.scope, op.source, members, members * op.repeat, rule.text(),
        strategy.factors, strategy.operands, results, time_ns, rule.known,
    )  # fmt: skip


def op_times_ns(d: Draft, choices: tuple[int, ...], prices: ClusterPrices) -> list[int]:
    """What the ops of each class take in a step."""
    strategies = decode(d, choices).strategies
    return [
        len(members) * d.op(c).repeat * prices.op_ns(d.graph, d.op(c), d.rules[c], strategies[c])
        for c, members in enumerate(d.classes.members)
    ]


def _sources(
    d: Draft, a: Assignment, prices: ClusterPrices, ops: tuple[PlannedOp, ...],
    collectives: tuple[Located, ...],
) -> CostSources:  # fmt: skip
    """How much of the time of ops and collectives is measured, interpolated and analytic."""
    total: dict[Source, int] = {"measured": 0, "interpolated": 0, "analytic": 0}
    for c, op in enumerate(ops):
        if op.time_ns:
            price = prices.op_price(d.graph, d.op(c), d.rules[c], a.strategies[c])
            total[price.source] += op.time_ns
    for collective, source, _ in collectives:
        total[source] += collective.time_ns
    return CostSources(total["measured"], total["interpolated"], total["analytic"])


def _notes(ops: tuple[PlannedOp, ...], prices: ClusterPrices) -> Iterator[str]:
    for op in ops:
        if not op.known:
            yield (
                f"{op.prim} at {op.source or op.scope or 'an unknown line'} has no rule: it runs "
                f"whole on every device ({op.members} ops, {op.time_ns * 1e-6:.3g} ms)"
            )
    yield from prices.notes()


def _collectives(d: Draft, a: Assignment, prices: ClusterPrices) -> Iterator[Located]:
    """Sums, resharded copies, other resharded operands, and results put in their places."""

    def planned(
        steps: list[Step], value: Value, count: int, c: int | None, combined: bool = False
    ) -> Iterator[Located]:
        source = "" if c is None else d.op(c).source
        for s in steps:
            axes = tuple(d.mesh.names[x] for x in s.axes)
            name = value.name or d.name_of(value)
            time_ns = count * prices.step_ns(s, combined)
            made = PlannedCollective(
                s.kind, axes, round(s.nbytes), count, time_ns, name, source, value.dtype
            )
            yield made, prices.step_source(s), c

    for c, strategy in enumerate(a.strategies):
        op = d.op(c)
        count = len(d.classes.members[c]) * op.repeat
        for v, raw in zip(op.outputs, strategy.results, strict=True):
            value, final = d.graph.values[v], a.specs[int(d.classes.value_class[v])]
            steps, middle = reduction(
                raw, strategy.partial, final, value.shape, value.itemsize, d.mesh
            )
            rest = prices.steps(value.shape, value.itemsize, middle, final)
            combined = d.is_gradient[int(d.classes.value_class[v])]
            yield from planned([*steps, *rest], value, count, c, combined)
    for value_class, src, dst, count, c in moves(d, a):
        value = d.value(value_class)
        yield from planned(prices.steps(value.shape, value.itemsize, src, dst), value, count, c)


def moves(d: Draft, a: Assignment) -> Iterator[tuple[int, Spec, Spec, int, int | None]]:
    """(value class, from, to, how often, class of the op that needs it) of every resharding.

    Uses of a value in one phase share a resharded copy, and what is made of it for the same spec.
    """
    wanted: dict[tuple[int, str, Spec, Spec], list[Use]] = {}
    for use in d.uses:
        op, kept = d.op(use.op), a.specs[use.value]
        need = a.strategies[use.op].operands[use.k]
        copy = kept if need == kept else a.copies.get((use.value, op.phase), kept)
        for src, dst in ((kept, copy), (copy, need)):
            key = use.value, op.phase, src, dst
            if src != dst:
                wanted.setdefault(key, []).append(use)
    for (vc, _, src, dst), uses in wanted.items():
        yield vc, src, dst, copies_of(uses), uses[-1].op
    for (made, kept), count in d.ties.items():
        if a.specs[made] != a.specs[kept]:
            yield made, a.specs[made], a.specs[kept], count, None
    for (made, pin), spec in a.returned.items():
        if a.specs[made] != spec:
            yield made, a.specs[made], spec, d.times_returned(made, pin), None


def peak_tensors(d: Draft, timeline: Timeline, choices: tuple[int, ...]) -> tuple[LiveTensor, ...]:
    """What is live at the peak, by class, the largest first."""
    if not timeline.num_times:
        return ()
    t = int(np.argmax(timeline.curve(d, choices)))
    sizes = timeline.sizes(d, choices)
    here = np.flatnonzero((timeline.first <= t) & (t <= timeline.last) & (sizes > 0))
    groups: dict[tuple[int, bool], list[int]] = {}
    for i in here.tolist():
        vc = int(d.classes.value_class[timeline.value[i]])
        groups.setdefault((vc, timeline.owner[i] < 0), []).append(i)
    found = [_live(d, vc, copy, rows, sizes) for (vc, copy), rows in groups.items()]
    return tuple(sorted(found, key=lambda x: -x.nbytes)[:_MOST_PEAK_TENSORS])


def _live(d: Draft, vc: int, copy: bool, rows: list[int], sizes: np.ndarray) -> LiveTensor:
    value = d.value(vc)
    producer = d.graph.ops[value.producer] if value.producer >= 0 else None
    name = ("copy of " if copy else "") + (value.name or d.name_of(value))
    source = producer.source if producer else ""
    nbytes = int(sizes[rows].sum())
    return LiveTensor(name, value.shape, value.dtype, len(rows), nbytes, source)


def alternatives(
    d: Draft,
    peak_bytes: Callable[[tuple[int, ...]], int],
    plan: Plan,
    traced: Traced,
    solution: Solution,
    solve: Callable[[Draft], Solution],
) -> Callable[[str], tuple[Alternative, ...]]:
    """For `Plan.explain`: the best plan under each other spec of one value, solved anew."""
    names = dict(zip(traced.in_paths, d.graph.inputs, strict=True))
    names |= {
        f"result{p}": d.tied.get(v, v)
        for p, v in zip(traced.out_paths, d.graph.outputs, strict=True)
        if v is not None
    }

    def value_of(key: str) -> int:
        if key in names:
            return names[key]
        return d.op(int(key.removeprefix("ops[").removesuffix("]"))).outputs[0]

    def explain(key: str) -> tuple[Alternative, ...]:
        vc = int(d.classes.value_class[value_of(key)])
        node, index = d.stored[vc]
        specs = d.specs(d.value(vc).shape)
        chosen = int(index[solution.choices[node]])
        return tuple(
            _alternative(d, peak_bytes, plan, solve, node, index, i, specs[i], i == chosen)
            for i in sorted(set(index.tolist()))
        )

    return explain


def _alternative(
    d: Draft, peak_bytes: Callable[[tuple[int, ...]], int], plan: Plan,
    solve: Callable[[Draft], Solution], node: int, index: np.ndarray, wanted: int, spec: Spec,
    chosen: bool,
) -> Alternative:  # fmt: skip
    if chosen:
        return Alternative(spec, plan.objective_ns, 0, plan.peak_bytes, True)
    nodes = list(d.nodes)
    costs = np.where(index == wanted, nodes[node].costs, FORBIDDEN)
    nodes[node] = replace(nodes[node], costs=costs)
    try:
        found = solve(replace(d, nodes=nodes))
    except InfeasibleError:
        return Alternative(spec, None, None, None)
    more_ns = found.objective - plan.objective_ns
    return Alternative(spec, found.objective, more_ns, peak_bytes(found.choices))
