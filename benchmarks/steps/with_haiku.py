"""Steps of dm-haiku: a recurrent net and a net with state."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from benchmarks.steps import Program

ROWS, LENGTH, WIDTH = 16, 6, 8
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3))


def _program(name: str, forward: Any) -> Program:
    net = hk.transform_with_state(forward)

    def init(key: Any) -> Any:
        params, state = net.init(key, jnp.zeros((ROWS, LENGTH, WIDTH)))
        return {"params": params, "state": state, "opt": ADAM.init(params), "key": key}

    def step(state: Any, x: Any) -> Any:
        key, use = jax.random.split(state["key"])

        def loss_of(params: Any) -> Any:
            y, new = net.apply(params, state["state"], use, x)
            return ((y - jnp.roll(x, 1, 1)) ** 2).mean(), new

        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt = ADAM.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "state": new, "opt": opt, "key": key}, loss

    def batch(key: Any) -> Any:
        return jax.random.normal(key, (ROWS, LENGTH, WIDTH))

    return Program(name, "dm-haiku", step, init, batch)


def recurrent(x: Any) -> Any:
    """Two kinds of cells over time, and dropout."""
    cells = hk.DeepRNN([hk.LSTM(16), jnp.tanh, hk.GRU(16)])
    h: Any = hk.dynamic_unroll(cells, x, cells.initial_state(ROWS), time_major=False)[0]
    return hk.Linear(WIDTH)(hk.dropout(hk.next_rng_key(), 0.1, h))


def quantized(x: Any) -> Any:
    """Codes from a book that is a moving average, and batch statistics."""
    h = hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training=True)
    codes = hk.nets.VectorQuantizerEMA(16, 12, 0.25, 0.9)(h, is_training=True)
    return hk.Linear(WIDTH)(codes["quantize"])


PROGRAMS = [_program("recurrent net", recurrent), _program("quantized codes", quantized)]
