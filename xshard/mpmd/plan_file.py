"""Plans of pipelines as JSON: the schedule, the times, and the plan of each stage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

from xshard.errors import PlanError, ScheduleError
from xshard.mpmd.plan import PipelinePlan, PipelineTrial
from xshard.plan import store
from xshard.plan.decode import Mismatch, decode, encode
from xshard.plan.plan import Plan
from xshard.plan.store import UNSAVED, plan_of, record_of, refused, text_of
from xshard.schedules import Schedule, Times, check
from xshard.spec import MeshShape

SCHEMA = "xshard.pipeline"
VERSION = 1


@dataclass(frozen=True, slots=True)
class _Task:
    stage: int
    part: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class _Transfer:
    source: int
    target: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class _Saved:
    """A `PipelinePlan` without the plans of its stages, in types that `decode` checks."""

    schedule: Schedule
    layers: tuple[int, ...]
    recomputed: tuple[int, ...]
    mesh: MeshShape
    cluster: str
    tasks: tuple[_Task, ...]
    transfers: tuple[_Transfer, ...]
    once_ns: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    trials: tuple[PipelineTrial, ...]
    bound_ns: int


def to_json(plan: PipelinePlan) -> str:
    """The plan as JSON text: the same plan gives the same bytes."""
    times = plan.times
    saved = _Saved(
        plan.schedule, plan.layers, plan.recomputed, plan.mesh, plan.cluster,
        tuple(_Task(s, part, ns) for (s, part), ns in sorted(times.task_ns.items())),
        tuple(_Transfer(a, b, ns) for (a, b), ns in sorted(times.transfer_ns.items())),
        plan.once_ns, plan.peak_bytes, plan.trials, plan.bound_ns,
    )  # fmt: skip
    record = cast("dict[str, Any]", encode(saved))
    stages = [encode(stage, UNSAVED) for stage in plan.programs.values()]
    return text_of({**record, "stages": stages}, SCHEMA, VERSION)


def from_json(text: str, name: str = "the plan") -> PipelinePlan:
    """Reads what `to_json` wrote; `name` says in errors what is read.

    Raises:
      PlanError: the text is truncated, foreign, of another version, or a field is wrong.
    """
    record = record_of(text, name, SCHEMA, VERSION)
    with refused(name):
        stages = record.pop("stages", None)
        if not isinstance(stages, list):
            raise Mismatch("field stages must be a list")
        plans = [plan_of(stage, f"stages[{i}]") for i, stage in enumerate(stages)]
        return _checked(decode(_Saved, record, ""), plans)
    raise PlanError(name)


def load_any(path: str | os.PathLike[str]) -> Plan | PipelinePlan:
    """The plan of one program or of a pipeline in a file.

    Raises:
      PlanError: there is no such file, or it holds neither.
    """
    text, name = store.text_in(path)
    is_pipeline = f'"schema": "{SCHEMA}"' in text
    return from_json(text, name) if is_pipeline else store.from_json(text, name)


def _checked(saved: _Saved, plans: list[Plan]) -> PipelinePlan:
    try:
        schedule = check(saved.schedule)
    except (ScheduleError, IndexError) as error:
        raise Mismatch(f"field schedule: {error}") from None
    groups = {"once_ns": saved.once_ns, "peak_bytes": saved.peak_bytes}
    stages = {"layers": saved.layers, "recomputed": saved.recomputed, "stages": plans}
    wanted = dict.fromkeys(groups, schedule.num_groups) | dict.fromkeys(stages, schedule.num_stages)
    for name, values in (groups | stages).items():
        if len(values) != wanted[name]:
            raise Mismatch(f"field {name} must have {wanted[name]} entries, and has {len(values)}")
    if min(saved.layers) < 1 or min(saved.recomputed) < 0:
        raise Mismatch("field layers or recomputed has a number that is too small")
    tasks = {(t.stage, t.part): t.time_ns for t in saved.tasks}
    missing = [(s, p) for s in range(schedule.num_stages) for p in schedule.parts
               if (s, p) not in tasks]  # fmt: skip
    if missing:
        raise Mismatch("field tasks lacks {1} of stage {0}".format(*missing[0]))
    transfers = {(t.source, t.target): t.time_ns for t in saved.transfers}
    return PipelinePlan(
        schedule, saved.layers, saved.recomputed, saved.mesh, saved.cluster,
        Times(tasks, transfers), saved.once_ns, saved.peak_bytes,
        {f"stage {s}": plan for s, plan in enumerate(plans)}, saved.trials, saved.bound_ns,
    )  # fmt: skip
