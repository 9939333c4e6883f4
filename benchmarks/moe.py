"""A plain JAX training step of a transformer with mixtures of experts, sized by its arguments.

Experts as in GShard (Lepikhin et al., 2020, arXiv:2006.16668): tokens in groups, the best expert
of each token with a capacity, dispatch and combination by one-hot einsums. Nothing in it speaks of
devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """Sizes; tokens come as [groups, tokens of a group]."""

    layers: int = 32
    hidden: int = 4096
    inner: int = 16384
    experts: int = 256
    heads: int = 32
    vocab: int = 51200
    groups: int = 1024
    tokens: int = 1024
    capacity_factor: float = 2.0

    @property
    def capacity(self) -> int:
        """Places of an expert for each group."""
        return max(4, int(self.capacity_factor * self.tokens / self.experts))

    @property
    def num_params(self) -> int:
        """Trainable parameters."""
        expert = 2 * self.hidden * self.inner * self.experts
        layer = expert + 4 * self.hidden**2 + self.hidden * (self.experts + 2)
        return self.layers * layer + self.vocab * self.hidden


def init(config: MoEConfig) -> State:
    """The first state: float32 master weights and Adam's two moments."""
    h, e, f = config.hidden, config.experts, config.inner
    layer = {
        "qkv": jnp.zeros((h, 3, config.heads, h // config.heads)),
        "out": jnp.zeros((config.heads, h // config.heads, h)),
        "router": jnp.zeros((h, e)),
        "up": jnp.zeros((e, h, f)),
        "down": jnp.zeros((e, f, h)),
        "norms": jnp.zeros((2, h)),
    }
    params = {"embed": jnp.zeros((config.vocab, h)), "layers": [layer] * config.layers}
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {"params": params, "m": zeros, "v": zeros}


def train(state: State, batch: dict[str, jax.Array], config: MoEConfig) -> tuple[State, Any]:
    """One step of Adam in bfloat16 with float32 weights."""
    loss, grads = jax.value_and_grad(_loss)(state["params"], batch, config)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["m"], grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state["v"], grads)
    params = jax.tree.map(
        lambda p, m, v: p - 1e-4 * m / (jnp.sqrt(v) + 1e-8), state["params"], m, v
    )
    return {"params": params, "m": m, "v": v}, loss


def _loss(params: State, batch: dict[str, jax.Array], config: MoEConfig) -> jax.Array:
    table = params["embed"].astype(jnp.bfloat16)
    x = table[batch["inputs"]]
    for layer in params["layers"]:
        weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), layer)
        x = x + _attention(weights, _norm(x, weights["norms"][0]))
        x = x + _experts(weights, _norm(x, weights["norms"][1]), config)
    scores = jnp.einsum("gsh,vh->gsv", x, table).astype(jnp.float32)
    picked = jax.nn.one_hot(batch["targets"], config.vocab, dtype=jnp.float32)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(scores) * picked, axis=-1))


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * (1 + scale)


def _attention(w: State, x: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(jnp.einsum("gsh,hcnd->gscnd", x, w["qkv"]), 2, 0)
    scores = jnp.einsum("gsnd,gtnd->gnst", q, k)
    mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
    return jnp.einsum("gnst,gtnd,ndh->gsh", weights, v, w["out"])


def _experts(w: State, x: jax.Array, config: MoEConfig) -> jax.Array:
    gates = jax.nn.softmax(jnp.einsum("gsh,he->gse", x, w["router"]), axis=-1)
    chosen = jax.nn.one_hot(jnp.argmax(gates, axis=-1), config.experts, dtype=x.dtype)
    place = jnp.cumsum(chosen, axis=1) * chosen - 1
    slots = jax.nn.one_hot(place.astype(jnp.int32), config.capacity, dtype=x.dtype)
    combine = (gates * chosen)[..., None] * slots
    inner = jnp.einsum("gsec,gsh->egch", slots * chosen[..., None], x)
    inner = jax.nn.gelu(jnp.einsum("egch,ehf->egcf", inner, w["up"]))
    inner = jnp.einsum("egcf,efh->egch", inner, w["down"])
    return jnp.einsum("gsec,egch->gsh", combine, inner)
