"""Train steps whose layers hang together in the ways that pipeline stages must get right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.gpt3.config import TINY
from models.gpt3.step import make_train_step

BATCH, LENGTH, WIDTH, VOCAB, LAYERS = 16, 8, 16, 32, 4
Case = tuple[Callable[..., Any], Any, Any]
"""The step, its first state and a batch."""
ADAM = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))


def gpt3(layers: str, number: int) -> Case:
    """GPT-3 with so many layers, unrolled or scanned, without dropout."""
    config = TINY.replace(
        num_layers=number, hidden=WIDTH, num_heads=2, batch=BATCH, seq_len=LENGTH, vocab=VOCAB,
        dropout=0.0, dtype="float32", layers=layers, warmup_steps=1,
    )  # fmt: skip
    steps = make_train_step(config)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    return steps.train, jax.jit(steps.init)(jax.random.key(0)), batch


def tied() -> Case:
    """The embedding is the head, too: the first and the last stage read it."""

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        for layer in p["layers"]:
            x = _block(layer, x)
        return _cross_entropy(x @ p["table"].T, b["y"])

    return _case(loss)


def skips() -> Case:
    """As a U-net: the last layers read what the first ones made, in reverse order."""

    def loss(p: Any, b: Any) -> Any:
        x, kept = p["table"][b["x"]], []
        for layer in p["layers"][: LAYERS // 2]:
            x = _block(layer, x)
            kept.append(x)
        for layer in p["layers"][LAYERS // 2 :]:
            x = _block(layer, x + kept.pop())
        return _cross_entropy(x @ p["head"], b["y"])

    return _case(loss)


def encoder_decoder() -> Case:
    """Every layer of the decoder attends to the encoder's last output."""

    def loss(p: Any, b: Any) -> Any:
        x = p["table"][b["x"]]
        for layer in p["layers"][: LAYERS // 2]:
            x = _block(layer, x)
        y = p["table"][jnp.roll(b["y"], 1, -1)]
        for layer in p["layers"][LAYERS // 2 :]:
            y = _block(layer, y + _attend(y @ layer["cross"], x, x))
        return _cross_entropy(y @ p["head"], b["y"])

    return _case(loss)


CASES: dict[str, Callable[[], Case]] = {
    "GPT-3 unrolled": lambda: gpt3("unrolled", LAYERS),
    "GPT-3 scanned": lambda: gpt3("scanned", 2 * LAYERS),
    "encoder-decoder": encoder_decoder,
    "tied weights": tied,
    "skips": skips,
}


def _case(loss: Callable[[Any, Any], Any]) -> Case:
    """A step of Adam under a clipped global norm, of layers that attend and have an MLP."""

    def step(state: Any, batch: Any) -> Any:
        params, adam = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, adam = ADAM.update(grads, adam, params)
        metrics = {"loss": value, "norm": optax.tree.norm(grads)}
        return (optax.apply_updates(params, updates), adam), metrics

    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / shape[0] ** 0.5, jnp.float32)

    shapes = {"qkv": (WIDTH, 3 * WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH),
              "cross": (WIDTH, WIDTH)}  # fmt: skip
    layers = [{name: array(*shape) for name, shape in shapes.items()} for _ in range(LAYERS)]
    params = {"table": array(VOCAB, WIDTH), "head": array(WIDTH, VOCAB), "layers": layers}
    batch = {k: rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32) for k in ("x", "y")}
    return step, (params, ADAM.init(params)), batch


def _block(p: Any, x: Any) -> Any:
    x = x + _attend(*jnp.split(x @ p["qkv"], 3, -1))
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def _attend(q: Any, k: Any, v: Any) -> Any:
    scores = jnp.where(jnp.tri(LENGTH, dtype=bool), q @ k.mT, -1e9)
    return jax.nn.softmax(scores / WIDTH**0.5) @ v


def _cross_entropy(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
