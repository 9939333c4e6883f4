"""The training command: what it prints, that it survives a kill, and how it refuses bad input."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from models.gpt3.cli import config as config_of
from models.gpt3.cli import parse
from models.gpt3.config import TINY
from models.gpt3.data import Text
from models.gpt3.step import make_train_step
from models.gpt3.train import main
from tests import fast_compile
from tests.models.helpers import batches

ROOT = Path(__file__).parents[2]
SMALL = ["--layers", "scanned", "--batch", "8", "--seq-len", "32", "--time-limit", "1", "--json"]
FACTS = {
    "predicted_time_s", "measured_time_s", "predicted_bytes", "measured_bytes", "tokens_per_s",
    "model_flops_per_s",
}  # fmt: skip


def events(text: str, kind: str) -> list[dict]:
    """The JSON lines of one kind; other lines are gloo's."""
    lines = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == kind]


def losses(text: str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in events(text, "step")}


def start(*argv: str, devices: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "models.gpt3.train", *SMALL, "--devices", str(devices), *argv]
    env = {**os.environ, "XLA_FLAGS": fast_compile.FLAGS}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def plain_losses(steps: int, *argv: str) -> dict[int, float]:
    """The same training under `jax.jit` on one device."""
    config = config_of(parse([*SMALL, *argv]))
    functions = make_train_step(config)
    train, state, found = jax.jit(functions.train), jax.jit(functions.init)(jax.random.key(0)), {}
    for i, batch in enumerate(batches(Text.read(), config, steps)):
        state, metrics = train(state, batch)
        found[i + 1] = float(metrics["loss"])
    return found


def test_run_prints_plan_steps_held_out_loss_and_facts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Trained on 2x4 devices, the losses are those of one device; the saved plan is used again."""
    plan = tmp_path / "plan.json"
    argv = [*SMALL, "--mesh", "2x4"]
    assert main([*argv, "--steps", "4", "--save-plan", str(plan)]) == 0
    out = capsys.readouterr().out
    assert losses(out) == pytest.approx(plain_losses(4), rel=1e-4)
    assert [line["step"] for line in events(out, "held_out")] == [4]
    (facts,) = events(out, "summary")
    assert facts.keys() == FACTS | {"event"}
    assert all(value > 0 for name, value in facts.items() if name != "event")
    assert main([*argv, "--steps", "1", "--plan", str(plan)]) == 0
    assert events(capsys.readouterr().out, "plan") == events(out, "plan")


def test_stages_train_as_one_device_and_resume_without_stages(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [*SMALL, "--dropout", "0", "--mesh", "2", "--checkpoint-dir", str(tmp_path)]
    stages = ["--pipeline", "2", "--microbatches", "2", "--schedule", "1f1b"]
    plan = str(tmp_path / "plan.json")
    assert main([*argv, *stages, "--steps", "1", "--save-plan", plan]) == 0
    assert main([*argv, *stages, "--steps", "2", "--plan", plan]) == 0
    assert main([*argv, "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert [line["step"] for line in events(out, "resumed")] == [1, 2]
    assert losses(out) == pytest.approx(plain_losses(3, "--dropout", "0"), rel=1e-4)


def test_text_output_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL[:-1], "--mesh", "8", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    for part in ("step 3: held-out loss", "predicted", "measured", "tokens/s", "model TFLOP/s"):
        assert part in out


def test_killed_run_resumes_with_the_same_losses(tmp_path: Path) -> None:
    argv = ["--mesh", "2x2", "--checkpoint-dir", str(tmp_path), "--checkpoint-every", "2"]
    process = start(*argv, "--steps", "1000", devices=4)
    assert process.stdout
    before = _until_checkpoint(process, tmp_path)
    process.kill()
    before += process.communicate()[0]
    last = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal())
    out = finish(start(*argv, "--steps", str(last + 3), devices=4))
    assert events(out, "resumed") == [{"event": "resumed", "step": last}]
    assert sorted(losses(out)) == [last + 1, last + 2, last + 3]
    both = {**losses(before), **losses(out)}
    assert both == pytest.approx(plain_losses(last + 3), rel=1e-4)


def _until_checkpoint(process: subprocess.Popen[str], folder: Path) -> str:
    """What the process printed until its first checkpoint was whole."""
    assert process.stdout
    seen, end_s = "", time.monotonic() + 240
    while not any(path.name.isdecimal() for path in folder.iterdir()):
        assert time.monotonic() < end_s
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        seen += line
    return seen


def test_two_processes_train_as_one() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    hosts = ["--mesh", "2x2", "--steps", "3", "--coordinator", f"localhost:{port}"]
    processes = [
        start(*hosts, "--num-processes", "2", "--process-id", str(i), devices=2) for i in range(2)
    ]
    first, second = (finish(process) for process in processes)
    assert losses(first) == pytest.approx(plain_losses(3), rel=1e-4)
    assert not losses(second)


BAD_INPUT = [
    # arguments, the one sentence
    ("--config huge", "Argument --config: invalid choice: 'huge' (choose from "),
    ("--mesh 2by4", "Argument --mesh: '2by4' is not one to three sizes such as 8 or 2x4.\n"),
    ("--steps 0", "Argument --steps: '0' is not a positive whole number.\n"),
    ("--wings 2", "Unrecognized arguments: --wings 2.\n"),
    ("--dropout 1.5", "dropout must lie in [0, 1), not 1.5.\n"),
    ("--coordinator a:1", "--coordinator, --num-processes and --process-id belong together.\n"),
    ("--mesh 4x4", "Mesh 4x4 needs 16 devices and there are 8; on CPU, --devices makes as many"),
]


@pytest.mark.parametrize(("argv", "sentence"), BAD_INPUT)
def test_bad_input_is_one_sentence(
    argv: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(sentence)
    assert (out, err.count("\n")) == ("", 1)


def test_foreign_plan_and_damaged_checkpoint_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text("{")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    argv = [*SMALL, "--mesh", "8"]
    assert main([*argv, "--plan", str(tmp_path / "plan.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*argv, "--checkpoint-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Checkpoint {tmp_path}/7 is damaged or incomplete (")
    assert err.count("\n") == 1


def test_command_line_changes_the_configuration() -> None:
    args = parse(["--layers", "scanned", "--dtype", "bfloat16", "--remat", "--batch", "4"])
    wanted = TINY.replace(layers="scanned", dtype="bfloat16", remat=True, batch=4)
    assert config_of(args) == wanted
