"""Steps of repeated layers, unrolled and scanned, with what they are called on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROWS, WIDTH, HIDDEN, LAYERS = 64, 8, 32, 6
Layer = Callable[[Any, Any], Any]


def weights(layers: int = LAYERS, seed: int = 0) -> Any:
    """Of `layers` layers, stacked."""
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((layers, WIDTH, HIDDEN)) / 3
    down = rng.standard_normal((layers, HIDDEN, WIDTH)) / 6
    return {"up": jnp.asarray(up, jnp.float32), "down": jnp.asarray(down, jnp.float32)}


def rows(seed: int = 1) -> Any:
    """A batch."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((ROWS, WIDTH)), jnp.float32)


def mlp(p: Any, x: Any) -> Any:
    """A residual block whose activations take many times the memory of its input."""
    h = jnp.tanh(x @ p["up"])
    return x + jnp.sin(jnp.cos(h) * h) @ p["down"]


def dropped(p: Any, x: Any) -> Any:
    """With dropout."""
    h = jnp.tanh(x @ p["up"])
    kept = jax.random.bernoulli(jax.random.key(7), 0.8, h.shape)
    return x + jnp.where(kept, jnp.sin(h) * h, 0) @ p["down"]


@jax.custom_vjp
def _cube(x: Any) -> Any:
    return x**3


_cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x * x * g,))


def own_derivative(p: Any, x: Any) -> Any:
    """With a derivative of its own, under jit."""
    return x + jax.jit(lambda h: _cube(jnp.tanh(h)) * h)(x @ p["up"]) @ p["down"]


def half(p: Any, x: Any) -> Any:
    """Computed in bfloat16."""
    up, down = p["up"].astype(jnp.bfloat16), p["down"].astype(jnp.bfloat16)
    h = jnp.tanh(x.astype(jnp.bfloat16) @ up)
    return x + ((jnp.sin(h) * h) @ down).astype(jnp.float32)


def printing(p: Any, x: Any) -> Any:
    """With an effect."""
    h = jnp.tanh(x @ p["up"])
    jax.debug.callback(lambda _: None, h.mean())
    return x + (jnp.sin(h) * h) @ p["down"]


def unrolled(layer: Layer) -> Callable[[Any, Any], Any]:
    """The layers one after the other."""

    def forward(p: Any, x: Any) -> Any:
        for i in range(p["up"].shape[0]):
            x = layer(jax.tree.map(lambda a, i=i: a[i], p), x)
        return x

    return forward


def scanned(layer: Layer, *, reverse: bool = False) -> Callable[[Any, Any], Any]:
    """The layers as turns of a scan."""

    def forward(p: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, p: (layer(p, x), x.mean()), x, p, reverse=reverse)[0]

    return forward


def step(forward: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Gradient descent on the mean square."""

    def train(p: Any, x: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: (forward(p, x) ** 2).mean())(p)
        return jax.tree.map(lambda p, g: p - 0.1 * g, p, grads), loss

    return train
