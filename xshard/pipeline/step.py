"""A step in pipeline stages: from a call to the pipeline that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh

from xshard import garbage
from xshard.cost.cluster import Cluster
from xshard.errors import InfeasibleError, MeshError, PipelineError, PlanError
from xshard.ir.trace import Traced, trace
from xshard.microbatching import read_number, read_remat
from xshard.mpmd.layout import submeshes
from xshard.mpmd.measure import StepProfile, measured
from xshard.mpmd.plan import PipelinePlan, PipelineTrial
from xshard.mpmd.runnable import MpmdRunnable
from xshard.pipeline.pinned import pinned
from xshard.pipeline.planned import PlannedPipeline, planned_for
from xshard.pipeline.search import Pins, PipelineSearch, donated_places
from xshard.place import Place, mesh_shapes
from xshard.run.call import Call
from xshard.run.fit import within_limit
from xshard.run.hosts import confirm_text
from xshard.schedules import SCHEDULES
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape
from xshard.verify.audit import Audit


class PipelinedStep(ShardedStep):
    """A `ShardedStep` whose arguments may lie on the groups of devices of a pipeline."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one step; in a traced function it is the function itself, without stages."""
        in_stages = self._current is None or isinstance(self._current, MpmdRunnable)
        if in_stages and any(isinstance(x, Tracer) for x in jax.tree.leaves((args, kwargs))):
            return self._fun(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def profile(self, *args: Any, **kwargs: Any) -> StepProfile:
        """Runs a step as a call does (donating as it does) and measures its tasks.

        Its `result` is the step's; `trace(path)` writes the predicted and the measured step side by
        side. The first call with new shapes compiles, which is measured, too.
        """
        current: Any = self._runnable(self._arguments.call(args, kwargs))
        if not isinstance(current, MpmdRunnable):
            raise PlanError("the step runs as one program, without stages to measure")
        return measured(current.pipeline, current.plan, lambda: self(*args, **kwargs))

    def audit(self, *args: Any, **kwargs: Any) -> Audit:
        """See `ShardedStep.audit`: of all stages together; transfers between them are no part."""
        if args or kwargs:
            self._runnable(self._arguments.call(args, kwargs))
        current: Any = self._planned()
        if not isinstance(current, MpmdRunnable):
            return super().audit()
        return current.audit()

    def check(self, *args: Any, **kwargs: Any) -> Any:
        """As `ShardedStep.check`; raises a PlanError in stages, which are no one program."""
        if not isinstance(self._runnable(self._arguments.call(args, kwargs)), MpmdRunnable):
            return super().check(*args, **kwargs)
        raise PlanError(
            "step.check compares one program with another, and a pipeline is many; check the step "
            "with pipeline=1, or compare results with those of jax.jit"
        )

    def portable(self, state: Any) -> Any:
        """See `ShardedStep.portable`: from the stages' devices to all, which copies the state."""
        current: Any = self._planned()
        if not isinstance(current, MpmdRunnable):
            return super().portable(state)
        return current.portable(state)

    def _placed(self, current: Any, call: Call) -> tuple[Any, ...]:
        if not isinstance(current, MpmdRunnable):
            return super()._placed(current, call)
        return current.placed(call.row)

    def _created(self, init_fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        current: Any = self._planned()
        if not isinstance(current, MpmdRunnable):
            return super()._created(init_fn, args)
        return current.create(init_fn, args)


@dataclass(slots=True)
class PipelineMaker:
    """Makes the pipeline of each call that is unlike those before.

    Attributes:
      groups: of devices, which the place is cut into; or "auto".
      schedule: a name in `SCHEDULES`, or "auto".
      given: the user's plan, used instead of planning.
      in_specs, out_specs: as of `auto_shard`.
    """

    fun: Callable[..., Any]
    place: Place
    groups: Any
    schedule: str
    microbatches: int | str
    batch_axes: Any = None
    time_limit_s: float = 60.0
    memory_limit: int | None = None
    remat: str = "none"
    given: PipelinePlan | None = None
    in_specs: Any = None
    out_specs: Any = None

    def __call__(self, call: Call) -> Any:
        """The pipeline for a call's shapes and static arguments.

        Raises:
          XshardError: the step cannot be cut so.
        """
        if self.given is not None:
            return self._from(self.given, call)
        with garbage.kept():
            return self.fitting(call, self.search(call), (self.groups,))

    def _from(self, plan: PipelinePlan, call: Call) -> MpmdRunnable:
        """The pipeline of a plan that was made before.

        Raises:
          PlanError: it is for something else.
        """
        traced = trace(call.on_row(self.fun), call.row, call.static, call.labels)
        groups = plan.schedule.num_groups
        cluster = replace(self.place, devices=self._meshes(groups)[0].devices).cluster
        if (str(cluster), cluster.num_devices) != (plan.cluster, plan.mesh.num_devices):
            raise PlanError(
                f"the pipeline's plan is for groups of {plan.cluster}, and those here are "
                f"{cluster}; plan again for these devices"
            )
        pins = self._pins(traced, call)(plan.mesh)
        planned = planned_for(plan, traced, call, cluster, pins, self.batch_axes)
        return self._runnable(plan, planned, call)

    def search(self, call: Call, below: float = inf) -> PipelineSearch:
        """The search for a call's plan, which has not looked at anything yet."""
        traced = trace(call.on_row(self.fun), call.row, call.static, call.labels)
        return PipelineSearch(
            traced, donated_places(traced, call), self._devices, self.microbatches, self.schedule,
            self.batch_axes, self.memory_limit, self.time_limit_s, self.remat, below,
            self._pins(traced, call),
        )  # fmt: skip

    def _pins(self, traced: Traced, call: Call) -> Pins:
        return lambda mesh: pinned(traced, call, mesh, self.in_specs, self.out_specs)

    def fitting(
        self, call: Call, search: PipelineSearch, groups: Sequence[int],
        trials: tuple[PipelineTrial, ...] = (),
    ) -> MpmdRunnable:  # fmt: skip
        """The best pipeline over one of these numbers of groups that keeps the limit as compiled.

        Args:
          search: which may have looked at them within the limit.
          trials: what else was looked at.

        Raises:
          InfeasibleError: there is none.
        """
        if search.found is None:
            search.best(groups)
        limit = self.memory_limit
        if limit is None:
            return self.made(call, search, trials)

        def within(target: int) -> MpmdRunnable:
            under = search
            if target != limit:
                under = search.under(target)
                try:
                    under.best(groups)
                except InfeasibleError as error:
                    raise InfeasibleError(str(error)) from error
            return self.made(call, under, trials)

        return within_limit(
            within, call, limit, self.time_limit_s, lambda made, _: made.compiled_bytes()
        )

    def made(
        self, call: Call, search: PipelineSearch, trials: tuple[PipelineTrial, ...] = ()
    ) -> MpmdRunnable:
        """The best pipeline of a search; `trials`: what else was looked at."""
        plan = search.plan()
        plan = replace(plan, trials=(*trials, *plan.trials))
        assert search.found is not None
        planned = PlannedPipeline(search.traced, search.found.stages, search.donated)
        return self._runnable(plan, planned, call)

    def _runnable(self, plan: PipelinePlan, planned: PlannedPipeline, call: Call) -> MpmdRunnable:
        meshes = self._meshes(plan.schedule.num_groups, plan.mesh)
        options = self.place.compiler_options(self.memory_limit, recomputes=any(plan.recomputed))
        pipeline, static = planned.on(plan, meshes, options), {i: call.row[i] for i in call.static}
        made = MpmdRunnable(plan, planned.traced, pipeline, static)
        confirm_text(f"{plan.schedule}\n{plan.layers}\n{made.in_shardings}")
        return made

    def numbers(self) -> list[int]:
        """Of groups, more than one, into which the devices can be cut."""
        found: list[int] = []
        for n in range(2, self.place.devices.size + 1):
            try:
                self._meshes(n)
            except MeshError:
                continue
            found.append(n)
        return found

    def _devices(self, groups: int) -> list[tuple[MeshShape, Cluster]]:
        """The shapes of a group's mesh, and its devices as a cluster.

        Groups work at the same time, so where devices share cores they share them with all.
        """
        first = self._meshes(groups)[0]
        group = replace(self.place, devices=first.devices).cluster
        cluster = replace(group, device=self.place.cluster.device)
        if len(self.place.shapes) > 1:
            return [(shape, cluster) for shape in mesh_shapes(first.devices.size)]
        return [(MeshShape(first.axis_names, first.devices.shape), cluster)]

    def _meshes(self, groups: int, shape: MeshShape | None = None) -> tuple[Mesh, ...]:
        """Equal parts of the place, in their own shape or in another."""
        found = submeshes(self.place.devices, self.place.shapes[0].names, groups)
        if shape is None:
            return found
        kinds = (AxisType.Auto,) * len(shape.names)
        return tuple(
            Mesh(mesh.devices.reshape(shape.sizes), shape.names, axis_types=kinds) for mesh in found
        )


def refuse_unused(**options: Any) -> None:
    """Raises a PipelineError for an option, not None, that a pipeline would not heed."""
    for name, value in options.items():
        if value is not None:
            raise PipelineError(
                f"{name}={value!r} is not heeded by a pipeline; leave it out, or use pipeline=1"
            )


def stages_of(plan: PipelinePlan | None, groups: Any, schedule: str, microbatches: Any) -> Any:
    """The groups of devices that are asked for: those of a plan, if one is given.

    Raises:
      PlanError: the options contradict the plan.
    """
    if plan is None:
        return groups
    have = {"pipeline": plan.schedule.num_groups, "schedule": plan.schedule.name,
            "microbatches": plan.microbatches}  # fmt: skip
    asked = {"pipeline": groups, "schedule": schedule, "microbatches": microbatches}
    for name, value in asked.items():
        if value not in (1, "auto", have[name]):
            raise PlanError(
                f"the plan is for {name}={have[name]!r}, not {value!r}; leave the option out, or "
                "plan again"
            )
    return have["pipeline"]


def pipeline_maker(
    fun: Callable[..., Any], place: Place, groups: Any, schedule: str, microbatches: Any,
    batch_axes: Any, time_limit_s: float, memory_limit: int | None, remat: str,
    given: PipelinePlan | None = None, in_specs: Any = None, out_specs: Any = None,
) -> PipelineMaker:  # fmt: skip
    """Makes the step as a pipeline over groups of a place's devices.

    Raises:
      PipelineError: an option is not what it may be.
      MeshError: the devices cannot be cut into so many groups.
    """
    if groups != "auto" and (type(groups) is not int or groups < 1):
        raise PipelineError(
            f'pipeline={groups!r} is no number of groups of devices from 1 on, nor "auto"'
        )
    if schedule != "auto" and schedule not in SCHEDULES:
        known = ", ".join(map(repr, SCHEDULES))
        raise PipelineError(f"schedule={schedule!r} is unknown; use 'auto' or one of {known}")
    if place.explicit is not None:
        raise MeshError("a pipeline needs a mesh with Auto axes; make it with AxisType.Auto")
    if groups != "auto":
        submeshes(place.devices, place.shapes[0].names, groups)
    return PipelineMaker(
        fun, place, groups, schedule, read_number(microbatches), batch_axes, time_limit_s,
        memory_limit, read_remat(remat), given, in_specs, out_specs,
    )  # fmt: skip
