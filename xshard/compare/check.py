"""`Check`: what a sharded step computes against the same step on one device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from xshard._jax import holds_shard_map
from xshard.compare.difference import Difference, difference, perturbed
from xshard.compare.locate import Parting, locate
from xshard.compare.rounding import rounding_otherwise
from xshard.compare.section import Section
from xshard.errors import PlanError
from xshard.ir.trace import Traced
from xshard.plan.page.tables import to_html
from xshard.plan.table import Part, Table, to_rich, to_text
from xshard.run.annotate import AS_TRACED, Constraints, Numbers, annotate
from xshard.run.call import Call, each_leaf
from xshard.run.step import Runnable
from xshard.run.widen import WIDE, holds_narrow, widened

LISTED = 20
"""Results that the table shows, those that are furthest apart first."""


@dataclass(frozen=True, slots=True)
class Check:
    """A sharded step held against the same step on one device; `print` shows it as a table.

    Attributes:
      results: each array of the result, in its order.
      parting: the first equation that computes something else; None if the results are equal, or
        if each value is right as soon as all of them are returned.
    """

    results: tuple[Difference, ...]
    parting: Parting | None

    @property
    def ok(self) -> bool:
        """Whether rounding explains every difference."""
        return all(r.ok for r in self.results)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return to_text(_parts(self))

    def __rich__(self) -> object:
        return to_rich(_parts(self))

    def _repr_html_(self) -> str:
        return to_html(_parts(self))


def check_step(current: Runnable, call: Call, original: Traced) -> Check:
    """Runs a planned step and the same without a plan, on one device.

    A program with floats of 16 bits is compared in float32 throughout, with the plan's constraints
    at the same equations; and as it is, where what its own rounding does to it on one device, the
    distance to float32, takes the place of the perturbation.

    Args:
      call: arrays; they are copied, none is donated.
      original: what the function does: what is planned, or, of a step in microbatches, what it
        was before.

    Raises:
      PlanError: an argument is a shape only, or the mesh is of several processes.
    """
    leaves = [_array(x) for x in jax.tree.leaves(_dynamic(call))]
    plain = _without_plan(current)
    if not holds_narrow(original.closed_jaxpr):
        rows = _rows(original, plain, AS_TRACED, leaves, _sharded(current, call))
        return Check(rows, _parting(current, plain, AS_TRACED, leaves, rows))
    wide = [widened(x) for x in leaves]
    rows = _rows(original, plain, WIDE, wide, _sharded_wide(current, wide))
    narrow = _as_it_is(original, plain, leaves, _sharded(current, call))
    parting = _parting(current, plain, WIDE, wide, rows)
    parting = parting or _parting(current, plain, AS_TRACED, leaves, narrow)
    return Check((*rows, *narrow), parting)


def _rows(
    original: Traced, plain: Constraints, numbers: Numbers, leaves: list[Any], actual: list[Any]
) -> tuple[Difference, ...]:
    """Each result against one device's, beside what a perturbation of the input does there.

    Where that does not explain it, beside what rounding its sums otherwise does, too.
    """
    one = _on_one_device(original, plain, numbers)
    consts = list(map(numbers.value, original.consts))
    expected = one(leaves, consts)
    near = [one(*_perturbed(leaves, consts, seed)) for seed in (0, 1)]

    def held() -> tuple[Difference, ...]:
        rows = zip(original.out_paths, actual, expected, *near, strict=True)
        return tuple(difference(path or "result", a, e, p) for path, a, e, *p in rows)

    if not all(r.ok for r in held()):
        other = _on_one_device(original, plain, rounding_otherwise(numbers))
        near.append(other(leaves, consts))
    return held()


def _as_it_is(
    original: Traced, plain: Constraints, leaves: list[Any], actual: list[Any]
) -> tuple[Difference, ...]:
    """Each float of the result against one device's, beside that one's distance to float32."""
    expected = _on_one_device(original, plain, AS_TRACED)(leaves, original.consts)
    wide = _on_one_device(original, plain, WIDE)(list(map(widened, leaves)), original.consts)
    return tuple(
        difference(f"{path or 'result'}, as it is", a, e, [w])
        for path, a, e, w in zip(original.out_paths, actual, expected, wide, strict=True)
        if jax.numpy.issubdtype(e.dtype, jax.numpy.inexact)
    )


def _parting(
    current: Runnable, plain: Constraints, numbers: Numbers, leaves: list[Any],
    rows: tuple[Difference, ...],
) -> Parting | None:  # fmt: skip
    if all(r.ok for r in rows):
        return None
    shardings = _in_auto_mode(current, current.in_shardings)
    whole = Section(
        current.traced.closed_jaxpr, (), current.constraints, plain, numbers=numbers,
        place=lambda args: [jax.device_put(x, s) for x, s in zip(args, shardings, strict=True)],
    )  # fmt: skip
    return locate(whole, leaves)


def _dynamic(call: Call) -> list[Any]:
    return [arg for i, arg in enumerate(call.row) if i not in call.static]


def _array(x: Any) -> Any:
    """The argument as an array on the default device, free of meshes."""
    if isinstance(x, jax.ShapeDtypeStruct):
        raise PlanError("check runs the step, so it needs arrays, not shapes, for its arguments")
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        raise PlanError(
            "check compares with one device, so it runs in one process: start one, over a mesh of "
            "its own devices, with arguments that fit"
        )
    if isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = jax.numpy.asarray(np.asarray(jax.random.key_data(x)))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    return jax.numpy.asarray(np.asarray(x))


def _perturbed(leaves: Sequence[Any], consts: Sequence[Any], seed: int) -> tuple[Any, ...]:
    rows = ([perturbed(x, seed + 2 * i) for i, x in enumerate(row)] for row in (leaves, consts))
    return tuple(rows)


def _without_plan(current: Runnable) -> Constraints:
    """No constraints but the user's, over one device; over all where the program needs its mesh."""
    mesh = current.constraints.mesh
    if not holds_shard_map(current.traced.closed_jaxpr):
        devices = mesh.devices.reshape(-1)[:1].reshape((1,) * mesh.devices.ndim)
        mesh = Mesh(devices, mesh.axis_names, axis_types=(AxisType.Auto,) * devices.ndim)
    return Constraints(mesh)


def _on_one_device(traced: Traced, plain: Constraints, numbers: Numbers) -> Any:
    program = annotate(traced, plain, numbers)
    return jax.jit(lambda leaves, consts: program(*leaves, consts=consts))


def _sharded(current: Runnable, call: Call) -> list[Any]:
    """The step's results, on copies of the arguments."""

    def copied(x: Any, sharding: Any) -> Any:
        mine = jax.numpy.copy(x) if isinstance(x, jax.Array) else x  # device_put may share memory
        return jax.device_put(mine, sharding)

    row = call.map(functools.partial(each_leaf, copied), current.in_shardings)
    return jax.tree.leaves(current(*row))


def _sharded_wide(current: Runnable, leaves: list[Any]) -> list[Any]:
    """The results of the step in float32, under the plan's constraints."""
    program = annotate(current.traced, current.constraints, WIDE)
    ins = _in_auto_mode(current, current.in_shardings)
    outs = _in_auto_mode(current, current.out_shardings)
    placed = [jax.device_put(x, s) for x, s in zip(leaves, ins, strict=True)]
    return jax.jit(lambda row: program(*row), in_shardings=(ins,), out_shardings=outs)(placed)


def _in_auto_mode(current: Runnable, shardings: Any) -> list[NamedSharding]:
    """Flat shardings on the mesh of the plan's constraints, whose axes are all Auto."""
    mesh = current.constraints.mesh
    return [NamedSharding(mesh, s.spec) for s in jax.tree.leaves(shardings)]


def _parts(check: Check) -> list[Part]:
    worst = sorted(check.results, key=lambda r: (r.ok, -_times(r)))[:LISTED]
    more = len(check.results) - len(worst)
    table = Table(
        "Sharded against one device",
        ("result", "array", ">largest", ">off by", ">perturbed", ">times", ""),
        tuple(map(_row, worst)),
        f"and {more} more, nearer" if more else "",
    )
    return [table, _verdict(check)]


def _row(r: Difference) -> tuple[str, ...]:
    shape = f"{r.dtype}[{','.join(map(str, r.shape))}]"
    numbers = f"{r.scale:.2g}", f"{r.off:.2g}", f"{r.noise:.2g}", f"{_times(r):.2g}"
    return (r.name, shape, *numbers, "✓" if r.ok else "✗")


def _times(r: Difference) -> float:
    """The difference in units of what the perturbation caused."""
    if r.off == 0:
        return 0.0
    return r.off / r.noise if r.noise else float("inf")


def _verdict(check: Check) -> str:
    if check.ok:
        return "✓ equal to the step on one device, up to rounding"
    wrong = sum(not r.ok for r in check.results)
    head = f"✗ {wrong} of {len(check.results)} results are not those of one device"
    p = check.parting
    if p is None:
        return (
            f"{head}.\nEvery value of the program is right as soon as all of them are returned, so "
            "no equation can be named: the compiler makes another program then."
        )
    lines = [
        f"{head}. The first equation that computes something else:",
        f"  {p.primitive} at {p.source or '(without a line)'}"
        + (f", in {p.scope}" if p.scope else ""),
        f"  makes {_row(p.result)[1]}, off by {p.result.off:.2g} of {p.result.scale:.2g}; "
        f"a perturbation of its section's inputs causes {p.result.noise:.2g}",
        *([f"  in {p.scope}"] if p.scope else []),
        *([f"  kept as {p.kept}"] if p.kept else []),
        *(f"  within {w}" for w in p.within),
    ]
    return "\n".join(lines)
