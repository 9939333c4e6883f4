"""`verify` for plans of one program and of stages, from this process or from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from xshard.asked import Asked
from xshard.cost.cluster import Cluster
from xshard.errors import MeshError, VerifyError
from xshard.ir.trace import trace
from xshard.making import traced_for
from xshard.mpmd.plan import PipelinePlan
from xshard.pipeline.groups import part_of
from xshard.pipeline.pinned import pinned
from xshard.pipeline.planned import PlannedPipeline, planned_for
from xshard.plan.plan import Plan
from xshard.proof import one, stages
from xshard.proof.target import Target
from xshard.replan import PlannedStep
from xshard.run.call import Arguments
from xshard.verify.stages import PipelineVerification
from xshard.verify.verification import Verification


@overload
def verify(plan: Plan, *args: Any, **options: Any) -> Verification: ...
@overload
def verify(plan: PipelinePlan, *args: Any, **options: Any) -> PipelineVerification: ...


def verify(
    plan: Plan | PipelinePlan,
    fun: Callable[..., Any] | None = None,
    *avals: Any,
    cluster: str | Cluster | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (0,),
    static_argnums: int | Sequence[int] = (),
    batch_axes: Any = None,
    compiler_options: Mapping[str, Any] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification | PipelineVerification:
    """Predicted against compiled: peak memory and collectives of a plan's step.

    Compiles ahead of time, for NVIDIA GPUs and TPUs without having one (with the extras `aot-cuda`
    and `aot-tpu`), for "cpu" with as many virtual devices. Of a pipeline, every program of every
    stage is compiled, equal ones once.

    Args:
      plan: from `xshard.plan` or `xshard.plan_pipeline`, or from a file.
      fun, avals: what it was planned for; not needed in the process that made the plan.
      cluster: the one planned for, where its devices are not of a shipped table.
      in_specs, out_specs, donate_argnums, static_argnums: as given to `xshard.plan`.
      batch_axes: as given to `xshard.plan_pipeline`; the plan of one program knows them.
      compiler_options: XLA's, beside those that compiling without a device needs.
      on_step: told what is being done.

    Raises:
      VerifyError: an extra is missing, or XLA fails to compile the step.
      PlanError: the plan does not belong to the function.
    """
    where = _cluster(plan, cluster)
    target, step = Target.of(where, plan.mesh, compiler_options), plan._step
    if fun is not None:
        on_step("tracing")
        arguments = Arguments(fun, static_argnums, donate_argnums)
        if isinstance(plan, PipelinePlan):
            call = arguments.call(avals, {})
            traced = trace(fun, avals, call.static)
            pins = pinned(traced, call, plan.mesh, in_specs, out_specs)
            step = planned_for(plan, traced, call, where, pins, batch_axes)
        else:
            asked = Asked(where, [plan.mesh], in_specs, out_specs)
            step = traced_for(plan, asked, fun, avals, arguments)
    if isinstance(plan, PipelinePlan) and isinstance(step, PlannedPipeline):
        return stages.verified(plan, step, target, on_step)
    if isinstance(plan, Plan) and isinstance(step, PlannedStep):
        return one.verified(plan, step, target, on_step)
    raise VerifyError(
        "this plan comes from a file, which does not hold the function; write "
        "verify(plan, train_step, state, batch), with arrays or shapes"
    )


def _cluster(plan: Plan | PipelinePlan, given: str | Cluster | None) -> Cluster:
    """The devices of the mesh: of a pipeline, those of one of its groups."""
    try:
        found = Cluster.parse(given or plan.cluster) if not isinstance(given, Cluster) else given
    except MeshError as error:
        if given:
            raise
        raise VerifyError(
            f"the plan is for {plan.cluster}, which no shipped table describes: {error}; pass "
            "cluster=, as it was planned for"
        ) from error
    if given is not None and isinstance(plan, PipelinePlan):
        return part_of(found, plan.schedule.num_groups)
    return found
