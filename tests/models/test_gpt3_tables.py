"""The study's command: rows beside the published ones, three formats, and going on after a stop."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

import xshard
from models.gpt3 import study, tables
from models.gpt3.study import Case, Row
from models.gpt3.study_text import COLUMNS, cells, memory

TINY = "--configs tiny --cluster h100-80gb --memory-limit 1TB"
ERROR = "no plan fits 1 MB per device; the smallest limit that works is 9 bytes"


def run(text: str, tmp_path: Path) -> str:
    out = tmp_path / "out"
    assert tables.main([*text.split(), "--output", str(out)]) == 0
    return out.read_text("utf-8")


def stand_in(case: Case, *_: object, **__: object) -> Row:
    """Plans nothing: batches of 8 fit, others do not."""
    fits = case.microbatch_size == 8
    return Row(case, 1.0, "8", 50.0, 10**9, 0.0) if fits else Row(case, 1.0, error=ERROR)


def test_a_case_is_planned_in_a_process_of_its_own(tmp_path: Path):
    line = f"{TINY} --microbatch-sizes 12 --format csv --workers 2"
    [row] = csv.DictReader(run(line, tmp_path).splitlines())
    assert row["model"] == "tiny" and row["sequences"] == "12"
    assert float(row["step s"]) >= 0 and float(row["TFLOP/s"]) > 0 and row["gap"] == "0.0%"


def test_stages_are_planned_and_compiled_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The plan that was kept is compiled, for the step that it was made for; none is made anew."""
    files = f"--plans {tmp_path / 'plans'} --json {tmp_path / 'rows.jsonl'} --resume --format csv"
    line = f"--configs tiny --modes pipeline --memory-limit 1TB --microbatch-sizes 24 {files}"
    [row] = csv.DictReader(run(line, tmp_path).splitlines())
    assert row["mode"] == "pipeline" and float(row["step s"]) >= 0 and row["recomputed"]
    compiled: list[tuple[object, ...]] = []

    def verify(*given: object) -> SimpleNamespace:
        compiled.append(given)
        return SimpleNamespace(compiled_bytes=10**9)

    monkeypatch.setattr(xshard, "verify", verify)
    monkeypatch.setattr(study, "planned", None)
    [later] = csv.DictReader(run(f"{line} --verify", tmp_path).splitlines())
    assert later == row | {"XLA GB": "1.00"}
    [(plan, function, *shapes)] = compiled
    assert isinstance(plan, xshard.Plan | xshard.PipelinePlan) and plan.objective_ns > 0
    assert callable(function) and len(shapes) == 2


def test_rows_are_planned_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "plan_row", stand_in)
    rows = tmp_path / "rows.jsonl"
    line = f"{TINY} --microbatch-sizes 8,24 --json {rows} --resume"
    first = run(line, tmp_path)
    assert "| tiny | tensor | 24 | does not fit |" in first
    with rows.open("a") as file:
        file.write('{"case": {"mod')  # a write that was cut off
    assert run(f"{line} --configs 350M", tmp_path) != first
    monkeypatch.setattr(study, "plan_row", None)
    assert run(line, tmp_path) == first


def test_rows_are_compiled_later_and_equal_plans_once(monkeypatch: pytest.MonkeyPatch):
    """What is planned already is planned again to be compiled; one plan is compiled once."""
    compiled: list[object] = []

    def verify(plan: object) -> SimpleNamespace:
        compiled.append(plan)
        return SimpleNamespace(compiled_bytes=10**9)

    def refuse(_: object) -> None:
        raise xshard.VerifyError("an extra is missing")

    monkeypatch.setattr(study, "planned", lambda *_: None)
    monkeypatch.setattr(study, "_row", lambda case, *_: Row(case, 1.0, "8", 50.0, 2 * 10**9))
    monkeypatch.setattr(xshard, "verify", verify)
    one, other = (Case("tiny", mode, 8, "h100-80gb", "3GB") for mode in ("tensor", "pipeline"))
    first = study.plan_row(one, 1.0, verify=True)
    again = study.plan_row(other, 1.0, verify=True, like=[first])
    assert len(compiled) == 1 and again.compiled_bytes == first.compiled_bytes == 10**9
    assert first.memory_error == 1.0 and first.fits
    monkeypatch.setattr(xshard, "verify", refuse)
    failed = study.plan_row(one, 1.0, verify=True)
    assert failed.not_compiled == "an extra is missing" and "failed" in cells(failed)
    assert "1 of 2 rows compiled" in memory([first, Row(one, 1.0, error=ERROR)])


@pytest.mark.parametrize(
    ("compiled", "limits", "ends_with"),
    [
        ([3.2e9, 2.9e9], ["3GB", "2798437500"], 2.9e9),
        ([3.2e9], ["3GB", "2798437500"], 3.2e9),  # nothing fits under less
        ([3.2e9, 3.1e9, 3.1e9], ["3GB", "2798437500", "2694624495"], 3.1e9),
    ],
)
def test_a_plan_that_takes_more_than_the_limit_is_made_again(
    monkeypatch: pytest.MonkeyPatch, compiled: list[float], limits: list[str], ends_with: float
):
    seen: list[str] = []
    takes = iter(compiled)

    def planned(_case: Case, _time: float, limit: str) -> None:
        seen.append(limit)
        if len(seen) > len(compiled):
            raise xshard.InfeasibleError(ERROR)

    monkeypatch.setattr(study, "planned", planned)
    monkeypatch.setattr(study, "_row", lambda case, _plan, s: Row(case, s, "8", 50.0, len(seen)))
    monkeypatch.setattr(
        xshard, "verify", lambda _: SimpleNamespace(compiled_bytes=int(next(takes)))
    )
    row = study.plan_row(Case("tiny", "tensor", 8, "h100-80gb", "3GB"), 1.0, verify=True)
    assert seen == limits and row.compiled_bytes == ends_with and row.error is None


def test_figures_follow_the_formulas():
    case = Case("1.3B", "tensor", 8, "v100-sxm2-32gb", "30GB")
    config = case.config
    assert case.place().num_devices == 4
    flops = config.model_flops_per_token * 1024 * 1024
    assert flops / 50 / 4 / 1e12 == pytest.approx(44.46, abs=0.01)  # TFLOP/s of a step of 50 s
    row = Row(case, 1.0, "2×2", 50.0)
    old = row.published
    assert old is not None and (old.measured_s, old.measured_gb) == (50.38, 19.65)
    assert len(study.best([row, Row(case, 1.0, step_s=40.0)])) == 1


def test_each_format_has_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "plan_row", stand_in)
    for form in ("markdown", "html"):
        text = run(f"{TINY} --microbatch-sizes 24 --format {form}", tmp_path)
        assert [name for name in COLUMNS if name not in text] == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--configs 3B", "'3B' is none of tiny, 350M"),
        ("--modes magic", "'magic' is none of tensor"),
        ("--microbatch-sizes 1,x", "'1,x' is no list of numbers"),
    ],
)
def test_bad_options(line: str, reason: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        tables.main(line.split())
    assert reason in capsys.readouterr().err
