"""Plans of pipelines as files: round trips, wrong files, the report, and steps that run by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

import xshard
from tests.api.oracles import assert_close
from tests.mpmd.programs import args, skips, tied, train
from tests.stages import models
from xshard.cli import main


@pytest.fixture(scope="module")
def plan() -> xshard.PipelinePlan:
    step, given = models.in_equinox()
    found = xshard.plan_pipeline(
        step, *given, cluster="v100-sxm2-32gb:4", pipeline=2, microbatches=4, schedule="zero_bubble"
    )
    assert isinstance(found, xshard.PipelinePlan)
    return found


def test_a_saved_plan_is_the_plan(plan: xshard.PipelinePlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    again = xshard.PipelinePlan.load(path)
    assert again.to_json() == plan.to_json() == path.read_text("utf-8")
    assert (again.objective_ns, str(again)) == (plan.objective_ns, str(plan))
    report = tmp_path / "report.html"
    assert main(["report", str(path), "--output", str(report)]) == 0
    assert all(text in report.read_text("utf-8") for text in ("zero_bubble", "stage 1"))


def changed(text: str, **fields: Any) -> str:
    return json.dumps({**json.loads(text), **fields})


WRONG = [
    (lambda text: text[: len(text) // 2], "is truncated"),
    (lambda text: "[]", "holds no JSON object"),
    (lambda text: changed(text, schema="xshard.plan"), 'no "schema": "xshard.pipeline"'),
    (lambda text: changed(text, version=0), "has version 0 of the format"),
    (lambda text: changed(text, layers=[4]), "field layers must have 2 entries, and has 1"),
    (lambda text: changed(text, tasks=[]), "field tasks lacks fwd of stage 0"),
    (lambda text: changed(text, stages=[{}, {}]), r"field stages\[0\].fingerprint is missing"),
    (
        lambda text: changed(text, schedule={**json.loads(text)["schedule"], "microbatches": 5}),
        "field schedule: zero_bubble: .* is 0 times in the table",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_files(plan: xshard.PipelinePlan, change: Any, message: str) -> None:
    with pytest.raises(xshard.PlanError, match=message):
        xshard.PipelinePlan.from_json(change(plan.to_json()))


def test_a_step_runs_by_a_plan_of_before() -> None:
    fun = train(skips)
    first: Any = xshard.auto_shard(fun, 2, pipeline=2, microbatches=4, schedule="1f1b")
    expected = first(*args())
    before = xshard.PipelinePlan.from_json(first.plan.to_json())
    step: Any = xshard.auto_shard(fun, 2, plan=before)
    assert_close(step(*args()), expected, 8.0)
    assert step.plan == before
    assert jax.tree.map(str, step.in_shardings) == jax.tree.map(str, first.in_shardings)
    other = xshard.auto_shard(train(tied), 2, plan=before)
    with pytest.raises(xshard.PlanError, match=r"plan is for (another|a) step"):
        other(*args())
    with pytest.raises(xshard.PlanError, match="is for microbatches=4, not 8"):
        xshard.auto_shard(fun, 2, plan=before, microbatches=8)
    four = xshard.auto_shard(fun, 4, plan=before)
    with pytest.raises(xshard.PlanError, match="groups of cpu:1x1, and those here are cpu:1x2"):
        four(*args())
