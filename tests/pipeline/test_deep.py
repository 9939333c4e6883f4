"""Layers that no axis of a mesh divides fit only in as many stages as there are devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import xshard

WIDTH, LAYERS = 211, 8  # a prime: weights lie whole on each device of a stage
WEIGHT_BYTES = 4 * WIDTH**2


def step(state: Any, x: jax.Array) -> Any:
    """Momentum, in as many microbatches as there are rows: no axis divides one."""

    def loss(weights: list[jax.Array]) -> jax.Array:
        out = x
        for w in weights:
            out = jnp.tanh(out @ w)
        return jnp.mean(out * out)

    weights, moments = state
    value, grads = jax.value_and_grad(loss)(weights)
    moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, grads)
    return (jax.tree.map(lambda w, m: w - 0.1 * m, weights, moments), moments), value


def plan(limit: int, pipeline: int | str = "auto") -> Any:
    weights = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS
    return xshard.plan_pipeline(
        step, (weights, weights), jax.ShapeDtypeStruct((8, WIDTH), jnp.float32),
        cluster="v100-sxm2-32gb:4", microbatches=8, memory_limit=limit, pipeline=pipeline,
        remat="auto",
    )  # fmt: skip


def test_only_the_deepest_pipeline_fits() -> None:
    """Weights, moments and sums of two layers, and a little more, but not those of four."""
    limit = 9 * WEIGHT_BYTES
    with pytest.raises(xshard.InfeasibleError, match="a stage of a pipeline: no plan fits"):
        plan(limit, 2)
    found = plan(limit)
    assert found.layers == (2, 2, 2, 2)
    assert max(found.peak_bytes) <= limit


def test_where_nothing_fits_the_smallest_limit_is_that_of_the_deepest() -> None:
    with pytest.raises(xshard.InfeasibleError) as told:
        plan(4 * WEIGHT_BYTES)
    least = told.value.smallest_limit_bytes
    assert least is not None
    assert str(told.value).startswith("a stage of a pipeline")
    assert max(plan(least).peak_bytes) <= least < 9 * WEIGHT_BYTES
