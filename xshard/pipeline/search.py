"""Plans of pipelines: described, and chosen among numbers of stages and shapes of their meshes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.errors import InfeasibleError, PipelineError
from xshard.ir.trace import Traced
from xshard.microbatch.split import divided, found_axes, stated_axes
from xshard.mpmd.plan import PipelinePlan
from xshard.pipeline.boundaries import BoundarySearch
from xshard.pipeline.solver import StagePlans, StageSolver
from xshard.place import mesh_shapes
from xshard.run.call import Call
from xshard.schedules import Schedule, Times, build
from xshard.spec import MeshShape, num_shards
from xshard.stages.cut import Cuttable, cuttable
from xshard.stages.kinds import nbytes
from xshard.stages.staged import PER_MICROBATCH
from xshard.ties import ties_of


@dataclass(slots=True)
class PipelineSearch:
    """The search over numbers of stages and mesh shapes, for one schedule."""

    traced: Traced
    call: Call
    cluster: Cluster
    microbatches: int
    schedule: str = "1f1b"
    batch_axes: Any = None
    memory_limit: int | None = None
    time_limit_s: float = 60.0

    def best(self, stages: Sequence[int]) -> PipelinePlan:
        """The fastest plan with one of these numbers of stages.

        Raises:
          InfeasibleError: none fits the memory limit.
          PipelineError: the step has not so many layers.
        """
        found: list[PipelinePlan] = []
        errors: list[InfeasibleError] = []
        cut = cuttable_step(self.traced, self.microbatches, self.batch_axes, min(stages))
        for number in stages:
            if number > len(cut.units) and len(stages) > 1:
                continue
            for shape in mesh_shapes(self.cluster.num_devices // number):
                try:
                    found.append(self._one(cut, number, shape))
                except InfeasibleError as error:
                    errors.append(error)
        if not found:
            raise min(errors, key=lambda e: e.smallest_limit_bytes or 1 << 62)
        tried = ((f"{p.schedule.name} on {p.mesh}", p.schedule.num_stages, p.objective_ns)
                 for p in found)  # fmt: skip
        return replace(min(found, key=lambda p: p.objective_ns), trials=tuple(tried))

    def _one(self, cut: Cuttable, number: int, shape: MeshShape) -> PipelinePlan:
        schedule = build(self.schedule, number, self.microbatches)
        solver = StageSolver(
            shape, part_of(self.cluster, number), self.memory_limit, self.time_limit_s
        )
        search = BoundarySearch(
            cut, schedule, solver, tied_places(self.traced),
            donated_places(self.traced, self.call), self.traced.in_paths,
        )  # fmt: skip
        counts, plans = search.run()
        return pipeline_plan(plans, schedule, counts)


def part_of(cluster: Cluster, groups: int) -> Cluster:
    """The devices of one of so many equal groups of neighbours.

    Raises:
      PipelineError: there are none.
    """
    hosts, each = cluster.hosts, cluster.devices_per_host
    if hosts % groups == 0:
        return replace(cluster, hosts=hosts // groups)
    if groups % hosts == 0 and each % (groups // hosts) == 0:
        return replace(cluster, hosts=1, devices_per_host=each // (groups // hosts))
    raise PipelineError(
        f"the cluster {cluster} cannot be cut into {groups} equal groups of neighbouring devices"
    )


def read_stages(pipeline: Any, cluster: Cluster) -> list[int]:
    """The numbers of stages that an option means.

    Raises:
      PipelineError: it is neither a number from 1 on nor "auto", or the cluster cannot be cut so.
    """
    if pipeline == "auto":
        return numbers_of_stages(cluster)
    if type(pipeline) is not int or pipeline < 1:
        raise PipelineError(f'pipeline={pipeline!r} is no number of stages from 1 on, nor "auto"')
    part_of(cluster, pipeline)
    return [pipeline]


def numbers_of_stages(cluster: Cluster) -> list[int]:
    """More than one, into which a cluster can be cut."""
    found: list[int] = []
    for n in range(2, cluster.num_devices + 1):
        try:
            part_of(cluster, n)
        except PipelineError:
            continue
        found.append(n)
    return found


def cuttable_step(traced: Traced, microbatches: int, batch_axes: Any, least: int) -> Cuttable:
    """The step in so many microbatches, with at least so many units if it can be cut into them."""
    if batch_axes is not None:
        axes = stated_axes(traced, batch_axes)
    else:
        state = set(ties_of(traced).values())
        held = (i for i, v in enumerate(traced.graph.inputs) if v in state)
        axes = found_axes(traced, frozenset(held))
    looped = divided(traced, axes).looped(microbatches)
    return cuttable(looped.closed_jaxpr, microbatches, least)


def tied_places(traced: Traced) -> dict[int, int]:
    """Result -> the argument whose next value it is, by position."""
    ties, place = ties_of(traced), {v: i for i, v in enumerate(traced.graph.inputs)}
    return {i: place[ties[v]] for i, v in enumerate(traced.graph.outputs) if v in ties}


def donated_places(traced: Traced, call: Call) -> frozenset[int]:
    """Positions of the flat arguments that may be reused."""
    dynamic = [i for i in range(len(call.row)) if i not in call.static]
    flags = [
        i in call.donated
        for i, tree in zip(dynamic, traced.in_tree.children(), strict=True)
        for _ in range(tree.num_leaves)
    ]
    return frozenset(k for k, flag in enumerate(flags) if flag)


def pipeline_plan(plans: StagePlans, schedule: Schedule, counts: Sequence[int]) -> PipelinePlan:
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
        schedule, tuple(counts), plans.solver.mesh, str(plans.solver.cluster),
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
