"""Measuring on the virtual devices: what is timed and kept, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import KINDS, CollectiveModel
from xshard.cost.database import CostDatabase
from xshard.cost.signature import Signature, loop
from xshard.cost.store import device_key
from xshard.cost.versions import jax_version
from xshard.profile.programs import LOOPS, looped
from xshard.profile.run import TOO_NOISY, Bench, Progress, profile
from xshard.profile.targets import LOOP_KINDS, Target, sweep
from xshard.profile.timing import Patience, Timing, turn_time
from xshard.spec import MeshShape

ROOT = Path(__file__).parents[2]
DOT = "dot_general"
FAMILY = "a b, b c -> a c float32 float32 float32"
CONV = json.dumps({
    "batch_group_count": 1, "feature_group_count": 1, "lhs_dilation": [1, 1],
    "padding": [[1, 1], [1, 1]], "rhs_dilation": [1, 1], "window_strides": [1, 1],
    "specs": [[0, 3, 1, 2], [3, 2, 0, 1], [0, 3, 1, 2]], "rule": "", "dtypes": "float32 " * 3,
})  # fmt: skip
MESH = MeshShape(("x", "y"), (2, 4))


def bench(monkeypatch: pytest.MonkeyPatch | None = None) -> Bench:
    """The devices; with a monkeypatch, one that takes no time."""
    made = Bench(jax.devices())
    if monkeypatch:
        monkeypatch.setattr(Bench, "measure", lambda _, target: Timing(5.0, 0.1, 3))
    return made


def dots(*sides: int) -> list[Target]:
    return [Target(Signature(DOT, FAMILY, (n, n, n)), 0) for n in sides]


def collectives() -> list[Target]:
    model = CollectiveModel(Cluster.for_devices("cpu", 8), MESH)
    return [t for t in sweep(model, (32,)) if t.signature.kind in KINDS]


def test_each_kind_of_target_can_be_measured(tmp_path: Path):
    targets = [
        *dots(16),
        Target(Signature("conv_general_dilated", CONV, (2, 4, 4, 3, 3, 3, 3, 5)), 0),
        *(Target(loop(kind, "float32", 1 << 12), 0) for kind in LOOP_KINDS),
        *(t for t in collectives() if t.signature.sizes == (1 << 12,) and t.axes == ("y",)),
        next(t for t in collectives() if t.axes == ("x", "y")),
    ]
    assert set(LOOP_KINDS) == set(LOOPS)
    with CostDatabase(tmp_path / "costs.sqlite") as db:
        done = profile(targets, bench(), db, budget_s=600)
        rows = db.rows()
    assert {reason[: len(TOO_NOISY)] for _, reason in done.failed} <= {
        TOO_NOISY
    }  # while others work
    assert (done.measured, done.left) == (len(rows), 0)
    kept = {str(r.signature) for r in rows} | {what for what, _ in done.failed}
    assert kept == {str(t.signature) for t in targets} and len(kept) == len(targets)
    assert all(r.median_ns > 0 and r.spread >= 0 and r.samples >= 3 for r in rows)
    assert {(r.device, r.jax) for r in rows} == {(device_key("cpu", 8), jax_version())}


def test_a_loop_runs_all_turns_of_its_body():
    mesh = bench().flat
    ran: list[Any] = []

    def body(x: Any) -> Any:
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sin(x)

    run = looped(body, mesh, (jax.device_put(np.ones((8, 4), np.float32)),))
    run(3)
    jax.effects_barrier()
    assert len(ran) == 3 * 8


@pytest.mark.parametrize("baseline", [None, 300e-6])
def test_dispatch_and_baseline_are_taken_off(baseline: float | None):
    now = [0.0]

    def taking(seconds: float) -> Any:
        def run(turns: int) -> None:
            now[0] += 5e-3 + turns * seconds  # what a call costs, and its turns

        return run

    other = taking(baseline) if baseline else None
    timing = turn_time(taking(1e-3), lambda: now[0], Patience(seconds=0), other)
    assert timing.median_ns == pytest.approx(1e6 - (baseline or 0) * 1e9)
    assert (timing.spread, timing.samples) == (pytest.approx(0, abs=1e-9), 5)


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, b = tmp_path / "costs.sqlite", bench(monkeypatch)
    with CostDatabase(path) as db:
        assert profile(dots(1, 2), b, db, budget_s=60).measured == 2
    with CostDatabase(path) as db:
        done = profile(dots(1, 2, 3), b, db, budget_s=60)
        assert (done.known, done.measured, done.left) == (2, 1, 0)
        done = profile(dots(1, 2, 3), b, db, budget_s=60, again=True)
        assert (done.known, done.measured, done.left) == (0, 3, 0)


def test_the_budget_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slow = [Target(t.signature, 0, expected_ns=1e12) for t in dots(1, 2)]
    seen: list[Progress] = []
    with CostDatabase(tmp_path / "costs.sqlite") as db:
        done = profile(
            [*slow, *dots(3)], bench(monkeypatch), db, budget_s=60, on_progress=seen.append
        )
        assert (done.measured, done.left) == (1, 2)
        assert profile(dots(4), bench(), db, budget_s=0).left == 1
    assert len(seen) == 4


def test_noise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    b = bench(monkeypatch)
    monkeypatch.setattr(Bench, "measure", lambda _, target: Timing(5.0, 3.0, 4))
    with CostDatabase(tmp_path / "costs.sqlite") as db:
        done = profile(dots(1), b, db, budget_s=60)
        assert db.rows() == []
    assert done.measured == 0 and done.failed[0][1].startswith(f"{TOO_NOISY} (±150%): measure")


def test_what_devices_do_not_run_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def measure(b: Bench, target: Target) -> Timing:
        return really(b, target) if target is bad else Timing(5.0, 0.1, 3)

    really = Bench.measure
    monkeypatch.setattr(Bench, "measure", measure)
    bad = Target(Signature(DOT, "a b, b c -> a c float32 float32 float99", (2, 2, 2)), 0)
    with CostDatabase(tmp_path / "costs.sqlite") as db:
        done = profile([bad, *dots(4)], bench(), db, budget_s=600)
    assert (done.measured, done.left) == (1, 0)
    ((what, reason),) = done.failed
    assert "float99" in what and "float99" in reason


def test_a_kill_loses_at_most_the_measurement_in_flight(tmp_path: Path):
    path = tmp_path / "costs.sqlite"
    command = [
        sys.executable,
        "-m",
        "xshard",
        "profile",
        "--cpu-devices",
        "2",
        "--cost-db",
        str(path),
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    seen = 0
    while seen < 3:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
        with CostDatabase(path, write=False) as db:
            seen = len(db.rows())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with CostDatabase(path) as db:
        rows = db.rows()
        assert seen <= len(rows)
        mine = sweep(CollectiveModel(Cluster.for_devices("cpu", 2), MeshShape(("d",), (2,))), (32,))
        assert {r.signature for r in rows} <= {t.signature for t in mine}
        known = [t for t in mine if db.has(device_key("cpu", 2), jax_version(), t.signature)]
        assert len(known) == len(rows)
