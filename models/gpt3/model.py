"""GPT-3 in `flax.nnx`, with no sharding annotation anywhere.

A pre-norm decoder (Brown et al. 2020, arXiv:2005.14165, section 2.1): token and position
embeddings, layers, a last layer norm and the head. Parameters are nested dicts of float32 arrays:

    {"embed": {"embedding"}, "position": {"embedding"}, "norm": {"scale", "bias"},
     "head": {"kernel"},
     "layer_0": {"attention_norm", "attention": {"query", "key", "value", "out"},
                 "mlp_norm", "mlp": {"up", "down"}}, "layer_1": ...}

without "head" where it is tied, and with one "layers" of stacked parameters where they are scanned.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.gpt3.config import GPT3Config
from models.gpt3.layers import Block, dropout, fold, normal_init

Params = dict[str, Any]


class GPT3(nnx.Module):
    """The language model: tokens int32 [B, S] → logits [B, S, V]."""

    def __init__(self, config: GPT3Config, *, rngs: nnx.Rngs) -> None:
        """Layers are drawn as one stack, so unrolled and scanned ones start from equal values."""
        dtype = jnp.dtype(config.dtype)
        embed = functools.partial(nnx.Embed, embedding_init=normal_init, dtype=dtype, rngs=rngs)
        self.config = config
        self.embed = embed(config.vocab, config.hidden)
        self.position = embed(config.seq_len, config.hidden)
        stack = nnx.vmap(lambda rngs: Block(config, rngs=rngs))(rngs.split(config.num_layers))
        if config.layers == "scanned":
            self.layers = stack
        else:
            for i, block in enumerate(_unstack_block(stack, config.num_layers)):
                setattr(self, f"layer_{i}", block)
        self.norm = nnx.LayerNorm(config.hidden, use_fast_variance=False, rngs=rngs)
        if not config.tied_head:
            head = functools.partial(nnx.Linear, use_bias=False, kernel_init=normal_init)
            self.head = head(config.hidden, config.vocab, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits in the compute dtype; `key` turns dropout on."""
        with jax.named_scope("embed"):
            x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
            x = dropout(x, self.config.dropout, fold(key, self.config.num_layers))
        x = self._scanned(x, key) if self.config.layers == "scanned" else self._unrolled(x, key)
        with jax.named_scope("head"):
            x = self.norm(x).astype(x.dtype)
            return self.embed.attend(x) if self.config.tied_head else self.head(x)

    def _unrolled(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """The layers one after the other; `jax.jit` traces and differentiates only the first."""
        apply = _rematted if self.config.remat else _apply
        for i in range(self.config.num_layers):
            with jax.named_scope(f"layer_{i}"):
                x = apply(*nnx.split(getattr(self, f"layer_{i}")), x, fold(key, i))
        return x

    def _scanned(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """The layers in one `jax.lax.scan` over their stacked parameters."""
        apply = _rematted if self.config.remat else _apply
        block, params = nnx.split(self.layers)

        def layer(x: jax.Array, xs: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, None]:
            return apply(block, xs[0], x, fold(key, xs[1])), None

        with jax.named_scope("layers"):
            return jax.lax.scan(layer, x, (params, jnp.arange(self.config.num_layers)))[0]


def init_params(config: GPT3Config, key: jax.Array) -> Params:
    """New float32 parameters from a typed key."""
    return nnx.to_pure_dict(nnx.state(GPT3(config, rngs=nnx.Rngs(key))))


def logits(
    config: GPT3Config, params: Params, tokens: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """The model as a function of its parameters; see `GPT3`."""
    return nnx.merge(_graphdef(config), params)(tokens, key)


def stack_layers(params: Params) -> Params:
    """Parameters of the unrolled layers → those of the scanned ones, same values."""
    names = sorted((k for k in params if k.startswith("layer_")), key=lambda k: int(k[6:]))
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[k] for k in names))
    return {k: v for k, v in params.items() if k not in names} | {"layers": layers}


@functools.lru_cache(maxsize=16)
def _graphdef(config: GPT3Config) -> nnx.GraphDef[GPT3]:
    return nnx.graphdef(nnx.eval_shape(lambda: GPT3(config, rngs=nnx.Rngs(0))))


def _unstack_block(stack: Block, num_layers: int) -> list[Block]:
    """The layers of a stack whose every parameter has a leading layer axis."""
    graphdef, params = nnx.split(stack)
    take = functools.partial(jax.lax.index_in_dim, keepdims=False)
    return [
        nnx.merge(graphdef, jax.tree.map(lambda leaf: take(leaf, i), params))  # noqa: B023
        for i in range(num_layers)
    ]


def _apply_block(
    block: nnx.GraphDef[Block], params: nnx.State, x: jax.Array, key: jax.Array | None
) -> jax.Array:
    return nnx.merge(block, params)(x, key)


_apply = jax.jit(_apply_block, static_argnums=0)
_rematted = jax.jit(jax.checkpoint(_apply_block, static_argnums=(0,)), static_argnums=0)
