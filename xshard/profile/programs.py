"""SPMD programs that run one signature on all devices of a mesh at once, in a loop.

Each device works on its own operands, as it does in a sharded step, so what devices take from each
other (cores, memory, power) is in the number. An `optimization_barrier` ties each turn to the last,
or XLA would hoist what does not change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard.cost.signature import BY_ELEMENT, CONV, DOT, Signature, einsum_of
from xshard.profile.timing import SHORT, Run

Body = Callable[..., Any]

_CACHES_BYTES = 4 << 20
"""A loop goes over arrays of this much together: a step finds its large arrays in memory."""
_MOST_ARRAYS = 4
_MOST_COPIED = 1 << 26
"""Larger operands are made on the devices, by a program."""


def looped(body: Body, mesh: Mesh, args: tuple[Any, ...]) -> Run:
    """A compiled program of `body` on the local shards of `args`, in a loop.

    Its results are carried and returned, so that no part of them is left out.
    """
    spec = PartitionSpec(mesh.axis_names)

    def local(turns: Any, *args: Any) -> Any:
        def turn(_: Any, carried: Any) -> Any:
            held, _ = lax.optimization_barrier(carried)
            return held, body(*held)

        start = jax.tree.map(
            lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(body, *args)
        )
        return lax.fori_loop(0, turns, turn, (args, start))[1]

    return (
        _run(local, mesh, spec, args)
        if turns_are_data(mesh)
        else _run_static(local, mesh, spec, args)
    )


def turns_are_data(mesh: Mesh) -> bool:
    """Whether one program serves any number of turns.

    Elsewhere than on CPUs a loop with a number of turns that the compiler knows runs on without
    asking the host, so there each number of turns has its program.
    """
    return mesh.devices.flat[0].platform == "cpu"


def _run(local: Body, mesh: Mesh, spec: PartitionSpec, args: tuple[Any, ...]) -> Run:
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(), *(spec,) * len(args)), out_specs=spec,
        check_vma=False,
    )  # fmt: skip
    program = jax.jit(mapped).lower(jnp.int32(SHORT), *args).compile()
    return lambda turns: jax.block_until_ready(program(jnp.int32(turns), *args))


def _run_static(local: Body, mesh: Mesh, spec: PartitionSpec, args: tuple[Any, ...]) -> Run:
    programs: dict[int, Any] = {}

    def run(turns: int) -> object:
        if turns not in programs:
            mapped = jax.shard_map(
                partial(local, turns), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
            )
            programs[turns] = jax.jit(mapped).lower(*args).compile()
            jax.block_until_ready(programs[turns](*args))
        return jax.block_until_ready(programs[turns](*args))

    return run


def filled(mesh: Mesh, shape: tuple[int, ...], dtype: str) -> Any:
    """An array whose shard on each device has `shape`, of numbers that keep their size."""
    total = (shape[0] * mesh.size, *shape[1:])
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    fill = 0.5 if jnp.issubdtype(dtype, jnp.floating) else 1
    if math.prod(total) > _MOST_COPIED:
        return jax.jit(lambda: jnp.full(total, fill, dtype), out_shardings=sharding)()
    return jax.device_put(np.full(total, fill, jnp.dtype(dtype)), sharding)  # compiles nothing


def program_of(signature: Signature, mesh: Mesh) -> tuple[Run, int]:
    """The program of an op or a loop, and how often one turn runs it.

    Raises:
      Exception: whatever JAX raises where the devices do not take such a program.
    """
    if signature.kind == DOT:
        return _dot(signature, mesh), 1
    return (_conv(signature, mesh), 1) if signature.kind == CONV else _loop(signature, mesh)


def _dot(signature: Signature, mesh: Mesh) -> Run:
    (left, right, out), (lhs, rhs, result, *precision) = einsum_of(signature.family)
    size = dict(zip(dict.fromkeys((*left, *right, *out)), signature.sizes, strict=True))
    batch = [f for f in left if f in right and f in out]
    inner = [f for f in left if f in right and f not in out]
    numbers = tuple(
        tuple(tuple(side.index(f) for f in part) for side in (left, right))
        for part in (inner, batch)
    )

    def body(x: Any, y: Any) -> Any:
        return lax.dot_general(
            *(v.reshape([size[f] for f in side]) for v, side in ((x, left), (y, right))),
            numbers, precision=precision[0] if precision else None,  # type: ignore[arg-type]
            preferred_element_type=result,
        )  # fmt: skip

    shapes = [tuple(size[f] for f in side) or (1,) for side in (left, right)]
    args = (filled(mesh, shapes[0], lhs), filled(mesh, shapes[1], rhs))
    return looped(body, mesh, args)


def _conv(signature: Signature, mesh: Mesh) -> Run:
    params = json.loads(signature.family)
    specs = lax.ConvDimensionNumbers(*(tuple(spec) for spec in params.pop("specs")))
    lhs, rhs, result, *precision = params.pop("dtypes").split()
    del params["rule"]
    rank = len(specs.lhs_spec)

    def body(x: Any, y: Any) -> Any:
        return lax.conv_general_dilated(
            x, y, **params, dimension_numbers=specs, preferred_element_type=result,
            precision=precision[0] if precision else None,
        )  # fmt: skip

    shapes = signature.sizes[:rank], signature.sizes[rank:]
    return looped(body, mesh, (filled(mesh, shapes[0], lhs), filled(mesh, shapes[1], rhs)))


def _order(x: Any) -> Any:
    """Row numbers in an order that jumps."""
    start = x[:, 0].astype(jnp.float32) * 0
    return (start + jnp.arange(len(x)) * 7).astype(jnp.int32) % len(x)


def _bits(x: Any) -> Any:
    key = jax.random.fold_in(jax.random.key(0), x.ravel()[0].astype(jnp.int32))
    return jax.random.bits(key, x.shape, jnp.uint32).astype(x.dtype)


LOOPS: dict[str, tuple[Body, float]] = {
    "elementwise": (lambda x: x * 0.5 + 0.25, 2.0),
    "reduce": (lambda x: x.sum(-1), 1.0),
    "gather": (lambda x: x[_order(x)], 2.0),
    "scatter": (lambda x: (x * 0.5).at[_order(x)].add(x), 3.0),
    "transcendental": (lambda x: jnp.tanh(x) + 0.25, 2.0),
    "random": (_bits, 2.0),
}
"""What stands for each kind of loop, and how often it goes over its array in memory."""


def _loop(signature: Signature, mesh: Mesh) -> tuple[Run, int]:
    """A turn goes over several arrays, more than the caches hold if they are large."""
    kind, dtype = signature.family.split()
    body, passes = LOOPS[kind]
    width = jnp.dtype(dtype).itemsize
    elements = signature.sizes[0] if kind in BY_ELEMENT else signature.sizes[0] / passes / width
    rows = max(1, 1 << round(math.log2(max(elements, 1)) / 2))
    shape = rows, max(1, round(elements / rows))
    most = 1 if kind in BY_ELEMENT else _MOST_ARRAYS
    count = min(most, max(1, _CACHES_BYTES // (math.prod(shape) * width)))
    args = tuple(filled(mesh, shape, dtype) for _ in range(count))
    return looped(lambda *xs: tuple(body(x) for x in xs), mesh, args), count
