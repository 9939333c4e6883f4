"""The project around the code: one version, a docstring a room, imports down the street only."""

import ast
import configparser
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.name for path in (ROOT / "xshard").iterdir() if (path / "__init__.py").exists())


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment in the project's root."""
    tool = Path(sys.executable).with_name(args[0])
    return subprocess.run(
        [tool, *args[1:]], cwd=ROOT, input=stdin, text=True, capture_output=True, check=False
    )


def test_version_is_stated_once_and_is_the_newest_in_the_changelog():
    here = version("xshard")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == here
    sources = [ROOT / "setup.cfg", ROOT / "pyproject.toml", *(ROOT / "xshard").rglob("*.py")]
    pattern = re.compile(rf"version.*\b{re.escape(here)}\b")
    assert [p.name for p in sources if pattern.search(p.read_text())] == ["setup.cfg"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is_for(room: str):
    assert ast.get_docstring(ast.parse((ROOT / "xshard" / room / "__init__.py").read_text()))


def test_all_that_lies_in_the_package_ships():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    stated = config["options.package_data"].items()
    shipped = {
        p for package, glob in stated for p in ROOT.glob(f"{package.replace('.', '/')}/{glob}")
    }
    files = {p for p in (ROOT / "xshard").rglob("*.*") if p.parent.name != "__pycache__"}
    files = {p for p in files if p.suffix != ".py"}
    assert files == shipped
    folders = {p.parent for p in (ROOT / "xshard").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_import_contracts():
    done = run("lint-imports", "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("path", "module", "allowed"),
    [
        ("xshard/_jax.py", "jax._src.core", True),
        ("xshard/ir/trace.py", "jax._src.core", False),
        ("xshard/ir/trace.py", "jax.extend.core", False),
        ("xshard/rules/dot.py", "jax.interpreters.ad", False),
        ("xshard/cost/memory.py", "jaxlib.xla_client", False),
        ("xshard/solve/model.py", "ortools.sat", True),
        ("xshard/solve/search.py", "ortools.sat", False),
        ("xshard/solve/check.py", "ortools.sat", False),
        ("tests/test_spec.py", "jax._src.core", False),
    ],
)
def test_private_modules_have_one_door(path: str, module: str, allowed: bool):
    done = run(
        "ruff",
        "check",
        "--select=TID251",
        f"--stdin-filename={path}",
        "-",
        stdin=f"import {module}\n",
    )
    assert (done.returncode == 0) is allowed, done.stdout
    assert ("TID251" in done.stdout) is not allowed


def test_commands_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", readme, re.MULTILINE))
    assert {"demo"} <= named <= set(targets)
    modules = set(re.findall(r"\bpython -m ((?:xshard|models|benchmarks)[\w.]*)", readme))
    assert [m for m in modules if not find_spec(m)] == []
