"""A plan as a readable report: what it costs, what is split how, what is communicated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from xshard.plan import names
from xshard.plan.plan import (
    CostSources,
    LiveTensor,
    Plan,
    PlannedArray,
    PlannedCollective,
    PlannedOp,
    Template,
    Trial,
)
from xshard.plan.table import Part, Table
from xshard.plan.units import (
    array_text,
    duration,
    mesh_text,
    optimality,
    size,
    spec_text,
    strategy_text,
)

MATMULS = frozenset(
    {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general", "scaled_matmul"}
)
"""Primitives that are listed first among the ops."""
_PLACE = re.compile(r"args\[\d+\]|kwargs\['\w+'\]|result(?:\[\d+\])?")
"""The part of a path that says which argument or result it is in."""
_MAIN_OPS = 12
_PEAK_TENSORS = 8


def report(plan: Plan) -> tuple[Part, ...]:
    """All parts of the report; parts without rows are left out."""
    notes = "\n".join(["", "Notes", *(f"  {note}" for note in plan.notes)]) if plan.notes else ""
    return (header(plan), *tables(plan).values(), *([notes] if notes else []))


def tables(plan: Plan) -> dict[str, Table]:
    """The report's tables by title; those without rows are left out."""
    found = (
        _arrays("Arguments", plan.arguments, plan),
        _results(plan),
        _ops(plan),
        _collectives(plan),
        _peak(plan),
        _templates(plan),
    )
    return {table.title: table for table in found if table.rows}


def summary(plan: Plan) -> str:
    """The plan in one line."""
    return (
        f"Plan({plan.mesh} on {plan.cluster}: {duration(plan.objective_ns)} a step, "
        f"{size(plan.peak_bytes)} a device, {optimality(plan.objective_ns, plan.bound_ns)})"
    )


def header(plan: Plan) -> str:
    """Mesh, costs, memory and planning time, a line each."""
    limit = "no limit" if plan.memory_limit is None else f"limit {size(plan.memory_limit)}"
    parts = f"{duration(plan.compute_ns)} compute + {duration(plan.communication_ns)} communication"
    lines = {
        "mesh": mesh_text(plan.mesh),
        "cluster": plan.cluster,
        "predicted time": f"{duration(plan.objective_ns)} a step = {parts}",
        "costs": _sources(plan.sources),
        "microbatches": _microbatches(plan),
        "recomputed": recomputed_text(plan) if plan.remat else "",
        "peak memory": f"{size(plan.peak_bytes)} a device ({limit})",
        "objective": f"{duration(plan.objective_ns)}, bound {duration(plan.bound_ns)}",
        "gap": optimality(plan.objective_ns, plan.bound_ns),
        "planned in": _seconds(plan.seconds),
    }
    return "\n".join(f"{name:<15} {text}" for name, text in lines.items() if text)


def _sources(sources: CostSources) -> str:
    """The shares of the predicted time, the larger first."""
    parts = {
        "measured": sources.measured_ns,
        "interpolated between measurements": sources.interpolated_ns,
        "from the device's table": sources.analytic_ns,
    }
    total = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{ns / total:.0%} {name}" for name, ns in largest if ns)


def recomputed_text(plan: Plan) -> str:
    """How many layers of each chain are recomputed."""
    parts = [f"{r.recomputed} of {r.layers} layers" + (f" ({r.source})" if r.source else "")
             for r in plan.remat]  # fmt: skip
    return ", ".join(parts) or "none"


def _microbatches(plan: Plan) -> str:
    """The number, where there are several or others were looked at."""
    if plan.microbatches == 1 and not plan.trials:
        return ""
    tried = ", ".join(f"{way(t)}: {outcome(t)}" for t in plan.trials)
    once = ", summed over devices once a step" if plan.lanes > 1 else ""
    return f"{plan.microbatches}{once}" + (f" (tried {tried})" if tried else "")


def way(trial: Trial) -> str:
    """How many microbatches, and how many layers are recomputed."""
    layers = "+".join(map(str, trial.recomputed))
    return f"{trial.microbatches}" + (f" with {layers} recomputed" if layers else "")


def outcome(trial: Trial) -> str:
    """The time of the best plan of a trial, or why there is none."""
    if trial.time_ns is not None:
        return duration(trial.time_ns)
    at_least = trial.at_least_ns
    return "does not fit" if at_least is None else f"at least {duration(at_least)}"


def _seconds(seconds: dict[str, float]) -> str:
    if not seconds:
        return ""
    steps = ", ".join(f"{step} {duration(s * 1e9)}" for step, s in seconds.items())
    return f"{duration(sum(seconds.values()) * 1e9)} ({steps})"


def array_groups(arrays: Sequence[PlannedArray]) -> tuple[names.Group, ...]:
    """Arrays of the same shape, spec and kind of path (the layers of a model) together."""
    return names.collapse(
        [(a.path, (a.shape, a.dtype, a.spec, a.local_bytes, a.pinned)) for a in arrays]
    )


def _arrays(title: str, arrays: Sequence[PlannedArray], plan: Plan) -> Table:
    rows = tuple(_array_row(group, arrays, plan) for group in array_groups(arrays))
    return Table(title, ("name", "array", "sharding", ">on a device"), rows, _total(arrays))


def _results(plan: Plan) -> Table:
    """The results, without those that are the next value of an argument of the same name."""
    known = {_what(a) for a in plan.arguments}
    new = [a for a in plan.results if _what(a)[0] == "" or _what(a) not in known]
    table, again = _arrays("Results", new, plan), len(plan.results) - len(new)
    foot = f"; {again} others are as the arguments of the same name" if again else ""
    return replace(table, foot=table.foot + foot)


def _what(array: PlannedArray) -> tuple[object, ...]:
    """Where an array lies within its argument or result, its type and its sharding."""
    return _PLACE.sub("", array.path, count=1), array.shape, array.dtype, array.spec


def _total(arrays: Sequence[PlannedArray]) -> str:
    total = size(sum(a.local_bytes for a in arrays))
    return f"{len(arrays)} array{'s' * (len(arrays) != 1)}, {total} a device"


def _array_row(group: names.Group, arrays: Sequence[PlannedArray], plan: Plan) -> tuple[str, ...]:
    one, count = arrays[group.members[0]], len(group.members)
    spec = spec_text(one.spec, plan.mesh.names) + (" pinned" if one.pinned else "")
    array = array_text(one.shape, one.dtype)
    return (names.times(group), array, spec, size(one.local_bytes * count))


def _ops(plan: Plan) -> Table:
    main = [op for op in plan.ops if op.prim in MATMULS] or list(plan.ops)
    main = sorted(main, key=lambda op: -op.time_ns)[:_MAIN_OPS]
    rows = tuple(_op_row(op, plan) for op in main)
    left, rest = len(plan.ops) - len(main), sum(op.time_ns for op in plan.ops)
    rest -= sum(op.time_ns for op in main)
    foot = f"and {left} other classes of ops, {duration(rest)} together" if left else ""
    columns = ("op", "where", ">runs", "factors", "split", ">time")
    return Table("Main ops", columns, rows, foot)


def _op_row(op: PlannedOp, plan: Plan) -> tuple[str, ...]:
    split = strategy_text(op.factors, plan.mesh.names) if op.known else "whole (no rule)"
    return (f"{op.prim} {op.phase}", where(op), f"×{op.count}", op.rule, split,
            duration(op.time_ns))  # fmt: skip


def where(op: PlannedOp) -> str:
    """Scope and source line of an op, as far as they are known."""
    return " ".join(part for part in (op.scope, op.source) if part)


def collective_groups(plan: Plan) -> dict[str, list[PlannedCollective]]:
    """Collectives by kind and axes, `all-reduce data`."""
    groups: dict[str, list[PlannedCollective]] = {}
    for c in plan.collectives:
        groups.setdefault(f"{c.kind} {'×'.join(c.axes)}", []).append(c)
    return groups


def _collectives(plan: Plan) -> Table:
    groups = sorted(collective_groups(plan).items(), key=lambda g: -sum(c.time_ns for c in g[1]))
    rows = tuple((name, *collective_figures(group), _costliest(group)) for name, group in groups)
    columns = ("collective", ">runs", ">bytes a device", ">time", "costliest")
    return Table("Communication", columns, rows)


def collective_figures(group: Sequence[PlannedCollective]) -> tuple[str, str, str]:
    """Executions, bytes and time of a group in one step."""
    nbytes = sum(c.nbytes * c.count for c in group)
    return (
        f"×{sum(c.count for c in group)}",
        size(nbytes),
        duration(sum(c.time_ns for c in group)),
    )


def _costliest(group: Sequence[PlannedCollective]) -> str:
    worst = max(group, key=lambda c: c.time_ns)
    return " ".join(part for part in (worst.value, worst.source) if part)


def _peak(plan: Plan) -> Table:
    rows = tuple(_peak_row(tensor) for tensor in plan.peak[:_PEAK_TENSORS])
    left = plan.peak[_PEAK_TENSORS:]
    foot = f"and {len(left)} others, {size(sum(t.nbytes for t in left))} together" if left else ""
    columns = ("tensor", "array", ">on a device", "source")
    return Table("Live at the peak", columns, rows, foot)


def _templates(plan: Plan) -> Table:
    """Well-known ways to split the step, against this plan."""
    rows = tuple(_template_row(t, plan) for t in plan.templates)
    return Table(
        "Against templates", ("", "mesh axes", ">time", ">of the plan's", ">peak memory"), rows
    )


def _template_row(t: Template, plan: Plan) -> tuple[str, ...]:
    fits = plan.memory_limit is None or t.peak_bytes <= plan.memory_limit
    peak = size(t.peak_bytes) + ("" if fits else ", does not fit")
    over: dict[str, list[str]] = {}
    for axis, role in t.roles:
        over.setdefault(role, []).append(axis)
    how = ", ".join(f"{role} over {'×'.join(axes)}" for role, axes in over.items())
    return t.name, how, duration(t.time_ns), f"{t.time_ns / max(1, plan.objective_ns):.2f}×", peak


def _peak_row(tensor: LiveTensor) -> tuple[str, ...]:
    name = f"{tensor.name} ×{tensor.members}" if tensor.members > 1 else tensor.name
    array = array_text(tensor.shape, tensor.dtype)
    return (name, array, size(tensor.nbytes), tensor.source)
