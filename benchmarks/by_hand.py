"""Shardings of any step that one writes without looking at it: data parallel and FSDP.

  data parallel  the state everywhere, each array of the batch by its first dimension
  FSDP           the state too, each array by its largest dimension that divides

over all devices, where that divides. Everything else is left to XLA's propagation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def data_parallel(step: Callable[..., Any], state: Any, batch: Any, mesh: Mesh) -> Any:
    """The step as a `jax.jit`, with its arguments where it wants them."""
    return _jitted(
        step, state, batch, jax.tree.map(lambda _: NamedSharding(mesh, P()), state), mesh
    )


def fsdp(step: Callable[..., Any], state: Any, batch: Any, mesh: Mesh) -> Any:
    """The same with a sharded state."""
    specs = jax.tree.map(lambda x: NamedSharding(mesh, _by_largest(x.shape, mesh)), state)
    return _jitted(step, state, batch, specs, mesh)


def _jitted(step: Callable[..., Any], state: Any, batch: Any, kept: Any, mesh: Mesh) -> Any:
    rows = jax.tree.map(lambda x: NamedSharding(mesh, _by_first(x.shape, mesh)), batch)
    run = jax.jit(step, in_shardings=(kept, rows), out_shardings=(kept, None))
    placed = jax.device_put(state, kept), jax.device_put(batch, rows)
    return lambda: jax.block_until_ready(run(*placed))


def _by_first(shape: tuple[int, ...], mesh: Mesh) -> P:
    return P(mesh.axis_names) if shape and shape[0] % mesh.size == 0 and shape[0] else P()


def _by_largest(shape: tuple[int, ...], mesh: Mesh) -> P:
    fits = [d for d, n in enumerate(shape) if n and n % mesh.size == 0]
    if not fits:
        return P()
    largest = max(fits, key=lambda d: shape[d])
    return P(*(mesh.axis_names if d == largest else None for d in range(len(shape))))
