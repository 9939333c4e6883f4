"""A plan of one program, compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from xshard.making import built
from xshard.plan.plan import Plan
from xshard.plan.units import mesh_text
from xshard.proof.target import Target
from xshard.replan import PlannedStep
from xshard.verify.step import audit_step
from xshard.verify.verification import Memory, Verification


def verified(
    plan: Plan, step: PlannedStep, target: Target, on_step: Callable[[str], None]
) -> Verification:
    """The plan against what XLA makes of its step."""
    run = built(step.fun, plan, step.prepared, step.call, target.mesh, abstract=True)
    began = time.perf_counter()
    on_step("lowering")
    jitted: Any = run.jitted
    row = step.call.map(lambda arg: jax.tree.map(_shape, arg))
    lowered = jitted.trace(*run.lead, *row).lower(lowering_platforms=(target.platform,))
    lowered_at = time.perf_counter()
    on_step("compiling")
    compiled = target.compiled(lowered)
    ended = time.perf_counter()
    return Verification(
        cluster=plan.cluster,
        mesh=mesh_text(plan.mesh),
        platform=target.platform,
        predicted=predicted_memory(plan, step),
        compiled=Memory.of_compiled(compiled),
        audit=audit_step(plan, compiled.as_text() or "", target.platform),
        memory_limit=plan.memory_limit,
        seconds={"lowering": lowered_at - began, "compiling": ended - lowered_at},
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


def _shape(x: Any) -> Any:
    if not hasattr(x, "shape"):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=bool(getattr(x, "weak_type", False)))
