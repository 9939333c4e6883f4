"""The command line: what it prints, writes and refuses. The planner itself is a stand-in."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.plan.plans import example
from xshard import cli
from xshard.cost.database import CostDatabase, Row
from xshard.cost.signature import Signature
from xshard.errors import MeshError
from xshard.plan.plan import Plan
from xshard.spec import MeshShape

STEP = "math:sqrt"
EXAMPLE = "user_step:example"


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Calls of the planner; the working folder has a module `user_step`."""
    (tmp_path / "user_step.py").write_text(
        "def example(): return (1, {'w': 2})\n"
        "def one(): return [3]\n"
        "def fails(): raise ValueError('no batch\\nsecond line')\n"
        "number = 3\n"
    )
    (tmp_path / "broken.py").write_text("import not_there\n")
    (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_step", raising=False)
    calls: list[Any] = []

    def plan(*args: Any, **options: Any) -> Plan:
        calls.append((args, options))
        if options["cluster"] == "abacus:1":
            raise MeshError("no device is called 'abacus'")
        if options["cluster"] == "user:1":
            error = KeyError("no layer")
            error.add_note("xshard was tracing sqrt (at step.py:3, in sqrt)")
            raise error
        return example()

    monkeypatch.setattr(cli, "_planner", lambda: plan)
    return calls


def test_plan_prints_and_saves(planner: list[Any], capsys: pytest.CaptureFixture[str]):
    import math

    line = f"plan {STEP} --args {EXAMPLE} --cluster cpu:8 --output plan.json"
    assert cli.main(line.split()) == 0
    assert planner == [((math.sqrt, 1, {"w": 2}), {"cluster": "cpu:8"})]
    out, err = capsys.readouterr()
    assert (out, err) == (f"{example()}\n", "")
    assert Plan.load("plan.json") == example()


def test_plan_passes_the_options_on(planner: list[Any], capsys: pytest.CaptureFixture[str]):
    line = f"plan {STEP} --args user_step:one --cluster cpu:8 --mesh data=2,model=4"
    assert cli.main([*line.split(), "--memory-limit=30GB", "--time-limit=2.5", "--json"]) == 0
    (((_, *avals), options),) = planner
    assert avals == [[3]]
    assert options == {
        "cluster": "cpu:8",
        "mesh": MeshShape(("data", "model"), (2, 4)),
        "memory_limit": "30GB",
        "time_limit": 2.5,
    }
    assert Plan.from_json(capsys.readouterr().out) == example()


@pytest.mark.parametrize(
    ("text", "mesh"),
    [
        ("8", MeshShape(("data",), (8,))),
        ("2x4", MeshShape(("data", "model"), (2, 4))),
        ("2×2×2", MeshShape(("data", "model", "seq"), (2, 2, 2))),
        ("x=8", MeshShape(("x",), (8,))),
        ("a=1, b=2,c=3,d=4", MeshShape(("a", "b", "c", "d"), (1, 2, 3, 4))),
    ],
)
def test_meshes(text: str, mesh: MeshShape):
    assert cli._mesh(text) == mesh


def test_report_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    example().save(first)
    example(peak_bytes=9_000_000).save(second)
    page = tmp_path / "page.html"
    assert cli.main(["report", str(first), "--against", str(second), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "+1.35 MB (+17.6%)" in page.read_text("utf-8")


BAD = [
    ("", "xshard: the following arguments are required: COMMAND (see xshard --help)"),
    ("fly", "xshard: argument COMMAND: invalid choice: 'fly'"),
    ("plan", "xshard plan: the following arguments are required: MODULE:FUNCTION, --args"),
    ("show", "xshard show: the following arguments are required: PLAN.json"),
    ("show none.json", "xshard show: cannot read plan file none.json: No such file or directory;"),
    ("show user_step.py", "xshard show: plan file user_step.py is not a plan of xshard: no JSON"),
    ("report none.json", "xshard report: cannot read plan file none.json: No such file"),
    ("diff none.json none.json", "xshard diff: cannot read plan file none.json"),
]
BAD_PLANS = [
    ("sqrt", EXAMPLE, "", "'sqrt' names no function; write MODULE:FUNCTION"),
    ("nowhere:f", EXAMPLE, "", "cannot import nowhere: ModuleNotFoundError: No module named"),
    ("broken:f", EXAMPLE, "", "cannot import broken: ModuleNotFoundError: No module named 'not_th"),
    ("script:f", EXAMPLE, "", "cannot import script: SystemExit: 0"),
    (".x:f", EXAMPLE, "", "cannot import .x: TypeError"),
    ("math:root", EXAMPLE, "", "module math has no 'root'; check the name behind the colon"),
    ("math:pi", EXAMPLE, "", "math:pi is of type float, not a function"),
    (STEP, "user_step:number", "", "user_step:number is of type int, not a function"),
    (STEP, "user_step:fails", "", "user_step:fails() failed to make the arguments: ValueError: no"),
    (STEP, EXAMPLE, "--cluster=abacus:1", "no device is called 'abacus'"),
    (STEP, EXAMPLE, "--cluster=user:1", "math:sqrt failed: KeyError: 'no layer'; xshard was"),
    (STEP, EXAMPLE, "--output=none/plan.json", "cannot write none/plan.json: No such file"),
    *(
        (STEP, EXAMPLE, f"--mesh={mesh}", f"argument --mesh: {mesh!r} is no mesh; write")
        for mesh in ("", "x", "2x", "0x8", "2x2x2x2", "a=2,a=4", "a=", "=2", "a=2,4", "-1", "a-b=2")
    ),
    *(
        (STEP, EXAMPLE, f"--time-limit={limit}", f"argument --time-limit: {limit!r} is no number")
        for limit in ("soon", "0", "-1", "nan", "inf")
    ),
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *BAD,
        *(
            (f"plan {step} --args {make} --cluster cpu:8 {more}", f"xshard plan: {message}")
            for step, make, more, message in BAD_PLANS
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    planner: list[Any], capsys: pytest.CaptureFixture[str], line: str, message: str
):
    try:
        code = cli.main(line.split())
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    example().save(tmp_path / "a.json")
    assert cli.main(["show", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == f"{example(seconds={})}\n"
    assert cli.main(["show", "--json", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out == example().to_json()


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    example().save(a)
    example(memory_limit=None).save(b)
    assert cli.main(["diff", str(a), str(a)]) == 0
    assert capsys.readouterr().out == "the plans are equal\n"
    assert cli.main(["diff", str(a), str(b)]) == 1
    assert "memory limit   30 GB    none" in capsys.readouterr().out
    assert cli.main(["diff", "--json", str(a), str(b)]) == 1
    changes = json.loads(capsys.readouterr().out)
    assert changes["settings"][0]["after"] == "none" and changes["time_delta_ns"] == 0


def test_reports_have_colour_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=110, highlight=False).print(example())
    assert "\x1b[1m" in out.getvalue()
    assert "\x1b" not in str(example())


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, False), (0.4, True)])
def test_progress_is_shown_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, seconds: float, shown: bool
):
    err = io.StringIO()
    monkeypatch.setattr(cli, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(cli, "Console", lambda stderr: Console(file=err, force_terminal=True))
    with cli._progress("planning"):
        time.sleep(seconds)
    assert ("planning" in err.getvalue()) is shown


def test_progress_is_silent_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cli, "_PATIENCE_S", 0.01)
    with cli._progress("planning"):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_as_a_module(tmp_path: Path, encoding: str):
    example().save(tmp_path / "plan.json")
    command = [sys.executable, "-m", "xshard", "show", "plan.json"]
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
    text = str(example(seconds={})).encode(encoding, "replace").decode(encoding)
    assert done.stdout.decode(encoding) == f"{text}\n"


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    """A cost database with one measurement."""
    path = tmp_path / "costs.sqlite"
    signature = Signature("dot_general", "a b, b c -> a c float32 float32 float32", (8, 16, 32))
    with CostDatabase(path) as db:
        db.add([Row("abacus", "1.0", signature, 12_345.0, 0.07, 9, "2026-01-31T12:00:00")])
    return path


def test_measured_costs_are_listed_and_travel_as_json(
    costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["profile", "--list", "--cost-db", str(costs)]) == 0
    out = capsys.readouterr().out
    assert "1 measurements in" in out and "8×16×32" in out and "12.3 µs" in out and "7%" in out
    file, other = str(tmp_path / "costs.json"), str(tmp_path / "other.sqlite")
    assert cli.main(["profile", "--export", file, "--cost-db", str(costs)]) == 0
    assert capsys.readouterr().out == f"wrote 1 measurements to {file}\n"
    assert cli.main(["profile", "--import", file, "--cost-db", other]) == 0
    assert capsys.readouterr().out == f"read 1 measurements from {file} into {other}\n"
    assert cli.main(["profile", "--list", "--json", "--cost-db", other]) == 0
    assert capsys.readouterr().out == Path(file).read_text()
    with CostDatabase(costs) as one, CostDatabase(other) as two:
        assert one.rows() == two.rows()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--export none/f.json", "cannot write none/f.json: No such file or directory"),
        ("--import none.json", "cannot read none.json: No such file or directory"),
        ("--import plan.json", 'plan.json holds no measured costs: no "schema": "xshard.costs"'),
        ("--import later.json", "later.json has version 9 of the format, and this xshard reads"),
        ("--import rows.json", "rows.json: costs[0]: field 'sizes' is missing or of the wrong"),
        ("--import text.txt", "text.txt is no JSON ("),
        ("--list --export f.json", "argument --export: not allowed with argument --list"),
        ("--cpu-devices 0", "argument --cpu-devices: '0' is no number of devices"),
        ("--budget 0", "argument --budget: '0' is no number of seconds above 0"),
        ("math:sqrt", "a step needs --args MODULE:FUNCTION, which gives its arguments"),
        ("--mesh 3", "the mesh data=3 has 3 devices, and there are 8; make them equal"),
        ("--cost-db .", "cannot use the cost database .: "),
        ("", "there is no cost database: $XSHARD_COST_DB is empty; give --cost-db FILE"),
    ],
)
def test_bad_profiles_are_one_sentence(
    costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, line: str, message: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    example().save("plan.json")
    Path("later.json").write_text('{"schema": "xshard.costs", "version": 9}')
    row = {"device": "abacus", "jax": "1.0", "kind": "dot", "family": "f", "sizes": "8"}
    Path("rows.json").write_text(
        json.dumps({"schema": "xshard.costs", "version": 1, "costs": [row]})
    )
    Path("text.txt").write_text("costs")
    where = [] if not line or "--cost-db" in line else ["--cost-db", str(costs)]
    try:
        code = cli.main(["profile", *line.split(), *where])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(f"xshard profile: {message}") and err.count("\n") == 1
