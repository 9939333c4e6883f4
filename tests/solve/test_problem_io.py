"""Problems as JSON, and `xshard solve`."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.solve.problems import random_problem
from xshard.cli import main
from xshard.errors import ProblemError
from xshard.solve.check import check
from xshard.solve.problem_io import load_problem, problem_json, problem_of, save_problem

CONTEST: dict[str, Any] = {
    "problem": {
        "name": "example",
        "nodes": {
            "intervals": [[0, 5], [2, 5], [0, 9]],
            "costs": [[15], [55, 65], [25, 45, 1e18]],
            "usages": [[10], [30, 20], [15, 10, 5]],
        },
        "edges": {"nodes": [[0, 1], [2, 1]], "costs": [[30, 20], [50, 10, 40, 90, 10, 20]]},
        "usage_limit": 45,
    }
}
BEST = 15 + 65 + 25 + 20 + 10


def written(folder: Path, data: Any, name: str = "p.json") -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def changed(**problem: Any) -> dict[str, Any]:
    return {"problem": {**CONTEST["problem"], **problem}}


@pytest.mark.parametrize("seed", range(8))
def test_a_problem_survives_its_file(tmp_path: Path, seed: int):
    problem = random_problem(seed)
    for name in ("p.json", "p.json.gz"):
        save_problem(problem, tmp_path / name)
        assert problem_json(load_problem(tmp_path / name)) == problem_json(problem)


def test_the_contest_format(tmp_path: Path):
    problem = load_problem(written(tmp_path, CONTEST))
    assert problem.spans.tolist() == [[0, 0, 5], [1, 2, 5], [2, 0, 9]]
    assert problem.edges[1].costs.tolist() == [[50, 10], [40, 90], [10, 20]]
    assert check(problem, (0, 1, 0)) == BEST
    with pytest.raises(ValueError, match="time 2: 55 bytes live, the limit is 45"):
        check(problem, (0, 0, 0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "no JSON"),
        ([], "malformed"),
        ({}, "has no 'problem'"),
        (changed(nodes={"usages": []}), "has no 'costs'"),
        (changed(nodes={"costs": [[1], []]}), "costs of node 1 are no list of numbers, or empty"),
        (changed(nodes={"costs": [[-1]]}), "costs of node 0 are negative"),
        (changed(nodes={"costs": [[0.5]]}), "not whole numbers"),
        (changed(nodes={"costs": [[1]], "usages": [[1, 2]]}), "2 numbers for 1 costs"),
        (changed(edges={"nodes": [[0, 0]], "costs": [[1]]}), "joins two different nodes"),
        (changed(edges={"nodes": [[0, 7]], "costs": [[1]]}), "edge 0 names number 7"),
        (changed(edges={"nodes": [[0, 1]], "costs": [[1]]}), "edge 0 has 1 costs, its nodes 1×2"),
        (changed(rows=[{"nodes": [9]}]), "names number 9"),
    ],
)  # fmt: skip
def test_bad_files_are_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Any, message: str
):
    path = written(tmp_path, data)
    assert main(["solve", path]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and path in err


def test_a_file_that_is_missing_or_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["solve", str(tmp_path / "none.json")]) == 2
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps(CONTEST).encode())[:40])
    assert main(["solve", str(cut)]) == 2
    assert "broken gzip" in capsys.readouterr().err


def test_solve_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = written(tmp_path, CONTEST), tmp_path / "out.json"
    assert main(["solve", path, "--json", "--out", str(out), "--workers", "1"]) == 0
    stdout, stderr = capsys.readouterr()
    found = json.loads(out.read_text())
    assert json.loads(stdout) == found
    assert found["choices"] == [0, 1, 0] and found["objective"] == found["bound"] == BEST
    assert found["gap"] == 0 and found["peak_bytes"] == 45 <= found["limit_bytes"]
    assert "incumbent 135  bound 135  gap 0.00%" in stderr


def test_a_solution_is_a_start_for_another_limit(tmp_path: Path):
    path, out = written(tmp_path, CONTEST), tmp_path / "out.json"
    assert main(["solve", path, "--out", str(out), "--workers", "1"]) == 0
    path = written(tmp_path, changed(usage_limit=44))
    assert main(["solve", path, "--start", str(out), "--out", str(out), "--workers", "1"]) == 0
    assert json.loads(out.read_text())["peak_bytes"] <= 44


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no choices"),
        ('{"choices": [0]}', "a problem with 1 nodes, this one has 3"),
        ('{"choices": [0, 9, 0]}', "node 1 has no choice 9"),
    ],
)
def test_a_start_of_another_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
):
    start = tmp_path / "start.json"
    start.write_text(text)
    assert main(["solve", written(tmp_path, CONTEST), "--start", str(start)]) == 2
    assert message in capsys.readouterr().err


def test_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["solve", written(tmp_path, changed(usage_limit=39))]) == 2
    assert "the smallest limit that works is 40" in capsys.readouterr().err


def test_costs_beyond_what_floats_hold():
    large = 2**53 + 1
    problem = problem_of({"problem": {"nodes": {"costs": [[large, 3]]}}})
    assert problem.nodes[0].costs.tolist() == [large, 3]


def test_a_node_with_two_spans_cannot_be_written():
    spans = np.array([[0, 0, 1], [0, 2, 3]])
    problem = replace(random_problem(0, rows=False), spans=spans, limit=9)
    with pytest.raises(ProblemError, match="two spans"):
        problem_json(problem)
