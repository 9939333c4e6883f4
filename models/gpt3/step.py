"""The training step: a pure function over pytrees, ready for `jax.jit` or `xshard.auto_shard`."""

from collections.abc import Callable
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import optax

from models.gpt3.config import GPT3Config
from models.gpt3.loss import LossScale, cross_entropy, init_loss_scale, next_loss_scale
from models.gpt3.model import Params, init_params, logits
from models.gpt3.optimizer import Update, apply_adam, global_norm, init_adam, schedule

Metrics = dict[str, jax.Array]


class Batch(TypedDict):
    """One global batch; `targets` are the inputs one token later."""

    inputs: jax.Array
    """int32 [batch, seq_len]."""
    targets: jax.Array
    """int32 [batch, seq_len]."""


class TrainState(TypedDict):
    """All that training carries from step to step."""

    step: jax.Array
    """Steps tried so far, int32; those skipped for an overflow count."""
    params: Params
    """float32 master weights."""
    adam: optax.ScaleByAdamState
    rng: jax.Array
    """Data of the dropout key, uint32 [2]."""
    loss_scale: NotRequired[LossScale]
    """With float16 only."""


class Steps(NamedTuple):
    """What a training loop needs of a model; the state is any pytree, here a `TrainState`."""

    init: Callable[[jax.Array], Any]
    """Key → first state."""
    train: Callable[[Any, Batch], tuple[Any, Metrics]]
    """(state, batch) → (next state, metrics)."""
    eval: Callable[[Any, Batch], Metrics]
    """(state, batch) → metrics, without dropout or smoothing."""


def make_train_step(config: GPT3Config) -> Steps:
    """The step functions of a configuration; nothing is allocated."""

    def init_fn(rng: jax.Array) -> TrainState:
        return _init(config, rng)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return _train(config, state, batch)

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        out = logits(config, state["params"], batch["inputs"])
        return {"loss": cross_entropy(out, batch["targets"])}

    return Steps(init_fn, train_step, eval_step)


def state_avals(config: GPT3Config) -> Any:
    """Shapes and dtypes of the state (`jax.ShapeDtypeStruct`), without allocating any of it."""
    return jax.eval_shape(make_train_step(config).init, jax.eval_shape(lambda: jax.random.key(0)))


def batch_avals(config: GPT3Config) -> Any:
    """Shapes and dtypes of one global batch."""
    tokens = jax.ShapeDtypeStruct((config.batch, config.seq_len), jnp.int32)
    return {"inputs": tokens, "targets": tokens}


def _init(config: GPT3Config, rng: jax.Array) -> TrainState:
    params_key, dropout_key = jax.random.split(rng)
    params = init_params(config, params_key)
    state: TrainState = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "adam": init_adam(params),
        "rng": jax.random.key_data(dropout_key),
    }
    if config.dtype == "float16":
        state["loss_scale"] = init_loss_scale(config)
    return state


def _train(config: GPT3Config, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
    scale = state["loss_scale"]["scale"] if "loss_scale" in state else jnp.float32(1)

    def scaled_loss(params: Params) -> tuple[jax.Array, jax.Array]:
        out = logits(config, params, batch["inputs"], key if config.dropout else None)
        loss = cross_entropy(out, batch["targets"], config.label_smoothing)
        return loss * scale, loss

    grads, loss = jax.grad(scaled_loss, has_aux=True)(state["params"])
    norm = global_norm(grads) / scale
    return _update(config, state, grads, {"loss": loss, "grad_norm": norm}, scale)


def _update(
    config: GPT3Config, state: TrainState, grads: Params, metrics: Metrics, scale: jax.Array
) -> tuple[TrainState, Metrics]:
    """Clips, steps Adam and moves the loss scale; an overflow leaves parameters as they were."""
    norm = metrics["grad_norm"]
    finite = jnp.isfinite(norm)
    count = jnp.asarray(state["adam"].count)
    rate = jnp.asarray(schedule(config)(count + 1), jnp.float32)
    clip = jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-12))
    update = Update(count, clip / scale, rate, finite)
    params, adam = apply_adam(config, state["params"], grads, state["adam"], update)
    metrics = {**metrics, "learning_rate": rate}
    new: TrainState = {**state, "step": state["step"] + 1, "params": params, "adam": adam}
    if "loss_scale" in state:
        new["loss_scale"] = next_loss_scale(config, state["loss_scale"], finite)
        metrics |= {"loss_scale": scale, "skipped": ~finite}
    return new, metrics
