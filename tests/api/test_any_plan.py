"""Any plan computes the same: choices by chance use constraints that the best plans rarely do."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import xshard
from tests.api.oracles import assert_close, random_plan
from tests.api.programs import control_args, control_flow, transformer_args, transformer_step

GROWTH = 30.0
"""Of rounding, through Adam or an inverse."""


@pytest.mark.parametrize(("shape", "seed"), [((2, 4), 0), ((3, 2), 1)])
def test_any_plan_of_a_transformer(shape: tuple[int, ...], seed: int, mesh: Any) -> None:
    args = transformer_args()
    plan = random_plan(transformer_step, args, mesh(*shape), seed)
    step = xshard.auto_shard(transformer_step, mesh(*shape), plan=plan)
    assert_close(step(*args), jax.jit(transformer_step)(*args), GROWTH)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 2, 2)])
def test_any_plan_of_control_flow(shape: tuple[int, ...], seed: int, mesh: Any) -> None:
    args = control_args()
    plan = random_plan(control_flow, args, mesh(*shape), seed)
    step = xshard.auto_shard(control_flow, mesh(*shape), plan=plan)
    assert_close(step(*args), jax.jit(control_flow)(*args), GROWTH)
