"""`auto_shard(pipeline=...)`: an unmodified step in stages, called as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import xshard
from models.gpt3.step import make_train_step
from tests.api.oracles import assert_close
from tests.models.helpers import SMALL, jit
from tests.mpmd import programs
from tests.mpmd.programs import args, encoder_decoder, train
from xshard.errors import MeshError, MicrobatchError, PipelineError, RematError

PARTS = ("fwd", "bwd", "bwd_weight")
CONFIG = SMALL.replace(
    num_layers=2, hidden=32, seq_len=16, vocab=64, dropout=0.0, dtype="float32", batch=8
)


def _tokens(i: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(i).integers(0, CONFIG.vocab, (CONFIG.batch, CONFIG.seq_len + 1))
    return {"inputs": rows[:, :-1].astype(np.int32), "targets": rows[:, 1:].astype(np.int32)}


def test_gpt3_trains_as_on_one_device() -> None:
    """Tied weights, clipping by the global norm, Adam, loss scaling, donated state."""
    steps = make_train_step(CONFIG)
    train, state = jit(steps.train), jit(steps.init)(jax.random.key(0))
    mesh = Mesh(np.array(jax.devices()), ("d",))
    step: Any = xshard.auto_shard(
        steps.train, mesh, pipeline=2, microbatches=4, schedule="1f1b", donate_argnums=0
    )
    mine = step.init(steps.init, jax.random.key(0), _tokens(0))
    for i in range(2):
        state, metrics = train(state, _tokens(i))
        mine, found = step(mine, _tokens(i))
        assert_close(found, metrics, 8.0)


def test_recomputed_layers_change_no_results() -> None:
    step: Any = xshard.auto_shard(
        train(programs.skips), 4, pipeline=2, microbatches=4, schedule="zero_bubble", remat="all"
    )
    assert_close(step(*args()), jax.jit(train(programs.skips))(*args()), 8.0)
    assert step.plan.recomputed == step.plan.layers


@pytest.mark.parametrize(("microbatches", "kind"), [(1, xshard.Plan), (4, xshard.PipelinePlan)])
def test_one_program_or_stages(microbatches: int, kind: type) -> None:
    """Whichever is predicted to be faster runs, and computes the same."""

    def fun(weights: list[jax.Array], x: jax.Array) -> Any:
        def loss(weights: list[jax.Array]) -> jax.Array:
            y = x
            for w in weights:
                y = jnp.tanh(y @ w)
            return jnp.mean(y**2)

        value, grads = jax.value_and_grad(loss)(weights)
        return [w - 0.1 * g for w, g in zip(weights, grads, strict=True)], value

    weights = [jax.random.normal(jax.random.key(i), (128, 128)) / 12 for i in range(4)]
    batch = jax.random.normal(jax.random.key(4), (64, 128))
    step: Any = xshard.auto_shard(
        fun, 2, pipeline="auto", microbatches=microbatches, schedule="1f1b"
    )
    assert_close(step(weights, batch), jax.jit(fun)(weights, batch), 8.0)
    assert isinstance(step.plan, kind)


def test_a_plan_says_what_runs_where(tmp_path: Path) -> None:
    step: Any = xshard.auto_shard(train(encoder_decoder), 2, pipeline=2, microbatches=4)
    old = args()
    new, _ = step(*old)
    again, _ = step(new, old[1])
    assert jax.tree.structure(again) == jax.tree.structure(old[0])
    text = str(step.plan)
    assert "2 groups of 1 devices" in text
    assert "Ways to run the step" in text
    step.plan.trace(tmp_path / "plan.json")
    events = json.loads((tmp_path / "plan.json").read_text())["traceEvents"]
    tasks = [e for e in events if e["ph"] == "X" and e["cat"] != "transfer"]
    assert len(tasks) == sum(map(len, step.plan.schedule.rows))
    profile = step.profile(again, old[1])
    assert_close(profile.result, step(again, old[1]), 8.0)
    profile.trace(tmp_path / "step.json")
    events = json.loads((tmp_path / "step.json").read_text())["traceEvents"]
    planned, seen = (
        {(e["tid"], e["name"]) for e in events if e["pid"] == line and e.get("cat") in PARTS}
        for line in (0, 1)
    )
    assert len(seen) >= 2 * 2 * 4
    assert seen <= planned
    assert profile.task_ns().keys() <= step.plan.times.task_ns.keys()
    moments = step.in_shardings[0][1][1][0].mu["layers"]
    assert [m["up"].device_set for m in moments] == [
        p["up"].device_set for p in step.in_shardings[0][0]["layers"]
    ]


def test_all_programs_are_lowered_compiled_and_audited() -> None:
    """Tensor and data parallel stages communicate as planned, over all microbatches."""
    step: Any = xshard.auto_shard(train(programs.tied), 4, pipeline=2, microbatches=2)
    state, batch = args()
    compiled = step.lower(state, batch).compile()
    assert {"fwd of stage 0", "bwd of stage 1", "after of stage 0"} <= compiled.programs.keys()
    assert "// fwd of stage 0\nHloModule" in compiled.as_text()
    assert_close(compiled(state, batch), step(state, batch))
    assert jax.eval_shape(step, state, batch) == jax.eval_shape(train(programs.tied), state, batch)
    audit = step.audit()
    assert audit.ok()
    assert not audit.unplanned
    with pytest.raises(
        xshard.PlanError, match="a pipeline is many; check the step with pipeline=1"
    ):
        step.check(state, batch)


WRONG = [
    ({"pipeline": 0}, PipelineError, "pipeline=0 is no number of groups"),
    ({"pipeline": 3}, MeshError, "mesh data=8 cannot be cut into 3 equal groups"),
    ({"schedule": "fast"}, PipelineError, "schedule='fast' is unknown; use 'auto' or one of 'gp"),
    ({"remat": "some"}, RematError, "remat='some' is none of"),
    ({"profile": True}, PipelineError, "profile=True is not heeded"),
    ({"microbatches": 0}, MicrobatchError, "microbatches=0 is no number from 1 on"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_bad_input(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        xshard.auto_shard(
            programs.train(programs.tied), 8, **{"pipeline": 2, "microbatches": 2, **options}
        )
