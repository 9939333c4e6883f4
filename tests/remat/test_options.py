"""`remat=` of `auto_shard` and `plan`: what is chosen, what the plan says, what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import xshard
from tests.remat import programs as P
from xshard.ir.trace import trace
from xshard.remat.rewrite import layered

WIDE = P.weights(), jax.ShapeDtypeStruct((1 << 14, P.WIDTH), np.float32)
"""Activations are nearly all of its memory."""


UNROLLED = P.unrolled(P.mlp)


def planned(forward: Any = UNROLLED, **options: Any) -> xshard.Plan:
    options = {"cluster": "v100-sxm2-32gb:1x4", "mesh": (4,), "cost_db": False, **options}
    return xshard.plan(P.step(forward), *WIDE, **options)


@pytest.mark.parametrize("wrap", [P.unrolled, P.scanned])
def test_all_layers_take_less_memory_and_more_time(wrap: Any) -> None:
    none, every = (planned(wrap(P.mlp), remat=remat) for remat in ("none", "all"))
    assert not none.remat
    [part] = every.remat
    assert (part.layers, part.recomputed) == (P.LAYERS, P.LAYERS)
    assert every.peak_bytes < 0.6 * none.peak_bytes
    assert every.objective_ns > none.objective_ns
    assert f"recomputed      {P.LAYERS} of {P.LAYERS} layers (programs.py:" in str(every)
    assert "recomputed layers" in str(none.diff(every))
    assert xshard.Plan.from_json(every.to_json()) == every


def test_auto_recomputes_only_what_a_limit_asks_for() -> None:
    none, every = planned(), planned(remat="all")
    assert planned(remat="auto") == none
    limit = (none.peak_bytes + every.peak_bytes) // 2
    some = planned(remat="auto", memory_limit=limit)
    assert 0 < some.remat[0].recomputed < P.LAYERS
    assert some.peak_bytes <= limit
    assert none.objective_ns < some.objective_ns < every.objective_ns
    times = [t.time_ns for t in some.trials if t.time_ns is not None]
    assert min(times) == some.objective_ns


def test_auto_weighs_microbatches_against_recomputing() -> None:
    limit = planned(remat="all").peak_bytes // 3
    plan = planned(remat="auto", microbatches="auto", memory_limit=limit)
    assert plan.microbatches > 1 and plan.peak_bytes <= limit
    others = [planned(remat=remat, microbatches="auto", memory_limit=limit)
              for remat in ("none", "all")]  # fmt: skip
    assert plan.objective_ns <= 1.005 * min(p.objective_ns for p in others)


@pytest.mark.parametrize("wrap", [P.unrolled, P.scanned])
def test_a_sharded_step_with_recomputed_layers_gives_the_same(wrap: Any, mesh: Any) -> None:
    step, args = P.step(wrap(P.mlp)), (P.weights(), P.rows())
    sharded = xshard.auto_shard(step, mesh(2, 2), remat="all", microbatches=2)
    for x, y in zip(jax.tree.leaves(sharded(*args)), jax.tree.leaves(jax.jit(step)(*args)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert sharded.audit().ok()


def test_a_saved_plan_brings_its_layers(tmp_path: Path, mesh: Any) -> None:
    args = P.weights(), P.rows()
    first = xshard.auto_shard(P.step(UNROLLED), mesh(4), remat="all")
    first(*args)
    first.plan.save(tmp_path / "plan.json")
    plan = xshard.Plan.load(tmp_path / "plan.json")
    again = xshard.auto_shard(P.step(UNROLLED), mesh(4), plan=plan)
    again(*args)
    assert again.plan == plan
    other = xshard.auto_shard(P.step(P.scanned(P.dropped)), mesh(4), plan=plan)
    with pytest.raises(xshard.PlanError, match="does not belong to this call"):
        other(*args)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(xshard.XshardError, match="remat='some' is none of"):
        xshard.auto_shard(P.step(UNROLLED), 1, remat="some")


def test_a_step_without_layers_is_planned_as_it_is() -> None:
    def step(p: Any, x: Any) -> Any:
        return jax.grad(lambda p: (x @ p["up"][0]).sum())(p)

    assert layered(trace(step, (P.weights(), P.rows()))).parts == ()
    args = {"cluster": "cpu:1x4", "mesh": (4,), "cost_db": False}
    assert xshard.plan(step, *WIDE, remat="all", **args) == xshard.plan(step, *WIDE, **args)
