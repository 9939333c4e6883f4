"""A perceptron under each optimiser of optax that people train with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program

WIDTH, HIDDEN, ROWS = 16, 32, 32

OPTIMIZERS: dict[str, Any] = {
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, momentum=0.9),
    "lion": lambda: optax.lion(optax.cosine_decay_schedule(1e-2, 10)),
    "adamw": lambda: optax.adamw(
        1e-2, eps=1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
    "sgd with momentum": lambda: optax.sgd(1e-1, momentum=0.9, nesterov=True),
    "accumulated lamb": lambda: optax.MultiSteps(optax.lamb(1e-2), every_k_schedule=2),
    "clipped rmsprop": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.rmsprop(1e-2, eps=1e-3)
    ),
    "shampoo-like": lambda: optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=8), optax.ema(0.9), optax.scale(-1e-2)
    ),
    "loss scaled lars": lambda: optax.apply_if_finite(optax.lars(1e-1), 3),
}


def _init(optimizer: Any) -> Any:
    def init(key: Any) -> Any:
        up, down = jax.random.split(key)
        params = {
            "up": jax.random.normal(up, (WIDTH, HIDDEN)) * WIDTH**-0.5,
            "bias": jnp.zeros(HIDDEN),
            "down": jax.random.normal(down, (HIDDEN, 1)) * HIDDEN**-0.5,
        }
        return {"params": params, "optimizer": optimizer.init(params), "step": 0}

    return init


def _step(optimizer: Any) -> Any:
    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            hidden = jnp.tanh(batch["x"] @ params["up"] + params["bias"])
            guess = (hidden @ params["down"])[:, 0]
            return optax.huber_loss(guess, batch["y"]).mean(), {"guess": guess.mean()}

        (loss, more), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, inner = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "optimizer": inner, "step": state["step"] + 1}
        return new, {"loss": loss, "norm": optax.tree.norm(grads), **more}

    return step


def _batch(key: Any) -> Any:
    x = jax.random.normal(key, (ROWS, WIDTH))
    return {"x": x, "y": x[:, 0] * x[:, 1]}


PROGRAMS = [
    Program(f"perceptron, {name}", "optax", _step(make()), _init(make()), _batch)
    for name, make in OPTIMIZERS.items()
]
