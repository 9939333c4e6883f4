"""Measured costs in `auto_shard` and `plan`: when devices are profiled, and what plans say."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

import xshard
from xshard import making
from xshard.cost.database import CostDatabase
from xshard.cost.measured import Measured
from xshard.cost.signature import Signature
from xshard.cost.store import VARIABLE, path_of
from xshard.errors import CostError
from xshard.plan.plan import Plan
from xshard.profile import quick
from xshard.profile.run import Bench
from xshard.profile.targets import Target
from xshard.profile.timing import Timing

MakeMesh = Callable[..., Mesh]


def step(params: Any, x: Any) -> Any:
    def loss(params: Any) -> Any:
        return jnp.mean(jnp.tanh(x @ params["up"]) @ params["down"])

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


PARAMS = {"up": jax.ShapeDtypeStruct((64, 128), "float32"),
          "down": jax.ShapeDtypeStruct((128, 64), "float32")}  # fmt: skip
X = jax.ShapeDtypeStruct((256, 64), "float32")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """What is measured; each takes a time of its own, at once."""
    asked: list[Target] = []

    def measure(_: Bench, target: Target) -> Timing:
        asked.append(target)
        return Timing(100.0 * math.prod(target.signature.sizes) ** 0.5, 0.1, 5)

    monkeypatch.setattr(Bench, "measure", measure)
    return asked


@pytest.fixture
def never_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices are of a kind that nobody has measured."""
    monkeypatch.setattr(quick, "was_measured", lambda cluster: False)


def planned(mesh: Mesh, **options: Any) -> Plan:
    sharded = xshard.auto_shard(step, mesh, donate_argnums=0, **options)
    sharded.lower(PARAMS, X)
    return sharded.plan


def test_cpus_are_not_profiled_unasked(
    mesh: MakeMesh, measured: list[Target], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plan = planned(mesh(2, 4), cost_db=tmp_path / "costs.sqlite")
    assert measured == [] and caplog.text == "" and list(tmp_path.iterdir()) == []
    assert plan.sources.analytic_ns > 0 and plan.sources.measured_ns == 0
    assert "costs           100% from the device's table" in str(plan)


@pytest.mark.usefixtures("never_profiled")
def test_unknown_devices_are_profiled_once(
    mesh: MakeMesh, measured: list[Target], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "costs.sqlite"
    plan = planned(mesh(2, 4), cost_db=path)
    assert "was never profiled; measuring what this step needs for up to 20 s, once" in caplog.text
    assert {t.axes for t in measured} == {(), ("x",), ("y",), ("x", "y")}
    assert plan.sources.measured_ns + plan.sources.interpolated_ns > plan.sources.analytic_ns
    assert "interpolated between measurements" in str(plan)
    count = len(measured)
    assert count == len({t.signature for t in measured})
    again = planned(mesh(2, 4), cost_db=path)
    assert len(measured) == count and again.to_json() == plan.to_json()
    assert Plan.from_json(plan.to_json()).sources == plan.sources
    here = xshard.plan(step, PARAMS, X, cluster="cpu:8", mesh=(2, 4), cost_db=path)
    assert here.objective_ns == plan.objective_ns
    assert xshard.plan(step, PARAMS, X, cluster="cpu:4", cost_db=path).sources.measured_ns == 0


@pytest.mark.usefixtures("never_profiled")
def test_profile_false_forbids(mesh: MakeMesh, measured: list[Target], tmp_path: Path):
    planned(mesh(8), cost_db=tmp_path / "costs.sqlite", profile=False)
    assert measured == [] and list(tmp_path.iterdir()) == []


def test_profile_true_measures_what_is_lacking(
    mesh: MakeMesh, measured: list[Target], tmp_path: Path
):
    path = tmp_path / "costs.sqlite"
    planned(mesh(8), cost_db=path, profile=True)
    first = {t.signature for t in measured}
    measured.clear()
    planned(mesh(2, 4), cost_db=path, profile=True)
    assert measured and not first & {t.signature for t in measured}


def test_a_given_plan_needs_no_profile(mesh: MakeMesh, measured: list[Target]):
    plan = planned(mesh(8))
    planned(mesh(8), plan=plan, profile=True)
    assert measured == []


def test_without_a_database_measurements_are_used_and_not_kept(
    mesh: MakeMesh, measured: list[Target]
):
    plan = planned(mesh(8), cost_db=False, profile=True)
    assert measured and plan.sources.measured_ns > 0


@pytest.mark.skipif(os.name == "nt", reason="permissions are others there")
def test_where_a_database_cannot_be(
    mesh: MakeMesh, measured: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "costs.sqlite"
    monkeypatch.setenv(VARIABLE, str(nowhere))
    with caplog.at_level(logging.WARNING):
        assert planned(mesh(8), profile=True).sources.measured_ns > 0
    assert "the measurements are not kept" in caplog.text
    with pytest.raises(CostError, match=r"cannot use the cost database .*file"):
        planned(mesh(8), profile=True, cost_db=nowhere)


def test_other_processes_take_what_process_0_has_measured(monkeypatch: pytest.MonkeyPatch):
    told = Measured({Signature("loop", "reduce float32", (64,)): 2.0}, "abacus", "1.0").to_json()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(making, "same_text", lambda make: told)
    found = making._shared(lambda: pytest.fail("only process 0 measures"))
    assert found and found.to_json() == told
    monkeypatch.setattr(making, "same_text", lambda make: make())
    assert making._shared(lambda: None) is None
    assert making._shared(lambda: found) is found


def test_where_the_users_own_database_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert path_of(False) is None
    assert path_of(tmp_path / "a") == str(tmp_path / "a")
    monkeypatch.setenv(VARIABLE, "")
    assert path_of(None) is None
    monkeypatch.setenv(VARIABLE, "/b/c.sqlite")
    assert path_of(None) == "/b/c.sqlite"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert path_of(None) == "/cache/xshard/costs.sqlite"


def test_shares_are_in_the_plans_json(mesh: MakeMesh):
    plan = planned(mesh(8))
    sources = json.loads(plan.to_json())["sources"]
    assert set(sources) == {"measured_ns", "interpolated_ns", "analytic_ns"}
    assert sum(sources.values()) == pytest.approx(plan.objective_ns, rel=0.05)


def test_rows_of_another_jax_serve_where_there_are_no_others(
    mesh: MakeMesh, measured: list[Target], tmp_path: Path
):
    path = tmp_path / "costs.sqlite"
    planned(mesh(8), cost_db=path, profile=True)
    with CostDatabase(path) as db:
        db._db.execute("UPDATE costs SET jax = '0.9'")
    plan = planned(mesh(8), cost_db=path)
    assert plan.sources.measured_ns > 0
    assert [n for n in plan.notes if n.startswith("costs were measured with jax 0.9, and this is")]


def test_a_database_that_is_named_has_to_be_there(tmp_path: Path):
    with pytest.raises(CostError, match=r"there is no cost database .*none; name another, or make"):
        xshard.plan(step, PARAMS, X, cluster="cpu:8", cost_db=tmp_path / "none")
