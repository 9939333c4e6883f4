"""`solve` against brute force: same objective, same smallest limit, same bytes."""

from __future__ import annotations

import pytest

from tests.solve.problems import brute_force, fits, random_problem
from xshard.solve.problem import Infeasible, Solution
from xshard.solve.search import solve


def agrees(problem, answer):
    best, peak = brute_force(problem)
    if isinstance(answer, Infeasible):
        return best is None and answer.smallest_limit == peak and answer.proven
    return best == answer.objective == answer.bound and fits(problem, answer.choices)


@pytest.mark.parametrize("block", range(10))
def test_equals_brute_force(block):
    kinds = [{"rows": False}, {}, {"forbidden": 0}, {"forbidden": 0.4}]
    for seed in range(40 * block, 40 * block + 40):
        problem = random_problem(seed, **kinds[seed % 4])
        assert agrees(problem, solve(problem)), seed


@pytest.mark.parametrize("seed", range(3))
def test_same_bytes_every_time(seed):
    problem = random_problem(seed, nodes=12, most=8, forbidden=0)
    first, second = solve(problem), solve(problem)
    assert isinstance(first, Solution)
    assert isinstance(second, Solution)
    assert first.choices == second.choices
