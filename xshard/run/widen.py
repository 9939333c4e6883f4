"""A program in float32 where it was traced in narrower floats, equation for equation.

Every value of 16 bits is held in 32. An equation is bound to the wider operands with its own dtypes
widened; one that will not take them, or that looks at bits, gets what it was traced for and its
results are widened. So each value has the address that it has in the traced program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xshard._jax import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    evaluate,
    is_array_aval,
    opened,
    retraced_at,
    retyped,
    sub_jaxprs,
    unsharded,
)
from xshard.run.annotate import Numbers
from xshard.run.rebind import rebind

NARROW = frozenset({"bfloat16", "float16"})

_AS_TRACED = frozenset({
    "bitcast_convert_type", "nextafter", "pallas_call", "shard_map", "custom_partitioning",
    "pure_callback", "io_callback", "debug_callback", "debug_print", "ffi_call",
})  # fmt: skip
"""Equations that would mean something else on wider numbers, or whose programs are not JAX's."""


def is_narrow(aval: Any) -> bool:
    """Whether a type is an array of 16-bit floats."""
    return is_array_aval(aval) and aval.dtype.name in NARROW


def holds_narrow(jaxpr: Any) -> bool:
    """Whether a value of 16-bit floats is made at any depth, or comes in."""
    inner = opened(jaxpr)
    return any(is_narrow(v.aval) for v in inner.invars) or any(
        any(is_narrow(v.aval) for v in eqn.outvars) or any(map(holds_narrow, sub_jaxprs(eqn)))
        for eqn in inner.eqns
    )


def widened(x: Any) -> Any:
    """An array in float32 if it is of narrower floats."""
    return jnp.asarray(x, jnp.float32) if is_narrow(jax.typeof(x)) else x


def wide_aval(aval: Any) -> Any:
    """The type that `widened` gives."""
    return retyped(aval, np.dtype(np.float32)) if is_narrow(aval) else unsharded(aval)


def rebind_wide(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> Sequence[Any]:
    """`rebind` on widened operands, with widened results."""
    narrow = any(is_narrow(v.aval) for v in (*eqn.invars, *eqn.outvars))
    if not narrow:
        return rebind(eqn, ins, mesh)
    if eqn.primitive.name not in _AS_TRACED:
        outs = _attempt(eqn, ins, mesh)
        if outs is not None:
            return outs
    given = [_as_traced(x, v.aval) for x, v in zip(ins, eqn.invars, strict=True)]
    return [widened(x) for x in rebind(eqn, given, mesh)]


def _attempt(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> list[Any] | None:
    """The results on wider operands; None if the primitive does not make wide ones of them."""
    try:
        params = {name: _wide_param(value) for name, value in eqn.params.items()}
        outs = list(rebind(eqn.replace(params=params), ins, mesh))
    except (TypeError, ValueError, NotImplementedError):
        return None
    wanted = [wide_aval(v.aval).dtype for v in eqn.outvars]
    return outs if [jax.typeof(x).dtype for x in outs] == wanted else None


def _wide_param(value: Any) -> Any:
    """A dtype, or what a reduction or scatter combines two numbers by, for wider numbers."""
    if isinstance(value, np.dtype) and value.name in NARROW:
        return np.dtype(np.float32)
    if isinstance(value, Jaxpr | ClosedJaxpr):
        avals = [wide_aval(v.aval) for v in opened(value).invars]
        closed = value if isinstance(value, ClosedJaxpr) else ClosedJaxpr(value, [])
        return retraced_at(lambda *xs: evaluate(closed, xs, closed.consts), value, avals)[0]
    return value


def _as_traced(x: Any, aval: Any) -> Any:
    return jnp.asarray(x, aval.dtype) if is_narrow(aval) else x


WIDE = Numbers(rebind_wide, wide_aval, widened)
