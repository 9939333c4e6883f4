"""A falling `memory_limit` moves a plan from copies to shards, and XLA allocates about as much."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xshard

WIDTH, BATCH = 128, 4096
ADAM = optax.adam(1e-3)


def make(key: Any) -> Any:
    """Two layers, 3 × 0.5 MB with Adam's moments."""
    shapes = {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    params = {
        name: jax.random.normal(k, shape) * 0.05
        for k, (name, shape) in zip(jax.random.split(key), shapes.items(), strict=True)
    }
    return params, ADAM.init(params)


def train(state: Any, x: Any) -> Any:
    params, adam = state

    def loss(p: Any) -> Any:
        return ((jax.nn.gelu(x @ p["up"]) @ p["down"] - x) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, adam = ADAM.update(grads, adam, params)
    return (optax.apply_updates(params, updates), adam), value


def planned(mesh: Any, limit: int | None) -> tuple[xshard.Plan, Any]:
    """The plan under a limit, and what XLA allocates for it on each device."""
    step = xshard.auto_shard(train, mesh, memory_limit=limit, donate_argnums=0, time_limit=5)
    state = jax.eval_shape(make, jax.random.key(0))
    lowered = step.lower(state, jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32))
    return step.plan, lowered.compile().memory_analysis()


def allocated(memory: Any) -> int:
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def state_bytes(plan: xshard.Plan) -> int:
    return sum(a.local_bytes for a in plan.arguments if a.path.startswith("args[0]"))


def test_state_is_split_as_the_limit_falls(mesh: Any) -> None:
    ample, _ = planned(mesh(8), None)
    with pytest.raises(xshard.InfeasibleError) as caught:
        planned(mesh(8), 1000)
    smallest = caught.value.smallest_limit_bytes
    assert smallest is not None
    plan, held = ample, [state_bytes(ample)]
    for limit in np.linspace(ample.peak_bytes, smallest, 4).astype(int).tolist():
        plan, memory = planned(mesh(8), limit)
        assert plan.peak_bytes <= limit
        assert allocated(memory) <= limit
        held.append(state_bytes(plan))
    assert held == sorted(held, reverse=True)
    assert any(a.spec == ((), ()) for a in ample.arguments), "ample memory holds whole parameters"
    assert all((0,) in a.spec for a in plan.arguments if a.shape), "tight memory holds none"
