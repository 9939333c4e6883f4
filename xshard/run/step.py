"""`Runnable`: one planned signature of a step, as one `jax.jit`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from xshard._jax import auto_mesh, evaluate, has_own_derivatives, needs_devices, typeof
from xshard.ir.trace import Traced
from xshard.plan.plan import Plan
from xshard.run.annotate import Constraints, annotate
from xshard.run.call import Call, as_tree, each_leaf
from xshard.run.constraints import partition_spec

LARGE_CONST_BYTES = 1 << 16
"""Arrays captured by closure that are larger are sharded arguments; smaller ones are embedded."""


class StaleError(Exception):
    """The jitted function was called with arguments that it was not planned for."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A planned step, called with the row of a `Call`.

    Attributes:
      constraints: of the plan, in the traced program.
      jitted: takes `lead`, then the row.
      in_shardings: pytree of NamedShardings as the (non-static) arguments; of an argument of a
        class that holds nothing but arrays, a list of its leaves', which `jitted` takes instead.
      out_shardings: as the result, or a list.
      lead: () or the large constants, where the plan wants them.
      flat: each argument that is such a list, by its place among those not static, and its tree.
      static: places in the row that are compile-time constants.
      takes_row: `jitted` takes and returns what the function does, nothing as a list.
      returns: for each leaf of each argument, static ones left out, whether a result is its next
        value. Such leaves are put where the plan wants them at the first call too: on which mesh
        an array lies is part of its type in JAX, which would compile the second call anew.
    """

    plan: Plan
    traced: Traced
    constraints: Constraints
    jitted: Callable[..., Any]
    in_shardings: Any
    out_shardings: Any
    lead: tuple[Any, ...]
    flat: dict[int, Any]
    static: frozenset[int]
    takes_row: bool
    returns: tuple[list[bool], ...]

    def __call__(self, *row: Any) -> Any:
        """Runs the step."""
        if self.takes_row:
            return self.jitted(*self.lead, *row)
        return self.returned(self.jitted(*self.lead, *self.taken(row)))

    def trace(self, call: Call) -> jax.stages.Traced:
        """The traced program, for the shapes of a call's arguments wherever they lie."""
        taken = replace(call, row=tuple(self.taken(call.row)))
        given = taken.map(partial(each_leaf, _abstract), self.in_shardings, self.returns)
        return self.jitted.trace(*self.lead, *given)  # type: ignore[attr-defined]

    def lower(self, call: Call) -> jax.stages.Lowered:
        """The lowered program."""
        return self.trace(call).lower()

    def taken(self, row: Sequence[Any], static: Container[int] | None = None) -> list[Any]:
        """A row, whose static arguments stand at these places, as `jitted` takes it.

        Raises:
          StaleError: an argument has another structure than was planned for.
        """
        constant = self.static if static is None else static
        row, dynamic = list(row), [i for i in range(len(row)) if i not in constant]
        for k, tree in self.flat.items():
            leaves, found = jax.tree.flatten(row[dynamic[k]])
            if found != tree:
                raise StaleError
            row[dynamic[k]] = leaves
        return row

    def returned(self, result: Any) -> Any:
        """What `jitted` returns as the function returns it."""
        tree = self.traced.out_tree
        whole = jax.tree.structure(self.out_shardings) == tree
        return result if whole else jax.tree.unflatten(tree, result)


def runnable(
    plan: Plan,
    traced: Traced,
    constraints: Constraints,
    mesh: Mesh,
    call: Call,
    *,
    name: str,
    const_specs: Sequence[Any],
    compiler_options: dict[str, Any] | None = None,
    abstract: bool = False,
    returned: Container[int] = (),
) -> Runnable:
    """Builds the jit of a plan.

    Args:
      mesh: where arguments and results lie; if all its axes are Explicit they have such types,
        unless the program holds callbacks, which JAX does not lower for axes of two types.
      call: what was traced.
      name: of the function, for profiles.
      const_specs: the planned spec of each of `traced.consts`.
      compiler_options: as of `jax.jit`.
      abstract: the mesh is of devices that are not here: `lead` has types only.
      returned: leaves of the arguments whose next value is a result.
    """
    mesh = auto_mesh(mesh) if needs_devices(traced.closed_jaxpr) else mesh
    large, small, place = _split_consts(traced, mesh, const_specs, abstract)
    trees = traced.in_tree.children()
    leaves = iter([NamedSharding(mesh, partition_spec(a.spec, mesh)) for a in plan.arguments])
    in_shardings = tuple(as_tree(t, [next(leaves) for _ in range(t.num_leaves)]) for t in trees)
    flat = {k: t for k, t in enumerate(trees) if jax.tree.structure(in_shardings[k]) != t}
    out_leaves = _out_shardings(plan, traced, mesh)
    out_shardings = as_tree(traced.out_tree, out_leaves)
    in_tree, out_tree = (jax.tree.structure(s) for s in (in_shardings, out_shardings))
    program = _in_auto_mode(_derived(annotate(traced, constraints), traced), mesh, out_leaves)
    avals = [_type(a) for a in traced.in_avals]
    lead = (large,) if large else ()

    def planned_step(*args: Any) -> Any:
        consts, row = (args[0], args[1:]) if lead else ((), args)
        dynamic = tuple(arg for i, arg in enumerate(row) if i not in call.static)
        leaves, tree = jax.tree.flatten(dynamic)
        same = tree == in_tree and [_type(jax.typeof(x)) for x in leaves] == avals
        if not same or any(not _same(row[i], call.row[i]) for i in call.static):
            raise StaleError
        arrays = [consts[place[i]] if i in place else small[i] for i in range(len(traced.consts))]
        return jax.tree.unflatten(out_tree, program(leaves, arrays))

    planned_step.__name__ = name
    jitted = jax.jit(
        planned_step,
        in_shardings=(*(tuple(x.sharding for x in consts) for consts in lead), *in_shardings),
        out_shardings=out_shardings,
        static_argnums=tuple(i + len(lead) for i in sorted(call.static)),
        donate_argnums=tuple(i + len(lead) for i in sorted(call.donated)),
        compiler_options=compiler_options,
    )
    return Runnable(
        plan, traced, constraints, jitted, in_shardings, out_shardings, lead, flat, call.static,
        takes_row=not flat and out_tree == traced.out_tree,
        returns=_by_argument(trees, returned),
    )  # fmt: skip


def _derived(program: Callable[..., list[Any]], traced: Traced) -> Callable[..., list[Any]]:
    """The program with the derivatives that its own functions state, which inlining drops.

    Where there are any, it is differentiated as it was traced, without the plan's constraints.
    """
    if traced.closed_jaxpr.effects or not has_own_derivatives(traced.closed_jaxpr):
        return program

    @jax.custom_jvp
    def planned(leaves: list[Any], consts: list[Any]) -> list[Any]:
        return program(*leaves, consts=consts)

    @planned.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        def plain(leaves: list[Any], consts: list[Any]) -> list[Any]:
            return evaluate(traced.closed_jaxpr, leaves, consts)

        return jax.jvp(plain, primals, tangents)

    return lambda *leaves, consts: planned(list(leaves), list(consts))


def _in_auto_mode(
    program: Callable[..., list[Any]], mesh: Mesh, out_shardings: list[NamedSharding]
) -> Callable[[list[Any], list[Any]], list[Any]]:
    """The program as a function of (arguments, constants), free of the types of Explicit axes."""

    def run(leaves: list[Any], consts: list[Any]) -> list[Any]:
        return program(*leaves, consts=consts)

    if AxisType.Explicit not in mesh.axis_types:
        return run
    in_auto_mode: Any = jax.sharding.auto_axes(run, out_sharding=out_shardings)
    return in_auto_mode


def _by_argument(trees: Sequence[Any], chosen: Container[int]) -> tuple[list[bool], ...]:
    """For each leaf of each argument, whether it is chosen by its number among all."""
    leaves = itertools.count()
    return tuple([next(leaves) in chosen for _ in range(t.num_leaves)] for t in trees)


def _abstract(x: Any, sharding: NamedSharding, returns: bool) -> Any:
    """Shapes only, so that arrays that lie elsewhere can be lowered too."""
    if not hasattr(x, "shape"):
        return x
    aval = typeof(x)
    placed = sharding if returns or getattr(x, "committed", False) else None
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type, sharding=placed)


def _type(aval: Any) -> tuple[Any, ...]:
    return aval.shape, aval.dtype, aval.weak_type


def _same(static: Any, planned: Any) -> bool:
    return type(static) is type(planned) and static == planned


def _out_shardings(plan: Plan, traced: Traced, mesh: Mesh) -> list[Any]:
    specs = iter(plan.results)
    return [
        NamedSharding(mesh, jax.sharding.PartitionSpec())
        if v is None
        else NamedSharding(mesh, partition_spec(next(specs).spec, mesh))
        for v in traced.graph.outputs
    ]


def _split_consts(
    traced: Traced, mesh: Mesh, specs: Sequence[Any], abstract: bool
) -> tuple[tuple[Any, ...], dict[int, Any], dict[int, int]]:
    """(large ones, sharded as planned; small ones by position; position -> place among large)."""
    large: list[Any] = []
    small: dict[int, Any] = {}
    place: dict[int, int] = {}
    for i, (const, spec) in enumerate(zip(traced.consts, specs, strict=True)):
        if isinstance(const, jax.Array | np.ndarray) and const.nbytes >= LARGE_CONST_BYTES:
            place[i] = len(large)
            sharding = NamedSharding(mesh, partition_spec(spec, mesh))
            if abstract:
                large.append(jax.ShapeDtypeStruct(const.shape, const.dtype, sharding=sharding))
                continue
            with jax.ensure_compile_time_eval():  # the step may be called in a traced function
                large.append(jax.device_put(const, sharding))
        else:
            small[i] = const
    return tuple(large), small, place
