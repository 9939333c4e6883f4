"""A plan again under another limit or with further pins: as good as one made from nothing."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import xshard
from tests.steps import array, mix, mix_params, state, train
from xshard import one_model
from xshard.solve.problem import Problem


def plan(**options: Any) -> xshard.Plan:
    """Of two residual blocks on four V100s, all meshes tried."""
    args = state([mix_params(64)] * 2), array(128, 64)
    step = train([mix] * 2)
    return xshard.plan(step, *args, cluster="v100-sxm2-32gb:4", plan_cache=False, **options)


@pytest.fixture(scope="module")
def first() -> xshard.Plan:
    return plan()


def agree(warm: xshard.Plan, cold: xshard.Plan) -> None:
    """Neither is proven to be worse than the other, and both are for the same."""
    assert warm.bound_ns <= cold.objective_ns
    assert cold.bound_ns <= warm.objective_ns
    assert max(warm.gap, cold.gap) <= 0.005
    assert (warm.fingerprint, warm.memory_limit) == (cold.fingerprint, cold.memory_limit)


@pytest.mark.parametrize("share", [0.95, 0.85, 1.5])
def test_another_limit(first: xshard.Plan, share: float) -> None:
    limit = int(share * first.peak_bytes)
    warm = first.replan(memory_limit=limit)
    assert warm.peak_bytes <= limit
    agree(warm, plan(memory_limit=limit))


@pytest.mark.parametrize(
    "specs",
    [
        {"in_specs": (None, jax.P(None, "data"))},
        {"in_specs": (None, jax.P())},
        {"out_specs": jax.P()},
    ],
    ids=str,
)
def test_further_pins(first: xshard.Plan, specs: dict[str, Any]) -> None:
    agree(first.replan(**specs), plan(**specs))


def test_a_pin_and_a_limit_after_a_limit(first: xshard.Plan) -> None:
    limit, pin = int(0.95 * first.peak_bytes), (None, jax.P("data"))
    tight = first.replan(memory_limit=limit)
    agree(tight.replan(in_specs=pin), plan(memory_limit=limit, in_specs=pin))
    agree(tight.replan(in_specs=pin).replan(in_specs=None), plan(memory_limit=limit))


def test_the_same_again_is_the_same_plan(first: xshard.Plan) -> None:
    assert first.replan().to_json() == first.to_json()


def test_nothing_is_traced_again() -> None:
    calls = list[int]()

    def step(x: Any) -> Any:
        calls.append(1)
        return (x * x).sum()

    made = xshard.plan(step, array(64, 64), cluster="cpu:4", plan_cache=False)
    before = len(calls)
    made.replan(in_specs=jax.P("data"))
    assert len(calls) == before


def test_what_does_not_fit_names_the_smallest_limit(first: xshard.Plan) -> None:
    with pytest.raises(xshard.InfeasibleError) as caught:
        first.replan(memory_limit=1000)
    smallest = caught.value.smallest_limit_bytes
    assert smallest is not None
    assert first.replan(memory_limit=smallest).peak_bytes <= smallest


def test_a_plan_from_a_file_cannot(first: xshard.Plan) -> None:
    with pytest.raises(xshard.PlanError, match="plan the step with"):
        xshard.Plan.from_json(first.to_json()).replan(memory_limit="1GB")


def sharded(**options: Any) -> xshard.ShardedStep:
    """The same on the devices here."""
    step = xshard.auto_shard(train([mix] * 2), 4, cost_db=False, profile=False, **options)
    step.lower(state([mix_params(64)] * 2), array(128, 64))
    return step


def test_of_a_sharded_step() -> None:
    plan = sharded(plan_cache=False).plan
    pins: dict[str, Any] = {"in_specs": (None, jax.P("data"))}
    agree(plan.replan(**pins), sharded(plan_cache=False, **pins).plan)
    limit = int(0.9 * plan.peak_bytes)
    tight = plan.replan(memory_limit=limit)
    assert tight.peak_bytes <= limit and tight.objective_ns >= plan.bound_ns
    args = state([mix_params(64)] * 2), array(128, 64)
    again = xshard.auto_shard(train([mix] * 2), 4, cost_db=False, profile=False, plan=tight)
    again.lower(*args)
    assert again.plan.replan(memory_limit=2 * limit).objective_ns <= tight.objective_ns


def test_a_sharded_step_keeps_no_array_for_it() -> None:
    step = xshard.auto_shard(lambda x: (x * x).sum(), 4, profile=False, plan_cache=False)
    x = jnp.ones((64, 64))
    alive = weakref.ref(x)
    step(x)
    del x
    gc.collect()
    assert alive() is None
    assert step.plan.replan(in_specs=jax.P("data")).arguments[0].pinned


@pytest.mark.parametrize("limit", [None, "310kB"])
def test_of_a_plan_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: Any):
    def made(**more: Any) -> xshard.Plan:
        args = state([mix_params(64)] * 2), array(128, 64)
        options: dict[str, Any] = {"mesh": (2, 2), "memory_limit": limit, **more}
        return xshard.plan(train([mix] * 2), *args, cluster="v100-sxm2-32gb:4", **options)

    first, read = made(plan_cache=tmp_path), made(plan_cache=tmp_path)
    assert set(read.seconds) == {"trace", "cache"}
    under_a_limit, solve = list[bool](), one_model.solve

    def watched(problem: Problem, **options: Any) -> Any:
        under_a_limit.append(bool(problem.rows))
        return solve(problem, **options)

    monkeypatch.setattr(one_model, "solve", watched)
    assert read.replan() == first  # known, and proven
    assert not any(under_a_limit)
    agree(read.replan(memory_limit="295kB"), made(memory_limit="295kB", plan_cache=False))
    pins: dict[str, Any] = {"in_specs": (None, jax.P(None, "data"))}
    agree(read.replan(**pins), made(**pins, plan_cache=False))
