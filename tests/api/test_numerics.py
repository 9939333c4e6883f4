"""A sharded step computes what the unsharded one does, up to the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import xshard
from models.gpt3.config import TINY, GPT3Config
from models.gpt3.step import Steps, make_train_step
from tests.api.oracles import TIME_LIMIT_S, assert_close
from tests.models.linen_block import make_linen_step

CONFIG = TINY.replace(
    num_layers=2, hidden=24, num_heads=6, batch=12, seq_len=8, vocab=48, warmup_steps=2
)
"""Dims divide by 2, 3, 4, 6 and some by 8; dropout and label smoothing are on."""
STEPS = 3
GROWTH = {"float32": 30.0, "bfloat16": 2000.0, "float16": 2000.0}
"""Of float32 rounding over three steps, by the dtype that is computed in."""

CASES: list[tuple[Callable[[GPT3Config], Steps], str, str, tuple[int, ...]]] = [
    (make_train_step, "unrolled", "float32", (8,)),
    (make_train_step, "unrolled", "float32", (2, 4)),
    (make_train_step, "scanned", "float32", (4, 2)),
    (make_train_step, "scanned", "float32", (3, 2)),
    (make_train_step, "scanned", "float32", (2, 2, 2)),
    (make_train_step, "scanned", "bfloat16", (2, 4)),
    (make_train_step, "scanned", "float16", (8,)),
    (make_linen_step, "unrolled", "float32", (3, 2)),
    (make_linen_step, "scanned", "float32", (2, 4)),
]


def batch(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    tokens = rng.integers(0, CONFIG.vocab, (CONFIG.batch, CONFIG.seq_len + 1), np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


@cache
def on_one_device(
    make: Callable[[GPT3Config], Steps], layers: Any, dtype: Any
) -> tuple[Steps, list[tuple[Any, Any]]]:
    """The step functions, and (state, metrics) at the start and after each step of `jax.jit`."""
    config = CONFIG.replace(layers=layers, dtype=dtype)
    steps = make(config.replace(num_layers=1) if layers == "unrolled" else config)
    train, found = jax.jit(steps.train), [(jax.jit(steps.init)(jax.random.key(0)), None)]
    for i in range(STEPS):
        found.append(train(found[-1][0], batch(i)))
    return steps, found


@pytest.mark.parametrize(("make", "layers", "dtype", "shape"), CASES)
def test_gpt3_trains_alike(
    make: Callable[[GPT3Config], Steps], layers: Any, dtype: Any, shape: tuple[int, ...], mesh: Any
) -> None:
    """Loss and gradient norm in each of three steps, then the parameters and Adam's moments."""
    steps, plain = on_one_device(make, layers, dtype)
    step = xshard.auto_shard(steps.train, mesh(*shape), time_limit=TIME_LIMIT_S, donate_argnums=0)
    state = step.init(steps.init, jax.random.key(0), batch(0))
    assert_close(state, plain[0][0])
    for i, (_, expected) in enumerate(plain[1:]):
        state, metrics = step(state, batch(i))
        assert_close(metrics, expected, GROWTH[dtype])
    (params, moments), (other_params, other_moments) = map(_parts, (state, plain[-1][0]))
    assert_close(moments, other_moments, GROWTH[dtype])
    assert_close(params, other_params, GROWTH[dtype])


def _parts(state: Any) -> tuple[Any, Any]:
    """The parameters and Adam's moments of a state of either kind."""
    if isinstance(state, dict):
        return _without_noise((state["params"], state["adam"]))
    return _without_noise((state.params, state.opt_state))


def _without_noise(tree: Any) -> Any:
    """Biases of attention keys as zeros: their gradient is rounding alone, which Adam amplifies."""
    return jax.tree.map_with_path(
        lambda path, x: 0 * x if "['key']['bias']" in jax.tree_util.keystr(path) else x, tree
    )
