"""The GPT-3 layer of `models.gpt3.layers` in `flax.linen`, and a language model that trains it.

Written as most Flax code in the field is: stock linen modules, `TrainState`, one optax chain,
integer labels. Its parameters have the names and shapes of the nnx layer, and its steps have the
interface of `models.gpt3.step.make_train_step`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from models.gpt3.config import GPT3Config
from models.gpt3.step import Batch, Metrics, Steps


class LinenState(train_state.TrainState):
    """Step, parameters and optimizer state, and the data of the dropout key (uint32 [2])."""

    rng: jax.Array


class LinenAttention(nn.Module):
    """Causal self-attention, [B, S, D] → [B, S, D]."""

    config: GPT3Config

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        heads = (config.num_heads, config.head_dim)
        query, key, value = (
            nn.DenseGeneral(heads, dtype=dtype, name=name)(x) for name in ("query", "key", "value")
        )
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        mixed = nn.dot_product_attention(
            query,
            key,
            value,
            mask=mask,
            dropout_rng=None if deterministic else self.make_rng("dropout"),
            dropout_rate=config.dropout,
            broadcast_dropout=False,
            deterministic=deterministic,
            dtype=dtype,
            force_fp32_for_softmax=True,
        )
        return nn.DenseGeneral(config.hidden, axis=(-2, -1), dtype=dtype, name="out")(mixed)


class LinenMLP(nn.Module):
    """Two products with a GELU between them, [B, S, D] → [B, S, D]."""

    config: GPT3Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        x = nn.Dense(config.mlp_ratio * config.hidden, dtype=dtype, name="up")(x)
        return nn.Dense(config.hidden, dtype=dtype, name="down")(nn.gelu(x))


class LinenBlock(nn.Module):
    """One pre-norm layer, [B, S, D] → [B, S, D]."""

    config: GPT3Config

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        config = self.config
        dropout = nn.Dropout(config.dropout, deterministic=deterministic)
        y = nn.LayerNorm(name="attention_norm")(x).astype(x.dtype)
        x = x + dropout(LinenAttention(config, name="attention")(y, deterministic))
        y = nn.LayerNorm(name="mlp_norm")(x).astype(x.dtype)
        return x + dropout(LinenMLP(config, name="mlp")(y))


class LinenGPT3(nn.Module):
    """Tokens int32 [B, S] → logits [B, S, V]; the head is tied to the embedding."""

    config: GPT3Config

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embed = nn.Embed(config.vocab, config.hidden, dtype=dtype, name="embed")
        position = nn.Embed(config.seq_len, config.hidden, dtype=dtype, name="position")
        x = embed(tokens) + position(jnp.arange(tokens.shape[1]))
        x = nn.Dropout(config.dropout, deterministic=deterministic)(x)
        x = self._layers(x, deterministic)
        return embed.attend(nn.LayerNorm(name="norm")(x).astype(x.dtype))

    def _layers(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        block = nn.remat(LinenBlock, static_argnums=(2,)) if config.remat else LinenBlock
        if config.layers == "unrolled":
            for i in range(config.num_layers):
                x = block(config, name=f"layer_{i}")(x, deterministic)
            return x
        scan = nn.scan(
            lambda layer, x, _: (layer(x, deterministic), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=config.num_layers,
        )
        return scan(block(config, name="layers"), x, None)[0]


def make_linen_step(config: GPT3Config) -> Steps:
    """The step functions of a linen model in float32 or bfloat16."""
    model, optimizer = LinenGPT3(config), _optimizer(config)

    def init_fn(rng: jax.Array) -> LinenState:
        params_key, dropout_key = jax.random.split(rng)
        tokens = jnp.zeros((1, config.seq_len), jnp.int32)
        return LinenState.create(
            apply_fn=model.apply,
            params=model.init(params_key, tokens)["params"],
            tx=optimizer,
            rng=jax.random.key_data(dropout_key),
        )

    def loss_fn(params: Any, batch: Batch, key: jax.Array | None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        logits: Any = model.apply({"params": params}, batch["inputs"], key is None, rngs=rngs)
        labels = jax.nn.one_hot(batch["targets"], config.vocab)
        if key is not None:
            labels = optax.smooth_labels(labels, config.label_smoothing)
        return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels).mean()

    def train_step(state: LinenState, batch: Batch) -> tuple[LinenState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, key)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return state.apply_gradients(grads=grads), metrics

    def eval_step(state: LinenState, batch: Batch) -> Metrics:
        return {"loss": loss_fn(state.params, batch, None)}

    return Steps(init_fn, train_step, eval_step)


def _optimizer(config: GPT3Config) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.decay_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            rate, config.adam_b1, config.adam_b2, config.adam_eps, weight_decay=config.weight_decay
        ),
    )
