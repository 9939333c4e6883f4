"""Binding one equation again, on our mesh: the user's shardings follow, Explicit ones fall away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import io_callback
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, Sharding

from xshard._jax import (
    JaxprEqn,
    has_mesh,
    is_ordered_debugging,
    opened,
    source_line,
    sub_jaxprs,
)
from xshard.errors import PinError
from xshard.ir.flatten import pins

REMAT = frozenset({"remat2", "remat", "checkpoint"})

_DEBUGGING = frozenset({"debug_callback", "debug_print"})
_DEVICE_MEMORY = (None, "device")
_OF_EXPLICIT_AXES = frozenset({"sharding", "out_sharding"})


def rebind(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> Sequence[Any]:
    """The equation's results for these operands."""
    special = _SPECIAL.get(eqn.primitive.name)
    if special is not None:
        return special(eqn, ins, mesh)
    if eqn.primitive.name in _DEBUGGING and is_ordered_debugging(eqn):
        return _in_order(eqn, ins)
    params = eqn.primitive.get_bind_params(without_shardings(eqn.params))
    outs = eqn.primitive.bind(*ins, **params)
    return outs if eqn.primitive.multiple_results else [outs]


def without_shardings(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without the shardings that only Explicit axis types give."""
    drop = {k: None for k in _OF_EXPLICIT_AXES & params.keys() if isinstance(params[k], Sharding)}
    return {**params, **drop} if drop else params


def must_be_rebound(jaxpr: Any) -> bool:
    """Whether a body cannot be bound as it is.

    That is where an equation below constrains shardings, was traced with a mesh in the context, or
    is one that JAX runs on one device only.
    """
    return any(
        eqn.primitive.name in _SPECIAL
        or (eqn.primitive.name in _DEBUGGING and is_ordered_debugging(eqn))
        or any(pins(eqn))
        or has_mesh(eqn)
        or any(map(must_be_rebound, sub_jaxprs(eqn)))
        for eqn in opened(jaxpr).eqns
    )


def _in_order(eqn: JaxprEqn, ins: Sequence[Any]) -> list[Any]:
    """Ordered debugging as an ordered callback, which many devices may share."""

    def call(*args: Any) -> None:
        eqn.primitive.impl(*args, **eqn.params)

    io_callback(call, None, *ins, ordered=True)
    return []


def _constraint(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> list[Any]:
    return [onto(mesh, eqn, ins[0], eqn.params["sharding"])]


def _reshard(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> list[Any]:
    return [onto(mesh, eqn, ins[0], eqn.params["dst_sharding"])]


def _mesh_cast(_eqn: JaxprEqn, ins: Sequence[Any], _mesh: Mesh) -> list[Any]:
    return list(ins)


def _device_put(eqn: JaxprEqn, ins: Sequence[Any], mesh: Mesh) -> list[Any]:
    targets = eqn.params["devices"]
    if all(isinstance(t, NamedSharding) and t.memory_kind in _DEVICE_MEMORY for t in targets):
        return [onto(mesh, eqn, x, t) for x, t in zip(ins, targets, strict=True)]
    return eqn.primitive.bind(*ins, **eqn.params)


def _fft(eqn: JaxprEqn, ins: Sequence[Any], _mesh: Mesh) -> list[Any]:
    """A transform of rows in order: on CPUs XLA may pick another layout, and refuse to run it."""
    return [_in_order_of_rows(eqn.primitive.bind(_in_order_of_rows(ins[0]), **eqn.params))]


def _reduce(eqn: JaxprEqn, ins: Sequence[Any], _mesh: Mesh) -> list[Any]:
    """Of what XLA does not see through: it would start anew for each part of a concatenation."""
    return eqn.primitive.bind(*jax.lax.optimization_barrier(list(ins)), **eqn.params)


def _in_order_of_rows(x: Any) -> Any:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def onto(mesh: Mesh, eqn: JaxprEqn, x: Any, sharding: Any) -> Any:
    """The user's constraint on our mesh."""
    if not isinstance(sharding, NamedSharding):
        return x  # of devices rather than of a mesh: the plan's placement stands
    for axis in _axes(sharding):
        if axis not in mesh.shape:
            line = source_line(eqn.source_info.traceback)
            raise PinError(
                f"a sharding constraint at {line} names mesh axis {axis!r}, but the mesh to shard "
                f"over has the axes {mesh.axis_names}; use its names, or drop the constraint"
            )
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, sharding.spec))


def _axes(sharding: NamedSharding) -> list[str]:
    parts = [p if isinstance(p, tuple) else (p,) for p in sharding.spec]
    return [axis for part in parts for axis in part if isinstance(axis, str)]


_SPECIAL: dict[str, Callable[[JaxprEqn, Sequence[Any], Mesh], list[Any]]] = {
    "sharding_constraint": _constraint,
    "reshard": _reshard,
    "mesh_cast": _mesh_cast,
    "device_put": _device_put,
    "fft": _fft,
    "reduce": _reduce,
}
