"""AdamW with a warmup-cosine schedule and clipping by global norm, built from `optax`.

The update is applied to one top-level module of the parameters at a time under `jax.jit`, which
traces it once for all layers: 39B has 772 parameters, and 48 equal layers.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from models.gpt3.config import GPT3Config
from models.gpt3.model import Params


class Update(NamedTuple):
    """Scalars that one step's update shares over all parameters."""

    number: jax.Array
    """Updates made before this one, int32."""
    grad_scale: jax.Array
    """What gradients are multiplied by: clipping and the inverse of the loss scale."""
    learning_rate: jax.Array
    finite: jax.Array
    """Whether the step is made at all, bool."""


def init_adam(params: Params) -> optax.ScaleByAdamState:
    """Zero moments, shaped like the parameters."""
    state = optax.scale_by_adam().init(params)
    assert isinstance(state, optax.ScaleByAdamState)
    return state


def schedule(config: GPT3Config) -> optax.Schedule:
    """Linear warmup to the peak, then a cosine down to a tenth of it (GPT-3 paper, appendix B)."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = max(config.decay_steps, warmup + 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, decay, 0.1 * peak)


def global_norm(grads: Params) -> jax.Array:
    """Euclidean norm over all gradients, float32."""
    return jnp.sqrt(sum((_sum_squares(grads[name]) for name in grads), start=jnp.float32(0)))


def apply_adam(
    config: GPT3Config,
    params: Params,
    grads: Params,
    adam: optax.ScaleByAdamState,
    update: Update,
) -> tuple[Params, optax.ScaleByAdamState]:
    """New parameters and moments; the old ones where `update.finite` is false."""
    mu, nu = cast(Params, adam.mu), cast(Params, adam.nu)
    new = {
        name: _update_module(config, params[name], grads[name], mu[name], nu[name], update)
        for name in params
    }
    params, mu, nu = ({name: new[name][i] for name in new} for i in range(3))
    count = jnp.where(update.finite, update.number + 1, update.number)
    return params, optax.ScaleByAdamState(count, mu, nu)


@jax.jit
def _sum_squares(grads: Params) -> jax.Array:
    return optax.tree.norm(grads, squared=True)


@functools.partial(jax.jit, static_argnums=0)
def _update_module(
    config: GPT3Config, params: Params, grads: Params, mu: Params, nu: Params, update: Update
) -> tuple[Params, Params, Params]:
    """One module's (params, mu, nu); `finite` is a select and not a branch, to keep XLA fusing."""
    grads = jax.tree.map(lambda g: g * update.grad_scale, grads)
    adam = optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_eps)
    steps, state = adam.update(grads, optax.ScaleByAdamState(update.number, mu, nu))
    decay = optax.add_decayed_weights(config.weight_decay, mask=_is_matrix)
    steps, _ = decay.update(steps, decay.init(params), params)
    new = jax.tree.map(lambda p, s: p - update.learning_rate * s, params, steps)
    return jax.tree.map(
        lambda new, old: jax.lax.select(update.finite, new, old),
        (new, state.mu, state.nu),  # type: ignore[union-attr]
        (params, mu, nu),
    )


def _is_matrix(params: Params) -> Any:
    """True for kernels and embeddings, which decay; false for biases and norm scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )
