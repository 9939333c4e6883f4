"""Real processes, each with its stages: one process's losses, and a failure that ends all."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest

from tests.mpmd.one_host import STEPS
from tests.mpmd.programs import CASES, args, train

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0


def start(
    folder: Path, processes: int, case: str, checkpoints: str = ""
) -> list[subprocess.Popen[bytes]]:
    """Processes of one device each, which write to files named by their numbers."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rest = (str(processes), str(probe.getsockname()[1]), case, checkpoints)
    found: list[subprocess.Popen[bytes]] = []
    for i in range(processes):
        command = [sys.executable, "-m", "tests.mpmd.one_host", str(i), *rest]
        with (folder / str(i)).open("w") as out:
            found.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out))
    return found


def end(started: list[subprocess.Popen[bytes]], within_s: float = PATIENCE_S) -> None:
    """Waits until all have ended by themselves; none is left running."""
    try:
        for process in started:
            process.wait(within_s)
    finally:
        for process in started:
            process.kill()
            process.wait()


def losses(log: Path) -> dict[int, float]:
    """What a process said, by the number of the step."""
    said = [line for line in log.read_text().splitlines() if line.startswith('{"losses')]
    return {int(i): x for i, x in json.loads(said[-1])["losses"].items()} if said else {}


@functools.cache
def plain_losses(case: str) -> dict[int, float]:
    """Of `jax.jit` on one device."""
    (state, batch), step, found = args(*CASES[case]), jax.jit(train(CASES[case][0])), {}
    for i in range(STEPS):
        state, metrics = step(state, batch)
        found[i] = float(metrics["loss"])
    return found


@pytest.mark.parametrize(("processes", "case"), [(2, "tied"), (4, "scanned")])
def test_many_processes_train_as_one(processes: int, case: str, tmp_path: Path) -> None:
    """Stages in a process each, or over two of them."""
    end(start(tmp_path, processes, case))
    for i in range(processes):
        assert losses(tmp_path / str(i)) == pytest.approx(plain_losses(case), rel=1e-5)


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    end(start(tmp_path, 2, "tied-raise"))
    assert "process 1 failed: ValueError: no more data. Process 0 ends" in _text(tmp_path, 0)


def test_a_killed_process_ends_all_and_training_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """Within 30 s; then with more processes, and as a checkpoint that one process reads, too."""
    kept = tmp_path / "kept"
    started = start(tmp_path, 2, "uneven-kill", str(kept))
    until = time.monotonic() + PATIENCE_S
    while len(losses(tmp_path / "1")) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    started[1].kill()
    end(started, within_s=30)
    assert started[0].returncode != 0
    assert re.search("process 1 (was not heard of for|had died before)", _text(tmp_path, 0))
    end(start(tmp_path, 4, "uneven", str(kept)))
    expected = plain_losses("uneven")
    assert losses(tmp_path / "0") == pytest.approx({i: expected[i] for i in (2, 3)}, rel=1e-5)
    assert _loss_after_restoring(kept) == pytest.approx(expected[3], rel=1e-5)


def _loss_after_restoring(folder: Path) -> float:
    """Of the last step but one, on one device of this process."""
    state, batch = args(*CASES["uneven"])
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    here = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)  # noqa: E731
    with ocp.CheckpointManager(folder) as manager:
        wanted = ocp.args.StandardRestore(jax.tree.map(here, state))
        restored = manager.restore(STEPS - 1, args=wanted)
    _, metrics = jax.jit(train(CASES["uneven"][0]))(restored, batch)
    return float(metrics["loss"])


def _text(folder: Path, process: int) -> str:
    return (folder / str(process)).read_text()
