"""Real processes under `jax.distributed`: one plan, one process's losses, errors everywhere."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from models.gpt3.step import make_train_step
from tests import fast_compile
from tests.run.one_host import CONFIG, STEPS, batch

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0


def run(folder: Path, processes: int, devices_each: int, case: str = "") -> list[dict[str, Any]]:
    """What each process says; none is left running."""
    flags = f"--xla_force_host_platform_device_count={devices_each}"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",  # one line of the log may not run into another
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{flags} {fast_compile.FLAGS}",
    }
    command = [sys.executable, "-m", "tests.run.one_host"]
    numbers = (str(processes), str(_free_port()), case)
    logs = [folder / str(i) for i in range(processes)]  # a full pipe would make the others wait
    started = []
    for i, log in enumerate(logs):
        with log.open("w") as out:
            started.append(
                subprocess.Popen(
                    [*command, str(i), *numbers], cwd=ROOT, env=env, stdout=out, stderr=out
                )
            )
    try:
        for process in started:
            process.wait(TIMEOUT_S)
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [_said(log.read_text()) for log in logs]


def _said(log: str) -> dict[str, Any]:
    lines = [line for line in log.splitlines() if line.startswith('{"')]  # others are gloo's
    assert len(lines) == 1, log[-3000:]
    return json.loads(lines[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def plain_losses() -> list[float]:
    """Of `jax.jit` on one device."""
    steps = make_train_step(CONFIG)
    train, state, losses = jax.jit(steps.train), jax.jit(steps.init)(jax.random.key(0)), []
    for i in range(STEPS):
        state, metrics = train(state, batch(i))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(("processes", "devices_each"), [(2, 2), (4, 2)])
def test_many_processes_train_as_one(processes: int, devices_each: int, tmp_path: Path) -> None:
    """All have the plan of process 0, to the byte."""
    said = run(tmp_path, processes, devices_each)
    assert len({facts["plan"] for facts in said}) == 1
    for facts in said:
        assert facts["hosts"] == 1
        assert facts["losses"] == pytest.approx(plain_losses(), rel=1e-5)


ERRORS = [
    (
        "another function",
        r"PlanError: processes \[1\] traced another function or other shapes than process 0; "
        "all processes must call the same step",
    ),
    (
        "infeasible",
        "InfeasibleError: no plan fits 1 kB per device; the smallest limit that",
    ),
]


@pytest.mark.parametrize(("case", "message"), ERRORS)
def test_every_process_gets_the_error(case: str, message: str, tmp_path: Path) -> None:
    for facts in run(tmp_path, 2, 2, case):
        assert re.search(message, facts["error"])
