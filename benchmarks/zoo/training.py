"""What the steps share: a loss becomes a training step with its optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks.steps import Program


def adamw() -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm; a large epsilon keeps zero gradients small."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, eps=1e-4))


def trained(
    name: str, library: str, init: Callable[[Any], Any], loss: Callable[..., Any],
    batch: Callable[[Any], Any], optimizer: optax.GradientTransformation | None = None,
) -> Program:  # fmt: skip
    """The program that trains `init`'s parameters with `loss(params, batch, key)`."""
    opt = optimizer or adamw()

    def start(key: Any) -> Any:
        params = init(key)
        return {"params": params, "opt": opt.init(params), "key": key}

    def step(state: Any, batch: Any) -> Any:
        key, mine = jax.random.split(state["key"])
        value, grads = jax.value_and_grad(loss)(state["params"], batch, mine)
        updates, moments = opt.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt": moments, "key": key}, {"loss": value}

    return Program(name, library, step, start, batch)


def tokens(rows: int, length: int, vocab: int) -> Callable[[Any], Any]:
    """Batches of random tokens."""
    return lambda key: jax.random.randint(key, (rows, length), 0, vocab)


def normal(*shape: int) -> Callable[[Any], Any]:
    """Batches of noise."""
    return lambda key: jax.random.normal(key, shape)
