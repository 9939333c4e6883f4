"""Problems with a memory limit for each stage: against brute force, as files, and what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.solve.problems import brute_force, fits, random_problem, training_step
from tests.solve.test_spans import spanned
from xshard.cli import main
from xshard.errors import ProblemError
from xshard.solve.check import Violation, check, peak_of
from xshard.solve.large import solve_spans
from xshard.solve.one_limit import OneLimit
from xshard.solve.problem import Infeasible, Problem, Solution, Start
from xshard.solve.problem_io import load_problem, problem_json, problem_of, save_problem
from xshard.solve.search import solve


def staged(seed: int) -> Problem:
    """Rows for even seeds, spans for odd ones, in one to three stages."""
    rng = np.random.default_rng(seed)
    bare = (
        random_problem(seed, nodes=5, most=3) if seed % 2 == 0 else spanned(seed, nodes=5, most=3)
    )
    count = seed // 2 % 3 + 1
    rows = tuple(replace(r, stage=int(rng.integers(count))) for r in bare.rows)
    limits = tuple(rng.integers(3, 50, count).tolist())
    of_node = rng.integers(0, count, len(bare.nodes))
    return replace(bare, rows=rows, limit=None, limits=limits, stages=of_node).verify()


@pytest.mark.parametrize("block", range(3))
def test_equals_brute_force(block: int) -> None:
    for seed in range(20 * block, 20 * (block + 1)):
        problem = staged(seed)
        best, smallest = brute_force(problem)
        answer = solve(problem, workers=1)
        if best is None:
            assert isinstance(answer, Infeasible) and answer.smallest_limit == smallest, seed
        else:
            assert isinstance(answer, Solution) and fits(problem, answer.choices), seed
            assert check(problem, answer.choices) == answer.objective == best == answer.bound, seed


@pytest.mark.parametrize("seed", range(1, 24, 2))
def test_the_search_by_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xshard.solve.large.SUMS_PER_S", 2e4)
    problem = staged(seed)
    best, smallest = brute_force(problem)
    one = OneLimit.find(problem)
    answer = solve_spans(
        one.apply(problem), time_limit_s=20, workers=1, seed=0, report=lambda *_: None
    )
    if isinstance(answer, Solution):
        assert check(problem, one.invert(answer.choices)) == answer.objective == best
        assert answer.bound <= answer.objective
    else:
        assert best is None and (smallest is None or (answer.smallest_limit or 0) >= smallest)


@pytest.mark.parametrize("seed", range(0, 60, 7))
def test_from_the_last_answer_under_other_limits(seed: int) -> None:
    problem = staged(seed)
    first = solve(problem, workers=1)
    if isinstance(first, Infeasible):
        return
    tighter = replace(problem, limits=tuple(max(0, n - 2) for n in problem.limits))
    best, _ = brute_force(tighter)
    again = solve(tighter, workers=1, start=Start(first.choices, first.bound, first.prices))
    assert (again.objective if isinstance(again, Solution) else None) == best


@pytest.mark.parametrize("seed", range(6))
def test_a_problem_survives_its_file(tmp_path: Path, seed: int) -> None:
    problem = staged(2 * seed)
    save_problem(problem, tmp_path / "p.json.gz")
    again = load_problem(tmp_path / "p.json.gz")
    assert problem_json(again) == problem_json(problem)
    assert (again.limits, again.limit) == (problem.limits, None)


def test_a_training_step_on_two_kinds_of_devices() -> None:
    step = training_step(2, wide=4)
    free = solve(step, workers=1)
    assert isinstance(free, Solution)
    half = len(step.rows) // 2
    rows = tuple(replace(row, stage=int(t >= half)) for t, row in enumerate(step.rows))
    two = replace(step, rows=rows, limits=(1 << 60, 1 << 60))
    limits = tuple(int(part * peak_of(two, free.choices, s)[0]) for s, part in enumerate((2, 0.8)))
    answer = solve(replace(two, limits=limits), workers=1)
    alone = replace(step, rows=step.rows[half:], limit=limits[1])
    assert isinstance(answer, Solution) and answer.objective > free.objective
    assert check(replace(two, limits=limits), answer.choices) == check(alone, answer.choices)
    again = solve(alone, workers=1)
    assert isinstance(again, Solution) and answer.objective == again.objective


TWO = {
    "nodes": {
        "costs": [[1, 9], [1, 9]],
        "usages": [[10, 4], [10, 4]],
        "intervals": [[0, 5], [0, 5]],
        "stages": [0, 1],
    },
    "usage_limit": [10, 4],
}


def test_each_stage_has_its_own_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "two.json", tmp_path / "out.json"
    path.write_text(json.dumps({"problem": TWO}))
    assert main(["solve", str(path), "--out", str(out), "--workers", "1"]) == 0
    found = json.loads(out.read_text())
    assert (found["choices"], found["peak_bytes"]) == ([0, 1], [10, 4])
    assert found["limit_bytes"] == [10, 4]
    assert "[10, 4] of [10, 4] bytes" in capsys.readouterr().out


def test_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"problem": {**TWO, "usage_limit": [6, 1]}}))
    assert main(["solve", str(path), "--workers", "1"]) == 2
    assert "nothing fits 6, 1 bytes" in (said := capsys.readouterr().err)
    assert "the smallest limits that work, all raised alike, are 9, 4" in said


def test_the_checker_names_the_stage() -> None:
    with pytest.raises(Violation, match="time 0 in stage 1: 10 bytes live, the limit is 4"):
        check(problem_of({"problem": TWO}), (0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usage_limit": 10}, "stage 1 has no limit; there are 1"),
        ({"usage_limit": [10, -1]}, "whole numbers of bytes"),
        ({"nodes": {**TWO["nodes"], "stages": [0]}}, "stages of nodes are 1 numbers for 2"),
        ({"rows": [{"nodes": [0], "stage": 2}]}, "stage 2 has no limit; there are 2"),
    ],
)
def test_bad_stages_are_one_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        problem_of({"problem": {**TWO, **change}})
