"""What the plans of all stages mean for a step: its times, transfers and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from xshard.cost.collectives import CollectiveModel
from xshard.mpmd.plan import PipelinePlan
from xshard.pipeline.solver import StagePlans
from xshard.schedules import Schedule, Times
from xshard.spec import MeshShape, num_shards
from xshard.stages.kinds import nbytes
from xshard.stages.staged import PER_MICROBATCH


def pipeline_plan(
    plans: StagePlans, schedule: Schedule, counts: Sequence[int], recomputed: Sequence[int]
) -> PipelinePlan:
    """What the plans of stages mean for a step."""
    tasks = plans.task_ns()
    once, peaks = [0] * schedule.num_groups, [0] * schedule.num_groups
    for stage, (group, made) in enumerate(zip(schedule.placement, plans.stages, strict=True)):
        once[group] += sum(tasks.get((stage, part), 0) for part in ("before", "after"))
        peaks[group] += made.plan.peak_bytes
    task_ns = {
        (s, part): tasks.get((s, part), 0)
        for s in range(schedule.num_stages)
        for part in schedule.parts
    }
    return PipelinePlan(
        schedule, tuple(counts), tuple(recomputed), plans.solver.mesh, str(plans.solver.cluster),
        Times(task_ns, _transfer_ns(plans)), tuple(once), tuple(peaks),
        {f"stage {s}": made.plan for s, made in enumerate(plans.stages)},
    )  # fmt: skip


def _local_bytes(plans: StagePlans) -> Callable[[int, int], int]:
    def local(value: int, group: int) -> int:
        spec = plans.specs.get((value, group))
        shards = num_shards(spec, plans.solver.mesh) if spec else 1
        return nbytes(plans.staged.avals[value]) // shards

    return local


def _transfer_ns(plans: StagePlans) -> dict[tuple[int, int], int]:
    """By neighbouring stages, the time of what they send to each other for a microbatch."""
    one, mesh, local = plans.solver.cluster, plans.solver.mesh, _local_bytes(plans)
    grown = {"hosts": 2 * one.hosts} if one.hosts > 1 else {
        "devices_per_host": 2 * one.devices_per_host}  # fmt: skip
    pair = MeshShape(("stages", *mesh.names), (2, *mesh.sizes))
    links = CollectiveModel(replace(one, **grown), pair)
    sent: defaultdict[tuple[int, int], int] = defaultdict(int)
    makers = plans.staged.makers
    for (value, target), source in plans.staged.transfers().items():
        if value in makers and makers[value].part in PER_MICROBATCH:
            sent[source, target] += local(value, plans.placement[source])
    return {
        pair: links.time_ns("permute", total, (0,))
        for pair, total in sent.items()
        if abs(pair[0] - pair[1]) == 1 and total
    }
