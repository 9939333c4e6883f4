"""`verify` of a pipeline: every stage compiled, with what its devices hold meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

import xshard
from tests.steps import array
from tests.verify.test_proof import needs_cuda
from xshard import cli
from xshard.mpmd.held import Peak, peaks
from xshard.mpmd.tape import ONCE, Held, Run, Send, Tape

WHERE = "tests.verify.test_stages"
STATE, BATCH = {f"w{i}": array(256, 256) for i in range(4)}, array(64, 256)


def step(w: Mapping[str, jax.Array], x: jax.Array) -> Any:
    """Four equal layers and their gradient's descent."""

    def loss(w: Mapping[str, jax.Array]) -> jax.Array:
        y = x
        for i in range(4):
            y = jax.nn.relu(y @ w[f"w{i}"])
        return (y**2).mean()

    value, slopes = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, slopes), value


def avals() -> Any:
    return STATE, BATCH


def planned(cluster: str, stages: int = 4) -> xshard.PipelinePlan:
    plan = xshard.plan_pipeline(
        step, *avals(), cluster=cluster, pipeline=stages, microbatches=8, memory_limit="1GB"
    )
    assert isinstance(plan, xshard.PipelinePlan)
    return plan


@pytest.fixture(scope="module")
def cpu() -> xshard.PipelinePlan:
    return planned("cpu:8")


def test_memory_and_collectives_are_near_the_plan(cpu: xshard.PipelinePlan) -> None:
    found = xshard.verify(cpu)
    assert [group.stages for group in found.groups] == [(0,), (1,), (2,), (3,)]
    assert found.memory_limit == 10**9 and found.fits
    assert abs(found.memory_error) < 0.25
    assert all(group.audit.ok() for group in found.groups), [str(g.audit) for g in found.groups]
    assert "4 groups of" in str(found) and "group 3" in found._repr_html_()


def test_equal_stages_are_compiled_once(cpu: xshard.PipelinePlan) -> None:
    found = xshard.verify(cpu)
    one, other = (list(found.groups[g].programs.values()) for g in (1, 2))
    assert one == other
    assert found.num_compiled < found.num_programs


def test_more_microbatches_in_flight_are_held(cpu: xshard.PipelinePlan) -> None:
    """Of equal stages, the first holds the residuals of more microbatches under 1F1B."""
    _, first, second, _ = xshard.verify(cpu).groups
    assert first.programs and first.compiled_bytes > second.compiled_bytes


def test_a_plan_from_a_file(
    cpu: xshard.PipelinePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu.save(tmp_path / "plan.json")
    loaded = xshard.PipelinePlan.load(tmp_path / "plan.json")
    with pytest.raises(xshard.VerifyError, match="comes from a file"):
        xshard.verify(loaded)
    with pytest.raises(xshard.PlanError, match="plan again"):
        xshard.verify(loaded, step, STATE, array(128, 256))
    line = ["verify", f"{WHERE}:step", str(tmp_path / "plan.json"), "--args", f"{WHERE}:avals"]
    code = cli.main([*line, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert code == (0 if record["ok"] else 1)
    assert [g["compiled_bytes"] for g in record["groups"]] == [
        g.compiled_bytes for g in xshard.verify(cpu).groups
    ]


def test_a_peak_counts_what_is_held_beside_the_program() -> None:
    """Two values of 10 bytes are held while a program needs 5 more, and one arrives elsewhere."""
    a, b, sent = Held(0, ONCE, 0), Held(1, ONCE, 0), Held(1, ONCE, 1)
    actions = (
        Run(0, 0, None, (a,), (b,)),
        Send((1,), ONCE, 0, 1, drops=(b,)),
        Run(1, 0, None, (a,), ()),
    )
    found = peaks(Tape(actions, frozenset({a}), frozenset({a, sent})), lambda _: 10, {0: 15, 1: 1})
    assert found == {0: Peak(25, 0), 1: Peak(10)}


@needs_cuda
def test_stages_for_gpus_that_are_not_here() -> None:
    found = xshard.verify(planned("v100:1x4", 2))
    assert found.platform == "cuda" and len(found.groups) == 2
    assert all(group.audit.ok() for group in found.groups)
