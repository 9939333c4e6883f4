"""The README as a new user follows it: its Python runs as printed, and its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from models.gpt3 import cli
from xshard.plan.plan import Plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = "\n".join(re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
COMMANDS = COMMANDS.replace("\\\n", " ")
PLUGIN = r"cudart_stub|absl::InitializeLog"
"""What JAX's CUDA plugin says where there is no GPU, whatever it is asked to."""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a folder of its own, with eight virtual devices only if the code asks."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    env.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, text=True, capture_output=True, check=False
    )


def test_python_runs_as_printed(tmp_path: Path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "train.py").write_text("\n".join(blocks))
    done = run(tmp_path, "train.py")
    assert done.returncode == 0, done.stderr
    shown = re.search(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert shown
    # What is chosen and predicted follows the number of cores; the arrays and headings do not.
    same = [re.split(r" {2,}", line)[:2] for line in shown[1].splitlines() if "[" in line]
    same += [[line] for line in shown[1].splitlines() if line.istitle() or line == "Main ops"]
    assert len(same) == 9
    assert [part for parts in same for part in parts if part not in done.stdout] == []
    assert Plan.load(tmp_path / "plan.json").cluster == "h100-sxm-80gb:1x8"
    assert "✗" not in done.stdout and "✓" in done.stdout  # of the audit


def test_commands_run_as_printed(tmp_path: Path):
    lines = re.findall(r"^\$ xshard (.*)", COMMANDS, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["plan", "plan", "show", "report", "diff"]
    for line in lines:
        done = run(tmp_path, "-m", "xshard", *shlex.split(line))
        differs = line.startswith("diff")
        said = [x for x in done.stderr.splitlines() if not re.search(PLUGIN, x)]
        assert (done.returncode, said) == (int(differs), []), line
        assert done.stdout


@pytest.mark.parametrize("line", re.findall(r"python -m models\.gpt3\.train([^&\n\"]*)", COMMANDS))
def test_training_commands_are_understood(line: str):
    args = cli.parse(shlex.split(line.replace("$i", "0")))
    assert cli.config(args).name and (args.coordinator or args.distributed)
