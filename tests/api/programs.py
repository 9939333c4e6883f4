"""Train steps that hold what plans must get right, small enough to compile in seconds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

WIDTH, VOCAB = 16, 48
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def transformer_args() -> tuple[Any, Any]:
    """(state, tokens) of `transformer_step`."""
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH)}
    shapes |= {"down": (4 * WIDTH, WIDTH)}
    layers = {
        name: jax.random.normal(key, (2, *shape)) * shape[0] ** -0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    params = {"embed": jax.random.normal(keys[5], (VOCAB, WIDTH)), "layers": layers}
    tokens = np.random.default_rng(0).integers(0, VOCAB, (8, 12))
    return (params, ADAM.init(params), jax.random.key(1)), tokens


def transformer_step(state: Any, tokens: Any) -> Any:
    """Checkpointed layers in a scan, dropout, a tied head, clipping, Adam."""
    params, adam, key = state
    key, dropout = jax.random.split(key)
    loss, grads = jax.value_and_grad(_loss)(params, tokens, dropout)
    updates, adam = ADAM.update(grads, adam, params)
    return (optax.apply_updates(params, updates), adam, key), {"loss": loss, "grads": grads}


def _loss(params: Any, tokens: Any, key: Any) -> Any:
    @jax.checkpoint
    def layer(x: Any, both: Any) -> Any:
        return _layer(x, *both), None

    x = params["embed"][tokens]
    x, _ = jax.lax.scan(layer, x, (params["layers"], jax.random.split(key, 2)))
    logits = x @ params["embed"].T
    targets = jnp.roll(tokens, -1, 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def _layer(x: Any, p: Any, key: Any) -> Any:
    batch, length, width = x.shape
    h = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    q, k, v = jnp.split((h @ p["qkv"]).reshape(batch, length, 4, -1), 3, -1)
    scores = jnp.einsum("bshd,bthd->bhst", q, k)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    y = jnp.einsum("bhst,bthd->bshd", jax.nn.softmax(scores), v).reshape(batch, length, width)
    x = x + jnp.where(jax.random.bernoulli(key, 0.9, x.shape), y @ p["out"], 0)
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def control_args() -> tuple[Any, Any, int]:
    """The arguments of `control_flow`."""
    a = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    return a, a * 0.1, 3


def control_flow(a: Any, b: Any, times: Any) -> Any:
    """while, cond, fori_loop, switch, sorting, an inverse and a prefix sum."""

    def body(carry: Any) -> Any:
        i, x, total = carry
        x = jax.lax.cond(i % 2 == 0, lambda x: jnp.tanh(x @ b), lambda x: x + total[:, None], x)
        return i + 1, x, total + x.sum(1)

    i, x, total = jax.lax.while_loop(lambda c: c[0] < times, body, (0, a, a.sum(1)))
    y = jax.lax.fori_loop(0, 3, lambda i, c: c.at[i].set(x[i] * 2), x)
    picked = jax.lax.switch(i % 3, [jnp.sin, jnp.cos, lambda x: x], y)
    inverse = jnp.linalg.inv(y @ y.T + 9 * jnp.eye(8))
    return x, total, picked, jnp.sort(x, axis=1), inverse, jnp.cumsum(x, 0)
