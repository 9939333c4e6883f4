"""Each reduction alone: the smaller problem has the same optimum, and its choices come back."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.solve.problems import brute_force, fits, random_problem
from xshard.solve.check import evaluate
from xshard.solve.drop import Drop
from xshard.solve.eliminate import Eliminate
from xshard.solve.merge import Merge
from xshard.solve.problem import FORBIDDEN
from xshard.solve.reduce import Reduced, reduce
from xshard.solve.trim import Trim

TRIMMED = {"drop": Drop.find, "eliminate": Eliminate.find}


def steps(name, problem):
    """The reduction under test, after what it relies on."""
    start = Reduced(problem, ()).then(Trim())
    if name == "trim":
        return start
    if name == "merge":
        return start.then(Merge())
    if name == "all":
        return reduce(problem)
    return start.then(TRIMMED[name](start.problem))


def cheapest(problem):
    """The first choices with the least objective that fit, or None."""
    every = product(*(range(len(n.costs)) for n in problem.nodes))
    allowed = [c for c in every if fits(problem, c)]
    return min(allowed, key=lambda c: evaluate(problem, c)[0], default=None)


@pytest.mark.parametrize("name", ["trim", "merge", "drop", "eliminate", "all"])
@given(seed=st.integers(0, 10**6), rows=st.booleans(), forbidden=st.sampled_from([0, 0.1, 0.4]))
@settings(max_examples=60)
def test_optimum_survives_and_comes_back(name, seed, rows, forbidden):
    problem = random_problem(seed, rows=rows, forbidden=forbidden, nodes=5)
    best, _ = brute_force(problem)
    reduced = steps(name, problem)
    small = cheapest(reduced.problem) if reduced.problem.constant < FORBIDDEN else None
    assert (small is None) == (best is None)
    if small is not None:
        objective = evaluate(reduced.problem, small)[0]
        choices = reduced.invert(small)
        assert objective == best == evaluate(problem, choices)[0]
        assert fits(problem, choices)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_without_memory(seed):
    assert not reduce(random_problem(seed, rows=False, nodes=8)).problem.nodes


@pytest.mark.parametrize("seed", range(20))
def test_reducing_twice_changes_nothing(seed):
    once = reduce(random_problem(seed, nodes=8)).problem
    twice = reduce(once).problem
    assert [len(n.costs) for n in once.nodes] == [len(n.costs) for n in twice.nodes]
