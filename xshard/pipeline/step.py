"""A step in pipeline stages: from a call to the pipeline that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.errors import MeshError, PipelineError
from xshard.ir.trace import Traced, trace
from xshard.mpmd.layout import Layout, submeshes
from xshard.mpmd.measure import StepProfile, measured
from xshard.mpmd.runnable import MpmdRunnable
from xshard.mpmd.step import Pipeline
from xshard.pipeline.boundaries import BoundarySearch
from xshard.pipeline.search import cuttable_step, donated_places, pipeline_plan, tied_places
from xshard.pipeline.solver import StageSolver
from xshard.place import Place
from xshard.run.call import Arguments, Call
from xshard.run.hosts import confirm_text
from xshard.schedules import SCHEDULES, build
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape
from xshard.stages.cut import Cuttable

AUTO = ("1f1b", "interleaved", "zero_bubble")
"""The schedules that "auto" looks at; GPipe takes as long as 1F1B, and holds more."""
CHUNKS = 2
"""Stages on each group under "interleaved"."""


class PipelinedStep(ShardedStep):
    """A `ShardedStep` whose arguments lie on the groups of devices of a pipeline."""

    def profile(self, *args: Any, **kwargs: Any) -> StepProfile:
        """Runs a step as a call does (donating as it does) and measures its tasks.

        Its `result` is the step's; `trace(path)` writes the predicted and the measured step side by
        side. The first call with new shapes compiles, which is measured, too.
        """
        current: Any = self._runnable(self._arguments.call(args, kwargs))
        return measured(current.pipeline, current.plan, lambda: self(*args, **kwargs))

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
        cut = cuttable_step(traced, self.microbatches, self.batch_axes, self.groups)
        made = [self._made(traced, call, cut, *which) for which in self._schedules(cut)]
        best = min(made, key=lambda m: m.plan.objective_ns)
        trials = [(p.schedule.name, p.schedule.num_stages, p.objective_ns) for p in
                  (m.plan for m in made)]  # fmt: skip
        confirm_text(f"{best.plan.schedule}\n{best.plan.layers}\n{best.in_shardings}")
        return replace(best, plan=replace(best.plan, trials=tuple(trials)))

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
        ties, donated = tied_places(traced), donated_places(traced, call)
        solver = StageSolver(shape, cluster, limit, self.time_limit_s)
        search = BoundarySearch(cut, schedule, solver, ties, donated, traced.in_paths)
        counts, plans = search.run()
        pipeline = Pipeline(
            plans.staged, schedule, Layout(meshes, *plans.layout(meshes)), ties, donated,
            self.place.compiler_options(self.memory_limit),
        )  # fmt: skip
        plan = pipeline_plan(plans, schedule, counts)
        return MpmdRunnable(plan, traced, pipeline, {i: call.row[i] for i in call.static})

    def _devices(self) -> tuple[Any, MeshShape, Cluster]:
        """The groups' meshes, the shape of each, and the devices of one as a cluster."""
        named = self.place.shapes[0].names
        meshes = submeshes(self.place.devices, named, self.groups)
        shape = MeshShape(meshes[0].axis_names, meshes[0].devices.shape)
        return meshes, shape, replace(self.place, devices=meshes[0].devices).cluster


def refuse_unused(**options: Any) -> None:
    """Raises a PipelineError for an option, not None, that a pipeline would not heed."""
    for name, value in options.items():
        if value is not None:
            raise PipelineError(
                f"{name}={value!r} is not heeded by a pipeline; leave it out, or use pipeline=1"
            )


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
