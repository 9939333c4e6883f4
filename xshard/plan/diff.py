"""What differs between two plans: settings, shardings, strategies, communication, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xshard.plan import names
from xshard.plan.page.tables import to_html
from xshard.plan.plan import Plan, PlannedArray
from xshard.plan.table import Part, Table, to_rich, to_text
from xshard.plan.text import collective_figures, collective_groups, recomputed_text
from xshard.plan.units import (
    array_text,
    change,
    duration,
    mesh_text,
    size,
    spec_text,
    strategy_text,
)

_SHOWN = 40
"""Changes of one sort that are printed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing, or `members` alike, before and after; None where it does not exist."""

    name: str
    before: str | None
    after: str | None
    members: int = 1


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """The differences from one plan to another; false if there are none.

    Attributes:
      settings: mesh, cluster, memory limit, function.
      arguments, results: arrays whose spec, shape or existence changed; layers that changed alike
        are one entry.
      ops: ops that are split in another way; layers likewise.
      collectives: by kind and axes.
      figures: predicted times and memory, those that changed.
      time_delta_ns, peak_delta_bytes: the other plan's minus the first one's.
    """

    settings: tuple[Change, ...]
    arguments: tuple[Change, ...]
    results: tuple[Change, ...]
    ops: tuple[Change, ...]
    collectives: tuple[Change, ...]
    figures: tuple[Change, ...]
    time_delta_ns: int
    peak_delta_bytes: int

    def __bool__(self) -> bool:
        return any(changes for _, changes in _parts(self))

    def __repr__(self) -> str:
        """In one line."""
        count = sum(len(changes) for _, changes in _parts(self))
        time = change(0, self.time_delta_ns, duration)
        peak = change(0, self.peak_delta_bytes, size)
        return f"PlanDiff({count} change{'s' * (count != 1)}; time {time}, peak memory {peak})"

    def __str__(self) -> str:
        return to_text(report(self))

    def __rich__(self) -> object:
        return to_rich(report(self))

    def _repr_html_(self) -> str:
        return to_html(report(self))


def diff(before: Plan, after: Plan) -> PlanDiff:
    """What changes from `before` to `after`."""
    return PlanDiff(
        settings=_changes(_settings(before), _settings(after)),
        arguments=_folded(_arrays(before, before.arguments), _arrays(after, after.arguments)),
        results=_folded(_arrays(before, before.results), _arrays(after, after.results)),
        ops=_folded(_ops(before), _ops(after)),
        collectives=_changes(_collectives(before), _collectives(after)),
        figures=_figures(before, after),
        time_delta_ns=after.objective_ns - before.objective_ns,
        peak_delta_bytes=after.peak_bytes - before.peak_bytes,
    )


def report(diff: PlanDiff) -> tuple[Part, ...]:
    """The changes as tables."""
    tables = [_table(title, changes) for title, changes in _parts(diff) if changes]
    return tuple(tables) or ("the plans are equal",)


def _parts(diff: PlanDiff) -> tuple[tuple[str, tuple[Change, ...]], ...]:
    return (
        ("Settings", diff.settings),
        ("Predicted", diff.figures),
        ("Arguments", diff.arguments),
        ("Results", diff.results),
        ("Ops", diff.ops),
        ("Communication", diff.collectives),
    )


def _table(title: str, changes: Sequence[Change]) -> Table:
    rows = tuple((_label(c), c.before or "-", c.after or "-") for c in changes[:_SHOWN])
    foot = f"and {len(changes) - _SHOWN} other changes" if len(changes) > _SHOWN else ""
    return Table(title, ("what", "before", "after"), rows, foot)


def _label(c: Change) -> str:
    return f"{c.name} ×{c.members}" if c.members > 1 else c.name


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """Entries that differ, in the order of `before`, new ones last."""
    keys = dict.fromkeys([*before, *after])
    pairs = ((key, before.get(key), after.get(key)) for key in keys)
    return tuple(Change(key, old, new) for key, old, new in pairs if old != new)


def _settings(plan: Plan) -> dict[str, str]:
    limit = "none" if plan.memory_limit is None else size(plan.memory_limit)
    return {
        "mesh": mesh_text(plan.mesh),
        "cluster": plan.cluster,
        "memory limit": limit,
        "microbatches": str(plan.microbatches),
        "lanes": str(plan.lanes),
        "recomputed layers": recomputed_text(plan),
        "fingerprint": plan.fingerprint[:16],
    }


def _folded(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """Entries that differ; those that differ alike and whose names differ in numbers are one."""
    changes = _changes(before, after)
    groups = names.collapse([(c.name, (c.before, c.after)) for c in changes])
    return tuple(
        replace(changes[group.members[0]], name=group.label, members=len(group.members))
        for group in groups
    )


def _arrays(plan: Plan, arrays: Iterable[PlannedArray]) -> dict[str, str]:
    return {
        a.path: f"{array_text(a.shape, a.dtype)} {spec_text(a.spec, plan.mesh.names)}"
        + (" pinned" if a.pinned else "")
        for a in arrays
    }


def _ops(plan: Plan) -> dict[str, str]:
    """Strategies by op; equal ops are told apart by their order, so that lines may move."""
    texts: dict[str, str] = {}
    seen: dict[str, int] = {}
    for op in plan.ops:
        name = " ".join(part for part in (op.prim, op.phase, op.scope, f"({op.rule})") if part)
        seen[name] = seen.get(name, 0) + 1
        key = name if seen[name] == 1 else f"{name} #{seen[name]}"
        texts[key] = strategy_text(op.factors, plan.mesh.names)
    return texts


def _collectives(plan: Plan) -> dict[str, str]:
    groups = collective_groups(plan)
    return {name: ", ".join(collective_figures(group)) for name, group in groups.items()}


def _figures(before: Plan, after: Plan) -> tuple[Change, ...]:
    rows = (
        ("time", before.objective_ns, after.objective_ns, duration),
        ("compute", before.compute_ns, after.compute_ns, duration),
        ("communication", before.communication_ns, after.communication_ns, duration),
        ("bound", before.bound_ns, after.bound_ns, duration),
        ("peak memory", before.peak_bytes, after.peak_bytes, size),
    )
    return tuple(
        Change(name, unit(old), f"{unit(new)}  {change(old, new, unit)}")
        for name, old, new, unit in rows
        if old != new
    )
