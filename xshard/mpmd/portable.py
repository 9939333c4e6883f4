"""The state of a pipeline as arrays over all devices, which everything that takes arrays takes.

Within a process that is `jax.device_put`. Between processes all groups meet in a jitted sum, in
which only the group that has an array has a share that is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xshard.errors import MeshError
from xshard.mpmd.leaf import STAGES, Leaf, Part
from xshard.run.split import SplitArray


def portable(leaf: Leaf, x: Any) -> Any:
    """An array that lies as the leaf says, over the devices of all groups; of a type, its type."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf.everywhere)
    if isinstance(x, jax.Array) and x.sharding.device_set == leaf.everywhere.device_set:
        return x
    if jax.process_count() == 1:
        return x.whole() if isinstance(x, SplitArray) else jax.device_put(x, leaf.everywhere)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise MeshError(
            "a typed PRNG key cannot be moved between the processes of a pipeline; keep its "
            "jax.random.key_data in the state, and wrap that where the step uses it"
        )
    jax.block_until_ready(x)
    shares = [_share(p, piece, leaf) for p, piece in zip(leaf.parts, leaf.taken(x), strict=True)]
    return jax.block_until_ready(_sums(leaf.everywhere)(shares))


def _share(part: Part, x: jax.Array, leaf: Leaf) -> jax.Array:
    """[groups, ...]: the part on its group, zeros on the others."""
    mesh = leaf.everywhere.mesh
    sharding = NamedSharding(mesh, PartitionSpec(STAGES, *part.sharding.spec))
    shape = (len(leaf.meshes), *part.shape)
    mine = {s.device: s.data for s in x.addressable_shards}
    blank = np.zeros(sharding.shard_shape(shape), x.dtype)
    shards = [
        mine[d][None] if d in mine else jax.device_put(blank, d) for d in mesh.local_devices or ()
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards, dtype=x.dtype)


@cache
def _sums(everywhere: NamedSharding) -> Any:
    def whole(shares: Sequence[Any]) -> Any:
        parts = list(map(_sum, shares))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    return jax.jit(whole, out_shardings=everywhere)


def _sum(shares: Any) -> Any:
    """Of bits, so that it is exact; not all backends add up small types."""
    kind = jnp.float32 if jnp.issubdtype(shares.dtype, jnp.floating) else jnp.int32
    wide = shares.astype(kind) if shares.dtype.itemsize < 4 else shares
    if jnp.issubdtype(wide.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(wide, f"uint{8 * wide.dtype.itemsize}")
        total = jax.lax.bitcast_convert_type(jnp.sum(bits, 0, bits.dtype), wide.dtype)
    else:
        total = jnp.sum(wide, 0, wide.dtype)
    return total.astype(shares.dtype)
