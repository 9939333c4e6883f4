"""Steps whose stages read more than their neighbour's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH, WIDTH, VOCAB = 16, 8, 12
Loss = Callable[[Any, Any], Any]
ADAM = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2))


def args(loss: Loss | None = None, layers: int = 4) -> tuple[Any, Any]:
    """(state, batch) of `train`'s step; for `scanned`, the layers' weights are stacked."""
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 3, jnp.float32)  # noqa: E731
    params = {
        "embed": array(VOCAB, WIDTH),
        "layers": [{"up": array(WIDTH, 16), "down": array(16, WIDTH)} for _ in range(layers)],
        "cross": [array(WIDTH, WIDTH) for _ in range(layers)],
    }
    if loss is scanned:
        params["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])
    tokens = rng.integers(0, VOCAB, (BATCH, 2)).astype(np.int32)
    batch = {"source": tokens[:, 0], "target": tokens[:, 1]}
    return (params, ADAM.init(params)), batch


def train(loss: Loss) -> Callable[[Any, Any], Any]:
    """A step of Adam under a clipped global norm."""

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt = ADAM.update(grads, opt, params)
        metrics = {"loss": value, "norm": optax.tree.norm(grads), "best": logits.argmax(-1)}
        return (optax.apply_updates(params, updates), opt), metrics

    return step


def _block(p: Any, x: Any) -> Any:
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def _cross_entropy(logits: Any, batch: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
    return losses.mean(), logits


def tied(params: Any, batch: Any) -> Any:
    """The embedding is the head as well: the first and the last stage read it."""
    x = params["embed"][batch["source"]]
    for p in params["layers"]:
        x = _block(p, x)
    return _cross_entropy(x @ params["embed"].T, batch)


def skips(params: Any, batch: Any) -> Any:
    """As a U-net: the last layers read what the first ones made."""
    x, kept = params["embed"][batch["source"]], []
    layers = params["layers"]
    for p in layers[: len(layers) // 2]:
        x = _block(p, x)
        kept.append(x)
    for p in layers[len(layers) // 2 :]:
        x = _block(p, x + kept.pop())
    return _cross_entropy(x @ params["embed"].T, batch)


def encoder_decoder(params: Any, batch: Any) -> Any:
    """All layers of the decoder read the encoder's last output."""
    layers = params["layers"]
    x = params["embed"][batch["source"]]
    for p in layers[: len(layers) // 2]:
        x = _block(p, x)
    y = params["embed"][batch["target"]]
    for p, cross in zip(layers[len(layers) // 2 :], params["cross"], strict=False):
        y = _block(p, y + x @ cross)
    return _cross_entropy(y @ params["embed"].T, batch)


def scanned(params: Any, batch: Any) -> Any:
    """As `tied`, over stacked weights."""
    x = params["embed"][batch["source"]]
    x, _ = jax.lax.scan(lambda x, p: (_block(p, x), None), x, params["layers"])
    return _cross_entropy(x @ params["embed"].T, batch)


CASES: dict[str, tuple[Loss, int]] = {
    "tied": (tied, 4), "scanned": (scanned, 4), "uneven": (scanned, 3),
}  # fmt: skip
"""Losses and numbers of layers, of which two stages have as many or not."""
