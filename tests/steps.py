"""Small training steps that the tests of the planner share, with no array behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = list[dict[str, Any]]
Block = Callable[[dict[str, Any], Any], Any]


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An argument's type."""
    return jax.ShapeDtypeStruct(shape, dtype)


def mlp(p: dict[str, Any], x: Any) -> Any:
    """A residual block of two matmuls."""
    return x + jnp.tanh(x @ p["up"]) @ p["down"]


def mix(p: dict[str, Any], x: Any) -> Any:
    """Another kind of layer: a gate and one matmul."""
    return x * jax.nn.sigmoid(x @ p["gate"])


def mlp_params(width: int = 8, hidden: int = 16) -> dict[str, Any]:
    """Of `mlp`."""
    return {"up": array(width, hidden), "down": array(hidden, width)}


def mix_params(width: int = 8) -> dict[str, Any]:
    """Of `mix`."""
    return {"gate": array(width, width)}


def forward(blocks: Sequence[Block]) -> Callable[[Params, Any], Any]:
    """The blocks one after the other, and a mean square."""

    def loss(params: Params, x: Any) -> Any:
        for block, p in zip(blocks, params, strict=True):
            x = block(p, x)
        return jnp.mean(x * x)

    return loss


def train(blocks: Sequence[Block]) -> Callable[..., Any]:
    """A step of Adam, near enough: state = (params, first moments, second moments)."""
    loss = forward(blocks)

    def step(state: tuple[Params, Params, Params], x: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state[0], x)
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[1], grads)
        nu = jax.tree.map(lambda n, g: 0.99 * n + 0.01 * g * g, state[2], grads)
        new = jax.tree.map(lambda p, m, n: p - 0.1 * m / (jnp.sqrt(n) + 1e-8), state[0], mu, nu)
        return (new, mu, nu), value

    return step


def state(params: Params) -> tuple[Params, Params, Params]:
    """The state of `train`."""
    return params, params, params
