"""Sums over the batch that are kept apart, one part a device, until all microbatches are done."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import xshard
from models.gpt3.config import TINY
from models.gpt3.step import make_train_step
from tests.api.oracles import FAST_COMPILE, TIME_LIMIT_S, assert_close, placed
from tests.microbatch import programs
from tests.microbatch.test_split import FINE, split
from xshard.microbatch.split import Divided
from xshard.run.annotate import Constraints, annotate


def results(divided: Divided, number: int, lanes: int, args: tuple[Any, ...]) -> Any:
    run = annotate(divided.into(number, lanes), Constraints(jax.make_mesh((1,), ("x",))))
    return jax.jit(run)(*jax.tree.leaves(args))


@pytest.mark.parametrize("loss", FINE, ids=lambda f: f.__name__)
def test_results_are_those_of_the_whole_batch(loss: programs.Loss) -> None:
    args = programs.args()
    found = split(programs.train(loss), args)
    assert_close(results(found, 2, 4, args), results(found, 1, 1, args), factor=4.0)


def test_rows_that_lie_inside_a_dimension() -> None:
    """The batch is the middle part of a merged dimension, and a share leaves beside rows."""

    def step(w: Any, b: Any) -> Any:
        x = b["x"].transpose(1, 0, 2).reshape(-1, 3)  # outer × batch
        return w + x.T @ x, (x @ w).reshape(2, 8, 3).transpose(1, 0, 2)

    x = np.random.default_rng(0).standard_normal((8, 2, 3)).astype(np.float32)
    args = (np.eye(3, dtype=np.float32), {"x": x})
    found = split(step, args)
    assert_close(results(found, 2, 2, args), results(found, 1, 1, args), factor=4.0)


def test_gradients_are_summed_over_devices_once_a_step(mesh: Any) -> None:
    """In a loop of eight turns over two rows a device, and the plan says so."""
    config = TINY.replace(
        num_layers=2, hidden=24, num_heads=6, batch=64, seq_len=8, vocab=48, warmup_steps=2
    )
    steps = make_train_step(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (64, 9), np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    step = xshard.auto_shard(steps.train, mesh(4), time_limit=TIME_LIMIT_S, microbatches=8)
    state = step.init(steps.init, jax.random.key(0), batch)
    expected = jax.jit(steps.train, compiler_options=FAST_COMPILE)(state, batch)
    compiled = step.lower(state, batch).compile(FAST_COMPILE)
    assert_close(compiled(state, placed(batch, step.in_shardings[1]))[1], expected[1], 30.0)
    plan = step.plan
    assert plan.lanes == 4
    assert "8, summed over devices once a step" in str(plan)
    assert all(c.count < 8 * config.num_layers for c in plan.collectives if c.nbytes > 10_000)
    assert plan == xshard.Plan.from_json(plan.to_json())
    [sums] = [row for row in step.audit().rows if row.kind == "all-reduce"]
    assert sums.compiled_bytes == sums.planned_bytes
