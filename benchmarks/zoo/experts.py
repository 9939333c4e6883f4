"""Mixtures of experts."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from benchmarks.steps import Program
from benchmarks.zoo.training import tokens, trained

ROWS, LENGTH, VOCAB = 8, 16, 64


def every_expert() -> Program:
    """Two experts a token, picked from what all of them made; a loss that balances them."""
    from nano_moe.config import NanoMoEConfig
    from nano_moe.model import NanoMoE

    config = NanoMoEConfig(
        vocab_size=VOCAB, block_size=LENGTH, n_layers=2, n_heads=4, d_model=32, d_ff=64,
        n_experts=8, top_k=2, dropout_rate=0.1,
    )  # fmt: skip
    model = NanoMoE(config)

    def loss(params: Any, ids: Any, key: Any) -> Any:
        logits, balance = model.apply(
            {"params": params}, ids, deterministic=False, rngs={"dropout": key}
        )
        rows = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
        return rows.mean() + 0.01 * balance

    def init(key: Any) -> Any:
        return model.init(key, jnp.zeros((1, LENGTH), jnp.int32))["params"]

    batch = tokens(ROWS, LENGTH, VOCAB)
    return trained("mixture of experts", "nano-moe-jax", init, loss, batch)


PROGRAMS = [every_expert]
