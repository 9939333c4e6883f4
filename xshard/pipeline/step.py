"""A step in pipeline stages: from a call to the pipeline that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from xshard.cost.cluster import Cluster
from xshard.errors import MeshError, PipelineError, PlanError
from xshard.ir.trace import Traced, trace
from xshard.microbatching import read_number, read_remat
from xshard.mpmd.layout import Layout, submeshes
from xshard.mpmd.measure import StepProfile, measured
from xshard.mpmd.runnable import MpmdRunnable
from xshard.mpmd.step import Pipeline
from xshard.pipeline.search import Best, PipelineSearch, donated_places, tied_places
from xshard.place import Place
from xshard.run.call import Arguments, Call
from xshard.run.hosts import confirm_text
from xshard.schedules import SCHEDULES
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape
from xshard.verify.audit import Audit


class PipelinedStep(ShardedStep):
    """A `ShardedStep` whose arguments lie on the groups of devices of a pipeline."""

    def profile(self, *args: Any, **kwargs: Any) -> StepProfile:
        """Runs a step as a call does (donating as it does) and measures its tasks.

        Its `result` is the step's; `trace(path)` writes the predicted and the measured step side by
        side. The first call with new shapes compiles, which is measured, too.
        """
        current: Any = self._runnable(self._arguments.call(args, kwargs))
        return measured(current.pipeline, current.plan, lambda: self(*args, **kwargs))

    def audit(self, *args: Any, **kwargs: Any) -> Audit:
        """See `ShardedStep.audit`: of all stages together; transfers between them are no part."""
        if args or kwargs:
            self._runnable(self._arguments.call(args, kwargs))
        current: Any = self._planned()
        return current.audit()

    def check(self, *args: Any, **kwargs: Any) -> Any:
        """Raises a PlanError: a pipeline is no one program."""
        raise PlanError(
            "step.check compares one program with another, and a pipeline is many; check the step "
            "with pipeline=1, or compare results with those of jax.jit"
        )

    def portable(self, state: Any) -> Any:
        """See `ShardedStep.portable`: from the stages' devices to all, which copies the state."""
        current: Any = self._planned()
        return current.portable(state)

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
    microbatches: int | str
    batch_axes: Any = None
    time_limit_s: float = 60.0
    memory_limit: int | None = None
    remat: str = "none"

    def __call__(self, call: Call) -> Any:
        """The pipeline for a call's shapes and static arguments.

        Raises:
          XshardError: the step cannot be cut so.
        """
        traced = trace(call.on_row(self.fun), call.row, call.static, call.labels)
        search = PipelineSearch(
            traced, donated_places(traced, call), self._devices, self.microbatches, self.schedule,
            self.batch_axes, self.memory_limit, self.time_limit_s, self.remat,
        )  # fmt: skip
        made = self._made(traced, call, search.best((self.groups,)))
        confirm_text(f"{made.plan.schedule}\n{made.plan.layers}\n{made.in_shardings}")
        return made

    def _made(self, traced: Traced, call: Call, best: Best) -> MpmdRunnable:
        meshes, stages = self._meshes(best.plan.schedule.num_groups), best.stages
        pipeline = Pipeline(
            stages.staged, best.plan.schedule, Layout(meshes, *stages.layout(meshes)),
            tied_places(traced), donated_places(traced, call),
            self.place.compiler_options(
                self.memory_limit, recomputes=any(best.plan.recomputed)
            ),
        )  # fmt: skip
        return MpmdRunnable(best.plan, traced, pipeline, {i: call.row[i] for i in call.static})

    def _devices(self, groups: int) -> list[tuple[MeshShape, Cluster]]:
        """The shape of a group's mesh, and its devices as a cluster."""
        first = self._meshes(groups)[0]
        shape = MeshShape(first.axis_names, first.devices.shape)
        return [(shape, replace(self.place, devices=first.devices).cluster)]

    def _meshes(self, groups: int) -> tuple[Mesh, ...]:
        return submeshes(self.place.devices, self.place.shapes[0].names, groups)


def refuse_unused(**options: Any) -> None:
    """Raises a PipelineError for an option, not None, that a pipeline would not heed."""
    for name, value in options.items():
        if value is not None:
            raise PipelineError(
                f"{name}={value!r} is not heeded by a pipeline; leave it out, or use pipeline=1"
            )


def pipelined(
    fun: Callable[..., Any], arguments: Arguments, place: Place, groups: int, schedule: str,
    microbatches: Any, batch_axes: Any, time_limit_s: float, memory_limit: int | None, remat: str,
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
    if place.explicit is not None:
        raise MeshError("a pipeline needs a mesh with Auto axes; make it with AxisType.Auto")
    submeshes(place.devices, place.shapes[0].names, groups)
    make = PipelineMaker(
        fun, place, groups, schedule, read_number(microbatches), batch_axes, time_limit_s,
        memory_limit, read_remat(remat),
    )  # fmt: skip
    return PipelinedStep(fun, arguments, make)
