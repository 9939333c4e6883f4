"""Steps whose layers hang together in different ways, with their arguments."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.gpt3.config import TINY
from models.gpt3.step import make_train_step

BATCH, LENGTH, WIDTH, VOCAB = 8, 6, 8, 20
Case = tuple[Callable[..., Any], tuple[Any, ...]]
ADAM = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))


def gpt3(**options: Any) -> Case:
    """GPT-3 with four layers."""
    small: dict[str, Any] = {"hidden": 24, "num_heads": 2, "batch": 8, "seq_len": 8, "vocab": 32}
    config = TINY.replace(**{**small, "dropout": 0.0, **options})
    steps = make_train_step(config)
    tokens = np.random.default_rng(0).integers(0, 32, (8, 9)).astype(np.int32)
    return steps.train, (
        steps.init(jax.random.key(0)), {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    )  # fmt: skip


def case(init: Callable[[Any], Any], loss: Callable[[Any, Any], Any]) -> Case:
    """A step of Adam with clipping, on tokens and targets."""

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt = ADAM.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    params = init(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    batch = {k: rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32) for k in ("x", "y")}
    return step, ((params, ADAM.init(params)), batch)


def weights(rng: Any, *shape: int) -> Any:
    """Normal, of a size that keeps activations alive."""
    return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), jnp.float32)


def layer(rng: Any) -> Any:
    """Of `apply`: attends, then two matmuls."""
    shapes = {"qkv": (WIDTH, 3 * WIDTH), "up": (WIDTH, 16), "down": (16, WIDTH)}
    return {k: weights(rng, *s) for k, s in shapes.items()} | {"bias": jnp.zeros(WIDTH)}


def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal attention of one head."""
    scores = jnp.where(jnp.tri(LENGTH, dtype=bool), q @ k.mT, -1e9)
    return jax.nn.softmax(scores / WIDTH**0.5) @ v


def apply(p: Any, x: Any) -> Any:
    """One residual layer."""
    x = x + attend(*jnp.split(x @ p["qkv"], 3, -1))
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"] + p["bias"]


def cross_entropy(logits: Any, y: Any) -> Any:
    """Mean over the tokens that are no padding (0)."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.where(y > 0, each, 0).sum() / (y > 0).sum()


def encoder_decoder() -> Case:
    """Every decoder layer reads the encoder's output; one table embeds both sides, and is tied."""

    def init(rng: Any) -> Any:
        stacks = {side: [layer(rng) for _ in range(2)] for side in ("encoder", "decoder")}
        cross = [weights(rng, WIDTH, WIDTH) for _ in range(2)]
        return stacks | {"cross": cross, "table": weights(rng, VOCAB, WIDTH)}

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        for q in p["encoder"]:
            x = apply(q, x)
        y = p["table"][jnp.roll(b["y"], 1, -1)]
        for q, w in zip(p["decoder"], p["cross"], strict=True):
            y = apply(q, y + attend(y @ w, x, x))
        return cross_entropy(y @ p["table"].T, b["y"])

    return case(init, loss)


def skips() -> Case:
    """The first layers' results are read again by the last ones, in reverse order."""

    def init(rng: Any) -> Any:
        return {"table": weights(rng, VOCAB, WIDTH), "layers": [layer(rng) for _ in range(4)]}

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        first = apply(p["layers"][0], x)
        second = apply(p["layers"][1], first)
        third = apply(p["layers"][2], second) + second
        return cross_entropy((apply(p["layers"][3], third) + first) @ p["table"].T, b["y"])

    return case(init, loss)


def two_stacks() -> Case:
    """Two scans over layers, one behind the other, of unlike lengths; the second checkpointed."""

    def init(rng: Any) -> Any:
        stack = [jax.tree.map(lambda *x: jnp.stack(x), *(layer(rng) for _ in range(n)))
                 for n in (2, 3)]  # fmt: skip
        return {"table": weights(rng, VOCAB, WIDTH), "first": stack[0], "second": stack[1]}

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        x, _ = jax.lax.scan(lambda x, q: (apply(q, x), None), x, p["first"])
        x, norms = jax.lax.scan(
            jax.checkpoint(lambda x, q: (apply(q, x), (x * x).mean((1, 2)))), x, p["second"]
        )
        return cross_entropy(x @ p["table"].T, b["y"]) + 1e-3 * norms.mean()

    return case(init, loss)


def sliced() -> Case:
    """Layers one by one over stacked weights; the last reads the first's bias again."""

    def init(rng: Any) -> Any:
        layers = jax.tree.map(lambda *x: jnp.stack(x), *(layer(rng) for _ in range(3)))
        return {"table": weights(rng, VOCAB, WIDTH), "layers": layers}

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        for i in range(3):
            x = apply(jax.tree.map(lambda stack, i=i: stack[i], p["layers"]), x)
        return cross_entropy((x + p["layers"]["bias"][0]) @ p["table"].T, b["y"])

    return case(init, loss)


def plain() -> Case:
    """A plain network whose widths differ, with a temperature that is a parameter."""
    widths = (LENGTH, 24, 12, 8, VOCAB)

    def init(rng: Any) -> Any:
        return [
            jnp.float32(1.5),
            *(weights(rng, a, b) for a, b in pairwise(widths)),
        ]

    def loss(p: Any, b: Any) -> Any:
        x = b["x"] / VOCAB
        for w in p[1:]:
            x = jnp.tanh(x @ w)
        return optax.softmax_cross_entropy_with_integer_labels(x * p[0], b["y"][:, 0]).mean()

    return case(init, loss)


def in_equinox() -> Case:
    """An equinox model, whose static fields are no arrays."""
    model = eqx.nn.MLP(LENGTH, VOCAB, 16, 3, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    def loss(p: Any, b: Any) -> Any:
        logits = jax.vmap(eqx.combine(p, static))(b["x"] / VOCAB)
        return optax.softmax_cross_entropy_with_integer_labels(logits, b["y"][:, 0]).mean()

    return case(lambda _: params, loss)


def scaled() -> Case:
    """Float16 with a loss scale: a step that overflows in one row is skipped as a whole."""
    step, (state, batch) = plain()
    del step

    def scaled_step(state: Any, batch: Any) -> Any:
        params, scale = state

        def loss(p: Any) -> Any:
            x = (batch["x"] / VOCAB).astype(jnp.float16)
            for w in p[1:]:
                x = jnp.tanh(x @ w.astype(jnp.float16))
            return (x.astype(jnp.float32) ** 2).mean() * scale

        grads = jax.tree.map(lambda g: g / scale, jax.grad(loss)(params))
        fine = jnp.isfinite(optax.tree.norm(grads))
        new = jax.tree.map(lambda w, g: jnp.where(fine, w - 0.1 * g, w), params, grads)
        return (new, jnp.where(fine, scale, scale / 2)), fine

    return scaled_step, ((state[0], jnp.float32(8)), batch)
