"""A step in pipeline stages: from a call to the pipeline that serves it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.errors import MeshError, PipelineError
from xshard.ir.trace import Traced, trace
from xshard.microbatch.split import divided, found_axes, stated_axes
from xshard.mpmd.layout import Layout, submeshes
from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.runnable import MpmdRunnable
from xshard.mpmd.step import Pipeline
from xshard.mpmd.tape import Send, Tape
from xshard.place import Place
from xshard.run.call import Arguments, Call
from xshard.schedules import SCHEDULES, Schedule, Times, build
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape, num_shards
from xshard.stage_search import BoundarySearch
from xshard.stage_solver import StagePlans, StageSolver
from xshard.stages.cut import Cuttable, cuttable
from xshard.stages.kinds import nbytes
from xshard.stages.staged import Staged
from xshard.ties import ties_of

AUTO = ("1f1b", "interleaved", "zero_bubble")
"""The schedules that "auto" looks at; GPipe takes as long as 1F1B, and holds more."""
CHUNKS = 2
"""Stages on each group under "interleaved"."""


class PipelinedStep(ShardedStep):
    """A `ShardedStep` whose arguments lie on the groups of devices of a pipeline."""

    def _placed(self, current: Any, call: Call) -> tuple[Any, ...]:
        return current.placed(call.row)

    def _created(self, init_fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        current: Any = self._planned()
        return current.create(init_fn, args)


@dataclass(slots=True)
class PipelineMaker:
    """Makes the pipeline of each call that is unlike those before.

    Attributes:
      groups: of devices, which the place is cut into.
      schedule: a name in `SCHEDULES`, or "auto".
    """

    fun: Callable[..., Any]
    place: Place
    groups: int
    schedule: str
    microbatches: int
    batch_axes: Any = None
    time_limit_s: float = 60.0
    memory_limit: int | None = None

    def __call__(self, call: Call) -> Any:
        """The pipeline for a call's shapes and static arguments.

        Raises:
          XshardError: the step cannot be cut so.
        """
        traced = trace(call.on_row(self.fun), call.row, call.static, call.labels)
        cut = self._cuttable(traced)
        made = [self._made(traced, call, cut, *which) for which in self._schedules(cut)]
        best = min(made, key=lambda m: m.plan.objective_ns)
        trials = [(p.schedule.name, p.schedule.num_stages, p.objective_ns) for p in
                  (m.plan for m in made)]  # fmt: skip
        return replace(best, plan=replace(best.plan, trials=tuple(trials)))

    def _cuttable(self, traced: Traced) -> Cuttable:
        if self.batch_axes is not None:
            axes = stated_axes(traced, self.batch_axes)
        else:
            state = set(ties_of(traced).values())
            held = (i for i, v in enumerate(traced.graph.inputs) if v in state)
            axes = found_axes(traced, frozenset(held))
        looped = divided(traced, axes).looped(self.microbatches)
        return cuttable(looped.closed_jaxpr, self.microbatches, self.groups)

    def _schedules(self, cut: Cuttable) -> list[tuple[str, int]]:
        """(name, stages on each group) of what is looked at."""
        if self.schedule != "auto":
            return [(self.schedule, CHUNKS if self.schedule == "interleaved" else 1)]
        chunks = CHUNKS if len(cut.units) >= CHUNKS * self.groups and self.groups > 1 else 0
        found = [(name, chunks if name == "interleaved" else 1) for name in AUTO]
        return [(name, n) for name, n in found if n]

    def _made(
        self, traced: Traced, call: Call, cut: Cuttable, name: str, chunks: int
    ) -> MpmdRunnable:
        schedule = build(name, self.groups, self.microbatches, chunks)
        meshes, shape, cluster = self._devices()
        limit = self.memory_limit and self.memory_limit // chunks
        ties, donated = _ties(traced), _donated(traced, call)
        solver = StageSolver(shape, cluster, limit, self.time_limit_s)
        search = BoundarySearch(cut, schedule, solver, ties, donated, traced.in_paths)
        counts, plans = search.run()
        pipeline = Pipeline(
            plans.staged, schedule, Layout(meshes, *plans.layout(meshes)), ties, donated,
            self.place.compiler_options(self.memory_limit),
        )  # fmt: skip
        plan = _plan(plans.staged, schedule, counts, plans, pipeline.tape, str(cluster))
        return MpmdRunnable(plan, traced, pipeline, {i: call.row[i] for i in call.static})

    def _devices(self) -> tuple[Any, MeshShape, Cluster]:
        """The groups' meshes, the shape of each, and the devices of one as a cluster."""
        named = self.place.shapes[0].names
        meshes = submeshes(self.place.devices, named, self.groups)
        shape = MeshShape(meshes[0].axis_names, meshes[0].devices.shape)
        return meshes, shape, replace(self.place, devices=meshes[0].devices).cluster


def pipelined(
    fun: Callable[..., Any], arguments: Arguments, place: Place, groups: int, schedule: str,
    microbatches: Any, batch_axes: Any, time_limit_s: float, memory_limit: int | None,
) -> PipelinedStep:  # fmt: skip
    """The step as a pipeline over groups of a place's devices.

    Raises:
      PipelineError: an option is not what it may be.
      MeshError: the devices cannot be cut into so many groups.
    """
    if type(groups) is not int or groups < 1:
        raise PipelineError(f"pipeline={groups!r} is no number of groups of devices from 1 on")
    if schedule != "auto" and schedule not in SCHEDULES:
        known = ", ".join(map(repr, SCHEDULES))
        raise PipelineError(f"schedule={schedule!r} is unknown; use 'auto' or one of {known}")
    if type(microbatches) is not int:
        raise PipelineError(
            f"a pipeline needs a number of microbatches, not {microbatches!r}; "
            "four for each group of devices keep them busy"
        )
    if place.explicit is not None:
        raise MeshError("a pipeline needs a mesh with Auto axes; make it with AxisType.Auto")
    submeshes(place.devices, place.shapes[0].names, groups)
    make = PipelineMaker(
        fun, place, groups, schedule, microbatches, batch_axes, time_limit_s, memory_limit
    )
    return PipelinedStep(fun, arguments, make)


def _ties(traced: Traced) -> dict[int, int]:
    """Result -> the argument whose next value it is, by position."""
    ties, place = ties_of(traced), {v: i for i, v in enumerate(traced.graph.inputs)}
    return {i: place[ties[v]] for i, v in enumerate(traced.graph.outputs) if v in ties}


def _donated(traced: Traced, call: Call) -> frozenset[int]:
    """Positions of the flat arguments that may be reused."""
    dynamic = [i for i in range(len(call.row)) if i not in call.static]
    flags = [
        i in call.donated
        for i, tree in zip(dynamic, traced.in_tree.children(), strict=True)
        for _ in range(tree.num_leaves)
    ]
    return frozenset(k for k, flag in enumerate(flags) if flag)


def _plan(
    staged: Staged, schedule: Schedule, layers: Sequence[int], plans: StagePlans, tape: Tape,
    cluster: str,
) -> PipelinePlan:  # fmt: skip
    tasks = plans.task_ns()
    once = [
        sum(tasks.get((s, part), 0) for s, g in enumerate(schedule.placement) if g == group
            for part in ("before", "after"))
        for group in range(schedule.num_groups)
    ]  # fmt: skip
    task_ns = {
        (s, part): tasks.get((s, part), 0)
        for s in range(schedule.num_stages)
        for part in schedule.parts
    }
    local = _local_bytes(staged, plans)
    peaks = [0] * schedule.num_groups
    for stage, made in enumerate(plans.stages):
        peaks[schedule.placement[stage]] += made.plan.peak_bytes
    return PipelinePlan(
        schedule, tuple(layers), plans.solver.mesh, cluster,
        Times(task_ns, _transfer_ns(staged, plans, tape, local)), tuple(once), tuple(peaks),
        {f"stage {s}": made.plan for s, made in enumerate(plans.stages)},
    )  # fmt: skip


def _local_bytes(staged: Staged, plans: StagePlans) -> Callable[[int, int], int]:
    def local(value: int, group: int) -> int:
        spec = plans.specs.get((value, group))
        shards = num_shards(spec, plans.solver.mesh) if spec else 1
        return nbytes(staged.avals[value]) // shards

    return local


def _transfer_ns(
    staged: Staged, plans: StagePlans, tape: Tape, local: Callable[[int, int], int]
) -> dict[tuple[int, int], int]:
    """By neighbouring stages, the time of what they send to each other for a microbatch."""
    one = plans.solver.cluster
    grown = {"hosts": 2 * one.hosts} if one.hosts > 1 else {
        "devices_per_host": 2 * one.devices_per_host}  # fmt: skip
    pair = replace(one, **grown)
    links = CollectiveModel(
        pair, MeshShape(("stages", *plans.solver.mesh.names), (2, *plans.solver.mesh.sizes))
    )
    sent: defaultdict[tuple[int, int], int] = defaultdict(int)
    for action in tape.actions:
        if isinstance(action, Send) and action.microbatch == 0:
            nbytes_sent = sum(local(v, action.source) for v in action.values)
            sent[action.source, action.target] += nbytes_sent
    placement = plans.placement
    stages = range(staged.num_stages)
    return {
        (s, t): links.time_ns("permute", sent[placement[s], placement[t]], (0,))
        for s in stages
        for t in (s - 1, s + 1)
        if t in stages and sent[placement[s], placement[t]]
    }
