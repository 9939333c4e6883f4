"""Cross-entropy over the vocabulary, and float16's dynamic loss scale."""

from typing import TypedDict

import jax
import jax.numpy as jnp

from models.gpt3.config import GPT3Config


class LossScale(TypedDict):
    """State of dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2)."""

    scale: jax.Array
    """What the loss is multiplied by, float32."""
    good_steps: jax.Array
    """Finite steps since the scale last changed, int32."""


def cross_entropy(logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean negative log likelihood in nats, float32.

    The target's logit is picked by a comparison and a sum, which stay sharded over the vocabulary
    where a gather would not. Smoothing as in Szegedy et al. 2016 (arXiv:1512.00567), section 7.

    Args:
        logits: [B, S, V], any float dtype.
        targets: [B, S] int32.
        smoothing: share of the probability that is spread evenly over the vocabulary.
    """
    logits = logits.astype(jnp.float32)
    vocab = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    picked = jnp.sum(jnp.where(targets[..., None] == vocab, logits, 0), axis=-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - (1 - smoothing) * picked
    if smoothing:
        nats = nats - smoothing * jnp.mean(logits, axis=-1)
    return jnp.mean(nats)


def init_loss_scale(config: GPT3Config) -> LossScale:
    """The scale of the first step."""
    scale = jnp.asarray(config.init_loss_scale, jnp.float32)
    return {"scale": scale, "good_steps": jnp.zeros((), jnp.int32)}


def next_loss_scale(config: GPT3Config, state: LossScale, finite: jax.Array) -> LossScale:
    """Halves the scale after an overflow, doubles it after an interval of finite steps."""
    good_steps = jnp.where(finite, state["good_steps"] + 1, 0)
    grow = good_steps >= config.loss_scale_interval
    factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
    scale = jnp.clip(state["scale"] * factor, 1.0, 2.0**24)
    return {"scale": scale, "good_steps": jnp.where(grow, 0, good_steps)}
