"""`Runnable`: one planned signature of a step, as one `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from xshard.ir.trace import Traced
from xshard.plan.plan import Plan
from xshard.run.annotate import Constraints, annotate
from xshard.run.constraints import partition_spec

LARGE_CONST_BYTES = 1 << 16
"""Arrays captured by closure that are larger are sharded arguments; smaller ones are embedded."""


class StaleError(Exception):
    """The jitted function was called with arguments that it was not planned for."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A planned step.

    Attributes:
      jitted: takes the large constants, then the arguments as the user passes them.
      in_shardings: pytree of NamedShardings as the (non-static) arguments.
      out_shardings: as the result.
      consts: the large constants, where the plan wants them.
    """

    plan: Plan
    traced: Traced
    jitted: Callable[..., Any]
    in_shardings: Any
    out_shardings: Any
    consts: tuple[Any, ...]


def runnable(
    plan: Plan,
    traced: Traced,
    constraints: Constraints,
    *,
    statics: dict[int, Any],
    num_args: int,
    donate_argnums: Sequence[int],
    const_specs: Sequence[Any],
) -> Runnable:
    """Builds the jit of a plan.

    Args:
      statics: static arguments by position.
      num_args: how many arguments the user passes, static ones included.
      const_specs: the planned spec of each of `traced.consts`.
    """
    mesh = constraints.mesh
    large, small, place = _split_consts(traced, mesh, const_specs)
    in_shardings = jax.tree.unflatten(
        traced.in_tree, [NamedSharding(mesh, partition_spec(a.spec, mesh)) for a in plan.arguments]
    )
    out_shardings = jax.tree.unflatten(traced.out_tree, _out_shardings(plan, traced, mesh))
    program = annotate(traced, constraints)
    avals = [(a.shape, a.dtype) for a in traced.in_avals]

    def planned_step(consts: tuple[Any, ...], *args: Any) -> Any:
        dynamic = tuple(arg for i, arg in enumerate(args) if i not in statics)
        leaves, tree = jax.tree.flatten(dynamic)
        same = tree == traced.in_tree and [(x.shape, x.dtype) for x in leaves] == avals
        if not same or any(args[i] != value for i, value in statics.items()):
            raise StaleError
        arrays = [consts[place[i]] if i in place else small[i] for i in range(len(traced.consts))]
        return jax.tree.unflatten(traced.out_tree, program(*leaves, consts=arrays))

    shardings = iter(in_shardings)
    per_arg = tuple(None if i in statics else next(shardings) for i in range(num_args))
    jitted = jax.jit(
        planned_step,
        in_shardings=(tuple(x.sharding for x in large), *(s for i, s in enumerate(per_arg) if i not in statics)),
        out_shardings=out_shardings,
        static_argnums=tuple(i + 1 for i in statics),
        donate_argnums=tuple(i + 1 for i in donate_argnums),
    )  # fmt: skip
    return Runnable(plan, traced, jitted, in_shardings, out_shardings, large)


def _out_shardings(plan: Plan, traced: Traced, mesh: Mesh) -> list[Any]:
    specs = iter(plan.results)
    return [
        NamedSharding(mesh, jax.sharding.PartitionSpec())
        if v is None
        else NamedSharding(mesh, partition_spec(next(specs).spec, mesh))
        for v in traced.graph.outputs
    ]


def _split_consts(
    traced: Traced, mesh: Mesh, specs: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[int, Any], dict[int, int]]:
    """(large ones, sharded as planned; small ones by position; position -> place among the large)."""
    large: list[Any] = []
    small: dict[int, Any] = {}
    place: dict[int, int] = {}
    for i, (const, spec) in enumerate(zip(traced.consts, specs, strict=True)):
        if isinstance(const, jax.Array | np.ndarray) and const.nbytes >= LARGE_CONST_BYTES:
            place[i] = len(large)
            large.append(jax.device_put(const, NamedSharding(mesh, partition_spec(spec, mesh))))
        else:
            small[i] = const
    return tuple(large), small, place
