"""`verify`: a plan's step compiled by XLA for the plan's own devices, which need not be here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from xshard.asked import Asked
from xshard.cost.cluster import Cluster
from xshard.errors import MeshError, VerifyError
from xshard.making import PlannedStep, built, traced_for
from xshard.plan.plan import Plan
from xshard.plan.units import mesh_text
from xshard.run.call import Arguments
from xshard.run.step import Runnable
from xshard.verify.step import audit_step
from xshard.verify.target import COMPILER_OPTIONS, devices_for, platform_of
from xshard.verify.verification import Memory, Verification


def verify(
    plan: Plan,
    fun: Callable[..., Any] | None = None,
    *avals: Any,
    cluster: str | Cluster | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (0,),
    static_argnums: int | Sequence[int] = (),
    compiler_options: Mapping[str, Any] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Predicted against compiled: peak memory and collectives of a plan's step.

    Compiles ahead of time, for NVIDIA GPUs and TPUs without having one (with the extras `aot-cuda`
    and `aot-tpu`), for "cpu" with as many virtual devices.

    Args:
      plan: from `xshard.plan`, or from a file.
      fun, avals: what it was planned for; not needed in the process that made the plan.
      cluster: the plan's, where its devices are not of a shipped table.
      in_specs, out_specs, donate_argnums, static_argnums: as given to `xshard.plan`.
      compiler_options: XLA's, beside those that compiling without a device needs.
      on_step: told what is being done.

    Raises:
      VerifyError: an extra is missing, or XLA fails to compile the step.
      PlanError: the plan does not belong to the function.
    """
    where = _cluster(plan, cluster)
    platform, step = platform_of(where), plan._step
    if fun is not None:
        on_step("tracing")
        asked = Asked(where, [plan.mesh], in_specs, out_specs)
        arguments = Arguments(fun, static_argnums, donate_argnums)
        step = traced_for(plan, asked, fun, avals, arguments)
    if not isinstance(step, PlannedStep):
        raise VerifyError(
            "this plan comes from a file, which does not hold the function; write "
            "verify(plan, train_step, state, batch), with arrays or shapes"
        )
    devices = devices_for(where).reshape(plan.mesh.sizes)
    mesh = Mesh(devices, plan.mesh.names, axis_types=(AxisType.Auto,) * devices.ndim)
    run = built(step.fun, plan, step.prepared, step.call, mesh, abstract=True)
    options = {**COMPILER_OPTIONS.get(platform, {}), **(compiler_options or {})}
    compiled, seconds = _compiled(run, step, platform, options, on_step)
    return Verification(
        cluster=plan.cluster,
        mesh=mesh_text(plan.mesh),
        platform=platform,
        predicted=predicted_memory(plan, step),
        compiled=Memory.of_compiled(compiled),
        audit=audit_step(plan, compiled.as_text() or "", platform),
        memory_limit=plan.memory_limit,
        seconds=seconds,
    )


def predicted_memory(plan: Plan, step: PlannedStep) -> Memory:
    """The plan's peak in XLA's parts."""
    request = step.prepared.request
    results = [v for v in request.traced.graph.outputs if v is not None]
    aliased = sum(
        result.local_bytes
        for v, result in zip(results, plan.results, strict=True)
        if request.ties.get(v) in request.donated
    )
    arguments = sum(a.local_bytes for a in plan.arguments)
    made = sum(r.local_bytes for r in plan.results)
    return Memory(arguments, made, aliased, plan.peak_bytes - arguments - made + aliased)


def _cluster(plan: Plan, given: str | Cluster | None) -> Cluster:
    if isinstance(given, Cluster):
        return given
    try:
        return Cluster.parse(given or plan.cluster)
    except MeshError as error:
        if given:
            raise
        raise VerifyError(
            f"the plan is for {plan.cluster}, which no shipped table describes: {error}; pass "
            "cluster=, as to xshard.plan"
        ) from error


def _compiled(
    run: Runnable, step: PlannedStep, platform: str, options: Mapping[str, Any],
    on_step: Callable[[str], None],
) -> tuple[Any, dict[str, float]]:  # fmt: skip
    """The compiled step, and the seconds that lowering and compiling took."""
    began = time.perf_counter()
    on_step("lowering")
    jitted: Any = run.jitted
    row = step.call.map(lambda arg: jax.tree.map(_shape, arg))
    lowered = jitted.trace(*run.lead, *row).lower(lowering_platforms=(platform,))
    lowered_at = time.perf_counter()
    on_step("compiling")
    try:
        compiled = lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        raise VerifyError(f"XLA cannot compile the step for {platform}: {error}") from error
    ended = time.perf_counter()
    return compiled, {"lowering": lowered_at - began, "compiling": ended - lowered_at}


def _shape(x: Any) -> Any:
    if not hasattr(x, "shape"):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=bool(getattr(x, "weak_type", False)))
