"""Less usual equations, against one device: code by platform, 4 bits, rbg keys, sparse arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.sharding import PartitionSpec as P

from tests.api.oracles import assert_same

X = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


def by_platform(x: Any) -> Any:
    """`platform_index` and a branch for each platform, also inside a loop."""

    def one(x: Any) -> Any:
        return jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)

    return jax.lax.fori_loop(0, 2, lambda _, x: one(x), x) @ x.T


def of_four_bits(x: Any) -> Any:
    """Integers and, where the dtype is there, floats of 4 bits."""
    whole = jnp.round(x * 3).astype(jnp.int4)
    narrow = x.astype(jnp.float4_e2m1fn).astype(jnp.float32)
    return whole, jnp.concatenate([whole, whole]).astype(jnp.int32).sum(0), narrow @ x.T


def rbg_bits(x: Any) -> Any:
    """A generator whose bits are of XLA's choice: whole on every device, so equal."""
    key = jax.random.key(1, impl="rbg")
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0) @ x.T


def sparse(x: Any) -> Any:
    """Sparse arrays, whose primitives are known by what they do."""
    graph: Any = BCOO((x[:, 0], jnp.arange(16).reshape(8, 2) % jnp.array([6, 8])), shape=(6, 8))
    return graph @ x, jax.grad(lambda x: ((graph @ jnp.sin(x)) ** 2).sum())(x), graph.T.todense()


@pytest.mark.parametrize("fun", [by_platform, of_four_bits, rbg_bits, sparse])
def test_it_equals_one_device(fun: Any, mesh: Any) -> None:
    step = assert_same(fun, (X,), mesh(2, 4), in_specs=(P("x", "y"),))
    assert all(op.known for op in step.plan.ops)
