"""What every plan satisfies beyond the types of its fields."""

from __future__ import annotations

from itertools import pairwise

from xshard.plan.decode import Mismatch
from xshard.plan.plan import MemoryCurve, Plan
from xshard.spec import MeshShape, Spec, axes_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "permute")


def check_plan(plan: Plan) -> Plan:
    """Returns the plan if its specs, names and figures fit its mesh.

    Raises:
      Mismatch: naming the first field that does not.
    """
    _check_figures(plan)
    _check_arrays(plan)
    _check_ops(plan)
    for i, spec in enumerate(plan.values):
        _check_spec(f"values[{i}]", spec, plan.mesh)
    for i, (value, _, spec) in enumerate(plan.copies):
        _require(0 <= value < len(plan.values), f"copies[{i}][0]", f"names no value: {value}")
        _check_spec(f"copies[{i}][2]", spec, plan.mesh)
    _check_collectives(plan)
    _check_microbatches(plan)
    _check_remat(plan)
    for i, curve in enumerate(plan.memory):
        _check_curve(f"memory[{i}]", curve)
    return plan


def _check_figures(plan: Plan) -> None:
    figures = ("objective_ns", "bound_ns", "compute_ns", "communication_ns", "peak_bytes")
    for name in figures:
        _require(getattr(plan, name) >= 0, name, f"is negative: {getattr(plan, name)}")
    s = plan.sources
    _require(
        min(s.measured_ns, s.interpolated_ns, s.analytic_ns) >= 0, "sources", f"is negative: {s}"
    )
    limit = plan.memory_limit
    _require(limit is None or limit > 0, "memory_limit", f"is not positive: {limit}")


def _check_arrays(plan: Plan) -> None:
    for field, arrays in (("arguments", plan.arguments), ("results", plan.results)):
        for i, array in enumerate(arrays):
            where = f"{field}[{i}]"
            _require(min(array.shape, default=0) >= 0, f"{where}.shape", "has a negative size")
            rank = len(array.shape)
            _require(len(array.spec) == rank, f"{where}.spec", f"needs {rank} dimensions")
            _require(array.local_bytes >= 0, f"{where}.local_bytes", "is negative")
            _check_spec(f"{where}.spec", array.spec, plan.mesh)


def _check_ops(plan: Plan) -> None:
    for i, op in enumerate(plan.ops):
        axes = len(plan.mesh.names)
        _require(len(op.factors) == axes, f"ops[{i}].factors", f"needs {axes} entries")
        _require(min(op.members, op.count, op.time_ns) >= 0, f"ops[{i}]", "has a negative figure")
        for field, specs in (("operands", op.operands), ("results", op.results)):
            for k, spec in enumerate(specs):
                _check_spec(f"ops[{i}].{field}[{k}]", spec, plan.mesh)


def _check_collectives(plan: Plan) -> None:
    for i, c in enumerate(plan.collectives):
        where = f"collectives[{i}]"
        _require(c.kind in KINDS, f"{where}.kind", f"is none of {', '.join(KINDS)}: {c.kind!r}")
        unknown = [axis for axis in c.axes if axis not in plan.mesh.names]
        _require(not unknown, f"{where}.axes", f"names no axis of the mesh: {unknown}")
        _require(min(c.nbytes, c.count, c.time_ns) >= 0, where, "has a negative figure")


def _check_microbatches(plan: Plan) -> None:
    number, dims = plan.microbatches, plan.batch_dims
    _require(number > 0, "microbatches", f"is not positive: {number}")
    wanted = len(plan.arguments) if number > 1 else 0
    _require(len(dims) == wanted, "batch_dims", f"needs {wanted} entries")
    _require(0 < plan.lanes <= (plan.mesh.num_devices if number > 1 else 1), "lanes",
             f"is impossible: {plan.lanes}")  # fmt: skip
    for i, (dim, array) in enumerate(zip(dims, plan.arguments, strict=False)):
        where = f"batch_dims[{i}]"
        _require(-1 <= dim < len(array.shape), where, f"names no dimension: {dim}")
        rows = number if dim < 0 else array.shape[dim]
        turns = number * (1 if dim < 0 else plan.lanes)
        _require(rows % turns == 0, where, f"has {rows} rows, not a multiple of {turns}")


def _check_curve(where: str, curve: MemoryCurve) -> None:
    starts = (*curve.starts_ns, curve.end_ns)
    ordered = all(a <= b for a, b in pairwise((0, *starts)))
    _require(ordered, f"{where}.starts_ns", "does not rise from 0 to end_ns")
    for k, part in enumerate(curve.parts):
        count = len(curve.starts_ns)
        here = f"{where}.parts[{k}].nbytes"
        _require(len(part.nbytes) == count, here, f"needs {count} entries")
        _require(min(part.nbytes, default=0) >= 0, here, "has a negative figure")


def _check_remat(plan: Plan) -> None:
    for i, part in enumerate(plan.remat):
        where = f"remat[{i}].recomputed"
        _require(0 <= part.recomputed <= part.layers, where, f"is none of 0 to {part.layers}")


def _check_spec(where: str, spec: Spec, mesh: MeshShape) -> None:
    axes = axes_of(spec)
    _require(all(0 <= a < len(mesh.names) for a in axes), where, f"names no axis of {mesh}")
    _require(len(set(axes)) == len(axes), where, "uses a mesh axis twice")


def _require(holds: bool, where: str, problem: str) -> None:
    if not holds:
        raise Mismatch(f"field {where} {problem}")
