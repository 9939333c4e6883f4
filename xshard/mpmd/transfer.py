"""Arrays from the devices of one group to those of another.

Within a process, and between processes where the backend can do it, that is `jax.device_put`. CPU
backends cannot send to another process, but have collectives over gloo: there both groups meet in
one jitted `ppermute` over all their devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard.errors import MeshError

_SIDE = "from_to"


ALL = slice(None)


def place(x: Any, sharding: NamedSharding, rows: slice = ALL) -> Any:
    """Rows of an array as the sharding says.

    Args:
      x: lies so already, or each process has it whole, or all processes have a part of it.

    Raises:
      MeshError: it lies elsewhere, on devices of some of the processes.
    """
    if isinstance(x, jax.Array):
        if rows == ALL and x.committed and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if sharding.is_fully_addressable and x.is_fully_addressable:
            return jax.device_put(x if rows == ALL else x[rows], sharding)
        x = x if x.is_fully_addressable else _gathered(x)
    whole = np.asarray(x) if rows == ALL else np.asarray(x)[rows]
    return jax.make_array_from_callback(
        whole.shape, sharding, lambda at: whole[at], dtype=whole.dtype
    )


def _gathered(x: jax.Array) -> Any:
    """The whole of an array over devices of all processes, in each of them."""
    if len({d.process_index for d in x.sharding.device_set}) < jax.process_count():
        raise MeshError(
            f"a {x.dtype}{list(x.shape)} lies on devices of some processes only, and not where "
            "this step wants it; step.portable(state), of the step that made it, moves it to all"
        )
    return multihost_utils.process_allgather(x, tiled=True)


def empty(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
    """An array of devices of other processes."""
    return jax.make_array_from_single_device_arrays(shape, sharding, [], dtype=dtype)


def everyone(meshes: Sequence[Mesh]) -> Mesh:
    """All devices of all groups, in a row."""
    return Mesh(np.concatenate([mesh.devices.ravel() for mesh in meshes]), ("devices",))


def copies(arrays: Sequence[Any], everywhere: NamedSharding) -> Any:
    """Equal arrays on this process's groups as one array that all devices have whole."""
    whole = [jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec())) for x in arrays]
    parts = [s.data for x in whole for s in x.addressable_shards]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    return jax.make_array_from_single_device_arrays(shape, everywhere, parts, dtype=dtype)


def send(arrays: Sequence[Any], to: Sequence[NamedSharding]) -> list[Any]:
    """Copies of arrays on devices that this process has, or that the backend can reach."""
    return jax.device_put(list(arrays), list(to))


def needs_meeting(source: Mesh, target: Mesh) -> bool:
    """Whether both groups' processes must take part in a collective."""
    devices = [*source.devices.flat, *target.devices.flat]
    return devices[0].platform == "cpu" and len({d.process_index for d in devices}) > 1


def meet(
    arrays: Sequence[Any] | None, avals: Sequence[Any], source: Sequence[NamedSharding],
    target: Mesh,
) -> list[Any] | None:  # fmt: skip
    """Arrays with the same specs on another mesh, moved by a collective of both groups' processes.

    Args:
      arrays: None in processes without devices of the source.
      source: how they lie.

    Returns:
      None in processes without devices of the target.

    Raises:
      MeshError: the groups have other shapes.
    """
    here: Any = source[0].mesh
    if here.devices.shape != target.devices.shape:
        raise MeshError(
            f"stages on {here.devices.size} and {target.devices.size} devices of different "
            "processes cannot send to each other on CPU; give all stages equally many devices"
        )
    specs = tuple(s.spec for s in source)
    both = _union(here, target)
    blank = _blanks(target, tuple((a.shape, a.dtype) for a in avals), specs)
    given = _expanded(here, specs)(arrays) if arrays is not None else None
    mine: list[Any] = []
    for k, (aval, spec) in enumerate(zip(avals, specs, strict=True)):
        sharding = NamedSharding(both, PartitionSpec(_SIDE, *spec))
        parts = [
            s.data
            for s in (
                *(given[k].addressable_shards if given else ()),
                *(blank()[k].addressable_shards if is_here(target) else ()),
            )
        ]
        mine.append(
            jax.make_array_from_single_device_arrays((2, *aval.shape), sharding, parts,
                                                     dtype=aval.dtype)
        )  # fmt: skip
    moved = _over(both, specs)(mine)
    jax.block_until_ready(moved)
    if not is_here(target):
        return None
    return _second(target, specs)(
        [_half(x, target, spec) for x, spec in zip(moved, specs, strict=True)]
    )


def _half(x: Any, target: Mesh, spec: PartitionSpec) -> Any:
    """The target's half, [1, ...]."""
    devices = set(target.devices.flat)
    parts = [s.data for s in x.addressable_shards if s.device in devices]
    sharding = NamedSharding(target, PartitionSpec(None, *spec))
    return jax.make_array_from_single_device_arrays(
        (1, *x.shape[1:]), sharding, parts, dtype=x.dtype
    )


def is_here(mesh: Mesh) -> bool:
    """Whether this process has devices of the mesh, and so takes part in what it does."""
    return any(d.process_index == jax.process_index() for d in mesh.devices.flat)


def _union(source: Mesh, target: Mesh) -> Mesh:
    return Mesh(np.stack([source.devices, target.devices]), (_SIDE, *source.axis_names))


@cache
def _expanded(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """[...] -> [1, ...] on one group."""
    outs = [NamedSharding(mesh, PartitionSpec(None, *spec)) for spec in specs]
    return jax.jit(lambda xs: [x[None] for x in xs], out_shardings=outs)


@cache
def _second(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """[1, ...] -> [...] on one group."""
    outs = [NamedSharding(mesh, spec) for spec in specs]
    return jax.jit(lambda xs: [x[0] for x in xs], out_shardings=outs)


@cache
def _blanks(
    mesh: Mesh, kinds: tuple[tuple[Any, Any], ...], specs: tuple[PartitionSpec, ...]
) -> Any:
    """What the target brings to the meeting: [1, ...] of zeros."""
    outs = [NamedSharding(mesh, PartitionSpec(None, *spec)) for spec in specs]
    return jax.jit(
        lambda: [jnp.zeros((1, *shape), dtype) for shape, dtype in kinds], out_shardings=outs
    )


@cache
def _over(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """The meeting: everything of side 0 to side 1."""
    both = [PartitionSpec(_SIDE, *spec) for spec in specs]
    move = lambda xs: [jax.lax.ppermute(x, _SIDE, [(0, 1)]) for x in xs]  # noqa: E731
    return jax.jit(jax.shard_map(move, mesh=mesh, in_specs=(both,), out_specs=both))
