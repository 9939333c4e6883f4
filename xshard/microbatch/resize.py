"""Arrays and parameters for one turn's rows.

Turn j takes the rows j, j + m, j + 2m, ...: of a batch that is sharded, each shard holds as many of
them as every other, so that no row moves to another device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import JaxprEqn
from xshard.microbatch.factor import Use
from xshard.microbatch.status import Rows, Status

Shape = tuple[int, ...]


def local_shape(shape: Shape, status: Status, turns: int) -> Shape:
    """The shape of a turn's part of an array."""
    if not isinstance(status, Rows):
        return shape
    return (*shape[: status.dim], shape[status.dim] // turns, *shape[status.dim + 1 :])


def merge(stack: Any, rows: Rows, batch: int) -> Any:
    """The whole array from all turns' parts, [turns, ...]."""
    d, (turns, *local) = rows.dim, stack.shape
    whole = (*local[:d], local[d] * turns, *local[d + 1 :])
    shape, at = _by_turn(whole, rows, batch, turns)
    split = jnp.reshape(stack, (turns, *shape[:at], *shape[at + 1 :]))
    return jnp.reshape(jnp.moveaxis(split, 0, at), whole)


def cut(x: Any, rows: Rows, batch: int, turns: int, turn: Any) -> Any:
    """The part of turn number `turn`.

    It is cut in the loop, out of a view with a dimension for the turns: nothing is copied before.
    """
    shape, at = _by_turn(x.shape, rows, batch, turns)
    part = jax.lax.dynamic_index_in_dim(jnp.reshape(x, shape), turn, at, keepdims=False)
    return jnp.reshape(part, local_shape(x.shape, rows, turns))


def _by_turn(shape: Shape, rows: Rows, batch: int, turns: int) -> tuple[Shape, int]:
    """The shape with a dimension of its own for the turns, and where that stands."""
    d = rows.dim
    before = [rows.outer] if rows.outer > 1 else []
    after = [rows.inner] if rows.inner > 1 else []
    new = (*shape[:d], *before, batch // turns, turns, *after, *shape[d + 1 :])
    return new, d + len(before) + 1


Local = Callable[[Shape, Status], Shape]
"""The shape of a part of an array of this status."""


def a_turns(turns: int) -> Local:
    """`local_shape` for so many turns."""
    return lambda shape, status: local_shape(shape, status, turns)


def resized(eqn: JaxprEqn, use: Use, local: Local) -> dict[str, Any]:
    """The parameters for operands and results that are parts."""
    change = _PARAMS.get(eqn.primitive.name)
    return eqn.params if change is None else {**eqn.params, **change(eqn, use, local)}


def _result(name: str) -> Callable[[JaxprEqn, Use, Local], dict[str, Any]]:
    """The parameter that is the result's shape."""

    def change(eqn: JaxprEqn, use: Use, local: Local) -> dict[str, Any]:
        aval: Any = eqn.outvars[0].aval
        return {name: local(aval.shape, use.outs[0])}

    return change


def _slice(eqn: JaxprEqn, use: Use, local: Local) -> dict[str, Any]:
    if not isinstance(use.outs[0], Rows):
        return {}
    return {"limit_indices": local(tuple(eqn.params["limit_indices"]), use.outs[0])}


def _sizes(eqn: JaxprEqn, use: Use, local: Local) -> dict[str, Any]:
    """Windows that are as wide as the batch; those of one row stay."""
    sizes, rows = tuple(eqn.params["slice_sizes"]), use.ins[0]
    aval: Any = eqn.invars[0].aval
    if not isinstance(rows, Rows) or sizes[rows.dim] != aval.shape[rows.dim]:
        return {}
    return {"slice_sizes": local(sizes, rows)}


_PARAMS: dict[str, Callable[[JaxprEqn, Use, Local], dict[str, Any]]] = {
    "broadcast_in_dim": _result("shape"),
    "reshape": _result("new_sizes"),
    "empty": _result("shape"),
    "slice": _slice,
    "dynamic_slice": _sizes,
    "gather": _sizes,
}
"""Parameters that state sizes, by primitive."""
