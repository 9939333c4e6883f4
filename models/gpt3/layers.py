"""One GPT-3 layer in `flax.nnx`: causal attention, a GELU MLP, dropout, pre-norm residuals.

Shapes in the docstrings: B sequences, S tokens, D hidden, H heads, K head width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from models.gpt3.config import GPT3Config

normal_init = nnx.initializers.normal(0.02)


def residual_init(config: GPT3Config) -> nnx.Initializer:
    """Normal of deviation 0.02 / sqrt(2 L), for the two products that add to the residual stream.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
    """
    return nnx.initializers.normal(0.02 * (2 * config.num_layers) ** -0.5)


def fold(key: jax.Array | None, i: int | jax.Array) -> jax.Array | None:
    """The `i`-th dropout key under `key`, or None where dropout is off."""
    return None if key is None else jax.random.fold_in(key, i)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales up the rest; the identity without a key.

    Compares raw random bits with the rate: five equations where `jax.random.bernoulli` takes 15.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bits(key, x.shape, jnp.uint32) >= jnp.uint32(rate * 2**32)
    return jnp.where(keep, x / (1 - rate), 0)


class Attention(nnx.Module):
    """Causal multi-head self-attention; heads are a dimension of their own in every weight."""

    def __init__(self, config: GPT3Config, *, rngs: nnx.Rngs) -> None:
        """Kernels: query, key and value [D, H, K]; out [H, K, D]."""
        linear = partial(nnx.LinearGeneral, dtype=jnp.dtype(config.dtype), rngs=rngs)
        heads = (config.num_heads, config.head_dim)
        self.query = linear(config.hidden, heads, kernel_init=normal_init)
        self.key = linear(config.hidden, heads, kernel_init=normal_init)
        self.value = linear(config.hidden, heads, kernel_init=normal_init)
        self.out = linear(heads, config.hidden, axis=(-2, -1), kernel_init=residual_init(config))
        self.rate = config.dropout

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, S, D] → [B, S, D]; the softmax is in float32, `key` turns dropout on."""
        query = self.query(x) * self.query.kernel.shape[-1] ** -0.5
        scores = jnp.einsum("bqhk,bshk->bhqs", query, self.key(x)).astype(jnp.float32)
        scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -1e9)
        probs = dropout(jax.nn.softmax(scores).astype(x.dtype), self.rate, key)
        return self.out(jnp.einsum("bhqs,bshk->bqhk", probs, self.value(x)))


class MLP(nnx.Module):
    """Two matrix products with a GELU (tanh form) between them."""

    def __init__(self, config: GPT3Config, *, rngs: nnx.Rngs) -> None:
        """Kernels: up [D, 4 D], down [4 D, D]."""
        linear = partial(nnx.Linear, dtype=jnp.dtype(config.dtype), rngs=rngs)
        width = config.mlp_ratio * config.hidden
        self.up = linear(config.hidden, width, kernel_init=normal_init)
        self.down = linear(width, config.hidden, kernel_init=residual_init(config))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] → [B, S, D]."""
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT3Config, *, rngs: nnx.Rngs) -> None:
        """The norms compute in float32 and hand on the compute dtype."""
        norm = partial(nnx.LayerNorm, config.hidden, use_fast_variance=False, rngs=rngs)
        self.attention_norm = norm()
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(config, rngs=rngs)
        self.rate = config.dropout

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, S, D] → [B, S, D]; `key` turns dropout on."""
        with jax.named_scope("attention"):
            y = self.attention(self.attention_norm(x).astype(x.dtype), fold(key, 0))
            x = x + dropout(y, self.rate, fold(key, 1))
        with jax.named_scope("mlp"):
            y = self.mlp(self.mlp_norm(x).astype(x.dtype))
            return x + dropout(y, self.rate, fold(key, 2))
