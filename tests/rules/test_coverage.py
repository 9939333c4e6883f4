"""Every primitive of a transformer train step has a rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.rules.one_op import equations
from xshard.rules import registered

HEADS, WIDTH, VOCABULARY, LAYERS = 2, 8, 32, 3


def block(x: jax.Array, p: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    def norm(y: jax.Array, scale: jax.Array) -> jax.Array:
        y32 = y.astype(jnp.float32)
        mean, variance = y32.mean(-1, keepdims=True), y32.var(-1, keepdims=True)
        return ((y32 - mean) * jax.lax.rsqrt(variance + 1e-5) * scale).astype(y.dtype)

    def dropout(y: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(k, 0.9, y.shape), y / 0.9, 0)

    b, s, _ = x.shape
    q, k, v = jnp.split(norm(x, p["scale"]) @ p["qkv"], 3, axis=-1)
    q, k, v = (y.reshape(b, s, HEADS, -1) for y in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(WIDTH)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((s, s), bool)), scores, -1e4))
    x = x + dropout(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["out"], key)
    up = jax.nn.gelu(norm(x, p["scale"]) @ p["up"], approximate=False)
    return x + jax.nn.silu(jax.nn.gelu(up)) @ p["up"].T


def loss_fn(params: dict[str, Any], tokens: jax.Array, key: jax.Array) -> jax.Array:
    half = jax.tree.map(lambda p: p.astype(jnp.float16), params)
    positions = jnp.arange(tokens.shape[1])
    x = half["embed"][tokens] + jnp.take(half["position"], positions, axis=0)
    keys = jax.random.split(key, LAYERS)
    body = jax.checkpoint(lambda x, pk: (block(x, *pk), None))
    x, _ = jax.lax.scan(body, x, (half["layers"], keys))
    logits = (x @ half["embed"].T).astype(jnp.float32)[:, :-1]
    labels = optax.smooth_labels(jax.nn.one_hot(tokens[:, 1:], VOCABULARY), 0.1)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return (optax.softmax_cross_entropy(logits, labels) + hard).mean()


def train_step(state: dict[str, Any], tokens: jax.Array, seed: jax.Array) -> Any:
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)),
    )
    key = jax.random.fold_in(jax.random.key(seed), state["step"])

    def scaled(p: dict[str, Any]) -> jax.Array:
        return loss_fn(p, tokens, key) * state["scale"]

    loss, grads = jax.value_and_grad(scaled)(state["params"])
    grads = jax.tree.map(lambda g: g / state["scale"], grads)
    finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    params, opt = jax.lax.cond(
        finite, lambda: (params, opt), lambda: (state["params"], state["opt"])
    )
    scale = jnp.clip(jnp.where(finite, state["scale"] * 2, state["scale"] / 2), 1, 2.0**16)
    accuracy = (jnp.argmax(tokens, -1) == jnp.argmin(tokens, -1)).mean()
    state = {"params": params, "opt": opt, "scale": scale, "step": state["step"] + 1}
    return state, {"loss": loss / scale, "accuracy": accuracy}


def init() -> dict[str, Any]:
    layer = {"scale": (WIDTH,), "qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH,) * 2, "up": (WIDTH,) * 2}
    params = {
        "embed": jnp.ones((VOCABULARY, WIDTH)),
        "position": jnp.ones((16, WIDTH)),
        "layers": {k: jnp.ones((LAYERS, *shape)) for k, shape in layer.items()},
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1.0)))
    return {"params": params, "opt": opt.init(params), "scale": 1.0, "step": 0}


def test_a_transformer_train_step_has_no_primitive_without_a_rule() -> None:
    state = jax.eval_shape(init)
    jaxpr = jax.make_jaxpr(train_step)(state, jnp.zeros((4, 16), int), 0)
    primitives = {e.primitive.name for e in equations(jaxpr)}
    assert {"dot_general", "gather", "random_bits", "erfc"} <= primitives
    assert primitives - registered().keys() == set()
