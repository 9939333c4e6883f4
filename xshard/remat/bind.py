"""Running equations again while a program is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from xshard._jax import JaxprEqn, Literal, consts_of, equation_context, is_array_aval, opened
from xshard.run.rebind import without_shardings


def bind(eqn: JaxprEqn, ins: Sequence[Any], *, again: bool = False) -> list[Any]:
    """The equation's results for these operands; `again`: in the backward pass."""
    where, settings = equation_context(eqn, again=again)
    with where, settings:
        params = eqn.primitive.get_bind_params(without_shardings(eqn.params))
        outs = eqn.primitive.bind(*ins, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def evaluate(jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr."""
    inner = opened(jaxpr)
    env: dict[Any, Any] = dict(zip(inner.constvars, consts_of(jaxpr), strict=True))
    env.update(zip(inner.invars, args, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in inner.eqns:
        env.update(zip(eqn.outvars, bind(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in inner.outvars]


def after(values: Sequence[Any], cotangent: Any) -> tuple[list[Any], Any]:
    """The values and the cotangent behind a barrier, which XLA neither merges nor moves across.

    What is computed from these values is then computed a second time, and not before the cotangent
    is there. A cotangent of None is left out.
    """
    held = [i for i, x in enumerate(values) if is_plain(x)]
    tied = [*(values[i] for i in held), *([] if cotangent is None else [cotangent])]
    if not held:
        return list(values), cotangent
    behind = jax.lax.optimization_barrier(tied)
    found = dict(zip(held, behind, strict=False))
    return (
        [found.get(i, x) for i, x in enumerate(values)],
        None if cotangent is None else behind[-1],
    )


def is_plain(x: Any) -> bool:
    """Whether it is an array of numbers."""
    aval = jax.typeof(x)
    return is_array_aval(aval) and aval.dtype != jax.dtypes.float0
