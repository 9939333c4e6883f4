"""The public functions: `auto_shard` runs, `plan` only plans."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from xshard._jax import auto_mesh
from xshard.cost.cluster import Cluster
from xshard.cost.measured import Measured
from xshard.cost.store import CostDb, known
from xshard.errors import MeshError, PlanError, TraceError
from xshard.ir.trace import Traced, trace
from xshard.microbatching import Candidates, read_number
from xshard.pins import Pins, pins_of
from xshard.plan.plan import Plan
from xshard.plan.refuse import check_fits
from xshard.planning import Prepared, Request, prepare_all
from xshard.profile.quick import Costs
from xshard.profile.targets import Step
from xshard.run.call import Arguments, Call, name_of
from xshard.run.constraints import constraints_of
from xshard.run.fit import within_limit
from xshard.run.hosts import agree, confirm, host_of_processes, same_text
from xshard.run.step import Runnable, runnable
from xshard.sharded import ShardedStep
from xshard.spec import MeshShape
from xshard.ties import ties_of


def auto_shard(
    fun: Callable[..., Any],
    mesh: Mesh | int | None = None,
    *,
    memory_limit: int | float | str | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (),
    static_argnums: int | Sequence[int] = (),
    time_limit: float = 60.0,
    microbatches: int | str = 1,
    batch_axes: Any = None,
    plan: Plan | None = None,
    cost_db: CostDb = None,
    profile: bool | None = None,
) -> ShardedStep:
    """`jax.jit(fun)` over a mesh, with the shardings chosen by a solver.

    Args:
      fun: any JAX function, for instance `train_step(state, batch) -> (state, metrics)`.
      mesh: its axes are used as they are (Auto or Explicit). A number of devices: xshard chooses
        the mesh's shape over the first so many; None: over all devices.
      memory_limit: bytes per device, or text such as "30GB"; by default what the devices have. The
        compiled program keeps it: where the prediction comes near, XLA's count is looked at.
      in_specs, out_specs: pytree prefixes of the arguments (static ones left out) and of the
        result with PartitionSpecs that are kept; None where xshard is free.
      donate_argnums, static_argnums: as in `jax.jit`.
      time_limit: seconds that the solver may take at most; the best plan found is used.
      microbatches: parts of the batch that run one after the other, with the results of the whole
        batch (docs/microbatches.md); "auto": as many as make it fastest under the memory limit.
      batch_axes: the batch's dimension in each argument, as `in_axes` of `jax.vmap`; by default
        the leading dimension that the arguments beside the state share.
      plan: a plan made before (`Plan.load`), used instead of planning.
      cost_db: the database of measured costs: a path; None: the user's own; False: none.
      profile: whether what the database lacks is measured first, for at most half a minute. None:
        only for a kind of device that was never profiled. Processes other than 0 never do.

    Returns:
      A callable with `plan`, `lower`, `init`, `audit`, `in_shardings` and `out_shardings`.

    Raises:
      XshardError: at the first call: what is wrong, where, and the mend.
    """
    if not callable(fun):
        raise TraceError(f"auto_shard needs a function, but got {fun!r} ({type(fun).__name__})")
    devices, shapes = _devices_and_shapes(mesh)
    cluster = Cluster.for_devices(devices.flat[0].device_kind, devices.size, _hosts(devices))
    limit = _limit(memory_limit, _device_limit(devices))
    arguments = Arguments(fun, _numbers(static_argnums), _numbers(donate_argnums))
    given, number = _checked(plan, microbatches), read_number(microbatches)
    costs = Costs(cost_db, False if given else profile)
    found: dict[tuple[str, ...], Plan] = {}

    def make(call: Call) -> Runnable:
        traced = trace(call.on_row(fun), call.row, call.static, call.labels)
        candidates = Candidates(
            traced,
            lambda t: [_request(t, s, cluster, call, in_specs, out_specs, limit, time_limit)
                       for s in shapes],
            number, batch_axes, _donated_values(traced, call), time_limit,
        )  # fmt: skip
        first = candidates.for_plan(given) if given else candidates.first()
        candidates.know(_shared(lambda: costs.of(_steps(first), list(devices.flat))))
        same = tuple(p.fingerprint for p in first)  # weak types make no other plan

        def under(bound: int | None) -> Runnable:
            chosen = given or agree(lambda: found.get(same) or candidates.best(bound))
            prepared = _for_mesh(candidates.for_plan(chosen), chosen)
            _check(chosen, prepared, given=given is not None)
            if given is None and chosen.memory_limit != limit:
                chosen = replace(chosen, memory_limit=limit)
            return built(
                fun, chosen, prepared, call,
                _laid_out(mesh, devices, chosen),
                compiler_options=_compiler_options(devices, limit),
            )  # fmt: skip

        if limit is None or given is not None or same in found:
            made = under(limit)
        else:
            made = within_limit(under, call, limit, patience_s=3 * time_limit)
        found[same] = made.plan
        return made

    return ShardedStep(fun, arguments, make)


def plan(
    fun: Callable[..., Any],
    *avals: Any,
    cluster: str | Cluster,
    mesh: MeshShape | Sequence[int] | None = None,
    memory_limit: int | float | str | None = None,
    in_specs: Any = None,
    out_specs: Any = None,
    donate_argnums: int | Sequence[int] = (0,),
    static_argnums: int | Sequence[int] = (),
    time_limit: float = 60.0,
    cost_db: CostDb = None,
    microbatches: int | str = 1,
    batch_axes: Any = None,
) -> Plan:
    """The plan of `fun(*avals)` for devices that need not be here.

    Args:
      avals: arrays or `jax.ShapeDtypeStruct`s, as the function takes them.
      cluster: such as "v100-sxm2-32gb:2x8" (hosts × devices per host).
      mesh: a `MeshShape`, or sizes; None: xshard tries all shapes of one and two axes.
      memory_limit: bytes per device or "30GB"; by default what the device has.
      donate_argnums: by default the first argument, the state.
      cost_db: measurements of such devices, where there are any: as for `auto_shard`.

    The other arguments are those of `auto_shard`.
    """
    cluster = Cluster.parse(cluster) if isinstance(cluster, str) else cluster
    call = Arguments(fun, _numbers(static_argnums), _numbers(donate_argnums)).call(avals, {})
    limit = _limit(memory_limit, cluster.device.memory_bytes)
    began = time.perf_counter()
    traced = trace(fun, avals, call.static)
    seconds = time.perf_counter() - began
    candidates = Candidates(
        traced,
        lambda t: [_request(t, shape, cluster, call, in_specs, out_specs, limit, time_limit)
                   for shape in _shapes(mesh, cluster)],
        read_number(microbatches), batch_axes, _donated_values(traced, call), time_limit,
    )  # fmt: skip
    candidates.know(known(cost_db, cluster))
    best = candidates.best(limit)
    tried = candidates.for_plan(best)
    step = PlannedStep(fun, call, _for_mesh(tried, best))
    return replace(best, seconds={"trace": seconds, **best.seconds}, _step=step)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a plan was made for, which `verify` compiles."""

    fun: Callable[..., Any]
    call: Call
    prepared: Prepared


def traced_for(
    plan: Plan, cluster: Cluster, fun: Callable[..., Any], avals: tuple[Any, ...], in_specs: Any,
    out_specs: Any, donate_argnums: int | Sequence[int], static_argnums: int | Sequence[int],
) -> PlannedStep:  # fmt: skip
    """The function that a plan belongs to, traced again.

    Raises:
      PlanError: it is for another function, shapes, pins or cluster.
    """
    call = Arguments(fun, _numbers(static_argnums), _numbers(donate_argnums)).call(avals, {})
    traced = trace(fun, avals, call.static)
    candidates = Candidates(
        traced,
        lambda t: [_request(t, plan.mesh, cluster, call, in_specs, out_specs, None, 0.0)],
    )
    candidates.know(known(None, cluster))
    [prepared] = candidates.for_plan(plan)
    _check(plan, prepared, given=True)
    return PlannedStep(fun, call, prepared)


def built(
    fun: Callable[..., Any], plan: Plan, prepared: Prepared, call: Call, where: Mesh,
    *, compiler_options: dict[str, Any] | None = None, abstract: bool = False,
) -> Runnable:  # fmt: skip
    """The jit of a plan over the mesh `where`, which for `abstract` is of devices not here."""
    traced, classes = prepared.request.traced, prepared.classes
    constraints = constraints_of(
        plan, traced.graph, classes, prepared.rules, auto_mesh(where), prepared.prices.path
    )
    specs = [plan.values[int(classes.value_class[v])] for v in traced.graph.consts]
    return runnable(
        plan, traced, constraints, where, call,
        name=name_of(fun), const_specs=specs, compiler_options=compiler_options,
        abstract=abstract,
    )  # fmt: skip


def profile_steps(
    fun: Callable[..., Any], avals: Sequence[Any], cluster: Cluster, mesh: MeshShape | None
) -> list[Step]:
    """What to measure for `fun(*avals)` on a mesh over the cluster, or on each that is tried."""
    call = Arguments(fun, (), (0,)).call(tuple(avals), {})
    traced = trace(fun, tuple(avals), call.static)
    requests = [
        _request(traced, shape, cluster, call, None, None, None, 0.0)
        for shape in _shapes(mesh, cluster)
    ]
    return _steps(prepare_all(requests))


def read_bytes(text: int | float | str | None) -> int | None:
    """Bytes from a number or from text such as "30GB" (powers of 1000) or "24GiB" (of 1024).

    Raises:
      MeshError: the text is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d+)?\s*([kKMGT]?)(i?)B?\s*", str(text))
    nbytes = 0
    if match is not None:
        base = 1024 if match[4] else 1000
        power = " KMGT".index(match[3].upper() or " ")
        nbytes = int(float(match[1] + (match[2] or "")) * base**power)
    if nbytes < 1:
        raise MeshError(f"{text!r} is no size; write bytes, or text such as '30GB' or '24GiB'")
    return nbytes


def _steps(tried: Sequence[Prepared]) -> list[Step]:
    """What a profile measures."""
    return [Step(p.classes, p.rules, p.prices) for p in tried]


def _limit(given: int | float | str | None, otherwise: int | None) -> int | None:
    return otherwise if given is None else read_bytes(given)


def _request(
    traced: Traced, shape: MeshShape, cluster: Cluster, call: Call, in_specs: Any, out_specs: Any,
    limit: int | None, time_limit: float,
) -> Request:  # fmt: skip
    if call.names and isinstance(in_specs, tuple):
        in_specs = (*in_specs, *[None] * len(call.names))
    pins = pins_of(traced, shape, in_specs, out_specs)
    return Request(
        traced, shape, cluster,
        pins=pins.values,
        results=pins.results,
        ties=_kept_ties(traced, pins),
        donated=_donated_values(traced, call),
        memory_limit=limit,
        time_limit_s=time_limit,
    )  # fmt: skip


def _kept_ties(traced: Traced, pins: Pins) -> dict[int, int]:
    """Ties, but for results that the user wants otherwise than the argument."""
    outputs = traced.graph.outputs
    fixed = [*((outputs[i], pin) for i, pin in pins.results.items()), *pins.values.items()]
    ties = ties_of(traced)
    other = {v for v, pin in fixed if v in ties and pin != pins.values.get(ties[v])}
    return {v: argument for v, argument in ties.items() if v not in other}


def _donated_values(traced: Traced, call: Call) -> frozenset[int]:
    dynamic = [i for i in range(len(call.row)) if i not in call.static]
    leaves = iter(traced.graph.inputs)
    found: list[int] = []
    for i, tree in zip(dynamic, traced.in_tree.children(), strict=True):
        here = [next(leaves) for _ in range(tree.num_leaves)]
        found += here if i in call.donated else []
    return frozenset(found)


def _shared(make: Callable[[], Measured | None]) -> Measured | None:
    """What process 0 has measured, in every process: all must price alike."""
    if jax.process_count() == 1:
        return make()
    found: Measured | None = None

    def text() -> str:
        nonlocal found
        found = make()
        return found.to_json() if found else ""

    told = same_text(text)
    return found or (Measured.from_json(told) if told else None)


def _for_mesh(tried: list[Prepared], plan: Plan) -> Prepared:
    return next((p for p in tried if p.request.mesh == plan.mesh), tried[0])


def _check(plan: Plan, prepared: Prepared, *, given: bool) -> None:
    """That a plan, given by the user or by process 0, is for what this process traced."""
    if not given:
        confirm(plan, prepared.fingerprint)
        return
    r = prepared.request
    check_fits(
        plan, prepared.fingerprint, r.mesh, r.traced.in_paths, r.traced.in_avals, str(r.cluster)
    )


def _checked(plan: Plan | None, microbatches: int | str) -> Plan | None:
    if plan is not None and not isinstance(plan, Plan):
        raise PlanError(f"plan must be a Plan, such as Plan.load(path) gives, not {plan!r}")
    if plan is not None and microbatches not in (1, "auto", plan.microbatches):
        raise PlanError(
            f"the plan is for microbatches={plan.microbatches}, not {microbatches!r}; "
            "leave the option out, or plan again"
        )
    return plan


def _devices_and_shapes(mesh: Mesh | int | None) -> tuple[Any, list[MeshShape]]:
    """An array of devices, and the mesh shapes to try over it."""
    if isinstance(mesh, Mesh):
        return mesh.devices, [MeshShape(tuple(map(str, mesh.axis_names)), mesh.devices.shape)]
    if mesh is not None and not isinstance(mesh, int):
        raise MeshError(f"mesh must be a jax.sharding.Mesh or a number of devices, not {mesh!r}")
    devices = jax.devices()
    wanted = len(devices) if mesh is None else mesh
    if not 0 < wanted <= len(devices):
        raise MeshError(
            f"a mesh of {wanted} devices was asked for, but there are {len(devices)}; "
            "ask for fewer, or start more processes"
        )
    return np.array(devices[:wanted]), mesh_shapes(wanted)


def _laid_out(mesh: Mesh | int | None, devices: Any, plan: Plan) -> Mesh:
    """The mesh of arguments and results: the user's, whose Explicit axes stay so if all are."""
    if isinstance(mesh, Mesh) and set(mesh.axis_types) == {AxisType.Explicit}:
        return mesh
    axis_types = (AxisType.Auto,) * len(plan.mesh.names)
    return Mesh(devices.reshape(plan.mesh.sizes), plan.mesh.names, axis_types=axis_types)


def _shapes(mesh: MeshShape | Sequence[int] | None, cluster: Cluster) -> list[MeshShape]:
    if mesh is None:
        return mesh_shapes(cluster.num_devices)
    shape = mesh if isinstance(mesh, MeshShape) else named(tuple(mesh))
    if shape.num_devices != cluster.num_devices:
        raise MeshError(
            f"the mesh {shape} has {shape.num_devices} devices, the cluster {cluster} has "
            f"{cluster.num_devices}; make them equal"
        )
    return [shape]


def mesh_shapes(devices: int) -> list[MeshShape]:
    """All meshes of one and two axes over so many devices."""
    pairs = [(devices // b, b) for b in range(2, devices // 2 + 1) if devices % b == 0]
    return [named((devices,)), *map(named, pairs)]


def named(sizes: tuple[int, ...]) -> MeshShape:
    """A mesh of these sizes with the usual names."""
    names = ("data", "model", "seq")
    return MeshShape((*names, *(f"axis{i}" for i in range(3, len(sizes))))[: len(sizes)], sizes)


def _hosts(devices: Any) -> int:
    """How many hosts the devices lie on; processes on CPU, which meet through the network."""
    processes = {d.process_index for d in devices.flat}
    cpu = devices.flat[0].platform == "cpu"
    hosts = len(processes if cpu else {host_of_processes()[p] for p in processes})
    return hosts if devices.size % hosts == 0 else 1


def _device_limit(devices: Any) -> int | None:
    """What a device says that it has; None where it does not say (CPU)."""
    mine = [d for d in devices.flat if d.process_index == jax.process_index()]
    stats = mine[0].memory_stats() if mine and mine[0].platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def _compiler_options(devices: Any, limit: int | None) -> dict[str, Any] | None:
    """Under a limit, XLA orders ops for memory; elsewhere than on CPU it does so anyway."""
    if limit is None or devices.flat[0].platform != "cpu":
        return None
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)
