"""The public functions: `auto_shard` runs, `plan` only plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from xshard import garbage
from xshard.asked import Asked
from xshard.cost.cluster import Cluster
from xshard.cost.store import CostDb, known
from xshard.errors import PlanError, TraceError
from xshard.ir.trace import trace
from xshard.making import Maker, candidates_of, steps
from xshard.microbatching import read_number, read_remat
from xshard.mpmd.plan import PipelinePlan
from xshard.outer import Outer
from xshard.pipeline.auto import AutoMaker, fastest
from xshard.pipeline.groups import groups_of, read_stages
from xshard.pipeline.pinned import pinned
from xshard.pipeline.planned import PlannedPipeline
from xshard.pipeline.search import PipelineSearch, donated_places
from xshard.pipeline.step import PipelinedStep, pipeline_maker, refuse_unused, stages_of
from xshard.place import MeshLike, Place, mesh_shapes, read_bytes, shapes_over
from xshard.plan.plan import Plan
from xshard.plan_cache import PlanCacheOption
from xshard.plan_cache import best as plan_cache_best
from xshard.prepare import prepare_all
from xshard.profile.quick import Costs
from xshard.profile.targets import Step
from xshard.replan import PlannedStep, Replan, for_mesh
from xshard.run.call import Arguments
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape


def auto_shard(
    fun: Callable[..., Any],
    mesh: Mesh | int | None = None,
    *,
    memory_limit: int | float | str | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    donate_argnames: str | Sequence[str] = (),
    static_argnames: str | Sequence[str] = (),
    time_limit: float = 60.0,
    microbatches: int | str = 1,
    batch_axes: Any = None,
    remat: str = "none",
    pipeline: int | str = 1,
    schedule: str = "auto",
    plan: Plan | PipelinePlan | None = None,
    cost_db: CostDb = None,
    profile: bool | None = None,
    plan_cache: PlanCacheOption = None,
) -> ShardedStep:
    """`jax.jit(fun)` over a mesh, with the shardings chosen by a solver.

    Args:
      fun: any JAX function, for instance `train_step(state, batch) -> (state, metrics)`.
      mesh: its axes are used as they are (Auto or Explicit). A number of devices: xshard chooses
        the mesh's shape over the first so many; None: over all devices.
      memory_limit: bytes per device, or text such as "30GB"; by default what the devices have. The
        compiled program keeps it: where the prediction comes near, XLA's count is looked at.
      in_specs, out_specs: pytree prefixes of the arguments (static ones left out) and of the
        result with PartitionSpecs that are kept; None where xshard is free. With `pipeline` they
        are over the mesh of one group, and hold on each group that has the array.
      donate_argnums, static_argnums, donate_argnames, static_argnames: as in `jax.jit`.
      time_limit: seconds that the solver may take at most; the best plan found is used.
      microbatches: parts of the batch that run one after the other, with the results of the whole
        batch (docs/microbatches.md); "auto": as many as make it fastest under the memory limit.
      batch_axes: the batch's dimension in each argument, as `in_axes` of `jax.vmap`; by default
        the leading dimension that the arguments beside the state share.
      remat: which layers keep only their input for the backward pass and are computed again there
        (docs/remat.md): "none", "all", or "auto", as many as make it fastest under the limit.
      pipeline: groups of devices that each hold some of the layers and pass microbatches on to each
        other (docs/pipeline.md); 1: none; "auto": as many as are fastest, or none.
      schedule: of a pipeline: "gpipe", "1f1b", "interleaved", "zero_bubble", or "auto".
      plan: a plan made before (`Plan.load`, `PipelinePlan.load`), used instead of planning; where a
        step returns a weakly typed state as a strong one and then computes in another dtype, that
        is planned.
      cost_db: the database of measured costs: a path; None: the user's own; False: none.
      profile: whether what the database lacks is measured first, for at most half a minute. None:
        only for a kind of device that was never profiled. Processes other than 0 never do.
      plan_cache: the folder where plans are kept and looked up; None: $XSHARD_PLAN_CACHE or the
        user's own cache; False: none.

    Returns:
      A callable with `plan`, `trace`, `lower`, `init`, `audit`, `in_shardings` and `out_shardings`.

    Raises:
      XshardError: at the first call: what is wrong, where, and the mend.
    """
    if not callable(fun):
        raise TraceError(f"auto_shard needs a function, but got {fun!r} ({type(fun).__name__})")
    place = Place.of(mesh)
    arguments = Arguments(fun, static_argnums, donate_argnums, static_argnames, donate_argnames)
    limit = place.memory_bytes if memory_limit is None else read_bytes(memory_limit)
    staged, whole = None, plan if isinstance(plan, Plan) else None
    if pipeline != 1 or isinstance(plan, PipelinePlan):
        refuse_unused(plan=whole, profile=profile or None, cost_db=cost_db or None)
        before = plan if isinstance(plan, PipelinePlan) else None
        pipeline = stages_of(before, pipeline, schedule, microbatches)
        staged = pipeline_maker(
            fun, place, pipeline, schedule, microbatches, batch_axes, time_limit, limit, remat,
            before, in_specs, out_specs,
        )  # fmt: skip
        if pipeline != "auto":
            return PipelinedStep(fun, arguments, staged)
    asked = Asked(place.cluster, place.shapes, in_specs, out_specs, limit, time_limit)
    given = _checked(None if staged else plan, microbatches, remat)
    costs = Costs(cost_db if staged is None else False, False if given or staged else profile)
    options = read_number(microbatches), batch_axes, read_remat(remat), plan_cache
    make = Maker(fun, place, asked, given, costs, *options)
    if staged is not None:
        return PipelinedStep(fun, arguments, AutoMaker(make, staged))
    return ShardedStep(fun, arguments, make)


def plan(
    fun: Callable[..., Any],
    *avals: Any,
    cluster: str | Cluster,
    mesh: MeshLike | None = None,
    memory_limit: int | float | str | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (0,),
    static_argnums: int | Sequence[int] = (),
    time_limit: float = 60.0,
    cost_db: CostDb = None,
    microbatches: int | str = 1,
    batch_axes: Any = None,
    remat: str = "none",
    plan_cache: PlanCacheOption = None,
) -> Plan:
    """The plan of `fun(*avals)` for devices that need not be here.

    Args:
      avals: arrays or `jax.ShapeDtypeStruct`s, as the function takes them.
      cluster: such as "v100-sxm2-32gb:2x8" (hosts × devices per host).
      mesh: sizes, names with sizes, or a mesh of JAX, whose devices do not matter; None: xshard
        tries all shapes of one and two axes.
      memory_limit: bytes per device or "30GB"; by default what the device has.
      donate_argnums: by default the first argument, the state.
      cost_db: measurements of such devices, where there are any: as for `auto_shard`.

    The other arguments are those of `auto_shard`.
    """
    cluster = Cluster.parse(cluster) if isinstance(cluster, str) else cluster
    call = Arguments(fun, static_argnums, donate_argnums).call(avals, {})
    limit = cluster.device.memory_bytes if memory_limit is None else read_bytes(memory_limit)
    asked = Asked(cluster, shapes_over(mesh, cluster), in_specs, out_specs, limit, time_limit)
    options = read_number(microbatches), batch_axes, read_remat(remat)
    with garbage.kept():
        began = time.perf_counter()
        traced = trace(fun, avals, call.static)
        seconds = time.perf_counter() - began
        candidates = candidates_of(traced, call, asked, *options)
        candidates.know(known(cost_db, cluster))
        outer = Outer(candidates)
        best = plan_cache_best(outer, limit, plan_cache)
        found = Replan(fun, call, asked, outer).finished(best)
    return replace(found, seconds={"trace": seconds, **found.seconds})


def plan_pipeline(
    fun: Callable[..., Any],
    *avals: Any,
    cluster: str | Cluster,
    microbatches: int | str,
    pipeline: int | str = "auto",
    schedule: str = "1f1b",
    memory_limit: int | float | str | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (0,),
    static_argnums: int | Sequence[int] = (),
    batch_axes: Any = None,
    time_limit: float = 60.0,
    remat: str = "none",
) -> PipelinePlan | Plan:
    """The plan of `fun(*avals)` in pipeline stages, for devices that need not be here.

    Args:
      pipeline: groups of devices, each of as many neighbours; "auto": each number from 2 on that
        the cluster can be cut into, and one program over all devices, whose `Plan` is given if it
        is no slower. Meshes of one and two axes are tried for a group.
      schedule: as `auto_shard` takes it.
      microbatches: a number, or "auto": as many as make it fastest.
      remat: of each stage's layers (docs/pipeline.md): "none", "all", or "auto", as many as the
        memory limit asks for.

    The other arguments are those of `plan`.

    Raises:
      PipelineError: the step or the cluster cannot be cut so.
      InfeasibleError: no stages that were tried fit the memory limit.
    """
    cluster = Cluster.parse(cluster) if isinstance(cluster, str) else cluster
    call = Arguments(fun, static_argnums, donate_argnums).call(avals, {})
    limit = cluster.device.memory_bytes if memory_limit is None else read_bytes(memory_limit)
    groups = read_stages(pipeline, cluster)
    with garbage.kept():
        traced = trace(fun, avals, call.static)
        search = PipelineSearch(
            traced, donated_places(traced, call), partial(groups_of, cluster),
            read_number(microbatches), schedule, batch_axes, limit, time_limit, read_remat(remat),
            pins=lambda mesh: pinned(traced, call, mesh, in_specs, out_specs),
        )  # fmt: skip
        if pipeline != "auto":
            return _with_stages(search.best(groups).plan, search)
        shapes = mesh_shapes(cluster.num_devices)
        asked = Asked(cluster, shapes, in_specs, out_specs, limit, time_limit)
        options = search.microbatches, batch_axes, search.remat
        candidates = candidates_of(traced, call, asked, *options)
        best = fastest(search, groups, Outer(candidates))
        if isinstance(best, PipelinePlan):
            return _with_stages(best, search)
        step = PlannedStep(fun, call, for_mesh(candidates.for_plan(best), best))
        return replace(best, _step=step)


def _with_stages(plan: PipelinePlan, search: PipelineSearch) -> PipelinePlan:
    """A search's plan with what `xshard.verify` compiles."""
    assert search.found is not None
    step = PlannedPipeline(search.traced, search.found.stages, search.donated)
    return replace(plan, _step=step)


def profile_steps(
    fun: Callable[..., Any], avals: Sequence[Any], cluster: Cluster, mesh: MeshShape | None
) -> list[Step]:
    """What to measure for `fun(*avals)` on a mesh over the cluster, or on each that is tried."""
    call = Arguments(fun, (), (0,)).call(tuple(avals), {})
    asked = Asked(cluster, shapes_over(mesh, cluster))
    traced = trace(fun, tuple(avals), call.static)
    return steps(prepare_all(asked.requests(traced, call)))


def _checked(plan: Any, microbatches: int | str, remat: str) -> Plan | None:
    if plan is not None and not isinstance(plan, Plan):
        raise PlanError(f"plan must be a Plan, such as Plan.load(path) gives, not {plan!r}")
    if plan is not None and microbatches not in (1, "auto", plan.microbatches):
        raise PlanError(
            f"the plan is for microbatches={plan.microbatches}, not {microbatches!r}; "
            "leave the option out, or plan again"
        )
    if plan is not None and remat == "all" and not plan.remat:
        raise PlanError(
            'the plan recomputes no layers, and remat="all" asks for it; leave the option out, or '
            "plan again"
        )
    return plan
