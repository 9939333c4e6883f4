"""Steps of many libraries and kinds, split wherever they may be, equal the unsharded ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest

import xshard
from benchmarks.attractive import attractive_plan
from benchmarks.steps import Program
from benchmarks.steps.zoo import PROGRAMS
from tests.api.oracles import assert_close

STEPS = 2
GROWTH = 100.0
"""Of rounding, over two updates."""


SLOW = {
    "denoising diffusion", "recurrent net", "vision transformer, moving average",
    "residual net, evaluation", "perceptron, lion", "perceptron, adamw", "perceptron, shampoo-like",
    "perceptron, sgd with momentum", "perceptron, clipped rmsprop", "perceptron, loss scaled lars",
}  # fmt: skip
"""Left to `python -m benchmarks.programs`, so that the tests stay short."""


@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.name not in SLOW], ids=lambda p: f"{p.library}: {p.name}"
)
def test_two_steps_are_those_of_one_device(program: Program, mesh: Callable[..., Any]) -> None:
    keys = jax.random.split(jax.random.key(1), STEPS + 1)
    state = expected = jax.jit(program.init)(keys[0])
    batches = [program.batch(key) for key in keys[1:]]
    where = mesh(2, 4)
    plan = attractive_plan(program.step, (state, batches[0]), where)
    assert any(any(spec) for op in plan.ops for spec in op.operands)
    step = xshard.auto_shard(program.step, where, plan=plan)
    compiled = step.lower(state, batches[0]).compile()  # of any state, weakly typed or not
    plain = jax.jit(program.step)
    for batch in batches:
        state, metrics = compiled(*jax.device_put((state, batch), step.in_shardings))
        expected, others = plain(expected, batch)
        assert_close(metrics, others, GROWTH)
    assert_close(state, expected, GROWTH)
