"""One of several processes that train together: `python one_host.py index count port case`.

Prints one JSON object a line: the losses, or the error that this process got.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import xshard
from models.gpt3.config import TINY
from models.gpt3.step import make_train_step
from xshard.run.hosts import host_of_processes

CONFIG = TINY.replace(
    num_layers=1, hidden=32, num_heads=4, batch=8, seq_len=16, vocab=64, warmup_steps=2
)
STEPS = 3
LIMIT_BYTES = 400_000
"""Near enough to what the plan needs that every process looks at what XLA allocates."""


def batch(i: int) -> dict[str, np.ndarray]:
    """The same tokens in every process."""
    tokens = np.random.default_rng(i).integers(0, CONFIG.vocab, (CONFIG.batch, CONFIG.seq_len + 1))
    return {"inputs": tokens[:, :-1].astype(np.int32), "targets": tokens[:, 1:].astype(np.int32)}


def main(index: int, count: int, port: int, case: str) -> None:
    """Joins the others and trains."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    try:
        _train(index, case)
    except xshard.XshardError as error:
        _say(error=f"{type(error).__name__}: {error}")
    jax.distributed.shutdown()


def _train(index: int, case: str) -> None:
    steps = make_train_step(CONFIG)
    train: Callable[..., Any] = steps.train
    if case == "another function" and index == 1:
        train = lambda state, batch: steps.train(state, batch | {"inputs": batch["targets"]})  # noqa: E731
    mesh = jax.make_mesh((2, len(jax.devices()) // 2), ("data", "model"))
    if case == "infeasible":
        product = xshard.auto_shard(lambda x: x @ x, mesh, memory_limit=1000, time_limit=5)
        product(np.ones((64, 64), np.float32))
    step: Any = xshard.auto_shard(
        train, mesh, donate_argnums=0, memory_limit=LIMIT_BYTES, time_limit=5
    )
    state = step.init(steps.init, jax.random.key(0), batch(0))
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, _spread(batch(i), step.in_shardings[1]))
        losses.append(float(metrics["loss"]))
    _say(losses=losses, plan=step.plan.to_json(), hosts=len(set(host_of_processes())))


def _spread(batch: Any, shardings: Any) -> Any:
    """Global arrays of which each process holds its part."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda at: x[at]), batch, shardings
    )


def _say(**facts: Any) -> None:
    print("\n" + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
